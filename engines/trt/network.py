"""From an ONNX file to TensorRT's network: parse errors by layer, the promised inputs and outputs,
and the layers that a weakly typed build holds in FP32.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterable, Iterator, List, Optional, Sequence, Tuple

from engines.batches import BANDS_NAME, INPUT_NAME, LOGITS_NAME, OUTPUT_NAME
from engines.bundle_fields import EXPORT_AGAIN
from engines.errors import BundleError, GraphError
from engines.trt.api import TensorRt
from engines.trt.layer_names import module_path
from engines.trt.log import MessageLog, errors_text, shortened
from engines.trt.options import Contract

MAX_SHOWN = 3
MAX_REASON = 500

# What parsers before 10.0 write into the log around a node, whose text is protobuf's own.
_PARSING = re.compile(r"[Ww]hile parsing node number (\d+) \[(\w+)")
_NAME = re.compile(r'name: "([^"]+)"\s+op_type: "([^"]+)"')

_ONNX_LAYER = re.compile(r"\[ONNX Layer: ([^\]]+)\]")

# Layers whose type is their own or is not computed: there a precision is refused or means nothing.
_NOT_HELD = ("CONSTANT", "CAST", "QUANTIZE", "DEQUANTIZE", "SHAPE", "ASSERTION")


@dataclass(frozen=True)
class NetworkInput:
    """The shape of the input, `batch` None where it is free, and the names of the outputs.

    `name` is "image", or "bands" of a graph that composes by itself.
    """

    batch: Optional[int]
    hw: Tuple[int, int]
    channels: int
    outputs: Tuple[str, ...] = ()
    name: str = INPUT_NAME

    @property
    def takes_bands(self) -> bool:
        """Whether the graph composes bands by itself."""
        return self.name == BANDS_NAME


@dataclass(frozen=True)
class _Refusal:
    """A node that the parser does not take."""

    node: str
    operator: str
    reason: str

    def __str__(self) -> str:
        layer = shortened(module_path(self.node))
        named = ", ".join(
            part
            for part in (
                f"operator {shortened(self.operator)}" if self.operator else "",
                f"layer {layer}" if layer else "",
            )
            if part
        )
        node = shortened(self.node) or "the file"
        return f"{node}{f' ({named})' if named else ''}: {shortened(self.reason, MAX_REASON)}"


def network_from_onnx(
    tensorrt: TensorRt, builder: Any, onnx_path: Path, *, data: bytes, log: MessageLog, logger: Any
) -> Tuple[Any, Any]:
    """(network, parser) of a file; the parser owns the weights and must outlive the network.

    `data` is what the file holds: the parser's bindings take no path that is not UTF-8. `log` is
    where the logger collects error texts. Raises GraphError with the nodes that
    TensorRT does not take, each with its operator and its layer in the model.
    """
    network = tensorrt.new_network(builder)
    parser = tensorrt.module.OnnxParser(network, logger)
    if parser.parse(data) and parser.num_errors == 0:
        return network, parser
    refusals = list(_refusals(tensorrt, parser, list(log.errors)))
    shown = "; ".join(str(refusal) for refusal in refusals[:MAX_SHOWN])
    more = len(refusals) - MAX_SHOWN
    raise GraphError(
        f"{onnx_path.name!r}, of which {tensorrt} does not take {shown}"
        + (f"; and {more} more in the log" if more > 0 else ""),
        expected="operators, types and shapes that TensorRT's parser takes",
        do="export it with `riceseg export --target` for this device, or use a newer TensorRT"
        + ("" if log.kept_as is None else f"; its log is {str(log.kept_as)!r}"),
    )


def _refusals(tensorrt: TensorRt, parser: Any, errors: Sequence[str]) -> Iterator[_Refusal]:
    if parser.num_errors == 0:
        yield _Refusal("", "", errors_text(errors))
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        if tensorrt.has_node_errors():
            name, operator = str(error.node_name()), str(error.node_operator())
        else:
            name, operator = _from_log(error.node(), errors)
        yield _Refusal(name, operator, _reason(str(error.desc()), str(error.code()), operator))


def _reason(text: str, code: str, operator: str) -> str:
    """The parser says `false` or `creator && ...` where it has no such operator."""
    lines = " ".join(text.split())
    unknown = "lugin not found" in lines or "No importer registered" in lines
    if operator and (unknown or (lines == "false" and code.endswith("UNSUPPORTED_NODE"))):
        return f"there is no such operator in TensorRT ({lines})"
    return lines or code


def _from_log(number: int, errors: Sequence[str]) -> Tuple[str, str]:
    """Name and operator of node `number` from the log of a parser before 10.0; "" if not told."""
    for index, error in enumerate(errors):
        parsing = _PARSING.search(error)
        if parsing is None or int(parsing[1]) != number:
            continue
        for later in errors[index : index + 4]:
            named = _NAME.search(later)
            if named is not None:
                return named[1], named[2]
        return "", parsing[2]
    return "", ""


def checked_input(network: Any, onnx_path: Path, tensorrt: TensorRt) -> NetworkInput:
    """The network's input, after checking what the runtime relies on.

    That is one input `image`, uint8, or `bands`, float32, (N, H, W, C) with fixed H, W and C, and
    the outputs `labels` (uint8), `logits` (float32) or both. Raises GraphError for another graph.
    """
    names = tensorrt.module.DataType
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    outputs = {
        network.get_output(i).name: network.get_output(i) for i in range(network.num_outputs)
    }
    found = ", ".join(f"{shortened(t.name)} {t.dtype} {tuple(t.shape)}" for t in inputs[:MAX_SHOWN])
    shape = tuple(inputs[0].shape) if len(inputs) == 1 else ()
    kinds = {INPUT_NAME: names.UINT8, BANDS_NAME: names.FLOAT}
    if (
        len(shape) != 4
        or inputs[0].dtype != kinds.get(inputs[0].name)
        or min(shape[1:]) < 1
        or shape[0] == 0
    ):
        raise _wrong_graph(
            onnx_path,
            f"the inputs: {found or 'none'}",
            f"one input {INPUT_NAME!r} of uint8 or {BANDS_NAME!r} of float32, (N, H, W, C) with "
            "fixed H, W and C; N not 0",
        )
    types = {OUTPUT_NAME: names.UINT8, LOGITS_NAME: names.FLOAT}
    if not outputs or any(t.dtype != types.get(name) for name, t in outputs.items()):
        raise _wrong_graph(
            onnx_path,
            "the outputs: "
            + ", ".join(
                f"{shortened(name)} {t.dtype}" for name, t in [*outputs.items()][:MAX_SHOWN]
            ),
            f"{OUTPUT_NAME!r} of uint8, {LOGITS_NAME!r} of float32, or both",
        )
    return NetworkInput(
        None if shape[0] < 0 else shape[0],
        (shape[1], shape[2]),
        shape[3],
        tuple(sorted(outputs)),
        str(inputs[0].name),
    )


def check_contract(found: NetworkInput, contract: Contract, onnx_path: Path) -> None:
    """BundleError unless the graph takes and gives what bundle.json says of it."""
    fixed = contract.batch if found.batch is None else (found.batch,) * 3
    differences = [
        f"{what} {said} where the graph has {has}"
        for what, said, has in (
            ("the input", contract.name, found.name),
            ("a size of", contract.hw, found.hw),
            ("channels:", contract.channels, found.channels),
            ("a batch of", list(contract.batch), list(fixed)),
            ("the outputs", ", ".join(sorted(contract.outputs)), ", ".join(found.outputs)),
        )
        if said != has
    ]
    if differences:
        raise BundleError(
            f"bundle.json that says of {onnx_path.name!r} {'; '.join(differences)}",
            expected="the input and the outputs of the graph",
            do=EXPORT_AGAIN,
        )


def _wrong_graph(path: Path, got: str, expected: str) -> GraphError:
    return GraphError(
        f"{path.name!r} with {got}", expected=expected, do="export it with `riceseg export`"
    )


def precision_in(network: Any, tensorrt: TensorRt) -> str:
    """The precision that the graph itself is written in: "int8" (Q/DQ), "fp16" or "fp32"."""
    types, data = tensorrt.module.LayerType, tensorrt.module.DataType
    half = False
    for layer in _layers(network):
        if layer.type == types.QUANTIZE:
            return "int8"
        half = half or any(tensor.dtype == data.HALF for tensor in _outputs(layer))
    return "fp16" if half else "fp32"


def onnx_nodes(network: Any, tensorrt: TensorRt) -> Tuple[str, ...]:
    """Names of the ONNX nodes that the network's layers were made of, as far as they are told."""
    names = (name for layer in _layers(network) for name in _nodes_of(layer, tensorrt))
    return tuple(dict.fromkeys(names))


