"""From an ONNX file, or from a bundle, to an engine file."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import importlib.metadata
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator, Optional, Tuple, Union

from engines.bundle import bundle_from_folder, verified_path
from engines.cuda import Cuda, open_cuda
from engines.onnx_predictor import check_one_file
from engines.progress import Progress, SilentProgress
from engines.trt.api import TensorRt, load_tensorrt
from engines.trt.bundle_choice import engine_name, onnx_key, options_from_bundle
from engines.trt.config import check_options
from engines.trt.engine_file import write_engine
from engines.trt.engine_header import EngineHeader, platform_text
from engines.trt.fusion import fusion_of_build
from engines.trt.log import listening
from engines.trt.memory import peak_host_bytes
from engines.trt.options import AS_WRITTEN, BuildOptions, Calibration
from engines.trt.places import beside, build_log, check_places, made_folder, name_for_header
from engines.trt.stages import Work, plan_from_onnx

__all__ = [
    "AS_WRITTEN",
    "BuildOptions",
    "BuildRecord",
    "Calibration",
    "engine_from_bundle",
    "engine_from_onnx",
    "engine_name",
    "onnx_key",
]

FOLDER = "engines"


@dataclass(frozen=True)
class BuildRecord:
    """What was built. `peak_host_bytes` is this process's highest so far, None if not told."""

    path: Path
    header: EngineHeader
    seconds: float
    peak_host_bytes: Optional[int]
    engine_bytes: int
    log_path: Path
    warnings: Tuple[str, ...]


def engine_from_bundle(
    folder: Union[str, os.PathLike[str]],
    options: BuildOptions,
    *,
    cuda: Optional[Cuda] = None,
    progress: Optional[Progress] = None,
    tensorrt: Optional[TensorRt] = None,
    into: Optional[Path] = None,
) -> BuildRecord:
    """Build the engine of `options.precision`, replacing an older one.

    It is written into the folder `into`, by default `folder/engines`, which is made.

    Which of the bundle's graphs is taken depends on the precision and on whether this TensorRT is
    strongly typed; batch, calibration and the nodes that stay in FP32 come from the bundle.
    Raises BundleError for a graph that was altered, and what `engine_from_onnx` raises.
    """
    bundle = bundle_from_folder(folder)
    tensorrt = load_tensorrt(rtx=options.rtx) if tensorrt is None else tensorrt
    progress = SilentProgress() if progress is None else progress
    key, warning = onnx_key(bundle, tensorrt, options)
    info = bundle.files[key]
    path = verified_path(folder, info)
    if warning:
        progress.warn(warning)
    with _gpu(tensorrt, cuda) as cuda:
        engines = made_folder(Path(folder) / FOLDER if into is None else into)
        return engine_from_onnx(
            path,
            engines / engine_name(options, tensorrt, None if cuda is None else cuda.info),
            options_from_bundle(bundle, Path(folder), options),
            cuda=cuda,
            progress=progress,
            tensorrt=tensorrt,
        )


def engine_from_onnx(
    onnx_path: Union[str, os.PathLike[str]],
    out_path: Union[str, os.PathLike[str]],
    options: BuildOptions,
    *,
    cuda: Optional[Cuda] = None,
    progress: Optional[Progress] = None,
    tensorrt: Optional[TensorRt] = None,
) -> BuildRecord:
    """Build `onnx_path` into the engine file `out_path`, which appears whole or not at all.

    TensorRT's log is written beside it, as NAME.log for NAME.engine, and as NAME.failed.log when
    the build fails. `cuda` None opens a GPU, but for TensorRT-RTX, which needs none. Raises
    OutputError for an `out_path` that is `onnx_path` or no regular file, ConfigError for an option
    that this TensorRT lacks, GraphError for a graph that it does not take, DeviceError for a
    missing GPU or too little memory, EngineError for a build that fails, KeyboardInterrupt after
    Ctrl-C (no file is left then).
    """
    onnx_path, out_path = Path(onnx_path), Path(out_path)
    progress = SilentProgress() if progress is None else progress
    started = time.monotonic()
    check_places(onnx_path, out_path, options.timing_cache)
    name_for_header(onnx_path)
    check_one_file(onnx_path)
    tensorrt = load_tensorrt(rtx=options.rtx) if tensorrt is None else tensorrt
    with contextlib.ExitStack() as stack:
        cuda = stack.enter_context(_gpu(tensorrt, cuda))
        check_options(tensorrt, options, None if cuda is None else cuda.info)
        if cuda is not None:
            stack.enter_context(cuda.current())
        log = stack.enter_context(build_log(out_path))
        logger = stack.enter_context(listening(tensorrt, log))
        work = Work(tensorrt, options, cuda, progress, log, logger)
        plan = plan_from_onnx(work, onnx_path, out_path)
        with progress.stage("write the engine"):
            header = _header(work, onnx_path, plan)
            written = write_engine(out_path, header, plan)
    if log.failure is not None:
        work.warn(log.failure)
    return BuildRecord(
        path=out_path,
        header=header,
        seconds=time.monotonic() - started,
        peak_host_bytes=peak_host_bytes(),
        engine_bytes=written.bytes,
        log_path=log.path or beside(out_path, ".log"),
        warnings=tuple(work.warnings),
    )


def _header(work: Work, onnx_path: Path, plan: bytes) -> EngineHeader:
    from engines.board import machine_record

    options, tensorrt = work.options, work.tensorrt
    # An engine of TensorRT-RTX is tied to no GPU, whichever was there when it was built.
    gpu = None if work.cuda is None or tensorrt.is_rtx else work.cuda.info
    machine = machine_record()
    return EngineHeader(
        onnx_file=name_for_header(onnx_path),
        onnx_sha256=work.onnx_sha256,
        precision=options.precision,
        runtime=tensorrt.runtime,
        runtime_version=tensorrt.version_text(),
        cuda_version=None if gpu is None else "{}.{}".format(*gpu.driver_version),
        gpu_name=None if gpu is None else gpu.name,
        compute_capability=None if gpu is None else gpu.compute_capability,
        platform=platform_text(),
        jetpack=_text_or_none(machine.get("jetpack")),
        power_mode=_text_or_none(machine.get("power_mode")),
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        version_compatible=options.version_compatible,
        hardware_compatible=options.hardware_compatible,
        dla=options.dla,
        stripped=options.strip_weights,
        plan_sha256=hashlib.sha256(plan).hexdigest(),
        plan_bytes=len(plan),
        riceseg=_own_version(),
        notes=tuple(work.notes),
        fusion=fusion_of_build(work.nodes, work.log),
        takes_bands=work.takes_bands,
    )


def _text_or_none(value: Any) -> Optional[str]:
    return None if value is None else str(value)


def _own_version() -> str:
    try:
        return importlib.metadata.version("riceseg")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


@contextlib.contextmanager
def _gpu(tensorrt: TensorRt, cuda: Optional[Cuda]) -> Iterator[Optional[Cuda]]:
    """The GPU to build on: the caller's, one opened here, or none for TensorRT-RTX."""
    if cuda is not None or tensorrt.is_rtx:
        yield cuda
        return
    opened = open_cuda()
    try:
        yield opened
    finally:
        opened.close()
