"""Segmenter checkpoints: two key styles brought to mmsegmentation's names, shapes inferred.

Styles: mmsegmentation, and "rstrudel" of the original program (github.com/rstrudel/segmenter).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

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
    with_first_outputs,
)
from exporter.architectures.segmenter import MaskDecoderShape, Segmenter, SegmenterShape
from exporter.architectures.vit_keys import (
    check_sizes,
    heads_of,
    is_vit,
    is_vit_alone,
    vit_alone_error,
    vit_letter,
    vit_shape,
)

NAME = "segmenter"

_RSTRUDEL_PROBES = frozenset({"encoder.patch_embed.proj.weight", "encoder.blocks.0.norm1.weight"})
_RSTRUDEL_RULES: Rules = (
    (r"^encoder\.patch_embed\.proj\.", "backbone.patch_embed.projection."),
    (r"^encoder\.blocks\.", "backbone.layers."),
    (r"^encoder\.norm\.", "backbone.ln1."),
    (r"^encoder\.", "backbone."),
    (r"^decoder\.blocks\.", "decode_head.layers."),
    (r"^decoder\.proj_dec\.", "decode_head.dec_proj."),
    (r"^decoder\.proj_patch$", "decode_head.patch_proj.weight"),
    (r"^decoder\.proj_classes$", "decode_head.classes_proj.weight"),
    (r"^decoder\.head\.", "decode_head.conv_seg."),
    (r"^decoder\.", "decode_head."),
    (r"\.norm([12])\.", r".ln\1."),
    (r"\.attn\.qkv\.", ".attn.attn.in_proj_"),
    (r"\.attn\.proj\.", ".attn.attn.out_proj."),
    (r"\.mlp\.fc1\.", ".ffn.layers.0.0."),
    (r"\.mlp\.fc2\.", ".ffn.layers.1."),
)
# The original multiplies by these from the right, x @ P, and a linear layer is x @ W^T.
_TRANSPOSED = ("decode_head.patch_proj.weight", "decode_head.classes_proj.weight")
_NORMALISATION = (
    "the published Segmenters are trained with 127.5 for all of both "
    "(--mean 127.5,127.5,127.5 --std 127.5,127.5,127.5)"
)
# mmsegmentation's module path -> path(s) after `exporter.rewrites`.
_LAYER_RULES = (
    (r"\.attn\.attn\.out_proj$", (".attn.out_proj",)),
    (r"\.attn\.attn(\.in_proj_weight)?$", (".attn.q", ".attn.k", ".attn.v")),
)


def recognises(keys: frozenset[str]) -> bool:
    """Also a ViT alone, so that `model_from_tensors` can say what is missing."""
    if is_vit_alone(keys):
        return True
    style = _style(keys)
    return style is not None and _head(keys, style) is not None


def model_from_tensors(
    tensors: Mapping[str, Tensor], hints: Hints = NO_HINTS
) -> tuple[nn.Module, ModelDescription]:
    """See `Architecture.model_from_tensors`."""
    keys = frozenset(tensors)
    if is_vit_alone(keys):
        raise vit_alone_error(tensors)
    style = _style(keys)
    assert style is not None, "not recognised"
    named = _canonical(tensors, style)
    with tensors_of("Segmenter", style):
        shape, assumed = _shape_from_tensors(named, style, hints)
        # The linear head's classes are independent of each other; the mask transformer's are not.
        if hints.keep_outputs is not None and shape.decoder is None:
            named = with_first_outputs(named, hints.keep_outputs)
    with torch.device("meta"):
        model = Segmenter(shape)
    load_strictly(model, named, "Segmenter")
    encoder = shape.encoder
    head = "linear" if shape.decoder is None else "mask"
    description = ModelDescription(
        architecture=NAME,
        variant=f"{vit_letter(encoder)}-{head}",
        head=head,
        head_channels=encoder.dim if shape.decoder is None else shape.decoder.dim,
        in_channels=encoder.in_channels,
        num_outputs=shape.num_outputs,
        parameters=sum(p.numel() for p in model.parameters()),
        source=style,
        trained_hw=(encoder.grid[0] * encoder.patch, encoder.grid[1] * encoder.patch),
        assumed=assumed,
        other_normalisation=_NORMALISATION,
    )
    return model.eval(), description


def layer_paths(module: str, style: str) -> tuple[str, ...]:
    """See `Architecture.layer_paths`. mmsegmentation's q, k and v are one module, `attn.attn`."""
    return paths_after(_renamed(f"{module}.weight", style).removesuffix(".weight"), _LAYER_RULES)


