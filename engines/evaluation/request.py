"""What is asked of a device: which bundle, on which images, how it is run and timed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Tuple

MODES = ("whole", "slide")


@dataclass(frozen=True)
class DeviceRequest:
    """What is to be measured. `precisions` () is all that the bundle has.

    `against` is a report (or its folder) with PyTorch's scores, None the bundle's own. `max_drop`
    is in points of mIoU, None: no gate. `build` False only takes engines that are there.
    """

    bundle: Path
    data: Path
    masks: Optional[Path] = None
    precisions: Tuple[str, ...] = ()
    iterations: int = 200
    warmup: int = 5
    mode: str = "whole"
    runtime: str = "auto"
    against: Optional[Path] = None
    max_drop: Optional[float] = None
    build: bool = True
    skip_bad: bool = False
    convert_images: bool = False
