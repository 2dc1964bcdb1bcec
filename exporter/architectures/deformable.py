"""Attention that samples a few points of several maps: MSDeformAttn, with plain operators.

Source: Zhu et al., "Deformable DETR: Deformable Transformers for End-to-End Object Detection",
ICLR 2021, and the structure of mmcv's MultiScaleDeformableAttention (Apache-2.0), whose parameter
names these are. Its CUDA operator has two forms here that give the same answer: GridSample, and
rows picked by Gather for the TensorRT versions that misread or miscompile GridSample (NVIDIA's
TensorRT issues 4646 and 4813, pytorch/TensorRT issue 4074).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

Sampling = Literal["grid_sample", "gather"]
Sizes = Sequence[tuple[int, int]]  # (H, W) of each level, in the order of their tokens

# A square's four corners, from its upper left one.
_CORNERS = np.array([[0.0], [1.0]])


class MultiScaleDeformableAttention(nn.Module):
    """Every token looks at `points` places of each of `levels` maps, once per head."""

    def __init__(self, dim: int, heads: int, levels: int, points: int) -> None:
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.sampling: Sampling = "grid_sample"
        self.sampling_offsets = nn.Linear(dim, heads * levels * points * 2)
        self.attention_weights = nn.Linear(dim, heads * levels * points)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, positions: Tensor, sizes: Sizes) -> Tensor:
        """x (N, L, C), the tokens of all levels; positions (L, C), added where places are chosen.

        Each token's own place is where its offsets begin, on every level.
        """
        tokens = int(x.shape[1])
        per_token = (-1, tokens, self.heads, self.levels, self.points)
        value, query = self.value_proj(x), x + positions
        offsets = self.sampling_offsets(query).reshape(*per_token, 2)
        weights = self.attention_weights(query).reshape(*per_token[:3], self.levels * self.points)
        weights = weights.softmax(dim=3).reshape(per_token)
        sides = torch.tensor([[[float(w), float(h)]] for h, w in sizes]).to(x)  # (levels, 1, 2)
        own = torch.from_numpy(token_places(tuple(sizes))).to(x)[:, None, None, None]
        grid = 2 * (own + offsets / sides) - 1
        sampled = sampled_by_gather if self.sampling == "gather" else sampled_by_grid
        return self.output_proj(sampled(value, grid, weights, sizes))


def has_deformable_attention(model: nn.Module) -> bool:
    return any(isinstance(m, MultiScaleDeformableAttention) for m in model.modules())


def with_gather_sampling(model: nn.Module) -> nn.Module:
    """`model` itself, from now on without GridSample: the same answer from Gather and MatMul.

    It may be rewritten already or be rewritten afterwards. A model without deformable attention
    stays as it is.
    """
    for module in model.modules():
        if isinstance(module, MultiScaleDeformableAttention):
            module.sampling = "gather"
    return model


@lru_cache(maxsize=32)
def token_places(sizes: tuple[tuple[int, int], ...]) -> NDArray[np.float64]:
    """(L, 2): x and y of the centre of every token's cell, as a share of its own map's sides."""
    places = []
    for h, w in sizes:
        y, x = np.meshgrid((np.arange(h) + 0.5) / h, (np.arange(w) + 0.5) / w, indexing="ij")
        places.append(np.stack([x, y], axis=2).reshape(-1, 2))
    return np.concatenate(places)


def sampled_by_grid(value: Tensor, grid: Tensor, weights: Tensor, sizes: Sizes) -> Tensor:
    """Weighted sums of what lies at the places of `grid`, bilinearly between four neighbours.

    value (N, L, C): C / heads channels for each head, tokens of all levels, whose sizes are `sizes`
    grid (N, Q, heads, levels, points, 2): x and y; -1 is a map's left or upper edge, 1 the other;
    beyond an edge there are zeros. weights: `grid`'s shape without its last axis. Result (N, Q, C).
    """
    heads, queries = int(grid.shape[2]), int(grid.shape[1])
    channels = int(value.shape[2])
    maps = maps_of_heads(value, sizes, heads)
    samples = []
    for level, map_ in enumerate(maps):
        places = grid[:, :, :, level].transpose(1, 2)
        places = places.reshape(-1, queries, int(grid.shape[4]), 2)
        samples.append(F.grid_sample(map_, places, padding_mode="zeros", align_corners=False))
    shares = weights.transpose(1, 2).reshape(-1, 1, queries, len(maps) * int(grid.shape[4]))
    summed = (torch.cat(samples, dim=3) * shares).sum(dim=3)
    return summed.reshape(-1, channels, queries).transpose(1, 2)


def maps_of_heads(value: Tensor, sizes: Sizes, heads: int) -> list[Tensor]:
    """(N, L, C) -> one (N * heads, C / heads, H, W) for each level."""
    dim = int(value.shape[2]) // heads
    parts = torch.split(value.transpose(1, 2), [h * w for h, w in sizes], dim=2)
    return [part.reshape(-1, dim, h, w) for part, (h, w) in zip(parts, sizes, strict=True)]


def sampled_by_gather(value: Tensor, grid: Tensor, weights: Tensor, sizes: Sizes) -> Tensor:
    """The same as `sampled_by_grid`, without GridSample.

    A head's channels of one token are one row of a table. Each place picks four rows, which a
    product with bilinear weight times attention weight sums up. Indices are computed as integers:
    FP16 holds whole numbers up to 2048 only.
    """
    heads, queries, points = int(grid.shape[2]), int(grid.shape[1]), int(grid.shape[4])
    tokens, channels = int(value.shape[1]), int(value.shape[2])
    rows = value.reshape(-1, channels // heads)
    # 0, 1, … for the images of a batch whose size may be free, so not from a range of that size.
    image = value[:, 0, 0].clamp(1.0, 1.0).cumsum(0).long().reshape(-1, 1, 1, 1, 1, 1) - 1
    head = torch.from_numpy(np.arange(heads).reshape(-1, 1, 1, 1))
    total, start = None, 0
    for level, (h, w) in enumerate(sizes):
        index, near = _corners(grid[:, :, :, level], (h, w))
        x, y = index[..., None, :, 0], index[..., :, None, 1]
        row = ((image * tokens + start) + y * w + x) * heads + head
        shares = near[..., :, None, 1] * near[..., None, :, 0]
        shares = shares * weights[:, :, :, level, :, None, None]
        picked = rows.index_select(0, row.reshape(-1)).reshape(-1, points * 4, channels // heads)
        part = shares.reshape(-1, 1, points * 4) @ picked
        total = part if total is None else total + part
        start += h * w
    assert total is not None
    return total.reshape(-1, queries, channels)


def _corners(grid: Tensor, hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Along x and y, the two pixels beside each place, and how much each counts.

    grid (…, 2) -> index and near (…, 2, 2): nearer and farther pixel, then x and y. Where a pixel
    lies outside, the index is that of the nearest inside, and it counts nothing.
    """
    sides = np.array([hw[1], hw[0]], dtype=np.float64)
    half, last = _like(grid, sides / 2), _like(grid, sides - 1)
    pixels = grid * half + last / 2
    # One pixel outside nothing counts any more; and no index overflows.
    pixels = torch.minimum(pixels.clamp(min=-1.0), last + 1)[..., None, :]
    at = pixels.floor() + _like(grid, _CORNERS)
    inside = torch.minimum(at.clamp(min=0.0), last)
    near = (1 - (pixels - at).abs()) * (inside == at).to(grid.dtype)
    return inside.long(), near


def _like(x: Tensor, values: NDArray[Any]) -> Tensor:
    return torch.from_numpy(values).to(x)
