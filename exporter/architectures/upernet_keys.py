"""UPerNet checkpoints of mmsegmentation: shapes inferred, on a ResNet or a Swin Transformer."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from exporter.architectures.backbones import (
    BACKBONE_RULES,
    backbone_shape,
    backbone_writes_the_same,
)
from exporter.architectures.description import NO_HINTS, Hints, ModelDescription
from exporter.architectures.loading import (
    load_strictly,
    paths_after,
    tensors_of,
    usable_tensors,
    weights_after,
    with_first_outputs,
)
from exporter.architectures.swin import without_index_tables
from exporter.architectures.uper import UPER_RULES, assumed_of_upernet, pool_scales_of
from exporter.architectures.upernet import Upernet, UpernetShape

NAME = "upernet"

_SOURCE = "mmsegmentation"
_HEAD = ("decode_head.fpn_bottleneck.conv.weight", "decode_head.psp_modules.0.1.conv.weight")
# mmsegmentation's module path -> path(s) after `exporter.rewrites`.
_LAYER_RULES = (*BACKBONE_RULES, *UPER_RULES)


def recognises(keys: frozenset[str]) -> bool:
    """By the head; `model_from_tensors` refuses backbones that it does not know."""
    return keys.issuperset(_HEAD)


def model_from_tensors(
    tensors: Mapping[str, Tensor], hints: Hints = NO_HINTS
) -> tuple[nn.Module, ModelDescription]:
    """See `Architecture.model_from_tensors`."""
    named = without_index_tables(usable_tensors(tensors))
    with tensors_of("UPerNet", _SOURCE):
        if hints.keep_outputs is not None:
            named = with_first_outputs(named, hints.keep_outputs)
        shape = _shape_from_tensors(named, hints)
    with torch.device("meta"):
        model = Upernet(shape)
    load_strictly(model, named, "UPerNet")
    description = ModelDescription(
        architecture=NAME,
        variant=shape.backbone.name,
        head="upernet",
        head_channels=shape.channels,
        in_channels=shape.backbone.in_channels,
        num_outputs=shape.num_outputs,
        parameters=sum(p.numel() for p in model.parameters()),
        source=_SOURCE,
        assumed=assumed_of_upernet(shape.backbone, hints),
    )
    return model.eval(), description


def layer_paths(module: str, _style: str) -> tuple[str, ...]:
    """See `Architecture.layer_paths`."""
    return paths_after(module, _LAYER_RULES)


def layer_weights(model: nn.Module) -> dict[str, Tensor]:
    """Weight of each layer as the checkpoint has it, by the path of `layer_paths`."""
    return weights_after(model, _LAYER_RULES)


def writes_the_same(module: str, _style: str) -> bool:
    """Whether those layers also write what that module wrote: not where BatchNorm is folded in."""
    return backbone_writes_the_same(module) and not module.endswith(".conv")


def _shape_from_tensors(named: Mapping[str, Tensor], hints: Hints) -> UpernetShape:
    classifier = named["decode_head.conv_seg.weight"]
    return UpernetShape(
        backbone=backbone_shape(named, "backbone.", hints),
        channels=classifier.shape[1],
        num_outputs=classifier.shape[0],
        pool_scales=pool_scales_of(named, "decode_head.", hints),
        align_corners=bool(hints.align_corners),
    )
