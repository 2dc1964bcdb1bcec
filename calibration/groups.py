"""Layers of a graph by what they do in the network, so that precision can be chosen per group."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

import onnx

from calibration.layers import Kind, QuantizableNode, quantizable_nodes


@dataclass(frozen=True)
class LayerGroup:
    """name: for files and options; title: for people.

    A layer belongs to it if its node's name matches one of `patterns` (globs, in which "*" matches
    "/" too) or if it is of one of `kinds`, see `QuantizableNode.kinds`. `floating`: plain INT8
    leaves it in floating point, beside what `calibration.placement.DEFAULT_POLICY` leaves; a search
    that measures tries it in INT8 too.
    """

    name: str
    title: str
    patterns: tuple[str, ...] = ()
    kinds: frozenset[Kind] = frozenset()
    floating: bool = False

    def holds(self, item: QuantizableNode) -> bool:
        named = any(fnmatchcase(item.node, pattern) for pattern in self.patterns)
        return named or not self.kinds.isdisjoint(item.kinds)


OTHER = LayerGroup("other", "Other layers")

# For a network whose node names mean nothing to us. What a layer is beside a convolution or a
# matrix comes first, for it decides how well INT8 suits it.
GROUPS_BY_KIND = (
    LayerGroup("first", "First layer", kinds=frozenset({"first"})),
    LayerGroup("classifier", "Classifier", kinds=frozenset({"classifier"})),
    LayerGroup("depthwise", "Depthwise convolutions", kinds=frozenset({"depthwise"})),
    LayerGroup("conv", "Convolutions", kinds=frozenset({"conv"})),
    LayerGroup("linear", "Linear layers", kinds=frozenset({"linear"})),
    LayerGroup("product", "Products of two activations", kinds=frozenset({"product"})),
    LayerGroup("residual", "Sums of two activations", kinds=frozenset({"residual"})),
)


def nodes_by_group(
    model: onnx.ModelProto, groups: Iterable[LayerGroup]
) -> dict[str, tuple[QuantizableNode, ...]]:
    """Group's name -> its layers in graph order; every layer that INT8 can take is in one group.

    That is the first group that holds it, else "other". In the order of `groups`; empty ones are
    left out.
    """
    groups = (*groups, OTHER)
    found: dict[str, list[QuantizableNode]] = {group.name: [] for group in groups}
    for item in quantizable_nodes(model):
        name = next((group.name for group in groups if group.holds(item)), OTHER.name)
        found[name].append(item)
    return {name: tuple(items) for name, items in found.items() if items}
