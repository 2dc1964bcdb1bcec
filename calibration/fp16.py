"""FP16 written into the graph: every float32 tensor becomes float16, in one pass over the nodes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from calibration.float16_range import check_float16_range, clamped_to_float16
from calibration.graph_edit import FreeNames, drop_unread_initializers
from calibration.onnx_file import (
    data_inputs,
    model_from_onnx_file,
    node_label,
    opset_of,
    write_checked_onnx,
)
from engines.errors import GraphError

SMALLEST = np.float16(2.0**-24)
FLOAT, FLOAT16 = int(TensorProto.FLOAT), int(TensorProto.FLOAT16)
_SUFFIX = {FLOAT: "float32", FLOAT16: "float16"}
# Inputs that stay float32 although the operator set would allow float16: runtimes expect it.
_FLOAT32_INPUTS = frozenset({("Resize", "roi"), ("Resize", "scales")})
# Attributes that name the type of an output.
_TYPE_ATTRIBUTES = frozenset({"to", "dtype"})
_PAIR = frozenset({"QuantizeLinear", "DequantizeLinear"})


@dataclass(frozen=True)
class Fp16Record:
    """fp32_nodes: names of the nodes held in float32 on request.

    casts: Cast nodes added. clamped: constant -> how many of its values lay beyond +-65504 and
    were moved there.
    """

    fp32_nodes: tuple[str, ...]
    casts: int
    clamped: Mapping[str, int]


def fp16_onnx_from_onnx(
    onnx_path: str | Path, out_path: str | Path, *, fp32_nodes: tuple[str, ...] = ()
) -> Fp16Record:
    """Write `onnx_path` in float16 to `out_path`; inputs and outputs keep their types.

    fp32_nodes: globs over node names that stay in float32, each of which must match one, and with
        them the Q/DQ pairs that they alone read; a Cast stands wherever such a node meets float16.
        `calibration.float16_risk` finds the nodes whose values float16 may not hold.
    What an operator takes as float32 only (Resize's scales; Q/DQ pairs below opset 19) stays so.
    Raises GraphError for unknown operators and for tensors beyond +-65504, and leaves no file then.
    """
    original = model_from_onnx_file(onnx_path)
    kept = _nodes_matching(original.graph, fp32_nodes)
    float32 = onnx.ModelProto()
    float32.CopyFrom(original)
    initializers_from_constants(float32.graph)
    model = onnx.ModelProto()
    model.CopyFrom(float32)
    converter = _Converter(model, kept)
    record = converter.convert()
    check_float16_range(float32, converter.float16_tensors())
    write_checked_onnx(model, out_path, like=original)
    return record


def _nodes_matching(graph: onnx.GraphProto, globs: tuple[str, ...]) -> frozenset[str]:
    labels = [node_label(node) for node in graph.node]
    # Whole names first: thousands of them, as below opset 17, would be slow as patterns.
    named = frozenset(globs).intersection(labels)
    patterns = [glob for glob in globs if glob not in named]
    for glob in patterns:
        if not any(fnmatchcase(label, glob) for label in labels):
            raise GraphError(
                f"the pattern {glob!r}, which matches no node of this graph",
                expected=f"a pattern over node names such as {', '.join(labels[:3])}",
                do="correct the pattern",
            )
    matching = (x for x in labels if any(fnmatchcase(x, glob) for glob in patterns))
    return named.union(matching)


def _held_nodes(graph: onnx.GraphProto, kept: frozenset[str]) -> list[bool]:
    """For each node whether it stays float32: those named, and the Q/DQ pairs they alone read.

    Such a pair passes on a value that float16 need not hold. Nor may a Cast stand between a pair
    and its layer, which TensorRT then no longer runs in INT8; so a pair whose readers differ goes
    with those in float16.
    """
    held: list[bool] = []
    readers: defaultdict[str, list[bool]] = defaultdict(list)  # tensor -> is each reader held
    for node in reversed(graph.node):
        read = [reader for name in node.output for reader in readers[name]]
        pair = node.op_type in _PAIR and bool(read) and all(read)
        held.append(pair or node_label(node) in kept)
        for name in node.input:
            readers[name].append(held[-1])
    return held[::-1]


def initializers_from_constants(graph: onnx.GraphProto) -> None:
    """Float32 Constant nodes as initializers, which have one place to convert."""
    kept = []
    for node in graph.node:
        array = None
        if node.op_type == "Constant":
            value = helper.get_attribute_value(node.attribute[0])
            if node.attribute[0].name == "value" and value.data_type == FLOAT:
                array = numpy_helper.to_array(value)
            elif node.attribute[0].name in ("value_float", "value_floats"):
                array = np.array(value, dtype=np.float32)
        if array is None:
            kept.append(node)
        else:
            graph.initializer.append(numpy_helper.from_array(array, node.output[0]))
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
    del graph.node[:]
    graph.node.extend(copies)


class _Converter:
    """Rewrites a graph of float32 tensors; `_types` holds the new type of each of those."""

    def __init__(self, model: onnx.ModelProto, kept: frozenset[str]) -> None:
        self._graph, self._kept, self._opset = model.graph, kept, opset_of(model)
        self._float32 = float32_tensors(model)
        self._constants = {t.name: t for t in model.graph.initializer if t.data_type == FLOAT}
        self._types = dict.fromkeys(self._constants, FLOAT)
        self._types.update((v.name, FLOAT) for v in data_inputs(model) if v.name in self._float32)
        self._nodes: list[onnx.NodeProto] = []
        self._converted: dict[tuple[str, int], str] = {}  # (tensor, type) -> its name as that type
        self._casts = 0
        self._clamped: dict[str, int] = {}
        self._free = FreeNames(model.graph)

    def convert(self) -> Fp16Record:
        graph = self._graph
        for node, held in zip(graph.node, _held_nodes(graph, self._kept), strict=True):
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            self._convert_node(copy, held)
        self._keep_output_types()
        del graph.node[:]
        graph.node.extend(self._nodes)
        drop_unread_initializers(graph)
        del graph.value_info[:]  # the old types
        return Fp16Record(
            fp32_nodes=tuple(node_label(n) for n in graph.node if node_label(n) in self._kept),
            casts=self._casts,
            clamped=self._clamped,
        )

    def float16_tensors(self) -> tuple[str, ...]:
        """Names, in the original graph, of the computed tensors that are float16 now."""
        return tuple(
            name
            for name, kind in self._types.items()
            if kind == FLOAT16 and name not in self._constants
        )

    def _convert_node(self, node: onnx.NodeProto, held: bool) -> None:
        schema = self._schema(node)
        for index, name in enumerate(node.input):
            if name in self._float32:
                formal = schema.inputs[min(index, len(schema.inputs) - 1)]
                stays = held or (node.op_type, formal.name) in _FLOAT32_INPUTS
                wanted = FLOAT if stays else _allowed_type(schema, formal)
                is_scale = node.op_type in _PAIR and index == 1
                node.input[index] = self._as_type(name, wanted, keep_positive=is_scale)
        for index, name in enumerate(node.output):
            if name in self._float32:
                formal = schema.outputs[min(index, len(schema.outputs) - 1)]
                self._types[name] = FLOAT if held else _allowed_type(schema, formal)
                if self._types[name] == FLOAT16:
                    _name_type(node)
        self._nodes.append(node)

    def _schema(self, node: onnx.NodeProto) -> onnx.defs.OpSchema:
        try:
            return onnx.defs.get_schema(node.op_type, self._opset, node.domain)
        except onnx.defs.SchemaError as error:
            raise GraphError(
                f"node {node_label(node)} of unknown type {node.domain}:{node.op_type}",
                expected="standard ONNX operators",
                do="export without custom operators",
            ) from error

    def _as_type(self, name: str, wanted: int, *, keep_positive: bool = False) -> str:
        """Name under which `name` is read as `wanted`."""
        if self._types[name] == wanted:
            return name
        if (name, wanted) not in self._converted:
            output = self._free(f"{name}_{_SUFFIX[wanted]}")
            if name in self._constants:
                half = self._float16(self._constants[name], output, keep_positive)
                self._graph.initializer.append(half)
            else:
                self._cast(name, output, wanted)
            self._converted[name, wanted] = output
        return self._converted[name, wanted]

    def _cast(self, name: str, output: str, wanted: int) -> None:
        node = helper.make_node("Cast", [name], [output], name=f"{output}_Cast", to=wanted)
        self._nodes.append(node)
        self._casts += 1

    def _keep_output_types(self) -> None:
        """A float32 output stays one, under its name: its float16 tensor takes another."""
        for value in self._graph.output:
            if self._types.get(value.name) != FLOAT16:
                continue
            inner = self._free(f"{value.name}_{_SUFFIX[FLOAT16]}")
            for node in self._nodes:
                for names in (node.input, node.output):
                    for index, name in enumerate(names):
                        if name == value.name:
                            names[index] = inner
            self._cast(inner, value.name, FLOAT)

    def _float16(self, tensor: TensorProto, name: str, keep_positive: bool) -> TensorProto:
        values = numpy_helper.to_array(tensor)
        clamped, count = clamped_to_float16(values)
        halves = clamped.astype(np.float16)
        if keep_positive:  # a scale of 0 would divide 0 by 0
            halves = np.maximum(halves, SMALLEST)
        if count:
            self._clamped[tensor.name] = count
        return numpy_helper.from_array(halves, name)


def float32_tensors(model: onnx.ModelProto) -> frozenset[str]:
    """Names of all float32 tensors, by onnx's type inference."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    types = {t.name: t.data_type for t in inferred.initializer}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        types[value.name] = value.type.tensor_type.elem_type
    for node in inferred.node:
        unknown = [name for name in node.output if name and not types.get(name)]
        if unknown:
            raise GraphError(
                f"tensor {unknown[0]} of unknown type, written by {node.op_type}",
                expected="standard ONNX operators",
                do="export without custom operators",
            )
    return frozenset(name for name, kind in types.items() if kind == FLOAT)


def _allowed_type(schema: onnx.defs.OpSchema, formal: onnx.defs.OpSchema.FormalParameter) -> int:
    """FLOAT16 where the operator set takes it for this parameter, else FLOAT."""
    for constraint in schema.type_constraints:
        if constraint.type_param_str == formal.type_str:
            return FLOAT16 if "tensor(float16)" in constraint.allowed_type_strs else FLOAT
    return FLOAT16 if formal.type_str == "tensor(float16)" else FLOAT


def _name_type(node: onnx.NodeProto) -> None:
    """Nodes that make float32 by an attribute make float16."""
    for attribute in node.attribute:
        if attribute.name in _TYPE_ATTRIBUTES and attribute.i == FLOAT:
            attribute.i = FLOAT16
    if node.op_type == "ConstantOfShape":
        value = numpy_helper.to_array(node.attribute[0].t) if node.attribute else np.zeros(1)
        del node.attribute[:]
        half = numpy_helper.from_array(value.astype(np.float16))
        node.attribute.append(helper.make_attribute("value", half))
