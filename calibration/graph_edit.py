"""What every change of a graph needs: names that are free, and no initializer left behind."""

from __future__ import annotations

import onnx


class FreeNames:
    """Names for new tensors and nodes of `graph`; each is given once."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._taken = {name for node in graph.node for name in (*node.input, *node.output)}

    def __call__(self, wanted: str) -> str:
        """`wanted`, with underscores behind it where that is taken."""
        while wanted in self._taken:
            wanted += "_"
        self._taken.add(wanted)
        return wanted


def drop_unread_initializers(graph: onnx.GraphProto) -> None:
    """Remove, in place, those that no node reads and that are no output."""
    read = {name for node in graph.node for name in node.input}
    read.update(value.name for value in graph.output)
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].name not in read:
            del graph.initializer[index]
