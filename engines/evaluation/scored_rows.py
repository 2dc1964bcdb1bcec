"""Rows of a report with their scores, and the gate: how much mIoU was lost at most."""

from __future__ import annotations

import math
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from engines.bundle import Gate
from engines.errors import DatasetError
from engines.evaluation.evaluate import Evaluation, Row

# The loss that stands for one that is not a number: a form that could not be scored.
NOT_SCORED = 100.0
_WORTH_TELLING = 0.005  # points of IoU of one class


def row_with_scores(row: Mapping[str, Any], found: Row) -> Dict[str, Any]:
    """A report row joined with the scores of its predictor; NaN becomes None."""
    scores = found.scores
    return {
        **row,
        "miou": scores.miou,
        "macc": scores.macc,
        "aacc": scores.aacc,
        "iou": [_number(value) for value in scores.iou],
        "acc": [_number(value) for value in scores.acc],
        "agreement": _number(found.agreement),
    }


def check_something_was_scored(evaluation: Evaluation) -> None:
    """DatasetError when no pixel of any mask has a label, so that there is no mIoU."""
    if not math.isfinite(evaluation.rows[0].scores.miou):
        raise DatasetError(
            f"{evaluation.images} masks in which no pixel has a label of a named class",
            expected="masks with the class index of each pixel; 255 means no label",
            do="check the masks, and whether zero means no label (--reduce-zero-label)",
        )


def gate_from_rows(
    rows: Sequence[Mapping[str, Any]], classes: Sequence[str], max_drop: float
) -> Tuple[Gate, List[Dict[str, Any]]]:
    """The largest loss of mIoU of any row against the first, and the classes that lost most.

    A loss that is not a number, because a form failed, fails the gate.
    """
    first, others = rows[0], rows[1:]
    worst = max(others, key=lambda row: _drop(first, row))
    drop = _drop(first, worst)
    before, after = first.get("iou") or (), worst.get("iou") or ()
    lost: List[Dict[str, Any]] = []
    for index, name in enumerate(classes[: min(len(before), len(after))]):
        if before[index] is not None and after[index] is not None:
            lost.append({"class": name, "drop": before[index] - after[index]})
    lost = [item for item in lost if item["drop"] > _WORTH_TELLING]
    lost.sort(key=lambda item: -float(item["drop"]))
    finite = drop if math.isfinite(drop) else NOT_SCORED
    return Gate(max_drop=max_drop, drop=finite, passed=drop <= max_drop), lost


def _drop(first: Mapping[str, Any], row: Mapping[str, Any]) -> float:
    before, after = first.get("miou"), row.get("miou")
    drop = math.nan if before is None or after is None else float(before) - float(after)
    return drop if math.isfinite(drop) else math.inf


def _number(value: float) -> Optional[float]:
    return value if math.isfinite(value) else None
