"""Whether a checkpoint is an ONNX file, told before anything heavy is imported."""

from __future__ import annotations

from pathlib import Path


def is_onnx_checkpoint(path: Path | None) -> bool:
    """By its name, as `riceseg evaluate` tells one; what is inside is looked at when it is read."""
    return path is not None and path.suffix.lower() == ".onnx"
