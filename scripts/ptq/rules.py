"""What must hold of the measured rows; each rule is one line that is printed and recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MIN_WEIGHTED_PERCENT = 90.0  # of the multiply-accumulates of Conv and Linear


@dataclass(frozen=True)
class Limits:
    """max_drop: points of mIoU; min_agreement: percent of the pixels."""

    max_drop: float
    min_agreement: float


@dataclass(frozen=True)
class Check:
    text: str
    passed: bool


def checks_from_rows(
    rows: Sequence[Mapping[str, Any]], fp32: Mapping[str, Any], limits: Limits
) -> list[Check]:
    """Of one network; `rows` and `fp32` as `ptq.measure` records them.

    All graphs have FP32's multiply-accumulates, or the shares would not be comparable; each row of
    ours keeps the limits and builds (where builds were tried); each row of
    another tool agrees on less than the smallest of our judged rows (named beforehand, see
    `Row.is_judged`) with at least its shares in INT8. A row that failed, or whose figure is not a
    number, breaks the rules about it.
    """
    ours = [row for row in rows if row["ours"]]
    checks = [check for row in ours for check in own_checks(row, limits)]
    checks += [rival_check(row, ours) for row in rows if not row["ours"]]
    return [same_macs_check(rows, fp32), *checks]


def same_macs_check(rows: Sequence[Mapping[str, Any]], fp32: Mapping[str, Any]) -> Check:
    wanted = fp32["macs"], fp32["weighted_macs"]
    made = [row for row in rows if row["error"] is None]
    others = [shown_name(r) for r in made if (r["macs"], r["weighted_macs"]) != wanted]
    if others:
        return Check(f"other multiply-accumulates than FP32: {'; '.join(others)}", False)
    return Check(f"all graphs have FP32's {wanted[0]:,} multiply-accumulates", True)


def own_checks(row: Mapping[str, Any], limits: Limits) -> list[Check]:
    name = shown_name(row)
    if row["error"] is not None:
        return [Check(f"{name}: {row['error']}", False)]
    # A comparison with NaN is False, and so is every rule then.
    checks = [
        Check(
            f"{name}: drop of {row['drop']:.3f} points, at most {limits.max_drop}",
            row["drop"] <= limits.max_drop,
        ),
        Check(
            f"{name}: agreement of {row['agreement']:.3f} %, at least {limits.min_agreement} %",
            row["agreement"] >= limits.min_agreement,
        ),
        Check(
            f"{name}: {row['int8_weighted_percent']:.1f} % of Conv and Linear in INT8, "
            f"at least {MIN_WEIGHTED_PERCENT:.0f} %",
            row["int8_weighted_percent"] >= MIN_WEIGHTED_PERCENT,
        ),
    ]
    if row["build"] is not None:
        checks.append(Check(f"{name}: builds with TensorRT-RTX", row["build"]["built"]))
    return checks


def rival_check(rival: Mapping[str, Any], ours: Sequence[Mapping[str, Any]]) -> Check:
    """Whether the judged row of ours that is nearest to `rival` in INT8's shares beats it."""
    name = shown_name(rival)
    if rival["error"] is not None:
        return Check(f"{name}: not compared, {rival['error']}", False)
    equal = [
        row
        for row in ours
        if row["judged"]
        and row["error"] is None
        and row["int8_percent"] >= rival["int8_percent"]
        and row["int8_weighted_percent"] >= rival["int8_weighted_percent"]
    ]
    if not equal:
        return Check(f"{name}: no judged row of ours with as large a share in INT8", False)
    nearest = min(equal, key=lambda row: float(row["int8_percent"]))
    return Check(
        f"{shown_name(nearest)} agrees on {nearest['agreement']:.3f} % (INT8: {shares(nearest)}), "
        f"more than {name} on {rival['agreement']:.3f} % ({shares(rival)})",
        nearest["agreement"] > rival["agreement"],
    )


def shown_name(row: Mapping[str, Any]) -> str:
    return f"{row['tool']}, {row['title']}"


def shares(row: Mapping[str, Any]) -> str:
    return f"{row['int8_percent']:.1f} % of all, {row['int8_weighted_percent']:.1f} %"
