"""What one export is asked to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from engines.bands.recipe import BandRecipe
from engines.bundle_records import MAX_SIDE
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
    """Images to calibrate on and labelled images to validate on, and how to treat odd ones.

    `pairs` names the classes that `riceseg evaluate` compares with each other one.
    """

    calib: Path | None = None
    val: Path | None = None
    val_masks: Path | None = None
    skip_bad: bool = False
    convert_images: bool = False
    reduce_zero_label: bool | None = None  # None: as the checkpoint's configuration says
    pairs: tuple[str, ...] = ()


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
    has it in a form that every TensorRT reads rightly. `mask_products`: the size at which
    Mask2Former multiplies classes and masks, "input" or "quarter"; None: the input's, as trained.
    """

    size: tuple[int, int] | None = None
    resize: Resize | None = None
    output: str = "labels"
    output_told: bool = False
    batch: tuple[int, int, int] = (1, 1, 1)
    opset: int | None = None
    grid_sample: bool | None = None
    mask_products: str | None = None


@dataclass(frozen=True)
class ExportRequest:
    """`max_drop` is in mIoU points; `runs` is the number of timed runs of each form.

    `target` names one of `exporter.targets`; None is for every device. `keep_reference` stores
    PyTorch's labels of the validation images in the bundle. `bands` are those of the composites
    that the network was trained on, None for other images; `fuse_bands` adds graphs that compose
    scenes of `scene_hw` pixels, None for the network's size. What is written beside FP32: `int8`
    and `fp16` as asked; `auto` what stays within `max_drop`; `policy` what that file says, with
    which `int8` and `fp16` may be set where they do not contradict it.
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
    bands: BandRecipe | None = None
    fuse_bands: bool = False
    scene_hw: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        """ConfigError where an option about bands lacks the one that it is about."""
        for name, given, other, there in (
            ("--fuse-bands", self.fuse_bands, "--bands", self.bands is not None),
            ("--scene-size", self.scene_hw is not None, "--fuse-bands", self.fuse_bands),
        ):
            if given and not there:
                raise ConfigError(
                    f"{name} without {other}",
                    expected="both, or neither: a graph composes bands by a recipe",
                    do=f"pass {other} too, or leave {name} out",
                )
        low, high = 8, MAX_SIDE  # fewer rows leave the pattern that graphs are checked with empty
        if self.scene_hw is not None and not all(low <= side <= high for side in self.scene_hw):
            raise ConfigError(
                f"--scene-size {self.scene_hw[0]}x{self.scene_hw[1]}",
                expected=f"height and width from {low} to {high}",
                do="give the size of the scenes, such as 512x512",
            )
