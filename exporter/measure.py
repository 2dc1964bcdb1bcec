"""Scores, agreement, speed, memory and size of every form of one model, and the gate."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engines.board.machine import machine_record, package_versions
from engines.bundle import BandsInfo, FileInfo, InputSpec
from engines.bundle_bands import bands_record
from engines.dataset import Pair
from engines.evaluation.evaluate import Evaluation, Predictor, evaluate_predictors
from engines.evaluation.scored_rows import check_something_was_scored, row_with_scores
from engines.evaluation.scores import IGNORE
from engines.images import image_from_file, mask_from_file
from engines.onnx_predictor import OnnxPredictor
from engines.resize import network_image_from_image
from engines.speed.benchmark import benchmark_onnx
from engines.speed.forms import Form, form_row
from exporter.benchmark import benchmark_checkpoint
from exporter.checkpoint import Checkpoint
from exporter.load import LoadedModel
from exporter.request import DataOptions
from exporter.strips import Strip, strip_panels


@dataclass(frozen=True)
class ScoredModel:
    """What the scores of every form of one model have in common.

    `classes` and `palette` are those of the named outputs, the first of `num_outputs`. `mode` and
    `tta` are as in `riceseg evaluate`; with `whole_images` predictors get images as they are.
    """

    name: str
    checkpoint: dict[str, str] | None
    input: InputSpec
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    num_outputs: int
    mode: str = "whole"
    tta: str = "none"
    whole_images: bool = False
    bands: BandsInfo | None = None


def scored_model(loaded: LoadedModel, input: InputSpec) -> ScoredModel:
    checkpoint = loaded.checkpoint
    return ScoredModel(
        name=loaded.description.name,
        checkpoint={"file": checkpoint.path.name, "sha256": checkpoint.sha256},
        input=input,
        classes=loaded.classes[: loaded.named],
        palette=loaded.palette[: loaded.named],
        num_outputs=loaded.description.num_outputs,
    )


@contextlib.contextmanager
def open_predictors(
    forms: Sequence[Form], reference: Predictor | None
) -> Iterator[list[Predictor]]:
    """The reference first, then every ONNX form; closed at the end."""
    with contextlib.ExitStack() as stack:
        predictors: list[Predictor] = [reference] if reference is not None else []
        for form in forms:
            predictors.append(stack.enter_context(OnnxPredictor(form.path, name=form.name)))
        yield predictors


def scored(
    model: ScoredModel,
    predictors: Sequence[Predictor],
    pairs: Sequence[Pair],
    data: DataOptions,
    *,
    reduce_zero_label: bool,
    on_image: Callable[[int, int], None],
) -> tuple[Evaluation, list[Strip]]:
    """Every predictor on every labelled image, and picture strips of the worst ones."""
    evaluation = evaluate_predictors(
        predictors,
        pairs,
        input=model.input,
        num_outputs=model.num_outputs,
        num_classes=len(model.classes),
        reduce_zero_label=reduce_zero_label,
        convert_images=data.convert_images,
        skip_bad=data.skip_bad,
        whole_images=model.whole_images,
        on_image=on_image,
    )
    strips = strips_of_worst(
        evaluation,
        predictors,
        model,
        convert_images=data.convert_images,
        reduce_zero_label=reduce_zero_label,
    )
    return evaluation, strips


def report_record(
    model: ScoredModel,
    rows: list[dict[str, Any]],
    data: DataOptions,
    evaluation: Evaluation | None,
    warnings: Sequence[str],
) -> dict[str, Any]:
    """The content of report.json, without gate, calibration and parity."""
    skipped = [] if evaluation is None else list(evaluation.skipped)
    worst = () if evaluation is None else evaluation.worst
    return {
        "format": "riceseg-report",
        "format_version": 1,
        "name": model.name,
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "checkpoint": model.checkpoint,
        "machine": machine_record(),
        "versions": package_versions(),
        "data": {
            "folder": str(data.val or ""),
            "images": 0 if evaluation is None else evaluation.images,
            "skipped": skipped,
            "sha256": None if evaluation is None else evaluation.images_sha256,
        },
        "mode": None if evaluation is None else model.mode,
        "input_hw": list(model.input.hw),
        "bands": bands_record(model.bands),
        "classes": list(model.classes),
        "palette": [list(rgb) for rgb in model.palette],
        "rows": [_row_with_mode(row, model) for row in rows],
        "gate": None,
        "calibration": None,
        "parity": None,
        "warnings": list(warnings),
        "worst": [{"image": item.image.name, "agreement": item.agreement} for item in worst],
    }


def _row_with_mode(row: dict[str, Any], model: ScoredModel) -> dict[str, Any]:
    """How the row's scores came about, if it has any."""
    scored = row.get("miou") is not None
    return {**row, "mode": model.mode, "tta": model.tta} if scored else row


def onnx_row(form: Form, runs: int) -> dict[str, Any]:
    return form_row(form, lambda: benchmark_onnx(form.path, runs=runs))


def torch_row(
    model: ScoredModel,
    checkpoint: Checkpoint,
    name: str,
    runs: int,
    *,
    warmup: int = 5,
    threads: int | None = None,
) -> dict[str, Any]:
    """The row of the PyTorch model that `checkpoint` holds."""
    path = checkpoint.path
    info = FileInfo(path.name, checkpoint.sha256, path.stat().st_size)
    form = Form(name, "fp32", f"PyTorch {package_versions()['torch']}", path, info)
    return form_row(
        form,
        lambda: benchmark_checkpoint(
            path,
            model.input.hw,
            num_outputs=model.num_outputs,
            runs=runs,
            warmup=warmup,
            threads=threads,
        ),
    )


def with_scores(rows: list[dict[str, Any]], evaluation: Evaluation) -> list[dict[str, Any]]:
    """Rows joined with scores by name; the order of `rows` stays.

    Raises DatasetError when there was nothing to score: no pixel of any mask has a label.
    """
    check_something_was_scored(evaluation)
    scores = {row.name: row for row in evaluation.rows}
    return [row_with_scores(row, scores[row["form"]]) for row in rows]


def strips_of_worst(
    evaluation: Evaluation,
    predictors: Sequence[Predictor],
    model: ScoredModel,
    *,
    convert_images: bool,
    reduce_zero_label: bool,
) -> list[Strip]:
    """Picture strips of the images on which the first and the last predictor differ most."""
    strips = []
    input = model.input
    for worst in evaluation.worst:
        image = image_from_file(worst.image, channels=input.channels, convert=convert_images)
        network = image
        if not model.whole_images:
            network = network_image_from_image(image, input.hw, input.rule, input.pad_value)
        hw = (image.shape[0], image.shape[1])
        first = predictors[0].predict(network, hw, input.rule).image
        last = predictors[-1].predict(network, hw, input.rule).image
        truth = mask_from_file(worst.mask)
        if reduce_zero_label:
            truth = np.where(truth == IGNORE, truth, truth - np.uint8(1))  # 0 wraps to 255
        titles = (predictors[0].name, predictors[-1].name)
        panels = strip_panels(image[:, :, :3], truth, first, last, model.palette, titles=titles)
        strips.append(Strip(worst.image.name, worst.agreement, panels))
    return strips
