"""UPerNet checkpoints of mmsegmentation: shapes inferred, on a ResNet or a Swin Transformer."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from exporter.architectures.backbones import backbone_shape
from exporter.architectures.description import NO_HINTS, Hints, ModelDescription
from exporter.architectures.loading import (
    check_keep_outputs,
    load_strictly,
    paths_after,
    tensors_of,
    usable_tensors,
)
from exporter.architectures.swin import without_index_tables
from exporter.architectures.uper import pool_scales_of
from exporter.architectures.upernet import Upernet, UpernetShape

NAME = "upernet"

_SOURCE = "mmsegmentation"
_HEAD = ("decode_head.fpn_bottleneck.conv.weight", "decode_head.psp_modules.0.1.conv.weight")
# mmsegmentation's module path -> path(s) after `exporter.rewrites`.
LAYER_RULES = (
    (r"\.attn\.w_msa\.qkv$", tuple(f".attn.w_msa.{part}" for part in "qkv")),
    (r"\.psp_modules\.(\d+)\.1\.conv$", (r".pooled.branches.\1.0.conv",)),
)
# The query is scaled; the others have a BatchNorm behind them, which is folded.
_CHANGED = re.compile(r"\.w_msa\.qkv$|\.conv\d?$|\.stem\.\d$|\.downsample\.\d$")


def recognises(keys: frozenset[str]) -> bool:
    """By the head; `model_from_tensors` refuses backbones that it does not know."""
    return keys.issuperset(_HEAD)


def model_from_tensors(
    tensors: Mapping[str, Tensor], hints: Hints = NO_HINTS
) -> tuple[nn.Module, ModelDescription]:
    """See `Architecture.model_from_tensors`."""
    named = without_index_tables(usable_tensors(tensors))
    with tensors_of("UPerNet", _SOURCE):
        shape = _shape_from_tensors(named, hints)
        for kind in ("weight", "bias"):
            key = f"decode_head.conv_seg.{kind}"
            named[key] = named[key][: shape.num_outputs].clone()
    with torch.device("meta"):
        model = Upernet(shape)
    load_strictly(model, named, "UPerNet")
    assumed: tuple[str, ...] = ()
    if hints.align_corners is None:
        assumed = (
            "Maps are taken to be resized with align_corners=False, as in all published models but "
            "those for 769x769: no configuration says so, and both have the same weights.",
        )
    description = ModelDescription(
        architecture=NAME,
        variant=shape.backbone.name,
        head="upernet",
        head_channels=shape.channels,
        in_channels=shape.backbone.in_channels,
        num_outputs=shape.num_outputs,
        parameters=sum(p.numel() for p in model.parameters()),
        source=_SOURCE,
        assumed=assumed,
    )
    return model.eval(), description


def layer_paths(module: str, style: str) -> tuple[str, ...]:  # one style alone
    """See `Architecture.layer_paths`."""
    return paths_after(module, LAYER_RULES)


def layer_weights(model: nn.Module) -> dict[str, Tensor]:
    """Weight of each layer as the checkpoint has it, by the path of `layer_paths`."""
    weights: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if name.endswith(".weight"):
            paths = layer_paths(name.removesuffix(".weight"), _SOURCE)
            weights |= dict(zip(paths, tensor.chunk(len(paths)), strict=True))
    return weights


def writes_the_same(module: str, style: str) -> bool:
    """Whether those layers also write what that module wrote: no rewrite scales or folds it."""
    return _CHANGED.search(module) is None


def _shape_from_tensors(named: Mapping[str, Tensor], hints: Hints) -> UpernetShape:
    classifier = named["decode_head.conv_seg.weight"]
    outputs = classifier.shape[0]
    if hints.keep_outputs is not None:
        check_keep_outputs(hints.keep_outputs, outputs)
        outputs = hints.keep_outputs
    return UpernetShape(
        backbone=backbone_shape(named, "backbone.", hints),
        channels=classifier.shape[1],
        num_outputs=outputs,
        pool_scales=pool_scales_of(named, "decode_head.", hints),
        align_corners=bool(hints.align_corners),
    )
