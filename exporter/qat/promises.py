"""What an export of a quantized graph promises: its own scales, and its own answer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from calibration.onnx_file import data_inputs
from engines.errors import GateError, GraphError
from exporter.qat.quantizers import Quantizer, quantizers_from_graph

Arrays = list[NDArray[Any]]


def check_scales_kept(
    quantizers: Iterable[Quantizer], model: onnx.ModelProto, *, asymmetric: bool
) -> int:
    """How many INT8 scales there are; GateError unless `model` has each of them, and no other.

    Compared number by number, in the order of the graph. Those of int32 biases are not looked at:
    their float values are.
    """
    wanted, found = _int8(quantizers), _int8(quantizers_from_graph(model, asymmetric=asymmetric))
    changed = [
        before.node
        for before, after in zip(wanted, found, strict=False)
        if before.axis != after.axis
        or not np.array_equal(before.scale, after.scale)
        or not np.array_equal(before.zero_point, after.zero_point)
    ]
    if changed or len(wanted) != len(found):
        raise GateError(
            f"{len(changed)} of {len(wanted)} scales of the file were not kept ({len(found)} are "
            f"there){', first that of ' + changed[0] if changed else ''}"
        )
    return sum(item.scale.size for item in found)


def _int8(quantizers: Iterable[Quantizer]) -> list[Quantizer]:
    return [item for item in quantizers if item.zero_point.dtype != np.int32]


def check_same_answer(
    before: onnx.ModelProto, after: onnx.ModelProto, batch: NDArray[np.uint8]
) -> None:
    """GateError unless every output is the same bit for bit on `batch`, uint8 (N, H, W, C).

    Each node runs as it stands in the file: ONNX Runtime's own fusions round otherwise. GraphError
    for a graph that does not run.
    """
    for name, old, new in zip(
        (value.name for value in before.graph.output),
        _outputs(before, batch),
        _outputs(after, batch),
        strict=True,
    ):
        if not np.array_equal(old, new):
            share = 100.0 * float(np.mean(old == new))
            raise GateError(f"{name} changed: {share:.3f} % of its values are the file's")


def _outputs(model: onnx.ModelProto, batch: NDArray[np.uint8]) -> Arrays:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        outputs: Arrays = session.run(None, {data_inputs(model)[0].name: batch})
    except Exception as error:  # each of ONNX Runtime's errors derives from Exception directly
        raise GraphError(
            f"a graph that ONNX Runtime does not run node by node ({error})",
            expected="a graph that it runs",
            do="update onnxruntime, or quantize the network again",
        ) from error
    return outputs
