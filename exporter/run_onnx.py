"""Run a graph that is still in memory, with any of its tensors as output (ONNX Runtime, CPU)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx

from calibration.onnx_file import session_from_model
from engines.errors import GraphError


def outputs_from_onnx(
    model: onnx.ModelProto, batch: np.ndarray[Any, Any], *, extra: Sequence[str] = ()
) -> dict[str, np.ndarray[Any, Any]]:
    """All graph outputs, and the tensors named in `extra`, for one uint8 (N, H, W, C) batch.

    A graph with a fixed batch size of B runs in pieces of B; N must be a multiple of it.
    Raises GraphError for a graph that ONNX Runtime refuses or that fails while it runs.
    """
    session = session_from_model(model, extra_outputs=tuple(extra))
    entry = session.get_inputs()[0]
    step = entry.shape[0] if isinstance(entry.shape[0], int) else len(batch)
    names = [output.name for output in session.get_outputs()]
    try:
        pieces = [
            session.run(names, {entry.name: batch[i : i + step]})
            for i in range(0, len(batch), step)
        ]
    except Exception as error:  # each of ONNX Runtime's errors derives from Exception directly
        raise GraphError(
            f"a graph that fails while it runs ({error})",
            expected="a graph that ONNX Runtime runs",
            do="update onnxruntime, or export the graph again",
        ) from error
    return {name: np.concatenate([piece[i] for piece in pieces]) for i, name in enumerate(names)}
