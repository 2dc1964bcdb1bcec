"""Report, gate and bundle record of an export whose source is a quantized graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from engines.board.machine import package_versions
from engines.bundle import BuildHints, Bundle, CheckpointInfo, Gate, ModelInfo
from engines.evaluation.evaluate import Evaluation
from engines.evaluation.scored_rows import gate_from_rows
from engines.progress import Progress, printable
from engines.speed.forms import Form, onnx_forms
from exporter.band_graphs import bands_info
from exporter.measure import onnx_row, open_predictors, report_record, scored, with_scores
from exporter.network_images import left_out_lines
from exporter.qat.work import QuantizedWork
from exporter.request import ExportRequest
from exporter.results import speed_warnings
from exporter.strips import Strip


def measured(
    request: ExportRequest, work: QuantizedWork, folder: Path, progress: Progress
) -> tuple[dict[str, Any], list[Strip], Gate | None]:
    """As `exporter.results.measured`, with FP32 in ONNX Runtime in the place of PyTorch."""
    forms = onnx_forms(folder, work.files)
    rows = _speed_rows(request, forms, progress)
    strips: list[Strip] = []
    gate: Gate | None = None
    lost: list[dict[str, Any]] = []
    evaluation: Evaluation | None = None
    if work.pairs:
        with progress.stage("evaluate"), open_predictors(forms, None) as predictors:
            evaluation, strips = scored(
                work.model,
                predictors,
                work.pairs,
                request.data,
                reduce_zero_label=bool(request.data.reduce_zero_label),
                on_image=progress.advance,
            )
        rows = with_scores(rows, evaluation)
        gate, lost = gate_from_rows(rows, work.model.classes, request.max_drop)
        work.warn(*left_out_lines("validation", evaluation.skipped))
    work.warn(*speed_warnings(rows))
    report = report_record(work.model, rows, request.data, evaluation, work.warnings)
    report["gate"] = None if gate is None else {**asdict(gate), "lost": lost}
    report["calibration"] = _calibration_record(work)
    return report, strips, gate


def _speed_rows(
    request: ExportRequest, forms: Sequence[Form], progress: Progress
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    with progress.stage("time each form"):
        for form in forms:
            progress.advance(len(rows), len(forms))
            rows.append(onnx_row(form, request.runs))
        progress.advance(len(rows), len(forms))
    return rows


def _calibration_record(work: QuantizedWork) -> dict[str, Any]:
    found = work.scales
    assert found is not None  # set when the INT8 graph was written
    return {
        "method": f"none here: {found.activations} activations and {found.weights} weights keep "
        f"the scales of {printable(work.source.path.name)}",
        "percentile": None,
        "equalize": False,
        "rounding": "nearest",
        "bias_correction": False,
        "images": 0,
        "int8_nodes": len(found.nodes),
        "float_nodes": list(found.float_nodes),
        "float_groups": [],
        "int8_macs_percent": found.int8_macs_percent,
        "int8_weighted_percent": found.int8_weighted_percent,
        "list": [],
    }


def bundle_of(
    request: ExportRequest, work: QuantizedWork, gate: Gate | None, created: str
) -> Bundle:
    source, model = work.source, work.model
    assert model.checkpoint is not None  # the ONNX file
    return Bundle(
        name=printable(model.name),
        created=created,
        model=ModelInfo(
            architecture="onnx",
            variant="quantized",
            head=None,
            head_channels=None,
            in_channels=source.input.channels,
            num_outputs=source.num_outputs,
            parameters=_parameters(source.float32),
            source=printable(source.given.producer_name)[:300] or "not known",
        ),
        checkpoint=CheckpointInfo(printable(model.checkpoint["file"]), model.checkpoint["sha256"]),
        input=source.input,
        outputs=source.outputs,
        classes=model.classes,
        palette=model.palette,
        num_outputs=source.num_outputs,
        reduce_zero_label=bool(request.data.reduce_zero_label),
        test_mode={"mode": "whole", "crop_size": None, "stride": None},
        opset=source.opset,
        files=work.files,
        calibration=_calibration_record(work),
        parity=None,
        report="report.json",
        gate=gate,
        warnings=tuple(work.warnings),
        versions=package_versions(),
        build=BuildHints(work.target.name, work.fp32_nodes),
        bands=bands_info(request, source.input),
    )


def _parameters(model: Any) -> int:
    """Floating-point constants with two axes or more, and biases: what was trained."""
    total = 0
    for tensor in model.graph.initializer:
        size = 1
        for side in tensor.dims:
            size *= side
        total += size if tensor.data_type == 1 and len(tensor.dims) else 0
    return total
