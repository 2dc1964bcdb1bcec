"""What an mmsegmentation configuration says that `exporter.architectures` does not compute.

Each is a setting with which the same tensors give another answer, so that no loading notices it.
Names and defaults are those of mmsegmentation 0.28 and 1.2.2 and of mmdetection 2 and 3.3.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from exporter.config_fields import dict_of, kind_of
from exporter.config_model import attentions_of, decode_head_of, update_heads_of

# Path of a field -> whether what is stated there is computed here; lists are tuples. A field that
# is not stated has its default, which is, but for `_OTHER_DEFAULTS`.
Check = Callable[[object], bool]
Checks = Mapping[str, Check]


def _one_of(*values: object) -> Check:
    return lambda stated: stated in values


def _all(number: int, part: slice = slice(None)) -> Check:
    """Whether what is stated is a tuple with that number alone in a part of it."""
    return lambda stated: (
        isinstance(stated, tuple) and all(value == number for value in stated[part])
    )


_EPS: Checks = {"norm_cfg.eps": _one_of(None, 1e-5)}
_RELU: Checks = {"act_cfg.type": _one_of("ReLU")}
_GELU: Checks = {"act_cfg.type": _one_of("GELU")}
_CONV: Checks = {**_EPS, "conv_cfg.type": _one_of(None, "Conv", "Conv2d")}
_HEAD: Checks = {**_RELU, **_CONV}
_RESNET: Checks = {
    **_CONV,
    "style": _one_of("pytorch"),
    "multi_grid": lambda stated: stated is None or _all(1)(stated),
}
_SINES: Checks = {
    "positional_encoding.normalize": _one_of(True),
    "positional_encoding.temperature": _one_of(10000),
    "positional_encoding.scale": _one_of(2 * math.pi),
    "positional_encoding.eps": _one_of(1e-6),
    "positional_encoding.offset": _one_of(0),
}
_UPDATE_HEAD: Checks = {
    **_RELU,
    "ffn_act_cfg.type": _one_of("ReLU"),
    "feat_gather_stride": _one_of(1),
    "mask_transform_stride": _one_of(1),
    "feat_transform_cfg.act_cfg": _one_of(None),
    "feat_transform_cfg.conv_cfg.type": _CONV["conv_cfg.type"],
    "kernel_updator_cfg.gate_sigmoid": _one_of(True),
    "kernel_updator_cfg.activate_out": _one_of(False),
    **{f"kernel_updator_cfg.{path}": check for path, check in {**_RELU, **_EPS}.items()},
}
_LAYERS: Checks = {
    **{f"layer_cfg.{path}": check for path, check in _EPS.items()},
    "layer_cfg.ffn_cfg.act_cfg.type": _one_of("ReLU"),
    "transformerlayers.ffn_cfgs.act_cfg.type": _one_of("ReLU"),  # mmdet 2
}
_ORDER = "transformerlayers.operation_order"
_MASK2FORMER: Checks = {
    **_SINES,
    **{f"pixel_decoder.{path}": check for path, check in {**_SINES, **_RELU, **_EPS}.items()},
    "pixel_decoder.norm_cfg.num_groups": _one_of(32),
    **{f"pixel_decoder.encoder.{path}": check for path, check in _LAYERS.items()},
    f"pixel_decoder.encoder.{_ORDER}": _one_of(("self_attn", "norm", "ffn", "norm")),
    **{f"transformer_decoder.{path}": check for path, check in _LAYERS.items()},
    f"transformer_decoder.{_ORDER}": _one_of(
        ("cross_attn", "norm", "self_attn", "norm", "ffn", "norm")
    ),
}
_CHECKS: Mapping[str | None, Checks] = {
    "ResNet": _RESNET,
    "ResNetV1c": _RESNET,
    "ResNetV1d": _RESNET,
    # The first stride is the patches' size, which a tensor tells.
    "SwinTransformer": {
        **_GELU, **_EPS, "qk_scale": _one_of(None), "strides": _all(2, slice(1, None)),
    },
    # The width of a head is that of the first stage.
    "MixVisionTransformer": {
        **_GELU,
        "norm_cfg.eps": _one_of(1e-6),
        "strides": _one_of((4, 2, 2, 2)),
        "num_heads": _all(1, slice(1)),
    },
    "ASPPHead": _HEAD,
    "DepthwiseSeparableASPPHead": _HEAD,
    "UPerHead": _HEAD,
    "SegformerHead": {**_HEAD, "interpolate_mode": _one_of("bilinear")},
    "SegmenterMaskTransformerHead": {**_GELU, **_EPS},
    "Mask2FormerHead": _MASK2FORMER,
}  # fmt: skip
# Of Segmenter alone: UPerNet and SETR on a ViT, which are not read here, have others. An epsilon
# of 1e-5 in place of 1e-6 changes a ViT's features by less than 1e-4 of their deviation.
_VIT: Checks = {
    **_GELU,
    "norm_cfg.eps": _one_of(1e-6, 1e-5),
    "with_cls_token": _one_of(True),
    "interpolate_mode": _one_of("bicubic"),
    "patch_pad": _one_of("corner"),
}
_VIT_HEADS = ("SegmenterMaskTransformerHead", "FCNHead")
_VIT_HEAD_WIDTH = 64
_MAX_STAGES = 100
# By the last two names of a path: where the first is stated and the second is not.
_OTHER_DEFAULTS = {"feat_transform_cfg.act_cfg": "ReLU", "positional_encoding.normalize": False}


def unusual_settings(model: dict[str, Any]) -> tuple[str, ...]:
    """What backbone and decode head have that is not computed here: "backbone.style='caffe'".

    Only what is stated counts, and of the kinds of layers that are read here.
    """
    backbone, head = dict_of(model.get("backbone")), decode_head_of(model)
    first, updates = dict_of(head.get("kernel_generate_head")), update_heads_of(head)
    found = [*_unusual("backbone", backbone), *_unusual("decode_head", head)]
    found += _unusual("kernel_generate_head", first)
    for i, update in enumerate(updates[:_MAX_STAGES]):
        found += _unusual(f"kernel_update_head.{i}", update, _UPDATE_HEAD)
    if kind_of(backbone) == "VisionTransformer" and kind_of(head) in _VIT_HEADS:
        found += [*_unusual("backbone", backbone, _VIT), *_of_vit_heads(backbone)]
    encoder = dict_of(dict_of(head.get("pixel_decoder")).get("encoder"))
    decoder = dict_of(head.get("transformer_decoder"))
    found += _of_attention([*updates, *attentions_of(decoder), *attentions_of(encoder)])
    found += _of_outputs(first or head)
    return tuple(found)


def _unusual(name: str, record: dict[str, Any], checks: Checks | None = None) -> Iterator[str]:
    if checks is None:
        checks = _CHECKS.get(kind_of(record), {})
    for path, fits in checks.items():
        for stated in _stated(record, path):
            if not fits(stated):
                yield f"{name}.{path}={reprlib.repr(stated)}"


def _stated(record: dict[str, Any], path: str) -> tuple[object, ...]:
    """The one value at `path` (a.b.c); none where it is not stated. Lists are tuples.

    None, or what is no dictionary, is stated for all fields below it.
    """
    *above, name = path.split(".")
    for part in above:
        inner = record.get(part, record)
        if inner is record:
            return ()
        if not isinstance(inner, dict):
            return (inner,)
        record = inner
    default = ".".join([*above[-1:], name])
    if name in record:
        value = record[name]
        return (tuple(value) if isinstance(value, list) else value,)
    return (_OTHER_DEFAULTS[default],) if default in _OTHER_DEFAULTS else ()


def _of_vit_heads(backbone: dict[str, Any]) -> Iterator[str]:
    """A head of a ViT is taken to have 64 channels where these divide the width."""
    width, heads = backbone.get("embed_dims"), backbone.get("num_heads")
    if type(width) is not int or type(heads) is not int or width % _VIT_HEAD_WIDTH:
        return
    if width != _VIT_HEAD_WIDTH * heads:
        yield f"backbone.num_heads={heads} for {width} channels"


def _of_attention(layers: list[dict[str, Any]]) -> Iterator[str]:
    """One number of heads is read for all."""
    counts = [layer["num_heads"] for layer in layers if "num_heads" in layer]
    if any(count != counts[0] for count in counts):
        yield f"attentions with num_heads {reprlib.repr(counts)}"


def _of_outputs(head: dict[str, Any]) -> Iterator[str]:
    """A single output is compared with a threshold there, and here the largest is taken."""
    for name in ("num_classes", "out_channels"):
        if head.get(name) == 1 and kind_of(head) != "Mask2FormerHead":
            yield f"decode_head.{name}=1"
