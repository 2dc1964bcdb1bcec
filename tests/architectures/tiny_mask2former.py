"""Mask2Former's examples: on a ResNet and on a Swin Transformer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from exporter.architectures.backbones import BackboneShape
from exporter.architectures.mask2former import Mask2Former, Mask2FormerShape
from exporter.architectures.mask_decoder import MaskDecoderShape, MaskHead
from exporter.architectures.pixel_decoder import PixelDecoderShape
from exporter.architectures.resnet import ResNetShape
from exporter.architectures.swin import SwinShape
from tests.architectures.example import Example, lively

RESNET = ResNetShape(
    depths=(1, 1, 1, 1), deep_stem=False, base_width=8, stem_width=8, bottleneck=True
)
SWIN = SwinShape(
    in_channels=3,
    dim=16,
    depths=(2, 1, 1, 1),
    num_heads=(1, 2, 4, 4),
    window=3,
    mlp_ratio=2.0,
    patch=4,
    qkv_bias=True,
    patch_norm=True,
)


def tiny_shape(
    backbone: BackboneShape, *, layers: tuple[int, int] = (2, 4), projections: bool = False
) -> Mask2FormerShape:
    """Widths that differ wherever they may; 7 queries, 5 classes.

    `layers`: of the pixel decoder, and of the mask decoder, where four reach the first level again.
    """
    pixels = PixelDecoderShape(
        in_channels=backbone.channels, channels=32, out_channels=24, layers=layers[0], points=2,
        hidden=40,
    )  # fmt: skip
    masks = MaskDecoderShape(
        classes=5, queries=7, channels=48 if projections else 32, layers=layers[1], hidden=56,
        input_projections=projections,
    )  # fmt: skip
    return Mask2FormerShape(backbone, pixels, masks)


def network(shape: Mask2FormerShape, *, seed: int = 0) -> Mask2Former:
    """Lively, with queries that stay apart, so that every class wins somewhere."""
    model = Mask2Former(shape)
    lively(model, seed=seed)
    spread_queries(model.decode_head)
    return model


RESNET_SHAPE = tiny_shape(RESNET)
SWIN_SHAPE = tiny_shape(SWIN, layers=(1, 3), projections=True)


def spread_queries(head: MaskHead) -> None:
    """Random layers make all queries alike; with these factors each keeps some of its own."""
    with torch.no_grad():
        for embedding in (head.query_embed, head.query_feat, head.level_embed):
            embedding.weight *= embedding.weight.shape[1] ** 0.5
        head.pixel_decoder.level_encoding.weight *= 4
        for layer in head.pixel_decoder.encoder.layers:
            layer.self_attn.sampling_offsets.weight *= 2  # up to 5 pixels, also beyond the edges
        for layer in head.transformer_decoder.layers:
            parts = (layer.cross_attn.attn.out_proj, layer.self_attn.attn.out_proj)
            for linear in (*parts, layer.ffn.layers[1]):
                linear.weight *= 0.3
                linear.bias *= 0.3
            for norm in layer.norms:
                norm.bias *= 0.3
        head.cls_embed.weight *= 4
        head.cls_embed.bias.zero_()


def _example(id_: str, make: Callable[[], nn.Module], attention: int) -> Example:
    return Example(
        id=id_,
        make=make,
        hw=(64, 96),
        other_hw=(90, 70),
        description={
            "architecture": "mask2former",
            "variant": "custom",
            "head": "mask2former",
            "head_channels": 32,
            "in_channels": 3,
            "num_outputs": 5,
            "source": "mmsegmentation",
        },
        attention=attention,
    )


# Seeds with which no class has every pixel.
EXAMPLES = (
    # Two attentions a decoder layer, and one a block of Swin.
    _example("mask2former-resnet", lambda: network(RESNET_SHAPE, seed=7), attention=24),
    _example("mask2former-swin", lambda: network(SWIN_SHAPE, seed=3), attention=33),
)
