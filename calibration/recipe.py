"""The whole way from a float graph and images to the INT8 graph, as one record and one call."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args

from calibration.equalize import EqualizeRecord, equalized_onnx
from calibration.histogram import SILENT_CLIP
from calibration.implicit import implicit_tensors
from calibration.layer_fix import LayerFix
from calibration.layer_fixes import Rounding, layer_fixes_from_images
from calibration.onnx_file import model_from_onnx_file
from calibration.placement import DEFAULT_POLICY, QuantizePolicy, placement_from_graph
from calibration.quantize import QuantizeRecord, int8_onnx_from_ranges
from calibration.ranges import Image, Method, Ranges, TensorRange, ranges_from_images
from calibration.wiring import Wiring, moved_from, wiring_of
from engines.errors import ConfigError, GraphError

Images = Callable[[], Iterable[Image]]  # a new pass over the same images at each call
OnStep = Callable[[str, int], None]  # what is being done, and with how many images it is


@dataclass(frozen=True)
class Int8Recipe:
    """How an INT8 graph is made.

    policy: what is quantized. method, percentile: see `ranges_from_images`. equalize: see
    `equalized_onnx`. rounding, bias_correction: see `layer_fixes_from_images`.
    """

    policy: QuantizePolicy = DEFAULT_POLICY
    method: Method = "mse"
    percentile: float = 99.999
    equalize: bool = False
    rounding: Rounding = "nearest"
    bias_correction: bool = False

    def __post_init__(self) -> None:
        for name, value, known in (
            ("method", self.method, get_args(Method)),
            ("rounding", self.rounding, get_args(Rounding)),
        ):
            if value not in known:
                raise ConfigError(
                    f"the {name} {value!r}", expected=" or ".join(known), do="correct the name"
                )


@dataclass(frozen=True)
class Calibrated:
    """What images taught about a graph: enough to write it in INT8, with smaller policies too.

    onnx_path: the float graph that ranges and fixes are of, the equalized one if that was asked.
    """

    onnx_path: Path
    recipe: Int8Recipe
    ranges: Ranges
    fixes: Mapping[str, LayerFix] = field(default_factory=dict)
    equalized: EqualizeRecord | None = None


@dataclass(frozen=True)
class Int8Result:
    """What was written, and what it was written from; `calibrated.onnx_path` may be gone."""

    record: QuantizeRecord
    calibrated: Calibrated


def int8_onnx_from_images(
    onnx_path: str | Path,
    images: Images,
    out_path: str | Path,
    recipe: Int8Recipe,
    *,
    on_step: OnStep | None = None,
) -> Int8Result:
    """Equalize if asked, take ranges, fix the layers, write INT8; the float graph stays as it is.

    images: (H, W, C) uint8 at the network's input size; called once for each pass over them.
    Raises what its steps raise, and leaves no file then.
    """
    with tempfile.TemporaryDirectory() as folder:
        calibrated = calibrated_from_images(
            onnx_path, images, recipe, equalized_path=Path(folder) / "model.onnx", on_step=on_step
        )
        return Int8Result(int8_onnx_from_calibrated(calibrated, out_path), calibrated)


def calibrated_from_images(
    onnx_path: str | Path,
    images: Images,
    recipe: Int8Recipe,
    *,
    equalized_path: Path,
    known: Calibrated | None = None,
    on_step: OnStep | None = None,
) -> Calibrated:
    """Everything that `recipe` needs images for; memory does not grow with their number.

    equalized_path: where the equalized graph is written, if the recipe wants one.
    known: of the same graph and images; what its recipe did in the same way is not done again.
    """
    if known is not None and known.recipe == recipe:
        return known
    source, equalized = Path(onnx_path), None
    if known is not None and _same_graph(known.recipe, recipe):
        source, equalized = known.onnx_path, known.equalized
    elif recipe.equalize:
        source = equalized_path
        equalized = equalized_onnx(
            onnx_path,
            images(),
            equalized_path,
            policy=recipe.policy,
            on_image=_counter("equalize", on_step),
        )
    if known is not None and _same_ranges(known.recipe, recipe):
        ranges = known.ranges
    else:
        ranges = ranges_from_images(
            source,
            images(),
            method=recipe.method,
            policy=recipe.policy,
            percentile=recipe.percentile,
            on_image=_counter("take ranges", on_step),
        )
    fixes: Mapping[str, LayerFix] = {}
    if recipe.rounding != "nearest" or recipe.bias_correction:
        fixes = layer_fixes_from_images(
            source,
            images(),
            ranges,
            policy=recipe.policy,
            rounding=recipe.rounding,
            bias_correction=recipe.bias_correction,
            on_image=_counter("fit weights", on_step),
        )
    return Calibrated(source, recipe, ranges, fixes, equalized)


def _same_graph(recipe: Int8Recipe, other: Int8Recipe) -> bool:
    return (recipe.equalize, recipe.policy) == (other.equalize, other.policy)


def _same_ranges(recipe: Int8Recipe, other: Int8Recipe) -> bool:
    same = (recipe.method, recipe.percentile) == (other.method, other.percentile)
    return same and _same_graph(recipe, other)


def _counter(title: str, on_step: OnStep | None) -> Callable[[int], None] | None:
    return None if on_step is None else lambda done: on_step(title, done)


def int8_onnx_from_calibrated(
    calibrated: Calibrated, out_path: str | Path, *, policy: QuantizePolicy | None = None
) -> QuantizeRecord:
    """Write the INT8 graph; `policy`: one that quantizes less than the recipe's, if given."""
    return int8_onnx_from_ranges(
        calibrated.onnx_path,
        calibrated.ranges,
        out_path,
        policy=calibrated.recipe.policy if policy is None else policy,
        fixes=calibrated.fixes,
    )


