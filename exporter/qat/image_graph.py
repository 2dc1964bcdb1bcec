"""A quantized graph in the form of this project's own: uint8 images in, uint8 labels out."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from calibration.onnx_file import data_inputs
from engines.batches import INPUT_NAME, LOGITS_NAME, OUTPUT_NAME
from engines.errors import GraphError
from exporter.onnx_graph import GraphSpec
from exporter.qat.outside import Shape, logits_shape


def with_batch(model: onnx.ModelProto, batch: tuple[int, int, int]) -> onnx.ModelProto:
    """A copy of a graph with a free batch: fixed where (min, opt, max) are equal."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for value in (*data_inputs(result), *result.graph.output):
        _set_batch(value, batch)
    del result.graph.value_info[:]
    return result


def image_graph_from_planes(model: onnx.ModelProto, spec: GraphSpec) -> onnx.ModelProto:
    """The network behind `ImageToLabels`' preprocessing and before its argmax, as a copy.

    Normalisation is (x - mean) * (1 / std); logits are resized bilinearly to the input. The graph
    keeps its own opset, whatever `spec` says. Raises GraphError where the logits do not fit.
    """
    result = with_batch(model, spec.batch)
    height, width = spec.input_hw
    planes, logits = data_inputs(result)[0], result.graph.output[0]
    for axis, side in ((2, height), (3, width)):
        planes.type.tensor_type.shape.dim[axis].dim_value = side
    shape = logits_shape(result, logits.name)
    kinds = (planes.type.tensor_type.elem_type, logits.type.tensor_type.elem_type)
    build = _Nodes(result.graph)
    inner = {name: build.rename(name) for name in (INPUT_NAME, OUTPUT_NAME, LOGITS_NAME)}
    inner_in, inner_out = (inner.get(value.name, value.name) for value in (planes, logits))
    before = build.preprocessing(inner_in, spec, kinds[0])
    after = build.labels(inner_out, shape, spec, kinds[1])
    nodes = [*before, *result.graph.node, *after]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    graph = result.graph
    del graph.node[:], graph.input[:], graph.output[:]
    graph.node.extend(copies)
    batch = "batch" if spec.dynamic_batch else spec.batch[0]
    image = (batch, height, width, len(spec.mean))
    graph.input.append(helper.make_tensor_value_info(INPUT_NAME, TensorProto.UINT8, image))
    kinds_of = {
        OUTPUT_NAME: (TensorProto.UINT8, (batch, height, width)),
        LOGITS_NAME: (TensorProto.FLOAT, (batch, shape[1], height, width)),
    }
    graph.output.extend(
        helper.make_tensor_value_info(name, *kinds_of[name]) for name in spec.output_names
    )
    return result


