"""The stages of a build: parse and check, forecast, hold in FP32, calibrate, build."""

from __future__ import annotations

import contextlib
import hashlib
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Iterator, List, Optional, Tuple

from engines.cuda.interface import Cuda
from engines.errors import ConfigError, EngineError
from engines.fused_graphs import NODE_PREFIX
from engines.progress import Progress
from engines.trt.api import TensorRt
from engines.trt.calibrator import (
    CalibrationRun,
    DeviceBatch,
    cache_for,
    calibration_batches,
    calibrator,
    raise_kept,
    run_from_cache,
)
from engines.trt.config import BuildInputs, config_from_options
from engines.trt.constant_scales import constant_scale_lines
from engines.trt.log import MessageLog, errors_text, shortened
from engines.trt.memory import check_memory, free_memory, memory_forecast, workspace_bytes
from engines.trt.monitor import Interruption, build_monitor
from engines.trt.network import (
    NetworkInput,
    check_contract,
    checked_input,
    hold_in_fp32,
    largest_layer_bytes,
    network_from_onnx,
    onnx_nodes,
    precision_in,
)
from engines.trt.options import AS_WRITTEN, BuildOptions, Calibration, implicit_bands_error
from engines.trt.places import beside, bytes_of_onnx, replace_file
from engines.trt.timing_cache import default_timing_cache, load_timing_cache, save_timing_cache

_OUT_OF_MEMORY = re.compile(r"out.?of.?memory|insufficient (?:memory|workspace)", re.IGNORECASE)


@dataclass
class Work:
    """What every stage of one build needs.

    `notes` go into the header, `nodes` are the graph's, `onnx_sha256` is of the bytes that were
    parsed. Options AS_WRITTEN get the graph's precision when it is known. `takes_bands` too is the
    graph's.
    """

    tensorrt: TensorRt
    options: BuildOptions
    cuda: Optional[Cuda]
    progress: Progress
    log: MessageLog
    logger: Any
    warnings: List[str] = field(default_factory=list)
    notes: List[str] = field(default_factory=list)
    nodes: Tuple[str, ...] = ()
    onnx_sha256: str = ""
    takes_bands: bool = False

    def warn(self, text: str) -> None:
        self.warnings.append(text)
        self.progress.warn(text)


def plan_from_onnx(work: Work, onnx_path: Path, out_path: Path) -> bytes:
    """The plan of an ONNX file; `out_path` is the engine's, for files that go beside it."""
    tensorrt = work.tensorrt
    interruption = Interruption()
    # Ctrl-C is noted here too: raised in the logger, which C++ calls, it would end the interpreter.
    with work.progress.stage("parse the ONNX file"), interruption.watched(can_cancel=True):
        builder = tensorrt.new_builder(work.logger)
        # The parser owns the weights: it lives as long as the network.
        network, parser = _parsed(work, builder, onnx_path)
        found = checked_input(network, onnx_path, tensorrt)
        if work.options.contract is not None:
            check_contract(found, work.options.contract, onnx_path)
        if found.takes_bands and work.options.implicit_int8:
            raise implicit_bands_error(f"--implicit-int8 for {onnx_path.name!r}, which takes bands")
        work.nodes, work.takes_bands = onnx_nodes(network, tensorrt), found.takes_bands
        batch = _batch_range(work.options, found)
        _check_precision(work, precision_in(network, tensorrt), onnx_path)
        workspace = _forecast(work, network, onnx_path, batch[2])
        fp32_layers = _hold(work, network, found)
    monitor = None
    if tensorrt.has_progress_monitor():
        monitor = build_monitor(tensorrt, work.progress, interruption)
    with _calibration(work, network, found, batch[1]) as run:
        inputs = BuildInputs(
            network_input=found,
            batch=batch,
            workspace=workspace,
            monitor=monitor,
            calibrator=None if run is None else calibrator(tensorrt, run),
            fp32_layers=fp32_layers,
        )
        config = config_from_options(tensorrt, builder, work.options, inputs)
        plan = _built(work, (builder, network, config), interruption, run)
        if run is not None and run.written is not None:
            _keep_cache(work, run.written, beside(out_path, ".calibration.cache"))
    del parser
    return plan


def _parsed(work: Work, builder: Any, onnx_path: Path) -> Tuple[Any, Any]:
    data = bytes_of_onnx(onnx_path)
    work.onnx_sha256 = hashlib.sha256(data).hexdigest()
    return network_from_onnx(
        work.tensorrt, builder, onnx_path, data=data, log=work.log, logger=work.logger
    )


def _built(
    work: Work,
    parts: Tuple[Any, Any, Any],
    interruption: Interruption,
    run: Optional[CalibrationRun],
) -> bytes:
    """The plan of (builder, network, config); the timing cache is read before, written after."""
    builder, network, config = parts
    cache = work.options.timing_cache
    if cache is None and work.cuda is not None and work.tensorrt.has_timing_cache():
        cache = default_timing_cache(work.tensorrt, work.cuda.info)
    if cache is not None:
        load_timing_cache(config, cache, work.warn)
    can_cancel = work.tensorrt.has_progress_monitor()
    if not can_cancel:
        work.progress.note(
            f"{work.tensorrt} tells no progress; on a Jetson a build can take half an hour"
        )
    with work.progress.stage("build the engine"):
        with interruption.watched(can_cancel=can_cancel):
            memory = builder.build_serialized_network(network, config)
        raise_kept(run)
        if memory is None:
            raise _gave_up(work)
    if cache is not None:
        save_timing_cache(config, cache, work.warn)
    return bytes(memory)


