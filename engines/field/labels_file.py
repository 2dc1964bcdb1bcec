"""Labels become a GeoTIFF: tiles, deflate, a colour map, 255 for nodata, the source's georeference.

It is written beside the work so far, read back and compared, and then takes its name.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, Optional, Sequence, Tuple

import numpy as np

from engines.errors import ImageError, UserError
from engines.field.geotiff import rasterio_package
from engines.field.palette import NODATA, colormap_from_palette
from engines.field.work import RASTER_NAME, Work, not_written
from engines.progress import Progress

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Counts = NDArray[np.int64]  # (256,) pixels of each label
else:
    Counts = np.ndarray

BLOCK = 512


def write_labels_file(
    work: Work,
    out: Path,
    georeference: Dict[str, Any],
    palette: Sequence[Tuple[int, int, int]],
    progress: Progress,
    finish: Optional[Callable[[Path], None]],
) -> Counts:
    """Write every label of `work` to `out`; gives the pixels of each. `finish` comes before the
    file takes its name. Raises OutputError and leaves no half file where there is no room.
    """
    rasterio = rasterio_package()
    partial = work.folder / RASTER_NAME
    _remove(partial)  # what a kill has left of it: rasterio fails to open it, to delete it
    height, width = work.hw
    profile = {
        "driver": "GTiff",
        "dtype": "uint8",
        "count": 1,
        "height": height,
        "width": width,
        "nodata": NODATA,
        "tiled": True,
        "blockxsize": BLOCK,
        "blockysize": BLOCK,
        "compress": "deflate",
        "bigtiff": "if_safer",
    }
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            with progress.stage("write the labels"):
                with rasterio.open(str(partial), "w", **profile, **georeference) as file:
                    file.write_colormap(1, colormap_from_palette(palette))
                    _copy(work, file, progress)
                counts = _read_back(work, partial, progress)
            if counts[NODATA] == work.hw[0] * work.hw[1]:
                raise ImageError(
                    "a raster without a single pixel of data",
                    expected="data in a part of it",
                    do="check its nodata value, mask or alpha band, or leave it out",
                )
            if finish is not None:
                finish(partial)
        _sync(partial)
        os.replace(partial, out)
    except (OSError, rasterio.errors.RasterioError, MemoryError) as error:
        _remove(partial)
        raise not_written(out, _reason(work.folder, error)) from error
    except UserError:
        _remove(partial)
        raise
    return counts


def _copy(work: Work, file: Any, progress: Progress) -> None:
    height, width = work.hw
    for top in range(0, height, BLOCK):
        bottom = min(top + BLOCK, height)
        file.write(work.rows(top, bottom), 1, window=((top, bottom), (0, width)))
        progress.advance(bottom, 2 * height)


def _read_back(work: Work, path: Path, progress: Progress) -> Counts:
    """Pixels of each label. GDAL closes a file that it could not finish without an error."""
    rasterio = rasterio_package()
    height, width = work.hw
    counts: Counts = np.zeros(256, np.int64)
    try:
        with rasterio.open(str(path)) as file:
            for top in range(0, height, BLOCK):
                bottom = min(top + BLOCK, height)
                written = file.read(1, window=((top, bottom), (0, width)))
                if not np.array_equal(written, work.rows(top, bottom)):
                    raise OSError(f"rows {top} to {bottom - 1} are not what was written")
                for row in written:
                    counts += np.bincount(row, minlength=256)
                progress.advance(height + bottom, 2 * height)
    except rasterio.errors.RasterioError as error:
        raise OSError("the file could not be written whole") from error
    return counts


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(folder: Path, error: BaseException) -> OSError:
    """The system's reason. Where GDAL gives none, as often when the disk is full, that it is."""
    number = errno.ENOMEM if isinstance(error, MemoryError) else getattr(error, "errno", None)
    words = getattr(error, "strerror", None)
    if words is None:
        words = error if isinstance(error, OSError) else error.__cause__ or error
    free = shutil.disk_usage(folder).free // 1_000_000
    return OSError(number or errno.ENOSPC, f"{words} ({free} MB free there)")
