"""What is asked of a calibration set."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from calibration.image_set.facts import Reading


@dataclass(frozen=True)
class SetRequest:
    """What to choose from and how; `source` and `val` as `engines.dataset` reads them.

    `near_bits`: images whose perceptual hashes differ in at most so many of 64 bits are one.
    `seed` decides between images of one stratum. `skip_bad` leaves out what cannot be used.
    `classes_file`: where `class_names` come from, so that it is not written over.
    """

    source: Path
    out: Path
    count: int = 256
    masks: Path | None = None
    val: Path | None = None
    near_bits: int = 10
    seed: int = 0
    reading: Reading = field(default_factory=Reading)
    class_names: tuple[str, ...] = ()
    classes_file: Path | None = None
    skip_bad: bool = False
    overwrite: bool = False