def _gave_up(work: Work) -> EngineError:
    advice = "try --opt-level 2, a smaller --workspace or another --precision"
    if any(_OUT_OF_MEMORY.search(error) for error in work.log.errors):
        # Scratch that a tactic may not have is "out of memory" too.
        advice = "give a larger --workspace or leave it out, and close other programs"
    if work.cuda is None and (work.options.strip_weights or work.options.refit):
        # Seen with TensorRT-RTX 1.7.1, whose guide promises it without a GPU.
        advice = "build it on a machine with a GPU, or leave --refit and --strip-weights out"
    return EngineError(
        f"a build that {work.tensorrt} gave up: {errors_text(work.log.errors)}",
        expected="a graph and a GPU that it can build for",
        do=f"{advice}; its log is {str(work.log.kept_as)!r}",
    )


def _batch_range(options: BuildOptions, found: NetworkInput) -> Tuple[int, int, int]:
    """(smallest, usual, largest), from the options where the graph leaves it free."""
    if found.batch is not None:
        fixed = (found.batch, found.batch, found.batch)
        if options.batch not in (None, fixed):
            raise ConfigError(
                f"a batch of {':'.join(map(str, options.batch or ()))}",
                expected=f"{found.batch}, which is fixed in the ONNX file",
                do="leave --batch out, or export with --dynamic-batch",
            )
        return fixed
    if options.batch is None:
        raise ConfigError(
            "an ONNX file whose batch is free, without --batch",
            expected="--batch MIN:OPT:MAX, the sizes that the engine is built for",
            do="give, for example, --batch 1:1:8",
        )
    return options.batch


def _check_precision(work: Work, written: str, onnx_path: Path) -> None:
    """What the file is written in must allow what is asked for; an engine never lies about it."""
    if work.options.precision == AS_WRITTEN:
        work.options = replace(work.options, precision=written)
        return
    wanted, typed = work.options.precision, work.tensorrt.strongly_typed_only()
    if work.options.implicit_int8:
        fits = written == "fp32"
    elif wanted == "fp16" and not typed:
        fits = written in ("fp16", "fp32")
    else:
        fits = written == wanted
    if fits:
        return
    named = {"fp32": "FP32", "fp16": "FP16", "int8": "INT8 (Q/DQ)"}
    asked = "--implicit-int8" if work.options.implicit_int8 else f"--precision {wanted}"
    needed = "fp32" if work.options.implicit_int8 else wanted
    raise ConfigError(
        f"{asked} for {onnx_path.name!r}, which is written in {named[written]}",
        expected=f"an ONNX file in {named[needed]}, since {work.tensorrt} takes the types from it",
        do=f"give the bundle's {needed} file, or --precision {written}",
    )


def _forecast(work: Work, network: Any, onnx_path: Path, batch: int) -> Optional[int]:
    """Tell what the build will need; returns the workspace limit in bytes, None for no limit."""
    forecast = memory_forecast(
        work.tensorrt,
        onnx_bytes=onnx_path.stat().st_size,
        precision=work.options.precision,
        largest_layer=largest_layer_bytes(network, batch),
        gpu=work.cuda is not None,
    )
    free = free_memory(work.cuda)
    line, warnings = check_memory(forecast, free)
    work.progress.note(line)
    for warning in warnings:
        work.warn(warning)
    return workspace_bytes(work.options.workspace_mb, free)


def _hold(work: Work, network: Any, found: NetworkInput) -> bool:
    """Hold in FP32 what must stay so where types are only hints; returns whether that is asked."""
    nodes, typed = work.options.fp32_nodes, precision_in(network, work.tensorrt) == "fp16"
    if found.takes_bands and work.options.precision != "fp32":
        # FP16 has 11 bits: limits and scale of a band of 16 bits would move by whole grey levels.
        nodes += tuple(node for node in work.nodes if node.startswith(NODE_PREFIX))
    if work.tensorrt.strongly_typed_only() or not (nodes or typed):
        return False
    missing = hold_in_fp32(network, work.tensorrt, nodes=nodes, typed=typed)
    if missing:
        work.warn(
            f"{len(missing)} of {len(nodes)} nodes to hold in FP32 were not found, the first is "
            f"{shortened(missing[0])!r}"
        )
    work.notes.append("layers that the graph computes in FP32 are held there")
    return True


@contextlib.contextmanager
def _calibration(
    work: Work, network: Any, found: NetworkInput, batch: int
) -> Iterator[Optional[CalibrationRun]]:
    """The calibrator's data for implicit INT8, else None."""
    calibration = work.options.calibration
    if not work.options.implicit_int8:
        yield None
        return
    if calibration is not None and calibration.cache is not None:
        work.notes.append(f"implicit INT8 from {calibration.cache.name}")
        cache = cache_for(work.tensorrt, calibration.cache)
        yield run_from_cache(cache + constant_scale_lines(network, work.tensorrt))
        return
    calibration = Calibration() if calibration is None else calibration
    work.notes.append(f"implicit INT8 calibrated on {len(calibration.images)} images")
    hwc = (*found.hw, found.channels)
    batches = calibration_batches(calibration, hwc, batch, work.progress.advance)
    assert work.cuda is not None  # TensorRT, which alone has implicit INT8, always has a GPU.
    with DeviceBatch(work.cuda, batch * hwc[0] * hwc[1] * hwc[2]) as room:
        yield CalibrationRun(None, batches, batch_size=batch, on_device=room.fill)


def _keep_cache(work: Work, cache: bytes, path: Path) -> None:
    try:
        replace_file(path, [cache])
    except OSError as error:
        work.warn(f"the calibration cache {str(path)!r} was not written: {error.strerror}")
    else:
        work.progress.note(f"the calibration cache is {str(path)!r}")
