"""Reading an untrusted ONNX file, and writing one that is checked before it takes its name."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from engines.errors import GraphError, MissingPackageError, OutputError

MAX_BYTES = 2_000_000_000  # protobuf's limit is 2 GiB a message; Q/DQ nodes need some of it


def model_from_onnx_file(path: str | Path) -> onnx.ModelProto:
    """The graph with its external data in memory.

    Refused with GraphError: a missing file, more than 2 GB in all, external data outside the
    file's folder, what onnx's checker refuses, subgraphs (If, Loop, Scan) and model functions.
    """
    path = Path(path)
    if not path.is_file():
        raise GraphError(f"no file {path}", expected="an ONNX file", do="check the path")
    _check_bytes(path, path.stat().st_size)
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's DecodeError has no public base class
        raise GraphError(
            f"{path}, unreadable as ONNX ({error})", expected="an ONNX file", do="export it again"
        ) from error
    _check_flat(model, path)
    _check_external_data(model, path)
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
        onnx.checker.check_model(model)
    except Exception as error:  # ValidationError, ValueError or OSError, by the kind of damage
        raise GraphError(
            f"{path}, which is not valid ONNX ({error})",
            expected="a graph that onnx.checker accepts",
            do="export it again",
        ) from error
    return model


def _check_bytes(path: Path, size: int) -> None:
    if size > MAX_BYTES:
        raise GraphError(
            f"{path} with {size / 1e9:.1f} GB", expected="at most 2 GB", do="use a smaller model"
        )


def _check_flat(model: onnx.ModelProto, path: Path) -> None:
    for node in model.graph.node:
        if any(attribute.g.node or attribute.graphs for attribute in node.attribute):
            raise GraphError(
                f"{path}, whose node {node_label(node)} ({node.op_type}) holds a subgraph",
                expected="one flat graph",
                do="export with fixed shapes and simplify it, so that no If, Loop or Scan is left",
            )
    if model.functions:
        raise GraphError(
            f"{path} with the model function {model.functions[0].name}",
            expected="one flat graph",
            do="inline the functions (onnx.inliner.inline_local_functions)",
        )


def _check_external_data(model: onnx.ModelProto, path: Path) -> None:
    """A tensor may name any file as its data; only files beside the model are read."""
    folder = path.parent.resolve()
    files = set()
    for tensor in _tensors(model.graph):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        location = {entry.key: entry.value for entry in tensor.external_data}.get("location", "")
        file = (folder / location).resolve()
        if not location or not file.is_relative_to(folder) or not file.is_file():
            raise GraphError(
                f"tensor {tensor.name} with its data in {location!r}",
                expected=f"a file inside {path.parent}",
                do="put the data file beside the ONNX file, or do not trust this file",
            )
        files.add(file)
    _check_bytes(path, path.stat().st_size + sum(file.stat().st_size for file in files))


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)


def node_label(node: onnx.NodeProto) -> str:
    """The node's name; names are optional in ONNX, so else its first output."""
    return node.name or node.output[0]


def opset_of(model: onnx.ModelProto) -> int:
    """Version of the default operator set."""
    return max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=1)


def data_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The inputs that a caller must give (older files list their weights as inputs too)."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in constants]


def image_input(model: onnx.ModelProto) -> tuple[str, tuple[int, int, int]]:
    """Name and (H, W, C) of the one input: uint8 (N, H, W, C) with H, W and C fixed."""
    values = data_inputs(model)
    kinds = [value.type.tensor_type for value in values]
    sides = [tuple(dim.dim_value for dim in kind.shape.dim) for kind in kinds]
    if len(values) != 1 or kinds[0].elem_type != onnx.TensorProto.UINT8 or len(sides[0]) != 4:
        got = ", ".join(f"{value.name} {side}" for value, side in zip(values, sides, strict=True))
    elif min(sides[0][1:]) < 1:
        got = f"{values[0].name} without fixed height, width and channels"
    else:
        _, height, width, channels = sides[0]
        return values[0].name, (height, width, channels)
    raise GraphError(
        f"a graph with the inputs {got or 'none'}",
        expected="one uint8 input (N, H, W, C) with fixed H, W and C",
        do="export the checkpoint with this project's exporter",
    )


