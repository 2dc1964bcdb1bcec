"""What an ONNX file looks like from outside, and where its logits and its normalisation are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from calibration.onnx_file import data_inputs, session_from_model
from calibration.wiring import attribute, wiring_of
from engines.batches import INPUT_NAME, LOGITS_NAME, OUTPUT_NAME
from engines.bundle import MAX_BATCH, MAX_CHANNELS, MAX_SIDE
from engines.errors import ConfigError, GraphError

Form = Literal["images", "planes"]
Shape = tuple[int, ...]

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)
_OUTPUTS = {OUTPUT_NAME: (TensorProto.UINT8, 3), LOGITS_NAME: (TensorProto.FLOAT, 4)}  # type, rank
_KEEPS_LABELS = ("Cast", "Identity", "Squeeze", "Reshape")
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
    """Raises GraphError for a graph of neither form, or beyond what a bundle holds."""
    inputs, outputs = data_inputs(model), list(model.graph.output)
    names = tuple(value.name for value in outputs)
    shapes = [_shape(value) for value in inputs]
    if len(inputs) == 1 and len(shapes[0]) == 4:
        kind = inputs[0].type.tensor_type.elem_type
        if kind == TensorProto.UINT8:
            own = inputs[0].name == INPUT_NAME and all(map(_is_own_output, outputs))
            n, h, w, c = shapes[0]
            if own and names and min(h, w, c) > 0:
                return _within_limits(Outside("images", n, (h, w), c, names))
        elif kind in _FLOATS and len(outputs) == 1 and _is_float_map(outputs[0]):
            n, c, h, w = shapes[0]
            if c > 0:
                return _within_limits(Outside("planes", n, (h, w), c, names))
    raise GraphError(
        f"an ONNX file with the inputs {_described(inputs)} and the outputs {_described(outputs)}",
        expected=_EXPECTED,
        do="export the network's logits, before any softmax or argmax of the tool",
    )


def _within_limits(outside: Outside) -> Outside:
    for what, got, most in (
        ("batch size", outside.batch, MAX_BATCH),
        ("longer side", max(outside.hw), MAX_SIDE),
        ("number of channels", outside.channels, MAX_CHANNELS),
    ):
        if got > most:
            raise GraphError(
                f"an ONNX file whose input has a {what} of {got}",
                expected=f"at most {most}, as in every bundle",
                do="export the network again for a smaller input",
            )
    return outside


def logits_of_labels(model: onnx.ModelProto) -> str:
    """Name of the (N, K, H, W) tensor of an "images" graph whose argmax are its labels.

    Raises GraphError where the labels are not an ArgMax over axis 1.
    """
    outputs, wiring = {value.name for value in model.graph.output}, wiring_of(model.graph)
    if OUTPUT_NAME not in outputs:
        return LOGITS_NAME
    writer = wiring.producers.get(OUTPUT_NAME)
    while writer is not None and writer.op_type in _KEEPS_LABELS:
        writer = wiring.producers.get(writer.input[0])
    if writer is None or writer.op_type != "ArgMax" or attribute(writer, "axis", 0) not in (1, -3):
        found = "nothing" if writer is None else writer.op_type
        raise GraphError(
            f"an ONNX file whose {OUTPUT_NAME} are made by {found}",
            expected="an ArgMax over axis 1, the classes",
            do="export the network's logits (N, K, h, w) instead",
        )
    return str(writer.input[0])


def logits_shape(model: onnx.ModelProto, name: str) -> Shape:
    """(N, K, h, w) of the tensor `name`, the logits, as ONNX Runtime computes it.

    Raises GraphError for another rank, and for a graph that does not run at its size.
    """
    value = data_inputs(model)[0]
    kind = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    shape = [side or 1 for side in _shape(value)]
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


def _shape(value: onnx.ValueInfoProto) -> Shape:
    return tuple(max(0, dim.dim_value) for dim in value.type.tensor_type.shape.dim)


def _is_own_output(value: onnx.ValueInfoProto) -> bool:
    kind, rank = _OUTPUTS.get(value.name, (TensorProto.UNDEFINED, 0))
    found = value.type.tensor_type
    return found.elem_type == kind and len(found.shape.dim) in (0, rank)


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
