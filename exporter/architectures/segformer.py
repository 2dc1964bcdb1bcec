"""SegFormer: Mix Transformer (MiT) encoder and the two kinds of all-MLP decode head.

Source: Xie et al., "SegFormer: Simple and Efficient Design for Semantic Segmentation with
Transformers", NeurIPS 2021, and the layer order of mmsegmentation 1.2 (Apache-2.0).
Parameter names are mmsegmentation's, so that its checkpoints load with ``strict=True``.

These modules compute what the original computes, operation by operation. What makes the exported
graph faster is in `exporter.rewrites`, applied to a copy, so that the two can be compared.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exporter.architectures.layers import (
    ConvBn,
    QkvProjection,
    hw_of,
    joined_heads,
    map_from_sequence,
    resize_bilinear,
    sequence_from_map,
    split_heads,
)

PATCH_SIZES = (7, 3, 3, 3)
STRIDES = (4, 2, 2, 2)


@dataclass(frozen=True)
class SegformerShape:
    """Everything that decides the shapes of the parameters, plus the LayerNorm epsilons.

    `head_kind` is "mmsegmentation" (1x1 convolution, BatchNorm, ReLU per stage) or "linear"
    (NVlabs and Hugging Face: a linear layer with bias per stage, no activation).
    """

    embed_dims: tuple[int, ...]
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    sr_ratios: tuple[int, ...]
    mlp_ratios: tuple[int, ...]
    in_channels: int
    num_outputs: int
    head_channels: int
    head_kind: str
    qkv_bias: bool = True
    block_eps: float = 1e-6
    patch_eps: float = 1e-6
    align_corners: bool = False


class PatchEmbed(nn.Module):
    """Overlapping patches: strided convolution, then LayerNorm over channels."""

    def __init__(self, in_channels: int, dim: int, patch: int, stride: int, eps: float) -> None:
        super().__init__()
        self.projection = nn.Conv2d(in_channels, dim, patch, stride, patch // 2)
        self.norm = nn.LayerNorm(dim, eps=eps)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        x = self.projection(x)
        hw = hw_of(x)
        return self.norm(sequence_from_map(x)), hw


class EfficientAttention(nn.Module):
    """Self-attention whose keys and values come from a spatially reduced map."""

    def __init__(self, dim: int, num_heads: int, sr_ratio: int, bias: bool, eps: float) -> None:
        super().__init__()
        self.num_heads, self.sr_ratio = num_heads, sr_ratio
        self.attn = QkvProjection(dim, bias)
        if sr_ratio > 1:
            self.sr = nn.Conv2d(dim, dim, sr_ratio, sr_ratio)
            self.norm = nn.LayerNorm(dim, eps=eps)

    def forward(self, x: Tensor, hw: tuple[int, int]) -> Tensor:
        source = x
        if self.sr_ratio > 1:
            source = self.norm(sequence_from_map(self.sr(map_from_sequence(x, hw))))
        (wq, bq), (wk, bk), (wv, bv) = self.attn.split()
        q, k, v = F.linear(x, wq, bq), F.linear(source, wk, bk), F.linear(source, wv, bv)
        q, k, v = (split_heads(t, self.num_heads) for t in (q, k, v))
        weights = (q @ k.transpose(2, 3) * int(q.shape[3]) ** -0.5).softmax(dim=3)
        return self.attn.out_proj(joined_heads(weights @ v))


class MixFFN(nn.Module):
    """1x1 convolution, depthwise 3x3 (carries position), GELU, 1x1 convolution."""

    def __init__(self, dim: int, ratio: int) -> None:
        super().__init__()
        hidden = dim * ratio
        self.layers = nn.Sequential(
            nn.Conv2d(dim, hidden, 1),
            nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden),
            nn.GELU(),
            nn.Identity(),  # dropout in training; keeps mmsegmentation's index 4 below
            nn.Conv2d(hidden, dim, 1),
        )

    def forward(self, x: Tensor, hw: tuple[int, int]) -> Tensor:
        return sequence_from_map(self.layers(map_from_sequence(x, hw)))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, shape: SegformerShape, stage: int) -> None:
        super().__init__()
        dim, eps = shape.embed_dims[stage], shape.block_eps
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = EfficientAttention(
            dim, shape.num_heads[stage], shape.sr_ratios[stage], shape.qkv_bias, shape.patch_eps
        )
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.ffn = MixFFN(dim, shape.mlp_ratios[stage])

    def forward(self, x: Tensor, hw: tuple[int, int]) -> Tensor:
        x = x + self.attn(self.norm1(x), hw)
        return x + self.ffn(self.norm2(x), hw)


class MixTransformer(nn.Module):
    """(N, in_channels, H, W) -> four maps of strides 4, 8, 16, 32."""

    def __init__(self, shape: SegformerShape) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        channels = shape.in_channels
        for stage, dim in enumerate(shape.embed_dims):
            embed = PatchEmbed(channels, dim, PATCH_SIZES[stage], STRIDES[stage], shape.patch_eps)
            blocks = nn.ModuleList(Block(shape, stage) for _ in range(shape.depths[stage]))
            norm = nn.LayerNorm(dim, eps=shape.block_eps)
            self.layers.append(nn.ModuleList([embed, blocks, norm]))
            channels = dim

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for stage in self.layers:
            assert isinstance(stage, nn.ModuleList)
            embed, blocks, norm = stage
            tokens, hw = embed(x)
            assert isinstance(blocks, nn.ModuleList)
            for block in blocks:
                tokens = block(tokens, hw)
            x = map_from_sequence(norm(tokens), hw)
            maps.append(x)
        return maps


class ConvHead(nn.Module):
    """mmsegmentation's SegformerHead: `ConvBn` per stage, upsample, concatenate c1..c4, fuse."""

    def __init__(self, shape: SegformerShape) -> None:
        super().__init__()
        width = shape.head_channels
        self.align_corners = shape.align_corners
        self.convs = nn.ModuleList(ConvBn(dim, width) for dim in shape.embed_dims)
        self.fusion_conv = ConvBn(width * len(shape.embed_dims), width)
        self.conv_seg = nn.Conv2d(width, shape.num_outputs, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        hw = hw_of(maps[0])
        outs = [
            resize_bilinear(conv(x), hw, self.align_corners)
            for conv, x in zip(self.convs, maps, strict=True)
        ]
        return self.conv_seg(self.fusion_conv(torch.cat(outs, dim=1)))


class LinearHead(nn.Module):
    """NVlabs' and Hugging Face's head: linear per stage, upsample, concatenate c4..c1, fuse."""

    def __init__(self, shape: SegformerShape) -> None:
        super().__init__()
        width = shape.head_channels
        self.align_corners = shape.align_corners
        self.linear_c = nn.ModuleList(nn.Linear(dim, width) for dim in shape.embed_dims)
        self.linear_fuse = ConvBn(width * len(shape.embed_dims), width)
        self.conv_seg = nn.Conv2d(width, shape.num_outputs, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        hw = hw_of(maps[0])
        outs = []
        for linear, x in zip(self.linear_c, maps, strict=True):
            own_hw = hw_of(x)
            projected = map_from_sequence(linear(sequence_from_map(x)), own_hw)
            outs.append(resize_bilinear(projected, hw, self.align_corners))
        return self.conv_seg(self.linear_fuse(torch.cat(outs[::-1], dim=1)))


class Segformer(nn.Module):
    """Normalised (N, in_channels, H, W) float -> logits (N, num_outputs, ~H/4, ~W/4) float."""

    def __init__(self, shape: SegformerShape) -> None:
        super().__init__()
        self.shape = shape
        self.backbone = MixTransformer(shape)
        self.decode_head: nn.Module
        if shape.head_kind == "mmsegmentation":
            self.decode_head = ConvHead(shape)
        else:
            self.decode_head = LinearHead(shape)

    def forward(self, x: Tensor) -> Tensor:
        return self.decode_head(self.backbone(x))
