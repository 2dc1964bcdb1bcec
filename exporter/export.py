"""The whole flow: checkpoint -> verified ONNX -> INT8/FP16 -> measured bundle, stage by stage."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
import torch
from torch import nn

from calibration.images import CalibrationImage, calibration_list
from calibration.policy import PrecisionPolicy
from engines.bundle import (
    Gate,
    InputSpec,
    write_bundle_json,
)
from engines.dataset import Pair, calibration_images_from, pairs_from_folder
from engines.errors import ConfigError
from engines.progress import Progress
from exporter.band_graphs import check_bands, write_fused_graphs
from exporter.calibrate import hold_overflows, learn_int8, settle_equalized, shown_images
from exporter.load import LoadedModel, first_image_hw, load_model, network_input, network_size
from exporter.network_images import network_images
from exporter.onnx_graph import (
    GraphSpec,
    ImageToLabels,
    decomposed_layer_norms,
    multiplied_at,
    onnx_from_model,
    sampled_for,
)
from exporter.parity import check_parity
from exporter.precision import told_policy
from exporter.precision_search import policy_within
from exporter.qat.bundle import export_quantized_onnx
from exporter.qat.kind import is_onnx_checkpoint
from exporter.qat.scales_applied import check_training_stays
from exporter.quantization import check_policy, write_files
from exporter.report import write_report
from exporter.request import DataOptions, ExportRequest
from exporter.results import bundle_of, measured
from exporter.rewrites.rewritten import rewritten_for_export
from exporter.simplify import simplify_onnx
from exporter.staging import whole_folder
from exporter.targets import opset_for, target_named, target_warnings
from exporter.torch_predictor import TorchPredictor
from exporter.work import Work

PARITY_IMAGES = 4
PATTERN = "a synthetic pattern"  # what parity is checked on where there is no image
Batch: TypeAlias = "np.ndarray[Any, Any]"  # (N, H, W, C) uint8 at network size


@dataclass(frozen=True)
class ExportResult:
    """Where the bundle is, the report's content, and whether the gate was passed (None: none).

    precisions: what was asked for or found beside FP32, "fp32" where that is nothing.
    """

    folder: Path
    report: dict[str, Any]
    gate: Gate | None
    precisions: tuple[str, ...]


def export_bundle(request: ExportRequest, progress: Progress) -> ExportResult:
    """Run every stage; on success `request.out` holds the whole bundle, otherwise nothing.

    Raises UserError for input that cannot be used and GateError when the graph does not reproduce
    PyTorch. A loss of accuracy beyond `max_drop` is no exception: see `ExportResult.gate`.
    """
    _check_inputs_stay(request)
    if is_onnx_checkpoint(request.checkpoint):
        report, gate = export_quantized_onnx(request, progress)
        precisions = ("fp16", "int8") if request.fp16 else ("int8",)
        return ExportResult(request.out, report, gate, precisions)
    policy = told_policy(request)
    _check_options(request)
    with whole_folder(request.out, overwrite=request.overwrite) as folder:
        with progress.stage("load"):
            work = _load(request, policy, progress)
        reference = ImageToLabels(work.loaded.net, work.spec).eval()
        net = multiplied_at(work.loaded.net, request.graph.mask_products)
        traced = ImageToLabels(net, work.spec).eval()
        batch, real = _parity_images(work, request.data)
        on = f"{real} images" if real else PATTERN
        with progress.stage("trace to ONNX"):
            _trace(work, net, folder / "model.onnx", batch, request.graph.grid_sample)
            if policy is not None:
                check_policy(folder / "model.onnx", policy)
        with progress.stage("verify against PyTorch"):
            _verify(work, folder, traced, batch, on)
        if work.calib or real:
            with progress.stage("look for overflows of FP16"):
                graph = folder / "model.onnx"
                hold_overflows(work, request.data, graph, batch[:real], progress)
        work.policy = _decided(
            request, work, folder, policy, predictor=TorchPredictor(reference), progress=progress
        )
        if settle_equalized(work, folder, work.policy):
            with progress.stage("verify the equalized graph against PyTorch"):
                _verify(work, folder, traced, batch, on)
        write_files(work, folder, fp16=request.fp16, progress=progress)
        written = {key: key in work.files for key in ("fp16", "int8")}
        work.warnings += target_warnings(work.target, **written)
        write_fused_graphs(request, work, work.input, folder, progress)
        report, strips, gate = measured(request, work, folder, reference, progress)
        with progress.stage("write report and bundle"):
            write_report(report, folder, strips=strips)
            write_bundle_json(bundle_of(request, work, gate, report["created"]), folder)
    for warning in work.warnings:
        progress.warn(warning)
    found = tuple(key for key, there in written.items() if there)
    return ExportResult(request.out, report, gate, found or ("fp32",))


def _decided(
    request: ExportRequest,
    work: Work,
    folder: Path,
    policy: PrecisionPolicy | None,
    *,
    predictor: TorchPredictor,
    progress: Progress,
) -> PrecisionPolicy:
    """`policy` with what its calibration images taught, or the one that was searched for."""
    if policy is not None and policy.recipe is None:
        return policy
    recipe = learn_int8(request, work, folder, policy, progress)
    if policy is not None:
        return replace(policy, recipe=recipe)
    shown = shown_images(work, request.data)
    return policy_within(request, work, folder, predictor, shown, progress=progress)


def _verify(work: Work, folder: Path, reference: ImageToLabels, batch: Batch, on: str) -> None:
    model = onnx.load(folder / "model.onnx")
    work.parity = check_parity(reference, model, batch, on=on)
    norms = decomposed_layer_norms(work.loaded.net, model)
    work.fp32_nodes = tuple(dict.fromkeys((*norms, *work.fp32_nodes)))


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
    given = (request.checkpoint, classes, data.calib, data.val, data.val_masks, request.policy)
    for path in given:
        if path is not None and Path(os.path.realpath(path)).is_relative_to(out):
            raise ConfigError(
                f"{path}, which lies inside --out {request.out}",
                expected="a folder of its own for the bundle",
                do="choose another --out, or move the file away",
            )


def _load(request: ExportRequest, policy: PrecisionPolicy | None, progress: Progress) -> Work:
    loaded = load_model(request.checkpoint, request.load)
    check_bands(request, loaded.description.in_channels)
    check_training_stays(policy, loaded)
    data = request.data
    pairs = pairs_from_folder(data.val, masks=data.val_masks) if data.val is not None else ()
    int8 = policy is None or policy.recipe is not None
    calib = _calibration_images(data, pairs if int8 else ())
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
    if graph.mask_products == "quarter":
        warnings.append("masks are multiplied at a quarter of the size: not what was trained")
    progress.note(_summary(loaded, input_spec))
    for note in loaded.notes:
        progress.note(note)
    return Work(target, loaded, input_spec, spec, pairs, calib, warnings)


def _calibration_images(data: DataOptions, pairs: Sequence[Pair]) -> tuple[CalibrationImage, ...]:
    """Those of --calib. Apart from `pairs`, the validation, if anything is to be fitted to them."""
    if data.calib is None:
        return ()
    files = calibration_images_from(data.calib)
    return calibration_list(files, validation_files=[pair.image for pair in pairs])


def _summary(loaded: LoadedModel, input_spec: InputSpec) -> str:
    found = loaded.description
    classes = "1 class" if found.num_outputs == 1 else f"{found.num_outputs} classes"
    return (
        f"{found.name}, {found.head} head of width {found.head_channels}, "
        f"{found.in_channels} channels in, {classes} out, "
        f"{found.parameters / 1e6:.1f} M parameters, from {loaded.checkpoint.source}; "
        f"input {input_spec.hw[0]}x{input_spec.hw[1]} ({input_spec.resize})"
    )


def _trace(work: Work, net: nn.Module, path: Path, images: Batch, grid_sample: bool | None) -> None:
    raw = path.with_name("traced.onnx")
    rewritten = rewritten_for_export(net, work.spec.input_hw)
    try:
        onnx_from_model(
            sampled_for(rewritten, work.spec.opset, grid_sample),
            work.spec,
            raw,
            num_outputs=work.loaded.description.num_outputs,
        )
    except (RuntimeError, ValueError) as error:
        if "allocate memory" not in str(error):  # which is told as what it is
            _check_it_runs(work)
        raise
    simplify_onnx(raw, path, batch=images[: work.spec.batch[1]])
    raw.unlink()
    work.add(path.parent, "fp32", path.name)


def _check_it_runs(work: Work) -> None:
    """ConfigError where PyTorch cannot run the network at this size either: a kernel larger than
    its map, or a norm over a single value."""
    h, w = work.spec.input_hw
    try:
        with torch.no_grad():
            work.loaded.net(torch.zeros(1, work.loaded.description.in_channels, h, w))
    except (RuntimeError, ValueError) as error:
        reason = (str(error).strip() or "no reason given").splitlines()[0]
        raise ConfigError(
            f"an input of {h}x{w}, at which the network fails: {reason}",
            expected="a size that the network can be run at",
            do="choose another --size",
        ) from error


def _parity_images(work: Work, data: DataOptions) -> tuple[Batch, int]:
    """A whole number of the graph's usual batches: real images, or a pattern without any.

    Also how many of the first are real and different; the others repeat these.
    """
    files = [p.image for p in work.pairs] or [c.path for c in work.calib]
    count = -(-PARITY_IMAGES // work.spec.batch[1]) * work.spec.batch[1]
    readable = network_images(files, work.input, data, {})
    images = [image for image, _ in zip(readable, range(count), strict=False)]
    if images:
        repeated = [images[i % len(images)] for i in range(count)]
        return np.stack(repeated), len(images)
    work.warnings.append("verified on a synthetic pattern; with --val it is verified on images")
    return _pattern(work.input, count), 0


def _pattern(input_spec: InputSpec, count: int) -> Batch:
    """Blobs of several sizes and fine grain, uint8 (count, H, W, C), always the same."""
    rng = np.random.default_rng(0)
    h, w = input_spec.hw
    total = np.zeros((count, h, w, input_spec.channels))
    for cell in (64, 16, 4, 1):
        grid = rng.normal(size=(count, -(-h // cell), -(-w // cell), input_spec.channels))
        total += np.repeat(np.repeat(grid, cell, axis=1), cell, axis=2)[:, :h, :w] * 24.0
    return np.clip(total + 128.0, 0, 255).astype(np.uint8)
