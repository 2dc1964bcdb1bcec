"""The one file for what differs between TensorRT 8.5 to 11 and TensorRT-RTX.

What exists since when was read from the Python bindings of 8.6.1, 10.3, 10.13, 10.16 and 11.4 and
from NVIDIA's documentation. The rest of the code asks for a capability and never for a version.
"""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from typing import Any, List, Optional, Sequence, Tuple

from engines.errors import ConfigError, DeviceError

TENSORRT = "TensorRT"
TENSORRT_RTX = "TensorRT-RTX"
OLDEST = (8, 5, 0)  # the first whose input may be uint8, with set_tensor_address

INSTALL = (
    "on a Jetson: sudo apt install nvidia-jetpack, and make the virtual environment with "
    "--system-site-packages; on a desktop: pip install tensorrt, or tensorrt-rtx for --rtx"
)


@dataclass(frozen=True)
class TensorRt:
    """The imported bindings and what the library behind them can do.

    `runtime` is TENSORRT or TENSORRT_RTX, `version` the library's (10, 3, 0) or (1, 7, 1).
    """

    module: Any
    runtime: str
    version: Tuple[int, int, int]

    def __str__(self) -> str:
        return f"{self.runtime} {self.version_text()}"

    def version_text(self) -> str:
        """ "10.3.0"."""
        return ".".join(str(part) for part in self.version)

    def calibration_version(self) -> str:
        """How a calibration cache spells the version: "8601" for 8.6.1, "100300" for 10.3.0."""
        major, minor, patch = self.version
        return str(major * (10_000 if major >= 10 else 1_000) + minor * 100 + patch)

    @property
    def is_rtx(self) -> bool:
        return self.runtime == TENSORRT_RTX

    def strongly_typed_only(self) -> bool:
        """The ONNX file's types decide; there are no FP16 and INT8 flags and no layer.precision.

        TensorRT-RTX 1.0 still had the names, but documents strong typing alone.
        """
        return self.is_rtx or self.version >= (11, 0, 0)

    def has_implicit_int8(self) -> bool:
        return not self.strongly_typed_only()

    def has_progress_monitor(self) -> bool:
        """IProgressMonitor, which shows progress and can cancel a build."""
        return self.is_rtx or self.version >= (10, 0, 0)

    def has_node_errors(self) -> bool:
        """A parser error names its node and operator; before, only the log's text does."""
        return self.is_rtx or self.version >= (10, 0, 0)

    def has_layer_metadata(self) -> bool:
        """A layer's metadata names its ONNX node; before, only its name may."""
        return self.is_rtx or self.version >= (8, 6, 0)

    def has_timing_cache(self) -> bool:
        """On TensorRT-RTX it changes nothing and makes an ahead-of-time build look for a GPU."""
        return not self.is_rtx

    def has_opt_level(self) -> bool:
        return self.is_rtx or self.version >= (8, 6, 0)

    def has_version_compatible(self) -> bool:
        """TensorRT-RTX engines never fit another release."""
        return not self.is_rtx and self.version >= (8, 6, 0)

    def has_hardware_compatible(self) -> bool:
        """HardwareCompatibilityLevel.AMPERE_PLUS; TensorRT-RTX engines are portable without."""
        return not self.is_rtx and self.version >= (8, 6, 0)

    def has_strip_weights(self) -> bool:
        return self.is_rtx or self.version >= (10, 0, 0)

    def has_onnx_refitter(self) -> bool:
        """OnnxParserRefitter, which puts the weights of an ONNX file into an engine."""
        return self.is_rtx or self.version >= (10, 0, 0)

    def has_dla(self) -> bool:
        """NVIDIA's page on DLA: 10.7 was the last 10.x release with it, 11.4 the next."""
        return not self.is_rtx and not (10, 8, 0) <= self.version < (11, 4, 0)

    def labels_are_int64(self) -> bool:
        """ArgMax gives INT64 instead of INT32; our graphs cast it to UINT8."""
        return self.is_rtx or self.version >= (10, 0, 0)

    def library_advice(self) -> str:
        """What to do where this version lacks an option."""
        return "leave it out" if self.is_rtx else "leave it out, or use a TensorRT that has it"

    def require(self, has: bool, option: str, since: str) -> None:
        """ConfigError, naming where `option` exists, unless the library has it."""
        if not has:
            raise ConfigError(f"{option} with {self}", expected=since, do=self.library_advice())

    def activation_bytes(self, engine: Any) -> int:
        """Device memory of one execution context; 10.1 added the second name, 11 has no other."""
        size = getattr(engine, "device_memory_size_v2", None)
        return int(engine.device_memory_size if size is None else size)

    # The builder's objects, each made as this version wants it.

    def new_builder(self, logger: Any) -> Any:
        """A builder; DeviceError where TensorRT finds no GPU (TensorRT-RTX needs none)."""
        try:
            builder = self.module.Builder(logger)
        except (TypeError, RuntimeError) as error:
            # pybind11 turns the factory's null pointer into a TypeError.
            raise self._no_gpu(str(error)) from error
        if builder is None:
            raise self._no_gpu("no builder")
        return builder

    def _no_gpu(self, reason: str) -> DeviceError:
        return DeviceError(
            f"{self}, which cannot start its builder ({reason})",
            expected="a GPU and a driver that this TensorRT supports",
            do="run `riceseg doctor`; TensorRT-RTX (--rtx) builds without a GPU",
        )

    def new_network(self, builder: Any) -> Any:
        """An empty network: explicit batch, strongly typed where it must be."""
        names = self.module.NetworkDefinitionCreationFlag
        flags = 0
        if not self.is_rtx and self.version < (10, 0, 0):
            flags |= 1 << int(names.EXPLICIT_BATCH)
        if self.strongly_typed_only():
            # Ignored since 11.0, needed on TensorRT-RTX 1.x; both have the name.
            flags |= 1 << int(names.STRONGLY_TYPED)
        return builder.create_network(flags)

    def add_profile(
        self, builder: Any, config: Any, *, name: str, shapes: Sequence[Sequence[int]]
    ) -> Any:
        """Let the free sizes of input `name` range over three shapes: smallest, usual, largest."""
        profile = builder.create_optimization_profile()
        low, usual, high = (tuple(shape) for shape in shapes)
        profile.set_shape(name, low, usual, high)
        config.add_optimization_profile(profile)
        return profile


