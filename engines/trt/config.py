"""A builder's configuration from our options; an option that this TensorRT lacks is an error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, List, Optional, Tuple

from engines.cuda.interface import GpuInfo
from engines.errors import ConfigError
from engines.trt.api import TensorRt
from engines.trt.engine_header import AMPERE, gpu_text
from engines.trt.network import NetworkInput
from engines.trt.options import BuildOptions


def check_options(tensorrt: TensorRt, options: BuildOptions, gpu: Optional[GpuInfo]) -> None:
    """ConfigError for an option that this TensorRT or this GPU does not have. No GPU: not asked."""
    rtx_reason = "TensorRT, for TensorRT-RTX"
    if options.opt_level is not None:
        tensorrt.require(tensorrt.has_opt_level(), "--opt-level", "TensorRT 8.6 or newer")
    if options.version_compatible:
        since = f"{rtx_reason} engines fit no other release" if tensorrt.is_rtx else ""
        tensorrt.require(
            tensorrt.has_version_compatible(),
            "--version-compatible",
            since or "TensorRT 8.6 or newer",
        )
    if options.hardware_compatible:
        since = f"{rtx_reason} engines are portable without it" if tensorrt.is_rtx else ""
        tensorrt.require(
            tensorrt.has_hardware_compatible(),
            "--hardware-compatible",
            since or "TensorRT 8.6 or newer",
        )
        _check_portable(gpu)
    if options.strip_weights:
        tensorrt.require(tensorrt.has_strip_weights(), "--strip-weights", "TensorRT 10.0 or newer")
    if options.implicit_int8:
        tensorrt.require(
            tensorrt.has_implicit_int8(),
            "--implicit-int8",
            "TensorRT 10 or older; later ones take INT8 from the ONNX file's Q/DQ alone",
        )
    if options.timing_cache is not None:
        since = f"{rtx_reason} times nothing while it builds"
        tensorrt.require(tensorrt.has_timing_cache(), "--timing-cache", since)
    if options.dla is not None:
        since = "TensorRT up to 10.7, or 11.4 and newer, on a board with DLA cores"
        tensorrt.require(tensorrt.has_dla(), f"--dla {options.dla}", since)


def _check_portable(gpu: Optional[GpuInfo]) -> None:
    """NVIDIA: for Ampere and newer, not for JetPack."""
    if gpu is None or (not gpu.integrated and gpu.compute_capability >= AMPERE):
        return
    raise ConfigError(
        f"--hardware-compatible on {gpu_text(gpu.name, gpu.compute_capability)}",
        expected="a desktop GPU of compute capability 8.0 (Ampere) or newer",
        do="leave it out and build on each board",
    )


@dataclass(frozen=True)
class BuildInputs:
    """What the configuration needs besides the options.

    `workspace` in bytes, None for TensorRT's own; `monitor` and `calibrator` None where there is
    none; `fp32_layers`: some layers are held in FP32.
    """

    network_input: NetworkInput
    batch: Tuple[int, int, int]
    workspace: Optional[int]
    monitor: Any
    calibrator: Any
    fp32_layers: bool


def config_from_options(
    tensorrt: TensorRt, builder: Any, options: BuildOptions, inputs: BuildInputs
) -> Any:
    """The IBuilderConfig. `check_options` has let the options pass; the timing cache is not set."""
    module = tensorrt.module
    config = builder.create_builder_config()
    # The audit of fused layers reads names and formats of each layer from the engine.
    config.profiling_verbosity = module.ProfilingVerbosity.DETAILED
    if inputs.workspace is not None:
        config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, inputs.workspace)
    if options.opt_level is not None:
        config.builder_optimization_level = options.opt_level
    for flag in _flags(tensorrt, options, inputs.fp32_layers):
        config.set_flag(getattr(module.BuilderFlag, flag))
    if options.hardware_compatible:
        config.hardware_compatibility_level = module.HardwareCompatibilityLevel.AMPERE_PLUS
    if options.dla is not None:
        _set_dla(tensorrt, builder, config, options.dla)
    if inputs.monitor is not None:
        config.progress_monitor = inputs.monitor
    _set_profile(tensorrt, builder, config, inputs)
    return config


def _flags(tensorrt: TensorRt, options: BuildOptions, fp32_layers: bool) -> List[str]:
    flags: List[str] = []
    if not tensorrt.strongly_typed_only():
        # INT8 alone would leave what is not quantized in FP32, which is slower than FP16.
        flags += {"fp32": [], "fp16": ["FP16"], "int8": ["INT8", "FP16"]}[options.precision]
        flags += ["OBEY_PRECISION_CONSTRAINTS"] if fp32_layers else []
    if options.version_compatible:
        flags.append("VERSION_COMPATIBLE")
    if options.strip_weights:
        # The weights that come back are those of the same ONNX file, unless --refit says otherwise.
        flags += ["STRIP_PLAN", "REFIT" if options.refit else "REFIT_IDENTICAL"]
    elif options.refit:
        flags.append("REFIT")
    if options.dla is not None:
        flags.append("GPU_FALLBACK")
    return flags


def _set_dla(tensorrt: TensorRt, builder: Any, config: Any, core: int) -> None:
    cores = int(builder.num_DLA_cores)
    if core >= cores:
        raise ConfigError(
            f"--dla {core} where there are {cores} DLA cores",
            expected=f"a core from 0 to {cores - 1}" if cores else "a board with DLA cores",
            do="leave it out, or choose another core",
        )
    config.default_device_type = tensorrt.module.DeviceType.DLA
    config.DLA_core = core


def _set_profile(tensorrt: TensorRt, builder: Any, config: Any, inputs: BuildInputs) -> None:
    """The free batch's range; also which of its sizes calibration runs at."""
    found = inputs.network_input
    profile = None
    if found.batch is None:
        shapes = [(size, *found.hw, found.channels) for size in inputs.batch]
        profile = tensorrt.add_profile(builder, config, name=found.name, shapes=shapes)
    if inputs.calibrator is not None:
        config.int8_calibrator = inputs.calibrator
        if profile is not None:
            config.set_calibration_profile(profile)
