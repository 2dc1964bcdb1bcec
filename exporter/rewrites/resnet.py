"""ResNet's rewrite: every BatchNorm in the convolution before it."""

from __future__ import annotations

import itertools

from torch import nn

from exporter.architectures.resnet import Block, ResNet
from exporter.rewrites.pieces import folded_conv

_PAIRS = (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"))


def rewrite(model: nn.Module, _input_hw: tuple[int, int] | None) -> None:
    """In every ResNet. A convolution keeps its path; the identity takes BatchNorm's."""
    for backbone in model.modules():
        if isinstance(backbone, ResNet):
            for part in list(backbone.modules()):
                _fold(part)


def _fold(part: nn.Module) -> None:
    if isinstance(part, ResNet | Block):
        pairs = [pair for pair in _PAIRS if hasattr(part, pair[0])]
    elif isinstance(part, nn.Sequential):
        names = [name for name, _ in part.named_children()]
        pairs = list(itertools.pairwise(names))
    else:
        return
    for conv_name, norm_name in pairs:
        conv, norm = part.get_submodule(conv_name), part.get_submodule(norm_name)
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            setattr(part, conv_name, folded_conv(conv, norm))
            setattr(part, norm_name, nn.Identity())
