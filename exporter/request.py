"""What one export is asked to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from engines.errors import ConfigError

Resize = Literal["stretch", "letterbox"]


@dataclass(frozen=True)
class LoadOptions:
    """What the user may say about a checkpoint that its tensors cannot tell.

    `mean` and `std` are per channel in the 0..255 scale. `classes` is a file of names.
    """

    model: str | None = None
    classes: Path | None = None
    keep_classes: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


@dataclass(frozen=True)
class DataOptions:
    """Images to calibrate on and labelled images to validate on, and how to treat odd ones."""

    calib: Path | None = None
    val: Path | None = None
    val_masks: Path | None = None
    skip_bad: bool = False
    convert_images: bool = False
    reduce_zero_label: bool | None = None  # None: as the checkpoint's configuration says


@dataclass(frozen=True)
class Int8Options:
    """What the user says about INT8, each as in `calibration.recipe.Int8Recipe`.

    None: as measured with `ExportRequest.auto`, else Int8Recipe's default.
    """

    method: str | None = None
    percentile: float | None = None
    equalize: bool | None = None
    rounding: str | None = None
    bias_correction: bool | None = None


def calibration_source(calib: Path | None) -> Path:
    """Where INT8's images are; ConfigError when nobody said."""
    if calib is None:
        raise ConfigError(
            "INT8 without --calib",
            expected="images from the field: INT8 ranges are never taken from noise",
            do="pass --calib with a folder of some 100 training images",
        )
    return calib


@dataclass(frozen=True)
class GraphOptions:
    """`size` and `resize` None: as the checkpoint was tested (see `network_size`).

    `opset` None: as the target wants it. `output_told`: whether somebody said `output`.
    `grid_sample`: deformable attention by GridSample or without it; None: with it where the opset
    has it in a form that every TensorRT reads rightly.
    """

    size: tuple[int, int] | None = None
    resize: Resize | None = None
    output: str = "labels"
    output_told: bool = False
    batch: tuple[int, int, int] = (1, 1, 1)
    opset: int | None = None
    grid_sample: bool | None = None


@dataclass(frozen=True)
class ExportRequest:
    """`max_drop` is in mIoU points; `runs` is the number of timed runs of each form.

    `target` names one of `exporter.targets`; None is for every device. `keep_reference` stores
    PyTorch's labels of the validation images in the bundle. What is written beside FP32: `int8` and
    `fp16` as asked; `auto` what stays within `max_drop`; `policy` what that file says, with which
    `int8` and `fp16` may be set where they do not contradict it.
    """

    checkpoint: Path
    out: Path
    load: LoadOptions = field(default_factory=LoadOptions)
    graph: GraphOptions = field(default_factory=GraphOptions)
    data: DataOptions = field(default_factory=DataOptions)
    target: str | None = None
    keep_reference: bool = False
    int8: bool = False
    fp16: bool = False
    auto: bool = False
    policy: Path | None = None
    int8_options: Int8Options = field(default_factory=Int8Options)
    max_drop: float = 1.0
    runs: int = 20
    overwrite: bool = False
