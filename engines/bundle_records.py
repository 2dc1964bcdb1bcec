"""The records of `bundle.json` and the limits of their numbers; `engines.bundle` reads them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Dict, Literal, Optional, Tuple

from engines.bands.recipe import BandRecipe
from engines.resize import ResizeRule

# Labels are uint8 and 255 means "ignore", so indices 0..254 are left for classes.
MAX_OUTPUTS = 255
MAX_SIDE = 16_384
MAX_CHANNELS = 64
MAX_BATCH = 4_096


@dataclass(frozen=True)
class ModelInfo:
    """Where the graph comes from. `parameters` counts scalars; `source` names the key layout."""

    architecture: str
    variant: str
    head: Optional[str]
    head_channels: Optional[int]
    in_channels: int
    num_outputs: int
    parameters: int
    source: str


@dataclass(frozen=True)
class CheckpointInfo:
    """The weights the bundle was made from: a file name (not a path in the bundle) and its hash."""

    file: str
    sha256: str


@dataclass(frozen=True)
class InputSpec:
    """The graph's input, (N, H, W, C) uint8, and how an image of any size becomes one.

    `hw` is in pixels; `mean` and `std` are in units of 0..255 and are applied inside the graph;
    `batch` is (smallest, usual, largest).
    """

    name: str
    hw: Tuple[int, int]
    channels: int
    channel_order: str
    mean: Tuple[float, ...]
    std: Tuple[float, ...]
    resize: Literal["stretch", "letterbox"]
    batch: Tuple[int, int, int]

    @property
    def pad_value(self) -> Tuple[int, ...]:
        """The uint8 nearest to `mean` per channel: padding that is about 0 once normalised."""
        return tuple(min(255, max(0, math.floor(value + 0.5))) for value in self.mean)

    @property
    def rule(self) -> ResizeRule:
        """The resize rule as an object."""
        return ResizeRule(self.resize)


@dataclass(frozen=True)
class FileInfo:
    """A file of the bundle: POSIX path relative to the folder, SHA-256 (hex) and size."""

    file: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Gate:
    """Loss of mIoU against PyTorch, in percentage points, and whether it is within the limit."""

    max_drop: float
    drop: float
    passed: bool


@dataclass(frozen=True)
class BuildHints:
    """What a builder on the device should know about the graphs.

    `target` is the export's --target, "any" without one. `fp32_nodes` names ONNX nodes that a
    builder which chooses precisions itself (TensorRT up to 10) must hold in FP32.
    """

    target: str
    fp32_nodes: Tuple[str, ...]


@dataclass(frozen=True)
class BandsInfo:
    """How float bands become the image that the graphs take; see `engines.bands.recipe`.

    `letters` in the order in which the bands are given. `fused_hw` is the size of a scene, in
    pixels, that the graphs named "..._bands" in `files` take, which compose by themselves; None
    without such graphs.
    """

    letters: str
    norm: str
    nodata: float
    fused_hw: Optional[Tuple[int, int]] = None

    @property
    def recipe(self) -> BandRecipe:
        """The recipe as an object."""
        return BandRecipe(self.letters, self.norm, self.nodata)


@dataclass(frozen=True)
class Bundle:
    """The fields of `bundle.json`, in its order.

    `classes` names the first outputs (0..len-1), `palette` has one RGB triple for each of them.
    `test_mode`, `calibration` and `parity` are records that are carried along, not interpreted
    here, except for `test_mode["mode"]`. Dictionaries must not be changed by the reader.
    """

    name: str
    created: str
    model: ModelInfo
    checkpoint: CheckpointInfo
    input: InputSpec
    outputs: Tuple[str, ...]
    classes: Tuple[str, ...]
    palette: Tuple[Tuple[int, int, int], ...]
    num_outputs: int
    reduce_zero_label: bool
    test_mode: Dict[str, Any]
    opset: int
    files: Dict[str, FileInfo]
    calibration: Optional[Dict[str, Any]]
    parity: Optional[Dict[str, Any]]
    report: Optional[str]
    gate: Optional[Gate]
    warnings: Tuple[str, ...]
    versions: Dict[str, str]
    build: Optional[BuildHints] = None  # bundles of older exports have none
    bands: Optional[BandsInfo] = None  # for images that are no composites, and older exports
