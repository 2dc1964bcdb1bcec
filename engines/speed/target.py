"""Speed of every form of a bundle, or of one file, as the rows of a report."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

from engines.board import machine_record, package_versions
from engines.bundle import bundle_from_folder
from engines.bundle_bands import bands_record
from engines.progress import Progress, SilentProgress
from engines.reports.report import FORMAT, FORMAT_VERSION
from engines.speed.benchmark import benchmark_engine, benchmark_onnx
from engines.speed.forms import (
    ENGINE_SUFFIX,
    Form,
    engine_made_for,
    form_row,
    forms_from_target,
    is_bundle,
)
from engines.speed.timing import check_counts


@dataclass(frozen=True)
class BenchmarkOptions:
    """`threads` are ONNX Runtime's, None for all cores; `batch` None is the file's own, or 1."""

    runs: int = 30
    warmup: int = 5
    threads: Optional[int] = None
    batch: Optional[int] = None


def benchmark_target(
    path: Path,
    precision: Optional[str] = None,
    *,
    options: Optional[BenchmarkOptions] = None,
    progress: Optional[Progress] = None,
) -> List[Dict[str, Any]]:
    """A report row for each form of `path`: a bundle (ONNX files, then engines), .onnx or .engine.

    `precision` keeps the forms of a bundle that have it. A form that cannot be run keeps its reason
    in the row's `error`; of the engines of a bundle, those made for other GPUs and versions are
    left out where one of the same kind ran.
    Raises ConfigError or BundleError if there is nothing to time.
    """
    given = BenchmarkOptions() if options is None else options
    check_counts(given.runs, given.warmup)
    forms = forms_from_target(path, precision)
    shown = SilentProgress() if progress is None else progress
    rows = []
    with shown.stage("time each form"):
        for i, form in enumerate(forms):
            shown.advance(i, len(forms))
            rows.append(_row(form, given))
        shown.advance(len(forms), len(forms))
    return _without_foreign_engines(forms, rows)


def benchmark_report(path: Path, rows: Sequence[Dict[str, Any]]) -> Dict[str, Any]:
    """The rows of `benchmark_target` as a report of this machine, without scores.

    `riceseg report` merges it with others; of a bundle it holds the classes and the checkpoint.
    """
    bundle = bundle_from_folder(path) if is_bundle(path) else None
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    report: Dict[str, Any] = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "name": path.stem if bundle is None else bundle.name,
        "created": now,
        "machine": machine_record(),
        "versions": package_versions(),
        "rows": list(rows),
    }
    if bundle is not None:
        checkpoint = bundle.checkpoint
        report["checkpoint"] = {"file": checkpoint.file, "sha256": checkpoint.sha256}
        report["input_hw"] = list(bundle.input.hw)
        report["bands"] = bands_record(bundle.bands)
        report["classes"] = list(bundle.classes)
        report["palette"] = [list(rgb) for rgb in bundle.palette]
    return report


def _row(form: Form, options: BenchmarkOptions) -> Dict[str, Any]:
    counts: Dict[str, Any] = {"runs": options.runs, "warmup": options.warmup}
    counts["batch"] = options.batch
    if form.path.suffix == ENGINE_SUFFIX:
        return form_row(form, lambda: benchmark_engine(form.path, **counts))
    return form_row(form, lambda: benchmark_onnx(form.path, threads=options.threads, **counts))


def _without_foreign_engines(
    forms: Sequence[Form], rows: Sequence[Dict[str, Any]]
) -> List[Dict[str, Any]]:
    """A bundle collects the engines of every board it was on; the others are refused here."""
    made_for = [engine_made_for(form.path) for form in forms]
    ran = {(row["form"], made_for[i]) for i, row in enumerate(rows) if row["error"] is None}
    names = {name for name, _ in ran}
    return [
        row
        for i, row in enumerate(rows)
        if row["error"] is None
        or made_for[i] is None
        or row["form"] not in names
        or (row["form"], made_for[i]) in ran
    ]
