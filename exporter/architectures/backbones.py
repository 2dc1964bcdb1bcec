"""The backbones that several decode heads stand on: which one a checkpoint has, and its module."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn

from engines.errors import CheckpointError
from exporter.architectures.description import NO_HINTS, Hints
from exporter.architectures.loading import LayerRules
from exporter.architectures.resnet import ResNet, ResNetShape, resnet_shape
from exporter.architectures.swin import Swin, SwinShape, swin_shape

BackboneShape = ResNetShape | SwinShape

# Module path -> paths after `exporter.rewrites`; no layer of a ResNet moves.
BACKBONE_RULES: LayerRules = (
    (r"\.attn\.w_msa\.qkv$", tuple(f".attn.w_msa.{part}" for part in "qkv")),
)
# Convolutions take their BatchNorm over, the query's weights the attention's scale, and merged
# patches have their channels in another order.
_CHANGED = re.compile(
    r"^backbone\.(.*\.)?(conv\d?|stem\.\d|downsample\.(\d|norm)|w_msa\.(qkv|[qkv]))$"
)


def backbone_shape(
    named: Mapping[str, Tensor], prefix: str = "backbone.", hints: Hints = NO_HINTS
) -> BackboneShape:
    """From tensors under mmsegmentation's names; `hints` for what ResNet's do not tell.

    A tensor that is missed raises KeyError, see `loading.tensors_of`; CheckpointError for another
    backbone.
    """
    if f"{prefix}patch_embed.projection.weight" in named:
        return swin_shape(named, prefix)
    if f"{prefix}layer1.0.conv1.weight" in named:
        return resnet_shape(named, prefix, hints)
    first = sorted(key for key in named if key.startswith(prefix))[:3]
    raise CheckpointError(
        f"a backbone with {', '.join(first) or 'no tensors'}",
        expected="a ResNet or a Swin Transformer of mmsegmentation",
        do="give the checkpoint of a whole model with one of these backbones",
    )


def backbone_from_shape(shape: BackboneShape) -> nn.Module:
    """(N, in_channels, H, W) -> a list of four maps, the finest first, of `shape.channels`."""
    return Swin(shape) if isinstance(shape, SwinShape) else ResNet(shape)


def backbone_writes_the_same(module: str) -> bool:
    """`Architecture.writes_the_same` of a module of a backbone, and true of any other."""
    return _CHANGED.search(module) is None
