"""Exact rewrites: the same function of the input, cheaper to run.

Each class below replaces one module of `exporter.architectures` and states why the answer is the
same. "The same" is in exact arithmetic: tests compare both in float64.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exporter.architectures.segformer import (
    ConvBn,
    ConvHead,
    EfficientAttention,
    LinearHead,
    Segformer,
    map_from_sequence,
    resize_bilinear,
    sequence_from_map,
)


def rewritten_for_export(model: nn.Module) -> nn.Module:
    """A rewritten deep copy in eval mode; `model` itself is left as it is.

    Module paths of blocks and norms stay, so that intermediate results can be compared by name.
    """
    result = copy.deepcopy(model).eval()
    with torch.no_grad():
        for parent in list(result.modules()):
            for name, child in parent.named_children():
                if isinstance(child, EfficientAttention):
                    setattr(parent, name, ScaledQueryAttention(child))
        if isinstance(result, Segformer):
            result.decode_head = StageConvs.from_head(result.decode_head)
    return result.eval()


class ScaledQueryAttention(nn.Module):
    """Efficient attention with 1/sqrt(d) inside the query's weights.

    softmax((x Wq + bq) k^T / sqrt(d)) = softmax((x Wq/sqrt(d) + bq/sqrt(d)) k^T), which saves a
    pass over the (tokens x keys) matrix and lets TensorRT see the pattern it fuses.

    With one head the split into heads is the identity and is left out, and the output projection
    moves into the value's weights: A (x Wv + bv) Wo + bo = A (x Wv Wo + bv Wo + bo), since each row
    of the softmax A sums to one. Values are sr_ratio^2 times fewer than tokens.
    """

    def __init__(self, source: EfficientAttention) -> None:
        super().__init__()
        self.num_heads, self.sr_ratio = source.num_heads, source.sr_ratio
        if self.sr_ratio > 1:
            self.sr, self.norm = source.sr, source.norm
        (wq, bq), (wk, bk), (wv, bv) = source.attn.split()
        scale = (wq.shape[0] // self.num_heads) ** -0.5
        self.q = _linear(wq * scale, None if bq is None else bq * scale)
        self.k = _linear(wk, bk)
        out = source.attn.out_proj
        if self.num_heads == 1:
            bias = None if bv is None else out.weight @ bv + out.bias
            self.v, self.out_proj = _linear(out.weight @ wv, bias), None
        else:
            self.v, self.out_proj = _linear(wv, bv), out

    def forward(self, x: Tensor, hw: tuple[int, int]) -> Tensor:
        source = x
        if self.sr_ratio > 1:
            source = self.norm(sequence_from_map(self.sr(map_from_sequence(x, hw))))
        q, k, v = self.q(x), self.k(source), self.v(source)
        if self.out_proj is None:
            return (q @ k.transpose(1, 2)).softmax(dim=2) @ v
        q, k, v = (self._split_heads(t) for t in (q, k, v))
        out = (q @ k.transpose(2, 3)).softmax(dim=3) @ v
        return self.out_proj(out.transpose(1, 2).reshape(-1, hw[0] * hw[1], int(x.shape[2])))

    def _split_heads(self, x: Tensor) -> Tensor:
        n_tokens, dim = int(x.shape[1]), int(x.shape[2])
        return x.reshape(-1, n_tokens, self.num_heads, dim // self.num_heads).transpose(1, 2)


class StageConvs(nn.Module):
    """SegFormer's decode head with the fusion convolution run at each stage's own resolution.

    A 1x1 convolution mixes channels and bilinear resizing mixes positions with weights that sum to
    one, so they commute, bias included; and a convolution over concatenated maps is the sum of the
    convolutions over each. Hence fuse(concat(resize(y_i))) = sum(resize(fuse_i(y_i))) + bias, at
    1 + 1/4 + 1/16 + 1/64 of one stage's work instead of 4. BatchNorm in eval mode is folded into
    the convolution before it. In the linear head nothing stands between a stage's linear layer and
    the fusion, so the two matrices are multiplied beforehand.
    """

    def __init__(
        self, convs: list[nn.Module], fusion: list[nn.Conv2d], conv_seg: nn.Conv2d, align: bool
    ) -> None:
        super().__init__()
        self.convs = nn.ModuleList(convs)
        self.fusion = nn.ModuleList(fusion)
        self.conv_seg = conv_seg
        self.align_corners = align

    @classmethod
    def from_head(cls, head: nn.Module) -> StageConvs:
        if isinstance(head, ConvHead):
            return cls._from_conv_head(head)
        assert isinstance(head, LinearHead)
        return cls._from_linear_head(head)

    @classmethod
    def _from_conv_head(cls, head: ConvHead) -> StageConvs:
        convs = [nn.Sequential(_folded(conv), nn.ReLU()) for conv in head.convs]  # type: ignore[arg-type]
        width = head.conv_seg.in_channels
        fused = _folded(head.fusion_conv)
        fusion = [
            _conv(fused.weight[:, i * width : (i + 1) * width], fused.bias if i == 0 else None)
            for i in range(len(convs))
        ]
        return cls(list(convs), fusion, head.conv_seg, head.align_corners)

    @classmethod
    def _from_linear_head(cls, head: LinearHead) -> StageConvs:
        width, count = head.conv_seg.in_channels, len(head.linear_c)
        fused = _folded(head.linear_fuse)
        fusion, bias = [], fused.bias
        assert bias is not None  # _folded always gives one
        for i, linear in enumerate(head.linear_c):
            assert isinstance(linear, nn.Linear)
            position = count - 1 - i  # concatenated c4 first
            part = fused.weight[:, position * width : (position + 1) * width, 0, 0]
            bias = bias + part @ linear.bias
            fusion.append(_conv((part @ linear.weight)[:, :, None, None], None))
        fusion[0].bias = nn.Parameter(bias)
        return cls([nn.Identity() for _ in fusion], fusion, head.conv_seg, head.align_corners)

    def forward(self, maps: list[Tensor]) -> Tensor:
        hw = (int(maps[0].shape[2]), int(maps[0].shape[3]))
        total: Tensor | None = None
        for conv, fuse, x in zip(self.convs, self.fusion, maps, strict=True):
            part = resize_bilinear(fuse(conv(x)), hw, self.align_corners)
            total = part if total is None else total + part
        assert total is not None
        return self.conv_seg(F.relu(total))


def _folded(block: ConvBn) -> nn.Conv2d:
    """The convolution of `block` with its BatchNorm (eval mode) folded in; it has a bias."""
    bn = block.bn
    assert bn.running_mean is not None
    assert bn.running_var is not None
    factor = bn.weight * torch.rsqrt(bn.running_var + bn.eps)
    return _conv(
        block.conv.weight * factor[:, None, None, None], bn.bias - bn.running_mean * factor
    )


def _conv(weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    """A 1x1 convolution that owns copies of these tensors."""
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], 1, bias=bias is not None, device="meta")
    conv.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        conv.bias = nn.Parameter(bias.detach().clone())
    return conv


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach().clone())
    return linear
