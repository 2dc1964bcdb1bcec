"""Which bands of which files become the network's channels; files that do not fit are refused."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Mapping, Optional, Tuple, Union

import numpy as np

from engines.bands.recipe import BandRecipe
from engines.errors import ConfigError, ImageError
from engines.field.geotiff import opened_geotiff, source_record
from engines.field.raster import FieldRaster, Layer, gdal_cache

if TYPE_CHECKING:
    from engines.field.network import FieldNetwork

RasterPath = Union[str, "os.PathLike[str]"]
# A GeoTIFF, or one with a single band for each of the recipe's letters.
FieldSource = Union[RasterPath, Mapping[str, RasterPath]]

# Corners of two rasters of one place may lie apart by so many pixels: other programs round.
_SAME_PLACE_PX = 0.01

_COLOURS = ("red", "green", "blue")


@contextlib.contextmanager
def opened_field(
    source: FieldSource,
    network: FieldNetwork,
    *,
    indexes: Optional[Tuple[int, ...]] = None,
    nodata: Optional[float] = None,
) -> Iterator[FieldRaster]:
    """`source` as the pixels of `network`; `indexes` and `nodata` are those of FieldOptions.

    A raster with a recipe that stretches still needs its limits: see `FieldRaster`. Raises
    ImageError for a file that cannot be used and ConfigError where it is not clear which of its
    bands are meant.
    """
    recipe = network.recipe
    with contextlib.ExitStack() as stack:
        if isinstance(source, Mapping):
            if indexes is not None:
                raise ConfigError(
                    f"bands {', '.join(map(str, indexes))} of a file for each band",
                    expected="no numbers of bands: each file has one",
                    do="leave --rgb out",
                )
            files = _files_of_letters(source, recipe)
            datasets = [stack.enter_context(opened_geotiff(path)) for path in files]
            _check_same_place(datasets)
            bands = [(dataset, _only_band(dataset)) for dataset in datasets]
        else:
            dataset = stack.enter_context(opened_geotiff(source))
            wanted = _indexes(dataset, network, indexes)
            bands = [(dataset, index) for index in wanted]
        stretched = _is_stretched(bands, recipe)
        if recipe is not None and not stretched:
            # As the network takes them: three are the other way round (BandRecipe.channels).
            bands = [bands[recipe.letters.index(letter)] for letter in recipe.channels]
        if nodata is not None and not np.isnan(nodata) and not stretched:
            _check_byte(nodata)
        layers = _layers(bands, nodata, is_byte=not stretched)
        window = network.predictor.input_hw
        raster = FieldRaster(layers, len(bands), recipe if stretched else None, window)
        stack.enter_context(gdal_cache(raster.cache_bytes))
        stack.callback(raster.close)  # GDAL crashes when a file is closed that a thread reads from
        yield raster


def record_of_source(source: FieldSource) -> Dict[str, Any]:
    """What tells whether the files are still the same; ImageError where one cannot be read."""
    if isinstance(source, Mapping):
        return {str(letter): source_record(path) for letter, path in sorted(source.items())}
    return source_record(source)


def paths_of_source(source: FieldSource) -> List[RasterPath]:
    """Every file."""
    return list(source.values()) if isinstance(source, Mapping) else [source]


def _files_of_letters(
    source: Mapping[str, RasterPath], recipe: Optional[BandRecipe]
) -> List[RasterPath]:
    """One for each letter, in the recipe's order."""
    if recipe is None:
        raise ConfigError(
            "a file for each band, for a bundle that was made for one image of 8-bit channels",
            expected="one raster",
            do="export the checkpoint with --bands, or give one 8-bit GeoTIFF",
        )
    missing = [letter for letter in recipe.letters if letter not in source]
    if missing:
        raise ImageError(
            f"files for the bands {', '.join(sorted(source)) or 'none'}",
            expected=f"one for each of {', '.join(recipe.letters)}",
            do=f"add the file of band {missing[0]}",
        )
    return [source[letter] for letter in recipe.letters]


def _only_band(dataset: Any) -> int:
    colours = _colour_bands(dataset)
    if len(colours) != 1:
        raise ImageError(
            f"{dataset.name!r} with {len(colours)} bands",
            expected="a single band in each file",
            do="give one file with all bands, or one file for each band",
        )
    return colours[0]


