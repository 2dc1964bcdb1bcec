"""The whole flow: checkpoint -> verified ONNX -> INT8/FP16 -> measured bundle, stage by stage."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from calibration.fp16 import fp16_onnx_from_onnx
from calibration.images import CalibrationImage, calibration_list
from calibration.quantize import int8_onnx_from_ranges
from calibration.ranges import ranges_from_images
from calibration.ranges_json import ranges_to_json
from calibration.trt_cache import write_calibration_cache
from engines.bundle import (
    Gate,
    InputSpec,
    write_bundle_json,
)
from engines.dataset import Pair, calibration_images_from, pairs_from_folder
from engines.errors import ConfigError, GraphError, ImageError
from engines.images import image_from_file
from engines.progress import Progress
from engines.resize import network_image_from_image
from exporter.load import LoadedModel, first_image_hw, load_model, network_input, network_size
from exporter.onnx_graph import (
    GraphSpec,
    ImageToLabels,
    decomposed_layer_norms,
    onnx_from_model,
)
from exporter.parity import check_parity
from exporter.report import write_report
from exporter.request import DataOptions, ExportRequest, calibration_source
from exporter.results import bundle_of, left_out_lines, measured
from exporter.rewrites import rewritten_for_export
from exporter.simplify import simplify_onnx
from exporter.staging import whole_folder
from exporter.targets import opset_for, target_named, target_warnings
from exporter.work import Work

PARITY_IMAGES = 4


@dataclass(frozen=True)
class ExportResult:
    """Where the bundle is, the report's content, and whether the gate was passed (None: none)."""

    folder: Path
    report: dict[str, Any]
    gate: Gate | None


def export_bundle(request: ExportRequest, progress: Progress) -> ExportResult:
    """Run every stage; on success `request.out` holds the whole bundle, otherwise nothing.

    Raises UserError for input that cannot be used and GateError when the graph does not reproduce
    PyTorch. A loss of accuracy beyond `max_drop` is no exception: see `ExportResult.gate`.
    """
    _check_inputs_stay(request)
    _check_options(request)
    with whole_folder(request.out, overwrite=request.overwrite) as folder:
        with progress.stage("load"):
            work = _load(request, progress)
        with progress.stage("trace to ONNX"):
            model_path = folder / "model.onnx"
            reference = ImageToLabels(work.loaded.net, work.spec).eval()
            images, on = _parity_images(work, request.data)
            _trace(work, model_path, images)
        with progress.stage("verify against PyTorch"):
            model = onnx.load(model_path)
            work.parity = check_parity(reference, model, images, on=on)
            work.fp32_nodes = decomposed_layer_norms(work.loaded.net, model)
        if request.int8:
            with progress.stage(f"calibrate ({request.method})"):
                _calibrate(request, work, folder, progress)
            with progress.stage("quantize to INT8"):
                assert work.ranges is not None  # _calibrate sets it
                work.quantized = int8_onnx_from_ranges(
                    model_path, work.ranges, folder / "model.int8.onnx"
                )
                work.add(folder, "int8", "model.int8.onnx")
        if request.fp16:
            with progress.stage("write FP16"):
                _write_fp16(work, folder, "fp32", "fp16")
        if request.int8 and work.target.int8_fp16:
            with progress.stage("write INT8 with FP16"):
                _write_int8_fp16(work, folder)
        report, strips, gate = measured(request, work, folder, reference, progress)
        with progress.stage("write report and bundle"):
            write_report(report, folder, strips=strips)
            write_bundle_json(bundle_of(request, work, gate, report["created"]), folder)
    for warning in work.warnings:
        progress.warn(warning)
    return ExportResult(request.out, report, gate)


def _check_options(request: ExportRequest) -> None:
    opset_for(target_named(request.target), request.graph.opset)
    if request.keep_reference and request.data.val is None:
        raise ConfigError(
            "--keep-reference without --val",
            expected="the images whose labels are to be kept",
            do="pass --val with labelled images, or leave --keep-reference out",
        )


def _check_inputs_stay(request: ExportRequest) -> None:
    """Replacing a bundle removes its folder, and with it all that lies inside."""
    out = Path(os.path.realpath(request.out))
    data, classes = request.data, request.load.classes
    for path in (request.checkpoint, classes, data.calib, data.val, data.val_masks):
        if path is not None and Path(os.path.realpath(path)).is_relative_to(out):
            raise ConfigError(
                f"{path}, which lies inside --out {request.out}",
                expected="a folder of its own for the bundle",
                do="choose another --out, or move the file away",
            )


def _load(request: ExportRequest, progress: Progress) -> Work:
    loaded = load_model(request.checkpoint, request.load)
    data = request.data
    pairs = pairs_from_folder(data.val, masks=data.val_masks) if data.val is not None else ()
    calib = _calibration_images(request, pairs)
    target = target_named(request.target)
    warnings = list(loaded.warnings)
    image_hw = first_image_hw(
        [pair.image for pair in pairs] or [item.path for item in calib],
        channels=loaded.description.in_channels,
        convert=data.convert_images,
        skip_bad=data.skip_bad,
    )
    hw, resize = network_size(loaded, image_hw)
    graph = request.graph
    input_spec = network_input(loaded, graph.size or hw, graph.resize or resize, graph.batch)
    spec = GraphSpec(
        input_hw=input_spec.hw,
        mean=loaded.mean,
        std=loaded.std,
        output=graph.output,
        batch=graph.batch,
        opset=opset_for(target, graph.opset),
        align_corners=bool(loaded.settings.align_corners),
    )
    if not pairs:
        warnings.append("no --val: the loss of accuracy was not measured")
    if data.calib is not None and not request.int8:
        warnings.append("--calib without --int8 has no effect: no INT8 graph was written")
    warnings += target_warnings(target, fp16=request.fp16, int8=request.int8)
    progress.note(_summary(loaded, input_spec))
    for note in loaded.notes:
        progress.note(note)
    return Work(target, loaded, input_spec, spec, pairs, calib, warnings)


