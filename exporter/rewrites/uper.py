"""UPerNet's rewrites: maps are convolved before they are enlarged, not after.

Both 3x3 convolutions of the head read enlarged maps. Enlarging mixes positions and a convolution's
nine taps mix channels, so for each tap the two commute: the nine products with the tap's weights
are taken at the map's own size, and each is enlarged, shifted to the tap's place, and added. In one
dimension both of that is one matrix, `enlarging_taps`, so that all of it is two small products.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from exporter.architectures.layers import ConvBn, hw_of, pool_to
from exporter.architectures.uper import PoolingBranch, UperHead, add_coarser
from exporter.rewrites.pieces import conv_like, folded

Matrix = NDArray[np.float64]


def rewrite(model: nn.Module, _input_hw: tuple[int, int] | None) -> None:
    """Every UPerNet head, its classifier left as it is."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, UperHead):
                setattr(parent, name, EarlyTapsHead(child))


class EarlyTapsHead(nn.Module):
    """The head with `PooledFusion` and `PyramidFusion` in place of its two wide convolutions.

    At 512x512 with 512 channels that is 57 instead of 155 billion multiplications for the pyramid
    and 1.1 instead of 3.3 for the pooled maps (768 channels).
    """

    def __init__(self, source: UperHead) -> None:
        super().__init__()
        self.align_corners = source.align_corners
        self.lateral_convs, self.fpn_convs = source.lateral_convs, source.fpn_convs
        self.pooled = PooledFusion(source)
        self.fusion = PyramidFusion(source.fpn_bottleneck, self.align_corners)
        self.conv_seg = source.conv_seg

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        logits: Tensor = self.conv_seg(self.features(maps))
        return logits

    def features(self, maps: Sequence[Tensor]) -> Tensor:
        """As `UperHead.features`."""
        *fine, last = maps
        levels = [conv(x) for conv, x in zip(self.lateral_convs, fine, strict=True)]
        levels.append(self.pooled(last))
        add_coarser(levels, self.align_corners)
        convs = [conv(x) for conv, x in zip(self.fpn_convs, levels[:-1], strict=True)]
        out: Tensor = self.fusion([*convs, levels[-1]])
        return out


class PyramidFusion(nn.Module):
    """conv3x3(concat(level 0, enlarged level 1, …)), BatchNorm and ReLU.

    `finest` is the part of the convolution that reads level 0, which keeps its size. `taps[i]` are
    the nine products of level i + 1, in the order (column of the tap, output, row of the tap): the
    rows of taps and map then lie side by side without being moved, and are enlarged and added in
    one product with a constant matrix. The columns are, after one exchange of axes. (Three products
    in its place, one for each column, are 5 % slower and ten nodes more.)
    """

    def __init__(self, block: ConvBn, align_corners: bool) -> None:
        super().__init__()
        conv = folded(block)
        self.align_corners = align_corners
        channels = conv.out_channels
        finest, *coarse = torch.split(conv.weight, channels, dim=1)
        self.finest = conv_like(conv, finest, conv.bias)
        self.taps = nn.ModuleList(_products(part.permute(3, 0, 2, 1)) for part in coarse)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        total = self.finest(levels[0])
        for taps, level in zip(self.taps, levels[1:], strict=True):
            total = total + self._enlarged(taps(level), hw_of(total))
        return F.relu(total)

    def _enlarged(self, x: Tensor, hw: tuple[int, int]) -> Tensor:
        """(N, 9 C, h, w) -> (N, C, H, W): the taps' sum."""
        channels, (h, w) = int(x.shape[1]) // 9, hw_of(x)
        rows = torch.from_numpy(enlarging_taps(h, hw[0], self.align_corners)).to(x)
        columns = torch.from_numpy(enlarging_taps(w, hw[1], self.align_corners)).to(x)
        tall = rows @ x.reshape(-1, 3 * channels, 3 * h, w)
        side_by_side = tall.reshape(-1, 3, channels, hw[0], w).permute(0, 2, 3, 1, 4)
        return side_by_side.reshape(-1, channels, hw[0], 3 * w) @ columns.T


