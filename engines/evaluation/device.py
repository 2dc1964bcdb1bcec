"""A bundle measured on the device it runs on: mIoU, agreement with PyTorch, time, memory, power.

Needs numpy, Pillow, and TensorRT with a CUDA binding or onnxruntime; not torch.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib.util
from dataclasses import asdict
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

from engines.board import machine_record, package_versions
from engines.bundle import Bundle, bundle_from_folder
from engines.bundle_bands import bands_record
from engines.bundle_runtime import PRECISIONS
from engines.dataset import Pair, pairs_from_folder
from engines.errors import ConfigError, DeviceError, GateError, UserError
from engines.evaluation.device_rows import DeviceRow, Task, device_row
from engines.evaluation.evaluate import Evaluation, pairs_sha256
from engines.evaluation.preparation import preparation_from_record, scale_text
from engines.evaluation.recorded import Recorded, recorded_from_bundle, same_images_lines
from engines.evaluation.reference import reference_from_bundle
from engines.evaluation.request import DeviceRequest
from engines.evaluation.scored_rows import gate_from_rows
from engines.evaluation.sliding import Windows, windows_from_bundle
from engines.progress import Progress
from engines.reports.report import FORMAT, FORMAT_VERSION

MOST_LINES = 20  # of images that were left out; a broken disk would fill the report


def report_from_device(request: DeviceRequest, progress: Progress) -> Dict[str, Any]:
    """The content of a report: PyTorch's recorded row if there is one, then a row per precision.

    A precision that fails keeps its error as a row while another one works; `gate` is set with
    `max_drop`. Raises the UserError of what cannot be used, and of the first precision if none
    could be measured.
    """
    with progress.stage("check what is there"):
        bundle = bundle_from_folder(request.bundle)
        precisions = _checked_precisions(request, bundle)
        windows = _windows(request, bundle)
        pairs = pairs_from_folder(request.data, masks=request.masks)
        recorded = recorded_from_bundle(request.bundle, bundle, request.against)
        _check_gate(request, recorded, pairs)
        reference = None if windows is not None else reference_from_bundle(request.bundle, bundle)
        runtime = _runtime(request.runtime)
    task = Task(request, runtime.name, bundle, pairs, windows, reference)
    try:
        rows = _measured_rows(task, precisions, progress)
    finally:
        if reference is not None:
            reference.close()
    report = _report_record(request, bundle, rows, recorded)
    report["machine"] = machine_record(gpu_name=runtime.gpu_name)
    report["versions"] = {**package_versions(), **runtime.versions}
    report["warnings"] = [*runtime.notes, *_warnings(task, rows, recorded)]
    if request.max_drop is not None:
        report["gate"] = _gate(report, request.max_drop, recorded)
    for line in report["warnings"]:
        progress.warn(line)
    return report


def check_gate(report: Dict[str, Any], request: DeviceRequest) -> None:
    """GateError when more mIoU was lost than `max_drop`, ConfigError when that cannot be told."""
    gate = report["gate"]
    if request.max_drop is None or (gate is not None and gate["passed"]):
        return
    if gate is None:
        raise _other_images("PyTorch's report")
    raise GateError(
        f"mIoU fell by {gate['drop']:.2f} points, at most {gate['max_drop']:.2f} allowed"
    )


class _Runtime(NamedTuple):
    """What all precisions are run by, so that a row is never compared with another's runtime."""

    name: str
    gpu_name: Optional[str]
    versions: Dict[str, str]
    notes: Tuple[str, ...]


def _runtime(wanted: str) -> _Runtime:
    """TensorRT where it and a GPU are there; else ONNX Runtime if `wanted` is "auto".

    Raises DeviceError for "tensorrt" where it cannot be used, and where both are missing.
    """
    from engines.cuda import open_cuda
    from engines.trt.api import load_tensorrt

    if wanted == "onnx":
        return _Runtime("onnx", None, {}, ())
    try:
        tensorrt = load_tensorrt()
        cuda = open_cuda()
    except DeviceError as error:
        if wanted == "auto" and importlib.util.find_spec("onnxruntime") is not None:
            return _Runtime("onnx", None, {}, (f"ONNX Runtime instead of TensorRT: {error.got}",))
        do = f"{error.do}; or pip install onnxruntime and measure on the CPU with --runtime onnx"
        raise DeviceError(error.got, expected=error.expected, do=do) from error
    with contextlib.closing(cuda):
        versions = {
            tensorrt.runtime: tensorrt.version_text(),
            "CUDA of the driver": ".".join(map(str, cuda.info.driver_version)),
            "CUDA binding": cuda.binding,
        }
        return _Runtime("tensorrt", cuda.info.name, versions, ())


def _checked_precisions(request: DeviceRequest, bundle: Bundle) -> Tuple[str, ...]:
    """In the order of PRECISIONS. FP16 may be asked for where only FP32 is there: TensorRT up to 10
    builds it from that.
    """
    there = [name for name in PRECISIONS if name in bundle.files]
    possible = [*there, "fp16"] if "fp32" in there and request.runtime != "onnx" else there
    missing = [name for name in request.precisions if name not in possible]
    if missing or not there:
        raise ConfigError(
            f"precision {missing[0]!r}" if missing else "a bundle without an ONNX file",
            expected=f"one that the bundle has: {', '.join(there) or 'it has none'}",
            do="choose one of these, or export the model with this precision",
        )
    return tuple(name for name in PRECISIONS if name in (request.precisions or there))


def _windows(request: DeviceRequest, bundle: Bundle) -> Optional[Windows]:
    if request.mode != "slide":
        return None
    if "logits" not in bundle.outputs:
        raise ConfigError(
            f"--mode slide for {bundle.name}, whose graph gives labels only",
            expected="logits: sliding windows are averaged before the labels are chosen",
            do="export the model with --output logits or --output both, or use --mode whole",
        )
    return windows_from_bundle(bundle)


