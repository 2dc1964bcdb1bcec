"""Labels of whole images: brought to one scale or several, mirrored, cut, and put together again.

As mmsegmentation does it, at the image's own size: with one prediction the labels are the argmax of
its logits, with several that of the sum of their softmax.
"""

from __future__ import annotations

from typing import Callable, Iterator, List, NamedTuple, Optional, Protocol, Tuple

import numpy as np

from engines.bundle import Bundle
from engines.errors import ConfigError, InputError
from engines.evaluation.evaluate import Prediction
from engines.evaluation.preparation import (
    AS_IT_IS,
    Augmentation,
    Preparation,
    augmentations,
    preparation_from_record,
)
from engines.evaluation.resized_logits import Logits, ProbabilitySum, labels_from_logits
from engines.evaluation.sliding import Windows, logit_bands, windows_from_bundle
from engines.resize import Image, Labels, ResizeRule, resize_bilinear

OnStep = Callable[[], None]


class Cost(NamedTuple):
    """Of one image: predictions, calls of the network in all of them, and values of each class
    (float32) that are in memory at a time, at most and beside the network's own.
    """

    predictions: int
    calls: int
    values: int


class ImageLogits(Protocol):
    """What gives the logits of a prepared image of any size."""

    @property
    def name(self) -> str:
        """Its row in tables."""

    def output_hw(self, image_hw: Tuple[int, int]) -> Tuple[int, int]:
        """The size of the logits of an image of `image_hw`."""

    def calls(self, image_hw: Tuple[int, int]) -> int:
        """How often the network sees a part of such an image, or the whole."""

    def bands(self, image: Image) -> Iterator[Logits]:
        """Logits (K, rows, W) of an image (H, W, C) uint8, from top to bottom, `output_hw` in all.

        The image is only read, and may be a view with negative steps.
        """


class LogitsPredictor(Protocol):
    """A predictor of fixed size that gives logits: ONNX Runtime, TensorRT and PyTorch alike."""

    @property
    def name(self) -> str:
        """Its row in tables."""

    @property
    def has_logits(self) -> bool:
        """Whether the graph has that output."""

    @property
    def fixed_batch(self) -> Optional[int]:
        """How many images it takes at once; None for any number."""

    def logits(self, batch: Image) -> Logits:
        """(N, K, H, W) float32 of a batch (N, H, W, C) uint8."""


class ImagePredictor:
    """Predicts whole images with `logits`: pass `whole_images` to `evaluate_predictors`.

    Memory for one image: K * 4 bytes for each pixel of the image (the sum, with several
    predictions) and of the largest scale; with one at the image's own size that of a row of
    windows. Attributes: `name`, and how much was run so far, `call_count` and `image_count`.
    """

    def __init__(
        self,
        logits: ImageLogits,
        *,
        preparation: Preparation = AS_IT_IS,
        tta: str = "none",
        align_corners: bool = False,
        on_step: Optional[OnStep] = None,
    ) -> None:
        """`align_corners` is that of the head, for resizing to the image; `on_step` is called after
        each prediction. ConfigError for an unknown `tta`.
        """
        self.name = logits.name
        self.call_count = self.image_count = 0
        self.augmentations = augmentations(tta)
        self._logits, self._preparation = logits, preparation
        self._align_corners, self._on_step = align_corners, on_step

    def predict(self, image: Image, image_hw: Tuple[int, int], rule: ResizeRule) -> Prediction:
        """Labels of a whole image (H, W, C), `image_hw` its size; `rule` is not used."""
        if image.shape[:2] != tuple(image_hw):
            raise InputError(
                f"an image of {image.shape[0]}x{image.shape[1]} that stands for one of "
                f"{image_hw[0]}x{image_hw[1]}",
                expected="the whole image",
                do="pass whole_images to evaluate_predictors",
            )
        labels = self.labels(image)
        return Prediction(network=labels, image=labels)

    def labels(self, image: Image) -> Labels:
        """Labels (H, W) uint8, newly allocated, of an image (H, W, C) uint8, which is only read."""
        if len(self.augmentations) == 1:
            labels = self._labels_of_one(image, self.augmentations[0])
        else:
            labels = self.summed(image).labels()
        self.image_count += 1
        return labels

    def summed(self, image: Image) -> ProbabilitySum:
        """The softmax of every prediction, added at the image's size."""
        total = ProbabilitySum((image.shape[0], image.shape[1]), align_corners=self._align_corners)
        for augmentation in self.augmentations:
            prepared = self._prepared(image, augmentation)
            total.add(_joined(self._logits.bands(prepared)), flip=augmentation.flip)
            self._stepped()
        return total

    def cost(self, image_hw: Tuple[int, int]) -> Cost:
        """What one image of that size takes."""
        sizes = [self._preparation.steps(image_hw, a.ratio)[-1] for a in self.augmentations]
        outputs = [self._logits.output_hw(hw) for hw in sizes]
        largest = max(height * width for height, width in outputs)
        summed = image_hw[0] * image_hw[1] if len(sizes) > 1 else 0
        return Cost(len(sizes), sum(self._logits.calls(hw) for hw in sizes), largest + summed)

    def _labels_of_one(self, image: Image, augmentation: Augmentation) -> Labels:
        image_hw = (image.shape[0], image.shape[1])
        prepared = self._prepared(image, augmentation)
        bands = self._logits.bands(prepared)
        if self._logits.output_hw((prepared.shape[0], prepared.shape[1])) == image_hw:
            labels = np.concatenate([band.argmax(axis=0).astype(np.uint8) for band in bands])
        else:
            labels = labels_from_logits(_joined(bands), image_hw, align_corners=self._align_corners)
        self._stepped()
        return labels

    def _prepared(self, image: Image, augmentation: Augmentation) -> Image:
        prepared = self._preparation.prepared(image, augmentation)
        self.call_count += self._logits.calls((prepared.shape[0], prepared.shape[1]))
        return prepared

    def _stepped(self) -> None:
        if self._on_step is not None:
            self._on_step()


