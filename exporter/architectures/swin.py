"""Swin Transformer: four stages of attention within windows, every second block's windows shifted.

Source: Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", ICCV
2021, in mmsegmentation 1.2's form (Apache-2.0), which differs from other libraries in three ways:
a map is padded to whole windows before it is rolled, the windows stay shifted where the map is no
larger than one of them, and merged patches have the channels outermost (as torch.nn.Unfold and
torch.pixel_unshuffle order them).

Parameter names are mmsegmentation's, so that its checkpoints load with ``strict=True``. What makes
the exported graph faster is in `exporter.rewrites.swin`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engines.errors import CheckpointError
from exporter.architectures.layers import (
    FeedForward,
    hw_of,
    map_from_sequence,
    sequence_from_map,
    split_heads,
)
from exporter.architectures.loading import count_children
from exporter.architectures.windows import padded_hw, relative_positions, shift_mask

# Larger windows than anybody trains: (window ** 2) ** 2 numbers a head are made of them.
MAX_WINDOW = 32
MAX_STAGES = 8  # the width doubles with each
# (dim, depths) of the paper's section 3.3; a head has 32 channels in all of them.
VARIANTS: dict[tuple[int, tuple[int, ...]], str] = {
    (96, (2, 2, 6, 2)): "swin-t",
    (96, (2, 2, 18, 2)): "swin-s",
    (128, (2, 2, 18, 2)): "swin-b",
    (192, (2, 2, 18, 2)): "swin-l",
}


@dataclass(frozen=True)
class SwinShape:
    """Everything that decides the shapes of the parameters. `patch` and `window` are in pixels of
    the image and of each stage's map; a stage has `dim * 2**stage` channels."""

    in_channels: int
    dim: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    window: int
    mlp_ratio: float = 4.0
    patch: int = 4
    qkv_bias: bool = True
    patch_norm: bool = True

    @property
    def channels(self) -> tuple[int, ...]:
        """Of each stage's map."""
        return tuple(self.dim * 2**stage for stage in range(len(self.depths)))

    @property
    def name(self) -> str:
        """ "swin-t", "swin-s", "swin-b", "swin-l", or "custom"; windows of any size."""
        usual = all(c == 32 * n for c, n in zip(self.channels, self.num_heads, strict=True))
        return VARIANTS.get((self.dim, self.depths), "custom") if usual else "custom"


class PatchEmbed(nn.Module):
    """Patches that do not overlap; the map is padded at the right and bottom to whole ones."""

    def __init__(self, shape: SwinShape) -> None:
        super().__init__()
        self.projection = nn.Conv2d(shape.in_channels, shape.dim, shape.patch, shape.patch)
        self.norm = nn.LayerNorm(shape.dim) if shape.patch_norm else None

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        x = self.projection(padded_to_multiples(x, self.projection.kernel_size[0]))
        tokens = sequence_from_map(x)
        return tokens if self.norm is None else self.norm(tokens), hw_of(x)


class PatchMerging(nn.Module):
    """2x2 neighbours side by side in the channels, LayerNorm, and half of the channels kept."""

    def __init__(self, dim: int, *, norm: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim) if norm else None
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor, hw: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
        merged = F.pixel_unshuffle(padded_to_multiples(map_from_sequence(x, hw), 2), 2)
        tokens = sequence_from_map(merged)
        if self.norm is not None:
            tokens = self.norm(tokens)
        return self.reduction(tokens), hw_of(merged)


