"""Open a bundle and segment images of any size: the runtime for a program of one's own."""

from __future__ import annotations

import contextlib
import logging
import os
from collections import deque
from typing import TYPE_CHECKING, Callable, Deque, Iterable, Iterator, List, Optional, Tuple, Union

import numpy as np

from engines.background import Background
from engines.bundle import Bundle, bundle_from_folder
from engines.bundle_runtime import PRECISIONS, Opened, Wish, open_bundle
from engines.errors import ConfigError, InputError
from engines.evaluation.image_predictor import ImagePredictor, sliding_predictor
from engines.evaluation.request import MODES
from engines.resize import Image, Labels, labels_at_image_size, network_image_from_image

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["PRECISIONS", "Segmenter"]

logger = logging.getLogger(__name__)


class Segmenter:
    """A bundle that is ready to run; make one with `Segmenter.open`.

        with Segmenter.open("my-bundle") as seg:
            labels = seg(image)

    Attributes: `bundle`, `precision` ("fp32", "fp16" or "int8"), `runtime` ("TensorRT 10.3.0 on
    Orin" or "ONNX Runtime 1.17.3 on CPU"), `classes` (name of each index), `palette` (its RGB
    colour), `notes` (what is not as fast as it could be, and why).
    Calls may come from several threads at once.
    """

    def __init__(self, bundle: Bundle, opened: Opened, mode: str = "whole") -> None:
        """`opened` becomes the segmenter's own: `close` closes it; `mode` is that of `open`."""
        self.bundle = bundle
        self.precision = opened.precision
        self.runtime = opened.predictor.runtime
        self._opened = opened
        self._predictor = opened.predictor
        self._windows = _windows(bundle, opened, mode)
        _warn_about(bundle, mode)

    @classmethod
    def open(
        cls,
        folder: Union[str, os.PathLike[str]],
        *,
        precision: Optional[str] = None,
        runtime: str = "auto",
        build: bool = True,
        threads: Optional[int] = None,
        verify: bool = True,
        mode: str = "whole",
    ) -> Segmenter:
        """Check `folder` and load it the fastest way that this machine has.

        That is TensorRT on a GPU: the engine in `folder`/engines that was built from this bundle
        for this GPU and this version, else one that is built now, which takes minutes, and kept
        there (in the user's cache folder where the bundle cannot be written to). Without `build`
        only an engine that is there is taken. Where that fails, ONNX Runtime on the CPU, and the
        log tells why. `runtime` "tensorrt" raises instead, "onnx" looks at no GPU.

        `precision` None takes, on TensorRT, int8 if the bundle has it and passed its accuracy gate,
        else fp16, else fp32, and on ONNX Runtime fp32, the fastest on a CPU. `threads` is ONNX
        Runtime's, None for all cores; `verify` compares an ONNX file's SHA-256 with the recorded
        one before it is loaded. A bundle that lost more accuracy than its limit opens with a
        warning in the log.

        `mode` "slide" cuts images into overlapping windows of the network's size, at the scale and
        with the stride that the model was tested with, and averages their logits, which the graph
        must give: slower, and as `riceseg evaluate --mode slide` scores it.

        An engine is native code: open only bundles whose engines folder you trust.

        Raises BundleError for a bundle that is incomplete or altered, ConfigError for a precision
        or logits that it does not have, MissingPackageError without onnxruntime; with "tensorrt"
        also DeviceError, EngineError, GraphError and OutputError.
        """
        wish = Wish(precision, runtime, build, threads, verify)
        bundle = bundle_from_folder(folder)
        opened = open_bundle(folder, bundle, wish)
        try:
            return cls(bundle, opened, mode)
        except ConfigError:
            opened.resources.close()
            raise

    @property
    def classes(self) -> Tuple[str, ...]:
        """Name of each label, by index; a graph with unnamed outputs can give larger labels."""
        return self.bundle.classes

    @property
    def palette(self) -> Tuple[Tuple[int, int, int], ...]:
        """RGB colour of each class, by index."""
        return self.bundle.palette

    @property
    def notes(self) -> List[str]:
        """One line each: why ONNX Runtime, an engine that was just built, no CUDA graph."""
        return [*self._opened.notes, *getattr(self._predictor, "notes", ())]

    def __call__(self, image: Image) -> Labels:
        """Labels (H, W) uint8, newly allocated, of an RGB image (H, W, C) uint8 of any size.

        The image is only read. Raises InputError for another dtype or shape and after `close`.
        """
        if self._windows is not None:
            return self._labels_by_windows(image)
        network_image = self._network_image(image)
        image_hw = (image.shape[0], image.shape[1])
        return self._predictor.predict(network_image, image_hw, self.bundle.input.rule).image

    def batch(self, images: Iterable[Image]) -> List[Labels]:
        """Labels of each image, as a call of its own would give; the sizes may differ.

        They are run together, as many as the bundle allows at a time; with mode "slide" windows of
        one image are.
        """
        if self._windows is not None:
            return [self._labels_by_windows(image) for image in images]
        most = self.bundle.input.batch[2]
        results: List[Labels] = []
        for group in _groups(images, most):
            stacked = np.stack([self._network_image(image) for image in group])
            sizes = [(image.shape[0], image.shape[1]) for image in group]
            results += self._at_image_sizes(self._predictor.labels(stacked), sizes)
        return results

    def stream(self, images: Iterable[Image], *, batch: int = 1) -> Iterator[Labels]:
        """Labels of each image in order, while the next ones are being decoded and resized.

        `images` is iterated in a thread of its own, a few images ahead; an array that it gave may
        be filled again. On a GPU copies overlap with computing too. `batch` images are run
        together: more images a second, and each result comes later. What `images` raises is raised
        here in its place, after the results before it. Leaving early (closing this generator, an
        exception, Ctrl-C) ends the thread; the segmenter can be used as before. Other calls may run
        meanwhile. With mode "slide" `batch` is 1: the windows of one image are run together.
        """
        if self._windows is not None:
            return self._streamed_windows(images, batch)
        if not 1 <= batch <= self.bundle.input.batch[2]:
            raise ConfigError(
                f"batch {batch}",
                expected=f"1 to {self.bundle.input.batch[2]}, as the bundle was made for",
                do="use a smaller batch, or export with --dynamic-batch",
            )
        sizes: Deque[Tuple[int, int]] = deque()
        results = self._predictor.stream(self._network_batches(images, batch, sizes))
        return self._streamed(results, sizes)

    def close(self) -> None:
        """Release graph or engine, and the GPU; harmless when called twice."""
        self._opened.resources.close()

    def __enter__(self) -> Segmenter:
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self.close()

    def _network_image(self, image: Image) -> Image:
        spec = self.bundle.input
        _check_image(image, spec.channels)
        return network_image_from_image(image, spec.hw, spec.rule, spec.pad_value)

    def _labels_by_windows(self, image: Image) -> Labels:
        assert self._windows is not None  # asked by the callers
        _check_image(image, self.bundle.input.channels)
        return self._windows.labels(image)

    def _streamed_windows(self, images: Iterable[Image], batch: int) -> Iterator[Labels]:
        if batch != 1:
            raise ConfigError(
                f"batch {batch} with mode 'slide'",
                expected="1: the windows of one image are run together",
                do="leave batch out",
            )
        copies = (np.array(image) for image in images)
        return _of_each(copies, self._labels_by_windows)

    def _at_image_sizes(self, labels: Labels, sizes: List[Tuple[int, int]]) -> List[Labels]:
        rule = self.bundle.input.rule
        return [labels_at_image_size(labels[i], hw, rule) for i, hw in enumerate(sizes)]

    def _network_batches(
        self, images: Iterable[Image], size: int, sizes: Deque[Tuple[int, int]]
    ) -> Iterator[Image]:
        """Batches for the network; an image's own size goes to `sizes`. Runs in the thread.

        An image that cannot be had ends its batch: those before it come first, then its error.
        """
        group: List[Image] = []
        source = iter(images)
        while True:
            failure: Optional[BaseException] = None
            try:
                image = next(source)
                group.append(self._network_image(image))
                sizes.append((image.shape[0], image.shape[1]))
            except BaseException as error:
                failure = error
            if group and (failure is not None or len(group) == size):
                yield np.stack(group)
                group = []
            if isinstance(failure, StopIteration):
                return
            if failure is not None:
                raise failure

    def _streamed(
        self, results: Iterator[Labels], sizes: Deque[Tuple[int, int]]
    ) -> Iterator[Labels]:
        with contextlib.closing(results):  # type: ignore[type-var]
            for labels in results:
                yield from self._at_image_sizes(labels, [sizes.popleft() for _ in labels])


