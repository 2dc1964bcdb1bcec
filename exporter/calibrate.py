"""What an export learns from its calibration images: overflows of FP16, and how INT8 is made."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from calibration.float16_risk import (
    float16_risks,
    float16_warning,
    fp32_nodes_for,
    layers_among,
)
from calibration.onnx_file import model_from_onnx_file
from calibration.placement import EVERY_LAYER
from calibration.policy import PrecisionPolicy
from calibration.ranges import Image, calibration_steps
from calibration.recipe import Int8Recipe, calibrated_from_images, narrowed
from engines.progress import Progress
from exporter.network_images import evenly, left_out_lines, network_images
from exporter.precision import recipe_from
from exporter.qat.scales_applied import with_training
from exporter.request import DataOptions, ExportRequest
from exporter.techniques import Probes, recipe_that_pays, switches_to_measure
from exporter.work import Work

# To tell switches apart, in a time that does not grow with the set: each is calibrated anew.
MOST_TO_FIT, MOST_SHOWN = 32, 8


class CalibrationImages:
    """The calibration images at network size, a new pass at each call; unreadable ones are named.

    Without `skip_bad` these raise ImageError.
    """

    def __init__(self, work: Work, data: DataOptions, *, most: int | None = None) -> None:
        self._work, self._data = work, data
        self.files = evenly([item.path for item in work.calib], most)
        self.skipped: dict[Path, str] = {}

    def __call__(self) -> Iterator[Image]:
        self.skipped.clear()
        return network_images(self.files, self._work.input, self._data, self.skipped)


def shown_images(work: Work, data: DataOptions) -> list[Image]:
    """A few images to compare answers on, without their masks: validation's, to which no range was
    fitted; else those of the calibration.
    """
    files = [pair.image for pair in work.pairs] or [item.path for item in work.calib]
    return list(network_images(evenly(files, MOST_SHOWN), work.input, data, {}))


def hold_overflows(
    work: Work, data: DataOptions, graph: Path, batch: Iterable[Image], progress: Progress
) -> None:
    """Name the nodes whose activations come near FP16's end on real images; they stay FP32.

    Looked at are the calibration images, or `batch` where there are none.
    """
    images, count = CalibrationImages(work, data), 0

    def seen(done: int) -> None:
        nonlocal count
        count = done
        progress.advance(done + len(images.skipped), len(work.calib) or None)

    risks = float16_risks(
        graph, images() if work.calib else batch, held=work.fp32_nodes, on_image=seen
    )
    _leave_out(work, images)
    if risks:
        nodes = fp32_nodes_for(risks)
        work.fp32_nodes = tuple(dict.fromkeys((*work.fp32_nodes, *nodes)))
        layers = layers_among(model_from_onnx_file(graph), nodes)
        work.float_layers = tuple(dict.fromkeys((*work.float_layers, *layers)))
        work.warnings.append(float16_warning(risks, on=f"{count} images"))


def _leave_out(work: Work, images: CalibrationImages) -> None:
    """The unreadable ones among the calibration images; a warning names them."""
    lines = [f"{path.name}: {reason}" for path, reason in images.skipped.items()]
    work.warnings += left_out_lines("calibration", lines)
    work.calib = tuple(item for item in work.calib if item.path not in images.skipped)


def learn_int8(
    request: ExportRequest,
    work: Work,
    folder: Path,
    policy: PrecisionPolicy | None,
    progress: Progress,
) -> Int8Recipe:
    """Measure the switches where that is wanted, then calibrate; fills `work.calibrated`.

    policy: None for --precision auto, which calibrates for every layer that INT8 can take.
    Returns the recipe as it is now: with what was measured, and without layers that overflow FP16.
    """
    given = None if policy is None else policy.recipe
    recipe = recipe_from(request.int8_options, EVERY_LAYER) if given is None else given
    recipe = _without_layers(recipe, work.float_layers)
    images, known = CalibrationImages(work, request.data), None
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        switches = switches_to_measure(request.int8_options, auto=request.auto)
        if switches:
            few = CalibrationImages(work, request.data, most=MOST_TO_FIT)
            shown = shown_images(work, request.data)
            probes = Probes(folder / "model.onnx", few, shown, Path(scratch))
            with progress.stage("measure the switches"):
                recipe, calibrated, work.techniques = recipe_that_pays(
                    probes, recipe, switches, progress=progress
                )
            known = calibrated if len(few.files) == len(images.files) else None
        with progress.stage(f"calibrate ({recipe.method})"):
            work.calibrated = calibrated_from_images(
                folder / "model.onnx",
                images,
                recipe,
                equalized_path=Path(scratch) / "model.onnx",
                known=known,
                on_step=lambda _, done: progress.advance(
                    done, calibration_steps(recipe.method, len(images.files))
                ),
            )
        if recipe.equalize:
            _adopt_equalized(request.data, work, folder, progress)
    if work.loaded.checkpoint.trained_scales is not None:
        work.calibrated, told = with_training(work.calibrated, work.loaded)
        work.warnings.append(told)
    return work.calibrated.recipe


def _without_layers(recipe: Int8Recipe, layers: Sequence[str]) -> Int8Recipe:
    excluded = tuple(dict.fromkeys((*recipe.policy.exclude_nodes, *layers)))
    return replace(recipe, policy=replace(recipe.policy, exclude_nodes=excluded))


def _adopt_equalized(data: DataOptions, work: Work, folder: Path, progress: Progress) -> None:
    """The equalized graph becomes the bundle's FP32 graph: ranges and cache are of its tensors."""
    calibrated, graph = work.calibrated, folder / "model.onnx"
    assert calibrated is not None  # calibrated before this is called
    os.replace(calibrated.onnx_path, graph)
    work.add(folder, "fp32", graph.name)
    hold_overflows(work, data, graph, (), progress)
    recipe = _without_layers(calibrated.recipe, work.float_layers)
    work.calibrated = narrowed(replace(calibrated, onnx_path=graph), recipe.policy)
