"""Whether a checkpoint is an ONNX file, told before anything heavy is imported."""

from __future__ import annotations

from pathlib import Path

from engines.errors import ConfigError


def is_onnx_checkpoint(path: Path | None) -> bool:
    """By its name, as `riceseg evaluate` tells one; what is inside is looked at when it is read."""
    return path is not None and path.suffix.lower() == ".onnx"


def check_precision(precision: str | None) -> None:
    """ConfigError for a --precision that a quantized ONNX file cannot have: it is INT8 already."""
    if precision in ("fp32", "fp16"):
        raise ConfigError(
            f"--precision {precision} with an ONNX file, which is quantized already",
            expected="--precision int8, or none; FP32 is always written, FP16 with --fp16",
            do="leave --precision out, or export from the checkpoint",
        )
