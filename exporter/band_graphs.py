"""What an export knows about bands, and the graphs that compose them by themselves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import onnx

from calibration.onnx_file import fixed_batch, model_from_onnx_file
from engines.bands.composite import composite_from_bands
from engines.bands.recipe import BandRecipe
from engines.bundle import BandsInfo, FileInfo, InputSpec
from engines.errors import ConfigError, GateError
from engines.fused_graphs import graph_key
from engines.progress import Progress
from engines.resize import network_image_from_image
from engines.speed.forms import FORM_NAMES
from exporter.fuse_bands import COMPOSITE, fused_with_bands
from exporter.request import ExportRequest
from exporter.run_onnx import outputs_from_onnx

Bands: TypeAlias = "np.ndarray[Any, Any]"  # (N, H, W, B) float32

# On the same composed image labels can differ only by how ONNX Runtime arranges the rest.
MIN_AGREEMENT = 99.99  # percent of the pixels, as for the graph itself against PyTorch


class BundleFiles(Protocol):
    """What collects the files of a bundle; see `exporter.work.Work`."""

    @property
    def files(self) -> Mapping[str, FileInfo]: ...

    def add(self, folder: Path, key: str, name: str) -> None: ...


def check_bands(request: ExportRequest, channels: int) -> None:
    """ConfigError where the bands are not as many as the network's input channels."""
    recipe = request.bands
    if recipe is not None and len(recipe.letters) != channels:
        raise ConfigError(
            f"--bands {recipe.letters} for a network of {channels} input channels",
            expected=f"{channels} letters, in the order of the training's composites",
            do="give the bands that this checkpoint was trained on",
        )


def bands_info(request: ExportRequest, input_spec: InputSpec) -> BandsInfo | None:
    """The bundle's record of what was asked for."""
    recipe = request.bands
    if recipe is None:
        return None
    fused_hw = (request.scene_hw or input_spec.hw) if request.fuse_bands else None
    return BandsInfo(recipe.letters, recipe.norm, float(recipe.nodata), fused_hw)


def write_fused_graphs(
    request: ExportRequest,
    work: BundleFiles,
    input_spec: InputSpec,
    folder: Path,
    progress: Progress,
) -> None:
    """With `fuse_bands`, model.bands.onnx beside model.onnx, and so for each precision.

    Their keys are those of `graph_key`. GateError unless each composes as
    `engines.bands.composite` does and then gives the labels that its sibling gives.
    """
    info = bands_info(request, input_spec)
    if info is None or info.fused_hw is None:
        return
    pad_value = input_spec.pad_value if input_spec.resize == "letterbox" else None
    keys = [key for key in FORM_NAMES if key in work.files]
    with progress.stage("write the graphs that compose bands"):
        for done, key in enumerate(keys, start=1):
            plain = model_from_onnx_file(folder / work.files[key].file)
            fused = fused_with_bands(
                plain, info.recipe, scene_hw=info.fused_hw, pad_value=pad_value
            )
            path = folder / f"{Path(work.files[key].file).stem}.bands.onnx"
            onnx.save(fused, str(path))
            _check_same(plain, model_from_onnx_file(path), info, input_spec, path.name)
            work.add(folder, graph_key(key, fused=True), path.name)
            progress.advance(done, len(keys))


def _check_same(
    plain: onnx.ModelProto,
    fused: onnx.ModelProto,
    info: BandsInfo,
    input_spec: InputSpec,
    name: str,
) -> None:
    """GateError unless `fused` composes a pattern rightly, and gives the labels of the result."""
    assert info.fused_hw is not None  # asked by the caller
    scenes = pattern_scenes(fixed_batch(plain), info.fused_hw, info.recipe)
    outputs = outputs_from_onnx(fused, scenes, extra=(COMPOSITE,))
    composed = outputs.pop(COMPOSITE).transpose(0, 2, 3, 1)
    wanted = np.stack(
        [
            network_image_from_image(
                composite_from_bands(scene, info.recipe),
                input_spec.hw,
                input_spec.rule,
                input_spec.pad_value,
            )
            for scene in scenes
        ]
    )
    # Equal, or a grey level apart where the graph resizes, which it does in floating point.
    limit = 0.0 if info.fused_hw == input_spec.hw else 1.0
    difference = float(np.abs(composed - wanted).max())
    labels = _labels(outputs_from_onnx(plain, composed.astype(np.uint8)))
    agreement = 100.0 * float(np.mean(labels == _labels(outputs)))
    if not (difference <= limit and agreement >= MIN_AGREEMENT):
        raise GateError(
            f"{name} does not reproduce the graph on composed bands: it composes up to "
            f"{difference:g} grey levels apart (limit {limit:g}), and {agreement:.3f} % of the "
            f"labels agree (limit {MIN_AGREEMENT} %)"
        )


def _labels(outputs: Mapping[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    return outputs["labels"] if "labels" in outputs else outputs["logits"].argmax(1)


def pattern_scenes(count: int, hw: tuple[int, int], recipe: BandRecipe) -> Bands:
    """Blobs with fine grain, a border of nodata and some NaN, always the same.

    Values are 0..255 for the norm that takes these, else those of reflectances, some below 0.
    """
    rng, (h, w), letters = np.random.default_rng(0), hw, len(recipe.letters)
    total = np.zeros((count, h, w, letters), np.float32)
    for cell in (64, 16, 1):
        grid = rng.random((count, -(-h // cell), -(-w // cell), letters), dtype=np.float32) / 3
        total += np.repeat(np.repeat(grid, cell, axis=1), cell, axis=2)[:, :h, :w]
    scenes = total * (255.0 if recipe.norm == "uint8" else 0.8)
    if recipe.norm != "uint8":
        scenes[:, h // 3] *= -0.01  # dark pixels after calibration
    scenes[:, : max(1, h // 16)] = recipe.nodata
    scenes[:, h // 2, w // 2] = np.nan
    return scenes
