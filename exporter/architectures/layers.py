"""Small pieces that several architectures are made of, with mmsegmentation's parameter names.

Sizes are Python ints, so that tracing makes constants of them; the batch size alone may be free.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def sequence_from_map(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, H*W, C)."""
    n_channels, h, w = int(x.shape[1]), int(x.shape[2]), int(x.shape[3])
    return x.reshape(-1, n_channels, h * w).transpose(1, 2)


def map_from_sequence(x: Tensor, hw: tuple[int, int]) -> Tensor:
    """(N, H*W, C) -> (N, C, H, W)."""
    return x.transpose(1, 2).reshape(-1, int(x.shape[2]), hw[0], hw[1])


def hw_of(x: Tensor) -> tuple[int, int]:
    """Height and width of (N, C, H, W)."""
    return int(x.shape[2]), int(x.shape[3])


def resize_bilinear(x: Tensor, hw: tuple[int, int], align_corners: bool) -> Tensor:
    """Bilinear resize of (N, C, H, W) to `hw`.

    Whole-number factors are given as factors, so that an ONNX graph with a free batch size needs
    no Shape operator.
    """
    h, w = hw_of(x)
    if (h, w) == hw:
        return x
    if hw[0] % h == 0 and hw[1] % w == 0 and not align_corners:
        scale = (float(hw[0] // h), float(hw[1] // w))
        return F.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False)
    return F.interpolate(x, size=hw, mode="bilinear", align_corners=align_corners)


class ConvBn(nn.Module):
    """Convolution without bias that keeps the size at stride 1, BatchNorm, ReLU.

    mmcv's ConvModule. With `groups` = `in_channels` = `out_channels` it is depthwise.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 1,
        *,
        dilation: int = 1,
        groups: int = 1,
    ) -> None:
        super().__init__()
        padding = dilation * (kernel // 2)
        self.conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel,
            padding=padding,
            dilation=dilation,
            groups=groups,
            bias=False,
        )
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class QkvProjection(nn.Module):
    """The parameters of torch.nn.MultiheadAttention under their own names."""

    def __init__(self, dim: int, bias: bool = True) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim)) if bias else None
        self.out_proj = nn.Linear(dim, dim, bias=bias)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def split(self) -> tuple[tuple[Tensor, Tensor | None], ...]:
        """Weight and bias of q, k and v."""
        weights = self.in_proj_weight.chunk(3)
        if self.in_proj_bias is None:
            return tuple((w, None) for w in weights)
        return tuple(zip(weights, self.in_proj_bias.chunk(3), strict=True))


class FeedForward(nn.Module):
    """Linear, GELU, linear; mmcv's FFN without what it adds."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        first = nn.Sequential(nn.Linear(dim, hidden), nn.GELU())
        self.layers = nn.Sequential(first, nn.Linear(hidden, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(N, L, C) -> (N, heads, L, C / heads)."""
    length, dim = int(x.shape[1]), int(x.shape[2])
    return x.reshape(-1, length, num_heads, dim // num_heads).transpose(1, 2)


def joined_heads(x: Tensor) -> Tensor:
    """(N, heads, L, C / heads) -> (N, L, C)."""
    heads, length, dim = int(x.shape[1]), int(x.shape[2]), int(x.shape[3])
    return x.transpose(1, 2).reshape(-1, length, heads * dim)


def pool_to(x: Tensor, output: int) -> Tensor:
    """torch's adaptive average pooling of (N, C, H, W) to (N, C, output, output).

    As two products with constant matrices, since neither ONNX nor TensorRT has bins that overlap
    (16 -> 3); whole-number bins and a single one need none of that.
    """
    h, w = hw_of(x)
    if output == 1:
        return x.mean(dim=(2, 3), keepdim=True)
    if h % output == 0 and w % output == 0:
        return F.avg_pool2d(x, (h // output, w // output))
    rows, columns = _pooling_matrix(h, output).to(x), _pooling_matrix(w, output).to(x)
    return rows @ x @ columns.T


def _pooling_matrix(size: int, output: int) -> Tensor:
    """(output, size) float64: row i averages floor(i*size/output) to ceil((i+1)*size/output)."""
    matrix = np.zeros((output, size))  # not torch's: a trace would record how it is filled
    for i in range(output):
        start, end = i * size // output, -(-(i + 1) * size // output)
        matrix[i, start:end] = 1.0 / (end - start)
    return torch.from_numpy(matrix)
