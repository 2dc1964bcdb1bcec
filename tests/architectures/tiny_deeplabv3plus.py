"""DeepLabV3+'s examples: bottlenecks with everything dilated, and basic blocks."""

from __future__ import annotations

from torch import nn

from exporter.architectures.aspp import AsppShape
from exporter.architectures.deeplabv3plus import DeeplabV3Plus, DeeplabV3PlusShape
from exporter.architectures.description import Hints
from exporter.architectures.resnet import ResNetShape
from tests.architectures.example import Example, lively


def of_bottlenecks() -> nn.Module:
    """As the published R-50 and R-101, whose layout is assumed where nobody says it."""
    backbone = ResNetShape(
        depths=(1, 2, 2, 1),
        strides=(1, 2, 1, 1),
        dilations=(1, 1, 2, 4),
        contract_dilation=True,
        base_width=4,
        stem_width=8,
    )
    head = AsppShape(128, 16, num_outputs=5, c1_channels=16, c1_width=6)
    return lively(DeeplabV3Plus(DeeplabV3PlusShape(backbone, head)), hw=(96, 96))


def of_basic_blocks() -> nn.Module:
    """Output stride 16, plain stem, pooled shortcuts, another pyramid, aligned corners."""
    backbone = ResNetShape(
        depths=(1, 1, 1, 2),
        deep_stem=False,
        strides=(1, 2, 2, 1),
        dilations=(1, 1, 1, 2),
        base_width=8,
        bottleneck=False,
        avg_down=True,
        stem_width=8,
    )
    head = AsppShape(
        64, 8, num_outputs=3, dilations=(1, 2, 3), align_corners=True, c1_channels=8, c1_width=4
    )
    return lively(DeeplabV3Plus(DeeplabV3PlusShape(backbone, head)))


EXAMPLES = (
    Example(
        id="deeplabv3plus",
        make=of_bottlenecks,
        hw=(96, 96),
        other_hw=(129, 70),
        description={
            "architecture": "deeplabv3plus",
            "variant": "custom",
            "head": "separable ASPP",
            "head_channels": 16,
            "in_channels": 3,
            "num_outputs": 5,
            "source": "mmsegmentation",
        },
    ),
    Example(
        id="deeplabv3plus-basic",
        make=of_basic_blocks,
        hw=(64, 64),
        other_hw=(65, 97),
        description={
            "architecture": "deeplabv3plus",
            "variant": "custom",
            "head": "separable ASPP",
            "head_channels": 8,
            "num_outputs": 3,
            "assumed": (),
        },
        hints=Hints(
            align_corners=True,
            strides=(1, 2, 2, 1),
            dilations=(1, 1, 1, 2),
            contract_dilation=False,
            head_dilations=(1, 2, 3),
        ),
    ),
)
