"""What the terminal shows of a report's parts about INT8."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from engines.progress import duration_text, printable

Section = Mapping[str, Any]  # as `engines.reports.sections` checks it


def sensitivity_table(section: Section) -> Table:
    """A line per group, in the order of the network."""
    headings = (
        "group", "MACs %", "mIoU lost", "SQNR dB", "equal %", "weights max", "activations",
        "range kept", "outliers %",
    )  # fmt: skip
    table = _table(headings)
    for group in section["groups"]:
        low, high = group["activation_low"], group["activation_high"]
        table.add_row(
            Text(printable(group["name"])),
            _number(group["macs_percent"], 1),
            _number(group["miou_drop"], 3),
            _number(group["sqnr_db"], 1),
            _number(group["agreement"], 2),
            _short(group["weight_max"]),
            _missing() if low is None or high is None else f"{low:.3g}..{high:.3g}",
            _short(group["clip"]),
            _number(group["outlier_percent"], 3),
        )
    if section["reference_miou"] is None:
        table.caption = Text("n/m: not measured (no --val)")
    return table


def search_table(section: Section) -> Table:
    """A line per trial of a precision search."""
    headings = ("trial", "mIoU", "lost", "equal %", "INT8 %", "time", "within")
    table = _table(headings)
    for trial in section["trials"]:
        table.add_row(
            _trial_name(trial, chosen=trial["rung"] == section["chosen"]),
            _number(trial["miou"], 2),
            _number(trial["drop"], 2),
            _number(trial["agreement"], 2),
            _number(trial["int8_percent"], 1),
            _missing() if trial["seconds"] is None else duration_text(trial["seconds"]),
            _passed(trial["passed"]),
        )
    return table


def search_line(section: Section) -> str:
    """ "precision: INT8 of every layer, 4 trials in 2 min 03 s, limit 0.50 mIoU points"."""
    parts = [f"precision: {section['chosen'] or 'none was chosen'}"]
    count = len(section["trials"])
    tried = f"{count} trial{'' if count == 1 else 's'}"
    seconds = section["seconds"]
    parts.append(tried if seconds is None else f"{tried} in {duration_text(seconds)}")
    if section["max_drop"] is not None:
        parts.append(f"limit {section['max_drop']:.2f} mIoU points")
    return ", ".join(parts)


def techniques_table(section: Section) -> Table:
    """A line per technique: SQNR and agreement of the INT8 graph with it and without."""
    headings = ("technique", "used", "SQNR dB", "without", "equal %", "without", "time")
    table = _table(headings)
    for row in section["rows"]:
        table.add_row(
            Text(printable(row["name"])),
            _missing() if row["used"] is None else "yes" if row["used"] else "no",
            _number(row["sqnr_db"], 2),
            _number(row["sqnr_db_without"], 2),
            _number(row["agreement"], 3),
            _number(row["agreement_without"], 3),
            _missing() if row["seconds"] is None else duration_text(row["seconds"]),
        )
    return table


def int8_parts(report: Mapping[str, Any]) -> Iterator[Table | Text]:
    """What a checked report says of the search for a precision and of the techniques, if at all."""
    if report["precision_search"] is not None:
        yield Text()
        yield search_table(report["precision_search"])
        yield Text(printable(search_line(report["precision_search"])))
    if report["techniques"] is not None:
        yield Text()
        yield techniques_table(report["techniques"])


def _table(headings: Sequence[str]) -> Table:
    """As narrow as it gets, so that 80 columns are enough; only the first column may wrap."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, caption_justify="left")
    table.add_column(headings[0], overflow="fold")
    for heading in headings[1:]:
        table.add_column("\n".join(heading.split()), justify="right", no_wrap=True)
    return table


def _trial_name(trial: Section, *, chosen: bool) -> Text:
    """Its title and, below, the groups that stayed in floating point or why it failed."""
    name = Text(printable(trial["rung"]), "bold" if chosen else "")
    more = trial["error"] or ", ".join(trial["float_groups"])
    return Text.assemble(name, (f"\n  {printable(more)}", "dim")) if more else name


def _passed(passed: bool | None) -> Text:
    if passed is None:
        return _missing()
    return Text("yes", "green") if passed else Text("no", "red")


def _number(value: float | None, digits: int) -> Text:
    # -0.001 would be shown as "-0.00", which reads as a gain.
    return _missing() if value is None else Text(f"{round(value, digits) + 0.0:.{digits}f}")


def _short(value: float | None) -> Text:
    return Text("–", "dim") if value is None else Text(f"{value:.3g}")


def _missing() -> Text:
    return Text("n/m", "dim")
