"""PyTorch as a predictor: the row that every exported form is measured against."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from engines.evaluation.evaluate import Prediction
from engines.resize import ResizeRule
from exporter.onnx_graph import ImageToLabels

STRIP_ROWS = 64


class TorchPredictor:
    """The unrewritten model by mmsegmentation's protocol.

    Labels at the image's size come from the logits, resized bilinearly before the argmax.
    """

    has_logits, fixed_batch = True, None  # as graphs tell it

    def __init__(self, model: ImageToLabels, name: str = "PyTorch FP32") -> None:
        self.model, self.name = model, name

    def labels(self, batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """uint8 (N, H, W, C) -> uint8 (N, H, W) at network resolution."""
        return _labels(self._logits(batch))

    def logits(self, batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """uint8 (N, H, W, C) -> float32 (N, K, H, W) at network resolution."""
        logits: np.ndarray[Any, Any] = self._logits(batch).numpy()
        return logits

    def predict(
        self, network_image: np.ndarray[Any, Any], image_hw: tuple[int, int], rule: ResizeRule
    ) -> Prediction:
        logits = self._logits(network_image[None])
        h, w = rule.fitted_hw(image_hw, self.model.spec.input_hw)
        resized = _labels_at(logits[:, :, :h, :w], image_hw)
        return Prediction(network=_labels(logits)[0], image=resized)

    def _logits(self, batch: np.ndarray[Any, Any]) -> Tensor:
        with torch.inference_mode():
            return self.model.logits(torch.from_numpy(batch))


def _labels(logits: Tensor) -> np.ndarray[Any, Any]:
    labels: np.ndarray[Any, Any] = logits.argmax(dim=1).to(torch.uint8).numpy()
    return labels


def _labels_at(logits: Tensor, hw: tuple[int, int]) -> np.ndarray[Any, Any]:
    """argmax of (1, K, h, w) logits resized bilinearly (half-pixel centres) to `hw`.

    In strips of rows, so that 150 classes of a 12-megapixel photo do not take 7 GB.
    """
    source_h = logits.shape[2]
    centres = (torch.arange(hw[0]) + 0.5) * (source_h / hw[0]) - 0.5
    centres = centres.clamp(0, source_h - 1)
    upper = centres.floor().long()
    lower = (upper + 1).clamp(max=source_h - 1)
    weight = (centres - upper).reshape(-1, 1)
    labels = np.empty(hw, dtype=np.uint8)
    with torch.inference_mode():
        for start in range(0, hw[0], STRIP_ROWS):
            rows = slice(start, start + STRIP_ROWS)
            strip = torch.lerp(logits[:, :, upper[rows]], logits[:, :, lower[rows]], weight[rows])
            wide = torch.nn.functional.interpolate(
                strip, (strip.shape[2], hw[1]), mode="bilinear", align_corners=False
            )
            labels[rows] = _labels(wide)[0]
    return labels