def hold_in_fp32(
    network: Any, tensorrt: TensorRt, *, nodes: Iterable[str], typed: bool
) -> Tuple[str, ...]:
    """Hold layers of a weakly typed network in FP32; returns the `nodes` that no layer is of.

    Held are the layers of the ONNX `nodes`, and with `typed` (a graph that is written in FP16) all
    that the graph computes in FP32: the builder's FP16 flag alone would not keep them there. Needs
    OBEY_PRECISION_CONSTRAINTS in the configuration.
    """
    wanted = set(nodes)
    missing = set(wanted)
    float32 = tensorrt.module.DataType.FLOAT
    not_held = tuple(getattr(tensorrt.module.LayerType, name) for name in _NOT_HELD)
    for layer in _layers(network):
        named = wanted.intersection(_nodes_of(layer, tensorrt))
        missing -= named
        if layer.type in not_held:
            continue
        outputs = list(_outputs(layer))
        floats = [i for i, tensor in enumerate(outputs) if tensor.dtype == float32]
        # A comparison gives BOOL; the numbers that it compares would be rounded all the same.
        compares = named and any(tensor.dtype == float32 for tensor in _inputs(layer))
        if ((named or typed) and floats) or compares:
            layer.precision = float32
            for index in floats:
                layer.set_output_type(index, float32)
    return tuple(sorted(missing))


