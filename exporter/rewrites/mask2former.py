"""Mask2Former's rewrites: places by constant tables, and a mask decoder without what folds away."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exporter.architectures.deformable import (
    MultiScaleDeformableAttention,
    Sizes,
    maps_of_heads,
    sampled_by_gather,
    token_places,
)
from exporter.architectures.layers import (
    hw_of,
    joined_heads,
    sequence_from_map,
    split_heads,
)
from exporter.architectures.mask_decoder import (
    Attention,
    DecoderLayer,
    MaskHead,
    attention_bias,
    mask_products,
    shrunk,
)
from exporter.architectures.pixel_decoder import sine_positions
from exporter.rewrites.pieces import linear_of


def rewrite(model: nn.Module, _input_hw: tuple[int, int] | None) -> None:
    """Every deformable attention and every mask head of a Mask2Former.

    On ONNX Runtime's CPU provider, R-50 at 512x512 with 150 classes, one thread, the processor's
    time (the smallest of five): 1272 ms with BatchNorm folded alone, 1165 ms with `ConstantPlaces`
    too, 1193 ms with `FoldedMaskHead` too, 1099 ms with both. Cutting what exceeds an image off the
    masks instead of the result gained nothing (512x520: 1275 instead of 1262 ms) and was left out.
    """
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, MultiScaleDeformableAttention):
                setattr(parent, name, ConstantPlaces(child))
            elif isinstance(child, MaskHead):
                setattr(parent, name, FoldedMaskHead(child))


class ConstantPlaces(MultiScaleDeformableAttention):
    """Deformable attention whose own places and scales are constants, one level after the other.

    2 (own + offset / sides) - 1 = offset (2 / sides) + (2 own - 1): one product and one sum instead
    of four passes. Weighted and summed level by level, the samples, 66 MB a layer at 512x512, are
    not concatenated; and with the points before the tokens, sums run along whole rows.
    """

    def __init__(self, source: MultiScaleDeformableAttention) -> None:
        with torch.device("meta"):
            super().__init__(source.heads, source.heads, source.levels, source.points)
        self.sampling = source.sampling
        self.sampling_offsets = source.sampling_offsets
        self.attention_weights = source.attention_weights
        self.value_proj = source.value_proj
        self.output_proj = source.output_proj

    def forward(self, x: Tensor, positions: Tensor, sizes: Sizes) -> Tensor:
        tokens, channels = int(x.shape[1]), int(x.shape[2])
        scale, shift = _scale_and_shift(tuple(sizes), x)
        query, value = x + positions, self.value_proj(x)
        shares = self.attention_weights(query)
        shares = shares.reshape(-1, tokens, self.heads, self.levels * self.points).softmax(dim=3)
        per_token = (-1, tokens, self.heads, self.levels, self.points)
        offsets = self.sampling_offsets(query).reshape(*per_token, 2)
        if self.sampling == "gather":
            grid = offsets * scale.transpose(0, 1)[:, None, :, None] + shift[:, None, None, None]
            return self.output_proj(
                sampled_by_gather(value, grid, shares.reshape(per_token), sizes)
            )
        # (N, heads, levels, points, L, 2), and without the last axis.
        grid = offsets.permute(0, 2, 3, 4, 1, 5) * scale[:, None] + shift
        shares = shares.permute(0, 2, 3, 1).reshape(
            -1, self.heads, self.levels, self.points, tokens
        )
        total: Tensor | None = None
        parts = zip(
            maps_of_heads(value, sizes, self.heads), _levels(grid), _levels(shares), strict=True
        )
        for map_, places, weights in parts:
            places = places.reshape(-1, self.points, tokens, 2)
            samples = F.grid_sample(map_, places, padding_mode="zeros", align_corners=False)
            part = (samples * weights.reshape(-1, 1, self.points, tokens)).sum(dim=2)
            total = part if total is None else total + part
        assert total is not None
        return self.output_proj(total.reshape(-1, channels, tokens).transpose(1, 2))


def _levels(x: Tensor) -> Sequence[Tensor]:
    """(N, heads, levels, …) -> for each level (N, heads, 1, …): one Split instead of Gathers."""
    return torch.split(x, 1, dim=2)


def _scale_and_shift(sizes: tuple[tuple[int, int], ...], like: Tensor) -> tuple[Tensor, Tensor]:
    """(levels, L, 2) and (L, 2): what turns offsets in pixels into GridSample's coordinates.

    The first is repeated along L: ONNX Runtime is slow where the innermost equal run is of two.
    """
    shift = 2 * token_places(sizes) - 1
    sides = np.array([[[2 / w, 2 / h]] for h, w in sizes])
    scale = np.repeat(sides, len(shift), axis=1)
    return torch.from_numpy(scale).to(like), torch.from_numpy(shift).to(like)


# What is multiplied with the features, (N, Q, C'), and added to the products, (N, Q, 1, 1).
Embedded = tuple[Tensor, Tensor]


class FoldedAttention(nn.Module):
    """Attention of the queries with what is constant taken out of it.

    1/sqrt(d) and the query's position go into the weights and a table: ((x + e) Wq + bq) / sqrt(d)
    = x Wq' + T. What is equal for all keys, the key's bias and the embedding `level` of the map,
    adds one number to a whole row of scores, which a softmax does not see. What is equal for all
    values comes out unchanged, since a softmax sums to one, and goes into the output's bias:
    A (s Wv + l Wv + bv) Wo + bo = A s Wv Wo + ((l Wv + bv) Wo + bo).

    With `first` (Q, C), the constant queries of the first layer, the query is a constant.
    """

    query_table: Tensor

    def __init__(
        self,
        source: Attention,
        positions: Tensor,
        level: Tensor | None = None,
        first: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.heads = source.heads
        (wq, bq), (wk, _), (wv, bv) = source.attn.split()
        assert bq is not None
        assert bv is not None
        scale = (wq.shape[0] // self.heads) ** -0.5
        queries = positions if first is None else positions + first
        self.register_buffer("query_table", F.linear(queries, wq, bq) * scale, persistent=False)
        self.q = linear_of(wq * scale, None) if first is None else None
        self.k, self.v = linear_of(wk, None), linear_of(wv, None)
        out = source.attn.out_proj
        constant = bv if level is None else wv @ level + bv
        self.out_proj = linear_of(out.weight, out.weight @ constant + out.bias)

    def attended(self, x: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        """The queries (N, Q, C) after attention to projected keys and values (N, L, C)."""
        q = self.query_table[None] if self.q is None else self.q(x) + self.query_table
        q, k, v = (split_heads(t, self.heads) for t in (q, k, v))
        scores = q @ k.transpose(2, 3)
        if bias is not None:
            scores = scores + bias
        return x + self.out_proj(joined_heads(scores.softmax(dim=3) @ v))


class FoldedCrossAttention(FoldedAttention):
    """Attention to a map, whose tokens come with their positions (keys) and without (values)."""

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        return self.attended(x, self.k(keys), self.v(values), bias)


class FoldedSelfAttention(FoldedAttention):
    """Attention among the queries; the keys' positions are a second table."""

    key_table: Tensor

    def __init__(self, source: Attention, positions: Tensor) -> None:
        super().__init__(source, positions)
        wk = source.attn.split()[1][0]
        self.register_buffer("key_table", positions @ wk.T, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.attended(x, self.k(x) + self.key_table, self.v(x))


class FoldedDecoderLayer(nn.Module):
    """A decoder layer with folded attentions."""

    def __init__(
        self, source: DecoderLayer, positions: Tensor, level: Tensor, first: Tensor | None
    ) -> None:
        super().__init__()
        cross, own = source.cross_attn, source.self_attn
        assert isinstance(cross, Attention)
        assert isinstance(own, Attention)
        self.cross_attn = FoldedCrossAttention(cross, positions, level, first)
        self.self_attn = FoldedSelfAttention(own, positions)
        self.ffn, self.norms = source.ffn, source.norms

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        x = self.norms[0](self.cross_attn(x, keys, values, bias))
        x = self.norms[1](self.self_attn(x))
        return self.norms[2](self.ffn(x))


class FoldedLevel(NamedTuple):
    """Keys and values (N, H*W, C), and the mask features (N, C', H, W) at this level's size."""

    keys: Tensor
    values: Tensor
    features: Tensor


class FoldedTransformerDecoder(nn.Module):
    """`TransformerDecoder` whose first masks and queries are constants, as their origin is."""

    queries: Tensor
    first_masks: Tensor
    first_offsets: Tensor

    def __init__(self, source: MaskHead, embedded: Callable[[Tensor], Embedded]) -> None:
        super().__init__()
        decoder = source.transformer_decoder
        positions, queries = source.query_embed.weight.detach(), source.query_feat.weight.detach()
        levels = source.level_embed.weight.detach()
        self.layers = nn.ModuleList()
        for i, layer in enumerate(decoder.layers):
            assert isinstance(layer, DecoderLayer)
            first = queries if i == 0 else None
            self.layers.append(FoldedDecoderLayer(layer, positions, levels[i % len(levels)], first))
        self.post_norm = decoder.post_norm
        masks, offsets = embedded(self.post_norm(queries[None]))
        constants = {"queries": queries[None], "first_masks": masks, "first_offsets": offsets}
        for name, value in constants.items():
            self.register_buffer(name, value.clone(), persistent=False)

    def forward(
        self, levels: Sequence[FoldedLevel], embedded: Callable[[Tensor], Embedded]
    ) -> Tensor:
        """The queries after all layers, (N, Q, C), normed."""
        x, masks, offsets = self.queries, self.first_masks, self.first_offsets
        for i, layer in enumerate(self.layers):
            level = levels[i % len(levels)]
            if i > 0:
                masks, offsets = embedded(self.post_norm(x))
            bias = attention_bias(mask_products(masks, level.features) + offsets)
            x = layer(x, level.keys, level.values, bias)
        return self.post_norm(x)


class FoldedMaskHead(nn.Module):
    """`MaskHead` with the products of its masks at the size where they are needed.

    Resizing mixes pixels and the product with a query mixes channels, so they commute: the features
    are resized to each level once, and the attention masks of a layer are products there, at 1/4 to
    1/64 of the work, instead of products at the finest size that are resized afterwards. What is
    thresholded is the same number.

    The 1x1 convolution before the product, E (W y + b) = (E W) y + E b, goes into the last layer of
    `mask_embed`, and E b is one number for each query: `mask_offset`.
    """

    def __init__(self, source: MaskHead) -> None:
        super().__init__()
        self.pixel_decoder = source.pixel_decoder
        self.decoder_input_projs = source.decoder_input_projs
        self.cls_embed, self.mask_embed = source.cls_embed, source.mask_embed
        self._fold_mask_feature()
        self.transformer_decoder = FoldedTransformerDecoder(source, self._embedded)

    def _fold_mask_feature(self) -> None:
        conv, last = self.pixel_decoder.mask_feature, self.mask_embed[4]
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(last, nn.Linear)
        assert conv.bias is not None
        weight = conv.weight[:, :, 0, 0]
        self.mask_embed[4] = linear_of(weight.T @ last.weight, weight.T @ last.bias)
        self.mask_offset = linear_of((conv.bias @ last.weight)[None], (conv.bias @ last.bias)[None])
        self.pixel_decoder.mask_feature = nn.Identity()

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        features, memories = self.pixel_decoder(maps)
        levels = []
        for project, map_ in zip(self.decoder_input_projs, memories, strict=True):
            hw, values = hw_of(map_), sequence_from_map(project(map_))
            keys = values + sine_positions(hw, values)
            levels.append(FoldedLevel(keys, values, shrunk(features, hw)))
        x = self.transformer_decoder(levels, self._embedded)
        masks, offsets = self._embedded(x)
        return self.cls_embed(x), mask_products(masks, features) + offsets

    def _embedded(self, x: Tensor) -> Embedded:
        """Of normed queries (N, Q, C): what features are multiplied with, and what is added."""
        for i in range(4):
            x = self.mask_embed[i](x)
        return self.mask_embed[4](x), self.mask_offset(x)[..., None]
