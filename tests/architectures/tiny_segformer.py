"""SegFormer's examples: one with each decode head."""

from __future__ import annotations

from torch import nn

from exporter.architectures.segformer import Segformer, SegformerShape
from tests.architectures.example import Example, lively


def network(head_kind: str) -> nn.Module:
    shape = SegformerShape(
        embed_dims=(8, 16, 40, 64),
        depths=(1, 2, 1, 1),
        num_heads=(1, 2, 5, 8),
        sr_ratios=(8, 4, 2, 1),
        mlp_ratios=(4, 4, 4, 4),
        in_channels=3,
        num_outputs=5,
        head_channels=16,
        head_kind=head_kind,
    )
    return lively(Segformer(shape))


EXAMPLES = (
    Example(
        id="segformer",
        make=lambda: network("mmsegmentation"),
        hw=(64, 64),
        other_hw=(96, 70),
        description={
            "architecture": "segformer",
            "variant": "custom",
            "head": "mmsegmentation",
            "head_channels": 16,
            "in_channels": 3,
            "num_outputs": 5,
            "source": "mmsegmentation",
        },
        attention=15,
    ),
)
