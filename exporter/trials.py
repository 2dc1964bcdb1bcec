"""Graphs of one model scored on its validation images as the gate does, one after the other."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from engines.evaluation.evaluate import Evaluation, Predictor, References, evaluate_predictors
from engines.evaluation.reference import ReferenceLabels
from engines.evaluation.scored_rows import check_something_was_scored
from engines.onnx_predictor import OnnxPredictor
from engines.progress import Progress
from exporter.keep_reference import OnImage, reference_kept
from exporter.request import ExportRequest
from exporter.results import reduces_zero_label
from exporter.work import Work


class Scorer:
    """`scores` of ONNX files against PyTorch, whose labels lie in a file; memory stays small.

    Attributes: `reference_miou`, of PyTorch, in percent, and `images`, how many were scored.
    """

    def __init__(
        self, request: ExportRequest, work: Work, references: References, first: Evaluation
    ) -> None:
        self._request, self._work, self._references = request, work, references
        self.reference_miou, self.images = first.rows[0].scores.miou, first.images

    def scores(self, paths: Sequence[Path], progress: Progress) -> tuple[float, float]:
        """mIoU and agreement with PyTorch in percent, of the worst of these forms of one graph."""
        with contextlib.ExitStack() as stack:
            predictors = [stack.enter_context(OnnxPredictor(path)) for path in paths]
            evaluation = _evaluated(
                self._request, self._work, predictors, progress.advance, self._references
            )
        mious = [row.scores.miou for row in evaluation.rows]
        worst = math.nan if any(map(math.isnan, mious)) else min(mious)
        return worst, min(row.agreement for row in evaluation.rows)


@contextlib.contextmanager
def scorer_of(
    request: ExportRequest, work: Work, folder: Path, reference: Predictor, progress: Progress
) -> Iterator[Scorer]:
    """Run PyTorch on the validation images once; `folder` takes its labels until the end.

    Raises DatasetError when no pixel of any mask has a label.
    """
    with tempfile.TemporaryDirectory(dir=folder) as place, contextlib.ExitStack() as stack:
        path = Path(place) / "reference.npz"
        with (
            progress.stage("score PyTorch"),
            reference_kept(reference, work.pairs, path, then=progress.advance) as recorder,
        ):
            first = _evaluated(request, work, [recorder], recorder.on_image, None)
        check_something_was_scored(first)
        labels = stack.enter_context(ReferenceLabels(path, hw=work.input.hw))
        yield Scorer(request, work, labels, first)


def _evaluated(
    request: ExportRequest,
    work: Work,
    predictors: Sequence[Predictor],
    on_image: OnImage,
    references: References | None,
) -> Evaluation:
    return evaluate_predictors(
        predictors,
        work.pairs,
        input=work.input,
        num_outputs=work.loaded.description.num_outputs,
        num_classes=work.loaded.named,
        reduce_zero_label=reduces_zero_label(request, work),
        convert_images=request.data.convert_images,
        skip_bad=request.data.skip_bad,
        references=references,
        on_image=on_image,
    )
