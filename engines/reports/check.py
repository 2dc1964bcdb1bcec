"""What a report must hold: format "riceseg-report", version 1, field by field.

Scores and agreement are percent, latency is ms, memory and files are MB = 1e6 bytes, power is W,
energy is mJ per image, a clock is MHz, a temperature is degrees Celsius; null means not measured.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Dict, Mapping

import numpy as np

from engines.reports.fields import KINDS, checked_record, require
from engines.reports.sections import SECTIONS, checked_section

FORMAT, FORMAT_VERSION = "riceseg-report", 1

_PERCENTS = ("miou", "macc", "aacc", "agreement")
_AMOUNTS = (
    *("latency_p50_ms", "latency_p95_ms", "latency_p99_ms", "latency_mean_ms"),
    *("copy_in_ms", "compute_ms", "copy_out_ms", "fps", "fps_events"),
    *("peak_memory_mb", "gpu_memory_mb", "file_mb"),
    *("power_w", "energy_mj", "gpu_clock_mhz"),
)
_ROW_KINDS = {
    **dict.fromkeys(("form", "precision", "runtime", "file", "sha256", "error"), "text"),
    **dict.fromkeys(_PERCENTS, "percent"),
    **dict.fromkeys(_AMOUNTS, "amount"),
    "temperature_c": "number",
    **dict.fromkeys(("iou", "acc", "notes"), "list"),
    **dict.fromkeys(("batch", "warmup", "runs", "threads"), "count"),
    "mode": "text",  # of the scores: whole images or windows ("slide")
    "tta": "text",  # test-time augmentation of the scores: none, flip, ms or ms+flip
    "power_source": "text",  # the rail or sensor that `power_w` was read from
    "throttled": "flag",
    "fusion": "object",  # what the engine inspector counted: layers, reformats and their time
}


def plain_document(value: Any) -> Any:
    """`value` as JSON has it: dict, list, str, int, bool, finite float or None.

    Numbers of numpy become Python's, NaN and infinity None. TypeError for what has no place in it.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Mapping):
        return {str(key): plain_document(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_document(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, (str, int)):
        return value
    raise TypeError(f"no place in a report for {type(value).__name__}")


def check_finite(document: Any, where: str = "") -> None:
    """BundleError naming the field of a JSON file that is NaN or infinite, which JSON has not.

    In memory they mean "not measured"; in a file they were written by another program.
    """
    if isinstance(document, float):
        require(math.isfinite(document), document, where or "the whole", "a number or null")
    elif isinstance(document, dict):
        for key, item in document.items():
            check_finite(item, f"{where}.{key}" if where else key)
    elif isinstance(document, list):
        for index, item in enumerate(document):
            check_finite(item, f"{where}[{index}]")


def checked_report(document: Any) -> Dict[str, Any]:
    """A copy of a report in plain JSON types, with every field of the format, None where missing.

    Raises BundleError that names the field which does not fit.
    """
    texts, lists = ("name", "format", "created", "mode"), ("rows", "classes", "palette", "warnings")
    objects = ("checkpoint", "machine", "versions", "data", "gate", "calibration", "parity")
    full = checked_record(
        plain_document(document),
        "report",
        **dict.fromkeys(texts, "text"),
        **dict.fromkeys((*lists, "worst", "input_hw"), "list"),
        **dict.fromkeys((*objects, "bands", *SECTIONS), "object"),
    )
    version = (full["format"], full.get("format_version"))
    require(version == (FORMAT, FORMAT_VERSION), version, "format", f"{FORMAT} version 1")
    full["name"] = full["name"] or ""
    for key in (*lists, "worst"):
        full[key] = full[key] or []
    for key in ("machine", "versions"):
        full[key] = full[key] or {}
    require(len(full["rows"]) > 0, full["rows"], "rows", "at least one row")
    require(all(isinstance(c, str) for c in full["classes"]), full["classes"], "classes", "names")
    require(
        all(isinstance(w, str) for w in full["warnings"]), full["warnings"], "warnings", "texts"
    )
    require(
        len(full["palette"]) == len(full["classes"]) and all(map(_is_rgb, full["palette"])),
        full["palette"],
        "palette",
        "one [red, green, blue] of 0 to 255 per class",
    )
    count = len(full["classes"])
    full["rows"] = [_row(row, f"rows[{i}]", count) for i, row in enumerate(full["rows"])]
    full["worst"] = [
        checked_record(w, "worst", image="text", agreement="percent") for w in full["worst"]
    ]
    return _with_records(full)


def _with_records(full: Dict[str, Any]) -> Dict[str, Any]:
    if full["checkpoint"] is not None:
        full["checkpoint"] = checked_record(
            full["checkpoint"], "checkpoint", file="text", sha256="text"
        )
    if full["data"] is not None:
        # `sha256` is of the images, so that two machines' folders can be told apart.
        kinds = {"folder": "text", "images": "count", "skipped": "list", "sha256": "text"}
        full["data"] = checked_record(full["data"], "data", **kinds)
    gate = full["gate"]
    if gate is not None:
        kinds = {"max_drop": "number", "drop": "number", "passed": "flag", "lost": "list"}
        full["gate"] = gate = checked_record(gate, "gate", **kinds)
        require(gate["passed"] is not None, None, "gate.passed", "true or false")
        kinds = {"class": "text", "drop": "number"}
        gate["lost"] = [checked_record(item, "gate.lost", **kinds) for item in gate["lost"] or []]
    record = full["calibration"]
    if record is not None:
        kinds = {"method": "text", "images": "count", "list": "list"}
        full["calibration"] = record = checked_record(record, "calibration", **kinds)
        kinds = {"file": "text", "sha256": "text"}
        items = record["list"] or []
        record["list"] = [checked_record(item, "calibration.list", **kinds) for item in items]
    if full["bands"] is not None:
        # `text` is the whole record in words.
        kinds = dict.fromkeys(("letters", "norm", "text"), "text")
        full["bands"] = checked_record(full["bands"], "bands", **kinds)
    for name in SECTIONS:
        if full[name] is not None:
            full[name] = checked_section(name, full[name])
    return full


def _row(row: Any, where: str, num_classes: int) -> Dict[str, Any]:
    full = checked_record(row, where, **_ROW_KINDS)
    require(bool(full["form"]), full["form"], f"{where}.form", "a name")
    notes = full["notes"] or []
    require(all(isinstance(n, str) for n in notes), notes, f"{where}.notes", "texts")
    for key in ("iou", "acc"):
        values = [None] * num_classes if full[key] is None else full[key]
        fits = len(values) == num_classes
        fits &= all(value is None or KINDS["percent"](value) for value in values)
        expected = f"{num_classes} numbers or nulls, from 0 to 100, one per class"
        require(fits, values, f"{where}.{key}", expected)
    return full


def _is_rgb(colour: Any) -> bool:
    if not isinstance(colour, list) or len(colour) != 3:
        return False
    return all(type(part) is int and 0 <= part <= 255 for part in colour)
