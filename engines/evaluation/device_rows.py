"""One row of a device's report: an engine (or ONNX file) of one precision, timed and scored.

Both are of the same file: its SHA-256 stands in the row, and is checked again at the end.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any, Callable, Dict, NamedTuple, Optional, Sequence, Tuple

from engines.bundle import Bundle
from engines.bundle_runtime import Opened, Wish, open_bundle
from engines.dataset import Pair
from engines.errors import DatasetError, EngineError, ImageError, UserError
from engines.evaluation.evaluate import Evaluation, evaluate_predictors
from engines.evaluation.image_predictor import sliding_predictor
from engines.evaluation.reference import ReferenceLabels
from engines.evaluation.request import DeviceRequest
from engines.evaluation.scored_rows import check_something_was_scored, row_with_scores
from engines.evaluation.sliding import Windows
from engines.images import sha256_of_file
from engines.progress import Progress
from engines.resize import Labels
from engines.speed.benchmark import Benchmark, benchmark_engine, benchmark_onnx
from engines.speed.forms import (
    ENGINE_SUFFIX,
    Form,
    engine_form,
    form_row,
    onnx_forms,
)


@dataclass(frozen=True)
class Task:
    """What all rows have in common. With `windows` images are cut, and nothing is compared.

    `runtime` is "tensorrt" or "onnx": for all rows the same.
    """

    request: DeviceRequest
    runtime: str
    bundle: Bundle
    pairs: Sequence[Pair]
    windows: Optional[Windows]
    references: Optional[ReferenceLabels]


class DeviceRow(NamedTuple):
    """A report's row; without `evaluation` it failed with `error`. `notes` are for the reader."""

    row: Dict[str, Any]
    evaluation: Optional[Evaluation]
    error: Optional[UserError]
    notes: Sequence[str]


def device_row(task: Task, precision: str, progress: Progress) -> DeviceRow:
    """Choose or build as `Segmenter.open` does, score in this process, time in one of its own.

    A UserError of this precision becomes its row. Raises DatasetError and ImageError, which would
    come back with every precision.
    """
    row: Dict[str, Any] = {"form": precision.upper(), "precision": precision}
    request = task.request
    wish = Wish(precision, task.runtime, request.build)
    try:
        with contextlib.ExitStack() as stack:
            with progress.stage(f"{precision}: open, or build first"):
                opened = open_bundle(request.bundle, task.bundle, wish, progress=progress)
                stack.callback(opened.resources.close)
                form = _form(opened, task)
            with progress.stage(f"{form.name}: score"):
                evaluation, notes = _scored(task, opened, form, progress)
        # Closed by now: the child has the GPU and its memory for itself.
        with progress.stage(f"{form.name}: time {request.iterations} calls"):
            row = form_row(form, _measurement(form, request))
        _check_unchanged(form)
    except (DatasetError, ImageError):
        raise
    except UserError as error:
        progress.warn(f"{row['form']}: {error}")
        return DeviceRow({**row, "error": str(error)}, None, error, ())
    return DeviceRow(row_with_scores(row, evaluation.rows[0]), evaluation, None, notes)


def _form(opened: Opened, task: Task) -> Form:
    path = opened.predictor.path
    if path.suffix == ENGINE_SUFFIX:
        return engine_form(path)
    files = {opened.precision: task.bundle.files[opened.precision]}
    return onnx_forms(task.request.bundle, files)[0]


def _measurement(form: Form, request: DeviceRequest) -> Callable[[], Benchmark]:
    measure = benchmark_engine if form.path.suffix == ENGINE_SUFFIX else benchmark_onnx
    return lambda: measure(form.path, runs=request.iterations, warmup=request.warmup)


def _scored(
    task: Task, opened: Opened, form: Form, progress: Progress
) -> Tuple[Evaluation, Tuple[str, ...]]:
    """The scores of one predictor, and what there is to say about how it ran."""
    bundle, predictor = task.bundle, opened.predictor
    sliding = None if task.windows is None else sliding_predictor(predictor, bundle)
    evaluation = evaluate_predictors(
        [predictor if sliding is None else sliding],
        task.pairs,
        input=bundle.input,
        num_outputs=bundle.num_outputs,
        num_classes=len(bundle.classes),
        reduce_zero_label=bundle.reduce_zero_label,
        convert_images=task.request.convert_images,
        skip_bad=task.request.skip_bad,
        references=task.references or _no_labels,
        whole_images=sliding is not None,
        on_image=progress.advance,
    )
    check_something_was_scored(evaluation)
    lines = [*opened.notes, *getattr(predictor, "notes", ())]
    if sliding is not None:
        mean = sliding.call_count / max(sliding.image_count, 1)
        lines.append(f"{mean:.1f} windows an image on average")
    return evaluation, tuple(f"{form.name}: {line}" for line in lines)


def _no_labels(sha256: str) -> Optional[Labels]:
    """A row alone agrees with itself, which says nothing: it is compared with PyTorch or not."""
    return None


def _check_unchanged(form: Form) -> None:
    if sha256_of_file(form.path) != form.info.sha256:
        raise EngineError(
            f"{form.path.name!r}, which was changed while it was measured",
            expected="one file for speed and for accuracy",
            do="let no other program write into this bundle meanwhile, and start again",
        )
