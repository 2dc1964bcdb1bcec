"""ASPP's rewrite: the image's mean joins the pyramid after the convolution, not before it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from exporter.architectures.aspp import PyramidFusion
from exporter.architectures.layers import hw_of
from exporter.rewrites.pieces import conv_like, folded


def rewrite(model: nn.Module, _input_hw: tuple[int, int] | None) -> None:
    """In every ASPP, of DeepLabV3, DeepLabV3+ and K-Net."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, PyramidFusion):
                setattr(parent, name, PooledBias(child))


class PooledBias(nn.Module):
    """The pyramid's 3x3 convolution without the image's mean among its inputs.

    A convolution over concatenated maps is the sum of the convolutions over each. That over a map
    of one value v is W v inside, W being the sum of the kernel's nine matrices; at the border,
    where the padding is zero, the matrices are left out that lie outside. So each of the nine is
    multiplied by v once for the image, and a constant 0/1 matrix, (9, h*w), adds up those that lie
    inside at each position: of this fifth of the convolution's work next to nothing is left.
    """

    def __init__(self, source: PyramidFusion) -> None:
        super().__init__()
        conv = folded(source)
        width = conv.out_channels
        of_mean, of_maps = conv.weight[:, :width], conv.weight[:, width:]
        self.conv = conv_like(conv, of_maps, conv.bias)
        self.taps = nn.Conv2d(width, width * 9, 1, bias=False, device="meta")
        taps = of_mean.permute(0, 2, 3, 1).reshape(width * 9, width, 1, 1)
        self.taps.weight = nn.Parameter(taps.detach().clone())

    def forward(self, pooled: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """See `PyramidFusion.forward`."""
        hw = hw_of(maps[0])
        taps = self.taps(pooled).reshape(-1, self.conv.out_channels, 9)
        bias = taps @ torch.from_numpy(taps_inside(hw)).to(taps)
        bias = bias.reshape(-1, self.conv.out_channels, *hw)
        return F.relu(self.conv(torch.cat(list(maps), dim=1)) + bias)


@lru_cache(maxsize=8)
def taps_inside(hw: tuple[int, int]) -> NDArray[np.float32]:
    """(9, h*w): whether tap (i, j) of a 3x3 kernel lies inside the map at each position."""
    inside = np.zeros((3, 3, *hw), np.float32)
    for i in range(3):
        for j in range(3):
            rows = slice(max(0, 1 - i), hw[0] + min(0, 1 - i))
            columns = slice(max(0, 1 - j), hw[1] + min(0, 1 - j))
            inside[i, j, rows, columns] = 1.0
    return inside.reshape(9, -1)
