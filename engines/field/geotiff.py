"""GeoTIFF files are opened, checked and described; `engines.field.raster` reads from them.

A file comes from strangers: only GDAL's GeoTIFF driver may look at it and at the files beside it (a
VRT can name any other file, or an address), and blocks and tags that the file is too short for are
found before the work begins.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import warnings
from pathlib import Path
from typing import Any, Dict, Iterator, Tuple, Union

from engines.errors import ImageError, MissingPackageError
from engines.field.tags import tags_cut_off

# What GDAL unpacks at once: a compressed file of one strip is as large as the whole image.
MAX_BLOCK_BYTES = 256 << 20

_DIGEST_BYTES = 1 << 16  # at either end of a file

_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_BESIDE = (".ovr", ".OVR", ".msk", ".MSK")  # what GDAL opens by itself, by any of its drivers

_KINDS = ("uint8", "uint16", "int16", "float32", "float64")


def rasterio_package() -> Any:
    """The module; MissingPackageError where it is not installed."""
    try:
        import rasterio
    except ImportError as error:
        raise MissingPackageError(
            "rasterio", needed_for="GeoTIFF rasters", extra="scenes"
        ) from error
    # GDAL's words reach the user inside our errors; without any handler Python prints them too.
    silent = logging.getLogger("rasterio")
    if not silent.handlers:
        silent.addHandler(logging.NullHandler())
    return rasterio


def opened_geotiff(path: Union[str, os.PathLike[str]]) -> Any:
    """A rasterio dataset that the caller closes.

    Raises ImageError when it is no GeoTIFF, holds values of another kind than measured or 8-bit
    ones, is cut short, or has blocks that do not fit in the memory.
    """
    path = Path(os.path.abspath(path))  # "zip+https://..." is no name to rasterio then
    if not path.is_file():
        raise ImageError(
            f"{str(path)!r}, which is {'a folder' if path.is_dir() else 'no file'}",
            expected="a GeoTIFF file",
            do="check its name and its permissions",
        )
    dataset = _opened(path)
    try:
        _check(dataset, path)
        _check_beside(path, dataset)
    except BaseException:
        dataset.close()
        raise
    return dataset


def _opened(path: Path) -> Any:
    rasterio = rasterio_package()
    with _told(path), warnings.catch_warnings():
        # That it has no georeference is told by whoever needs one.
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        return rasterio.open(str(path), driver="GTiff", sharing=False)


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """ImageError for what rasterio raises on a damaged file."""
    rasterio = rasterio_package()
    from rasterio._err import CPLE_BaseError  # what the properties of a dataset raise, undocumented

    known = (rasterio.errors.RasterioError, CPLE_BaseError, ValueError, OverflowError, LookupError)
    try:
        yield
    except known as error:
        raise ImageError(
            f"{str(path)!r}, which cannot be read ({error})",
            expected="a whole GeoTIFF file",
            do="copy it again from where it was made",
        ) from error


def source_record(path: Union[str, os.PathLike[str]]) -> Dict[str, Any]:
    """What tells whether a file is still the same, without reading the whole of it."""
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            digest = hashlib.sha256(file.read(_DIGEST_BYTES))
            file.seek(max(0, status.st_size - _DIGEST_BYTES))
            digest.update(file.read(_DIGEST_BYTES))
    except OSError as error:
        raise ImageError(
            f"{os.fspath(path)!r}: {error.strerror}",
            expected="a file that can be read",
            do="check its name and its permissions",
        ) from error
    return {
        "bytes": status.st_size,
        "modified_ns": status.st_mtime_ns,
        "ends_sha256": digest.hexdigest(),
    }


def block_bytes(dataset: Any) -> int:
    """Of all bands of one block, as GDAL unpacks it."""
    height, width = dataset.block_shapes[0]
    return int(height * width * _pixel_bytes(dataset))


def row_of_blocks_bytes(dataset: Any) -> int:
    """Of all blocks in a row of them, all bands."""
    height, width = dataset.block_shapes[0]
    return int(height * -(-dataset.width // width) * width * _pixel_bytes(dataset))


def _pixel_bytes(dataset: Any) -> int:
    import numpy as np

    return sum(np.dtype(kind).itemsize for kind in dataset.dtypes)


def _check(dataset: Any, path: Path) -> None:
    with _told(path):  # rather than where they are needed
        for name in ("crs", "transform", "gcps", "rpcs", "colorinterp", "nodatavals"):
            getattr(dataset, name)
    lost = tags_cut_off(path)
    if lost:
        raise ImageError(
            f"{str(path)!r}, which is cut short: its tag {lost[0]} ends behind it",
            expected="a whole GeoTIFF file",
            do="copy it again from where it was made",
        )
    unknown = sorted(set(dataset.dtypes) - set(_KINDS))
    if unknown:
        raise ImageError(
            f"{str(path)!r} with values of {', '.join(unknown)}",
            expected=f"bands of {', '.join(_KINDS)}",
            do="convert it, for example with gdal_translate -ot Float32",
        )
    if block_bytes(dataset) > MAX_BLOCK_BYTES:
        height, width = dataset.block_shapes[0]
        raise ImageError(
            f"{str(path)!r} with blocks of {width}x{height} pixels, {block_bytes(dataset)} bytes",
            expected=f"blocks of at most {MAX_BLOCK_BYTES} bytes, which are unpacked at once",
            do="write it in tiles: gdal_translate -co TILED=YES -co BIGTIFF=IF_SAFER IN OUT",
        )
    size = os.path.getsize(path)
    for band, column, row, end in _block_ends(dataset):
        if end > size:
            raise ImageError(
                f"{str(path)!r}, which is cut short: block {column},{row} of band {band} ends at "
                f"byte {end} of {size}",
                expected="a whole GeoTIFF file",
                do="copy it again from where it was made",
            )


def _check_beside(path: Path, dataset: Any) -> None:
    """Smaller copies and masks in other files are TIFFs beside it, and so are theirs in turn."""
    with _told(path):
        elsewhere = dataset.tags(ns="OVERVIEWS").get("OVERVIEW_FILE")
    if elsewhere is not None:
        raise ImageError(
            f"{str(path)!r}, which names another file for its smaller copies: {elsewhere!r}",
            expected="smaller copies inside it or in NAME.ovr, so that no other file is read",
            do="write it again: gdal_translate -co TILED=YES -co BIGTIFF=IF_SAFER IN OUT",
        )
    for end in _BESIDE:
        other = path.with_name(path.name + end)
        if not os.path.lexists(other):
            continue
        start = b""
        with contextlib.suppress(OSError):
            if other.is_file():
                with open(other, "rb") as file:
                    start = file.read(4)
        if start not in _TIFF_STARTS:
            raise ImageError(
                f"{str(other)!r}, which is no TIFF",
                expected=f"the mask or the smaller copies of {path.name!r}, as GDAL writes them",
                do="remove that file, or make it again with gdaladdo",
            )
        with contextlib.closing(_opened(other)) as beside:
            _check_beside(other, beside)


def _block_ends(dataset: Any) -> Iterator[Tuple[int, int, int, int]]:
    """Band, column and row of each block that is stored, and the first byte behind it."""
    together = dataset.count == 1 or str(dataset.interleaving).endswith("pixel")
    height, width = dataset.block_shapes[0]
    for band in range(1, 2 if together else dataset.count + 1):
        for row in range(-(-dataset.height // height)):
            for column in range(-(-dataset.width // width)):
                place = f"{column}_{row}"
                start = dataset.get_tag_item(f"BLOCK_OFFSET_{place}", "TIFF", bidx=band)
                length = dataset.get_tag_item(f"BLOCK_SIZE_{place}", "TIFF", bidx=band)
                if start is not None and length is not None:
                    yield band, column, row, int(start) + int(length)
