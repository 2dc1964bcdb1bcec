"""Smallest and largest value of inner tensors, without copying the tensors out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from calibration.onnx_file import image_input, session_from_model


class ExtremesSession:
    """A float32 graph in which three numbers per watched tensor are all that leaves ONNX Runtime.

    The third, the sum, is there to find NaN: ONNX Runtime 1.31's ReduceMax and ReduceMin missed it
    in half of the positions tried, its ReduceSum in none.
    """

    def __init__(self, model: onnx.ModelProto, tensors: Sequence[str]) -> None:
        self._input_name, _ = image_input(model)
        watched = onnx.ModelProto()
        watched.CopyFrom(model)
        self._outputs = []
        for index, tensor in enumerate(tensors):
            for op in ("ReduceMin", "ReduceMax", "ReduceSum"):
                output = f"extremes_{op}_{index}"
                watched.graph.node.append(helper.make_node(op, [tensor], [output], keepdims=0))
                self._outputs.append(output)
        self._session = session_from_model(watched, extra_outputs=tuple(self._outputs))

    def extremes(self, batch: NDArray[np.uint8]) -> NDArray[np.float64]:
        """(tensors, 2): min and max over the batch; both NaN where any value is not finite."""
        values = self._session.run(self._outputs, {self._input_name: batch})
        rows = np.array(values, dtype=np.float64).reshape(-1, 3)
        rows[~np.isfinite(rows).all(axis=1)] = np.nan
        return rows[:, :2]
