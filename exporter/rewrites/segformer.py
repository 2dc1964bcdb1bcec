"""SegFormer's rewrites: scaled queries, and the decode head at each stage's own resolution."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from exporter.architectures.layers import (
    hw_of,
    joined_heads,
    map_from_sequence,
    resize_bilinear,
    sequence_from_map,
    split_heads,
)
from exporter.architectures.segformer import ConvHead, EfficientAttention, LinearHead
from exporter.rewrites.pieces import conv_like, folded, linear_of


def rewrite(model: nn.Module, _input_hw: tuple[int, int] | None) -> None:
    """Every efficient attention, and the decode head."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, EfficientAttention):
                setattr(parent, name, ScaledQueryAttention(child))
            elif isinstance(child, ConvHead | LinearHead):
                setattr(parent, name, StageConvs.from_head(child))


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
        self.q = linear_of(wq * scale, None if bq is None else bq * scale)
        self.k = linear_of(wk, bk)
        out = source.attn.out_proj
        if self.num_heads == 1:
            bias = None if bv is None else out.weight @ bv + out.bias
            self.v, self.out_proj = linear_of(out.weight @ wv, bias), None
        else:
            self.v, self.out_proj = linear_of(wv, bv), out

    def forward(self, x: Tensor, hw: tuple[int, int]) -> Tensor:
        source = x
        if self.sr_ratio > 1:
            source = self.norm(sequence_from_map(self.sr(map_from_sequence(x, hw))))
        q, k, v = self.q(x), self.k(source), self.v(source)
        if self.out_proj is None:
            return (q @ k.transpose(1, 2)).softmax(dim=2) @ v
        q, k, v = (split_heads(t, self.num_heads) for t in (q, k, v))
        out = (q @ k.transpose(2, 3)).softmax(dim=3) @ v
        return self.out_proj(joined_heads(out))


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
        convs = [nn.Sequential(folded(conv), nn.ReLU()) for conv in head.convs]  # type: ignore[arg-type]
        width = head.conv_seg.in_channels
        fused = folded(head.fusion_conv)
        fusion = [
            conv_like(
                fused,
                fused.weight[:, i * width : (i + 1) * width],
                fused.bias if i == 0 else None,
            )
            for i in range(len(convs))
        ]
        return cls(list(convs), fusion, head.conv_seg, head.align_corners)

    @classmethod
    def _from_linear_head(cls, head: LinearHead) -> StageConvs:
        width, count = head.conv_seg.in_channels, len(head.linear_c)
        fused = folded(head.linear_fuse)
        fusion, bias = [], fused.bias
        assert bias is not None  # `folded` always gives one
        for i, linear in enumerate(head.linear_c):
            assert isinstance(linear, nn.Linear)
            position = count - 1 - i  # concatenated c4 first
            part = fused.weight[:, position * width : (position + 1) * width, 0, 0]
            bias = bias + part @ linear.bias
            fusion.append(conv_like(fused, (part @ linear.weight)[:, :, None, None], None))
        fusion[0].bias = nn.Parameter(bias)
        return cls([nn.Identity() for _ in fusion], fusion, head.conv_seg, head.align_corners)

    def forward(self, maps: list[Tensor]) -> Tensor:
        hw = hw_of(maps[0])
        total: Tensor | None = None
        for conv, fuse, x in zip(self.convs, self.fusion, maps, strict=True):
            part = resize_bilinear(fuse(conv(x)), hw, self.align_corners)
            total = part if total is None else total + part
        assert total is not None
        return self.conv_seg(F.relu(total))
