"""What the tensors of a ViT tell, in mmsegmentation's names; also of one without a decode head."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from engines.errors import CheckpointError
from exporter.architectures.loading import count_children, tensors_of
from exporter.architectures.vit import VitShape

# (dim, depth) of the paper's table 1, also of the ViTs they start from; patches of 16 pixels.
VARIANTS = {(192, 12): "t", (384, 12): "s", (768, 12): "b", (1024, 24): "l"}
PATCH = 16
HEAD_WIDTH = 64  # channels of an attention head in all of them

# mmsegmentation's names of a whole model, and those of a file that training starts from.
_PROBES = ("patch_embed.projection.weight", "layers.0.ln1.weight")
_PREFIXES = ("backbone.", "")
_HEADS = ("decode_head.", "decoder.", "neck.")


def is_vit(keys: frozenset[str], prefix: str) -> bool:
    """Whether there is a ViT under `prefix`; Swin and MiT have no layers.0.ln1."""
    return keys.issuperset(f"{prefix}{probe}" for probe in _PROBES)


def is_vit_alone(keys: frozenset[str]) -> bool:
    """A ViT without any decode head."""
    return not any(key.startswith(_HEADS) for key in keys) and any(
        is_vit(keys, prefix) for prefix in _PREFIXES
    )


def vit_alone_error(tensors: Mapping[str, Tensor]) -> CheckpointError:
    return CheckpointError(
        f"{vit_name(tensors)}, a backbone without decode head, which training starts from",
        expected="a trained segmentation model, with decode_head.* tensors",
        do="give the checkpoint of the whole Segmenter, not the pretrained backbone",
    )


def vit_name(tensors: Mapping[str, Tensor]) -> str:
    """For people, such as "ViT-B/16, position embedding of 384x384", where `is_vit_alone`.

    Raises CheckpointError when a tensor is missing that this needs.
    """
    prefix = next(p for p in _PREFIXES if is_vit(frozenset(tensors), p))
    with tensors_of("ViT", "mmsegmentation"):
        weight = tensors[f"{prefix}patch_embed.projection.weight"]
        dim, patch = weight.shape[0], weight.shape[2]
        positions = tensors[f"{prefix}pos_embed"].shape[1]
    (h, w), _ = _grid(positions - 1)
    letter = VARIANTS.get((dim, count_children(tensors, f"{prefix}layers.")))
    told = f"ViT-{letter.upper()}/{patch}" if letter else f"a ViT/{patch} of width {dim}"
    return f"{told}, position embedding of {h * patch}x{w * patch}"


def vit_shape(
    named: Mapping[str, Tensor], *, original: bool, num_heads: int | None
) -> tuple[VitShape, tuple[str, ...]]:
    """The shape behind "backbone." names, and what had to be assumed.

    `original`: trained with Segmenter's original program. `num_heads` counts only where the width
    is no multiple of `HEAD_WIDTH`. To be called inside `tensors_of`.
    """
    projection = named["backbone.patch_embed.projection.weight"]
    dim, patch = projection.shape[0], projection.shape[2]
    class_tokens = named["backbone.cls_token"].shape[1]
    grid, assumed = _grid(named["backbone.pos_embed"].shape[1] - class_tokens)
    first = named["backbone.layers.0.ffn.layers.0.0.weight"]
    # An empty tensor may have any other axis, and a module of that size none.
    check_sizes(*projection.shape, class_tokens, first.numel())
    shape = VitShape(
        in_channels=projection.shape[1],
        dim=dim,
        depth=count_children(named, "backbone.layers."),
        num_heads=heads_of(dim, None if dim % HEAD_WIDTH == 0 else num_heads),
        hidden=first.shape[0],
        patch=patch,
        grid=grid,
        class_tokens=class_tokens,
        patch_bias="backbone.patch_embed.projection.bias" in named,
        qkv_bias="backbone.layers.0.attn.attn.in_proj_bias" in named,
        final_norm="backbone.ln1.weight" in named,
        eps=1e-5 if original else 1e-6,
        positions="bilinear" if original else "bicubic",
    )
    return shape, assumed


def vit_letter(shape: VitShape) -> str:
    """One of VARIANTS' values, or "custom"."""
    letter = VARIANTS.get((shape.dim, shape.depth), "custom")
    return letter if shape.patch == PATCH else "custom"


def _grid(patches: int) -> tuple[tuple[int, int], tuple[str, ...]]:
    """Height and width of the position embedding, and what was assumed of them.

    Square where the number is; otherwise the wide grid that is nearest to a square, within 1:4.
    """
    side = math.isqrt(max(patches, 0))
    while side > 1 and patches % side:
        side -= 1
    if side < 1 or patches > 4 * side * side:
        raise CheckpointError(
            f"a position embedding of {patches} patches",
            expected="a number of patches that fills a rectangle, such as 1024 for 512x512",
            do="check that pos_embed is the whole model's, class token included",
        )
    grid = side, patches // side
    if grid[0] == grid[1]:
        return grid, ()
    told = f"{patches} positions are no square: {grid[0]} rows of {grid[1]} patches assumed"
    return grid, (told,)


def heads_of(dim: int, told: int | None) -> int:
    """As told, or `HEAD_WIDTH` channels each; no tensor's shape depends on it."""
    heads = told or dim // HEAD_WIDTH
    if heads < 1 or dim % heads or (told is None and dim % HEAD_WIDTH):
        raise CheckpointError(
            f"a Transformer of width {dim}" + (f" with {told} heads" if told else ""),
            expected=f"attention heads of {HEAD_WIDTH} channels, as in every ViT of Segmenter",
            do="give a checkpoint that holds its configuration text",
        )
    return heads


def check_sizes(*sizes: int) -> None:
    if min(sizes) < 1:
        raise CheckpointError(
            f"a Segmenter with a tensor of no elements (sizes {', '.join(map(str, sizes))})",
            expected="sizes of 1 and above",
            do="save the whole model's state dict again",
        )
