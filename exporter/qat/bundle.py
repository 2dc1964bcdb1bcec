"""A quantized ONNX file -> a measured bundle whose INT8 graph has the file's own scales."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from calibration.float16_risk import float16_risks, float16_warning, fp32_nodes_for
from calibration.fp16 import fp16_onnx_from_onnx
from calibration.onnx_file import (
    model_from_onnx_file,
    node_label,
    probe_batch,
    write_checked_onnx,
)
from calibration.ranges_json import ranges_to_json
from calibration.trt_cache import write_calibration_cache
from engines.bundle import Gate, write_bundle_json
from engines.dataset import calibration_images_from, pairs_from_folder
from engines.errors import ConfigError, GateError, GraphError
from engines.images import sha256_of_file
from engines.progress import Progress
from exporter.band_graphs import bands_info, check_bands, write_fused_graphs
from exporter.classes import checked_classes, classes_from_file
from exporter.measure import ScoredModel
from exporter.network_images import evenly, left_out_lines, network_images
from exporter.qat.graph_rewrites import layer_norm_parts
from exporter.qat.measured import bundle_of, measured
from exporter.qat.promises import check_same_answer, check_scales_kept
from exporter.qat.quantizers import DEQUANTIZE, QUANTIZE
from exporter.qat.scales import ranges_from_quantizers, scale_record
from exporter.qat.source import QuantizedSource, quantized_source
from exporter.qat.work import QuantizedWork
from exporter.report import write_report
from exporter.request import ExportRequest, Int8Options
from exporter.simplify import simplify_onnx
from exporter.staging import whole_folder
from exporter.targets import target_named, target_warnings

RISK_IMAGES = 8  # of the validation images, where no others were given
SCALES_AS_FLOAT16_FROM = 19  # the first opset whose Q/DQ takes float16 scales


def export_quantized_onnx(
    request: ExportRequest, progress: Progress
) -> tuple[dict[str, Any], Gate | None]:
    """The report and the gate (None without --val) of the bundle in `request.out`.

    The first row, which the others are compared with, is the graph without its Q/DQ pairs: there
    is no PyTorch. Raises UserError for input that cannot be used, and leaves no folder then.
    """
    _check_options(request)
    with whole_folder(request.out, overwrite=request.overwrite) as folder:
        with progress.stage("load"):
            work = _load(request, progress)
        with progress.stage("take the Q/DQ pairs out"):
            _write_float32(work, folder, request)
        with progress.stage("write INT8 with its own scales"):
            _write_int8(work, folder)
        with progress.stage("look for FP16 overflows"):
            _find_risks(work, folder, request, progress)
        if request.fp16:
            with progress.stage("write FP16"):
                _write_half(work, folder, "fp32", "fp16")
        if work.source.half or work.target.int8_fp16:
            with progress.stage("write INT8 with FP16"):
                _write_int8_half(work, folder)
        write_fused_graphs(request, work, work.source.input, folder, progress)
        report, strips, gate = measured(request, work, folder, progress)
        with progress.stage("write report and bundle"):
            write_report(report, folder, strips=strips)
            write_bundle_json(bundle_of(request, work, gate, report["created"]), folder)
    for warning in work.warnings:
        progress.warn(warning)
    return report, gate


def _check_options(request: ExportRequest) -> None:
    told = {
        "--precision auto": request.auto,
        "--policy": request.policy is not None,
        "an option that changes how INT8 is made": request.int8_options != Int8Options(),
        "--keep-reference": request.keep_reference,
    }
    for name, given in told.items():
        if given:
            raise ConfigError(
                f"{name} with an ONNX file",
                expected="a checkpoint, which PyTorch runs and which is quantized here",
                do="leave it out: a quantized ONNX file keeps its own scales",
            )


def _load(request: ExportRequest, progress: Progress) -> QuantizedWork:
    target, data = target_named(request.target), request.data
    source = quantized_source(request, on_cpu=target.name == "cpu")
    check_bands(request, source.input.channels)
    given = None if request.load.classes is None else classes_from_file(request.load.classes)
    classes, palette, notes = checked_classes(
        given.names if given else None, given.palette if given else None, source.num_outputs
    )
    named = len(given.names) if given else source.num_outputs
    pairs = pairs_from_folder(data.val, masks=data.val_masks) if data.val is not None else ()
    images = () if data.calib is None else tuple(calibration_images_from(data.calib))
    progress.note(_summary(source))
    for note in source.notes:
        progress.note(note)
    checkpoint = {"file": source.path.name, "sha256": sha256_of_file(source.path)}
    model = ScoredModel(
        name=source.path.stem,
        checkpoint=checkpoint,
        input=source.input,
        classes=classes[:named],
        palette=palette[:named],
        num_outputs=source.num_outputs,
        bands=bands_info(request, source.input),
    )
    images = images or tuple(evenly([pair.image for pair in pairs], RISK_IMAGES))
    work = QuantizedWork(target, source, model, pairs, images)
    work.warn(*source.warnings, *(given.notes if given else ()), *notes)
    work.warn(*_warnings(request, work))
    return work


def _warnings(request: ExportRequest, work: QuantizedWork) -> list[str]:
    source, target = work.source, work.target
    warnings = target_warnings(target, fp16=request.fp16, int8=True)
    if target.opsets is not None and source.opset not in target.opsets:
        warnings.append(
            f"opset {source.opset} in {request.checkpoint.name}: --target {target.name} runs "
            f"{target.opsets[0]} to {target.opsets[-1]} ({target.reason})"
        )
    if source.asymmetric:
        warnings.append("zero points other than 0, or uint8: TensorRT refuses model.int8.onnx")
    if any(item.stored and item.zero_point.dtype.name != "int32" for item in source.own):
        warnings.append(
            "weights stored as integers: FP32, which the other forms are compared with, has them "
            "rounded already, so what their rounding cost is not in the loss"
        )
    if request.data.calib is not None:
        warnings.append("--calib: the file keeps its own scales; FP16 overflows were looked for")
    if not work.pairs:
        warnings.append("no --val: the loss of accuracy was not measured")
    return warnings


def _summary(source: QuantizedSource) -> str:
    height, width = source.input.hw
    tensors = len({item.source for item in source.quantizers})
    return (
        f"{source.path.name}: {tensors} quantized tensors, opset {source.opset}, "
        f"{source.input.channels} channels in, {source.num_outputs} outputs; "
        f"input {height}x{width} ({source.input.resize})"
    )


def _write_float32(work: QuantizedWork, folder: Path, request: ExportRequest) -> None:
    raw = folder / "with_shapes.onnx"
    onnx.save(work.source.float32, str(raw))
    batch = probe_batch(work.source.float32)
    readable = network_images(work.images, work.source.input, request.data, {})
    seen = list(itertools.islice(readable, len(batch)))
    if seen:
        batch = np.stack([seen[index % len(seen)] for index in range(len(batch))])
    try:
        simplify_onnx(raw, folder / "model.onnx", batch=batch)
    except (GateError, GraphError, RuntimeError) as error:  # the last is onnxsim's own
        write_checked_onnx(work.source.float32, folder / "model.onnx", like=work.source.float32)
        work.warn(f"model.onnx could not be simplified ({error})")
    raw.unlink()
    work.add(folder, "fp32", "model.onnx")


def _write_int8(work: QuantizedWork, folder: Path) -> None:
    """Checked: the scales of the file, and its answer bit for bit (see `promises`)."""
    source = work.source
    write_checked_onnx(source.int8, folder / "model.int8.onnx", like=source.int8)
    written = model_from_onnx_file(folder / "model.int8.onnx")
    check_scales_kept(source.own, written, asymmetric=source.asymmetric)
    if not source.half:  # FP32 rounds less than the file's FP16
        check_same_answer(source.given, written, probe_batch(written))
    work.scales = scale_record(written, source.quantizers)
    work.add(folder, "int8", "model.int8.onnx")
    if source.asymmetric:
        return
    ranges = ranges_from_quantizers(model_from_onnx_file(folder / "model.onnx"), source.quantizers)
    if ranges is not None:
        (folder / "ranges.json").write_text(ranges_to_json(ranges), encoding="utf-8")
        write_calibration_cache(ranges, folder / "calibration.cache")
        work.add(folder, "ranges", "ranges.json")
        work.add(folder, "calibration_cache", "calibration.cache")


def _find_risks(
    work: QuantizedWork, folder: Path, request: ExportRequest, progress: Progress
) -> None:
    work.fp32_nodes = layer_norm_parts(model_from_onnx_file(folder / "model.onnx"))
    if not work.images:
        return
    skipped: dict[Path, str] = {}
    count, total = 0, len(work.images)

    def seen(done: int) -> None:
        nonlocal count
        count = done
        progress.advance(done + len(skipped), total)

    risks = float16_risks(
        folder / "model.onnx",
        network_images(work.images, work.source.input, request.data, skipped),
        held=work.fp32_nodes,
        on_image=seen,
    )
    if request.data.calib is not None:  # of validation images the evaluation names them
        lines = [f"{path.name}: {reason}" for path, reason in skipped.items()]
        work.warn(*left_out_lines("calibration", lines))
    if risks:
        nodes = fp32_nodes_for(risks)
        work.fp32_nodes = tuple(dict.fromkeys((*work.fp32_nodes, *nodes)))
        work.warn(float16_warning(risks, on=f"{count} images"))


def _write_half(work: QuantizedWork, folder: Path, source: str, key: str) -> None:
    name = f"model.{key.replace('_', '.')}.onnx"
    path = folder / work.files[source].file
    record = fp16_onnx_from_onnx(path, folder / name, fp32_nodes=_held(work, path))
    for tensor, count in record.clamped.items():
        work.warn(f"{count} values of {tensor} are beyond FP16's range and were clamped in {name}")
    work.add(folder, key, name)


def _held(work: QuantizedWork, path: Path) -> tuple[str, ...]:
    """The nodes that stay FP32, and every pair: rounded to float16, a scale would be another."""
    model = model_from_onnx_file(path)
    labels = [node_label(node) for node in model.graph.node]
    held = [name for name in work.fp32_nodes if name in set(labels)]
    if work.source.opset >= SCALES_AS_FLOAT16_FROM:
        held += [node_label(n) for n in model.graph.node if n.op_type in (QUANTIZE, DEQUANTIZE)]
    return tuple(dict.fromkeys(held))


def _write_int8_half(work: QuantizedWork, folder: Path) -> None:
    """As the file is, where that computes in FP16; else made, where FP16 can hold it."""
    source, name = work.source, "model.int8.fp16.onnx"
    if source.half:
        write_checked_onnx(source.given, folder / name, like=source.given)
        work.add(folder, "int8_fp16", name)
    else:
        try:
            _write_half(work, folder, "int8", "int8_fp16")
        except GraphError as error:
            work.warn(
                f"no INT8 graph with its rest in FP16 ({error.got}): a strongly typed TensorRT "
                "runs that rest in FP32"
            )
            return
    check_scales_kept(source.own, model_from_onnx_file(folder / name), asymmetric=source.asymmetric)
