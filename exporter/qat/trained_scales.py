"""The scales that quantization-aware training left in a state dict, apart from its weights.

Three programs write them beside each module: torch.ao's eager QAT (`weight_fake_quant.scale`,
`activation_post_process.scale`, the latter of what the module writes), NVIDIA ModelOpt
(`input_quantizer._amax`, `weight_quantizer._amax`, of what it reads) and its predecessor
pytorch-quantization (the same with `_input_quantizer`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engines.errors import CheckpointError

Scales = Mapping[str, NDArray[np.float32]]

_FAKE_QUANT = re.compile(
    r"(?:(?P<module>.+?)\.)?(?P<kind>weight_fake_quant|activation_post_process(?:_[0-9]+)?)"
    r"\.(?P<rest>.+)"
)
_QUANTIZER = re.compile(r"(?P<module>.+?)\._?(?P<kind>input|weight|output)_quantizer\.(?P<rest>.+)")
_LEVELS = 127  # amax = 127 * scale: eight bits, signed
# Buffers by which a quantizer changes what it quantizes.
_CHANGES_VALUES = ("_pre_quant_scale", "_bias_value")
_UNSIGNED_LEVELS, _CLOSE = 255, 0.02


@dataclass(frozen=True)
class TrainedScales:
    """Module path, as in the file -> float32 scale(s): of what it reads, of its weight, of what it
    writes. `unusable` counts the others: those that symmetric int8 cannot have (zero points,
    unsigned, two quantizers in a row), that were never calibrated or are switched off, and those
    of torch's FX graphs, which name no module (`activation_post_process_7`).
    """

    inputs: Scales = field(default_factory=dict)
    weights: Scales = field(default_factory=dict)
    outputs: Scales = field(default_factory=dict)
    unusable: int = 0

    def __len__(self) -> int:
        return len(self.inputs) + len(self.weights) + len(self.outputs)


def without_quantizers(
    tensors: Mapping[str, Tensor], path: Path
) -> tuple[dict[str, Tensor], TrainedScales | None]:
    """The tensors of the network itself, and the scales, None where no quantizer has any.

    Raises CheckpointError for quantizers that change what they quantize (SmoothQuant's factors)
    and for scales that are no real numbers.
    """
    left: dict[str, Tensor] = {}
    quantizers: dict[tuple[str, str], dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = _QUANTIZER.fullmatch(name) or _FAKE_QUANT.fullmatch(name)
        if match is None:
            left[name] = tensor
        else:
            key = match["module"] or "", match["kind"]
            quantizers.setdefault(key, {})[match["rest"]] = tensor
    _check_quantizers(quantizers, path)
    found: dict[str, dict[str, NDArray[np.float32]]] = {
        kind: {} for kind in ("input", "weight", "output")
    }
    counts: Counter[str] = Counter()
    for (module, kind), buffers in quantizers.items():
        name = {"weight_fake_quant": "weight", "activation_post_process": "output"}.get(kind, kind)
        scale = _scale(buffers) if name in found else None
        if scale is None:
            counts["unusable"] += any(_last(buffer) in ("scale", "_amax") for buffer in buffers)
        else:
            found[name][module] = scale
    scales = TrainedScales(found["input"], found["weight"], found["output"], counts["unusable"])
    return left, scales if len(scales) or scales.unusable else None


def _check_quantizers(
    quantizers: Mapping[tuple[str, str], Mapping[str, Tensor]], path: Path
) -> None:
    for (module, kind), buffers in quantizers.items():
        wrong = next((name for name, tensor in buffers.items() if tensor.is_complex()), None)
        if wrong is not None:
            raise CheckpointError(
                f"{path.name}, where {wrong} of {module}'s {kind} quantizer is complex",
                expected="real numbers",
                do="save the checkpoint again",
            )
        changing = next((name for name in buffers if _last(name) in _CHANGES_VALUES), None)
        if changing is not None:
            raise CheckpointError(
                f"{path.name}, where the {kind} quantizer of {module} has {changing}",
                expected="quantizers that only round",
                do="export the model to ONNX with the tool that trained it, and give that file",
            )


def _scale(buffers: Mapping[str, Tensor]) -> NDArray[np.float32] | None:
    """(n,) float32; None for what was never calibrated, is off or is not symmetric int8."""
    amax, stored = buffers.get("_amax"), buffers.get("scale")
    values = np.empty(0, np.float32)
    if amax is not None:
        values = _numbers(amax) / np.float32(_LEVELS)
    elif stored is not None:
        values = _numbers(stored)
        zero_point = buffers.get("zero_point")
        if zero_point is not None and _numbers(zero_point).any():
            return None
        if not _is_calibrated(buffers) or _is_unsigned(values, buffers):
            return None
    usable = values.size > 0 and np.isfinite(values).all() and (values > 0).all()
    return values if usable else None


def _numbers(tensor: Tensor) -> NDArray[np.float32]:
    return np.asarray(tensor.detach().to(torch.float32).numpy(), dtype=np.float32).reshape(-1)


def _is_calibrated(buffers: Mapping[str, Tensor]) -> bool:
    """Whether torch's fake quantization is on and its observer, where it has one, saw a value.

    Until then the scale is 1.0, and min_val and max_val are infinite or empty.
    """
    enabled = buffers.get("fake_quant_enabled")
    if enabled is not None and not _numbers(enabled).all():
        return False
    seen = [buffers.get(f"activation_post_process.{name}") for name in ("min_val", "max_val")]
    if seen[0] is None or seen[1] is None:
        return True
    low, high = _numbers(seen[0]), _numbers(seen[1])
    same_size = low.size == high.size > 0
    return same_size and bool(np.isfinite([low, high]).all() and (low <= high).all())


def _is_unsigned(scale: NDArray[np.float32], buffers: Mapping[str, Tensor]) -> bool:
    """torch's quint8 of a tensor without negative values: zero point 0 there, too.

    The type is not stored, but what the observer saw is: such a scale is its maximum / 255.
    """
    seen = [buffers.get(f"activation_post_process.{name}") for name in ("min_val", "max_val")]
    if seen[0] is None or seen[1] is None or seen[1].numel() != 1 or scale.size != 1:
        return False
    low, high = float(_numbers(seen[0])[0]), float(_numbers(seen[1])[0])
    return low >= 0 and abs(float(scale[0]) * _UNSIGNED_LEVELS - high) <= _CLOSE * abs(high)


def _last(name: str) -> str:
    """ModelOpt numbers quantizers in a row: `weight_quantizer.0._amax`."""
    return name.rpartition(".")[2]
