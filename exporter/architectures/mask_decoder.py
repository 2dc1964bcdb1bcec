"""Mask2Former's mask decoder: queries that look only where their own mask so far lies.

Source: Cheng et al., "Masked-attention Mask Transformer for Universal Image Segmentation", CVPR
2022, and the structure of mmdetection 3.3 (Apache-2.0), whose parameter names these are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from exporter.architectures.layers import (
    QkvProjection,
    hw_of,
    joined_heads,
    sequence_from_map,
    split_heads,
)
from exporter.architectures.pixel_decoder import (
    FeedForward,
    PixelDecoder,
    PixelDecoderShape,
    sine_positions,
)

# Added to an attention score that is not to count. Finite, for a row of -inf has no softmax; the
# other scores would have to lie 9900 apart for it to matter, and FP16 holds it.
MASKED = -1e4


@dataclass(frozen=True)
class MaskDecoderShape:
    """`classes` without the last one, "nothing". `hidden` is the feed-forward's width.

    `input_projections`: a 1x1 convolution stands before each level, which few models have.
    """

    classes: int
    queries: int = 100
    channels: int = 256
    layers: int = 9
    heads: int = 8
    hidden: int = 2048
    input_projections: bool = False


class Attention(nn.Module):
    """Multi-head attention with positions added to query and key, and the query added after it."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attn = QkvProjection(dim)

    def forward(
        self,
        x: Tensor,
        source: Tensor,
        positions: Tensor,
        source_positions: Tensor,
        bias: Tensor | None = None,
    ) -> Tensor:
        """x (N, Q, C), source (N, L, C); positions (Q, C) and (L, C); bias (N, 1, Q, L)."""
        (wq, bq), (wk, bk), (wv, bv) = self.attn.split()
        q = split_heads(F.linear(x + positions, wq, bq), self.heads)
        k = split_heads(F.linear(source + source_positions, wk, bk), self.heads)
        v = split_heads(F.linear(source, wv, bv), self.heads)
        scores = q * int(q.shape[3]) ** -0.5 @ k.transpose(2, 3)
        if bias is not None:
            scores = scores + bias
        return x + self.attn.out_proj(joined_heads(scores.softmax(dim=3) @ v))


class DecoderLayer(nn.Module):
    """Attention to one map, attention among the queries, feed-forward; a norm after each."""

    def __init__(self, shape: MaskDecoderShape) -> None:
        super().__init__()
        self.cross_attn: nn.Module = Attention(shape.channels, shape.heads)
        self.self_attn: nn.Module = Attention(shape.channels, shape.heads)
        self.ffn = FeedForward(shape.channels, shape.hidden)
        self.norms = nn.ModuleList(nn.LayerNorm(shape.channels) for _ in range(3))

    def forward(
        self, x: Tensor, source: Tensor, positions: Tensor, source_positions: Tensor, bias: Tensor
    ) -> Tensor:
        """As `Attention.forward`, with x the queries and source one map's tokens."""
        x = self.norms[0](self.cross_attn(x, source, positions, source_positions, bias))
        x = self.norms[1](self.self_attn(x, x, positions, positions))
        return self.norms[2](self.ffn(x))


class Level(NamedTuple):
    """One of the pixel decoder's maps: tokens (N, H*W, C), their positions (H*W, C), (H, W)."""

    tokens: Tensor
    positions: Tensor
    hw: tuple[int, int]


class TransformerDecoder(nn.Module):
    """Layers that look at the levels in turn, each within the masks that its queries have so far.

    The coarsest level comes first.
    """

    def __init__(self, shape: MaskDecoderShape) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(shape) for _ in range(shape.layers))
        self.post_norm = nn.LayerNorm(shape.channels)

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        levels: Sequence[Level],
        masks_of: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """Queries (N or 1, Q, C) -> (N, Q, C), normed. `masks_of` normed queries: (N, Q, h, w)."""
        for i, layer in enumerate(self.layers):
            level = levels[i % len(levels)]
            bias = attention_bias(shrunk(masks_of(self.post_norm(x)), level.hw))
            x = layer(x, level.tokens, positions, level.positions, bias)
        return self.post_norm(x)


class MaskHead(nn.Module):
    """Backbone maps, finest first -> class scores and mask scores of every query.

    Classes (N, Q, classes + 1) and masks (N, Q, h, w) at the finest map's size, neither squashed.
    What the layers before the last predict serves as their successors' attention masks only.
    """

    def __init__(self, pixels: PixelDecoderShape, shape: MaskDecoderShape) -> None:
        super().__init__()
        self.shape = shape
        dim = shape.channels
        self.pixel_decoder = PixelDecoder(pixels)
        self.transformer_decoder = TransformerDecoder(shape)
        self.decoder_input_projs = nn.ModuleList(
            nn.Conv2d(pixels.channels, dim, 1) if shape.input_projections else nn.Identity()
            for _ in range(pixels.levels)
        )
        self.query_embed = nn.Embedding(shape.queries, dim)
        self.query_feat = nn.Embedding(shape.queries, dim)
        self.level_embed = nn.Embedding(pixels.levels, dim)
        self.cls_embed = nn.Linear(dim, shape.classes + 1)
        self.mask_embed = nn.Sequential(
            nn.Linear(dim, dim),
            nn.ReLU(),
            nn.Linear(dim, dim),
            nn.ReLU(),
            nn.Linear(dim, pixels.out_channels),
        )

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        features, memories = self.pixel_decoder(maps)
        levels = []
        for i, (project, map_) in enumerate(zip(self.decoder_input_projs, memories, strict=True)):
            tokens = sequence_from_map(project(map_)) + self.level_embed.weight[i]
            levels.append(Level(tokens, sine_positions(hw_of(map_), tokens), hw_of(map_)))

        def masks_of(x: Tensor) -> Tensor:
            return mask_products(self.mask_embed(x), features)

        start = self.query_feat.weight[None]
        x = self.transformer_decoder(start, self.query_embed.weight, levels, masks_of)
        return self.cls_embed(x), masks_of(x)


def mask_products(embedded: Tensor, features: Tensor) -> Tensor:
    """(N or 1, Q, C) and (N, C, h, w) -> their products (N, Q, h, w)."""
    h, w = hw_of(features)
    flat = features.reshape(-1, int(features.shape[1]), h * w)
    return (embedded @ flat).reshape(-1, int(embedded.shape[1]), h, w)


def shrunk(x: Tensor, hw: tuple[int, int]) -> Tensor:
    """Bilinear resize of (N, C, H, W) to a smaller `hw`, without smoothing.

    By whole-number factors where they are: a graph with a free batch size then needs no Shape.
    """
    h, w = hw_of(x)
    if (h, w) == hw:
        return x
    if h % hw[0] or w % hw[1]:
        return F.interpolate(x, size=hw, mode="bilinear", align_corners=False)
    factors = (hw[0] / h, hw[1] / w)
    return F.interpolate(x, scale_factor=factors, mode="bilinear", align_corners=False)


def attention_bias(masks: Tensor) -> Tensor:
    """Mask scores (N, Q, h, w) -> what is added to attention scores, (N, 1, Q, h*w).

    MASKED outside a query's mask, that is where its sigmoid is below one half; 0 inside. A query
    whose mask is empty looks everywhere.
    """
    scores = masks.reshape(-1, 1, int(masks.shape[1]), int(masks.shape[2]) * int(masks.shape[3]))
    outside = (scores < 0).to(scores.dtype)
    anything = (scores.amax(dim=3, keepdim=True) >= 0).to(scores.dtype)
    return outside * (anything * MASKED)
