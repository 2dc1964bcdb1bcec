"""DeepLabV3+: a dilated ResNet, the image at several reaches (ASPP), and a small decoder.

Source: Chen et al., "Encoder-Decoder with Atrous Separable Convolution for Semantic Image
Segmentation", ECCV 2018, and mmsegmentation 1.2's configurations (Apache-2.0).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from exporter.architectures.aspp import AsppShape, SeparableAsppHead
from exporter.architectures.resnet import ResNet, ResNetShape


@dataclass(frozen=True)
class DeeplabV3PlusShape:
    backbone: ResNetShape
    head: AsppShape


class DeeplabV3Plus(nn.Module):
    """Normalised (N, in_channels, H, W) float -> logits (N, num_outputs, ~H/4, ~W/4) float."""

    def __init__(self, shape: DeeplabV3PlusShape) -> None:
        super().__init__()
        self.shape = shape
        self.backbone = ResNet(shape.backbone)
        self.decode_head = SeparableAsppHead(shape.head)

    def forward(self, x: Tensor) -> Tensor:
        return self.decode_head(self.backbone(x))
