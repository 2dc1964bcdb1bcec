"""What the rewrites of several architectures are made of."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from exporter.architectures.layers import ConvBn, QkvProjection, joined_heads, split_heads


def folded(block: ConvBn) -> nn.Conv2d:
    """The convolution of `block` with its BatchNorm (eval mode) folded in; it has a bias."""
    return folded_conv(block.conv, block.bn)


def folded_conv(conv: nn.Conv2d, bn: nn.BatchNorm2d) -> nn.Conv2d:
    """bn(conv(x)) as one convolution, with new weights and a bias; of any kernel and groups.

    BatchNorm in eval mode is x * factor + shift per channel, which a convolution's rows take.
    """
    assert bn.running_mean is not None
    assert bn.running_var is not None
    factor = bn.weight * torch.rsqrt(bn.running_var + bn.eps)
    bias = bn.bias - bn.running_mean * factor
    if conv.bias is not None:
        bias = bias + conv.bias * factor
    return conv_like(conv, conv.weight * factor[:, None, None, None], bias)


def conv_like(conv: nn.Conv2d, weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    """A convolution with the kernel, stride, padding, dilation and groups of `conv`.

    `weight` is (out, in / groups, kh, kw), with any number of channels; copies are taken.
    """
    made = nn.Conv2d(
        weight.shape[1] * conv.groups,
        weight.shape[0],
        (int(weight.shape[2]), int(weight.shape[3])),
        stride=conv.stride,  # type: ignore[arg-type]
        padding=conv.padding,  # type: ignore[arg-type]
        dilation=conv.dilation,  # type: ignore[arg-type]
        groups=conv.groups,
        bias=bias is not None,
        device="meta",
    )
    made.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        made.bias = nn.Parameter(bias.detach().clone())
    return made


def linear_of(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear layer that owns copies of these tensors, (out, in) and (out)."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach().clone())
    return linear


def fold_conv_bn(model: nn.Module, _input_hw: tuple[int, int] | None = None) -> None:
    """In every ConvBn `conv` takes over the BatchNorm, and `bn` becomes the identity."""
    for block in model.modules():
        if isinstance(block, ConvBn) and isinstance(block.bn, nn.BatchNorm2d):
            block.conv = folded(block)
            block.bn = nn.Identity()  # type: ignore[assignment]


class ScaledQueries(nn.Module):
    """Self-attention over (N, L, C) with 1/sqrt(d) inside the query's weights, and q, k, v apart.

    softmax((x Wq + bq) k^T / sqrt(d)) = softmax((x Wq/sqrt(d) + bq/sqrt(d)) k^T), which saves a
    pass over the (tokens x tokens) matrix and lets TensorRT see the pattern it fuses.
    """

    def __init__(self, num_heads: int, source: QkvProjection) -> None:
        super().__init__()
        self.num_heads = num_heads
        (wq, bq), (wk, bk), (wv, bv) = source.split()
        scale = (wq.shape[0] // num_heads) ** -0.5
        self.q = linear_of(wq * scale, None if bq is None else bq * scale)
        self.k, self.v = linear_of(wk, bk), linear_of(wv, bv)
        self.out_proj = source.out_proj

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (split_heads(layer(x), self.num_heads) for layer in (self.q, self.k, self.v))
        return self.out_proj(joined_heads((q @ k.transpose(2, 3)).softmax(dim=3) @ v))
