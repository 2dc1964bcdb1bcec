"""Conv, MatMul and Gemm as a product of rows and a matrix, so that one formula fits all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from calibration.placement import QuantizedNode
from calibration.wiring import Wiring, attribute, bias_addition, wiring_of

Matrix = NDArray[np.float32]  # (groups, outputs, inputs); one group but for grouped convolutions
Rows = NDArray[np.float32]  # (groups, rows, inputs): what one position of the output is made from


@dataclass(frozen=True)
class MatrixLayer:
    """One INT8 layer with a weight: at each position of its output, matrix @ row + bias.

    has_bias: whether there is a constant bias to shift, or (Conv, Gemm) a place for one.
    """

    item: QuantizedNode
    node: onnx.NodeProto
    weight: NDArray[np.float32]
    has_bias: bool

    @property
    def matrix(self) -> Matrix:
        if self.node.op_type != "Conv":
            return (self.weight.T if self.item.axis == 1 else self.weight)[None]
        groups = cast(int, attribute(self.node, "group", 1))
        return self.weight.reshape(groups, len(self.weight) // groups, -1)

    def weight_from_matrix(self, matrix: NDArray[np.float64]) -> NDArray[np.float32]:
        """In the shape of the layer's own weight."""
        if self.node.op_type != "Conv":
            matrix = matrix[0].T if self.item.axis == 1 else matrix[0]
        return np.ascontiguousarray(matrix.reshape(self.weight.shape), dtype=np.float32)

    def rows(self, activation: NDArray[np.float32], at_most: int, rng: np.random.Generator) -> Rows:
        """Rows at `at_most` random positions of the output, or at all of them if they are fewer."""
        if self.node.op_type != "Conv":
            flat = activation.reshape(-1, activation.shape[-1])
            return flat[_chosen(len(flat), at_most, rng)][None]
        views = _windows(self.node, activation, self.weight.shape)  # (N, H, W, C, kh, kw)
        count = int(np.prod(views.shape[:3]))
        places = np.unravel_index(_chosen(count, at_most, rng), views.shape[:3])
        groups, inputs = self.matrix.shape[0], self.matrix.shape[2]
        return views[places].reshape(-1, groups, inputs).transpose(1, 0, 2)


def matrix_layers(
    model: onnx.ModelProto, placed: tuple[QuantizedNode, ...]
) -> tuple[MatrixLayer, ...]:
    """Those of `placed` that are a product of rows and a matrix.

    Left out: products and additions of two activations, convolutions over one or three axes or
    with auto_pad, a Gemm that transposes its activation.
    """
    wiring = wiring_of(model.graph)
    layers = []
    for item in placed:
        node = wiring.producers[item.output]
        if item.weight is None or not _is_plain(node, wiring):
            continue
        weight = numpy_helper.to_array(wiring.constants[item.weight])
        layers.append(MatrixLayer(item, node, weight, _has_bias(node, wiring)))
    return tuple(layers)


def _is_plain(node: onnx.NodeProto, wiring: Wiring) -> bool:
    if node.op_type == "Conv":
        auto_pad = attribute(node, "auto_pad", 0) in (0, b"NOTSET")
        return auto_pad and len(wiring.constants[node.input[1]].dims) == 4
    scaled = any(attribute(node, name, 1) != 1 for name in ("alpha", "beta"))
    return attribute(node, "transA", 0) == 0 and not scaled


def _has_bias(node: onnx.NodeProto, wiring: Wiring) -> bool:
    if node.op_type != "MatMul":
        return len(node.input) < 3 or not node.input[2] or node.input[2] in wiring.constants
    return bias_addition(node.output[0], wiring) is not None


def _chosen(count: int, at_most: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Random, for a fixed step would fall on the same columns of every row of an image."""
    return np.arange(count) if count <= at_most else rng.integers(count, size=at_most)


def _windows(
    node: onnx.NodeProto, values: NDArray[np.float32], weight_shape: tuple[int, ...]
) -> NDArray[np.float32]:
    """(N, H, W, C, kh, kw): a view of what each output position of a convolution reads."""
    top, left, bottom, right = cast(list[int], attribute(node, "pads", 0) or [0] * 4)
    stride_y, stride_x = cast(list[int], attribute(node, "strides", 0) or [1, 1])
    step_y, step_x = cast(list[int], attribute(node, "dilations", 0) or [1, 1])
    if top or left or bottom or right:
        values = np.pad(values, ((0, 0), (0, 0), (top, bottom), (left, right)))
    reach = (weight_shape[2] - 1) * step_y + 1, (weight_shape[3] - 1) * step_x + 1
    views = np.lib.stride_tricks.sliding_window_view(values, reach, axis=(2, 3))
    views = views[:, :, ::stride_y, ::stride_x, ::step_y, ::step_x]
    return views.transpose(0, 2, 3, 1, 4, 5)
