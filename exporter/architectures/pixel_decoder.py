"""Mask2Former's pixel decoder: deformable attention over three maps, then one step of an FPN.

Source: Cheng et al., "Masked-attention Mask Transformer for Universal Image Segmentation", CVPR
2022, and the structure of mmdetection 3.3 (Apache-2.0), whose parameter names these are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from exporter.architectures.deformable import MultiScaleDeformableAttention, Sizes
from exporter.architectures.layers import (
    hw_of,
    map_from_sequence,
    resize_bilinear,
    sequence_from_map,
)

GROUPS = 32  # of every GroupNorm, in mmdetection, detectron2 and transformers alike
TEMPERATURE = 10000.0


@dataclass(frozen=True)
class PixelDecoderShape:
    """Widths and counts. `in_channels`: of the backbone's maps, finest first.

    The coarsest `levels` of them go through the encoder; the others come in by the FPN. `channels`
    is the width of everything between, `out_channels` that of the features that masks are made of.
    """

    in_channels: tuple[int, ...]
    channels: int = 256
    out_channels: int = 256
    layers: int = 6
    heads: int = 8
    levels: int = 3
    points: int = 4
    hidden: int = 1024


class ConvGn(nn.Module):
    """Convolution that keeps the size, GroupNorm, and ReLU where wanted (mmcv's ConvModule)."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int = 1, *, bias: bool, relu: bool
    ) -> None:
        super().__init__()
        self.relu = relu
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=bias)
        self.gn = nn.GroupNorm(GROUPS, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.gn(self.conv(x))
        return F.relu(x) if self.relu else x


class FeedForward(nn.Module):
    """Two linear layers with a ReLU between, and the input added."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        inner = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU())
        self.layers = nn.Sequential(inner, nn.Linear(hidden, dim))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class EncoderLayer(nn.Module):
    """Deformable attention and feed-forward, each followed by its norm."""

    def __init__(self, shape: PixelDecoderShape) -> None:
        super().__init__()
        self.self_attn: nn.Module = MultiScaleDeformableAttention(
            shape.channels, shape.heads, shape.levels, shape.points
        )
        self.ffn = FeedForward(shape.channels, shape.hidden)
        self.norms = nn.ModuleList(nn.LayerNorm(shape.channels) for _ in range(2))

    def forward(self, x: Tensor, positions: Tensor, sizes: Sizes) -> Tensor:
        x = self.norms[0](x + self.self_attn(x, positions, sizes))
        return self.norms[1](self.ffn(x))


class Encoder(nn.Module):
    """(N, L, C) -> the same shape, through every layer."""

    def __init__(self, shape: PixelDecoderShape) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(shape) for _ in range(shape.layers))

    def forward(self, x: Tensor, positions: Tensor, sizes: Sizes) -> Tensor:
        for layer in self.layers:
            x = layer(x, positions, sizes)
        return x


class PixelDecoder(nn.Module):
    """Backbone maps, finest first -> mask features at the finest size, and the encoder's maps.

    The latter are `levels` maps of `channels`, coarsest first.
    """

    def __init__(self, shape: PixelDecoderShape) -> None:
        super().__init__()
        self.shape = shape
        coarse_first = shape.in_channels[::-1]
        encoded, others = coarse_first[: shape.levels], coarse_first[shape.levels :]
        self.input_convs = nn.ModuleList(
            ConvGn(width, shape.channels, bias=True, relu=False) for width in encoded
        )
        self.encoder = Encoder(shape)
        self.level_encoding = nn.Embedding(shape.levels, shape.channels)
        self.lateral_convs = nn.ModuleList(
            ConvGn(width, shape.channels, bias=False, relu=False) for width in others
        )
        self.output_convs = nn.ModuleList(
            ConvGn(shape.channels, shape.channels, 3, bias=False, relu=True) for _ in others
        )
        self.mask_feature: nn.Module = nn.Conv2d(shape.channels, shape.out_channels, 1)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        coarse_first = list(maps)[::-1]
        levels = self.shape.levels
        encoded = self._encoded(coarse_first[:levels])
        finest = encoded[-1]
        steps = zip(self.lateral_convs, self.output_convs, coarse_first[levels:], strict=True)
        for lateral, output, map_ in steps:
            beside = lateral(map_)
            finest = output(beside + resize_bilinear(finest, hw_of(beside), False))
        return self.mask_feature(finest), encoded

    def _encoded(self, maps: Sequence[Tensor]) -> list[Tensor]:
        sizes = [hw_of(map_) for map_ in maps]
        tokens, positions = [], []
        for i, (conv, map_) in enumerate(zip(self.input_convs, maps, strict=True)):
            tokens.append(sequence_from_map(conv(map_)))
            positions.append(self.level_encoding.weight[i] + sine_positions(sizes[i], tokens[i]))
        memory = self.encoder(torch.cat(tokens, dim=1), torch.cat(positions), sizes)
        parts = torch.split(memory, [h * w for h, w in sizes], dim=1)
        return [map_from_sequence(part, hw) for part, hw in zip(parts, sizes, strict=True)]


def sine_positions(hw: tuple[int, int], like: Tensor) -> Tensor:
    """(H*W, C): sines and cosines of the place, of as many channels as `like` (…, C) has.

    A constant when traced. The first half of the channels tells y, the second x.
    """
    return torch.from_numpy(_sine_table(hw, int(like.shape[-1]))).to(like)


@lru_cache(maxsize=32)
def _sine_table(hw: tuple[int, int], channels: int) -> NDArray[np.float64]:
    half = channels // 2
    wave = TEMPERATURE ** (2 * (np.arange(half) // 2) / half)
    sides = []
    for length in hw:
        angle = np.arange(1, length + 1) / (length + 1e-6) * 2 * math.pi
        phase = angle[:, None] / wave
        table = np.empty_like(phase)
        table[:, 0::2], table[:, 1::2] = np.sin(phase[:, 0::2]), np.cos(phase[:, 1::2])
        sides.append(table)
    y, x = np.repeat(sides[0], hw[1], axis=0), np.tile(sides[1], (hw[0], 1))
    return np.concatenate([y, x], axis=1)
