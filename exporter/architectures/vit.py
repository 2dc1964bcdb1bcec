"""Vision Transformer (ViT) as Segmenter's encoder: patches, class token, pre-norm layers.

Source: Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021, and the layer order of
mmsegmentation 1.2 (Apache-2.0). Parameter names are mmsegmentation's, so that its checkpoints load
with ``strict=True``: its LayerNorms are called ln1 and ln2, the last one too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exporter.architectures.layers import (
    FeedForward,
    QkvProjection,
    hw_of,
    joined_heads,
    map_from_sequence,
    sequence_from_map,
    split_heads,
)


@dataclass(frozen=True)
class VitShape:
    """Everything that decides the shapes of the parameters, plus what differs between programs.

    `grid` is the position embedding's (height, width) in patches. `positions` is how it is resized
    to another one: "bicubic" (mmsegmentation) or "bilinear" (the original Segmenter). Distilled
    DeiTs have a second class token, which nothing reads after the encoder either.
    """

    in_channels: int
    dim: int
    depth: int
    num_heads: int
    hidden: int
    patch: int
    grid: tuple[int, int]
    patch_bias: bool = True
    qkv_bias: bool = True
    final_norm: bool = True
    class_tokens: int = 1
    eps: float = 1e-6
    positions: str = "bicubic"


def resized_positions(
    pos_embed: Tensor, grid: tuple[int, int], hw: tuple[int, int], mode: str
) -> Tensor:
    """(1, t + grid's patches, C) -> (1, t + h*w, C): the t class tokens' rows stay as they are.

    Without antialiasing. As in mmsegmentation and in the original, a grid of as many patches is
    taken as it is, row after row, even if its sides differ: 64 x 16 patches read a grid of 32 x 32.
    """
    if hw[0] * hw[1] == grid[0] * grid[1]:
        return pos_embed
    class_tokens = int(pos_embed.shape[1]) - grid[0] * grid[1]
    patches = map_from_sequence(pos_embed[:, class_tokens:], grid)
    patches = F.interpolate(patches, size=hw, mode=mode, align_corners=False)
    return torch.cat((pos_embed[:, :class_tokens], sequence_from_map(patches)), dim=1)


class PatchEmbed(nn.Module):
    """Patches side by side; zeros at the bottom and on the right fill up the last ones."""

    def __init__(self, shape: VitShape) -> None:
        super().__init__()
        self.projection = nn.Conv2d(
            shape.in_channels, shape.dim, shape.patch, shape.patch, bias=shape.patch_bias
        )

    def forward(self, x: Tensor) -> Tensor:
        (h, w), patch = hw_of(x), self.projection.kernel_size[0]
        if h % patch or w % patch:
            x = F.pad(x, (0, -w % patch, 0, -h % patch))
        return self.projection(x)


class SelfAttention(nn.Module):
    """Multi-head self-attention over (N, L, C)."""

    def __init__(self, dim: int, num_heads: int, bias: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attn = QkvProjection(dim, bias)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (split_heads(F.linear(x, w, b), self.num_heads) for w, b in self.attn.split())
        weights = (q @ k.transpose(2, 3) * int(q.shape[3]) ** -0.5).softmax(dim=3)
        return self.attn.out_proj(joined_heads(weights @ v))


class TransformerLayer(nn.Module):
    """Pre-norm transformer layer over (N, L, C)."""

    def __init__(self, dim: int, num_heads: int, hidden: int, *, bias: bool, eps: float) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(dim, eps=eps)
        self.attn = SelfAttention(dim, num_heads, bias)
        self.ln2 = nn.LayerNorm(dim, eps=eps)
        self.ffn = FeedForward(dim, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln1(x))
        return x + self.ffn(self.ln2(x))


class VisionTransformer(nn.Module):
    """(N, in_channels, H, W) -> (N, dim, ceil(H / patch), ceil(W / patch))."""

    def __init__(self, shape: VitShape) -> None:
        super().__init__()
        self.grid, self.positions = shape.grid, shape.positions
        self.patch_embed = PatchEmbed(shape)
        self.cls_token = nn.Parameter(torch.zeros(1, shape.class_tokens, shape.dim))
        positions = shape.class_tokens + shape.grid[0] * shape.grid[1]
        self.pos_embed = nn.Parameter(torch.zeros(1, positions, shape.dim))
        self.layers = nn.ModuleList(
            TransformerLayer(
                shape.dim, shape.num_heads, shape.hidden, bias=shape.qkv_bias, eps=shape.eps
            )
            for _ in range(shape.depth)
        )
        self.ln1 = nn.LayerNorm(shape.dim, eps=shape.eps) if shape.final_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patch_embed(x)
        hw = hw_of(patches)
        class_token = self.cls_token.expand(x.shape[0], -1, -1)
        tokens = torch.cat((class_token, sequence_from_map(patches)), dim=1)
        tokens = tokens + resized_positions(self.pos_embed, self.grid, hw, self.positions)
        for layer in self.layers:
            tokens = layer(tokens)
        return map_from_sequence(self.ln1(tokens)[:, int(self.cls_token.shape[1]) :], hw)
