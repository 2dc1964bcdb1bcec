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
from exporter.groups import floating_layers
from exporter.network_images import evenly, first_readable, left_out_lines, network_images
from exporter.precision import recipe_from
from exporter.qat.scales_applied import with_training
from exporter.request import DataOptions, ExportRequest
from exporter.techniques import (
    Probes,
    recipe_that_pays,
    switches_to_measure,
    without_empty_equalization,
)
from exporter.work import Work

# To tell switches apart, in a time that does not grow with the set: each is calibrated anew.
MOST_TO_FIT, MOST_SHOWN = 32, 8
EQUALIZED = ".equalized.onnx"  # beside model.onnx until the precision is known


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
    shown = first_readable([pair.image for pair in work.pairs], MOST_SHOWN, work.input, data)
    calib = [item.path for item in work.calib]
    return shown or first_readable(calib, MOST_SHOWN, work.input, data)


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
    An equalized graph lies beside model.onnx then, see `settle_equalized`.
    """
    recipe = _first_recipe(request, work, folder / "model.onnx", policy)
    wanted = recipe.equalize
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
            calibrated = calibrated_from_images(
                folder / "model.onnx",
                images,
                recipe,
                equalized_path=Path(scratch) / "model.onnx",
                known=known,
                on_step=OnePass(progress, steps_of(recipe, len(images.files))),
            )
        work.calibrated = without_empty_equalization(calibrated, folder / "model.onnx")
        if work.calibrated.recipe.equalize:
            with progress.stage("look for overflows of FP16 in the equalized graph"):
                _keep_equalized(request.data, work, folder, progress)
        elif wanted:
            work.warnings.append(
                "--equalize changed nothing: no layer in INT8 reads channels that another layer "
                "could scale, so the graph is as without it"
            )
    if work.loaded.checkpoint.trained_scales is not None:
        work.calibrated, told = with_training(work.calibrated, work.loaded)
        work.warnings.append(told)
    return work.calibrated.recipe


def _first_recipe(
    request: ExportRequest, work: Work, graph: Path, policy: PrecisionPolicy | None
) -> Int8Recipe:
    """What was asked for, without layers that overflow FP16.

    Plain INT8 also leaves out what the architecture's groups say; a policy from a file is taken as
    it is, and --precision auto starts with every layer.
    """
    if policy is None or policy.recipe is None:
        return _without_layers(recipe_from(request.int8_options, EVERY_LAYER), work.float_layers)
    layers = work.float_layers
    if request.policy is None:
        architecture = work.loaded.description.architecture
        layers += floating_layers(architecture, model_from_onnx_file(graph))
    return _without_layers(policy.recipe, layers)


def _without_layers(recipe: Int8Recipe, layers: Sequence[str]) -> Int8Recipe:
    excluded = tuple(dict.fromkeys((*recipe.policy.exclude_nodes, *layers)))
    return replace(recipe, policy=replace(recipe.policy, exclude_nodes=excluded))


def _keep_equalized(data: DataOptions, work: Work, folder: Path, progress: Progress) -> None:
    """Its overflows are held beside those of model.onnx, before anything is tried in INT8."""
    calibrated, graph = work.calibrated, folder / EQUALIZED
    assert calibrated is not None  # calibrated before this is called
    os.replace(calibrated.onnx_path, graph)
    hold_overflows(work, data, graph, (), progress)
    recipe = _without_layers(calibrated.recipe, work.float_layers)
    work.calibrated = narrowed(replace(calibrated, onnx_path=graph), recipe.policy)


def settle_equalized(work: Work, folder: Path, policy: PrecisionPolicy) -> bool:
    """Whether the equalized graph is the bundle's FP32 graph now; if not, it is gone.

    With INT8 it is, for ranges and calibration cache are of its tensors; without INT8 the bundle
    stays as the checkpoint was traced.
    """
    calibrated, equalized = work.calibrated, folder / EQUALIZED
    if calibrated is None or calibrated.onnx_path != equalized:
        return False
    if policy.recipe is None:
        equalized.unlink()
        work.calibrated = None
        return False
    graph = folder / "model.onnx"
    os.replace(equalized, graph)
    work.add(folder, "fp32", graph.name)
    work.calibrated = replace(calibrated, onnx_path=graph)
    return True


def steps_of(recipe: Int8Recipe, images: int) -> int:
    """How often `calibrated_from_images` calls `on_step` for that many images, nothing known."""
    fits = recipe.rounding != "nearest" or recipe.bias_correction
    return calibration_steps(recipe.method, images) + images * (recipe.equalize + fits)


class OnePass:
    """Several passes, each of which counts from 1, as one of `total` steps."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total = progress, total
        self._title, self._before, self._done = "", 0, 0

    def __call__(self, title: str, done: int) -> None:
        if title != self._title:
            self._title, self._before = title, self._before + self._done
        self._done = done
        self._progress.advance(self._before + done, self._total)
