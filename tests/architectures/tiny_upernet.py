"""UPerNet's examples: on a Swin Transformer, another Swin, and a ResNet."""

from __future__ import annotations

from torch import nn

from exporter.architectures.backbones import BackboneShape
from exporter.architectures.resnet import ResNetShape
from exporter.architectures.swin import SwinShape
from exporter.architectures.upernet import Upernet, UpernetShape
from tests.architectures.example import Example, lively


def network(backbone: BackboneShape, **changes: object) -> nn.Module:
    values: dict[str, object] = {"channels": 16, "num_outputs": 5}
    shape = UpernetShape(backbone, **(values | changes))  # type: ignore[arg-type]
    return lively(Upernet(shape), hw=(96, 96))


def swin() -> nn.Module:
    """Windows of 7, every second block's shifted; maps that are and are not whole windows."""
    return network(SwinShape(3, 16, (2, 2, 3, 1), (1, 2, 4, 8), window=7))


def bare_swin() -> nn.Module:
    """Nothing that can be left out; heads of another width, two pooling scales, aligned corners."""
    backbone = SwinShape(
        5,
        8,
        (1, 2, 2, 2),
        (2, 2, 2, 4),
        window=4,
        mlp_ratio=2.0,
        patch=2,
        qkv_bias=False,
        patch_norm=False,
    )
    return network(backbone, num_outputs=3, pool_scales=(2, 5), align_corners=True)


def resnet() -> nn.Module:
    return network(ResNetShape(depths=(1, 2, 1, 1), base_width=4, stem_width=8))


EXAMPLES = (
    Example(
        id="upernet-swin",
        make=swin,
        hw=(64, 64),
        other_hw=(96, 70),
        description={
            "architecture": "upernet",
            "variant": "custom",
            "head": "upernet",
            "head_channels": 16,
            "in_channels": 3,
            "num_outputs": 5,
            "source": "mmsegmentation",
        },
        attention=24,
    ),
    Example(
        id="upernet-resnet",
        make=resnet,
        hw=(64, 64),
        other_hw=(65, 97),
        description={
            "architecture": "upernet",
            "variant": "custom",
            "head_channels": 16,
            "num_outputs": 5,
        },
    ),
)
