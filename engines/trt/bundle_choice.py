"""What a bundle gives to a build: the graph, its options, and the engine's file name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Optional, Tuple

from engines.batches import BANDS_NAME
from engines.bundle import Bundle, bundle_path
from engines.cuda.interface import GpuInfo
from engines.errors import ConfigError
from engines.fused_graphs import bands_shape, check_recipes, graph_key
from engines.trt.api import TensorRt
from engines.trt.engine_file import SUFFIX
from engines.trt.options import AS_WRITTEN, BuildOptions, Calibration, Contract


def engine_name(options: BuildOptions, tensorrt: TensorRt, gpu: Optional[GpuInfo]) -> str:
    """ "fp16-trt10.3.0-sm87-dla0.engine"; without a GPU's number for TensorRT-RTX.

    "fp16-bands-..." of a graph that takes bands.
    """
    kind = f"{options.precision}-implicit" if options.implicit_int8 else options.precision
    kind += "-bands" if options.fused else ""
    name = f"{kind}-{'rtx' if tensorrt.is_rtx else 'trt'}{tensorrt.version_text()}"
    if gpu is not None and not tensorrt.is_rtx:
        name += "-sm" + "".join(str(part) for part in gpu.compute_capability)
    return name + (f"-dla{options.dla}" if options.dla is not None else "") + SUFFIX


def onnx_key(bundle: Bundle, tensorrt: TensorRt, options: BuildOptions) -> Tuple[str, str]:
    """Which of `bundle.files` to build, and a warning or "".

    A strongly typed TensorRT computes each tensor in the type that the file gives it, so INT8 takes
    the file whose rest is FP16. A weakly typed one chooses FP16 by itself, also from an FP32 file.
    """
    if options.precision == AS_WRITTEN:
        raise ConfigError(
            "a bundle without a precision",
            expected="fp32, fp16 or int8, since a bundle may hold all of them",
            do="choose one of them",
        )
    typed = tensorrt.strongly_typed_only()
    if options.implicit_int8:
        wanted = ["fp32"]
    elif options.precision == "int8":
        wanted = ["int8_fp16", "int8"] if typed else ["int8"]
    elif options.precision == "fp16":
        wanted = ["fp16"] if typed else ["fp16", "fp32"]
    else:
        wanted = ["fp32"]
    wanted = [graph_key(key, fused=options.fused) for key in wanted]
    found = [key for key in wanted if key in bundle.files]
    if not found:
        raise ConfigError(
            f"--precision {options.precision} for a bundle with "
            f"{', '.join(sorted(bundle.files)) or 'no files'}",
            expected=f"{' or '.join(wanted)} in it, which {tensorrt} builds this precision from",
            do="export the model with this precision, or choose another one"
            + (" (and with --fuse-bands)" if options.fused else ""),
        )
    if found[0] == graph_key("int8", fused=options.fused) and typed:
        return found[0], (
            f"{tensorrt} computes what is not INT8 in this bundle in FP32: export it again for an "
            "INT8 graph whose rest is FP16, which is faster"
        )
    return found[0], ""


def options_from_bundle(bundle: Bundle, folder: Path, options: BuildOptions) -> BuildOptions:
    """The options with what the bundle knows; what the user gave stays.

    BundleError for a graph that takes bands and composes them otherwise than the bundle says.
    """
    hints, spec = getattr(bundle, "build", None), bundle.input
    options = replace(
        options,
        batch=options.batch or spec.batch,
        fp32_nodes=options.fp32_nodes or (() if hints is None else hints.fp32_nodes),
        contract=Contract(spec.hw, spec.channels, spec.batch, tuple(bundle.outputs)),
    )
    if options.fused:
        hw, channels = bands_shape(bundle)
        check_recipes(folder, bundle)
        contract = Contract(hw, channels, spec.batch, tuple(bundle.outputs), BANDS_NAME)
        options = replace(options, contract=contract)
    if not options.implicit_int8:
        return options
    given = options.calibration or Calibration()
    cache = given.cache
    if cache is None and not given.images and "calibration_cache" in bundle.files:
        cache = bundle_path(folder, bundle.files["calibration_cache"].file)
    calibration = replace(given, cache=cache, rule=spec.rule, pad_value=spec.pad_value)
    return replace(options, calibration=calibration)
