"""K-Net's examples: kernels from each head, ResNet and Swin."""

from __future__ import annotations

from torch import nn

from exporter.architectures.backbones import BackboneShape
from exporter.architectures.description import Hints
from exporter.architectures.kernel_update import StageShape
from exporter.architectures.knet import Knet, KnetShape
from exporter.architectures.resnet import ResNetShape
from exporter.architectures.swin import SwinShape
from tests.architectures.example import Example, lively

RESNET_8 = ResNetShape(
    depths=(1, 1, 2, 1),
    strides=(1, 2, 1, 1),
    dilations=(1, 1, 2, 4),
    contract_dilation=True,
    base_width=4,
    stem_width=8,
)
SWIN = SwinShape(3, dim=8, depths=(2, 2, 2, 2), num_heads=(1, 2, 2, 4), window=4)
# Two pieces a kernel; the stages differ where a configuration may let them.
STAGE = StageShape(
    channels=16,
    update_channels=8,
    num_heads=4,
    hidden_channels=(24,),
    num_mask_layers=1,
    has_feature_transform=True,
)


def shape_of(head_kind: str, backbone: BackboneShape, **changes: object) -> KnetShape:
    """Three equal stages, 5 outputs; `changes` are fields of KnetShape."""
    values: dict[str, object] = {
        "backbone": backbone,
        "head_kind": head_kind,
        "channels": 16,
        "num_outputs": 5,
        "stages": (STAGE,) * 3,
        "head_dilations": (1, 2, 3, 4) if head_kind == "deeplabv3" else (),
        "pool_scales": (1, 2, 3, 6) if head_kind == "upernet" else (),
    }
    return KnetShape(**(values | changes))  # type: ignore[arg-type]


def network(head_kind: str, backbone: BackboneShape) -> nn.Module:
    return lively(Knet(shape_of(head_kind, backbone)))


def _description(head_kind: str) -> dict[str, object]:
    return {
        "architecture": "knet",
        "variant": f"custom-{head_kind}",
        "head": head_kind,
        "head_channels": 16,
        "in_channels": 3,
        "num_outputs": 5,
        "source": "mmsegmentation",
    }


EXAMPLES = (
    Example(
        id="knet-deeplabv3",
        make=lambda: network("deeplabv3", RESNET_8),
        hw=(64, 64),
        other_hw=(72, 50),
        description=_description("deeplabv3"),
        hints=Hints(head_dilations=(1, 2, 3, 4), num_heads=4),
        attention=9,
    ),
    Example(
        id="knet-upernet",
        make=lambda: network("upernet", SWIN),
        hw=(64, 64),
        other_hw=(72, 90),
        description=_description("upernet"),
        hints=Hints(num_heads=4),
        attention=9,
    ),
)
