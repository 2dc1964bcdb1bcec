"""The list of calibration images, with their hashes, kept apart from the validation images."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from engines.errors import DatasetError
from engines.images import sha256_of_file


@dataclass(frozen=True)
class CalibrationImage:
    """path; sha256 of the file's bytes in hex."""

    path: Path
    sha256: str


def calibration_list(
    files: Iterable[str | Path], *, validation_files: Iterable[str | Path] = ()
) -> tuple[CalibrationImage, ...]:
    """The images to calibrate on, in the given order.

    Raises DatasetError for no images, and for any that is also a validation image, by content and
    under whatever name: a score on images that the ranges were fitted to proves nothing.
    """
    images = tuple(CalibrationImage(Path(file), sha256_of_file(Path(file))) for file in files)
    if not images:
        raise DatasetError(
            "no calibration images",
            expected="images from the field; this never calibrates on noise",
            do="give a folder with images",
        )
    validation = {sha256_of_file(Path(file)) for file in validation_files}
    shared = [image.path.name for image in images if image.sha256 in validation]
    if shared:
        named = ", ".join(shared[:3]) + (", ..." if len(shared) > 3 else "")
        raise DatasetError(
            f"{len(shared)} calibration images that are validation images too: {named}",
            expected="two sets without a common image",
            do="calibrate on training images",
        )
    return images
