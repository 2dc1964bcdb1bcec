"""Open a bundle and segment images of any size: the runtime for a program of one's own."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Optional, Tuple, Union

import numpy as np

from engines.bundle import Bundle, FileInfo, bundle_from_folder, bundle_path
from engines.errors import BundleError, ConfigError, InputError
from engines.images import sha256_of_file
from engines.onnx_predictor import OnnxPredictor
from engines.resize import Image, Labels, network_image_from_image

if TYPE_CHECKING:
    from types import TracebackType

PRECISIONS = ("fp32", "fp16", "int8")

logger = logging.getLogger(__name__)


class Segmenter:
    """A bundle that is ready to run; make one with `Segmenter.open`.

        with Segmenter.open("my-bundle") as seg:
            labels = seg(image)

    Attributes: `bundle`, `precision` ("fp32", "fp16" or "int8"), `classes` (name of each index) and
    `palette` (its RGB colour). Calls may come from several threads at once.
    """

    def __init__(self, bundle: Bundle, precision: str, predictor: OnnxPredictor) -> None:
        """`predictor` becomes the segmenter's own: `close` closes it."""
        self.bundle = bundle
        self.precision = precision
        self._predictor = predictor

    @classmethod
    def open(
        cls,
        folder: Union[str, os.PathLike[str]],
        *,
        precision: Optional[str] = None,
        threads: Optional[int] = None,
        verify: bool = True,
    ) -> Segmenter:
        """Check `folder`, load its graph of `precision` on ONNX Runtime's CPU provider.

        `precision` None takes fp32, the fastest on a CPU, and tells the log; `threads` None takes
        all cores; `verify` compares the file's SHA-256 with the recorded one. A bundle that lost
        more accuracy than its limit opens with a warning in the log.
        Raises BundleError for a bundle that is incomplete or altered, ConfigError for a precision
        that it does not have, MissingPackageError without onnxruntime.
        """
        bundle = bundle_from_folder(folder)
        chosen = _chosen_precision(bundle, precision)
        path = _verified_path(folder, bundle.files[chosen], verify)
        _warn_about(bundle)
        predictor = OnnxPredictor(path, threads=threads, name=f"{bundle.name} {chosen}")
        spec = bundle.input
        if (predictor.input_hw, predictor.channels) != (spec.hw, spec.channels):
            raise BundleError(
                f"{path.name!r} for input {predictor.input_hw} with {predictor.channels} channels",
                expected=f"{spec.hw} with {spec.channels} channels, as bundle.json says",
                do="copy the folder from where it was made, or export the model again",
            )
        return cls(bundle, chosen, predictor)

    @property
    def classes(self) -> Tuple[str, ...]:
        """Name of each label, by index; a graph with unnamed outputs can give larger labels."""
        return self.bundle.classes

    @property
    def palette(self) -> Tuple[Tuple[int, int, int], ...]:
        """RGB colour of each class, by index."""
        return self.bundle.palette

    def __call__(self, image: Image) -> Labels:
        """Labels (H, W) uint8, newly allocated, of an RGB image (H, W, C) uint8 of any size.

        The image is only read. Raises InputError for another dtype or shape and after `close`.
        """
        spec = self.bundle.input
        _check_image(image, spec.channels)
        network_image = network_image_from_image(image, spec.hw, spec.rule, spec.pad_value)
        image_hw = (image.shape[0], image.shape[1])
        return self._predictor.predict(network_image, image_hw, spec.rule).image

    def close(self) -> None:
        """Release the graph; harmless when called twice."""
        self._predictor.close()

    def __enter__(self) -> Segmenter:
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self.close()


def _chosen_precision(bundle: Bundle, precision: Optional[str]) -> str:
    there = [name for name in PRECISIONS if name in bundle.files]
    chosen = "fp32" if precision is None else precision
    if chosen not in there:
        raise ConfigError(
            f"precision {chosen!r}",
            expected=f"one that the bundle has: {', '.join(there) or 'it has no ONNX file'}",
            do="choose one of these, or export the model with this precision",
        )
    if precision is None:
        # SegFormer-B0 on two cores: fp32 38 ms, int8 64 ms.
        logger.info("%s: fp32 on ONNX Runtime's CPU provider, where int8 is slower", bundle.name)
    return chosen


def _verified_path(folder: Union[str, os.PathLike[str]], info: FileInfo, verify: bool) -> Path:
    path = bundle_path(folder, info.file)
    if verify:
        found = sha256_of_file(path)
        if found != info.sha256:
            raise BundleError(
                f"{info.file!r} with SHA-256 {found}",
                expected=f"{info.sha256}, as bundle.json says",
                do="copy the folder from where it was made, or export the model again",
            )
    return path


def _warn_about(bundle: Bundle) -> None:
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
    if mode != "whole":
        logger.warning(
            "%s: trained to be run with %r windows, run here on the whole image: expect other "
            "labels than its published scores",
            bundle.name,
            mode,
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