def load_tensorrt(*, rtx: Optional[bool] = None) -> TensorRt:
    """The bindings of this Python: TensorRT, or TensorRT-RTX.

    `rtx` True or False asks for one of them; None takes TensorRT, else TensorRT-RTX. Nothing is
    run and no CUDA context is made. Raises DeviceError when it is missing, broken or too old.
    """
    names = {None: ("tensorrt", "tensorrt_rtx"), True: ("tensorrt_rtx",), False: ("tensorrt",)}[rtx]
    problems: List[str] = []
    for name in names:
        try:
            module = importlib.import_module(name)
        except (ImportError, OSError) as error:
            problems.append(f"{name}: {error}")
            continue
        return _checked(tensorrt_from_module(module))
    wanted = "TensorRT-RTX 1.0" if rtx else "TensorRT 8.5"
    raise DeviceError(
        f"no TensorRT in this Python that can be used ({'; '.join(problems)})",
        expected=f"{wanted} or newer with its Python bindings",
        do=INSTALL,
    )


def tensorrt_from_module(module: Any) -> TensorRt:
    """Which library stands behind imported bindings: TensorRT-RTX's are called tensorrt_rtx."""
    rtx = module.__name__.split(".")[0] == "tensorrt_rtx"
    version = version_from_text(str(module.__version__))
    return TensorRt(module, TENSORRT_RTX if rtx else TENSORRT, version)


def version_from_text(text: str) -> Tuple[int, int, int]:
    """(10, 13, 0) of "10.13.0.35"; DeviceError for text that is no version."""
    match = re.match(r"(\d{1,4})\.(\d{1,4})(?:\.(\d{1,4}))?", text)
    if match is None:
        raise DeviceError(
            f"TensorRT of version {text[:40]!r}",
            expected="a version such as 10.3.0",
            do=INSTALL,
        )
    return int(match[1]), int(match[2]), int(match[3] or 0)


def _checked(found: TensorRt) -> TensorRt:
    if not found.is_rtx and found.version < OLDEST:
        raise DeviceError(
            f"{found}", expected="TensorRT 8.5 or newer (JetPack 5.0.2 has it)", do=INSTALL
        )
    return found
