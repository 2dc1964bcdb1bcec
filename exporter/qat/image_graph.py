"""A quantized graph in the form of this project's own: uint8 images in, uint8 labels out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from calibration.onnx_file import data_inputs, logits_tensor, session_from_model
from calibration.wiring import wiring_of
from engines.batches import INPUT_NAME, LOGITS_NAME, OUTPUT_NAME
from engines.errors import ConfigError, GraphError
from exporter.onnx_graph import GraphSpec

Form = Literal["images", "planes"]
Shape = tuple[int, ...]

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)
_EXPECTED = (
    f"a graph as this project exports it ({INPUT_NAME}: uint8 (N, H, W, C); {OUTPUT_NAME}: uint8 "
    f"(N, H, W), {LOGITS_NAME}: float32 (N, K, H, W), or both), or a network by itself (one float "
    "(N, C, H, W) in, one float (N, K, h, w) out)"
)


@dataclass(frozen=True)
class Outside:
    """What a graph looks like from outside; 0 stands for a side that is free.

    form: "images" for this project's own form, "planes" for a network without preprocessing.
    hw and channels are those of the input.
    """

    form: Form
    batch: int
    hw: tuple[int, int]
    channels: int
    outputs: tuple[str, ...]


def outside_of(model: onnx.ModelProto) -> Outside:
    """Raises GraphError for a graph of neither form."""
    inputs, outputs = data_inputs(model), list(model.graph.output)
    names = tuple(value.name for value in outputs)
    shapes = [_shape(value) for value in inputs]
    if len(inputs) == 1 and len(shapes[0]) == 4:
        kind = inputs[0].type.tensor_type.elem_type
        if kind == TensorProto.UINT8:
            own = inputs[0].name == INPUT_NAME and set(names) <= {OUTPUT_NAME, LOGITS_NAME}
            n, h, w, c = shapes[0]
            if own and names and min(h, w, c) > 0:
                return Outside("images", n, (h, w), c, names)
        elif kind in _FLOATS and len(outputs) == 1 and _is_float_map(outputs[0]):
            n, c, h, w = shapes[0]
            if c > 0:
                return Outside("planes", n, (h, w), c, names)
    raise GraphError(
        f"an ONNX file with the inputs {_described(inputs)} and the outputs {_described(outputs)}",
        expected=_EXPECTED,
        do="export the network's logits, before any softmax or argmax of the tool",
    )


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
    shape = logits_shape(result)
    kinds = (planes.type.tensor_type.elem_type, logits.type.tensor_type.elem_type)
    build = _Nodes(result.graph)
    inner_in, inner_out = build.rename(planes.name), build.rename(logits.name)
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


def logits_shape(model: onnx.ModelProto) -> Shape:
    """(N, K, h, w) of what argmax reads, or of the only output, as ONNX Runtime computes it.

    Raises GraphError for another rank, and for a graph that does not run at its size.
    """
    value = data_inputs(model)[0]
    kind = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    shape = [side or 1 for side in _shape(value)]
    known = {output.name for output in model.graph.output}
    name = logits_tensor(model)
    if name not in known and not any(name in node.output for node in model.graph.node):
        name = model.graph.output[0].name
    session = session_from_model(model, extra_outputs=(name,))
    try:
        found: Shape = session.run([name], {value.name: np.zeros(shape, kind)})[0].shape
    except Exception as error:  # each of ONNX Runtime's errors derives from Exception directly
        raise GraphError(
            f"a graph that does not run at {shape} ({error})",
            expected="a graph that ONNX Runtime runs at its own size",
            do="export it again; with free sides, choose another --size",
        ) from error
    if len(found) != 4:
        raise GraphError(
            f"logits of the shape {found} ({name})", expected="(N, K, h, w)", do=_EXPECTED
        )
    if found[1] > 255:  # 255 is the ignore label of the metric
        raise ConfigError(
            f"{found[1]} outputs",
            expected="at most 255, since labels are uint8 and 255 means ignore",
            do="export a network with fewer classes",
        )
    return found


def normalisation_in_graph(
    model: onnx.ModelProto, channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and std that an "images" graph applies, if it does so as this project's exporter.

    The graph itself needs them from nobody; a letterbox is padded with the mean.
    """
    wiring = wiring_of(model.graph)
    name, values = INPUT_NAME, dict[str, NDArray[Any]]()
    for wanted in ("Cast", "Transpose", "Sub", "Mul"):
        readers = wiring.consumers.get(name, [])
        if len(readers) != 1 or readers[0].op_type != wanted:
            return None
        if wanted in ("Sub", "Mul"):
            tensor = wiring.constants.get(readers[0].input[1])
            if tensor is None:
                return None
            values[wanted] = numpy_helper.to_array(tensor).astype(np.float64).reshape(-1)
        name = readers[0].output[0]
    mean, factor = values["Sub"], values["Mul"]
    if not mean.size == factor.size == channels or not (factor > 0).all():
        return None
    return tuple(mean.tolist()), tuple((1.0 / factor).tolist())


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
        """The network's own input and output make room for the new ones."""
        if tensor not in (INPUT_NAME, OUTPUT_NAME, LOGITS_NAME):
            return tensor
        inner = self._free(f"network_{tensor}", self._tensors)
        for node in self._graph.node:
            for names in (node.input, node.output):
                for index, name in enumerate(names):
                    if name == tensor:
                        names[index] = inner
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


def _shape(value: onnx.ValueInfoProto) -> Shape:
    return tuple(max(0, dim.dim_value) for dim in value.type.tensor_type.shape.dim)


def _is_float_map(value: onnx.ValueInfoProto) -> bool:
    kind = value.type.tensor_type
    return kind.elem_type in _FLOATS and len(kind.shape.dim) in (0, 4)


def _described(values: list[onnx.ValueInfoProto]) -> str:
    names = TensorProto.DataType.Name
    parts = [
        f"{value.name} {names(value.type.tensor_type.elem_type).lower()} {list(_shape(value))}"
        for value in values[:4]
    ]
    return ", ".join(parts) or "none"
