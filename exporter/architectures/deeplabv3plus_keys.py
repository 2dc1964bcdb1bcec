"""DeepLabV3+ checkpoints of mmsegmentation: detection and shapes.

Its tensors do not tell how far a dilated convolution reaches, nor which of them has a stride: the
configuration beside the weights says it, or the usual numbers are assumed and said to be.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from exporter.architectures.aspp import aspp_dilations, aspp_shape
from exporter.architectures.backbones import backbone_writes_the_same
from exporter.architectures.deeplabv3plus import DeeplabV3Plus, DeeplabV3PlusShape
from exporter.architectures.description import (
    ALIGN_CORNERS,
    NO_HINTS,
    Hints,
    ModelDescription,
    assumed_as_usual,
)
from exporter.architectures.loading import (
    load_strictly,
    tensors_of,
    usable_tensors,
    weights_after,
    with_first_outputs,
)
from exporter.architectures.resnet import resnet_shape, with_stride_8

NAME = "deeplabv3plus"
STYLE = "mmsegmentation"

_PROBES = (
    "backbone.layer1.0.conv1.weight",
    "decode_head.sep_bottleneck.0.depthwise_conv.conv.weight",
)


def recognises(keys: frozenset[str]) -> bool:
    return keys.issuperset(_PROBES)


def model_from_tensors(
    tensors: Mapping[str, Tensor], hints: Hints = NO_HINTS
) -> tuple[nn.Module, ModelDescription]:
    """See `Architecture.model_from_tensors`."""
    named = usable_tensors(tensors)
    with tensors_of("DeepLabV3+", STYLE):
        if hints.keep_outputs is not None:
            named = with_first_outputs(named, hints.keep_outputs)
        shape, assumed = _shape_from_tensors(named, hints)
        with torch.device("meta"):
            model = DeeplabV3Plus(shape)
    load_strictly(model, named, "DeepLabV3+")
    description = ModelDescription(
        architecture=NAME,
        variant=shape.backbone.name,
        head="separable ASPP",
        head_channels=shape.head.channels,
        in_channels=shape.backbone.in_channels,
        num_outputs=shape.head.num_outputs,
        parameters=sum(p.numel() for p in model.parameters()),
        source=STYLE,
        assumed=assumed,
    )
    return model.eval(), description


def layer_paths(module: str, _style: str) -> tuple[str, ...]:
    """See `Architecture.layer_paths`: no rewrite moves a layer."""
    return (module,)


def layer_weights(model: nn.Module) -> dict[str, Tensor]:
    """Weight of each layer as the checkpoint has it, by the path of `layer_paths`."""
    return weights_after(model, ())


def writes_the_same(module: str, _style: str) -> bool:
    """Whether those layers also write what that module wrote: not where BatchNorm is folded in."""
    return backbone_writes_the_same(module) and not module.endswith(".conv")


def _shape_from_tensors(
    named: Mapping[str, Tensor], hints: Hints
) -> tuple[DeeplabV3PlusShape, tuple[str, ...]]:
    hints, of_strides = with_stride_8(hints)
    backbone = resnet_shape(named, "backbone.", hints)
    dilations, of_dilations = aspp_dilations(named, "decode_head.", hints)
    head = aspp_shape(named, "decode_head.", dilations, bool(hints.align_corners))
    # No tensor fits other widths than the backbone's maps have, which strict loading then says.
    head = replace(head, in_channels=backbone.channels[-1], c1_channels=backbone.channels[0])
    of_corners = assumed_as_usual({ALIGN_CORNERS: hints.align_corners})
    return DeeplabV3PlusShape(backbone, head), of_strides + of_dilations + of_corners
