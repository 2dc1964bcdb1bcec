"""Labels depend on the windows alone: not on stripes, batches, or how the file is stored."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from field_rasters import WINDOW, Weights, network_of, read_labels, rice, write_raster

import engines.field.run
from engines.bands.recipe import BandRecipe
from engines.errors import ConfigError, GraphError
from engines.field.grid import axis_of_windows
from engines.field.run import FieldOptions, FieldResult, segment_field
from engines.field.stripe import MIB, Grid, Memory, stripes_of_grid, windows_of_stripe
from engines.progress import SilentProgress

HW = (150, 201)  # 6 rows and 9 columns of windows at an overlap of a quarter, 9 and 12 at a half


def labelled(
    tmp_path: Path, predictor: Weights, options: FieldOptions, **other: Any
) -> tuple[np.ndarray, FieldResult]:
    source = tmp_path / "field.tif"
    if not source.exists():
        write_raster(source, _with_holes(rice(HW)), nodata=0)
    out = tmp_path / "labels.tif"
    result = segment_field(network_of(predictor, **other), source, out, options, SilentProgress())
    return read_labels(out), result


def _with_holes(image: np.ndarray) -> np.ndarray:
    """Without data: a corner larger than several windows, a strip, a single pixel."""
    image[:70, :90] = image[100:120] = image[140, 140] = 0
    return image


def _cut_into(monkeypatch: pytest.MonkeyPatch, stripes: list[tuple[int, int]]) -> None:
    monkeypatch.setattr(engines.field.run, "stripes_of_grid", lambda *_: stripes)


@pytest.mark.parametrize("has_logits", [True, False])
@pytest.mark.parametrize("overlap", [0.25, 0.5])
@pytest.mark.parametrize("stripes", [2, 5, None])
def test_labels_do_not_depend_on_the_stripes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stripes: int | None,
    overlap: float,
    has_logits: bool,
) -> None:
    options = FieldOptions(overlap)
    whole, _ = labelled(tmp_path, Weights(has_logits=has_logits), options)
    columns = {0.25: 9, 0.5: 12}[overlap]
    cuts = [i * columns // (stripes or columns) for i in range((stripes or columns) + 1)]
    _cut_into(monkeypatch, list(itertools.pairwise(cuts)))
    cut, _ = labelled(tmp_path, Weights(has_logits=has_logits), options)
    assert (cut == whole).all()
    assert (whole == 255).sum() > 70 * 90


@pytest.mark.parametrize("batch", [1, 2, 7, 1000])
def test_labels_do_not_depend_on_the_batch(tmp_path: Path, batch: int) -> None:
    whole, _ = labelled(tmp_path, Weights(), FieldOptions())
    predictor = Weights()
    batched, _ = labelled(tmp_path, predictor, FieldOptions(batch=batch))
    assert (batched == whole).all()
    assert max(predictor.calls) <= batch


def test_a_graph_with_a_fixed_batch_is_given_full_batches(tmp_path: Path) -> None:
    whole, _ = labelled(tmp_path, Weights(), FieldOptions())
    predictor = Weights(fixed_batch=4)
    batched, _ = labelled(tmp_path, predictor, FieldOptions(batch=1))
    assert (batched == whole).all()
    assert set(predictor.calls[:-1]) == {4}


@pytest.mark.parametrize(
    "storage",
    [
        {"tiled": False, "blockysize": 1, "compress": "lzw"},
        {"tiled": False, "blockysize": 150, "compress": None},
        {"interleave": "band", "blockxsize": 16, "blockysize": 16},
        {"tiled": True, "blockxsize": 256, "blockysize": 256, "bigtiff": "yes"},
    ],
)
def test_labels_do_not_depend_on_how_the_file_is_stored(
    tmp_path: Path, storage: dict[str, Any]
) -> None:
    expected, _ = labelled(tmp_path, Weights(), FieldOptions())
    write_raster(tmp_path / "field.tif", _with_holes(rice(HW)), nodata=0, **storage)
    found, _ = labelled(tmp_path, Weights(), FieldOptions())
    assert (found == expected).all()


def test_measured_bands_are_stretched_alike_in_every_stripe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bands = _with_holes(rice(HW)).astype(np.float32) / 300
    bands[(bands == 0).all(axis=2)] = -10000
    write_raster(tmp_path / "field.tif", bands, nodata=-10000)
    recipe = BandRecipe("GNE")
    whole, result = labelled(tmp_path, Weights(), FieldOptions(), recipe=recipe)
    _cut_into(monkeypatch, [(0, 2), (2, 3), (3, 9)])
    monkeypatch.setattr("engines.field.raster._CHUNK_VALUES", 1000)
    cut, again = labelled(tmp_path, Weights(), FieldOptions(), recipe=recipe)
    assert (cut == whole).all()
    assert again.limits == result.limits


def test_windows_without_data_are_not_run(tmp_path: Path) -> None:
    predictor = Weights()
    _, result = labelled(tmp_path, predictor, FieldOptions())
    tops = [round(i * (150 - 32) / 5) for i in range(6)]
    lefts = [round(i * (201 - 32) / 8) for i in range(9)]
    has_data = _with_holes(np.ones((*HW, 1), np.uint8))[:, :, 0] > 0
    filled = sum(has_data[y : y + 32, x : x + 32].any() for y in tops for x in lefts)
    assert sum(predictor.calls) == filled == result.windows < 54
    assert result.skipped == 54 - filled


def test_pixels_of_each_label_are_counted(tmp_path: Path) -> None:
    labels, result = labelled(tmp_path, Weights(), FieldOptions())
    assert result.pixels == tuple((labels == index).sum() for index in range(5))
    assert result.nodata_pixels == (labels == 255).sum()


def test_logits_that_may_not_be_overwritten_are_copied(tmp_path: Path) -> None:
    class Kept(Weights):
        def logits(self, batch: np.ndarray) -> np.ndarray:
            logits = super().logits(batch)
            logits.flags.writeable = False
            return logits

    whole, _ = labelled(tmp_path, Weights(), FieldOptions())
    assert (labelled(tmp_path, Kept(), FieldOptions())[0] == whole).all()


def test_logits_of_another_size_than_the_window_are_refused(tmp_path: Path) -> None:
    class Small(Weights):
        def logits(self, batch: np.ndarray) -> np.ndarray:
            return super().logits(batch)[:, :, ::2, ::2]

    with pytest.raises(GraphError, match=r"\(N, 5, 32, 32\)"):
        labelled(tmp_path, Small(), FieldOptions())
    assert [path.name for path in tmp_path.iterdir()] == ["field.tif"]


def test_stripes_are_as_few_as_the_memory_allows() -> None:
    grid = _grid((20_000, 20_000), 512)
    six, many = (Memory(outputs, 3, 860 * MIB) for outputs in (6, 150))
    assert stripes_of_grid(grid, six) == [(0, len(grid.columns))]
    stripes = stripes_of_grid(grid, many)
    assert len(stripes) == 3
    run = sum(windows_of_stripe(grid, stripe) for stripe in stripes)
    assert run <= 1.04 * len(grid.rows) * len(grid.columns)


def test_a_memory_that_no_window_fits_gives_stripes_of_one() -> None:
    grid = _grid((100, 100), WINDOW)
    assert stripes_of_grid(grid, Memory(150, 3, -1)) == [(0, 1), (1, 2), (2, 3), (3, 4)]


def test_large_logits_are_computed_one_window_at_a_time() -> None:
    memory = Memory(150, 3, 640 * MIB)
    assert memory.batch(8, (512, 512)) == 1
    assert Memory(6, 3, 640 * MIB).batch(8, (512, 512)) == 8


@pytest.mark.parametrize("options", [{"memory_mib": 1}, {"batch": 0}])
def test_options_outside_their_range_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="a batch of 1 or more"):
        FieldOptions(**options)


def _grid(hw: tuple[int, int], size: int) -> Grid:
    rows, columns = (axis_of_windows(length, size, 0.25, blended=True) for length in hw)
    return Grid(rows, columns, 1)


MEMORY = """
import sys
import numpy as np
from pathlib import Path
import engines.field.source
from engines.field.geotiff import rasterio_package
from engines.field.network import FieldNetwork
from engines.field.run import FieldOptions, segment_field
from engines.progress import SilentProgress
from engines.speed.timing import peak_memory_mb

class Zeros:
    name, input_hw, channels, has_logits, fixed_batch = "zeros", (128, 128), 3, True, None
    def logits(self, batch):
        return np.zeros((len(batch), 150, 128, 128), np.float32)

rasterio_package()
before = peak_memory_mb()
network = FieldNetwork(Zeros(), 150, (), batch=8)
folder = Path(sys.argv[1])
segment_field(network, folder / "wide.tif", folder / "labels.tif", FieldOptions(memory_mib=96),
              SilentProgress())
print(peak_memory_mb() - before)
"""


def test_a_raster_wider_than_the_memory_is_cut(tmp_path: Path) -> None:
    # The sums of 32 rows that two rows of windows share take 192 MB over the whole width.
    wide = np.zeros((224, 10_000, 3), np.uint8)
    write_raster(tmp_path / "wide.tif", wide)
    run = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert 10 < float(run.stdout) < 126  # 120 MiB
    assert (read_labels(tmp_path / "labels.tif") == 0).all()
