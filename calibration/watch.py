"""One pass of images through a graph: what its tensors reach, and a few of the images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from calibration.extremes import add_extremes, extremes_from_values
from calibration.histogram import MagnitudeHistogram
from calibration.image_session import ImageSession
from calibration.onnx_file import image_input
from engines.errors import DatasetError, GraphError, InputError

Image = NDArray[np.uint8]  # (H, W, C) at the network's input size

SAMPLED_IMAGES = 32  # on so many of the first images sampled tensors are seen


@dataclass(frozen=True)
class Watched:
    """images: how many. By tensor, a histogram or (smallest, largest). kept: some of the images."""

    images: int
    histograms: Mapping[str, MagnitudeHistogram]
    extremes: Mapping[str, tuple[float, float]]
    kept: tuple[Image, ...]


def watch_images(
    model: onnx.ModelProto,
    images: Iterable[Image],
    *,
    counted: Sequence[str],
    reduced: Sequence[str],
    sampled: Sequence[str] = (),
    keep: int = 0,
    on_image: Callable[[int], None] | None = None,
) -> Watched:
    """Run every image through `model`; one of them is in memory at a time, besides those kept.

    counted: tensors of which to take histograms; reduced: others, of which to take extremes;
    sampled: others again, of which to take extremes on the first 32 images alone, which costs less.
    keep: how many images to keep at most, each of them equally likely; always the same ones.
    on_image: called with the number of images done.
    Raises InputError for an image of another shape or type, DatasetError for no images, and
    GraphError that names the tensor and the image for a value that is not finite.
    """
    watch, sample = _Watch(model, counted, reduced, sampled), _Sample(keep)
    done = 0
    for image in checked_images(images, model, on_image):
        watch.see(image, done)
        sample.see(image, done)
        done += 1
    return Watched(done, watch.histograms, watch.extremes, tuple(sample.images))


def checked_images(
    images: Iterable[Image], model: onnx.ModelProto, on_image: Callable[[int], None] | None
) -> Iterator[Image]:
    """The images one by one; `on_image` is called with how many the caller has taken in.

    Raises InputError for one of another shape or type than `model` reads, DatasetError for none.
    """
    _, hwc = image_input(model)
    done = 0
    for image in images:
        if image.dtype != np.uint8 or image.shape != hwc:
            raise InputError(
                f"calibration image {done + 1} with shape {image.shape}, {image.dtype}",
                expected=f"shape {hwc}, uint8",
                do="resize the images to the network's input size",
            )
        yield image
        done += 1
        if on_image is not None:
            on_image(done)
    if not done:
        raise DatasetError(
            "no calibration images",
            expected="images from the field; this never calibrates on noise",
            do="give a folder with images",
        )


class _Watch:
    """A counted tensor leaves ONNX Runtime and is released before the next image.

    Of the others only the extremes do. After the sampled tensors another session takes over, for
    ONNX Runtime computes every output that a graph has: on SegFormer-B0 at 512x512 (two cores) the
    extremes of what INT8 layers read cost a fifth of the network's own time, those of what they
    write another fifth. Two sessions at a time disturb each other's threads, and cost as much.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        counted: Sequence[str],
        reduced: Sequence[str],
        sampled: Sequence[str],
    ) -> None:
        written = [name for node in model.graph.node for name in node.output]
        self._order = [name for name in written if name in {*counted, *reduced, *sampled}]
        self.histograms = {name: MagnitudeHistogram() for name in counted}
        self.extremes = dict.fromkeys((*reduced, *sampled), (math.inf, -math.inf))
        self._reduced, self._sampled = tuple(reduced), tuple(sampled)
        self._model, self._watched = model, self._reduced + self._sampled
        self._session: ImageSession | None = self._opened()

    def _opened(self) -> ImageSession:
        """Its outputs: the counted tensors, then the extremes of `self._watched`."""
        watched = onnx.ModelProto()
        watched.CopyFrom(self._model)
        outputs = (*self.histograms, *add_extremes(watched, self._watched))
        # In one block: 580 MB instead of 380 for extremes alone, and no faster (same network).
        return ImageSession(watched, outputs, one_block=False)

    def see(self, image: Image, index: int) -> None:
        if index == SAMPLED_IMAGES and self._sampled:
            self._session, self._watched = None, self._reduced  # released before another is opened
        if self._session is None:
            self._session = self._opened()
        # That a graph of a fixed batch sees the image several times moves no share of values.
        values = self._session.values(image)
        arrays = dict(zip(self.histograms, values, strict=False))
        rows = extremes_from_values(values[len(arrays) :]).tolist()
        # numpy's min and max pass NaN on
        pairs = {name: (float(array.min()), float(array.max())) for name, array in arrays.items()}
        bad = {name for name, row in zip(self._watched, rows, strict=True) if math.isnan(row[0])}
        bad.update(name for name, pair in pairs.items() if not all(map(math.isfinite, pair)))
        if bad:
            # The first in graph order is where it began.
            raise not_finite(next(name for name in self._order if name in bad), index)
        for name, (low, high) in zip(self._watched, rows, strict=True):
            lowest, highest = self.extremes[name]
            self.extremes[name] = min(lowest, low), max(highest, high)
        for name, array in arrays.items():
            self.histograms[name].add(array, *pairs[name])


class _Sample:
    """Copies of at most `size` of the images seen: Vitter's algorithm R with a fixed seed."""

    def __init__(self, size: int) -> None:
        self.images: list[Image] = []
        self._size, self._rng = size, np.random.default_rng(0)

    def see(self, image: Image, index: int) -> None:
        if index < self._size:
            self.images.append(image.copy())
            return
        place = int(self._rng.integers(index + 1))
        if place < self._size:
            self.images[place] = image.copy()


def not_finite(name: str, image_index: int) -> GraphError:
    return GraphError(
        f"values that are not finite in tensor {name} on calibration image {image_index + 1}",
        expected="finite activations",
        do="look at that image and at the checkpoint's weights; FP32 itself fails there",
    )
