"""Polygons become the mask that the networks are trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from engines.errors import DatasetError, MissingPackageError
from exporter.prepare.labels_json import CLASS_OF_CODE, SceneLabels

if TYPE_CHECKING:
    from engines.resize import Labels


def mask_from_polygons(labels: SceneLabels, hw: tuple[int, int]) -> Labels:
    """Class indices (H, W) uint8, 0 where there is no polygon; newly allocated.

    `hw` is that of the bands. Polygons are painted by cv2.fillPoly, which includes their outline,
    in ascending class code and, of one class, in the file's order, so that a later one covers an
    earlier one. Corners that are not whole pixels are rounded, halves to the even one. What lies
    outside is cut. Raises DatasetError when the labels are for an image of another size.
    """
    try:
        import cv2
    except ImportError as error:
        raise MissingPackageError(
            "opencv-python-headless", needed_for="painting polygons", extra="scenes"
        ) from error
    if labels.hw != hw:
        raise DatasetError(
            f"labels for an image of {labels.hw[0]}x{labels.hw[1]} and bands of {hw[0]}x{hw[1]}",
            expected="the same height and width",
            do="look which of them belongs to another scene",
        )
    mask = np.zeros(hw, np.uint8)
    for polygon in sorted(labels.polygons, key=lambda polygon: CLASS_OF_CODE[polygon.code]):
        corners = np.rint(polygon.points).astype(np.int32)
        cv2.fillPoly(mask, [corners], CLASS_OF_CODE[polygon.code])
    return mask
