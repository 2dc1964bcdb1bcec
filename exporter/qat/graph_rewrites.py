"""Rewrites of a Q/DQ graph. Each returns a new model, and none of them changes a scale."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from calibration.onnx_file import node_label
from calibration.wiring import attribute, wiring_of
from exporter.qat.quantizers import DEQUANTIZE, QUANTIZE

FLOAT, FLOAT16 = int(TensorProto.FLOAT), int(TensorProto.FLOAT16)
_NUMBERS = (
    *(FLOAT, FLOAT16, TensorProto.DOUBLE, TensorProto.INT64, TensorProto.INT32),
    *(TensorProto.INT16, TensorProto.UINT16, TensorProto.INT8, TensorProto.UINT8),
)


@dataclass(frozen=True)
class TensorRtRecord:
    """biases: quantized biases that are floating point now. weights: those that were int8."""

    biases: int
    weights: int


def with_constants_in_place(model: onnx.ModelProto) -> onnx.ModelProto:
    """Every Identity and Cast of a constant is that constant: torch writes zero points so."""
    result = _copy(model)
    wiring = wiring_of(result.graph)
    constants, kept = dict(wiring.constants), []
    renamed: dict[str, str] = {}
    for node in result.graph.node:
        _rename_inputs(node, renamed)
        tensor = constants.get(node.input[0]) if node.input else None
        if tensor is None or tensor.data_type not in _NUMBERS or node.output[0] in wiring.outputs:
            kept.append(node)
        elif node.op_type == "Identity":
            renamed[node.output[0]] = node.input[0]
        elif node.op_type == "Cast" and attribute(node, "to", 0) in _NUMBERS:
            kind = helper.tensor_dtype_to_np_dtype(cast(int, attribute(node, "to", 0)))
            with np.errstate(all="ignore"):  # what does not fit is the file's own business
                values = numpy_helper.to_array(tensor).astype(kind)
            converted = numpy_helper.from_array(values, node.output[0])
            result.graph.initializer.append(converted)
            constants[node.output[0]] = converted
        else:
            kept.append(node)
    return _with_nodes(result, kept)


def for_tensorrt(model: onnx.ModelProto) -> tuple[onnx.ModelProto, TensorRtRecord]:
    """A symmetric Q/DQ graph in the form that every TensorRT parses; the answer stays, bit for bit.

    Biases stored as int32 become float constants: a DequantizeLinear of int32 is refused by
    TensorRT-RTX 1.7 ("input has type Int32") as by 8.5 (onnxruntime issue 14229). Weights stored as
    int8 become float constants with a pair behind them, since the parser of TensorRT 8 takes no
    int8 constant: w = q * scale quantizes to q again.
    """
    result = _copy(model)
    constants = wiring_of(result.graph).constants
    taken = _names(result.graph)
    nodes, biases, weights = [], 0, 0
    for node in result.graph.node:
        stored = constants.get(node.input[0]) if node.op_type == DEQUANTIZE else None
        if stored is None:
            nodes.append(node)
            continue
        values = _dequantized(node, constants)
        if stored.data_type == TensorProto.INT32:
            result.graph.initializer.append(numpy_helper.from_array(values, node.output[0]))
            biases += 1
            continue
        name = _free(f"{node.input[0]}_float", taken)
        result.graph.initializer.append(numpy_helper.from_array(values, name))
        if len(node.input) < 3 or not node.input[2]:
            scale = numpy_helper.to_array(constants[node.input[1]])
            zeros = numpy_helper.from_array(
                np.zeros(scale.shape, np.int8), _free(f"{name}_zero_point", taken)
            )
            result.graph.initializer.append(zeros)
            node.input[:] = [*node.input[:2], zeros.name]
        output = _free(f"{name}_{QUANTIZE}", taken)
        quantize = helper.make_node(QUANTIZE, [name, *node.input[1:]], [output], name=output)
        quantize.attribute.extend(item for item in node.attribute if item.name == "axis")
        node.input[0] = output
        nodes += [quantize, node]
        weights += 1
    return _with_nodes(result, nodes), TensorRtRecord(biases, weights)


def without_pairs(model: onnx.ModelProto) -> onnx.ModelProto:
    """The floating-point graph: every pair is left out, every stored integer is its real value.

    Weights that are stored in floating point, behind a pair, are what training left, unrounded.
    """
    result = _copy(model)
    wiring = wiring_of(result.graph)
    renamed: dict[str, str] = {}
    nodes = []
    for node in result.graph.node:
        _rename_inputs(node, renamed)
        if node.op_type == QUANTIZE:
            renamed[node.output[0]] = node.input[0]
        elif node.op_type == DEQUANTIZE:
            stored = wiring.constants.get(node.input[0])
            if stored is not None and _is_integer(stored):
                values = _dequantized(node, wiring.constants)
                result.graph.initializer.append(numpy_helper.from_array(values, node.output[0]))
            elif node.output[0] in wiring.outputs:
                nodes.append(
                    helper.make_node("Identity", [node.input[0]], [node.output[0]], node.name)
                )
            else:
                renamed[node.output[0]] = node.input[0]
        else:
            nodes.append(node)
    return _with_nodes(result, nodes)


def in_float32(model: onnx.ModelProto) -> onnx.ModelProto:
    """Every float16 tensor as float32; each float16 is one, so that no constant changes."""
    result = _copy(model)
    for tensor in result.graph.initializer:
        _widen(tensor)
    for node in result.graph.node:
        for item in node.attribute:
            if item.type == onnx.AttributeProto.TENSOR:
                _widen(item.t)
            elif item.name in ("to", "dtype", "output_dtype") and item.i == FLOAT16:
                item.i = FLOAT
    for value in (*result.graph.input, *result.graph.output):
        if value.type.tensor_type.elem_type == FLOAT16:
            value.type.tensor_type.elem_type = FLOAT
    del result.graph.value_info[:]
    return result


def has_float16(model: onnx.ModelProto) -> bool:
    """Whether anything is computed in float16."""
    stored = any(tensor.data_type == FLOAT16 for tensor in model.graph.initializer)
    return stored or any(
        item.name == "to" and item.i == FLOAT16
        for node in model.graph.node
        for item in node.attribute
    )


def layer_norm_parts(model: onnx.ModelProto) -> tuple[str, ...]:
    """Names of the nodes of each LayerNorm that fell apart, as it does below opset 17.

    Its square overflows FP16, so these stay in FP32. Found by the chain from the square on: Pow or
    Mul, ReduceMean, Add, Sqrt, Div.
    """
    wiring = wiring_of(model.graph)
    names: dict[str, None] = {}
    for node in model.graph.node:
        square = node.op_type == "Pow" or (node.op_type == "Mul" and node.input[0] == node.input[1])
        if not square:
            continue
        chain = [node]
        for wanted in ("ReduceMean", "Add", "Sqrt", "Div"):
            readers = wiring.consumers.get(chain[-1].output[0], [])
            following = next((reader for reader in readers if reader.op_type == wanted), None)
            if following is None:
                break
            chain.append(following)
        else:
            centre = wiring.producers.get(node.input[0])
            before = [] if centre is None else [centre]
            if centre is not None and len(centre.input) > 1 and centre.input[1] in wiring.producers:
                before.insert(0, wiring.producers[centre.input[1]])
            names.update((node_label(part), None) for part in (*before, *chain))
    return tuple(names)


def _dequantized(
    node: onnx.NodeProto, constants: Mapping[str, TensorProto]
) -> NDArray[np.floating[Any]]:
    """(q - zero point) * scale, rounded once, as ONNX defines it."""
    values = numpy_helper.to_array(constants[node.input[0]])
    scale = numpy_helper.to_array(constants[node.input[1]])
    zero_point = np.zeros(scale.shape, values.dtype)
    if len(node.input) > 2 and node.input[2]:
        zero_point = numpy_helper.to_array(constants[node.input[2]])
    if scale.size > 1:
        axis = next((item.i for item in node.attribute if item.name == "axis"), 1)
        shape = [1] * values.ndim
        shape[axis] = -1
        scale, zero_point = scale.reshape(shape), zero_point.reshape(shape)
    else:
        scale, zero_point = scale.reshape(()), zero_point.reshape(())
    difference = values.astype(np.int64) - zero_point.astype(np.int64)
    return np.asarray(difference.astype(scale.dtype) * scale)


def _is_integer(tensor: TensorProto) -> bool:
    return numpy_helper.to_array(tensor).dtype.kind in "iu"


def _widen(tensor: TensorProto) -> None:
    if tensor.data_type == FLOAT16:
        values = numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def _rename_inputs(node: onnx.NodeProto, renamed: Mapping[str, str]) -> None:
    for index, name in enumerate(node.input):
        if name in renamed:
            node.input[index] = renamed[name]


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    result = onnx.ModelProto()
    result.CopyFrom(model)
    return result


def _names(graph: onnx.GraphProto) -> set[str]:
    names = {name for node in graph.node for name in (*node.input, *node.output)}
    return names | {tensor.name for tensor in graph.initializer}


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _with_nodes(model: onnx.ModelProto, nodes: Iterable[onnx.NodeProto]) -> onnx.ModelProto:
    """`model` with these nodes, and the initializers that they or the outputs read.

    Older files list their initializers as inputs too: those of dropped ones go with them.
    """
    graph = model.graph
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    read = {name for node in copies for name in node.input}
    read.update(value.name for value in graph.output)
    kept = [
        TensorProto.FromString(tensor.SerializeToString())
        for tensor in graph.initializer
        if tensor.name in read
    ]
    dropped = {tensor.name for tensor in graph.initializer if tensor.name not in read}
    inputs = [
        onnx.ValueInfoProto.FromString(value.SerializeToString())
        for value in graph.input
        if value.name not in dropped
    ]
    del graph.initializer[:], graph.input[:]
    graph.initializer.extend(kept)
    graph.input.extend(inputs)
    del graph.value_info[:]  # of tensors that are gone
    return model
