"""What can be asked of a build."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Optional, Tuple

from engines.batches import INPUT_NAME
from engines.errors import ConfigError
from engines.resize import ResizeRule

PRECISIONS = ("fp32", "fp16", "int8")
AS_WRITTEN = "as written"  # the precision that an ONNX file's own types say
MAX_OPT_LEVEL = 5
MAX_WORKSPACE_MB = 1_000_000
MAX_BATCH = 4_096


@dataclass(frozen=True)
class Calibration:
    """Where implicit INT8 takes its ranges from: a cache, else images that are run through it.

    `rule` and `pad_value` (one 0..255 a channel, none for zeros) fit an image to the network, and
    `convert` lets grey and other images become RGB.
    """

    cache: Optional[Path] = None
    images: Tuple[Path, ...] = ()
    rule: ResizeRule = field(default_factory=lambda: ResizeRule("stretch"))
    pad_value: Tuple[int, ...] = ()
    convert: bool = False


class Contract(NamedTuple):
    """What a bundle says of a graph; `batch` is (smallest, usual, largest), `name` the input's."""

    hw: Tuple[int, int]
    channels: int
    batch: Tuple[int, int, int]
    outputs: Tuple[str, ...]
    name: str = INPUT_NAME


@dataclass(frozen=True)
class BuildOptions:
    """Options of a build; those that the installed TensorRT lacks are refused when it starts.

    `workspace_mb` limits what one layer may use while it runs (None: TensorRT's default, but on a
    board with shared memory a quarter of what is free). `timing_cache` None is the user's cache
    folder. `refit` keeps the weights exchangeable for other values, `strip_weights` leaves them out
    of the file. `rtx` asks for TensorRT-RTX or, False, for TensorRT; None takes what is there.
    `batch` is (smallest, usual, largest) for an ONNX file whose batch is free, `fp32_nodes` names
    ONNX nodes that a weakly typed build holds in FP32; a bundle brings both along, and its
    `contract`, which the graph is compared with. `precision` AS_WRITTEN is for an ONNX file.
    `fused` takes a bundle's graph that composes bands by itself.
    """

    precision: str = "fp16"
    workspace_mb: Optional[int] = None
    timing_cache: Optional[Path] = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    dla: Optional[int] = None
    strip_weights: bool = False
    refit: bool = False
    opt_level: Optional[int] = None
    implicit_int8: bool = False
    rtx: Optional[bool] = None
    batch: Optional[Tuple[int, int, int]] = None
    fp32_nodes: Tuple[str, ...] = ()
    calibration: Optional[Calibration] = None
    contract: Optional[Contract] = None
    fused: bool = False

    def __post_init__(self) -> None:
        if self.precision not in (*PRECISIONS, AS_WRITTEN):
            raise ConfigError(
                f"--precision {self.precision}",
                expected=", ".join(PRECISIONS),
                do="choose one of them",
            )
        _check_range("--opt-level", self.opt_level, 0, MAX_OPT_LEVEL)
        _check_range("--workspace", self.workspace_mb, 1, MAX_WORKSPACE_MB)
        _check_range("--dla", self.dla, 0, 15)
        if self.batch is not None:
            low, usual, high = self.batch
            if not 1 <= low <= usual <= high <= MAX_BATCH:
                raise ConfigError(
                    f"--batch {low}:{usual}:{high}",
                    expected=f"MIN:OPT:MAX with 1 <= MIN <= OPT <= MAX <= {MAX_BATCH}",
                    do="give, for example, 1:4:8",
                )
        if self.implicit_int8 and self.precision != "int8":
            given = self.precision != AS_WRITTEN
            raise ConfigError(
                "--implicit-int8 with"
                + (f" --precision {self.precision}" if given else "out --precision"),
                expected="--precision int8",
                do="add --precision int8, or leave --implicit-int8 out",
            )
        if self.implicit_int8 and self.fused:
            raise implicit_bands_error("--implicit-int8 with --fused")
        if self.dla is not None and self.precision == "fp32":
            raise ConfigError(
                f"--dla {self.dla} with --precision fp32",
                expected="fp16 or int8, which are all that a DLA core computes in",
                do="choose --precision fp16",
            )


def _check_range(option: str, value: Optional[int], low: int, high: int) -> None:
    if value is not None and not low <= value <= high:
        raise ConfigError(
            f"{option} {value}",
            expected=f"a whole number from {low} to {high}",
            do="choose one in that range",
        )


def implicit_bands_error(got: str) -> ConfigError:
    """Implicit INT8 calibrates on images and knows no range of a tensor that composes."""
    return ConfigError(
        got,
        expected="a graph that takes composed images, or INT8 from the ONNX file's Q/DQ",
        do="leave one of them out",
    )
