"""A device's report as text that reads well on a terminal and in Markdown alike."""

from __future__ import annotations

from typing import Any, Callable, List, Mapping, Sequence, Tuple

from engines.reports.fusion import fusion_line, fusion_notes
from engines.reports.report import (
    COLUMNS,
    NOT_MEASURED,
    aligned_table,
    cell_text,
    checked_report,
    form_text,
    markdown_text,
    rows_with_change,
)

Shown = Callable[[str], str]

# Headings of the tables and the keys of their columns.
_TABLES = (
    ("Accuracy", "miou change macc aacc agreement"),
    (
        "Time of a call",
        "copy_in_ms compute_ms copy_out_ms latency_p50_ms latency_p95_ms latency_p99_ms fps "
        "fps_events",
    ),
    ("Memory and file", "peak_memory_mb gpu_memory_mb file_mb"),
    ("Board while it ran", "power_w energy_mj gpu_clock_mhz temperature_c throttled"),
)
_FOOTNOTES = {
    "Accuracy": "Percent; change is that of mIoU to the first row, equal % counts the pixels that "
    "have PyTorch's label at the network's resolution.",
    "Time of a call": "p50, p95 and p99 are end to end, image in host memory to labels in host "
    "memory, and fps is their number divided by their total time (mmsegmentation's protocol, "
    "synchronised, after the warm-up); copies, compute and fps (events) are by CUDA events, "
    "measured in calls of their own.",
}


def text_of_report(report: Mapping[str, Any], *, shown: Shown = markdown_text) -> str:
    """Tables of accuracy, time, memory and power, IoU per class, the board, warnings.

    `shown` makes a text of the report harmless: `engines.progress.printable` for a terminal.
    """
    full = checked_report(report)
    rows = rows_with_change(full)
    parts = [f"# {shown(full['name'])}", _about(full, shown)]
    scored = bool((full["data"] or {}).get("images"))
    for title, keys in _TABLES:
        if title == "Accuracy" and not scored:
            continue  # of a benchmark, which looks at no labelled image
        parts += [f"## {title}", _table_of_rows(rows, keys.split(), shown)]
        if title in _FOOTNOTES:
            parts.append(_FOOTNOTES[title])
    layers = _layer_lines(rows, shown)
    if layers:
        parts += ["## Layers of the engines", layers]
    with_classes = [row for row in rows if any(value is not None for value in row["iou"] or ())]
    if with_classes:
        parts += ["## IoU of each class", _class_table(full["classes"], with_classes, shown)]
    parts += ["## Board", _machine_lines(full, shown)]
    failed = [f"{row['form']} failed: {row['error']}" for row in rows if row["error"]]
    said = [f"- {shown(line)}" for line in (*failed, *full["warnings"])]
    if said:
        parts += ["## To be known", "\n".join(said)]
    return "\n\n".join(parts) + "\n"


def _about(full: Mapping[str, Any], shown: Shown) -> str:
    data = full["data"] or {}
    height, width = full["input_hw"] or ("?", "?")
    looked_at = "windows" if full.get("mode") == "slide" else "whole images"
    lines = [
        f"- measured: {full['created']}",
        f"- input: {height}x{width}, {looked_at}",
    ]
    if full["bands"] and full["bands"]["text"]:
        lines.append(f"- bands: {full['bands']['text']}")
    if data.get("images"):
        left_out = f", {len(data['skipped'])} left out" if data.get("skipped") else ""
        lines.append(f"- validation: {data['images']} images in {data['folder']}{left_out}")
    for row in full["rows"]:
        if row["file"] and row["sha256"]:
            runs = "" if row["runs"] is None else f", {row['runs']} calls timed"
            runs += "" if row["warmup"] is None else f" after {row['warmup']} for warm-up"
            batch = "" if row["batch"] is None else f", batch {row['batch']}"
            lines.append(
                f"- {row['form']}: {row['runtime']}, {row['file']}, "
                f"SHA-256 {row['sha256'][:12]}{batch}{runs}"
            )
    return "\n".join(f"- {shown(line[2:])}" for line in lines)


def _table_of_rows(rows: Sequence[Mapping[str, Any]], keys: Sequence[str], shown: Shown) -> str:
    """Rows and columns that have a figure, and failed rows; then what was not measured at all."""
    wanted = [column for key in keys for column in COLUMNS if column[1] == key]
    columns = [column for column in wanted if any(row[column[1]] is not None for row in rows)]
    told = [
        row for row in rows if row["error"] or any(row[key] is not None for _, key, _ in columns)
    ]
    parts = []
    if columns:
        cells = [
            [form_text(row), *(cell_text(row, key, digits) for _, key, digits in columns)]
            for row in told
        ]
        parts.append(
            "\n".join(aligned_table(["form", *(h for h, _, _ in columns)], cells, shown=shown))
        )
    missing = [heading for heading, key, _ in wanted if key not in [c[1] for c in columns]]
    if missing:
        parts.append(f"{NOT_MEASURED.capitalize()}: {', '.join(missing)}.")
    return "\n\n".join(parts)


def _layer_lines(rows: Sequence[Mapping[str, Any]], shown: Shown) -> str:
    """What fused in each engine, and what of it could not be told."""
    lines: List[str] = []
    for row in rows:
        told = fusion_line(row["fusion"] or {})
        lines += [f"{row['form']}: {told}"] if told else []
        lines += [f"{row['form']}: {note}" for note in fusion_notes(row["fusion"] or {})]
    return "\n".join(f"- {shown(line)}" for line in lines)


def _class_table(classes: Sequence[str], rows: Sequence[Mapping[str, Any]], shown: Shown) -> str:
    cells = [
        [name, *("–" if row["iou"][i] is None else f"{row['iou'][i]:.2f}" for row in rows)]
        for i, name in enumerate(classes)
    ]
    return "\n".join(aligned_table(["class", *(row["form"] for row in rows)], cells, shown=shown))


def _machine_lines(full: Mapping[str, Any], shown: Shown) -> str:
    lines = [f"- {key}: {text}" for key, text in _flat(full["machine"])]
    sources = dict.fromkeys(row["power_source"] for row in full["rows"] if row["power_source"])
    lines += [f"- power: {source}" for source in sources]
    lines += [f"- {name} {version}" for name, version in full["versions"].items()]
    return "\n".join(f"- {shown(line[2:])}" for line in lines)


def _flat(record: Mapping[str, Any]) -> List[Tuple[str, str]]:
    found: List[Tuple[str, str]] = []
    for key, value in record.items():
        name = key.replace("_", " ")
        if isinstance(value, Mapping):
            text = ", ".join(f"{inner.replace('_', ' ')} {_plain(v)}" for inner, v in value.items())
            found.append((name, text))
        elif value is not None:
            found.append((name, _plain(value)))
    return found


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ".".join(map(str, value))
    return str(value)
