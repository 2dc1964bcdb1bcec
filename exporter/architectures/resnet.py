"""ResNet as segmentation uses it: dilated stages, deep stem (V1c), average pooling (V1d).

Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016; the stem and the
pooled shortcut of He et al., "Bag of Tricks for Image Classification with Convolutional Neural
Networks", CVPR 2019; and the structure of mmsegmentation 1.2 (Apache-2.0), whose parameter names
these are, without the prefix. "pytorch" style: the 3x3 convolution of a bottleneck has the stride.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from engines.errors import ConfigError
from exporter.architectures.description import Hints
from exporter.architectures.layers import hw_of
from exporter.architectures.loading import count_children

STAGES = 4
# Strides, dilations and whether the first block of a dilated stage has half its dilation.
_STRIDE_32 = ((1, 2, 2, 2), (1, 1, 1, 1), False)
_STRIDE_8 = ((1, 2, 1, 1), (1, 1, 2, 4), True)
# No network in use has more; a damaged configuration shall not ask for terabytes of padding.
_MAX_STRIDE, _MAX_DILATION = 4, 64

_VARIANTS: dict[tuple[bool, tuple[int, ...]], str] = {
    (False, (2, 2, 2, 2)): "r18",
    (False, (3, 4, 6, 3)): "r34",
    (True, (3, 4, 6, 3)): "r50",
    (True, (3, 4, 23, 3)): "r101",
    (True, (3, 8, 36, 3)): "r152",
}


@dataclass(frozen=True)
class ResNetShape:
    """Everything that decides the parameters' shapes, then what no tensor tells.

    `base_width` is the first stage's width inside its blocks, `stem_width` what the stem writes.
    `contract_dilation`: the first block of a stage with dilation above 1 has half of it.
    """

    in_channels: int = 3
    depths: tuple[int, ...] = (3, 4, 6, 3)
    deep_stem: bool = True
    strides: tuple[int, ...] = _STRIDE_32[0]
    dilations: tuple[int, ...] = _STRIDE_32[1]
    contract_dilation: bool = False
    base_width: int = 64
    bottleneck: bool = True
    avg_down: bool = False
    stem_width: int = 64

    @property
    def channels(self) -> tuple[int, ...]:
        """Of the four maps."""
        expansion = Bottleneck.EXPANSION if self.bottleneck else BasicBlock.EXPANSION
        return tuple(self.base_width * 2**stage * expansion for stage in range(STAGES))

    @property
    def name(self) -> str:
        """ "r50", "r101", …; "custom" for depths or widths that nobody published."""
        if (self.base_width, self.stem_width) != (64, 64):
            return "custom"
        return _VARIANTS.get((self.bottleneck, self.depths), "custom")


class Block(nn.Module):
    """What the two kinds of residual block share."""

    EXPANSION = 1

    def __init__(self, downsample: nn.Sequential | None) -> None:
        super().__init__()
        self.downsample = downsample

    def residual(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        return F.relu(self.residual(x) + identity)


class BasicBlock(Block):
    """Two 3x3 convolutions; only the first has the stride and the dilation."""

    def __init__(
        self,
        in_channels: int,
        width: int,
        stride: int,
        dilation: int,
        downsample: nn.Sequential | None,
    ) -> None:
        super().__init__(downsample)
        self.conv1 = _conv3x3(in_channels, width, stride, dilation)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv3x3(width, width)
        self.bn2 = nn.BatchNorm2d(width)

    def residual(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return self.bn2(self.conv2(x))


class Bottleneck(Block):
    """1x1, 3x3 with the stride and the dilation, 1x1 to four times the width."""

    EXPANSION = 4

    def __init__(
        self,
        in_channels: int,
        width: int,
        stride: int,
        dilation: int,
        downsample: nn.Sequential | None,
    ) -> None:
        super().__init__(downsample)
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv3x3(width, width, stride, dilation)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width * self.EXPANSION, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width * self.EXPANSION)

    def residual(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return self.bn3(self.conv3(x))


class CeilAveragePool(nn.Module):
    """Means of `size` x `size` squares; those that reach over the edge average what is inside."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        if self.size == 1:
            return x
        over = any(length % self.size for length in hw_of(x))
        return F.avg_pool2d(x, self.size, ceil_mode=over, count_include_pad=False)


class ResNet(nn.Module):
    """Normalised (N, in_channels, H, W) -> four maps; their strides follow from `shape.strides`."""

    def __init__(self, shape: ResNetShape) -> None:
        super().__init__()
        self.shape = shape
        self.stem: nn.Sequential | None = None
        if shape.deep_stem:
            self.stem = _deep_stem(shape.in_channels, shape.stem_width)
        else:
            self.conv1 = nn.Conv2d(shape.in_channels, shape.stem_width, 7, 2, 3, bias=False)
            self.bn1 = nn.BatchNorm2d(shape.stem_width)
        in_channels = shape.stem_width
        for stage in range(STAGES):
            self.add_module(f"layer{stage + 1}", _stage(shape, stage, in_channels))
            in_channels = shape.channels[stage]

    def forward(self, x: Tensor) -> list[Tensor]:
        x = F.relu(self.bn1(self.conv1(x))) if self.stem is None else self.stem(x)
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        maps = []
        for stage in range(STAGES):
            x = self.get_submodule(f"layer{stage + 1}")(x)
            maps.append(x)
        return maps


