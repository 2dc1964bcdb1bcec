"""Bundles with a recipe for bands, so small that their labels can be worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from engines.bands.recipe import BandRecipe
from exporter.fuse_bands import fused_with_bands
from tests.tiny_models import (
    bands_model,
    bundle_document,
    file_entry,
    model_from_text,
    write_document,
    write_onnx,
)

Bands = NDArray[Any]  # (H, W, B)
GNE = {"letters": "GNE", "norm": "chw_minmax", "nodata": -10000.0, "fused_hw": None}


def band_bundle(
    folder: Path,
    hw: tuple[int, int],
    *,
    channel: int = 0,
    channels: int = 3,
    fused: bool = False,
    **record: Any,
) -> Path:
    """A bundle whose label is image[..., channel] // 64; `record` changes fields of `bands`.

    With `fused` it also has a graph of float bands, whose label is the first band as it is.
    """
    files = {}
    graph = bands_model(hw, channel=channel, channels=channels)
    files["fp32"] = file_entry(write_onnx(graph, folder / "tiny.onnx"), folder)
    if fused:
        path = write_onnx(first_band_model(hw, channels), folder / "tiny.bands.onnx")
        files["fp32_bands"] = file_entry(path, folder)
        record["fused_hw"] = list(hw)
    document = bundle_document(hw=hw, channels=channels, files=files)
    document["bands"] = {**GNE, **record}
    return write_document(document, folder)


def fused_bundle(
    folder: Path, network_hw: tuple[int, int], *, step: int = 64, hw: tuple[int, int] | None = None
) -> Path:
    """GNE; the label is red edge // 64, and of the graph that takes bands red edge // `step`.

    That one takes scenes of `hw`, else of the network's size.
    """
    hw = hw or network_hw
    files = {}
    recipe = BandRecipe("GNE")
    fused = fused_with_bands(bands_model(network_hw, step=step), recipe, scene_hw=hw)
    for key, model in (("fp32", bands_model(network_hw)), ("fp32_bands", fused)):
        files[key] = file_entry(write_onnx(model, folder / f"{key}.onnx"), folder)
    document = bundle_document(hw=network_hw, files=files)
    document["bands"] = {**recipe.record(), "fused_hw": list(hw)}
    return write_document(document, folder)


def first_band_model(hw: tuple[int, int], bands: int) -> onnx.ModelProto:
    """`bands` float32 (N, H, W, B) -> the first of them, rounded down, as labels."""
    height, width = hw
    return model_from_text(
        f"""
        first (float[N, {height}, {width}, {bands}] bands)
            => (uint8[N, {height}, {width}] labels)
        <int64 first = {{0}}>
        {{
            band = Gather <axis = 3> (bands, first)
            labels = Cast <to = 2> (band)
        }}
        """
    )


def stretched(band: NDArray[Any], nodata: float = -10000.0) -> NDArray[np.uint8]:
    """One band as the training's script wrote it, from its description: float32 all the way."""
    plane = band.astype(np.float32)
    plane[np.isnan(plane)] = nodata
    smallest = plane[plane != np.float32(nodata)].min()
    plane[(plane < 0) | (plane == np.float32(nodata))] = smallest
    scaled = (plane - plane.min()) / (plane.max() - plane.min()) * np.float32(255)
    assert scaled.dtype == np.float32
    whole: NDArray[np.uint8] = np.rint(scaled).astype(np.uint8)
    return whole


def reflectances(hw: tuple[int, int], seed: int = 0, bands: int = 3) -> NDArray[np.float32]:
    """(H, W, bands) float32 with some negative values, a border of nodata and a NaN."""
    rng = np.random.default_rng(seed)
    scene = rng.normal(0.25, 0.12, (*hw, bands)).astype(np.float32)
    scene[0] = -10000.0
    scene[-1, -1, 0] = np.nan
    return scene
