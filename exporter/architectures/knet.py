"""K-Net: class kernels refined in stages by the pixels they gather.

Source: Zhang et al., "K-Net: Towards Unified Image Segmentation", NeurIPS 2021, and the layer order
of mmsegmentation 1.2 (Apache-2.0). Parameter names are mmsegmentation's, so that its checkpoints
load with ``strict=True``.

A usual decode head (ASPP or UPerNet) makes features and the first masks; its classifier's weights
are the first kernels. Each stage gathers the features under each class's mask, updates the kernels
with them, and multiplies kernels and features into the next masks. The last masks are the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from exporter.architectures.aspp import AsppHead, AsppShape
from exporter.architectures.backbones import BackboneShape, backbone_from_shape
from exporter.architectures.kernel_update import KernelUpdateHead, StageShape
from exporter.architectures.uper import UperHead


@dataclass(frozen=True)
class KnetShape:
    """Everything that decides the shapes of the parameters, and what no shape tells.

    `head_kind` is "deeplabv3" (features of ASPP with `head_dilations`) or "upernet" (pyramid
    pooling with `pool_scales`). `keep_outputs`: only the first logits are given back.
    """

    backbone: BackboneShape
    head_kind: str
    channels: int
    num_outputs: int
    stages: tuple[StageShape, ...]
    head_dilations: tuple[int, ...] = ()
    pool_scales: tuple[int, ...] = ()
    align_corners: bool = False
    keep_outputs: int | None = None


class UperKernelHead(UperHead):
    """`UperHead` that gives what its classifier reads too, as `AsppHead` does."""

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Four maps, finest first -> logits and the features that they are computed from."""
        features = self.features(maps)
        return self.conv_seg(features), features


class IterativeDecodeHead(nn.Module):
    """Maps of the backbone -> the first `keep_outputs` of the last stage's masks (N, K, h, w).

    Kernels attend to each other, so that no class can be left out before the end.
    """

    def __init__(self, shape: KnetShape) -> None:
        super().__init__()
        self.keep_outputs = shape.keep_outputs
        self.kernel_generate_head = _generate_head(shape)
        self.kernel_update_head = nn.ModuleList(KernelUpdateHead(stage) for stage in shape.stages)

    def forward(self, maps: list[Tensor]) -> Tensor:
        head = self.kernel_generate_head
        masks, features = head(maps[-1] if isinstance(head, AsppHead) else maps)
        kernels = head.conv_seg.weight.flatten(1)[None]
        for stage in self.kernel_update_head:
            masks, kernels = stage(features, kernels, masks)
        return masks if self.keep_outputs is None else masks[:, : self.keep_outputs]


class Knet(nn.Module):
    """Normalised (N, in_channels, H, W) float -> logits (N, num_outputs, h, w) float.

    (h, w) is the size of the features: 1/8 of the input with a dilated ResNet and ASPP, 1/4 with
    UPerNet.
    """

    def __init__(self, shape: KnetShape) -> None:
        super().__init__()
        self.shape = shape
        self.backbone = backbone_from_shape(shape.backbone)
        self.decode_head = IterativeDecodeHead(shape)

    def forward(self, x: Tensor) -> Tensor:
        return self.decode_head(self.backbone(x))


def _generate_head(shape: KnetShape) -> AsppHead | UperKernelHead:
    maps = shape.backbone.channels
    if shape.head_kind == "deeplabv3":
        aspp = AsppShape(maps[-1], shape.channels, shape.num_outputs, shape.head_dilations)
        return AsppHead(aspp)
    return UperKernelHead(
        maps, shape.channels, shape.num_outputs, shape.pool_scales, shape.align_corners
    )