def _calibration_images(
    request: ExportRequest, pairs: Sequence[Pair]
) -> tuple[CalibrationImage, ...]:
    if not request.int8:
        return ()
    files = calibration_images_from(calibration_source(request.data.calib))
    return calibration_list(files, validation_files=[pair.image for pair in pairs])


def _summary(loaded: LoadedModel, input_spec: InputSpec) -> str:
    found = loaded.description
    return (
        f"{found.name}, {found.head} head of width {found.head_channels}, "
        f"{found.in_channels} channels in, {found.num_outputs} classes out, "
        f"{found.parameters / 1e6:.1f} M parameters, from {loaded.checkpoint.source}; "
        f"input {input_spec.hw[0]}x{input_spec.hw[1]} ({input_spec.resize})"
    )


def _trace(work: Work, path: Path, images: np.ndarray[Any, Any]) -> None:
    raw = path.with_name("traced.onnx")
    onnx_from_model(
        rewritten_for_export(work.loaded.net),
        work.spec,
        raw,
        num_outputs=work.loaded.description.num_outputs,
    )
    simplify_onnx(raw, path, batch=images[: work.spec.batch[1]])
    raw.unlink()
    work.add(path.parent, "fp32", path.name)


def _parity_images(work: Work, data: DataOptions) -> tuple[np.ndarray[Any, Any], str]:
    """A whole number of the graph's usual batches: real images, or a pattern without any."""
    files = [p.image for p in work.pairs] or [c.path for c in work.calib]
    count = -(-PARITY_IMAGES // work.spec.batch[1]) * work.spec.batch[1]
    readable = _network_images(files, work.input, data, {})
    images = [image for image, _ in zip(readable, range(count), strict=False)]
    if images:
        repeated = [images[i % len(images)] for i in range(count)]
        return np.stack(repeated), f"{len(images)} images"
    work.warnings.append("verified on a synthetic pattern; with --val it is verified on images")
    return _pattern(work.input, count), "a synthetic pattern"


def _pattern(input_spec: InputSpec, count: int) -> np.ndarray[Any, Any]:
    """Blobs of several sizes and fine grain, uint8 (count, H, W, C), always the same."""
    rng = np.random.default_rng(0)
    h, w = input_spec.hw
    total = np.zeros((count, h, w, input_spec.channels))
    for cell in (64, 16, 4, 1):
        grid = rng.normal(size=(count, -(-h // cell), -(-w // cell), input_spec.channels))
        total += np.repeat(np.repeat(grid, cell, axis=1), cell, axis=2)[:, :h, :w] * 24.0
    return np.clip(total + 128.0, 0, 255).astype(np.uint8)


def _network_images(
    files: Sequence[Path], input_spec: InputSpec, data: DataOptions, skipped: dict[Path, str]
) -> Iterator[np.ndarray[Any, Any]]:
    """Images at network size, one at a time; unreadable ones raise or are named in `skipped`."""
    for path in files:
        try:
            image = image_from_file(path, channels=input_spec.channels, convert=data.convert_images)
        except ImageError as error:
            if not data.skip_bad:
                raise
            skipped[path] = str(error)
            continue
        yield network_image_from_image(image, input_spec.hw, input_spec.rule, input_spec.pad_value)


def _calibrate(request: ExportRequest, work: Work, folder: Path, progress: Progress) -> None:
    skipped: dict[Path, str] = {}
    files = [item.path for item in work.calib]
    work.ranges = ranges_from_images(
        folder / "model.onnx",
        _network_images(files, work.input, request.data, skipped),
        method=request.method,  # type: ignore[arg-type]  # checked there
        percentile=request.percentile,
        on_image=lambda done: progress.advance(done + len(skipped), len(files)),
    )
    lines = [f"{path.name}: {reason}" for path, reason in skipped.items()]
    work.warnings += left_out_lines("calibration", lines)
    work.calib = tuple(item for item in work.calib if item.path not in skipped)
    (folder / "ranges.json").write_text(ranges_to_json(work.ranges), encoding="utf-8")
    write_calibration_cache(work.ranges, folder / "calibration.cache")
    work.add(folder, "ranges", "ranges.json")
    work.add(folder, "calibration_cache", "calibration.cache")


def _write_fp16(work: Work, folder: Path, source: str, key: str) -> None:
    """The file `source` of the bundle, all of it that is not INT8 in FP16, as its file `key`."""
    name = f"model.{key.replace('_', '.')}.onnx"
    record = fp16_onnx_from_onnx(
        folder / work.files[source].file, folder / name, fp32_nodes=work.fp32_nodes
    )
    work.warnings += [
        f"{count} values of {tensor} are beyond FP16's range and were clamped in {name}"
        for tensor, count in record.clamped.items()
    ]
    work.add(folder, key, name)


def _write_int8_fp16(work: Work, folder: Path) -> None:
    """Nobody asked for FP16 by name, so a network that it cannot hold goes without."""
    try:
        _write_fp16(work, folder, "int8", "int8_fp16")
    except GraphError as error:
        work.warnings.append(
            f"no INT8 graph with its rest in FP16 ({error.got}): a strongly typed TensorRT runs "
            "that rest in FP32"
        )