def _nodes_of(layer: Any, tensorrt: TensorRt) -> List[str]:
    """The ONNX nodes that a layer was made of; those of one node bear it in their metadata."""
    nodes = _ONNX_LAYER.findall(layer.metadata) if tensorrt.has_layer_metadata() else []
    return [*nodes, layer.name]


def largest_layer_bytes(network: Any, batch: int) -> int:
    """Bytes of all inputs and outputs of the layer that has most of them, at `batch` images."""
    largest = 0
    for layer in _layers(network):
        tensors: List[Any] = [*_inputs(layer), *_outputs(layer)]
        largest = max(largest, sum(_bytes(tensor, batch) for tensor in tensors))
    return largest


def _bytes(tensor: Any, batch: int) -> int:
    try:
        sides = tuple(tensor.shape)
    except ValueError:  # Of a shape that is not known, pybind11's __len__ is negative.
        return 0
    count = 1
    for side in sides:
        count *= batch if side < 0 else side
    return count * int(tensor.dtype.itemsize)


def _layers(network: Any) -> Iterator[Any]:
    return (network.get_layer(index) for index in range(network.num_layers))


def _inputs(layer: Any) -> Iterator[Any]:
    """Without those that are left out, which are None."""
    tensors = (layer.get_input(index) for index in range(layer.num_inputs))
    return (tensor for tensor in tensors if tensor is not None)


def _outputs(layer: Any) -> Iterator[Any]:
    """Without those that are left out, which are None."""
    tensors = (layer.get_output(index) for index in range(layer.num_outputs))
    return (tensor for tensor in tensors if tensor is not None)