def _check_gate(
    request: DeviceRequest, recorded: Optional[Recorded], pairs: Sequence[Pair]
) -> None:
    """What a gate would be compared with, before anything is measured."""
    if request.max_drop is None:
        return
    if recorded is None:
        raise ConfigError(
            "--max-drop without PyTorch's mIoU",
            expected="a report of an export that was given --val",
            do="name it with --against, or leave --max-drop out",
        )
    # With images left out the hash is not that of all of them.
    if not request.skip_bad and recorded.same_images(pairs_sha256(pairs)) is False:
        raise _other_images(recorded.source)


def _other_images(source: str) -> ConfigError:
    return ConfigError(
        f"--max-drop against {source}, which was measured on other images",
        expected="the images and masks that PyTorch was scored on",
        do="give the same --data as the export's --val, or leave --max-drop out",
    )


def _measured_rows(task: Task, precisions: Sequence[str], progress: Progress) -> List[DeviceRow]:
    rows: List[DeviceRow] = []
    first_error: Optional[UserError] = None
    for precision in precisions:
        rows.append(device_row(task, precision, progress))
        first_error = first_error or rows[-1].error
    if first_error is not None and all(row.evaluation is None for row in rows):
        raise first_error
    return rows


def _last_evaluation(rows: Sequence[DeviceRow]) -> Evaluation:
    return [row.evaluation for row in rows if row.evaluation is not None][-1]


def _report_record(
    request: DeviceRequest, bundle: Bundle, rows: Sequence[DeviceRow], recorded: Optional[Recorded]
) -> Dict[str, Any]:
    """The report without machine, versions, warnings and gate.

    Data and worst images are those of the last row that was scored.
    """
    evaluation = _last_evaluation(rows)
    first = []
    if recorded is not None:
        equal = 100.0 if evaluation.compared else None
        first = [{**recorded.row, "agreement": equal}]
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "name": bundle.name,
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "checkpoint": asdict(bundle.checkpoint),
        "data": {
            "folder": str(request.data),
            "images": evaluation.images,
            "skipped": list(evaluation.skipped),
            "sha256": evaluation.images_sha256,
        },
        "mode": request.mode,
        "input_hw": list(bundle.input.hw),
        "bands": bands_record(bundle.bands),
        "classes": list(bundle.classes),
        "palette": [list(rgb) for rgb in bundle.palette],
        "rows": [*first, *(_with_mode(row, request.mode) for row in rows)],
        "gate": None,
        "calibration": None,
        "parity": None,
        "warnings": [],
        "worst": [
            {"image": item.image.name, "agreement": item.agreement} for item in evaluation.worst
        ],
    }


def _with_mode(row: DeviceRow, mode: str) -> Dict[str, Any]:
    """How the row's scores came about, if it has any."""
    return row.row if row.evaluation is None else {**row.row, "mode": mode, "tta": "none"}


def _warnings(task: Task, rows: Sequence[DeviceRow], recorded: Optional[Recorded]) -> List[str]:
    evaluation = _last_evaluation(rows)
    lines = list(dict.fromkeys(line for row in rows for line in row.notes))
    if task.windows is not None:
        lines += _slide_lines(task.windows, task.bundle)
    elif task.references is None:
        lines.append(
            "no agreement with PyTorch: the bundle holds no labels of it (export with "
            "--keep-reference)"
        )
    elif evaluation.compared < evaluation.images:
        lines.append(
            f"reference labels for {evaluation.compared} of {evaluation.images} images: agreement "
            "is that of these"
        )
    if recorded is None:
        lines.append("PyTorch's mIoU is not known: the bundle was exported without --val")
    else:
        lines += _way_lines(recorded, task.request.mode)
        lines += same_images_lines(recorded, evaluation.images_sha256, evaluation.images)
    if task.bundle.test_mode["mode"] == "slide" and task.windows is None:
        lines.append(
            "the model was trained to be run on windows and was run on whole images (--mode whole)"
        )
    skipped = [f"left out: {line}" for line in evaluation.skipped]
    more = len(skipped) - MOST_LINES
    return [
        *lines,
        *skipped[:MOST_LINES],
        *([f"{more} more images left out"] if more > 0 else []),
    ]


def _slide_lines(windows: Windows, bundle: Bundle) -> List[str]:
    (height, width), (down, across) = windows.size, windows.stride
    scale = scale_text(preparation_from_record(bundle.test_mode).tested)
    return [
        f"windows of {height}x{width} every {down}x{across} pixels on images of {scale}; "
        "time, fps and energy are of one call of the network, not of an image",
        "no agreement with PyTorch: its labels were stored for whole images",
    ]


def _way_lines(recorded: Recorded, mode: str) -> List[str]:
    """What must be said where PyTorch's images were run in another way."""
    names = {"whole": "whole images", "slide": "windows"}
    there, tta = recorded.row.get("mode") or "whole", recorded.row.get("tta") or "none"
    if (there, tta) == (mode, "none"):
        return []
    augmented = "" if tta == "none" else f" with {tta}"
    return [
        f"PyTorch's mIoU is of {names.get(there, there)}{augmented}, the others are of "
        f"{names[mode]}: the change is not due to the device alone"
    ]


def _gate(
    report: Dict[str, Any], max_drop: float, recorded: Optional[Recorded]
) -> Optional[Dict[str, Any]]:
    """None where the images turned out to be others than PyTorch's."""
    assert recorded is not None  # _check_gate saw to it
    if recorded.same_images(report["data"]["sha256"]) is False:
        return None
    gate, lost = gate_from_rows(report["rows"], report["classes"], max_drop)
    return {**asdict(gate), "lost": lost}
