"""Training's scales in the place of calibrated ones, for the INT8 graph of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from calibration.layer_fix import LayerFix
from calibration.onnx_file import model_from_onnx_file
from calibration.placement import QuantizedNode, placement_from_graph
from calibration.policy import PrecisionPolicy
from calibration.recipe import Calibrated
from calibration.wiring import Wiring, wiring_of
from engines.errors import ConfigError
from engines.trt.layer_names import module_path
from exporter.architectures.description import Architecture
from exporter.detect import ARCHITECTURES
from exporter.load import LoadedModel
from exporter.qat.trained_scales import Scales, TrainedScales

LEVELS = 127
UNUSABLE = "a zero point, uint8, never calibrated, switched off, or of no known module"
Weights = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class AppliedScales:
    """How many of the INT8 graph's activations and weights have training's scales."""

    activations: int
    of_activations: int
    weights: int
    of_weights: int

    def sentence(self, unusable: int) -> str:
        rest = (
            f"; {unusable} more of the checkpoint's cannot be used: {UNUSABLE}" if unusable else ""
        )
        return (
            f"quantization-aware training: {self.activations} of {self.of_activations} activation "
            f"scales and {self.weights} of {self.of_weights} weight scales are the checkpoint's; "
            f"the others are of tensors that the exact rewrites made, or were not trained: "
            f"calibrated here{rest}"
        )


def check_training_stays(policy: PrecisionPolicy | None, loaded: LoadedModel) -> None:
    """ConfigError for what changes the weights or tensors which training's scales are of.

    policy: what the request says, by options or by a file; None for --precision auto.
    """
    if not loaded.checkpoint.trained_scales:  # None, or none of them usable
        return
    recipe = None if policy is None else policy.recipe
    told = {
        "--precision auto": policy is None,
        # ranges.json would name a method for each clip, where training chose some
        "--calibrator auto": recipe is not None and recipe.method == "auto",
        "--equalize": recipe is not None and recipe.equalize,
        "--rounding compensated": recipe is not None and recipe.rounding != "nearest",
        "--bias-correction": recipe is not None and recipe.bias_correction,
    }
    for name, given in told.items():
        if given:
            raise ConfigError(
                f"{name} with a checkpoint of quantization-aware training",
                expected="--int8 --calib: training's scales are kept, the others calibrated",
                do=f"leave {name} out, or a policy that says it",
            )


def scales_by_layer(scales: TrainedScales, style: str, architecture: Architecture) -> TrainedScales:
    """The same by the layers of the exported graph, as its nodes are named."""

    def moved(given: Scales) -> Scales:
        found: dict[str, NDArray[np.float32]] = {}
        for module, values in given.items():
            paths = architecture.layer_paths(module, style)
            if not paths:
                continue
            parts = np.split(values, len(paths)) if values.size % len(paths) == 0 else ()
            if values.size == 1:
                parts = [values] * len(paths)
            found.update((f"net.{path}", part) for path, part in zip(paths, parts, strict=False))
        return found

    written = {
        module: values
        for module, values in scales.outputs.items()
        if architecture.writes_the_same(module, style)
    }
    return TrainedScales(moved(scales.inputs), moved(scales.weights), moved(written))


def with_trained_scales(
    calibrated: Calibrated, scales: TrainedScales, weights: Weights
) -> tuple[Calibrated, AppliedScales]:
    """`calibrated` with each scale that training gave to the very tensor that a layer reads.

    scales: by `scales_by_layer`. weights: those of the layers before any rewrite, by the same
    names. An activation keeps the scale of the layer that reads it, or of the module that writes
    it; the larger one where they differ. A weight keeps its scale where its numbers are those of
    the checkpoint, so not where an exact rewrite has changed them.
    """
    model = model_from_onnx_file(calibrated.onnx_path)
    placed = placement_from_graph(model, calibrated.recipe.policy)
    wiring = wiring_of(model.graph)
    clips = _clips(placed, wiring, scales)
    fixes = _fixes(placed, wiring, scales.weights, weights)
    sources = {read.source for item in placed for read in item.inputs}
    tensors = {
        name: replace(found, amax=clips[name]) if name in clips else found
        for name, found in calibrated.ranges.tensors.items()
    }
    applied = AppliedScales(
        activations=len(sources & clips.keys()),
        of_activations=len(sources),
        weights=len(fixes),
        of_weights=sum(item.weight is not None for item in placed),
    )
    ranges = replace(calibrated.ranges, tensors=tensors)
    return replace(calibrated, ranges=ranges, fixes={**calibrated.fixes, **fixes}), applied


def _clips(
    placed: Iterable[QuantizedNode], wiring: Wiring, scales: TrainedScales
) -> dict[str, float]:
    """Clip of each quantized tensor that a module of the checkpoint read or wrote."""
    clips: dict[str, float] = {}
    for item in placed:
        for read in item.inputs:
            found = [scales.inputs.get(module_path(item.node))] if item.weight is not None else []
            writer = wiring.producers.get(read.source)
            if writer is not None and _leaves_module(read.source, writer, wiring):
                found.append(scales.outputs.get(module_path(writer.name)))
            for scale in found:
                if scale is not None and scale.size == 1:
                    clip = float(scale[0]) * LEVELS
                    clips[read.source] = max(clip, clips.get(read.source, 0.0))
    return clips


def _leaves_module(tensor: str, writer: onnx.NodeProto, wiring: Wiring) -> bool:
    """Whether no node of the module that writes `tensor` reads it: it is what the module gives."""
    path = module_path(writer.name)
    return all(module_path(reader.name) != path for reader in wiring.consumers.get(tensor, []))


def _fixes(
    placed: Iterable[QuantizedNode], wiring: Wiring, scales: Scales, weights: Weights
) -> dict[str, LayerFix]:
    fixes = {}
    for item in placed:
        path = module_path(item.node)
        scale, trained = scales.get(path), weights.get(path)
        if item.weight is None or item.axis is None or scale is None or trained is None:
            continue
        values = numpy_helper.to_array(wiring.constants[item.weight])
        channels = values.shape[item.axis]
        unchanged = _same_numbers(values, trained, transposed=item.axis == 1)
        if unchanged and scale.size in (1, channels):
            steps = np.ascontiguousarray(np.broadcast_to(scale, channels))
            fixes[item.output] = LayerFix(_on_grid(values, steps, item.axis), steps)
    return fixes


def _same_numbers(
    values: NDArray[np.float32], trained: NDArray[np.float32], *, transposed: bool
) -> bool:
    """torch's Linear keeps (outputs, inputs), a MatMul (inputs, outputs)."""
    wanted = trained.reshape(trained.shape[:2]).T if transposed and trained.ndim > 1 else trained
    return values.size == trained.size and np.array_equal(values.reshape(wanted.shape), wanted)


def _on_grid(
    values: NDArray[np.float32], steps: NDArray[np.float32], axis: int
) -> NDArray[np.float32]:
    """With -128, which torch's fake quantization has, whose scale is the largest / 127.5."""
    shape = [-1 if index == axis else 1 for index in range(values.ndim)]
    column = steps.reshape(shape)
    return np.asarray(np.rint(values / column).clip(-LEVELS - 1, LEVELS) * column, dtype=np.float32)


def with_training(calibrated: Calibrated, loaded: LoadedModel) -> tuple[Calibrated, str]:
    """`calibrated` with the scales of a checkpoint that has some, and what is to be said of it."""
    scales, found = loaded.checkpoint.trained_scales, loaded.description
    assert scales is not None  # asked for by the caller
    architecture = next(a for a in ARCHITECTURES if found.architecture == a.NAME)
    weights = {
        f"net.{path}": tensor.numpy()
        for path, tensor in architecture.layer_weights(loaded.net).items()
    }
    by_layer = scales_by_layer(scales, found.source, architecture)
    result, applied = with_trained_scales(calibrated, by_layer, weights)
    return result, applied.sentence(scales.unusable)
