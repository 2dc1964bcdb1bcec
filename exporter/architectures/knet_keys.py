"""K-Net checkpoints of mmsegmentation: detection and shapes.

Its tensors tell everything but what has no shape: the attention's heads, the pyramid's dilations or
scales, a ResNet's strides. The configuration beside the weights says it, or the published
configurations' numbers are assumed and said to be.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from engines.errors import CheckpointError, ConfigError
from exporter.architectures.aspp import aspp_dilations
from exporter.architectures.backbones import (
    BACKBONE_RULES,
    backbone_shape,
    backbone_writes_the_same,
)
from exporter.architectures.description import NO_HINTS, Hints, ModelDescription
from exporter.architectures.kernel_update import StageShape
from exporter.architectures.knet import Knet, KnetShape
from exporter.architectures.loading import (
    check_keep_outputs,
    count_children,
    load_strictly,
    paths_after,
    tensors_of,
    usable_tensors,
    weights_after,
)
from exporter.architectures.resnet import with_stride_8
from exporter.architectures.swin import without_index_tables
from exporter.architectures.uper import UPER_RULES, assumed_of_upernet, pool_scales_of

NAME = "knet"
STYLE = "mmsegmentation"
# Of the attention in each published configuration.
USUAL_HEADS = 8

_GENERATE = "decode_head.kernel_generate_head."
_UPDATE = "decode_head.kernel_update_head."
# A tensor of the heads that can make the first kernels.
_HEAD_SIGNS = {
    "deeplabv3": f"{_GENERATE}image_pool.1.conv.weight",
    "upernet": f"{_GENERATE}fpn_bottleneck.conv.weight",
}
# Module path -> path(s) after `exporter.rewrites`.
_LAYER_RULES = (
    *BACKBONE_RULES,
    *UPER_RULES,
    (r"\.attention\.attn$", (".attention.q", ".attention.k", ".attention.v")),
    (r"\.attention\.attn\.out_proj$", (".attention.out_proj",)),
    # They read sums that are scaled and not yet transformed: see `rewrites.knet.SumsUpdator`.
    (r"\.kernel_update_conv\.(dynamic_layer|input_gate|update_gate)$", ()),
)
# Modules of the heads whose output a rewrite scales or folds something into.
_CHANGED = re.compile(r"\.(conv|dynamic_layer|input_gate|update_gate|attn|fc_mask)$")


def recognises(keys: frozenset[str]) -> bool:
    return any(key.startswith(_UPDATE) for key in keys)


def model_from_tensors(
    tensors: Mapping[str, Tensor], hints: Hints = NO_HINTS
) -> tuple[nn.Module, ModelDescription]:
    """See `Architecture.model_from_tensors`."""
    named = without_index_tables(usable_tensors(tensors))
    with tensors_of("K-Net", STYLE):
        shape, assumed = _shape_from_tensors(named, hints)
        if hints.keep_outputs is not None:
            check_keep_outputs(hints.keep_outputs, shape.num_outputs)
        with torch.device("meta"):
            model = Knet(shape)
    load_strictly(model, named, "K-Net")
    description = ModelDescription(
        architecture=NAME,
        variant=f"{shape.backbone.name}-{shape.head_kind}",
        head=shape.head_kind,
        head_channels=shape.channels,
        in_channels=shape.backbone.in_channels,
        num_outputs=shape.keep_outputs or shape.num_outputs,
        parameters=sum(p.numel() for p in model.parameters()),
        source=STYLE,
        assumed=assumed,
    )
    return model.eval(), description


def layer_paths(module: str, _style: str) -> tuple[str, ...]:
    """See `Architecture.layer_paths`; each stage's feature transform goes into other layers."""
    return paths_after(module, _LAYER_RULES)


def layer_weights(model: nn.Module) -> dict[str, Tensor]:
    """Weight of each layer as the checkpoint has it, by the path of `layer_paths`."""
    return weights_after(model, _LAYER_RULES)


