"""What an export measured: the report, the gate and the bundle's record."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from engines.board.machine import package_versions
from engines.bundle import BuildHints, Bundle, CheckpointInfo, Gate, ModelInfo
from engines.evaluation.evaluate import Evaluation, Predictor
from engines.evaluation.reference import FILES_KEY
from engines.evaluation.scored_rows import gate_from_rows
from engines.progress import Progress, printable
from engines.speed.forms import Form, onnx_forms
from exporter.band_graphs import bands_info
from exporter.keep_reference import FILE_NAME, OnImage, reference_kept
from exporter.measure import (
    ScoredModel,
    onnx_row,
    open_predictors,
    report_record,
    scored,
    scored_model,
    torch_row,
    with_scores,
)
from exporter.network_images import left_out_lines
from exporter.onnx_graph import ImageToLabels
from exporter.preparation import preparation_from_config
from exporter.request import ExportRequest
from exporter.strips import Strip
from exporter.torch_predictor import TorchPredictor
from exporter.work import Work


def measured(
    request: ExportRequest,
    work: Work,
    folder: Path,
    reference: ImageToLabels,
    progress: Progress,
) -> tuple[dict[str, Any], list[Strip], Gate | None]:
    predictor = TorchPredictor(reference)
    model = replace(scored_model(work.loaded, work.input), bands=bands_info(request, work.input))
    forms = onnx_forms(folder, work.files)
    rows = _speed_rows(request, work, model, forms, predictor, progress)
    strips: list[Strip] = []
    gate: Gate | None = None
    lost: list[dict[str, Any]] = []
    evaluation: Evaluation | None = None
    if work.pairs:
        with progress.stage("evaluate"):
            evaluation, strips = _evaluated(request, work, folder, predictor, progress)
        rows = with_scores(rows, evaluation)
        gate, lost = gate_from_rows(rows, model.classes, request.max_drop)
        work.warnings += left_out_lines("validation", evaluation.skipped)
    work.warnings += speed_warnings(rows[1:])
    report = report_record(model, rows, request.data, evaluation, work.warnings)
    report["gate"] = None if gate is None else {**asdict(gate), "lost": lost}
    report["calibration"] = _calibration_record(work)
    report["precision_search"], report["techniques"] = work.search, work.techniques
    report["parity"] = None if work.parity is None else asdict(work.parity)
    return report, strips, gate


def _evaluated(
    request: ExportRequest,
    work: Work,
    folder: Path,
    reference: TorchPredictor,
    progress: Progress,
) -> tuple[Evaluation, list[Strip]]:
    """Every form of the bundle beside PyTorch, whose labels are kept if that was asked for."""
    with contextlib.ExitStack() as stack:
        first: Predictor = reference
        on_image: OnImage = progress.advance
        if request.keep_reference:
            path = folder / FILE_NAME
            recorder = stack.enter_context(
                reference_kept(reference, work.pairs, path, then=on_image)
            )
            first, on_image = recorder, recorder.on_image
        forms = onnx_forms(folder, work.files)
        evaluation, strips = scored(
            scored_model(work.loaded, work.input),
            stack.enter_context(open_predictors(forms, first)),
            work.pairs,
            request.data,
            reduce_zero_label=reduces_zero_label(request, work),
            on_image=on_image,
        )
    if request.keep_reference:
        work.add(folder, FILES_KEY, FILE_NAME)
    return evaluation, strips


def reduces_zero_label(request: ExportRequest, work: Work) -> bool:
    told = request.data.reduce_zero_label
    return bool(work.loaded.settings.reduce_zero_label) if told is None else told


def _speed_rows(
    request: ExportRequest,
    work: Work,
    model: ScoredModel,
    forms: Sequence[Form],
    predictor: TorchPredictor,
    progress: Progress,
) -> list[dict[str, Any]]:
    with progress.stage("time each form"):
        total = 1 + len(forms)
        progress.advance(0, total)
        rows = [torch_row(model, work.loaded.checkpoint, predictor.name, request.runs)]
        for form in forms:
            progress.advance(len(rows), total)
            rows.append(onnx_row(form, request.runs))
        progress.advance(total, total)
    return rows


def speed_warnings(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Of the ONNX rows: a CPU shows the accuracy of INT8, not what a GPU gains by it."""
    speed = {row["precision"]: row.get("latency_p50_ms") for row in rows}
    fp32, int8 = speed.get("fp32"), speed.get("int8")
    if fp32 is None or int8 is None or int8 <= fp32:
        return []
    return [
        f"on this CPU INT8 is slower than FP32 ({int8:.0f} against {fp32:.0f} ms): ONNX Runtime's "
        "CPU kernels show INT8's accuracy, not the speed it has on a GPU"
    ]


def _calibration_record(work: Work) -> dict[str, Any] | None:
    if work.calibrated is None or work.quantized is None or work.policy is None:
        return None
    recipe, ranges, quantized = work.calibrated.recipe, work.calibrated.ranges, work.quantized
    return {
        "method": ranges.method,
        "percentile": ranges.percentile,
        "equalize": recipe.equalize,
        "rounding": recipe.rounding,
        "bias_correction": recipe.bias_correction,
        "images": ranges.images,
        "int8_nodes": len(quantized.nodes),
        "float_nodes": list(quantized.float_nodes),
        "float_groups": list(work.policy.float_groups),
        "int8_macs_percent": quantized.int8_macs_percent,
        "int8_weighted_percent": quantized.int8_weighted_percent,
        "list": [{"file": printable(item.path.name), "sha256": item.sha256} for item in work.calib],
    }


def bundle_of(request: ExportRequest, work: Work, gate: Gate | None, created: str) -> Bundle:
    loaded, found = work.loaded, work.loaded.description
    settings = loaded.settings
    preparation, _ = preparation_from_config(loaded.checkpoint.config_text or "", settings)
    return Bundle(
        name=found.name,
        created=created,
        model=ModelInfo(**{f.name: getattr(found, f.name) for f in fields(ModelInfo)}),
        checkpoint=CheckpointInfo(printable(loaded.checkpoint.path.name), loaded.checkpoint.sha256),
        input=work.input,
        outputs=work.spec.output_names,
        classes=loaded.classes[: loaded.named],
        palette=loaded.palette[: loaded.named],
        num_outputs=found.num_outputs,
        reduce_zero_label=reduces_zero_label(request, work),
        test_mode={
            "mode": settings.test_mode or "whole",
            "crop_size": list(settings.crop_size) if settings.crop_size else None,
            "stride": list(settings.stride) if settings.stride else None,
            "align_corners": bool(settings.align_corners),
            **preparation.record(),
        },
        opset=work.spec.opset,
        files=work.files,
        calibration=_calibration_record(work),
        parity=None if work.parity is None else asdict(work.parity),
        report="report.json",
        gate=gate,
        warnings=tuple(work.warnings),
        versions=package_versions(),
        build=BuildHints(work.target.name, work.fp32_nodes),
        bands=bands_info(request, work.input),
    )
