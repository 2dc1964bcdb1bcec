"""What a caller of `Segmenter` gives, an image or bands, becomes what the graph takes."""

from __future__ import annotations

import os
from typing import (
    TYPE_CHECKING,
    Any,
    Deque,
    Iterable,
    Iterator,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Tuple,
    Union,
    cast,
)

import numpy as np

from engines.bands.composite import composite_from_bands
from engines.bands.files import bands_from_files
from engines.bands.recipe import BandRecipe
from engines.bundle import Bundle
from engines.errors import InputError
from engines.fused_graphs import bands_shape
from engines.resize import Image, network_image_from_image

if TYPE_CHECKING:
    BandFile = Union[str, os.PathLike[str]]
    Given = Union[Image, "np.ndarray[Any, Any]", Mapping[str, Any]]
else:
    Given = Any

# uint8 (H, W, C) for the plain graphs, float32 (H, W, B) for those that compose by themselves.
GraphImage = Any


class Prepared(NamedTuple):
    """One input of the graph, and the size (height, width) of what it was made from."""

    image: GraphImage
    image_hw: Tuple[int, int]


class NetworkInput:
    """Prepares inputs by the records of a bundle. Calls may come from several threads at once.

    Three things are taken: an image (H, W, C) uint8 as the network was trained on it; bands (H, W,
    B) of floats or of integers with more than 8 bits, in the order of the bundle's letters; and a
    mapping of letters to band files or to arrays (H, W), of which those that the bundle needs are
    used. The last two need a bundle with bands, else InputError. What a masked array hides is
    nodata in bands; in an image, which knows none, it is an InputError.
    """

    def __init__(self, bundle: Bundle, *, fused: bool = False) -> None:
        """`fused`: for the graphs that take bands of `fused_hw`; ConfigError without them."""
        self._spec = bundle.input
        self._name = bundle.name
        self._recipe = None if bundle.bands is None else bundle.bands.recipe
        self._fused_hw = bands_shape(bundle)[0] if fused else None

    def image(self, given: Given) -> Image:
        """The image (H, W, C) uint8 at its own size; bands are composed, an image is `given`.

        Raises InputError for an array of another dtype or shape; ImageError for a band file that
        cannot be used, and for a band that is all nodata or constant.
        """
        if not _are_bands(given):
            _check_image(given, self._spec.channels, self._recipe)
            # A mask that hides nothing would only be carried along.
            image = cast("Image", given)
            return np.ma.getdata(image) if _is_masked(image) else image
        recipe = self._checked_recipe(given)
        return composite_from_bands(_stacked(given, recipe), recipe)

    def prepared(self, given: Given) -> Prepared:
        """What the graph takes, in memory of its own; raises as `image` does."""
        if self._fused_hw is not None:
            return Prepared(self._float_bands(given, self._fused_hw), self._fused_hw)
        spec, image = self._spec, self.image(given)
        fitted = network_image_from_image(image, spec.hw, spec.rule, spec.pad_value)
        return Prepared(fitted, (image.shape[0], image.shape[1]))

    def batches(
        self, items: Iterable[Given], size: int, sizes: Deque[Tuple[int, int]]
    ) -> Iterator[GraphImage]:
        """Batches (N, ...) of at most `size`; the images' own sizes go to `sizes`.

        An item that cannot be had ends its batch: those before it come first, then its error.
        """
        group: List[GraphImage] = []
        source = iter(items)
        while True:
            failure: Optional[BaseException] = None
            try:
                image, image_hw = self.prepared(next(source))
                group.append(image)
                sizes.append(image_hw)
            except BaseException as error:
                failure = error
            if group and (failure is not None or len(group) == size):
                yield np.stack(group)
                group = []
            if isinstance(failure, StopIteration):
                return
            if failure is not None:
                raise failure

    def _float_bands(self, given: Given, hw: Tuple[int, int]) -> Any:
        if not _are_bands(given):
            kind = getattr(given, "dtype", None) or type(given).__name__
            raise InputError(
                f"an image of {kind} for a graph that composes bands by itself",
                expected="bands (H, W, B) of float32, or a mapping of letters to band files",
                do="give the bands, or open the bundle without fused=True",
            )
        recipe = self._checked_recipe(given)
        bands = _stacked(given, recipe)
        if bands.shape != (*hw, len(recipe.letters)):
            raise InputError(
                f"bands of shape {bands.shape}",
                expected=f"{(*hw, len(recipe.letters))}: the graph composes at one size",
                do="cut the scene to that size, or open the bundle without fused=True",
            )
        with np.errstate(over="ignore"):  # infinite, which the graph takes for nodata
            return np.array(bands, np.float32, order="C")  # the caller may fill its own again

    def _checked_recipe(self, given: Given) -> BandRecipe:
        if self._recipe is not None:
            return self._recipe
        if isinstance(given, Mapping):
            raise InputError(
                f"a mapping of bands for {self._name!r}, which has no recipe for them",
                expected=f"an image (H, W, {self._spec.channels}) of uint8",
                do="export the model with --bands, for example --bands GNE",
            )
        # Never silently cast: whoever normalises before the call would get labels of nothing.
        raise InputError(
            f"an image of {given.dtype}",
            expected="a numpy array of uint8, RGB values 0..255",
            do="do not normalise (the graph does it); numpy.asarray(image, numpy.uint8) for "
            "others, and for bands export the model with --bands",
        )


def _are_bands(given: Any) -> bool:
    """A mapping, or an array of numbers that no 8-bit image has."""
    if isinstance(given, Mapping):
        return True
    if not isinstance(given, np.ndarray):
        return False
    return given.dtype.kind == "f" or (given.dtype.kind in "iu" and given.dtype.itemsize > 1)


