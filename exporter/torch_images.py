"""PyTorch's logits of images of any size, whole or in windows: mmsegmentation's inference."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from engines.errors import InputError
from engines.evaluation.resized_logits import Logits
from engines.evaluation.sliding import Windows, logit_bands
from exporter.architectures.layers import resize_bilinear
from exporter.onnx_graph import ImageToLabels


class TorchImages:
    """What `ImagePredictor` takes: the unrewritten model at whatever size an image has.

    With `windows` an image is cut as `EncoderDecoder.slide_inference` does it, where a side that is
    shorter than the window's makes the window smaller. Sides are padded up to a multiple of `pad`
    after normalisation, with 0, right and bottom, and the logits lose that part again.
    """

    def __init__(
        self,
        model: ImageToLabels,
        windows: Windows | None = None,
        *,
        pad: int = 1,
        name: str = "PyTorch FP32",
    ) -> None:
        """Of `model` the network, its normalisation and `align_corners` count, not its size."""
        self.name = name
        self._model, self._windows, self._pad = model, windows, pad
        self._mean = np.asarray(model.spec.mean, np.float32)
        self._scale = np.float32(1) / np.asarray(model.spec.std, np.float32)

    def output_hw(self, image_hw: tuple[int, int]) -> tuple[int, int]:
        return image_hw

    def calls(self, image_hw: tuple[int, int]) -> int:
        hw = self._padded_hw(image_hw)
        return 1 if self._windows is None else self._windows.within(hw).count(hw)

    def bands(self, image: NDArray[np.uint8]) -> Iterator[Logits]:
        height, width = image.shape[:2]
        hw = self._padded_hw((height, width))
        x = np.zeros((*hw, image.shape[2]), np.float32)
        x[:height, :width] = (image - self._mean) * self._scale
        windows = Windows(hw, hw) if self._windows is None else self._windows.within(hw)
        done = 0
        for band in logit_bands(self._logits, x, windows):  # type: ignore[arg-type]
            if done < height:
                yield band[:, : height - done, :width]
            done += band.shape[1]

    def _padded_hw(self, image_hw: tuple[int, int]) -> tuple[int, int]:
        height, width = (-(-side // self._pad) * self._pad for side in image_hw)
        return height, width

    def _logits(self, batch: NDArray[Any]) -> Logits:
        """(N, h, w, C) normalised float32 -> (N, K, h, w)."""
        x = torch.from_numpy(batch).permute(0, 3, 1, 2).contiguous()
        hw = (batch.shape[1], batch.shape[2])
        try:
            with torch.inference_mode():
                logits = self._model.net(x)
                logits = resize_bilinear(logits, hw, self._model.spec.align_corners)
        except (RuntimeError, ValueError) as error:
            # A kernel larger than its map, a norm over a single value, or no memory left.
            reason = (str(error).strip() or "no reason given").splitlines()[0]
            raise InputError(
                f"a part of an image of {hw[0]}x{hw[1]}, at which the network fails: {reason}",
                expected="a size that the network can be run at, with enough memory",
                do="choose another --crop or --scale, or leave such images out",
            ) from error
        found: Logits = logits.numpy()
        return found
