"""Engines for this machine straight after an export (`riceseg export --engine`)."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engines.errors import ConfigError, DeviceError, EngineError, UserError
from engines.progress import Progress
from exporter.targets import Target

if TYPE_CHECKING:
    from engines.trt.build import BuildRecord

ON_THE_DEVICE = "export without --engine and run `riceseg build BUNDLE` on the device"


def check_engines_here(target: Target) -> None:
    """Raise before the export what would stop the builds after it.

    ConfigError for a target that runs no engine; DeviceError without TensorRT or, but for
    TensorRT-RTX, which builds ahead of time, without a GPU.
    """
    from engines.cuda import open_cuda
    from engines.trt.api import load_tensorrt

    if target.name == "cpu":
        raise ConfigError(
            "--engine with --target cpu",
            expected="a target with a GPU: the CPU runs the ONNX files themselves",
            do="leave --engine out",
        )
    try:
        tensorrt = load_tensorrt(rtx=target.rtx)
        if not tensorrt.is_rtx:
            open_cuda().close()
    except DeviceError as error:
        raise DeviceError(
            f"--engine where none can be built: {error.got}",
            expected=error.expected,
            do=f"{error.do}; or {ON_THE_DEVICE}",
        ) from error


def engines_of_bundle(
    folder: Path, target: Target, precisions: Sequence[str], progress: Progress
) -> Iterator[BuildRecord]:
    """Build one engine for each of the precisions (see `ExportResult.precisions`).

    A build that fails raises EngineError; the bundle and the engines before it stay.
    """
    from engines.trt.build import engine_from_bundle
    from engines.trt.options import BuildOptions

    if target.jetson and platform.machine() != "aarch64":
        progress.warn(
            f"--engine builds for this machine; on the {target.name} device run "
            f"`riceseg build {folder}`"
        )
    for precision in precisions:
        options = BuildOptions(precision=precision, rtx=target.rtx)
        try:
            yield engine_from_bundle(folder, options, progress=progress)
        except UserError as error:
            raise EngineError(
                f"no {precision} engine ({error.got}); the bundle in {folder} is complete and kept",
                expected=error.expected,
                do=error.do,
            ) from error
