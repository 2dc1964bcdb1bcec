"""A bundle, a labelled folder and a report of an export, written by hand for a board's tests."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

CLASSES = ["background", "정상", "도열병", "도복"]
CHECKPOINT = "c" * 64


def entry_of(path: Path, folder: Path) -> dict:
    data = path.read_bytes()
    return {
        "file": path.relative_to(folder).as_posix(),
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data),
    }


def bundle_in(
    folder: Path,
    *,
    precisions: tuple = ("fp16",),
    hw: tuple = (2, 3),
    outputs: tuple = ("labels",),
    test_mode: dict | None = None,
    reference: dict | None = None,
    report: dict | None = None,
) -> Path:
    """A bundle whose ONNX files are stand-ins; `reference` maps image files to labels."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for precision in precisions:
        path = folder / f"tiny.{precision}.onnx"
        path.write_bytes(f"no graph, {precision}".encode())
        files[precision] = entry_of(path, folder)
    if reference is not None:
        path = folder / "reference.npz"
        named = {
            hashlib.sha256(image.read_bytes()).hexdigest(): np.array(labels, np.uint8)
            for image, labels in reference.items()
        }
        np.savez_compressed(path, **named)
        files["reference"] = entry_of(path, folder)
    if report is not None:
        (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")
    document = {
        "format": "riceseg-bundle",
        "format_version": 1,
        "name": "tiny",
        "created": "2026-01-02T03:04:05+00:00",
        "model": {
            "architecture": "bands",
            "variant": "b0",
            "head": None,
            "head_channels": None,
            "in_channels": 3,
            "num_outputs": len(CLASSES),
            "parameters": 1,
            "source": "mmsegmentation",
        },
        "checkpoint": {"file": "tiny.pth", "sha256": CHECKPOINT},
        "input": {
            "name": "image",
            "hw": list(hw),
            "channels": 3,
            "channel_order": "RGB",
            "mean": [124.0] * 3,
            "std": [58.0] * 3,
            "resize": "stretch",
            "batch": [1, 1, 1],
        },
        "outputs": list(outputs),
        "classes": CLASSES,
        "palette": [[10 * i, 0, 255 - i] for i in range(len(CLASSES))],
        "num_outputs": len(CLASSES),
        "reduce_zero_label": False,
        "test_mode": test_mode or {"mode": "whole", "crop_size": None, "stride": None},
        "opset": 17,
        "files": files,
        "calibration": None,
        "parity": None,
        "report": None if report is None else "report.json",
        "gate": None,
        "warnings": [],
        "versions": {},
    }
    text = json.dumps(document, ensure_ascii=False)
    (folder / "bundle.json").write_text(text, encoding="utf-8")
    return folder


def labelled_folder(folder: Path, samples: dict) -> Path:
    """images/ and masks/ of name -> (red channel, class indices). Needs Pillow."""
    from PIL import Image as PillowImage

    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for name, (red, truth) in samples.items():
        image = np.full((*np.shape(red), 3), 99, np.uint8)
        image[..., 0] = red
        PillowImage.fromarray(image).save(folder / "images" / f"{name}.png")
        PillowImage.fromarray(np.array(truth, np.uint8)).save(folder / "masks" / f"{name}.png")
    return folder


def export_report(
    miou: float | None = 90.0, *, data_sha256: str | None = None, checkpoint: str = CHECKPOINT
) -> dict:
    """The report of an export on a workstation: PyTorch's row, and one of ONNX Runtime."""
    scores = {"miou": miou, "macc": 91.0, "aacc": 95.0, "iou": [miou] * 4, "acc": [91.0] * 4}
    speed = {"latency_p50_ms": 75.0, "fps": 13.0, "peak_memory_mb": 900.0, "batch": 1, "runs": 20}
    torch_row = {
        "form": "PyTorch FP32",
        "precision": "fp32",
        "runtime": "PyTorch 2.13.0",
        "file": "tiny.pth",
        "sha256": checkpoint,
        **scores,
        **speed,
    }
    return {
        "format": "riceseg-report",
        "format_version": 1,
        "name": "tiny",
        "created": "2026-01-01T00:00:00+00:00",
        "checkpoint": {"file": "tiny.pth", "sha256": checkpoint},
        "machine": {"cpu": "workstation"},
        "data": {"folder": "rice", "images": 16, "skipped": [], "sha256": data_sha256},
        "input_hw": [2, 3],
        "classes": CLASSES,
        "palette": [[10 * i, 0, 255 - i] for i in range(len(CLASSES))],
        "rows": [torch_row, {"form": "ONNX FP32", "runtime": "ONNX Runtime 1.27", **scores}],
    }
