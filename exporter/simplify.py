"""Smaller graph, same answer: onnxsim between pre- and postconditions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx

from engines.errors import GateError, GraphError
from exporter.run_onnx import outputs_from_onnx

# Fusions that hide a pattern from the next compiler. Folding GELU's factor 0.5 into the following
# convolution costs ONNX Runtime its Gelu kernel (SegFormer-B0: 71.7 instead of 68.7 ms), and
# turning MatMul+Add into Reshape+Gemm+Reshape or merging k and v loses the node names that
# quantization policies and messages refer to. An attention that somebody else exported becomes one
# node of com.microsoft (onnxsim 0.8.1), which no TensorRT has.
SKIPPED_PASSES = [
    "fuse_attention",
    "fuse_mul_into_conv",
    "fuse_preceding_mul_into_conv",
    "fuse_matmul_add_bias_into_gemm",
    "fuse_matmul_add_bias_into_gemm_batched",
    "fuse_matmul_into_conv",
    "fuse_qkv",
]
MIN_AGREEMENT = 99.99  # percent of equal labels before and after


def simplify_onnx(source: Path, target: Path, *, batch: np.ndarray[Any, Any]) -> None:
    """Simplify `source` into `target` and check the answer on `batch` (uint8 (N, H, W, C)).

    Raises GraphError when the graph is invalid before or after, GateError when the answer changed.
    """
    import onnxsim

    before = onnx.load(source)
    check_graph(before, str(source.name))
    after, _ = onnxsim.simplify(before, skipped_optimizers=SKIPPED_PASSES)
    check_graph(after, f"simplified {source.name}")
    _check_same_interface(before, after)
    _check_same_domains(before, after)
    _check_same_answer(before, after, batch)
    onnx.save(after, target)


def check_graph(model: onnx.ModelProto, name: str) -> None:
    """The ONNX checker passes and every stored number is finite."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise GraphError(
            f"an invalid graph in {name}: {error}",
            expected="a graph that the ONNX checker accepts",
            do="report this together with the checkpoint's architecture",
        ) from error
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise GraphError(
                f"NaN or infinite numbers in {tensor.name} of {name}",
                expected="finite weights",
                do="check the checkpoint for a diverged training",
            )


def _check_same_interface(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    for kind in ("input", "output"):
        if _signature(before, kind) != _signature(after, kind):
            raise GraphError(
                f"other {kind}s after simplification",
                expected=str(_signature(before, kind)),
                do="try another onnxsim version",
            )


def _check_same_domains(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    new = {node.domain for node in after.graph.node} - {node.domain for node in before.graph.node}
    if new:
        raise GraphError(
            f"operators of {', '.join(sorted(new))} after simplification",
            expected="those of ONNX itself",
            do="try another onnxsim version",
        )


def _signature(model: onnx.ModelProto, kind: str) -> list[tuple[str, int, int]]:
    """Name, element type and rank; inference may refine a symbolic size, so sizes are left out."""
    values = model.graph.input if kind == "input" else model.graph.output
    types = [(v.name, v.type.tensor_type) for v in values]
    return [(name, t.elem_type, len(t.shape.dim)) for name, t in types]


def _check_same_answer(
    before: onnx.ModelProto, after: onnx.ModelProto, batch: np.ndarray[Any, Any]
) -> None:
    old, new = outputs_from_onnx(before, batch), outputs_from_onnx(after, batch)
    for name, value in old.items():
        if not np.isfinite(new[name]).all():
            raise GateError(f"output {name} has NaN or infinite values after simplification")
        if name == "labels":
            equal = 100.0 * float(np.mean(value == new[name]))
            if equal < MIN_AGREEMENT:
                raise GateError(
                    f"simplification changed the labels: {equal:.3f} % equal, "
                    f"at least {MIN_AGREEMENT} % wanted"
                )
        else:
            limit = 1e-3 * max(1.0, float(value.std()))
            worst = float(np.abs(value - new[name]).max())
            if worst > limit:
                raise GateError(
                    f"simplification changed {name} by {worst:.2e}, at most {limit:.2e} allowed"
                )
