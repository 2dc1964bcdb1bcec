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
from engines.errors import ConfigError
from engines.evaluation.image_predictor import ImagePredictor, sliding_predictor
from engines.evaluation.request import MODES
from engines.network_input import Given, NetworkInput, Prepared
from engines.resize import Image, Labels, labels_at_image_size

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["PRECISIONS", "Segmenter"]

logger = logging.getLogger(__name__)


class Segmenter:
    """A bundle that is ready to run; make one with `Segmenter.open`.

        with Segmenter.open("my-bundle") as seg:
            labels = seg(image)

    An image is (H, W, C) uint8, RGB, of any size. A bundle with `bands` also takes a scene, and
    composes it as the network's training images were: (H, W, B) float32 or uint16 with the bands in
    the order of `bundle.bands.letters`, or {"G": ..., "N": ..., "E": ...} of band files or arrays
    (H, W). `bundle.bands.nodata` and NaN mark pixels without a value, and so does the mask of a
    numpy.ma.MaskedArray; they become the darkest. An image has no such pixels: with a mask it is
    refused.

    Attributes: `bundle`, `precision` ("fp32", "fp16" or "int8"), `runtime` ("TensorRT 10.3.0 on
    Orin" or "ONNX Runtime 1.17.3 on CPU"), `classes` (name of each index), `palette` (its RGB
    colour), `notes` (what is not as fast as it could be, and why).
    Calls may come from several threads at once.
    """

    def __init__(
        self, bundle: Bundle, opened: Opened, mode: str = "whole", *, fused: bool = False
    ) -> None:
        """`opened` becomes the segmenter's own: `close` closes it; the rest is as in `open`."""
        self.bundle = bundle
        self.precision = opened.precision
        self.runtime = opened.predictor.runtime
        self._opened = opened
        self._predictor = opened.predictor
        self._input = NetworkInput(bundle, fused=fused)
        self._windows = _windows(bundle, opened, mode, fused)
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
        fused: bool = False,
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

        `fused` takes the graphs that `riceseg export --fuse-bands` wrote, which compose by
        themselves: calls then take scenes alone, of exactly `bundle.bands.fused_hw`.

        An engine is native code: open only bundles whose engines folder you trust.

        Raises BundleError for a bundle that is incomplete or altered, or whose fused graphs compose
        otherwise than it says, ConfigError for a precision or logits that it does not have,
        MissingPackageError without onnxruntime; with "tensorrt" also DeviceError, EngineError,
        GraphError and OutputError.
        """
        bundle = bundle_from_folder(folder)
        wish = Wish(precision, runtime, build, threads, verify, fused)
        opened = open_bundle(folder, bundle, wish)
        try:
            return cls(bundle, opened, mode, fused=fused)
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

    def __call__(self, image: Given) -> Labels:
        """Labels (H, W) uint8, newly allocated, of an image or a scene of any size.

        It is only read. Raises InputError for another dtype or shape and after `close`; ImageError
        for a band file that cannot be used, and for a band that is all nodata or constant.
        """
        if self._windows is not None:
            return self._labels_by_windows(image)
        network_image, image_hw = self._input.prepared(image)
        return self._predictor.predict(network_image, image_hw, self.bundle.input.rule).image

    def image(self, given: Given) -> Image:
        """What the network is shown of `given`, (H, W, C) uint8 at its own size.

        A scene is composed, to be looked at or to be given to the other calls; an image is returned
        as it is. Raises as a call does.
        """
        return self._input.image(given)

    def batch(self, images: Iterable[Given]) -> List[Labels]:
        """Labels of each image or scene, as a call of its own would give; the sizes may differ.

        They are run together, as many as the bundle allows at a time; with mode "slide" windows of
        one image are.
        """
        if self._windows is not None:
            return [self._labels_by_windows(image) for image in images]
        results: List[Labels] = []
        for group in _groups(map(self._input.prepared, images), self.bundle.input.batch[2]):
            stacked = np.stack([prepared.image for prepared in group])
            sizes = [prepared.image_hw for prepared in group]
            results += self._at_image_sizes(self._predictor.labels(stacked), sizes)
        return results

    def stream(self, images: Iterable[Given], *, batch: int = 1) -> Iterator[Labels]:
        """Labels of each image or scene in order, while the next ones are being made ready.

        `images` is iterated in a thread of its own, a few images ahead, where they are composed and
        resized too; an array that it gave may be filled again. On a GPU copies overlap with
        computing too. `batch` images are run together: more images a second, and each result comes
        later. What `images` raises is raised here in its place, after the results before it.
        Leaving early (closing this generator, an exception, Ctrl-C) ends the thread; the segmenter
        can be used as before. Other calls may run meanwhile. With mode "slide" `batch` is 1: the
        windows of one image are run together.
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
        results = self._predictor.stream(self._input.batches(images, batch, sizes))
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

    def _labels_by_windows(self, given: Given) -> Labels:
        assert self._windows is not None  # asked by the callers
        return self._windows.labels(self._input.image(given))

    def _streamed_windows(self, images: Iterable[Given], batch: int) -> Iterator[Labels]:
        if batch != 1:
            raise ConfigError(
                f"batch {batch} with mode 'slide'",
                expected="1: the windows of one image are run together",
                do="leave batch out",
            )
        assert self._windows is not None  # asked by the caller
        copies = (np.array(self._input.image(image)) for image in images)
        return _of_each(copies, self._windows.labels)

    def _at_image_sizes(self, labels: Labels, sizes: List[Tuple[int, int]]) -> List[Labels]:
        rule = self.bundle.input.rule
        return [labels_at_image_size(labels[i], hw, rule) for i, hw in enumerate(sizes)]

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


def _windows(bundle: Bundle, opened: Opened, mode: str, fused: bool) -> Optional[ImagePredictor]:
    """What cuts images for mode "slide"; ConfigError for another mode and without logits."""
    if mode not in MODES:
        raise ConfigError(f"mode {mode!r}", expected=" or ".join(MODES), do="use one of these")
    if mode != "whole" and fused:
        raise ConfigError(
            f"mode {mode!r} with fused=True",
            expected="one of them: each window would be stretched by its own limits",
            do="leave fused out",
        )
    return None if mode == "whole" else sliding_predictor(opened.predictor, bundle)


def _groups(images: Iterable[Prepared], size: int) -> Iterator[List[Prepared]]:
    group: List[Prepared] = []
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
