"""Mask2Former checkpoints: key styles brought to mmsegmentation's names, shapes inferred.

mmsegmentation 1.x and mmdetection 3 share their names; those of mmdetection 2 (ViT-Adapter,
PlainSeg, ModelScope) differ in the transformers alone. mmdetection's own models call the head
"panoptic_head"; read here, they give semantic segmentation into things and stuff. Other styles are
in files of their own, each of which offers what `KeyStyle` says.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from engines.errors import CheckpointError, ConfigError
from exporter.architectures import mask2former_detectron2, mask2former_hf
from exporter.architectures.backbones import (
    BACKBONE_RULES,
    BackboneShape,
    backbone_shape,
    backbone_writes_the_same,
)
from exporter.architectures.description import NO_HINTS, Hints, ModelDescription
from exporter.architectures.loading import (
    Rules,
    check_keep_outputs,
    count_children,
    load_strictly,
    paths_after,
    renamed,
    tensors_of,
    usable_tensors,
    weights_after,
)
from exporter.architectures.mask2former import USUAL_DIVISOR, Mask2Former, Mask2FormerShape
from exporter.architectures.mask_decoder import MaskDecoderShape
from exporter.architectures.pixel_decoder import GROUPS, PixelDecoderShape
from exporter.architectures.resnet import ResNetShape
from exporter.architectures.swin import without_index_tables

NAME = "mask2former"
USUAL_HEADS = 8
_MAX_DIVISOR = 1024

_PIXELS = "decode_head.pixel_decoder."
_DECODER = "decode_head.transformer_decoder."
_FIRST_ENCODER = f"{_PIXELS}encoder.layers.0."
_FIRST_DECODER = f"{_DECODER}layers.0."
# Module path -> path(s) after `exporter.rewrites`. `mask_feature` has none: see FoldedMaskHead.
_LAYER_RULES = (
    (r"\.(cross|self)_attn\.attn$", (r".\1_attn.q", r".\1_attn.k", r".\1_attn.v")),
    (r"\.(cross|self)_attn\.attn\.out_proj$", (r".\1_attn.out_proj",)),
    *BACKBONE_RULES,
)
# Layers of the head whose weights a rewrite changes, or whose result lacks what is folded.
_CHANGED = re.compile(
    r"\.(cross|self)_attn\.(attn|attn\.out_proj|out_proj|q|k|v)$|\.mask_embed\.4$|\.mask_feature$"
)


class KeyStyle(Protocol):
    """Names that somebody else gives to the same tensors."""

    NAME: str

    def recognises(self, keys: frozenset[str]) -> bool:
        """True when these tensor names are of this style."""

    def canonical(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """mmsegmentation's names and layouts, float32; only what the model has.

        A tensor that is missed raises KeyError. A name without a rule stays as it is, so that
        strict loading names it.
        """

    def notes(self, named: Mapping[str, Tensor], /) -> tuple[str, ...]:
        """For `ModelDescription.assumed`; `named` are the tensors of `canonical`."""

    def module_path(self, path: str) -> str:
        """mmsegmentation's path of a module of this style."""