class PooledFusion(nn.Module):
    """conv3x3(concat(map, its averages at several scales, enlarged)), BatchNorm and ReLU.

    All the averages together have few positions (50 with scales 1, 2, 3 and 6), so that one
    constant matrix takes the nine products of all of them to the map's size.
    """

    def __init__(self, source: UperHead) -> None:
        super().__init__()
        conv = folded(source.bottleneck)
        self.align_corners = source.align_corners
        self.branches = nn.ModuleList()
        self.scales = []
        width = conv.in_channels - len(source.psp_modules) * conv.out_channels
        sizes = [width] + [conv.out_channels] * len(source.psp_modules)
        own, *pooled = torch.split(conv.weight, sizes, dim=1)
        for branch, part in zip(source.psp_modules, pooled, strict=True):
            assert isinstance(branch, PoolingBranch)
            self.scales.append(branch.scale)
            products = _products(part.permute(0, 2, 3, 1))
            self.branches.append(nn.Sequential(branch[1], products))
        self.own = conv_like(conv, own, conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        out = self.own(x)
        channels, (h, w) = int(out.shape[1]), hw_of(out)
        parts, matrices = [], []
        for branch, scale in zip(self.branches, self.scales, strict=True):
            parts.append(branch(pool_to(x, scale)).reshape(-1, channels, 9 * scale * scale))
            matrices.append(_enlarging_taps_2d(scale, (h, w), self.align_corners))
        matrix = torch.from_numpy(np.concatenate(matrices)).to(x)
        return F.relu(out + (torch.cat(parts, dim=2) @ matrix).reshape(-1, channels, h, w))


def _products(weight: Tensor) -> nn.Conv2d:
    """A 1x1 convolution from the last axis of `weight` to all others, in their order."""
    conv = nn.Conv2d(weight.shape[-1], weight[..., 0].numel(), 1, bias=False, device="meta")
    conv.weight = nn.Parameter(weight.detach().reshape(-1, weight.shape[-1], 1, 1).clone())
    return conv


@lru_cache(maxsize=64)
def enlarging_taps(size: int, output: int, align_corners: bool) -> Matrix:
    """(output, 3 * size): one dimension's taps of `size` numbers, enlarged and added.

    Column t * size + i is what number i under tap t gives: position y of the convolution's answer
    reads y + t - 1 of the enlarged line, and zero beside it.
    """
    enlarged = enlarging(size, output, align_corners)
    taps = np.zeros((3, output, size))
    taps[0, 1:] = enlarged[:-1]
    taps[1] = enlarged
    taps[2, :-1] = enlarged[1:]
    return np.concatenate(taps, axis=1)


@lru_cache(maxsize=64)
def enlarging(size: int, output: int, align_corners: bool) -> Matrix:
    """(output, size): bilinear resizing of a line as torch.nn.functional.interpolate does it."""
    position = np.arange(output, dtype=np.float64)
    if align_corners:
        source = position * ((size - 1) / (output - 1) if output > 1 else 0.0)
    else:
        source = np.maximum((position + 0.5) * (size / output) - 0.5, 0.0)
    below = np.minimum(source.astype(np.int64), size - 1)
    above = np.minimum(below + 1, size - 1)
    matrix = np.zeros((output, size))
    matrix[np.arange(output), below] += 1.0 - (source - below)
    matrix[np.arange(output), above] += source - below
    return matrix


def _enlarging_taps_2d(scale: int, hw: tuple[int, int], align_corners: bool) -> Matrix:
    """(9 * scale * scale, H * W): from (row tap, column tap, row, column) to positions."""
    rows, columns = (
        enlarging_taps(scale, size, align_corners).reshape(size, 3, scale) for size in hw
    )
    both = np.einsum("yui,xvj->uvijyx", rows, columns)
    return both.reshape(9 * scale * scale, hw[0] * hw[1])