def layer_weights(model: nn.Module) -> dict[str, Tensor]:
    """Weight of each layer as the checkpoint has it, by the path of `layer_paths`."""
    return weights_after(model, _LAYER_RULES)


def writes_the_same(module: str, style: str) -> bool:
    """Whether those layers also write what that module wrote.

    q holds the attention's scale, and the biases of two layers are added behind them.
    """
    path = _renamed(f"{module}.weight", style)
    return re.search(r"\.(attn\.attn|projection|dec_proj)\.(in_proj_)?weight$", path) is None


def _style(keys: frozenset[str]) -> str | None:
    if is_vit(keys, "backbone."):
        return "mmsegmentation"
    return "rstrudel" if keys >= _RSTRUDEL_PROBES else None


def _head(keys: frozenset[str], style: str) -> str | None:
    """The kind, "mask" or "linear"; None for another head on the same encoder (SETR, UPerNet)."""
    prefix = "decode_head." if style == "mmsegmentation" else "decoder."
    if f"{prefix}cls_emb" in keys:
        return "mask"
    classifier = "conv_seg" if style == "mmsegmentation" else "head"
    # Any other head has layers in lists or groups: decode_head.convs.0.conv.weight.
    deep = any(key.startswith(prefix) and key.count(".") > 2 for key in keys)
    others = deep or any(key.startswith("neck.") for key in keys)
    return "linear" if f"{prefix}{classifier}.weight" in keys and not others else None


def _canonical(tensors: Mapping[str, Tensor], style: str) -> dict[str, Tensor]:
    """mmsegmentation's names, float32; what only classification needs is left out."""
    usable = usable_tensors(tensors, dropped=("encoder.head.", "encoder.head_dist."))
    named = {_renamed(key, style): tensor for key, tensor in usable.items()}
    if style == "rstrudel":
        for key in _TRANSPOSED:
            if key in named and named[key].dim() == 2:
                named[key] = named[key].T.contiguous()
        distilled = named.pop("backbone.dist_token", None)
        if distilled is not None and "backbone.cls_token" in named:
            class_token = named["backbone.cls_token"]
            if class_token.shape == distilled.shape and class_token.dim() == 3:
                named["backbone.cls_token"] = torch.cat((class_token, distilled), dim=1)
    return named


def _renamed(key: str, style: str) -> str:
    return renamed(key, _RSTRUDEL_RULES) if style == "rstrudel" else key


def _shape_from_tensors(
    named: Mapping[str, Tensor], style: str, hints: Hints
) -> tuple[SegmenterShape, tuple[str, ...]]:
    original = style == "rstrudel"
    encoder, assumed = vit_shape(named, original=original, num_heads=hints.num_heads)
    decoder = _decoder_shape(named, hints) if "decode_head.cls_emb" in named else None
    if decoder is not None:
        outputs = decoder.num_classes
    else:
        outputs = named["decode_head.conv_seg.weight"].shape[0]
        check_sizes(outputs)
    if hints.keep_outputs is not None:
        check_keep_outputs(hints.keep_outputs, outputs)
        outputs = hints.keep_outputs
    return SegmenterShape(encoder, decoder, outputs, crop=original), assumed


def _decoder_shape(named: Mapping[str, Tensor], hints: Hints) -> MaskDecoderShape:
    num_classes, dim = named["decode_head.cls_emb"].shape[1:3]
    layers = "decode_head.layers."
    hidden = 1  # of no importance without layers
    if depth := count_children(named, layers):
        first = named[f"{layers}0.ffn.layers.0.0.weight"]
        check_sizes(first.numel())
        hidden = first.shape[0]
    check_sizes(num_classes, dim)
    return MaskDecoderShape(
        dim=dim,
        depth=depth,
        num_heads=heads_of(dim, hints.num_heads),
        hidden=hidden,
        num_classes=num_classes,
        qkv_bias=not depth or f"{layers}0.attn.attn.in_proj_bias" in named,
    )
