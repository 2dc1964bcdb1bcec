"""Activations that come near float16's end on real images, and the nodes that must stay float32.

What fits on these images may overflow on the next ones, and no runtime reports that: it computes
on with infinities.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sized
from dataclasses import dataclass
from pathlib import Path

import onnx

from calibration.float16_range import LARGEST, without_huge_constants
from calibration.fp16 import float32_tensors, initializers_from_constants
from calibration.layers import quantizable_nodes
from calibration.onnx_file import model_from_onnx_file, node_label
from calibration.watch import Image, watch_images
from calibration.wiring import Wiring, wiring_of
from engines.progress import printable

LIMIT = LARGEST / 8  # images not seen yet may reach eight times what the seen ones did


@dataclass(frozen=True)
class Float16Risk:
    """A tensor beyond the limit, and its largest magnitude; that of ReduceL2 before the root.

    nodes: labels (see `node_label`) of the node that writes it and then of those that read it.
    """

    tensor: str
    largest: float
    nodes: tuple[str, ...]


def float16_risks(
    onnx_path: str | Path,
    images: Iterable[Image],
    *,
    limit: float = LIMIT,
    held: Collection[str] = (),
    on_image: Callable[[int], None] | None = None,
) -> tuple[Float16Risk, ...]:
    """The computed float32 tensors whose magnitude passes `limit` on an image, in graph order.

    Of a ReduceL2 it is the sum of squares under its root that must not.

    onnx_path: the FP32 graph that the FP16 and INT8 ones are made from.
    images, on_image, errors: as `watch_images` has them; memory does not grow with their number.
    held: labels of nodes that stay float32 anyway; a tensor between such nodes is not looked at.
    Constants are not activations, and what is added to one beyond float16, an attention mask, is
    measured without it. One image takes 2.1 times the processor time of a plain inference
    (SegFormer-B0, 352 tensors, at 256x256 and 512x512), for no tensor is copied out.
    """
    model = model_from_onnx_file(onnx_path)
    initializers_from_constants(model.graph)
    wiring = wiring_of(model.graph)
    tensors = _watched(model, wiring, frozenset(held))
    if not tensors:
        return ()
    # A mask of half the limit leaves a score as much room.
    measured = without_huge_constants(model, limit / 2)
    watched = watch_images(measured, images, counted=(), reduced=tensors, on_image=on_image)
    largest = {name: max(map(abs, extremes)) for name, extremes in watched.extremes.items()}
    for name in tensors:
        if wiring.producers[name].op_type == "ReduceL2":  # sums squares, which no tensor shows
            largest[name] **= 2
    return tuple(
        Float16Risk(name, largest[name], _around(name, wiring))
        for name in tensors
        if largest[name] > limit
    )


def _watched(model: onnx.ModelProto, wiring: Wiring, held: frozenset[str]) -> tuple[str, ...]:
    float32 = float32_tensors(model)
    written = (name for node in model.graph.node for name in node.output if name in float32)
    return tuple(name for name in written if not held.issuperset(_around(name, wiring)))


def _around(tensor: str, wiring: Wiring) -> tuple[str, ...]:
    """Labels of the tensor's writer and of its readers, each once."""
    nodes = (wiring.producers[tensor], *wiring.consumers.get(tensor, ()))
    return tuple(dict.fromkeys(map(node_label, nodes)))


def fp32_nodes_for(risks: Iterable[Float16Risk]) -> tuple[str, ...]:
    """Labels of the nodes that must stay float32, for `fp16_onnx_from_onnx` and `BuildHints`.

    The writer of each tensor, or it overflows there; and every reader, or the value is cast to
    float16 on its way to that one and overflows in the Cast.
    """
    return tuple(dict.fromkeys(n for risk in risks for n in risk.nodes))


def layers_among(model: onnx.ModelProto, nodes: Collection[str]) -> tuple[str, ...]:
    """Those of `nodes` that INT8 could take: `QuantizePolicy.exclude_nodes` that keep them in FP32.

    One that reads or writes such a tensor would have one scale for a few huge values and all the
    rest.
    """
    wanted = frozenset(nodes)
    found = (item.node for item in quantizable_nodes(model) if item.node in wanted)
    return tuple(dict.fromkeys(found))


def float16_warning(risks: tuple[Float16Risk, ...], *, on: str) -> str:
    """One line about at least one risk; `on` says where they were seen, such as "32 images"."""
    first, nodes = risks[0], fp32_nodes_for(risks)
    return printable(
        f"{_counted(risks, 'activation')} beyond an eighth of FP16's range on {on} (first: "
        f"{first.tensor}, {first.largest:.5g}, written by {first.nodes[0]}), which keeps "
        f"{_counted(nodes, 'node')} in FP32"
    )


def _counted(things: Sized, noun: str) -> str:
    return f"{len(things)} {noun}" + ("" if len(things) == 1 else "s")
