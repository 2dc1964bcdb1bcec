"""Rasters and a network for the tests of large fields; what they give is easily computed again."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio import Affine

from engines.bands.recipe import BandRecipe
from engines.field.network import FieldNetwork

WINDOW = 32
PALETTE = ((0, 0, 0), (8, 39, 245), (0, 229, 245), (225, 0, 26), (250, 0, 204))
PLACE = {"crs": "EPSG:5186", "transform": Affine(0.05, 0, 200_000, 0, -0.05, 550_000)}


class Weights:
    """A network whose logits depend on the colour, on the pixel's neighbours in the window and on
    its place in the window, as those of a trained one do. `killed_at` ends the process in a call.
    """

    name = "weights"

    def __init__(
        self,
        *,
        outputs: int = 5,
        channels: int = 3,
        window: tuple[int, int] = (WINDOW, WINDOW),
        has_logits: bool = True,
        fixed_batch: int | None = None,
        killed_at: int | None = None,
    ) -> None:
        rng = np.random.default_rng(outputs)
        self.input_hw, self.channels = window, channels
        self.has_logits, self.fixed_batch = has_logits, fixed_batch
        self.colours = rng.normal(0, 1, (outputs, channels)).astype(np.float32)
        self.places = rng.normal(0, 40, (outputs, *window)).astype(np.float32)
        self.calls: list[int] = []
        self._killed_at = killed_at

    def logits(self, batch: np.ndarray) -> np.ndarray:
        self.calls.append(len(batch))
        if len(self.calls) == self._killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        assert (batch.dtype, batch.shape[1:]) == (np.uint8, (*self.input_hw, self.channels))
        return np.stack([self.of_window(window) for window in batch])

    def labels(self, batch: np.ndarray) -> np.ndarray:
        return self.logits(batch).argmax(axis=1).astype(np.uint8)

    def of_window(self, window: np.ndarray) -> np.ndarray:
        values = window.astype(np.float32) - 128
        values += np.roll(values, 1, axis=0) + np.roll(values, 1, axis=1)
        found = np.zeros((len(self.colours), *self.input_hw), np.float32)
        for channel in range(self.channels):  # a matrix product may depend on the batch
            found += self.colours[:, channel, None, None] * values[:, :, channel]
        return found + self.places


def network_of(predictor: Any, *, recipe: BandRecipe | None = None, batch: int = 3) -> FieldNetwork:
    return FieldNetwork(
        predictor=predictor,
        outputs=len(getattr(predictor, "colours", PALETTE)),
        palette=PALETTE,
        recipe=recipe,
        batch=batch,
        identity={"bundle": "test"},
    )


def rice(hw: tuple[int, int], channels: int = 3, seed: int = 0) -> np.ndarray:
    """Patches of several colours with noise, (H, W, C) uint8, none of them 0."""
    rng = np.random.default_rng(seed)
    patches = rng.integers(40, 216, (hw[0] // 16 + 1, hw[1] // 16 + 1, channels))
    image = patches.repeat(16, axis=0).repeat(16, axis=1)[: hw[0], : hw[1]]
    return np.clip(image + rng.integers(-39, 40, image.shape), 1, 255).astype(np.uint8)


def write_raster(path: Path, image: np.ndarray, **profile: Any) -> Path:
    """(H, W, C) of any type as a GeoTIFF of small tiles; `profile` as rasterio takes it."""
    given = {
        "driver": "GTiff",
        "height": image.shape[0],
        "width": image.shape[1],
        "count": image.shape[2],
        "dtype": image.dtype.name,
        "tiled": True,
        "blockxsize": 64,
        "blockysize": 64,
        "compress": "deflate",
        **PLACE,
        **profile,
    }
    with rasterio.open(path, "w", **given) as file:
        file.write(image.transpose(2, 0, 1))
    return path


def read_labels(path: Path) -> np.ndarray:
    with rasterio.open(path) as file:
        return file.read(1)


def starts_of(length: int, size: int, overlap: int) -> list[int]:
    """Evenly spread windows that overlap by `overlap` pixels or more, by the rule in words."""
    count = 1
    while count * size - (count - 1) * overlap < length:
        count += 1
    if count == 1:
        return [0]
    return [int(np.floor(i * (length - size) / (count - 1) + 0.5)) for i in range(count)]


def expected_sums(predictor: Weights, image: np.ndarray, overlap: int) -> np.ndarray:
    """The blended logits (K, H, W) in float64 of an image as large as a window or larger."""
    height, width = image.shape[:2]
    size = predictor.input_hw
    down, across = (np.minimum(np.arange(n) + 0.5, n - 0.5 - np.arange(n)) for n in size)
    weight = down[:, None] * across
    sums = np.zeros((len(predictor.colours), height, width))
    total = np.zeros((height, width))
    for top in starts_of(height, size[0], overlap):
        for left in starts_of(width, size[1], overlap):
            part = slice(top, top + size[0]), slice(left, left + size[1])
            sums[(slice(None), *part)] += weight * predictor.of_window(image[part])
            total[part] += weight
    return sums / total
