"""Reports of several machines beside each other: format "riceseg-comparison", version 1.

Rows are those of the reports, grouped by device and power mode; each keeps its change against the
first row of its own report. What makes figures of two reports not comparable is said in `warnings`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from engines.errors import ConfigError
from engines.reports.differences import difference_lines
from engines.reports.report import (
    FILE_NAME,
    Column,
    aligned_table,
    cell_text,
    checked_report,
    form_text,
    json_text,
    markdown_text,
    measured_columns,
    report_from_file,
    rows_with_change,
    write_text,
)

FORMAT, FORMAT_VERSION = "riceseg-comparison", 1
# What devices are compared by; the rest of what was measured is `detail_columns`.
_MAIN = (
    *("miou", "change", "agreement", "latency_p50_ms", "latency_p95_ms", "latency_p99_ms"),
    *("fps", "fps_events", "peak_memory_mb", "gpu_memory_mb", "power_w", "energy_mj"),
)
_KEPT = ("name", "created", "checkpoint", "machine", "versions", "data", "input_hw", "warnings")


def reports_from_paths(paths: Sequence[Path]) -> Tuple[List[Dict[str, Any]], List[str]]:
    """The reports in these files, or folders with a report.json, and where each was found.

    Raises BundleError for what is no report.
    """
    files = [path / FILE_NAME if path.is_dir() else path for path in paths]
    return [report_from_file(file) for file in files], [str(path) for path in paths]


def merged_report(
    reports: Sequence[Mapping[str, Any]], *, sources: Optional[Sequence[str]] = None
) -> Dict[str, Any]:
    """One document of several reports; `sources` says where each came from.

    Rows hold `report` (index), `group` (index), `change` and `is_reference` beside the fields of a
    report. Raises BundleError for a report that does not fit its format, ConfigError where the
    classes of two reports differ, since their mIoU would be of different things.
    """
    if not reports:
        raise ConfigError("no report", expected="one or more", do="name the report.json files")
    full = [checked_report(report) for report in reports]
    where = [f"report {i + 1}" for i in range(len(full))] if sources is None else list(sources)
    labels = _labels(full, where)
    named = _named_classes(full, labels)
    groups, members = _groups(full)
    rows = [
        {**row, "report": index, "group": group}
        for group, indices in enumerate(members)
        for index in indices
        for row in rows_with_change(full[index])
    ]
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "name": ", ".join(dict.fromkeys(report["name"] for report in full if report["name"])),
        "classes": full[named]["classes"],
        "palette": full[named]["palette"],
        "reports": [
            {"label": labels[i], "source": where[i], **{key: report[key] for key in _KEPT}}
            for i, report in enumerate(full)
        ],
        "groups": groups,
        "rows": rows,
        "warnings": difference_lines(full, labels),
    }


def merged_markdown(
    merged: Mapping[str, Any], *, shown: Callable[[str], str] = markdown_text
) -> str:
    """Warnings, then a table whose rows stand under their device, then why rows failed.

    `shown` makes a text harmless: `engines.progress.printable` for a terminal.
    """
    columns = merged_columns(merged)
    lines: List[str] = []
    if merged["warnings"]:
        lines += ["> **Not comparable as they are:**", ">"]
        lines += [f"> - {shown(line)}" for line in merged["warnings"]] + [""]
    headings = ["device", "form", "runtime", "precision", *(column[0] for column in columns)]
    table, above = [], ""
    for row in merged["rows"]:
        device = row_device(merged, row)
        cells = [cell_text(row, key, digits) for _, key, digits in columns]
        texts = [form_text(row), *(row[key] or "–" for key in ("runtime", "precision"))]
        table.append(["" if device == above else device, *texts, *cells])
        above = device
    lines += aligned_table(headings, table, left=4, shown=shown)
    for row in merged["rows"]:
        if row["error"]:
            name = f"{row_device(merged, row)}, {row['form']}"
            lines += ["", f"{shown(name)}: {shown(row['error'])}"]
    return "\n".join(lines) + "\n"


def write_merged(merged: Mapping[str, Any], folder: Path) -> List[Path]:
    """Writes comparison.json and comparison.md; their paths. OutputError if they cannot be."""
    texts = {"comparison.json": json_text(merged), "comparison.md": merged_markdown(merged)}
    for name, text in texts.items():
        write_text(folder / name, text)
    return [folder / name for name in texts]


def merged_columns(merged: Mapping[str, Any]) -> List[Column]:
    """Heading, key and digits of the columns by which devices are compared."""
    return [column for column in measured_columns(merged["rows"]) if column[1] in _MAIN]


def detail_columns(merged: Mapping[str, Any]) -> List[Column]:
    """The other columns of which a row has a value."""
    return [
        column
        for column in measured_columns(merged["rows"])
        if column[1] not in _MAIN and any(row[column[1]] is not None for row in merged["rows"])
    ]


def row_device(merged: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """What the row was measured on, with the report's path where two reports share it."""
    return str(merged["reports"][row["report"]]["label"])


def _groups(reports: Sequence[Mapping[str, Any]]) -> Tuple[List[Dict[str, Any]], List[List[int]]]:
    """Device and power mode of each group, in the order of the reports, and its reports."""
    members: Dict[Tuple[str, Optional[str]], List[int]] = {}
    for index, report in enumerate(reports):
        key = (device_of(report["machine"]), _power_mode(report["machine"]))
        members.setdefault(key, []).append(index)
    groups = [
        {"device": device, "power_mode": mode, "title": _title(device, mode)}
        for device, mode in members
    ]
    return groups, list(members.values())


def device_of(machine: Mapping[str, Any]) -> str:
    """The board or GPU of a machine record, else its processor."""
    for key in ("device", "gpu", "cpu"):
        if machine.get(key):
            return str(machine[key])
    return "device not recorded"


def _power_mode(machine: Mapping[str, Any]) -> Optional[str]:
    mode = machine.get("power_mode")
    return None if mode in (None, "") else str(mode)


def _title(device: str, power_mode: Optional[str]) -> str:
    return device if power_mode is None else f"{device} · {power_mode}"


def _labels(reports: Sequence[Mapping[str, Any]], sources: Sequence[str]) -> List[str]:
    """What a report is called: device and power mode, with its source where that is shared."""
    machines = [report["machine"] for report in reports]
    titles = [_title(device_of(machine), _power_mode(machine)) for machine in machines]
    return [
        title if titles.count(title) == 1 else f"{title} ({sources[i]})"
        for i, title in enumerate(titles)
    ]


def _named_classes(reports: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> int:
    """The index of the first report that names classes; all that do must name the same."""
    named = [i for i, report in enumerate(reports) if report["classes"]]
    for i in named:
        first, other = reports[named[0]]["classes"], reports[i]["classes"]
        if first != other:
            raise ConfigError(
                f"classes {_some(first)} in {labels[named[0]]} and {_some(other)} in {labels[i]}",
                expected="reports of the same classes in the same order",
                do="compare these reports apart",
            )
    return named[0] if named else 0


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:6])
    return f"[{shown}{', ...' if len(names) > 6 else ''}] ({len(names)})"
