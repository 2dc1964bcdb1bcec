"""Segmenter's examples: both heads, with and without what a ViT may lack."""

from __future__ import annotations

from torch import nn

from exporter.architectures.description import Hints
from exporter.architectures.segmenter import MaskDecoderShape, Segmenter, SegmenterShape
from exporter.architectures.vit import VitShape
from tests.architectures.example import Example, lively


def with_masks() -> nn.Module:
    """As the published ones, but two layers of two heads; the decoder has a width of its own."""
    encoder = VitShape(
        in_channels=3, dim=128, depth=2, num_heads=2, hidden=96, patch=16, grid=(4, 4)
    )
    decoder = MaskDecoderShape(dim=64, depth=2, num_heads=1, hidden=80, num_classes=5)
    return lively(Segmenter(SegmenterShape(encoder, decoder, num_outputs=5)))


def with_linear_head() -> nn.Module:
    """Wide positions, no bias in patches and attention, no last norm, four heads as told."""
    encoder = VitShape(
        in_channels=3,
        dim=48,
        depth=1,
        num_heads=4,
        hidden=48,
        patch=16,
        grid=(4, 6),
        patch_bias=False,
        qkv_bias=False,
        final_norm=False,
    )
    return lively(Segmenter(SegmenterShape(encoder, None, num_outputs=3)))


EXAMPLES = (
    Example(
        id="segmenter",
        make=with_masks,
        hw=(64, 64),
        other_hw=(90, 130),
        description={
            "architecture": "segmenter",
            "variant": "custom-mask",
            "head": "mask",
            "head_channels": 64,
            "in_channels": 3,
            "num_outputs": 5,
            "source": "mmsegmentation",
            "trained_hw": (64, 64),
        },
        attention=4 * 3,
    ),
    Example(
        id="segmenter-linear",
        make=with_linear_head,
        hw=(64, 96),
        other_hw=(75, 50),
        description={
            "architecture": "segmenter",
            "variant": "custom-linear",
            "head": "linear",
            "head_channels": 48,
            "num_outputs": 3,
            "trained_hw": (64, 96),
            "assumed": ("24 positions are no square: 4 rows of 6 patches assumed",),
        },
        hints=Hints(num_heads=4),
        attention=3,
    ),
)