class _OpenMmlab:
    """mmsegmentation's and mmdetection's names, which differ by a few rules."""

    def __init__(self, name: str, head: str, sign: str, rules: Rules) -> None:
        self.NAME, self._rules = name, rules
        self._signs = {f"{head}.cls_embed.weight", f"{head}.pixel_decoder.level_encoding.weight"}
        self._signs.add(f"{head}.{sign}")

    def recognises(self, keys: frozenset[str]) -> bool:
        return keys.issuperset(self._signs)

    def canonical(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        usable = without_index_tables(usable_tensors(tensors))
        return {renamed(key, self._rules): tensor for key, tensor in usable.items()}

    def notes(self, _named: Mapping[str, Tensor]) -> tuple[str, ...]:
        return ()

    def module_path(self, path: str) -> str:
        return renamed(f"{path}.", self._rules).removesuffix(".")


_MMDET_2: Rules = (
    (r"(\.pixel_decoder\.encoder\.layers\.\d+)\.attentions\.0\.", r"\1.self_attn."),
    (r"(\.transformer_decoder\.layers\.\d+)\.attentions\.0\.", r"\1.cross_attn."),
    (r"(\.transformer_decoder\.layers\.\d+)\.attentions\.1\.", r"\1.self_attn."),
    (r"(coder\.layers\.\d+)\.ffns\.0\.", r"\1.ffn."),
)
_PANOPTIC: Rules = ((r"^panoptic_head\.", "decode_head."),)
_NEW = "pixel_decoder.encoder.layers.0.self_attn.value_proj.weight"
_OLD = "pixel_decoder.encoder.layers.0.attentions.0.value_proj.weight"
STYLES: tuple[KeyStyle, ...] = (
    _OpenMmlab("mmsegmentation", "decode_head", _NEW, ()),
    _OpenMmlab("mmsegmentation 0.x", "decode_head", _OLD, _MMDET_2),
    _OpenMmlab("mmdetection", "panoptic_head", _NEW, _PANOPTIC),
    _OpenMmlab("mmdetection 2.x", "panoptic_head", _OLD, (*_PANOPTIC, *_MMDET_2)),
    mask2former_hf,
    mask2former_detectron2,
)


def recognises(keys: frozenset[str]) -> bool:
    return any(style.recognises(keys) for style in STYLES)


def model_from_tensors(
    tensors: Mapping[str, Tensor], hints: Hints = NO_HINTS
) -> tuple[nn.Module, ModelDescription]:
    """See `Architecture.model_from_tensors`."""
    keys = frozenset(tensors)
    style = next(style for style in STYLES if style.recognises(keys))
    with tensors_of("Mask2Former", style.NAME):
        named = style.canonical(tensors)
        notes = style.notes(named)
        shape = _shape_from_tensors(named, hints)
    with torch.device("meta"):
        model = Mask2Former(shape)
    load_strictly(model, named, "Mask2Former")
    description = ModelDescription(
        architecture=NAME,
        variant=shape.backbone.name,
        head=NAME,
        head_channels=shape.pixels.channels,
        in_channels=shape.backbone.in_channels,
        num_outputs=shape.num_outputs,
        parameters=sum(p.numel() for p in model.parameters()),
        source=style.NAME,
        assumed=(*_assumed(hints, shape), *notes),
    )
    return model.eval(), description


def layer_paths(module: str, style: str) -> tuple[str, ...]:
    """See `Architecture.layer_paths`."""
    known = next((s for s in STYLES if style == s.NAME), STYLES[0])
    return paths_after(known.module_path(module), _LAYER_RULES)


def layer_weights(model: nn.Module) -> dict[str, Tensor]:
    """Weight of each layer as the checkpoint has it, by the path of `layer_paths`."""
    return weights_after(model, _LAYER_RULES)


def writes_the_same(module: str, style: str) -> bool:
    """Whether those layers also write what that module wrote: no rewrite scales or folds it."""
    known = next((s for s in STYLES if style == s.NAME), STYLES[0])
    path = known.module_path(module)
    return backbone_writes_the_same(path) and _CHANGED.search(path) is None


def _shape_from_tensors(named: Mapping[str, Tensor], hints: Hints) -> Mask2FormerShape:
    backbone = backbone_shape(named, "backbone.", hints)
    _check_strides(backbone)
    pixels = _pixel_decoder_shape(named, backbone, hints)
    masks = _mask_decoder_shape(named, pixels)
    if hints.keep_outputs is not None:
        check_keep_outputs(hints.keep_outputs, masks.classes)
    divisor = USUAL_DIVISOR if hints.size_divisor is None else hints.size_divisor
    if not 1 <= divisor <= _MAX_DIVISOR:
        raise ConfigError(
            f"size_divisor {divisor}",
            expected=f"1 to {_MAX_DIVISOR}",
            do="correct test_cfg in the checkpoint's configuration",
        )
    return Mask2FormerShape(backbone, pixels, masks, hints.keep_outputs, divisor)


def _pixel_decoder_shape(
    named: Mapping[str, Tensor], backbone: BackboneShape, hints: Hints
) -> PixelDecoderShape:
    out, channels = named[f"{_PIXELS}mask_feature.weight"].shape[:2]
    heads = USUAL_HEADS if hints.num_heads is None else hints.num_heads
    if heads < 1 or channels % heads:
        raise ConfigError(
            f"{heads} attention heads for {channels} channels",
            expected="a number of heads that divides them",
            do="correct num_heads in the checkpoint's configuration",
        )
    levels = named[f"{_PIXELS}level_encoding.weight"].shape[0]
    offsets = named[f"{_FIRST_ENCODER}self_attn.sampling_offsets.weight"].shape[0]
    each = 2 * heads * levels
    fits = 1 <= levels <= len(backbone.channels) and offsets % max(1, each) == 0 < offsets
    if not fits or channels % GROUPS or not channels:
        raise CheckpointError(
            f"a pixel decoder of {channels} channels with {levels} levels and {offsets} sampling "
            f"offsets for {heads} heads",
            expected=f"a multiple of {GROUPS} channels, at most {len(backbone.channels)} levels, "
            "and two offsets for every point, level and head",
            do="check that the checkpoint is an unmodified Mask2Former",
        )
    return PixelDecoderShape(
        in_channels=backbone.channels,
        channels=channels,
        out_channels=out,
        layers=count_children(named, f"{_PIXELS}encoder.layers."),
        heads=heads,
        levels=levels,
        points=offsets // each,
        hidden=named[f"{_FIRST_ENCODER}ffn.layers.0.0.weight"].shape[0],
    )


def _mask_decoder_shape(named: Mapping[str, Tensor], pixels: PixelDecoderShape) -> MaskDecoderShape:
    outputs = named["decode_head.cls_embed.weight"].shape[0]
    queries, channels = named["decode_head.query_feat.weight"].shape
    if outputs < 2 or channels % pixels.heads or channels % 4 or not channels:
        raise CheckpointError(
            f"a mask decoder of {channels} channels with {outputs} class outputs",
            expected=f"a multiple of 4 and of its {pixels.heads} heads as channels, and at least "
            'two outputs, the last one for "nothing"',
            do="check that the checkpoint is an unmodified Mask2Former",
        )
    return MaskDecoderShape(
        classes=outputs - 1,
        queries=queries,
        channels=channels,
        layers=count_children(named, f"{_DECODER}layers."),
        heads=pixels.heads,
        hidden=named[f"{_FIRST_DECODER}ffn.layers.0.0.weight"].shape[0],
        input_projections="decode_head.decoder_input_projs.0.weight" in named,
    )


def _check_strides(backbone: BackboneShape) -> None:
    """Every map must be a whole number of times smaller than the finer ones."""
    if isinstance(backbone, ResNetShape):
        if any(stride not in (1, 2) for stride in backbone.strides):
            raise ConfigError(
                f"strides {backbone.strides} of Mask2Former's backbone",
                expected="strides of 1 and 2",
                do="correct the backbone in the checkpoint's configuration",
            )
    elif backbone.patch not in (1, 2, 4):
        raise CheckpointError(
            f"patches of {backbone.patch} pixels in Mask2Former's backbone",
            expected="patches of 4 pixels",
            do="check that the checkpoint is an unmodified Mask2Former",
        )


def _assumed(hints: Hints, shape: Mask2FormerShape) -> tuple[str, ...]:
    if hints.num_heads is not None:
        return ()
    return (
        f"Every attention is taken to have {shape.pixels.heads} heads, as in all published "
        f"models, and so {shape.pixels.points} points a level: no configuration says so, and other "
        "numbers of heads have the same weights.",
    )