class _Nodes:
    """Makes nodes and constants under names that the graph does not use yet."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._tensors = {name for node in graph.node for name in (*node.input, *node.output)}
        self._tensors |= {tensor.name for tensor in graph.initializer}
        self._tensors |= {value.name for value in (*graph.input, *graph.output)}
        self._tensors |= {INPUT_NAME, OUTPUT_NAME, LOGITS_NAME}
        self._names = {node.name for node in graph.node}

    def rename(self, tensor: str) -> str:
        """A tensor of the network makes room for a new input or output."""
        inner = self._free(f"network_{tensor}", self._tensors)
        for node in self._graph.node:
            for names in (node.input, node.output):
                for index, name in enumerate(names):
                    if name == tensor:
                        names[index] = inner
        for constant in self._graph.initializer:
            if constant.name == tensor:
                constant.name = inner
        return inner

    def preprocessing(self, target: str, spec: GraphSpec, kind: int) -> list[onnx.NodeProto]:
        mean = np.array(spec.mean, np.float32).reshape(1, -1, 1, 1)
        factor = np.float32(1.0) / np.array(spec.std, np.float32).reshape(1, -1, 1, 1)
        # Cast first: TensorRT lets nothing but a Cast read a UINT8 tensor.
        nodes = [self._node("Cast", [INPUT_NAME], to=TensorProto.FLOAT)]
        nodes.append(self._node("Transpose", [nodes[-1].output[0]], perm=[0, 3, 1, 2]))
        for op_type, constant in (("Sub", mean), ("Mul", factor)):
            nodes.append(
                self._node(op_type, [nodes[-1].output[0], self._constant(op_type, constant)])
            )
        if kind != TensorProto.FLOAT:
            nodes.append(self._node("Cast", [nodes[-1].output[0]], to=kind))
        nodes[-1].output[0] = target
        return nodes

    def labels(self, logits: str, shape: Shape, spec: GraphSpec, kind: int) -> list[onnx.NodeProto]:
        """`shape` is that of `logits`: (N, K, h, w)."""
        nodes = []
        if kind != TensorProto.FLOAT:
            nodes.append(self._node("Cast", [logits], to=TensorProto.FLOAT))
        if shape[2:] != spec.input_hw:
            nodes.append(self._resize(nodes[-1].output[0] if nodes else logits, shape, spec))
        if LOGITS_NAME in spec.output_names and not nodes:
            nodes.append(self._node("Identity", [logits]))
        if LOGITS_NAME in spec.output_names:
            nodes[-1].output[0] = LOGITS_NAME
        if OUTPUT_NAME in spec.output_names:
            full = nodes[-1].output[0] if nodes else logits
            nodes.append(self._node("ArgMax", [full], axis=1, keepdims=0))
            # Over float32: TensorRT's DataType, up to 10, documents no conversion from INT32.
            nodes.append(self._node("Cast", [nodes[-1].output[0]], to=TensorProto.FLOAT))
            nodes.append(self._node("Cast", [nodes[-1].output[0]], to=TensorProto.UINT8))
            nodes[-1].output[0] = OUTPUT_NAME
        return nodes

    def _resize(self, logits: str, shape: Shape, spec: GraphSpec) -> onnx.NodeProto:
        height, width = spec.input_hw
        if height % shape[2] == 0 and width % shape[3] == 0:
            scales = np.array([1, 1, height // shape[2], width // shape[3]], np.float32)
            inputs = [logits, "", self._constant("Resize", scales)]
        elif spec.dynamic_batch:  # sizes would fix the batch, and scales be rounded
            raise GraphError(
                f"logits of {shape[2]}x{shape[3]} for an input of {height}x{width}",
                expected="a whole factor between them, for a free batch size",
                do="leave --dynamic-batch out",
            )
        else:
            sizes = np.array([*shape[:2], height, width], np.int64)
            inputs = [logits, "", "", self._constant("Resize", sizes)]
        mode = "align_corners" if spec.align_corners else "half_pixel"
        return self._node("Resize", inputs, mode="linear", coordinate_transformation_mode=mode)

    def _node(self, op_type: str, inputs: list[str], **attributes: Any) -> onnx.NodeProto:
        name = self._free(f"/{op_type}", self._names)
        output = self._free(f"{name}_output_0", self._tensors)
        return helper.make_node(op_type, inputs, [output], name, **attributes)

    def _constant(self, op_type: str, values: NDArray[Any]) -> str:
        name = self._free(f"/{op_type}_constant", self._tensors)
        self._graph.initializer.append(numpy_helper.from_array(values, name))
        return name

    def _free(self, name: str, taken: set[str]) -> str:
        while name in taken:
            name += "_"
        taken.add(name)
        return name


def _set_batch(value: onnx.ValueInfoProto, batch: tuple[int, int, int]) -> None:
    dim = value.type.tensor_type.shape.dim
    if len(dim) and dim[0].dim_value < 1:
        if batch[0] == batch[2]:
            dim[0].dim_value = batch[0]
        else:
            dim[0].dim_param = "batch"
