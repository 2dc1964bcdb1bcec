"""Parse and build a graph with TensorRT-RTX as it is: build_rtx.py MODEL.onnx; no GPU needed.

Strongly typed, so that the types in the file alone decide what runs in INT8; result.json beside it.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

MOST_ERRORS, LONGEST = 3, 300


def main() -> None:
    path = Path(sys.argv[1])
    result = built(path)
    path.with_name("result.json").write_text(json.dumps(result), encoding="utf-8")


def built(path: Path) -> dict[str, Any]:
    """built: yes or no; seconds: to parse and build; errors: the first few; tensorrt: version."""
    import tensorrt_rtx as trt  # type: ignore[import-not-found]  # fetched by tests.rtx.assemble

    messages: list[str] = []

    class Listener(trt.ILogger):  # type: ignore[misc]  # the library has no types
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                messages.append(message)

    listener, started = Listener(), time.perf_counter()
    builder = trt.Builder(listener)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, listener)
    plan = None
    if parser.parse_from_file(str(path)):
        plan = builder.build_serialized_network(network, builder.create_builder_config())
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    texts = [f"{error.node_name()} ({error.node_operator()}): {error.desc()}" for error in errors]
    return {
        "built": plan is not None,
        "seconds": time.perf_counter() - started,
        "errors": [] if plan is not None else [*map(shown, (texts or messages)[:MOST_ERRORS])],
        "tensorrt": f"TensorRT-RTX {trt.__version__}",
    }


def shown(text: str) -> str:
    """One short line, without what follows every error where there is no driver."""
    lines = [line for line in text.splitlines() if "cudaError" not in line]
    return " ".join(" ".join(lines).split())[:LONGEST]


if __name__ == "__main__":
    main()
