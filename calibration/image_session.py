"""Tensors of a float graph for one image at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from calibration.onnx_file import fixed_batch, image_input, session_from_model


class ImageSession:
    """ONNX Runtime on the CPU; `outputs` are any tensors of the graph, inner ones too.

    one_block: see `session_from_model`.
    """

    def __init__(
        self, model: onnx.ModelProto, outputs: Sequence[str], *, one_block: bool = True
    ) -> None:
        self.outputs = tuple(outputs)
        self._input_name, _ = image_input(model)
        self._batch = fixed_batch(model)
        self._session = session_from_model(model, extra_outputs=self.outputs, one_block=one_block)

    def values(self, image: NDArray[np.uint8]) -> list[NDArray[Any]]:
        """The outputs for `image`, (H, W, C) uint8; a graph of a fixed batch sees it repeated."""
        batch = np.repeat(image[None], self._batch, axis=0)
        values: list[NDArray[Any]] = self._session.run(self.outputs, {self._input_name: batch})
        return values
