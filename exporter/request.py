"""What one export is asked to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from exporter.load import LoadOptions, Resize


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
class GraphOptions:
    """`size` and `resize` None: as the checkpoint was tested (see `network_size`)."""

    size: tuple[int, int] | None = None
    resize: Resize | None = None
    output: str = "labels"
    batch: tuple[int, int, int] = (1, 1, 1)
    opset: int = 17


@dataclass(frozen=True)
class ExportRequest:
    """`max_drop` is in mIoU points; `runs` is the number of timed runs of each form."""

    checkpoint: Path
    out: Path
    load: LoadOptions = field(default_factory=LoadOptions)
    graph: GraphOptions = field(default_factory=GraphOptions)
    data: DataOptions = field(default_factory=DataOptions)
    int8: bool = False
    fp16: bool = False
    method: str = "mse"
    percentile: float = 99.999
    max_drop: float = 1.0
    runs: int = 20
    overwrite: bool = False
