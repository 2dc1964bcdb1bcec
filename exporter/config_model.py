"""What the `model` of an mmsegmentation configuration says about backbone and decode head.

Where it is silent about a layer whose kind it names, mmsegmentation's own default is what the
training used, and is given (values read from mmsegmentation 0.28 and 1.2.2, which agree).
"""

from __future__ import annotations

from typing import Any

from exporter.config_fields import count_of, counts_of, dict_of, flag_of, kind_of

# Larger ones appear in no configuration; a dilation reaches beyond the map long before.
_MAX_STAGES = 8
_MAX_STRIDE = 8
_MAX_DILATION = 256
_MAX_SCALE = 64
_MAX_HEADS = 256

_RESNET_DEFAULTS = {
    "strides": (1, 2, 2, 2),
    "dilations": (1, 1, 1, 1),
    "contract_dilation": False,
}
_ASPP_HEADS = ("ASPPHead", "DepthwiseSeparableASPPHead")
_DEFAULT_ASPP_DILATIONS = (1, 6, 12, 18)
_POOLING_HEADS = ("UPerHead", "PSPHead")
_DEFAULT_POOL_SCALES = (1, 2, 3, 6)
_DEFAULT_KNET_HEADS = 8


def backbone_settings(model: dict[str, Any], notes: list[str], *, complete: bool) -> dict[str, Any]:
    """ConfigSettings' fields about the backbone; those of a ResNet only for one.

    `complete`: the configuration does not build on files that were not read, so that what it
    leaves out has its default. What has to be ignored is added to `notes`.
    """
    backbone = dict_of(model.get("backbone"))
    kind = kind_of(backbone)
    settings: dict[str, Any] = {"backbone_type": kind}
    if kind is None or not kind.startswith("ResNet"):
        return settings
    stated = {**_RESNET_DEFAULTS, **backbone} if complete else backbone
    layers = {
        "strides": _counts(stated, "strides", _MAX_STAGES, _MAX_STRIDE, notes),
        "dilations": _counts(stated, "dilations", _MAX_STAGES, _MAX_DILATION, notes),
        "contract_dilation": flag_of(stated.get("contract_dilation")),
    }
    if any(stated.get(name) is not None and value is None for name, value in layers.items()):
        # Two of the three beside a guess for the other would be a network that nobody trained.
        notes.append("strides and dilations of the configuration's backbone were not used")
        return settings
    return settings | layers


def head_settings(model: dict[str, Any], notes: list[str], *, complete: bool) -> dict[str, Any]:
    """ConfigSettings' fields about the decode head; see `backbone_settings`.

    Of a cascade the last head counts; K-Net's classes, dilations and pool scales are those of the
    head that makes its first prediction.
    """
    head = decode_head_of(model)
    first = dict_of(head.get("kernel_generate_head")) or head
    classes = head if "num_classes" in head else first
    kind = kind_of(first)
    defaults: dict[str, object] = {}
    if complete and kind in _ASPP_HEADS:
        defaults["dilations"] = _DEFAULT_ASPP_DILATIONS
    if complete and kind in _POOLING_HEADS:
        defaults["pool_scales"] = _DEFAULT_POOL_SCALES
    stated = {**defaults, **first}
    return {
        "decode_head_type": kind_of(head),
        "num_classes": count_of(classes.get("num_classes")),
        "align_corners": flag_of(head.get("align_corners", first.get("align_corners"))),
        "head_dilations": _counts(stated, "dilations", _MAX_STAGES, _MAX_DILATION, notes),
        "pool_scales": _counts(stated, "pool_scales", _MAX_STAGES, _MAX_SCALE, notes),
        "num_heads": _attention_heads(head, notes, complete=complete),
    }


def decode_head_of(model: dict[str, Any]) -> dict[str, Any]:
    """The last head of a cascade; mmdetection's models call theirs `panoptic_head`."""
    heads = model.get("decode_head", model.get("panoptic_head"))
    return dict_of(heads[-1] if isinstance(heads, list) and heads else heads)


def update_heads_of(head: dict[str, Any]) -> list[dict[str, Any]]:
    """K-Net's stages; none of another head."""
    updates = head.get("kernel_update_head")
    return [dict_of(update) for update in updates] if isinstance(updates, list) else []


def attentions_of(transformer: dict[str, Any]) -> list[dict[str, Any]]:
    """Of each layer of mmdetection's `transformer_decoder` or `encoder`, those that are stated."""
    layer = dict_of(transformer.get("layer_cfg"))  # mmdet 3
    older = dict_of(transformer.get("transformerlayers")).get("attn_cfgs", [])  # mmdet 2
    stated = [layer.get("self_attn_cfg"), layer.get("cross_attn_cfg")]
    stated += older if isinstance(older, list) else [older]
    return [attention for attention in stated if isinstance(attention, dict)]


def _attention_heads(head: dict[str, Any], notes: list[str], *, complete: bool) -> int | None:
    """Heads of the decoder's attention in Segmenter, K-Net and Mask2Former."""
    updates, decoder = update_heads_of(head), dict_of(head.get("transformer_decoder"))
    if updates:
        stated = updates[0].get("num_heads", _DEFAULT_KNET_HEADS if complete else None)
    elif decoder:
        stated = next((a.get("num_heads") for a in attentions_of(decoder)), None)
    else:
        stated = head.get("num_heads")
    if stated is None:
        return None
    count = count_of(stated)
    if count is None or count > _MAX_HEADS:
        notes.append(f"num_heads of the decode head is no whole number up to {_MAX_HEADS}: ignored")
        return None
    return count


def _counts(
    record: dict[str, Any], name: str, length: int, largest: int, notes: list[str]
) -> tuple[int, ...] | None:
    stated = record.get(name)
    if stated is None:
        return None
    counts = counts_of(stated, length=length, largest=largest)
    if counts is None:
        notes.append(
            f"{name} of the configuration are not up to {length} whole numbers from 1 to "
            f"{largest}: ignored"
        )
    return counts
