"""From the names that an exporter, a parser and TensorRT give to a place of the model's own."""

from __future__ import annotations

import re
from typing import List, Tuple

# Node names of a traced graph: "/net/backbone/layers.0/Conv". TensorRT joins those of a fused layer
# with " + ", and writes first...last for a part of the graph.
_NODE = re.compile(r"/[\w.\-]+(?:/[\w.\-]+)+")
_FILE = re.compile(r"\.(?:cpp|cc|c|cu|hpp|h|onnx|engine|so[.\d]*|py|cache|log)$")


def module_path(node_name: str) -> str:
    """'/net/ffn/layers/layers.0/Conv' -> 'net.ffn.layers.0': the traced module's dotted path."""
    parts: List[str] = []
    for segment in node_name.strip("/").split("/")[:-1]:
        if parts and segment.startswith(f"{parts[-1]}."):
            parts.pop()
        parts.append(segment)
    return ".".join(parts)


def layers_named_in(text: str) -> Tuple[str, ...]:
    """Dotted paths of the model's layers whose nodes a message names, each once, in its order."""
    names = (match.group() for match in _NODE.finditer(text.replace("...", " ")))
    paths = (module_path(name.rstrip(".")) for name in names if not _FILE.search(name))
    return tuple(dict.fromkeys(path for path in paths if path))