class GraphWindows:
    """The logits of any image from a graph of fixed size, run on windows of that size.

    An image with a side shorter than the window's is enlarged, or with `pad_value` (0..255 for
    each channel) put into the upper left corner of a window: enlarging would undo a scale below 1.
    mmsegmentation runs such an image at its own size. The predictor stays the caller's to close.
    """

    def __init__(
        self,
        predictor: LogitsPredictor,
        windows: Windows,
        *,
        batch: int = 1,
        pad_value: Optional[Tuple[int, ...]] = None,
    ) -> None:
        """`batch` windows are run at once; ConfigError for a predictor without logits."""
        check_has_logits(predictor, "sliding windows are averaged before the labels are chosen")
        self.name = predictor.name
        self._predictor, self._windows = predictor, windows
        self._batch, self._pad_value = batch, pad_value

    def output_hw(self, image_hw: Tuple[int, int]) -> Tuple[int, int]:
        return image_hw if self._pad_value is not None else self._windows.image_hw(image_hw)

    def calls(self, image_hw: Tuple[int, int]) -> int:
        return self._windows.count(self._cut_hw(image_hw))

    def bands(self, image: Image) -> Iterator[Logits]:
        height, width = image.shape[:2]
        cut_hw = self._cut_hw((height, width))
        if cut_hw != (height, width) and self._pad_value is None:
            image = resize_bilinear(image, cut_hw)
            height, width = cut_hw
        elif cut_hw != (height, width):
            padded = np.empty((*cut_hw, image.shape[2]), np.uint8)
            padded[:] = np.asarray(self._pad_value, np.uint8)
            padded[:height, :width] = image
            image = padded
        done = 0
        for band in logit_bands(self._predictor.logits, image, self._windows, batch=self._batch):
            if done < height:
                yield band[:, : height - done, :width]
            done += band.shape[1]

    def _cut_hw(self, image_hw: Tuple[int, int]) -> Tuple[int, int]:
        if self._pad_value is None:
            return self._windows.image_hw(image_hw)
        height, width = self._windows.size
        return max(height, image_hw[0]), max(width, image_hw[1])


def sliding_predictor(predictor: LogitsPredictor, bundle: Bundle) -> ImagePredictor:
    """Windows at the scale and with the stride of a bundle's `test_mode`, its own logits averaged.

    ConfigError for a predictor without logits.
    """
    return ImagePredictor(
        GraphWindows(
            predictor,
            windows_from_bundle(bundle),
            batch=predictor.fixed_batch or bundle.input.batch[1],
        ),
        preparation=preparation_from_record(bundle.test_mode),
        align_corners=bundle.test_mode.get("align_corners") is True,
    )


class FlipPredictor:
    """Runs a predictor of fixed size on the network's image and on its mirror image.

    The labels at the image's size are the argmax of both softmaxes' sum, resized as PyTorch does
    it; letterbox padding stays where it is. Attribute: `name`.
    """

    def __init__(
        self,
        predictor: LogitsPredictor,
        *,
        align_corners: bool = False,
        on_step: Optional[OnStep] = None,
    ) -> None:
        """As `ImagePredictor`; ConfigError for a predictor without logits."""
        check_has_logits(predictor, "predictions are averaged before the labels are chosen")
        self.name = predictor.name
        self._predictor, self._align_corners, self._on_step = predictor, align_corners, on_step

    def predict(
        self, network_image: Image, image_hw: Tuple[int, int], rule: ResizeRule
    ) -> Prediction:
        height, width = network_image.shape[:2]
        fitted = rule.fitted_hw(image_hw, (height, width))
        inside = slice(0, fitted[0]), slice(0, fitted[1])
        mirrored = network_image.copy()
        mirrored[inside] = network_image[inside][:, ::-1]
        at_image = ProbabilitySum(image_hw, align_corners=self._align_corners)
        at_network = ProbabilitySum(fitted)
        for given, flip in ((network_image, False), (mirrored, True)):
            logits = self._predictor.logits(given[np.newaxis])[0]
            fitting = logits[:, : fitted[0], : fitted[1]]
            at_image.add(fitting, flip=flip)
            at_network.add(fitting, flip=flip)
            if self._on_step is not None:
                self._on_step()
        network = logits.argmax(axis=0).astype(np.uint8)
        network[inside] = at_network.labels()
        return Prediction(network=network, image=at_image.labels())


def check_has_logits(predictor: LogitsPredictor, reason: str) -> None:
    """ConfigError, with the reason, for a graph that gives labels alone."""
    if not predictor.has_logits:
        raise ConfigError(
            f"{predictor.name}, which gives labels only",
            expected=f"logits: {reason}",
            do="export the model with --output logits or --output both, or use --mode whole "
            "without --tta",
        )


def _joined(bands: Iterator[Logits]) -> Logits:
    parts: List[Logits] = list(bands)
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