def _stacked(given: Given, recipe: BandRecipe) -> Any:
    """Bands (H, W, B) in the order of the recipe's letters."""
    if not isinstance(given, Mapping):
        return _checked_bands(_unmasked(given, recipe), recipe)
    missing = [letter for letter in recipe.letters if letter not in given]
    if missing:
        raise InputError(
            f"bands {', '.join(map(str, given)) or 'none'}, without {', '.join(missing)}",
            expected=f"{', '.join(recipe.letters)}, as the model was trained on",
            do="add the missing band",
        )
    files = {letter: given[letter] for letter in recipe.letters if _is_path(given[letter])}
    if len(files) == len(recipe.letters):
        return _bands_of_files(files, recipe.letters, recipe)
    planes = [
        _bands_of_files(files, letter, recipe)[:, :, 0]
        if letter in files
        else _checked_plane(_unmasked(given[letter], recipe), letter)
        for letter in recipe.letters
    ]
    shapes = {letter: plane.shape for letter, plane in zip(recipe.letters, planes)}
    if len(set(shapes.values())) > 1:
        raise InputError(
            f"bands of different sizes: {shapes}",
            expected="one height and width for all bands of a scene",
            do="align the bands first",
        )
    # One dtype for all: a sum of two kinds of integers would be compared with nodata wrongly.
    dtypes = {plane.dtype for plane in planes}
    dtype = dtypes.pop() if len(dtypes) == 1 else np.dtype(np.float32)
    # Each band in one piece, which is how they are composed.
    with np.errstate(over="ignore"):  # What no float32 can hold is found as infinite.
        return np.stack([plane.astype(dtype, copy=False) for plane in planes]).transpose(1, 2, 0)


def _bands_of_files(files: Mapping[str, BandFile], letters: str, recipe: BandRecipe) -> Any:
    return bands_from_files(files, letters, nodata=recipe.nodata)


def _unmasked(values: Any, recipe: BandRecipe) -> Any:
    """Masked arrays, as rasterio gives them on request, with nodata where they are masked."""
    if not _is_masked(values) or values.dtype.kind not in "fiu":
        return values
    if not np.ma.is_masked(values):
        return np.ma.getdata(values)
    with np.errstate(over="ignore"):  # What no float32 can hold is found as infinite.
        return np.ma.filled(values.astype(np.float32), recipe.nodata)


def _is_masked(values: Any) -> bool:
    return isinstance(values, np.ma.MaskedArray)


def _is_path(value: Any) -> bool:
    return isinstance(value, (str, os.PathLike))


def _checked_bands(bands: Any, recipe: BandRecipe) -> Any:
    count = len(recipe.letters)
    if bands.ndim == 3 and bands.shape[2] == count and bands.size > 0:
        return bands
    if bands.ndim == 3 and bands.shape[0] == count and bands.size > 0:
        advice = "put the bands last: bands.transpose(1, 2, 0)"
    elif bands.ndim == 4:
        advice = "give one scene at a time"
    else:
        advice = f"give the bands {', '.join(recipe.letters)}, in this order"
    raise InputError(
        f"bands of shape {bands.shape}", expected=f"(height, width, {count})", do=advice
    )


def _checked_plane(plane: Any, letter: str) -> Any:
    if not isinstance(plane, np.ndarray) or plane.dtype.kind not in "fiu":
        kind = getattr(plane, "dtype", None) or type(plane).__name__
        raise InputError(
            f"band {letter} of {kind}",
            expected="a file name or a numpy array (height, width) of numbers",
            do="give one of these for each letter",
        )
    if plane.ndim != 2 or plane.size == 0:
        raise InputError(
            f"band {letter} of shape {plane.shape}",
            expected="(height, width)",
            do="give one band for each letter",
        )
    return plane


def _check_image(image: Any, channels: int, recipe: Optional[BandRecipe]) -> None:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        kind = getattr(image, "dtype", None) or type(image).__name__
        bands = ""
        if recipe is not None:
            letters = recipe.letters
            bands = f", bands (H, W, {len(letters)}) of float32 or uint16, or a mapping of "
            bands += f"{letters} to files"
        raise InputError(
            f"an image of {kind}",
            expected=f"a numpy array of uint8, RGB values 0..255{bands}",
            do="do not normalise (the graph does it); numpy.asarray(image, numpy.uint8) for others",
        )
    if image.ndim == 3 and image.shape[2] == channels and image.size > 0:
        _check_no_mask(image, recipe)
        return
    if image.ndim == 3 and image.shape[0] == channels and image.size > 0:
        advice = "put the channels last: image.transpose(1, 2, 0)"
    elif image.ndim == 4:
        advice = "give one image at a time"
    elif image.ndim == 2 and channels == 3:
        advice = "repeat a grey image: numpy.repeat(image[:, :, None], 3, axis=2)"
    else:
        advice = f"give the {channels} channels that the network was trained on"
    raise InputError(
        f"an image of shape {image.shape}", expected=f"(height, width, {channels})", do=advice
    )


def _check_no_mask(image: Any, recipe: Optional[BandRecipe]) -> None:
    """An image has no value that stands for nodata: what the mask hides would be segmented too."""
    if not np.ma.is_masked(image):
        return
    hidden = int(np.ma.getmaskarray(image).any(axis=2).sum())
    raise InputError(
        f"an image with {hidden} masked pixels",
        expected="an image without a mask: uint8 has no value for pixels that were not measured",
        do="fill it, for example image.filled(0), and leave these labels out afterwards"
        + (
            "" if recipe is None else "; or give the measured bands, whose masked values are nodata"
        ),
    )