def _of_each(images: Iterable[Image], labels_of: Callable[[Image], Labels]) -> Iterator[Labels]:
    source = Background(images, ahead=2, name="stream of windows")
    try:
        for image in source:
            yield labels_of(image)
    finally:
        source.stop()


def _windows(bundle: Bundle, opened: Opened, mode: str) -> Optional[ImagePredictor]:
    """What cuts images for mode "slide"; ConfigError for another mode and without logits."""
    if mode not in MODES:
        raise ConfigError(f"mode {mode!r}", expected=" or ".join(MODES), do="use one of these")
    return None if mode == "whole" else sliding_predictor(opened.predictor, bundle)


def _groups(images: Iterable[Image], size: int) -> Iterator[List[Image]]:
    group: List[Image] = []
    for image in images:
        group.append(image)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _warn_about(bundle: Bundle, chosen: str) -> None:
    gate = bundle.gate
    if gate is not None and not gate.passed:
        logger.warning(
            "%s: failed its accuracy gate when it was made: mIoU %.2f points below PyTorch's, "
            "limit %.2f",
            bundle.name,
            gate.drop,
            gate.max_drop,
        )
    mode = bundle.test_mode["mode"]
    if mode != "whole" and chosen == "whole":
        logger.warning(
            "%s: trained to be run with %r windows, run here on the whole image: expect other "
            "labels than its published scores%s",
            bundle.name,
            mode,
            " (mode='slide' runs windows)" if "logits" in bundle.outputs else "",
        )


def _check_image(image: Image, channels: int) -> None:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        kind = getattr(image, "dtype", None) or type(image).__name__
        raise InputError(
            f"an image of {kind}",
            expected="a numpy array of uint8, RGB values 0..255",
            do="do not normalise (the graph does it); numpy.asarray(image, numpy.uint8) for others",
        )
    if image.ndim == 3 and image.shape[2] == channels and image.size > 0:
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
