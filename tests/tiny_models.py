"""Graphs and bundles so small that their labels can be worked out by hand."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import onnx
import onnx.parser


def bands_model(
    hw: tuple[int, int] = (2, 3),
    *,
    step: int = 64,
    channel: int = 0,
    channels: int = 3,
    batch: str | int = "N",
) -> onnx.ModelProto:
    """A graph that keeps the contract: label = image[..., channel] // step, nothing else.

    `image` is (batch, H, W, channels) uint8, `labels` (batch, H, W) uint8. `batch` is a name for
    a free batch or a number for a fixed one.
    """
    height, width = hw
    return onnx.parser.parse_model(
        f"""
        <ir_version: 8, opset_import: ["": 17]>
        bands (uint8[{batch}, {height}, {width}, {channels}] image)
            => (uint8[{batch}, {height}, {width}] labels)
        <int64 channel = {{{channel}}}, int32 step = {{{step}}}>
        {{
            levels = Cast <to = 6> (image)
            one = Gather <axis = 3> (levels, channel)
            band = Div (one, step)
            labels = Cast <to = 2> (band)
        }}
        """
    )


def model_from_text(text: str) -> onnx.ModelProto:
    """A graph of opset 17 from its text `name (inputs) => (outputs) {nodes}`."""
    return onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]>\n{text}')


def write_onnx(model: onnx.ModelProto, path: Path) -> Path:
    """Write `model` to `path` as it is (no checker: wrong graphs are wanted too)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())
    return path


def file_entry(path: Path, folder: Path) -> dict[str, Any]:
    """The entry of a file in bundle.json's `files`."""
    data = path.read_bytes()
    return {
        "file": path.relative_to(folder).as_posix(),
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data),
    }


def bundle_document(
    *,
    hw: tuple[int, int] = (2, 3),
    channels: int = 3,
    classes: tuple[str, ...] = ("background", "정상", "도열병", "도복"),
    resize: str = "stretch",
    files: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """A valid bundle.json as a dictionary, to be changed by a test; free for it to mutate."""
    return {
        "format": "riceseg-bundle",
        "format_version": 1,
        "name": "tiny",
        "created": "2026-01-02T03:04:05+00:00",
        "model": {
            "architecture": "bands",
            "variant": "b0",
            "head": None,
            "head_channels": None,
            "in_channels": channels,
            "num_outputs": len(classes),
            "parameters": 1,
            "source": "mmsegmentation",
        },
        "checkpoint": {"file": "tiny.pth", "sha256": "0" * 64},
        "input": {
            "name": "image",
            "hw": list(hw),
            "channels": channels,
            "channel_order": "RGB",
            "mean": [123.675] * channels,
            "std": [58.395] * channels,
            "resize": resize,
            "batch": [1, 1, 8],
        },
        "outputs": ["labels"],
        "classes": list(classes),
        "palette": [[10 * i, 0, 255 - i] for i in range(len(classes))],
        "num_outputs": len(classes),
        "reduce_zero_label": False,
        "test_mode": {"mode": "whole"},
        "opset": 17,
        "files": {} if files is None else files,
        "calibration": None,
        "parity": None,
        "report": None,
        "gate": None,
        "warnings": [],
        "versions": {"onnx": "1.16.0"},
    }


def write_document(document: Any, folder: Path) -> Path:
    """Write `document` as `folder/bundle.json`; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(document, ensure_ascii=False)
    (folder / "bundle.json").write_text(text, encoding="utf-8")
    return folder


def tiny_bundle(
    folder: Path,
    *,
    hw: tuple[int, int] = (2, 3),
    steps: dict[str, int] | None = None,
    batch: str | int = "N",
    resize: str = "stretch",
) -> Path:
    """A complete bundle of `bands_model`s, one file per precision in `steps`; returns the folder.

    The default has fp32 alone with step 64, hence the labels 0..3 for red 0..255.
    """
    files = {}
    for precision, step in (steps or {"fp32": 64}).items():
        path = folder / f"tiny.{precision}.onnx"
        write_onnx(bands_model(hw, step=step, batch=batch), path)
        files[precision] = file_entry(path, folder)
    return write_document(bundle_document(hw=hw, resize=resize, files=files), folder)
