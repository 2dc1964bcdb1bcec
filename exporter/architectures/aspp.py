"""Atrous spatial pyramid pooling: the heads of DeepLabV3 and DeepLabV3+.

Sources: Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation", 2017 (the
pyramid with the image's mean), and "Encoder-Decoder with Atrous Separable Convolution for Semantic
Image Segmentation", ECCV 2018 (separable convolutions, the decoder); mmsegmentation 1.2's structure
(Apache-2.0) and parameter names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from engines.errors import ConfigError
from exporter.architectures.description import Hints
from exporter.architectures.layers import ConvBn, hw_of, resize_bilinear
from exporter.architectures.loading import count_children

# Those of mmsegmentation's configurations for backbones of output stride 8.
USUAL_DILATIONS = (1, 12, 24, 36)
_MAX_DILATION = 256


@dataclass(frozen=True)
class AsppShape:
    """`dilations`: one a branch; a branch of dilation 1 is a 1x1 convolution, others are 3x3.

    `c1_channels` and `c1_width` are the finer map's in DeepLabV3+'s decoder: as it comes and as it
    is concatenated.
    """

    in_channels: int
    channels: int
    num_outputs: int
    dilations: tuple[int, ...] = USUAL_DILATIONS
    align_corners: bool = False
    c1_channels: int = 0
    c1_width: int = 0


class SeparableConvBn(nn.Module):
    """Depthwise 3x3 and pointwise convolution, each with BatchNorm and ReLU."""

    def __init__(self, in_channels: int, out_channels: int, dilation: int = 1) -> None:
        super().__init__()
        self.depthwise_conv = ConvBn(
            in_channels, in_channels, 3, dilation=dilation, groups=in_channels
        )
        self.pointwise_conv = ConvBn(in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise_conv(self.depthwise_conv(x))


class PyramidFusion(ConvBn):
    """3x3 convolution, BatchNorm and ReLU over the maps and, before them, the image's mean."""

    def __init__(self, channels: int, num_maps: int) -> None:
        super().__init__((num_maps + 1) * channels, channels, 3)

    def forward(self, pooled: Tensor, maps: Sequence[Tensor]) -> Tensor:  # type: ignore[override]
        """`pooled` (N, channels, 1, 1) and maps (N, channels, h, w) -> (N, channels, h, w)."""
        # A single value resized is that value everywhere, whatever align_corners is.
        everywhere = resize_bilinear(pooled, hw_of(maps[0]), align_corners=False)
        return super().forward(torch.cat([everywhere, *maps], dim=1))


class Aspp(nn.Module):
    """What the two heads share."""

    def __init__(self, shape: AsppShape, *, separable: bool) -> None:
        super().__init__()
        width = shape.channels
        self.image_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), ConvBn(shape.in_channels, width))
        self.aspp_modules = nn.ModuleList(
            _branch(shape.in_channels, width, dilation, separable) for dilation in shape.dilations
        )
        self.bottleneck = PyramidFusion(width, len(shape.dilations))
        self.conv_seg = nn.Conv2d(width, shape.num_outputs, 1)

    def pyramid(self, x: Tensor) -> Tensor:
        """(N, in_channels, h, w) -> (N, channels, h, w)."""
        return self.bottleneck(self.image_pool(x), [branch(x) for branch in self.aspp_modules])


class AsppHead(Aspp):
    """mmsegmentation's ASPPHead; K-Net takes its first kernels from it."""

    def __init__(self, shape: AsppShape) -> None:
        super().__init__(shape, separable=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The coarsest map -> logits and the features that they are computed from, both (h, w)."""
        features = self.pyramid(x)
        return self.conv_seg(features), features


class SeparableAsppHead(Aspp):
    """mmsegmentation's DepthwiseSeparableASPPHead, the head of DeepLabV3+."""

    def __init__(self, shape: AsppShape) -> None:
        super().__init__(shape, separable=True)
        self.align_corners = shape.align_corners
        self.c1_bottleneck = ConvBn(shape.c1_channels, shape.c1_width)
        self.sep_bottleneck = nn.Sequential(
            SeparableConvBn(shape.channels + shape.c1_width, shape.channels),
            SeparableConvBn(shape.channels, shape.channels),
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps of the backbone, finest first -> logits as large as the finest."""
        fine = self.c1_bottleneck(maps[0])
        coarse = resize_bilinear(self.pyramid(maps[-1]), hw_of(fine), self.align_corners)
        return self.conv_seg(self.sep_bottleneck(torch.cat([coarse, fine], dim=1)))


def _branch(in_channels: int, channels: int, dilation: int, separable: bool) -> nn.Module:
    if dilation == 1:
        return ConvBn(in_channels, channels)
    if separable:
        return SeparableConvBn(in_channels, channels, dilation)
    return ConvBn(in_channels, channels, 3, dilation=dilation)


# --- from tensors ---------------------------------------------------------------------------------


def aspp_dilations(
    named: Mapping[str, Tensor], prefix: str, hints: Hints
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Dilations of the pyramid at `prefix` ("decode_head."), and what was assumed about them.

    Raises ConfigError for hints that do not fit, and for another number of branches than usual of
    which nobody says the dilations.
    """
    count = count_children(named, f"{prefix}aspp_modules.")
    said = hints.head_dilations
    if said is None and count == len(USUAL_DILATIONS):
        numbers = ", ".join(map(str, USUAL_DILATIONS))
        sentence = (
            f"The dilations of the pyramid (ASPP) are taken to be {numbers}, the usual ones: no "
            "configuration says so, and other dilations have the same weights."
        )
        return USUAL_DILATIONS, (sentence,)
    if said is None or len(said) != count or not all(1 <= d <= _MAX_DILATION for d in said):
        raise ConfigError(
            f"dilations {said} for a pyramid (ASPP) of {count} branches",
            expected=f"one number from 1 to {_MAX_DILATION} for each branch",
            do="give the checkpoint with its configuration, whose decode_head has the dilations",
        )
    return tuple(said), ()


def aspp_shape(
    named: Mapping[str, Tensor], prefix: str, dilations: tuple[int, ...], align_corners: bool
) -> AsppShape:
    """Shape of the head whose names begin with `prefix`; DeepLabV3+'s when it has a decoder.

    KeyError or IndexError for a missing tensor, for `loading.tensors_of`.
    """
    classifier = named[f"{prefix}conv_seg.weight"]
    pool = named[f"{prefix}image_pool.1.conv.weight"]
    fine = named.get(f"{prefix}c1_bottleneck.conv.weight")
    return AsppShape(
        in_channels=pool.shape[1],
        channels=pool.shape[0],
        num_outputs=classifier.shape[0],
        dilations=dilations,
        align_corners=align_corners,
        c1_channels=0 if fine is None else fine.shape[1],
        c1_width=0 if fine is None else fine.shape[0],
    )