def _indexes(
    dataset: Any, network: FieldNetwork, indexes: Optional[Tuple[int, ...]]
) -> Tuple[int, ...]:
    """The bands of one file, in the order of the network's channels or the recipe's letters."""
    count = network.predictor.channels
    meant = "channels of the network" if network.recipe is None else network.recipe.letters
    if indexes is not None:
        if len(indexes) != count or not all(1 <= index <= dataset.count for index in indexes):
            raise ConfigError(
                f"bands {', '.join(map(str, indexes))} of {dataset.name!r}, which has "
                f"{dataset.count}",
                expected=f"{count} numbers from 1 to {dataset.count}, for the {meant}",
                do="count the bands from 1, as gdalinfo lists them",
            )
        return indexes
    colours = _colour_bands(dataset)
    if network.recipe is None:
        found = {colour: index for index, colour in zip(dataset.indexes, _names(dataset))}
        if count == len(_COLOURS) and set(_COLOURS) <= set(found):
            return tuple(found[colour] for colour in _COLOURS)
    if len(colours) == count:
        return colours
    if len(colours) < count:
        raise ImageError(
            f"{dataset.name!r} with {len(colours)} band{'s' * (len(colours) != 1)}",
            expected=f"{count} bands, for the {meant}",
            do="give the raster that the network was trained for",
        )
    listed = ", ".join(
        f"{index}{f' ({text})' if text else ''}"
        for index, text in zip(dataset.indexes, dataset.descriptions)
    )
    raise ConfigError(
        f"{dataset.name!r} with the bands {listed}",
        expected=f"to be told which {count} of them are the {meant}",
        do="name them with --rgb, counted from 1, in that order",
    )


def _names(dataset: Any) -> List[str]:
    return [interpretation.name for interpretation in dataset.colorinterp]


def _colour_bands(dataset: Any) -> Tuple[int, ...]:
    """All but alpha."""
    names = zip(dataset.indexes, _names(dataset))
    return tuple(index for index, name in names if name != "alpha")


def _is_stretched(bands: List[Tuple[Any, int]], recipe: Optional[BandRecipe]) -> bool:
    """Whether values become 0..255 by the recipe; ImageError where they must and there is none."""
    kinds = {dataset.dtypes[index - 1] for dataset, index in bands}
    if recipe is not None:
        return recipe.norm != "uint8" or kinds != {"uint8"}
    if kinds != {"uint8"}:
        raise ImageError(
            f"{bands[0][0].name!r} with values of {', '.join(sorted(kinds))}",
            expected="8-bit bands, because the bundle does not say how measured ones become 0..255",
            do="export the checkpoint with --bands and --norm, as it was trained",
        )
    return False


def _layers(bands: List[Tuple[Any, int]], nodata: Optional[float], *, is_byte: bool) -> List[Layer]:
    """One for each file, in the order of the planes."""
    layers: List[Layer] = []
    for dataset in dict.fromkeys(dataset for dataset, _ in bands):
        places = tuple(place for place, (other, _) in enumerate(bands) if other is dataset)
        indexes = tuple(bands[place][1] for place in places)
        empty = [dataset.nodatavals[index - 1] if nodata is None else nodata for index in indexes]
        names = _names(dataset)
        alpha = names.index("alpha") + 1 if "alpha" in names else None
        flags = {flag.name for flag in dataset.mask_flag_enums[indexes[0] - 1]}
        layers.append(
            Layer(
                dataset=dataset,
                indexes=indexes,
                places=places,
                nodata=tuple(_usable(value, is_byte=is_byte) for value in empty),
                alpha=alpha,
                masked="per_dataset" in flags and "alpha" not in flags,
            )
        )
    return layers


def _check_byte(nodata: float) -> None:
    if _usable(nodata, is_byte=True) is None:
        raise ConfigError(
            f"--nodata {nodata:g} for bands of 8 bits",
            expected="a whole number from 0 to 255",
            do="give the value that stands for no data in this raster, or leave --nodata out",
        )


def _usable(nodata: Optional[float], *, is_byte: bool) -> Optional[float]:
    """None for a value that no pixel can have; NaN always is without data."""
    if nodata is None or np.isnan(nodata):
        return None
    if is_byte and not (0 <= nodata <= 255 and float(nodata).is_integer()):
        return None
    return float(nodata)


def _check_same_place(datasets: List[Any]) -> None:
    first = datasets[0]
    for other in datasets[1:]:
        difference = _difference(first, other)
        if difference:
            raise ImageError(
                f"{first.name!r} and {other.name!r} of different {difference}",
                expected="bands of one size in one place",
                do="export the bands of one flight together, or align them first (gdalwarp)",
            )


def _difference(first: Any, other: Any) -> str:
    sizes = [f"{item.width}x{item.height}" for item in (first, other)]
    if sizes[0] != sizes[1]:
        return f"size ({sizes[0]} and {sizes[1]})"
    if first.crs != other.crs:
        return f"coordinate systems ({first.crs} and {other.crs})"
    apart = _pixels_apart(first, other)
    return f"georeference ({apart:.2f} pixels apart)" if not apart <= _SAME_PLACE_PX else ""


def _pixels_apart(first: Any, other: Any) -> float:
    """The largest distance of two corners, in pixels."""
    placed = [np.reshape(tuple(item.transform)[:6], (2, 3)) for item in (first, other)]
    if (placed[0] == placed[1]).all():
        return 0.0
    width, height = first.width, first.height
    corners = np.array([(0, 0, 1), (width, 0, 1), (0, height, 1), (width, height, 1)]).T
    with np.errstate(all="ignore"):  # transforms may be anything; NaN counts as apart
        pixel = np.sqrt(abs(np.linalg.det(placed[0][:, :2])))
        return float(np.hypot(*((placed[1] - placed[0]) @ corners)).max() / pixel)
