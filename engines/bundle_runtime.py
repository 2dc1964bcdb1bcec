"""The best way to run a bundle on this machine: its engine, one built now, or ONNX Runtime."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Optional, Tuple, Union

import numpy as np

from engines.batches import BANDS_NAME, INPUT_DTYPES, INPUT_NAME
from engines.bundle import Bundle, bundle_path, verified_path
from engines.errors import BundleError, ConfigError, DeviceError, MissingPackageError, UserError
from engines.fused_graphs import bands_shape, check_recipes, graph_key
from engines.onnx_predictor import OnnxPredictor

if TYPE_CHECKING:
    from engines.progress import Progress
    from engines.trt.predictor import TrtPredictor

PRECISIONS = ("fp32", "fp16", "int8")
RUNTIMES = ("auto", "tensorrt", "onnx")
MOST_THREADS = 4096

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wish:
    """What was asked of `Segmenter.open`; see there."""

    precision: Optional[str] = None
    runtime: str = "auto"
    build: bool = True
    threads: Optional[int] = None
    verify: bool = True
    fused: bool = False

    def __post_init__(self) -> None:
        if self.runtime not in RUNTIMES:
            raise ConfigError(
                f"runtime {self.runtime!r}", expected=" or ".join(RUNTIMES), do="use one of these"
            )
        # ONNX Runtime starts as many as it is told, until the machine has no more.
        if self.threads is not None and not 1 <= self.threads <= MOST_THREADS:
            raise ConfigError(
                f"{self.threads} threads",
                expected=f"1 to {MOST_THREADS}",
                do="leave it out for all cores",
            )


class Opened(NamedTuple):
    """A predictor, what it computes in, what is worth knowing, and its end.

    `resources` closes the predictor and the GPU it was given.
    """

    predictor: Union[OnnxPredictor, TrtPredictor]
    precision: str
    notes: Tuple[str, ...]
    resources: contextlib.ExitStack


def open_bundle(
    folder: Union[str, os.PathLike[str]],
    bundle: Bundle,
    wish: Wish,
    *,
    progress: Optional[Progress] = None,
) -> Opened:
    """Open `bundle`, which lies in `folder`; `progress` is told of a build.

    Raises what `Segmenter.open` says. With runtime "auto" nothing that TensorRT, the GPU or a build
    lacks is an error as long as ONNX Runtime can run the bundle: the log and the notes tell it.
    A fused wish for a bundle without graphs that take bands is a ConfigError.
    """
    folder = Path(folder)
    if wish.fused:
        bands_shape(bundle)
        check_recipes(folder, bundle)
    if wish.precision not in (None, *PRECISIONS):
        raise _no_such_precision(bundle, wish)
    if wish.runtime == "onnx":
        return _on_onnx(folder, bundle, wish, notes=())
    try:
        return _on_tensorrt(folder, bundle, wish, progress)
    except (BundleError, ConfigError):
        raise
    except UserError as error:
        if wish.runtime == "tensorrt":
            raise
        reason = error
    # Where TensorRT is not installed nobody misses it.
    level = logging.WARNING if _is_installed() else logging.INFO
    note = f"ONNX Runtime instead of TensorRT: {reason.got}"
    logger.log(level, "%s: %s", bundle.name, note)
    try:
        return _on_onnx(folder, bundle, wish, notes=(note,))
    except MissingPackageError as missing:
        raise DeviceError(
            f"neither TensorRT ({reason.got}) nor ONNX Runtime ({missing.got})",
            expected=f"{reason.expected}; or {missing.expected}",
            do=f"{reason.do}; or {missing.do}",
        ) from missing


def _no_such_precision(bundle: Bundle, wish: Wish) -> ConfigError:
    there = ", ".join(p for p in PRECISIONS if graph_key(p, fused=wish.fused) in bundle.files)
    return ConfigError(
        f"precision {wish.precision or 'fp32'!r}"
        + (" of a graph that takes bands" if wish.fused else ""),
        expected=f"one that the bundle has: {there or 'it has no ONNX file'}",
        do="choose one of these, or export the model with this precision",
    )


def _is_installed() -> bool:
    names = ("tensorrt", "tensorrt_rtx")
    try:
        return any(importlib.util.find_spec(name) is not None for name in names)
    except ValueError:  # A module without __spec__ is in sys.modules: it was imported somehow.
        return True


# ONNX Runtime


def _on_onnx(folder: Path, bundle: Bundle, wish: Wish, *, notes: Tuple[str, ...]) -> Opened:
    precision = "fp32" if wish.precision is None else wish.precision
    key = graph_key(precision, fused=wish.fused)
    if key not in bundle.files:
        raise _no_such_precision(bundle, wish)
    if wish.precision is None and not notes:
        # SegFormer-B0 on two cores: fp32 38 ms, int8 64 ms.
        logger.info("%s: fp32 on ONNX Runtime's CPU provider, where int8 is slower", bundle.name)
    info = bundle.files[key]
    path = verified_path(folder, info) if wish.verify else bundle_path(folder, info.file)
    predictor = OnnxPredictor(path, threads=wish.threads, name=f"{bundle.name} {precision}")
    with contextlib.ExitStack() as stack:
        stack.callback(predictor.close)
        _check_sizes(bundle, predictor, fused=wish.fused)
        return Opened(predictor, precision, notes, stack.pop_all())


def _check_sizes(
    bundle: Bundle, predictor: Union[OnnxPredictor, TrtPredictor], *, fused: bool
) -> None:
    spec = bundle.input
    hw, channels = bands_shape(bundle) if fused else (spec.hw, spec.channels)
    dtype = np.dtype(INPUT_DTYPES[BANDS_NAME if fused else INPUT_NAME])
    kind = np.dtype(predictor.input_dtype)
    sizes = (predictor.input_hw, predictor.channels, predictor.output_hw)
    if kind != dtype or sizes != (hw, channels, spec.hw):
        raise BundleError(
            f"{predictor.path.name!r} for input {predictor.input_hw} with {predictor.channels} "
            f"channels of {kind}, labels {predictor.output_hw}",
            expected=f"{hw} with {channels} channels of {dtype}, labels {spec.hw}, as bundle.json "
            "says",
            do="copy the folder from where it was made, or export the model again",
        )


def tensorrt_precision(bundle: Bundle, *, fused: bool = False) -> str:
    """What runs on TensorRT unless asked for otherwise: the fastest that is known to be right."""
    gate = bundle.gate
    if graph_key("int8", fused=fused) in bundle.files and gate is not None and gate.passed:
        return "int8"
    return "fp16" if graph_key("fp16", fused=fused) in bundle.files else "fp32"


def _on_tensorrt(folder: Path, bundle: Bundle, wish: Wish, progress: Optional[Progress]) -> Opened:
    # A board without TensorRT, and every start of a program on a workstation, does without these.
    from engines.cuda import open_cuda
    from engines.trt.api import load_tensorrt
    from engines.trt.bundle_engine import Shelf, engine_on

    tensorrt = load_tensorrt()
    precision = wish.precision or tensorrt_precision(bundle, fused=wish.fused)
    with contextlib.ExitStack() as stack:
        cuda = open_cuda()
        stack.callback(cuda.close)
        shelf = Shelf(folder, bundle, precision, tensorrt, cuda, fused=wish.fused)
        predictor, note = engine_on(shelf, build=wish.build, progress=progress)
        stack.callback(predictor.close)
        _check_sizes(bundle, predictor, fused=wish.fused)
        return Opened(predictor, precision, (note,) if note else (), stack.pop_all())
