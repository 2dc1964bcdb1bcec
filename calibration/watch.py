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
from calibration.onnx_file import fixed_batch, image_input, session_from_model
from engines.errors import DatasetError, GraphError, InputError

Image = NDArray[np.uint8]  # (H, W, C) at the network's input size


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
    keep: int = 0,
    on_image: Callable[[int], None] | None = None,
) -> Watched:
    """Run every image through `model`; one of them is in memory at a time, besides those kept.

    counted: tensors of which to take histograms; reduced: others, of which to take extremes.
    keep: how many images to keep at most, each of them equally likely; always the same ones.
    on_image: called with the number of images done.
    Raises InputError for an image of another shape or type, DatasetError for no images, and
    GraphError that names the tensor and the image for a value that is not finite.
    """
    watch, sample = _Watch(model, counted, reduced), _Sample(keep)
    done = 0
    for image in checked_images(images, model, on_image):
        watch.see(image, done)
        sample.see(image, done)
        done += 1
    found = watch.extremes.tolist()
    extremes = {name: (low, high) for name, (low, high) in zip(reduced, found, strict=True)}
    return Watched(done, watch.histograms, extremes, tuple(sample.images))


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

    Of the others only the extremes do. To take those of what INT8 layers write costs a tenth more
    time and 55 MB, to count these values a third more and 105 MB (SegFormer-B0 at 512x512, two
    cores).
    """

    def __init__(
        self, model: onnx.ModelProto, counted: Sequence[str], reduced: Sequence[str]
    ) -> None:
        self._input_name, _ = image_input(model)
        written = [name for node in model.graph.node for name in node.output]
        self._order = [name for name in written if name in {*counted, *reduced}]
        self.histograms = {name: MagnitudeHistogram() for name in counted}
        self._reduced = tuple(reduced)
        self.extremes = np.tile([np.inf, -np.inf], (len(reduced), 1))
        watched = onnx.ModelProto()
        watched.CopyFrom(model)
        self._outputs = (*counted, *add_extremes(watched, reduced))
        # In one block: 580 MB instead of 380 for extremes alone, and no faster (same network).
        self._session = session_from_model(watched, extra_outputs=self._outputs, one_block=False)
        self._batch = fixed_batch(model)

    def see(self, image: Image, index: int) -> None:
        # A graph of a fixed batch sees the image several times, which moves no share of values.
        batch = np.repeat(image[None], self._batch, axis=0)
        values = self._session.run(self._outputs, {self._input_name: batch})
        arrays = dict(zip(self.histograms, values, strict=False))
        rows = extremes_from_values(values[len(arrays) :])
        # numpy's min and max pass NaN on
        pairs = {name: (float(array.min()), float(array.max())) for name, array in arrays.items()}
        bad = {name for name, row in zip(self._reduced, rows, strict=True) if np.isnan(row[0])}
        bad.update(name for name, pair in pairs.items() if not all(map(math.isfinite, pair)))
        if bad:
            # The first in graph order is where it began.
            raise not_finite(next(name for name in self._order if name in bad), index)
        self.extremes[:, 0] = np.minimum(self.extremes[:, 0], rows[:, 0])
        self.extremes[:, 1] = np.maximum(self.extremes[:, 1], rows[:, 1])
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