def writes_the_same(module: str, _style: str) -> bool:
    """Whether those layers also write what that module wrote.

    Not where BatchNorm is folded in, nor in a stage where sums are scaled, queries are, or the
    feature transform is taken over.
    """
    return backbone_writes_the_same(module) and _CHANGED.search(module) is None


def _shape_from_tensors(
    named: Mapping[str, Tensor], hints: Hints
) -> tuple[KnetShape, tuple[str, ...]]:
    head_kind = _head_kind(named)
    num_outputs, channels = named[f"{_GENERATE}conv_seg.weight"].shape[:2]
    dilations: tuple[int, ...] = ()
    scales: tuple[int, ...] = ()
    if head_kind == "deeplabv3":
        hints, of_strides = with_stride_8(hints)
        backbone = backbone_shape(named, "backbone.", hints)
        dilations, of_dilations = aspp_dilations(named, _GENERATE, hints)
        assumed = of_strides + of_dilations
    else:
        backbone = backbone_shape(named, "backbone.", hints)
        scales = pool_scales_of(named, _GENERATE, hints)
        assumed = assumed_of_upernet(backbone, hints)
    num_heads, of_heads = _num_heads(channels, hints)
    stages = range(count_children(named, _UPDATE))
    shape = KnetShape(
        backbone=backbone,
        head_kind=head_kind,
        channels=channels,
        num_outputs=num_outputs,
        stages=tuple(_stage_shape(named, f"{_UPDATE}{i}.", channels, num_heads) for i in stages),
        head_dilations=dilations,
        pool_scales=scales,
        align_corners=bool(hints.align_corners),
        keep_outputs=hints.keep_outputs,
    )
    return shape, assumed + of_heads


def _head_kind(named: Mapping[str, Tensor]) -> str:
    for kind, sign in _HEAD_SIGNS.items():
        if sign in named:
            return kind
    first = sorted(key for key in named if key.startswith(_GENERATE))[:3]
    raise CheckpointError(
        f"a K-Net whose first kernels come from {', '.join(first) or 'no head'}",
        expected="the head of DeepLabV3 (ASPP) or UPerNet",
        do="give a K-Net of `riceseg models`",
    )


def _num_heads(channels: int, hints: Hints) -> tuple[int, tuple[str, ...]]:
    """Of the attention in every stage, and what was assumed about them."""
    count = USUAL_HEADS if hints.num_heads is None else hints.num_heads
    if count < 1 or channels % count:
        raise ConfigError(
            f"{count} heads of attention for kernels of {channels} numbers",
            expected="a number of heads that divides them",
            do="give the checkpoint with its configuration, whose kernel_update_head has num_heads",
        )
    if hints.num_heads is not None:
        return count, ()
    sentence = (
        f"The kernels' attention is taken to have {count} heads, as in every published K-Net: no "
        "configuration says so, and another number has the same weights."
    )
    return count, (sentence,)


def _stage_shape(
    named: Mapping[str, Tensor], prefix: str, channels: int, num_heads: int
) -> StageShape:
    update_channels = named[f"{prefix}kernel_update_conv.dynamic_layer.weight"].shape[1]
    if update_channels < 1 or channels % update_channels:
        raise CheckpointError(
            f"a K-Net stage that updates {update_channels} of its kernels' {channels} numbers "
            "at a time",
            expected="a divisor of that number",
            do="check that the checkpoint is an unmodified K-Net of mmsegmentation",
        )
    ffn = f"{prefix}ffn.layers."
    hidden = max(0, count_children(named, ffn) - 1)
    mask_layers = [k for k in named if k.startswith(f"{prefix}mask_fcs.") and named[k].dim() == 2]
    return StageShape(
        channels=channels,
        update_channels=update_channels,
        num_heads=num_heads,
        hidden_channels=tuple(named[f"{ffn}{i}.0.weight"].shape[0] for i in range(hidden)),
        num_mask_layers=len(mask_layers),
        has_feature_transform=f"{prefix}feat_transform.conv.weight" in named,
    )