class WindowMsa(nn.Module):
    """Self-attention within windows, with a learned bias for each relative position."""

    def __init__(self, dim: int, num_heads: int, window: int, *, bias: bool) -> None:
        super().__init__()
        self.num_heads, self.window = num_heads, window
        self.relative_position_bias_table = nn.Parameter(
            torch.zeros((2 * window - 1) ** 2, num_heads)
        )
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.proj = nn.Linear(dim, dim)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def position_bias(self) -> Tensor:
        """(heads, L, L) for the L = window * window positions of a window."""
        length = self.window**2
        index = torch.from_numpy(relative_positions(self.window).reshape(-1))
        bias = self.relative_position_bias_table[index].reshape(length, length, self.num_heads)
        return bias.permute(2, 0, 1)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """`x`: (N * windows, L, C). `mask`: (windows, L, L), added to the product."""
        length, dim = int(x.shape[1]), int(x.shape[2])
        q, k, v = (split_heads(part, self.num_heads) for part in self.qkv(x).chunk(3, dim=2))
        scores = (q * (dim // self.num_heads) ** -0.5) @ k.transpose(2, 3) + self.position_bias()
        if mask is not None:
            per_image = scores.reshape(-1, int(mask.shape[0]), self.num_heads, length, length)
            scores = (per_image + mask[:, None]).reshape(-1, self.num_heads, length, length)
        out = (scores.softmax(dim=3) @ v).transpose(1, 2)
        return self.proj(out.reshape(-1, length, dim))


class ShiftWindowMsa(nn.Module):
    """`WindowMsa` of a map: padded, rolled by `shift`, cut into windows, and all of that undone."""

    def __init__(
        self, dim: int, num_heads: int, window: int, *, shift: int, bias: bool = True
    ) -> None:
        super().__init__()
        self.window, self.shift = window, shift
        self.w_msa = WindowMsa(dim, num_heads, window, bias=bias)

    def forward(self, x: Tensor, hw: tuple[int, int]) -> Tensor:
        """`x`: (N, H*W, C)."""
        dim = int(x.shape[2])
        padded = padded_hw(hw, self.window)
        x = x.reshape(-1, *hw, dim)
        x = F.pad(x, (0, 0, 0, padded[1] - hw[1], 0, padded[0] - hw[0]))
        mask: Tensor | None = None
        if self.shift:
            x = _rolled(x, self.shift)
            mask = torch.from_numpy(shift_mask(padded, self.window, self.shift)).to(x)
        x = self._map(self.w_msa(self._windows(x), mask), padded)
        if self.shift:
            x = _rolled(x, -self.shift)
        return x[:, : hw[0], : hw[1]].reshape(-1, hw[0] * hw[1], dim)

    def _windows(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> (N * windows, L, C)."""
        side, (h, w, dim) = self.window, (int(size) for size in x.shape[1:])
        x = x.reshape(-1, h // side, side, w // side, side, dim).transpose(2, 3)
        return x.reshape(-1, side * side, dim)

    def _map(self, x: Tensor, hw: tuple[int, int]) -> Tensor:
        """(N * windows, L, C) -> (N, H, W, C)."""
        side, dim = self.window, int(x.shape[2])
        x = x.reshape(-1, hw[0] // side, hw[1] // side, side, side, dim).transpose(2, 3)
        return x.reshape(-1, *hw, dim)


class SwinBlock(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, shape: SwinShape, stage: int, *, shifted: bool) -> None:
        super().__init__()
        dim, shift = shape.channels[stage], shape.window // 2 if shifted else 0
        self.norm1 = nn.LayerNorm(dim)
        self.attn: nn.Module = ShiftWindowMsa(
            dim, shape.num_heads[stage], shape.window, shift=shift, bias=shape.qkv_bias
        )
        self.norm2 = nn.LayerNorm(dim)
        self.ffn = FeedForward(dim, round(shape.mlp_ratio * dim))

    def forward(self, x: Tensor, hw: tuple[int, int]) -> Tensor:
        x = x + self.attn(self.norm1(x), hw)
        return x + self.ffn(self.norm2(x))


class SwinStage(nn.Module):
    """The blocks of one resolution, and the step to the next one where there is one."""

    def __init__(self, shape: SwinShape, stage: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            SwinBlock(shape, stage, shifted=i % 2 == 1) for i in range(shape.depths[stage])
        )
        self.downsample: nn.Module | None = None
        if stage + 1 < len(shape.depths):
            self.downsample = PatchMerging(shape.channels[stage], norm=shape.patch_norm)

    def forward(
        self, x: Tensor, hw: tuple[int, int]
    ) -> tuple[Tensor, tuple[Tensor, tuple[int, int]]]:
        """Tokens of this resolution, and those of the next one with their map's size."""
        for block in self.blocks:
            x = block(x, hw)
        return x, (x, hw) if self.downsample is None else self.downsample(x, hw)


class Swin(nn.Module):
    """(N, in_channels, H, W) -> a map per stage, of strides 4, 8, 16, 32, sizes rounded up."""

    def __init__(self, shape: SwinShape) -> None:
        super().__init__()
        self.shape = shape
        self.patch_embed = PatchEmbed(shape)
        self.stages = nn.ModuleList(SwinStage(shape, i) for i in range(len(shape.depths)))
        for i, dim in enumerate(shape.channels):
            self.add_module(f"norm{i}", nn.LayerNorm(dim))

    def forward(self, x: Tensor) -> list[Tensor]:
        tokens, hw = self.patch_embed(x)
        maps = []
        for i, stage in enumerate(self.stages):
            done, following = stage(tokens, hw)
            maps.append(map_from_sequence(self.get_submodule(f"norm{i}")(done), hw))
            tokens, hw = following
        return maps


def padded_to_multiples(x: Tensor, multiple: int) -> Tensor:
    """(N, C, H, W) with zeros at the right and bottom until both sizes are multiples."""
    h, w = hw_of(x)
    height, width = padded_hw((h, w), multiple)
    return x if (h, w) == (height, width) else F.pad(x, (0, width - w, 0, height - h))


def _rolled(x: Tensor, shift: int) -> Tensor:
    """(N, H, W, C), the first `shift` rows and columns moved to the end; the last if negative."""
    x = torch.cat([x[:, shift:], x[:, :shift]], dim=1)
    return torch.cat([x[:, :, shift:], x[:, :, :shift]], dim=2)


def swin_shape(named: Mapping[str, Tensor], prefix: str) -> SwinShape:
    """Read from mmsegmentation's names after `prefix` ("backbone.").

    A tensor that is missed raises KeyError, see `loading.tensors_of`; CheckpointError for widths,
    heads and windows that no Swin has.
    """
    patches = named[f"{prefix}patch_embed.projection.weight"]
    stages = f"{prefix}stages."
    first = f"{stages}0.blocks.0"
    tables = [
        named[f"{stages}{i}.blocks.0.attn.w_msa.relative_position_bias_table"]
        for i in range(count_children(named, stages))
    ]
    dim = patches.shape[0]
    shape = SwinShape(
        in_channels=patches.shape[1],
        dim=dim,
        depths=tuple(count_children(named, f"{stages}{i}.blocks.") for i in range(len(tables))),
        num_heads=tuple(table.shape[1] for table in tables),
        window=(math.isqrt(tables[0].shape[0]) + 1) // 2,
        mlp_ratio=named[f"{first}.ffn.layers.0.0.weight"].shape[0] / dim,
        patch=patches.shape[-1],
        qkv_bias=f"{first}.attn.w_msa.qkv.bias" in named,
        patch_norm=f"{prefix}patch_embed.norm.weight" in named,
    )
    _check(shape)
    return shape


def without_index_tables(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the relative positions that files store beside each bias table: they are recomputed.

    They follow from the window's size alone.
    """
    return {
        key: tensor
        for key, tensor in named.items()
        if not key.endswith((".relative_position_index", ".attn_mask"))
    }


def _check(shape: SwinShape) -> None:
    heads_fit = all(
        heads > 0 and dim % heads == 0
        for dim, heads in zip(shape.channels, shape.num_heads, strict=True)
    )
    sizes_fit = 0 < shape.window <= MAX_WINDOW and shape.patch > 0 and shape.dim > 0
    if not (heads_fit and sizes_fit and len(shape.depths) <= MAX_STAGES):
        raise CheckpointError(
            f"a Swin backbone with {shape.dim} channels, {shape.num_heads[:MAX_STAGES]} heads in "
            f"{len(shape.depths)} stages, windows of {shape.window} and patches of {shape.patch}",
            expected=f"up to {MAX_STAGES} stages, heads that divide their channels, windows of 1 "
            f"to {MAX_WINDOW}",
            do="check that the checkpoint is an unmodified Swin of mmsegmentation",
        )