def _conv3x3(in_channels: int, out_channels: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride, dilation, dilation, bias=False)


def _deep_stem(in_channels: int, width: int) -> nn.Sequential:
    half = width // 2
    return nn.Sequential(
        _conv3x3(in_channels, half, stride=2),
        nn.BatchNorm2d(half),
        nn.ReLU(),
        _conv3x3(half, half),
        nn.BatchNorm2d(half),
        nn.ReLU(),
        _conv3x3(half, width),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    )


def _stage(shape: ResNetShape, stage: int, in_channels: int) -> nn.Sequential:
    block = Bottleneck if shape.bottleneck else BasicBlock
    width, out_channels = shape.base_width * 2**stage, shape.channels[stage]
    stride, dilation = shape.strides[stage], shape.dilations[stage]
    downsample = None
    if stride != 1 or in_channels != out_channels:
        downsample = _shortcut(in_channels, out_channels, stride, shape.avg_down)
    first = dilation // 2 if shape.contract_dilation and dilation > 1 else dilation
    blocks = [block(in_channels, width, stride, first, downsample)]
    blocks += [block(out_channels, width, 1, dilation, None) for _ in range(1, shape.depths[stage])]
    return nn.Sequential(*blocks)


def _shortcut(in_channels: int, out_channels: int, stride: int, avg_down: bool) -> nn.Sequential:
    pool = [CeilAveragePool(stride)] if avg_down else []
    conv = nn.Conv2d(in_channels, out_channels, 1, 1 if avg_down else stride, bias=False)
    return nn.Sequential(*pool, conv, nn.BatchNorm2d(out_channels))


# --- from tensors ---------------------------------------------------------------------------------


def resnet_shape(named: Mapping[str, Tensor], prefix: str, hints: Hints) -> ResNetShape:
    """The shape of the ResNet whose tensors' names begin with `prefix` ("backbone.").

    What hints do not say is as in an ordinary ResNet, output stride 32; see `with_stride_8`.
    Raises KeyError or IndexError for a missing tensor, for `loading.tensors_of`, and ConfigError
    for hints that do not fit.
    """
    strides, dilations, contract = _STRIDE_32
    deep_stem = f"{prefix}stem.0.weight" in named
    stem = named[f"{prefix}stem.0.weight" if deep_stem else f"{prefix}conv1.weight"]
    return ResNetShape(
        in_channels=stem.shape[1],
        depths=tuple(count_children(named, f"{prefix}layer{i + 1}.") for i in range(STAGES)),
        deep_stem=deep_stem,
        strides=_one_a_stage("strides", hints.strides, strides, _MAX_STRIDE),
        dilations=_one_a_stage("dilations", hints.dilations, dilations, _MAX_DILATION),
        contract_dilation=contract if hints.contract_dilation is None else hints.contract_dilation,
        base_width=named[f"{prefix}layer1.0.conv1.weight"].shape[0],
        bottleneck=f"{prefix}layer1.0.conv3.weight" in named,
        avg_down=f"{prefix}layer2.0.downsample.2.weight" in named,
        stem_width=stem.shape[0] * (2 if deep_stem else 1),
    )


def _one_a_stage(
    name: str, said: Sequence[int] | None, otherwise: tuple[int, ...], largest: int
) -> tuple[int, ...]:
    if said is None:
        return otherwise
    if len(said) != STAGES or not all(1 <= number <= largest for number in said):
        raise ConfigError(
            f"{name} {tuple(said)} for the backbone",
            expected=f"{STAGES} numbers from 1 to {largest}, one a stage",
            do="correct the backbone in the checkpoint's configuration",
        )
    return tuple(said)


def with_stride_8(hints: Hints) -> tuple[Hints, tuple[str, ...]]:
    """`hints` with mmsegmentation's "D8" ResNet where they say nothing on strides and dilations.

    And, in that case, the sentence for `ModelDescription.assumed`. A configuration that says one of
    them says all: the others are then the class's own defaults.
    """
    if (hints.strides, hints.dilations, hints.contract_dilation) != (None, None, None):
        return hints, ()
    strides, dilations, contract = _STRIDE_8
    filled = dataclasses.replace(
        hints, strides=strides, dilations=dilations, contract_dilation=contract
    )
    sentence = (
        "The backbone's strides are taken to be 1, 2, 1, 1 and its dilations 1, 1, 2, 4 (output "
        "stride 8), the usual ones: no configuration says so, and other strides have the same "
        "weights."
    )
    return filled, (sentence,)
