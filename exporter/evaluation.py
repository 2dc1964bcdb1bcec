"""Score a bundle, a checkpoint or an ONNX file on labelled images."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from engines.dataset import Pair, pairs_from_folder
from engines.evaluation.evaluate import Predictor
from engines.evaluation.image_predictor import ImagePredictor
from engines.evaluation.preparation import augmentations
from engines.onnx_predictor import OnnxPredictor
from engines.progress import Progress
from exporter.evaluated import Asked, Evaluated, check_options, evaluated_target
from exporter.inference import WHOLE, Inference, Plan, graph_predictor, torch_predictor
from exporter.load import first_image_hw
from exporter.measure import onnx_row, report_record, scored, torch_row, with_scores
from exporter.network_images import left_out_lines
from exporter.pairs import class_pairs, pairs_section
from exporter.request import DataOptions, LoadOptions
from exporter.strips import Strip

RUNS = 20
PYTORCH_NAME = "PyTorch FP32"


class _Steps:
    """Progress in predictions, of which every image takes as many; a skipped image took them."""

    def __init__(self, progress: Progress, per_image: int) -> None:
        self._progress, self._per_image = progress, per_image
        self._images, self._steps, self._total = 0, 0, 0

    def begin(self, images: int) -> None:
        self._total = images * self._per_image
        self._progress.advance(0, self._total)

    def on_step(self) -> None:
        self._steps = min(self._steps + 1, self._per_image)
        done = self._images * self._per_image + self._steps
        self._progress.advance(min(done, self._total), self._total)

    def on_image(self, done: int, total: int) -> None:
        self._images, self._steps = done, 0
        self._progress.advance(done * self._per_image, self._total)


def evaluate_target(
    target: Path,
    data: DataOptions,
    options: LoadOptions,
    *,
    size: tuple[int, int] | None,
    inference: Inference = WHOLE,
    progress: Progress,
) -> tuple[dict[str, Any], list[Strip]]:
    """The report's content and picture strips; `data.val` must be set.

    `options` and `size` are for a checkpoint (of an ONNX file: the class names only).
    Raises the UserError of whatever cannot be used.
    """
    assert data.val is not None  # the command requires it
    check_options(target, options, size, inference)
    with progress.stage("load"):
        pairs = pairs_from_folder(data.val, masks=data.val_masks)
        found = evaluated_target(target, Asked(options, size, inference, data, tuple(pairs)))
        compared = class_pairs(data.pairs, found.model.classes)
    steps = _Steps(progress, max(1, len(found.forms)) * len(augmentations(inference.tta)))
    with contextlib.ExitStack() as stack:
        # Opened first: what cannot be run that way is known before anything is timed.
        predictors = stack.enter_context(_predictors(found, steps))
        with progress.stage("time each form"):
            rows = _speed_rows(found)
        with progress.stage("evaluate"):
            if isinstance(predictors[0], ImagePredictor):
                progress.note(_cost_text(predictors[0], found, data, pairs))
            steps.begin(len(pairs))
            evaluation, strips = scored(
                found.model,
                predictors,
                pairs,
                data,
                reduce_zero_label=_reduces_zero_label(found, data),
                on_image=steps.on_image,
            )
    for line in (*found.warnings, *left_out_lines("validation", evaluation.skipped)):
        progress.warn(line)
    rows = _with_notes(with_scores(rows, evaluation), found.plan, predictors)
    for note in rows[0].get("notes") or ():
        progress.note(note)
    report = report_record(found.model, rows, data, evaluation, found.warnings)
    if compared.indices:
        report["pairs"] = pairs_section(compared, found.model.classes, evaluation)
    return report, strips


def _reduces_zero_label(found: Evaluated, data: DataOptions) -> bool:
    return found.reduce_zero_label if data.reduce_zero_label is None else data.reduce_zero_label


@contextlib.contextmanager
def _predictors(found: Evaluated, steps: _Steps) -> Iterator[list[Predictor]]:
    """The checkpoint's, or one for each form, run as the plan says."""
    plan, input_spec = found.plan, found.model.input
    if found.torch is not None:
        yield [torch_predictor(plan, found.torch, steps.on_step)]
        return
    with contextlib.ExitStack() as stack:
        opened = [
            stack.enter_context(OnnxPredictor(form.path, name=form.name)) for form in found.forms
        ]
        yield [graph_predictor(plan, graph, input_spec, steps.on_step) for graph in opened]


def _speed_rows(found: Evaluated) -> list[dict[str, Any]]:
    if found.checkpoint is not None:
        return [torch_row(found.model, found.checkpoint, PYTORCH_NAME, RUNS)]
    return [onnx_row(form, RUNS) for form in found.forms]


def _cost_text(
    predictor: ImagePredictor, found: Evaluated, data: DataOptions, pairs: Sequence[Pair]
) -> str:
    """What is ahead, by the size of the first image."""
    hw = first_image_hw(
        [pair.image for pair in pairs],
        channels=found.model.input.channels,
        convert=data.convert_images,
        skip_bad=data.skip_bad,
    )
    if hw is None:
        return "no image can be read"
    cost = predictor.cost(hw)
    return (
        f"an image of {hw[0]}x{hw[1]} takes {cost.predictions} predictions, {cost.calls} calls of "
        f"the network and up to {4 * found.model.num_outputs * cost.values / 1e6:.0f} MB of logits"
    )


def _with_notes(
    rows: list[dict[str, Any]], plan: Plan, predictors: Sequence[Predictor]
) -> list[dict[str, Any]]:
    """Rows with what the plan says, and how often the network ran for an image."""
    noted = []
    for row, predictor in zip(rows, predictors, strict=True):
        lines = [*(row.get("notes") or ()), *plan.notes()]
        if isinstance(predictor, ImagePredictor):
            mean = predictor.call_count / max(predictor.image_count, 1)
            lines.append(f"{mean:.1f} calls of the network an image on average")
        noted.append({**row, "notes": lines} if lines else row)
    return noted