def narrowed(calibrated: Calibrated, policy: QuantizePolicy) -> Calibrated:
    """As if it had been calibrated for `policy`, which quantizes less.

    The ranges of tensors that are float now are left out: TensorRT's implicit INT8 would run their
    layers in INT8.
    """
    model = model_from_onnx_file(calibrated.onnx_path)
    placed = placement_from_graph(model, policy)
    implicit = implicit_tensors(model, placed)
    ranges = calibrated.ranges
    wiring = wiring_of(model.graph)
    origins = {
        source: _origin(source, ranges.tensors, wiring)
        for source in dict.fromkeys(read.source for item in placed for read in item.inputs)
    }
    tensors = {source: ranges.tensors[tensor] for source, tensor in origins.items()}
    known = {**ranges.implicit, **ranges.tensors}
    also = {name: _whole(known[name]) for name in implicit.measured}
    both = {**also, **tensors}
    also.update((name, both[same]) for name, same in implicit.same_as.items())
    order = [name for node in model.graph.node for name in node.output]
    ranges = replace(
        ranges,
        tensors={name: tensors[name] for name in order if name in tensors},
        implicit={name: also[name] for name in order if name in also},
        chosen={s: ranges.chosen[t] for s, t in origins.items() if ranges.chosen},
    )
    outputs = {item.output for item in placed}
    return replace(
        calibrated,
        recipe=replace(calibrated.recipe, policy=policy),
        ranges=ranges,
        fixes={name: fix for name, fix in calibrated.fixes.items() if name in outputs},
    )


def _origin(tensor: str, known: Mapping[str, TensorRange], wiring: Wiring) -> str:
    origin = moved_from(tensor, known, wiring)
    if origin is None:
        raise GraphError(
            f"no range of the tensor {tensor}",
            expected="a policy that quantizes no more than the ranges were taken with",
            do="calibrate again",
        )
    return origin


def _whole(seen: TensorRange) -> TensorRange:
    """The clip that implicit INT8 takes: the largest magnitude, whatever the method was."""
    largest = max(abs(seen.min), abs(seen.max))
    return TensorRange(seen.min, seen.max, largest if largest > 0 else SILENT_CLIP)
