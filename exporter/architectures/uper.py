"""UPerNet's decode head: pyramid pooling of the last map, then a feature pyramid over all four.

Source: Xiao et al., "Unified Perceptual Parsing for Scene Understanding", ECCV 2018, in the layer
order of mmsegmentation 1.2's UPerHead (Apache-2.0), whose parameter names these are.

What makes the exported graph faster is in `exporter.rewrites.uper`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from engines.errors import ConfigError
from exporter.architectures.backbones import BackboneShape
from exporter.architectures.description import ALIGN_CORNERS, Hints, assumed_as_usual
from exporter.architectures.layers import ConvBn, hw_of, pool_to, resize_bilinear
from exporter.architectures.loading import LayerRules, count_children
from exporter.architectures.resnet import ResNetShape

POOL_SCALES = (1, 2, 3, 6)  # of every published model
# Module path -> path after `exporter.rewrites.uper`.
UPER_RULES: LayerRules = ((r"\.psp_modules\.(\d+)\.1\.conv$", (r".pooled.branches.\1.0.conv",)),)
# The pooled maps are small by nature; a damaged configuration shall not ask for large ones.
_MAX_SCALE = 64


class PoolingBranch(nn.Sequential):
    """Average pooling to `scale` x `scale` and a 1x1 convolution, whose name is "1"."""

    def __init__(self, scale: int, in_channels: int, channels: int) -> None:
        super().__init__(nn.Identity(), ConvBn(in_channels, channels))
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self[1](pool_to(x, self.scale))
        return out


class UperHead(nn.Module):
    """Four maps, finest first -> logits (N, num_outputs, h, w) of the finest map's size."""

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int,
        num_outputs: int,
        pool_scales: Sequence[int] = POOL_SCALES,
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        self.align_corners = align_corners
        *fine, last = in_channels
        self.psp_modules = nn.ModuleList(
            PoolingBranch(scale, last, channels) for scale in pool_scales
        )
        self.bottleneck = ConvBn(last + len(pool_scales) * channels, channels, 3)
        self.lateral_convs = nn.ModuleList(ConvBn(count, channels) for count in fine)
        self.fpn_convs = nn.ModuleList(ConvBn(channels, channels, 3) for _ in fine)
        self.fpn_bottleneck = ConvBn(len(in_channels) * channels, channels, 3)
        self.conv_seg = nn.Conv2d(channels, num_outputs, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        logits: Tensor = self.conv_seg(self.features(maps))
        return logits

    def features(self, maps: Sequence[Tensor]) -> Tensor:
        """(N, channels, h, w): what the classifier reads."""
        levels = self.pyramid(maps)
        hw = hw_of(levels[0])
        resized = [resize_bilinear(level, hw, self.align_corners) for level in levels]
        out: Tensor = self.fpn_bottleneck(torch.cat(resized, dim=1))
        return out

    def pyramid(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """(N, channels, …) at each map's own size."""
        *fine, last = maps
        levels = [conv(x) for conv, x in zip(self.lateral_convs, fine, strict=True)]
        levels.append(self.pooled(last))
        add_coarser(levels, self.align_corners)
        convs = [conv(x) for conv, x in zip(self.fpn_convs, levels[:-1], strict=True)]
        return [*convs, levels[-1]]

    def pooled(self, x: Tensor) -> Tensor:
        """The last map beside its averages at several scales, (N, channels, h, w)."""
        hw = hw_of(x)
        resized = [resize_bilinear(b(x), hw, self.align_corners) for b in self.psp_modules]
        out: Tensor = self.bottleneck(torch.cat([x, *resized], dim=1))
        return out


def add_coarser(levels: list[Tensor], align_corners: bool) -> None:
    """To each level (N, channels, h, w), finest first, the sum of all coarser ones, in place."""
    for i in range(len(levels) - 1, 0, -1):
        finer = levels[i - 1]
        levels[i - 1] = finer + resize_bilinear(levels[i], hw_of(finer), align_corners)


def pool_scales_of(named: Mapping[str, Tensor], prefix: str, hints: Hints) -> tuple[int, ...]:
    """The scales of the pooling branches of the head behind `prefix` ("decode_head.").

    Tensors tell their number alone. Raises ConfigError where that is not the number of the scales
    that `hints` name, or of the usual ones.
    """
    scales = POOL_SCALES if hints.pool_scales is None else tuple(hints.pool_scales)
    count = count_children(named, f"{prefix}psp_modules.")
    if len(scales) != count or not all(1 <= scale <= _MAX_SCALE for scale in scales):
        raise ConfigError(
            f"{count} pooling branches, and pool_scales {scales}",
            expected=f"as many scales as branches, each from 1 to {_MAX_SCALE}",
            do="keep the training configuration (pool_scales) with the checkpoint",
        )
    return scales


def assumed_of_upernet(backbone: BackboneShape, hints: Hints) -> tuple[str, ...]:
    """What is taken to be as in the published configurations, and was not said."""
    said: dict[str, object] = {
        f"The scales of pyramid pooling are taken to be {_numbers(POOL_SCALES)}": hints.pool_scales,
        ALIGN_CORNERS: hints.align_corners,
    }
    if isinstance(backbone, ResNetShape):
        strides = _numbers(backbone.strides)
        said[f"The backbone's strides are taken to be {strides}, without dilation"] = (
            hints.strides or hints.dilations
        )
    return assumed_as_usual(said)


def _numbers(values: tuple[int, ...]) -> str:
    return ", ".join(map(str, values))
