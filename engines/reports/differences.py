"""What keeps the figures of several reports from being compared as they are."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence

from engines.board import comparable

NOT_RECORDED = "not recorded"

Report = Mapping[str, Any]


def difference_lines(reports: Sequence[Report], labels: Sequence[str]) -> List[str]:
    """A line for each difference; `labels` are the reports' names, `reports` are checked ones."""
    return [
        *_differing("model", reports, labels, _checkpoint),
        *_differing("validation images", reports, labels, _data),
        *_differing("input size", reports, labels, _input_hw),
        *_differing("test mode", reports, labels, _mode),
        *_differing("batch", reports, labels, _batch),
        *_setting_lines(reports, labels),
        *_clock_lines(reports, labels),
        *_throttled_lines(reports, labels),
    ]


def _differing(
    title: str, reports: Sequence[Report], labels: Sequence[str], text_of: Callable[[Report], str]
) -> List[str]:
    """One line with every value and the reports that have it, if there is more than one."""
    found: Dict[str, List[str]] = {}
    for report, label in zip(reports, labels):
        found.setdefault(text_of(report), []).append(label)
    if len(found) < 2:
        return []
    values = "; ".join(f"{text} ({', '.join(names)})" for text, names in found.items())
    return [f"{title}: {values}"]


def _checkpoint(report: Report) -> str:
    checkpoint = report["checkpoint"] or {}
    sha256 = checkpoint.get("sha256")
    return f"checkpoint {sha256[:12]}" if sha256 else f"checkpoint {NOT_RECORDED}"


def _data(report: Report) -> str:
    data = report["data"] or {}
    if not data.get("images"):
        return "none"
    sha256 = data.get("sha256")
    return f"{data['images']} images" + (f", SHA-256 {sha256[:12]}" if sha256 else "")


def _input_hw(report: Report) -> str:
    sides = report["input_hw"]
    return " × ".join(str(side) for side in sides) if sides else NOT_RECORDED


def _mode(report: Report) -> str:
    """Whole images or windows, and each test-time augmentation that there is."""
    used = dict.fromkeys(row["tta"] for row in report["rows"] if row["tta"] not in (None, "none"))
    return ", ".join([report["mode"] or "whole", *used])


def _batch(report: Report) -> str:
    sizes = dict.fromkeys(row["batch"] for row in report["rows"] if row["batch"] is not None)
    return ", ".join(map(str, sizes)) or NOT_RECORDED


def _setting_lines(reports: Sequence[Report], labels: Sequence[str]) -> List[str]:
    """Power mode, limits and clocks, by `engines.board.comparable`, once per pair of settings."""
    alike: List[List[int]] = []
    for i, report in enumerate(reports):
        for members in alike:
            if not comparable(reports[members[0]]["machine"], report["machine"]):
                members.append(i)
                break
        else:
            alike.append([i])
    lines = []
    for i, first in enumerate(alike):
        for other in alike[i + 1 :]:
            a, b = reports[first[0]]["machine"], reports[other[0]]["machine"]
            # Different devices are what the table is for, and stand in it.
            told = [line for line in comparable(a, b) if not line.startswith("device:")]
            if told:
                names = [", ".join(labels[k] for k in members) for members in (first, other)]
                lines.append(f"{names[0]} beside {names[1]}: {'; '.join(told)}")
    return lines


def _clock_lines(reports: Sequence[Report], labels: Sequence[str]) -> List[str]:
    free = [labels[i] for i, report in enumerate(reports) if _fixed(report["machine"]) is False]
    return [f"clocks are free, figures vary with load and heat: {', '.join(free)}"] if free else []


def _fixed(machine: Mapping[str, Any]) -> Optional[bool]:
    clocks = machine.get("clocks")
    fixed = clocks.get("fixed") if isinstance(clocks, Mapping) else None
    return fixed if isinstance(fixed, bool) else None


def _throttled_lines(reports: Sequence[Report], labels: Sequence[str]) -> List[str]:
    return [
        f"throttled while it was measured: {row['form']} on {labels[i]}"
        for i, report in enumerate(reports)
        for row in report["rows"]
        if row["throttled"]
    ]
