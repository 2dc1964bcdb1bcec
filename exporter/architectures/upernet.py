"""UPerNet: a ResNet or Swin Transformer under the UPerNet decode head."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from exporter.architectures.backbones import BackboneShape, backbone_from_shape
from exporter.architectures.uper import POOL_SCALES, UperHead


@dataclass(frozen=True)
class UpernetShape:
    """Everything that decides the shapes of the parameters, and what no shape tells."""

    backbone: BackboneShape
    channels: int
    num_outputs: int
    pool_scales: tuple[int, ...] = POOL_SCALES
    align_corners: bool = False


class Upernet(nn.Module):
    """Normalised (N, in_channels, H, W) float -> logits (N, num_outputs, ~H/4, ~W/4) float."""

    def __init__(self, shape: UpernetShape) -> None:
        super().__init__()
        self.shape = shape
        self.backbone = backbone_from_shape(shape.backbone)
        self.decode_head = UperHead(
            shape.backbone.channels,
            shape.channels,
            shape.num_outputs,
            shape.pool_scales,
            shape.align_corners,
        )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.decode_head(self.backbone(x))
        return logits