def fixed_batch(model: onnx.ModelProto) -> int:
    """How many images the graph takes at once; 1 where that is free."""
    return max(1, int(data_inputs(model)[0].type.tensor_type.shape.dim[0].dim_value))


def logits_tensor(model: onnx.ModelProto) -> str:
    """Name of the float32 (N, K, H, W) tensor whose argmax are the labels."""
    for node in model.graph.node:
        if node.op_type == "ArgMax":
            return str(node.input[0])
    return "logits"


def session_from_model(
    model: onnx.ModelProto, *, extra_outputs: tuple[str, ...] = (), one_block: bool = True
) -> Any:
    """ONNX Runtime session on the CPU; `extra_outputs` are inner tensors to return as well.

    one_block: from its second run on, the session takes the memory of a run as one block, beside
    what the first run left (its default); else that memory is used again and the peak is lower.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingPackageError(
            "onnxruntime", needed_for="calibration", extra="export"
        ) from error
    if extra_outputs:
        original, model = model, onnx.ModelProto()
        model.CopyFrom(original)
        known = {value.name for value in model.graph.output}
        model.graph.output.extend(
            onnx.helper.make_empty_tensor_value_info(name)
            for name in dict.fromkeys(extra_outputs)
            if name not in known
        )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # warnings about folded constants are not for the user
    options.enable_mem_pattern = one_block
    try:
        return onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # each of ONNX Runtime's errors derives from Exception directly
        raise GraphError(
            f"a graph that ONNX Runtime refuses ({error})",
            expected="a graph that it loads",
            do="update onnxruntime, or export again with --opset 17",
        ) from error


def write_checked_onnx(
    model: onnx.ModelProto,
    out_path: str | Path,
    *,
    like: onnx.ModelProto,
    check: Callable[[onnx.ModelProto], None] | None = None,
) -> None:
    """Write to a temporary file, check what was written, then rename it to `out_path`.

    Checked: onnx.checker, the same inputs and outputs as `like`, `check`, that ONNX Runtime
    loads it, and that its float outputs and what its ArgMax reads are finite.
    A failed check raises GraphError and leaves no file.
    """
    out_path = Path(out_path)
    temporary = out_path.with_name(f".{out_path.name}.{os.getpid()}.tmp")
    try:
        try:
            onnx.save(model, str(temporary))
        except OSError as error:
            raise OutputError(
                f"{out_path}, not writable ({error.strerror})",
                expected="a path in an existing, writable folder",
                do="create the folder or choose another one",
            ) from error
        written = model_from_onnx_file(temporary)
        _check_same_interface(written, like)
        if check is not None:
            check(written)
        _check_finite(written)
        temporary.replace(out_path)
    finally:
        temporary.unlink(missing_ok=True)


def _check_same_interface(model: onnx.ModelProto, like: onnx.ModelProto) -> None:
    for got, expected in (
        (data_inputs(model), data_inputs(like)),
        (list(model.graph.output), list(like.graph.output)),
    ):
        if [(v.name, v.type) for v in got] != [(v.name, v.type) for v in expected]:
            raise GraphError(
                f"a converted graph with {[v.name for v in got]}",
                expected=f"{[v.name for v in expected]}, of the same types and shapes",
                do="report this as a bug, with the ONNX file",
            )


def probe_batch(model: onnx.ModelProto) -> NDArray[np.uint8]:
    """Noise, one batch of it. It tells finite from not finite; nothing is ever fitted to it."""
    _, hwc = image_input(model)
    shape = (fixed_batch(model), *hwc)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def _check_finite(model: onnx.ModelProto) -> None:
    name, _ = image_input(model)
    read_by_argmax = tuple(n.input[0] for n in model.graph.node if n.op_type == "ArgMax")
    session = session_from_model(model, extra_outputs=read_by_argmax)
    outputs: list[NDArray[Any]] = session.run(None, {name: probe_batch(model)})
    for value, output in zip(session.get_outputs(), outputs, strict=True):
        if not np.isfinite(output).all():
            raise GraphError(
                f"values that are not finite in {value.name} of the converted graph",
                expected="finite values",
                do="export without --fp16, or name their nodes in fp32_nodes",
            )
