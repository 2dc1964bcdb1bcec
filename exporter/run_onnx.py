"""Run a graph that is still in memory, with any of its tensors as output (ONNX Runtime, CPU)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx


def outputs_from_onnx(
    model: onnx.ModelProto, batch: np.ndarray[Any, Any], *, extra: Sequence[str] = ()
) -> dict[str, np.ndarray[Any, Any]]:
    """All graph outputs, and the tensors named in `extra`, for one uint8 (N, H, W, C) batch.

    A graph with a fixed batch size of B runs in pieces of B; N must be a multiple of it.
    """
    import onnxruntime as ort

    tapped = onnx.ModelProto()
    tapped.CopyFrom(model)
    for name in extra:
        tapped.graph.output.append(onnx.ValueInfoProto(name=name))
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(
        tapped.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    entry = session.get_inputs()[0]
    step = entry.shape[0] if isinstance(entry.shape[0], int) else len(batch)
    names = [output.name for output in session.get_outputs()]
    pieces = [
        session.run(names, {entry.name: batch[i : i + step]}) for i in range(0, len(batch), step)
    ]
    return {name: np.concatenate([piece[i] for piece in pieces]) for i, name in enumerate(names)}
