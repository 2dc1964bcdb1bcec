"""Google's ViT-AugReg weights (.npz, of flax) under mmsegmentation's names for its backbone.

As mmsegmentation's converter vitjax2mmseg maps them, for any depth. Source of the files: Steiner et
al., "How to train your ViT?", 2021. Segmenters are trained from them; they have no decode head.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.errors import CheckpointError

Array = NDArray[Any]
Arrays = Mapping[str, Array]

_PROBES = frozenset({"embedding/kernel", "Transformer/posembed_input/pos_embedding"})
_BLOCK = re.compile(r"Transformer/encoderblock_([0-9]{1,4})/(.+)")
_CLASSIFIER = ("head/", "pre_logits/")  # of ImageNet, which no segmentation model has
_ATTENTION = "MultiHeadDotProductAttention_1"

_TOP = {
    "embedding/kernel": "patch_embed.projection.weight",
    "embedding/bias": "patch_embed.projection.bias",
    "Transformer/posembed_input/pos_embedding": "pos_embed",
    "cls": "cls_token",
    "Transformer/encoder_norm/scale": "ln1.weight",
    "Transformer/encoder_norm/bias": "ln1.bias",
}
_IN_BLOCK = {
    "LayerNorm_0/scale": "ln1.weight",
    "LayerNorm_0/bias": "ln1.bias",
    "LayerNorm_2/scale": "ln2.weight",
    "LayerNorm_2/bias": "ln2.bias",
    f"{_ATTENTION}/out/kernel": "attn.attn.out_proj.weight",
    f"{_ATTENTION}/out/bias": "attn.attn.out_proj.bias",
    "MlpBlock_3/Dense_0/kernel": "ffn.layers.0.0.weight",
    "MlpBlock_3/Dense_0/bias": "ffn.layers.0.0.bias",
    "MlpBlock_3/Dense_1/kernel": "ffn.layers.1.weight",
    "MlpBlock_3/Dense_1/bias": "ffn.layers.1.bias",
}
_PARTS = ("query", "key", "value")


def is_augreg(names: frozenset[str]) -> bool:
    return names >= _PROBES


def tensors_from_augreg(arrays: Arrays) -> tuple[dict[str, Array], tuple[str, ...]]:
    """(arrays by mmsegmentation's names, what was left out), where `is_augreg`.

    Arrays called decode_head.* are kept as they are, and the ViT's names then begin with
    "backbone.", as in a whole model. Raises CheckpointError for arrays that a ViT does not have
    (the hybrids with a ResNet), and for those whose axes are not a ViT's.
    """
    whole = any(name.startswith("decode_head.") for name in arrays)
    prefix = "backbone." if whole else ""
    named: dict[str, Array] = {}
    left_out = 0
    for name, array in arrays.items():
        if name.startswith("decode_head."):
            named[name] = array
        elif name.startswith(_CLASSIFIER):
            left_out += 1
        elif (new := _new_name(name)) is not None:
            named[prefix + new] = _turned(name, array)
    for block in sorted({m[1] for m in map(_BLOCK.fullmatch, arrays) if m}):
        for kind in ("kernel", "bias"):
            end = "weight" if kind == "kernel" else "bias"
            target = f"{prefix}layers.{int(block)}.attn.attn.in_proj_{end}"
            named[target] = _joined(arrays, block, kind)
    notes = (f"left out {left_out} arrays of the ViT's classifier",) if left_out else ()
    return named, ("ViT-AugReg arrays under mmsegmentation's names", *notes)


def _new_name(name: str) -> str | None:
    """None for q, k and v, which become one tensor. Raises CheckpointError for unknown names."""
    if name in _TOP:
        return _TOP[name]
    match = _BLOCK.fullmatch(name)
    if match and match[2] in _IN_BLOCK:
        return f"layers.{int(match[1])}.{_IN_BLOCK[match[2]]}"
    if match and match[2] in {f"{_ATTENTION}/{p}/{k}" for p in _PARTS for k in ("kernel", "bias")}:
        return None
    raise CheckpointError(
        f"a ViT-AugReg file with the array {name[:80]!r}",
        expected="the arrays of a plain ViT (Ti, S, B or L)",
        do="take a file without a ResNet before the ViT (no R50+ or R26+ in its name)",
    )


def _turned(name: str, array: Array) -> Array:
    """flax multiplies from the right, and its convolutions are (kh, kw, in, out)."""
    if name == "embedding/kernel":
        return _with_axes(name, array, 4).transpose(3, 2, 0, 1)
    if name.endswith(f"{_ATTENTION}/out/kernel"):  # (heads, head width, out)
        rows = _with_axes(name, array, 3)
        return rows.reshape(rows.shape[0] * rows.shape[1], rows.shape[2]).T
    return _with_axes(name, array, 2).T if name.endswith("/kernel") else array


def _joined(arrays: Arrays, block: str, kind: str) -> Array:
    """Queries, keys and values, (in, heads, head width) or (heads, head width), as one tensor."""
    parts = []
    for part in _PARTS:
        name = f"Transformer/encoderblock_{block}/{_ATTENTION}/{part}/{kind}"
        if name not in arrays:
            raise _misfit(name, "which is missing")
        array = _with_axes(name, arrays[name], 3 if kind == "kernel" else 2)
        columns = array.shape[-2] * array.shape[-1]
        parts.append(array.reshape(*array.shape[:-2], columns))
    if len({part.shape for part in parts}) > 1:
        raise _misfit(f"encoderblock_{block}", "whose q, k and v differ in shape")
    return np.concatenate([part.T for part in parts])


def _with_axes(name: str, array: Array, count: int) -> Array:
    if array.ndim != count:
        raise _misfit(name, f"of shape {array.shape} instead of {count} axes")
    return array


def _misfit(name: str, what: str) -> CheckpointError:
    return CheckpointError(
        f"a ViT-AugReg file with {name!r}, {what}",
        expected="a ViT's arrays as Google published them",
        do="download the file again, or convert it with mmsegmentation's vitjax2mmseg.py",
    )
