"""How many attention blocks and LayerNorms an engine runs as one kernel, and what its reformat
layers cost: from the layers that TensorRT lists and the time of each.
"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any, Dict, Iterable, List, Mapping, NamedTuple, Optional, Tuple, Union

from engines.trt.engine_header import FusionCounts
from engines.trt.engine_layers import EngineLayer, layers_from_inspector, layers_from_listing
from engines.trt.layer_names import layers_named_in
from engines.trt.log import MessageLog

SLOWEST = 10
MOST_PLACES = 3  # of the model that are named for one layer

_SOFTMAX = re.compile(r"(?:\w*_)?softmax(?:_\d+)?", re.IGNORECASE)
_PRODUCT = re.compile(r"(?:\w*_)?(?:MatMul|Einsum)(?:_\d+)?")
_NORM = re.compile(r"(?:\w*_)?(?:LayerNormalization|layer_norm)(?:_\d+)?")
# LayerNorm of opsets below 17: two means with a square root after the second.
_MEAN, _ROOT = re.compile(r"ReduceMean(?:_\d+)?"), re.compile(r"Sqrt(?:_\d+)?")

# Kernels that only move: __myl_ReshTranReshMove_myl0_8.
_MOVES = re.compile(r"__myl_(?:bb\d+_\d+_)?(?:Tran?|Resh|Move?|Copy)+(?:_myl\d+_\d+)?")
_SIGNALS = ("signal", "wait")  # between streams; they compute nothing


def attention_blocks(nodes: Iterable[str]) -> Tuple[str, ...]:
    """The Softmax nodes between two matrix products, by the names of a graph's ONNX nodes.

    Where names have folders ("/net/attn/Softmax"), the products are in the same one.
    """
    products: Dict[str, int] = defaultdict(int)
    found = []
    for node in dict.fromkeys(nodes):
        folder, base = _parts(node)
        if _PRODUCT.fullmatch(base):
            products[folder] += 1
        elif _SOFTMAX.fullmatch(base):
            found.append((folder, node))
    return tuple(node for folder, node in found if "/" not in node or products[folder] >= 2)


def layer_norms(nodes: Iterable[str]) -> Dict[str, Tuple[str, ...]]:
    """Each LayerNorm, by its node or its folder, and the nodes that make it up."""
    norms: Dict[str, Tuple[str, ...]] = {}
    means: Dict[str, List[str]] = defaultdict(list)
    roots: Dict[str, str] = {}
    for node in dict.fromkeys(nodes):
        folder, base = _parts(node)
        if _NORM.fullmatch(base):
            norms[node] = (node,)
        elif _MEAN.fullmatch(base):
            means[folder].append(node)
        elif _ROOT.fullmatch(base):
            roots[folder] = node
    for folder, root in roots.items():
        if folder and len(means[folder]) == 2:
            norms[folder] = (*means[folder], root)
    return norms


def fusion_of_build(nodes: Iterable[str], log: MessageLog) -> FusionCounts:
    """What a build's log tells of the attention blocks and LayerNorms among a network's `nodes`.

    "Recognised" is the builder's own "part of self-attention pattern", which it also says of blocks
    that it then does not fuse (TensorRT-RTX 1.7: of all 8 of SegFormer-B0 in INT8 without FP16,
    none of which is fused); "fused" is counted in the layers of the engine that it lists.
    """
    nodes = tuple(nodes)
    layers = layers_from_listing(log.listing)
    blocks, norms = attention_blocks(nodes), layer_norms(nodes)
    attention, norm = _attention(layers, blocks), _norms(layers, norms)
    recognised = len(set(blocks).intersection(log.recognised)) if log.recognised else None
    return FusionCounts(
        attention_blocks=len(blocks),
        attention_recognised=recognised,
        attention_fused=attention.fused if attention.seen == len(blocks) else None,
        layer_norms=len(norms),
        layer_norms_fused=norm.fused if norm.seen == len(norms) else None,
    )


def fusion_from_layers(
    layers_json: Union[str, bytes, Mapping[str, Any]],
    profile_ms: Optional[Mapping[str, float]],
    *,
    built: Optional[FusionCounts] = None,
) -> Dict[str, Any]:
    """The audit of one engine; numbers are None where it is not told, and `notes` say why.

    `layers_json` is the inspector's, `profile_ms` the time of each layer of one run by its name,
    `built` what was known when the engine was built. An attention block is fused when one layer
    holds its softmax and both products, a LayerNorm when one layer holds all of it and no other
    layer a part. Raises ValueError when `layers_json` is no list of layers.
    """
    layers = layers_from_inspector(layers_json)
    notes: List[str] = []
    opaque = [kernel for kernel in layers if kernel.opaque]
    if opaque:
        notes.append(
            f"{len(opaque)} of the layers are blocks (ForeignNode) whose inside is not listed"
        )
    nodes = [node for kernel in layers for node in kernel.nodes]
    blocks, norms = attention_blocks(nodes), layer_norms(nodes)
    times = dict(profile_ms or {})
    attention, norm = _attention(layers, blocks), _norms(layers, norms)
    told_blocks = (
        (built.attention_blocks, built.attention_fused) if built else _expected(attention, opaque)
    )
    told_norms = (built.layer_norms, built.layer_norms_fused) if built else _expected(norm, opaque)
    return {
        "layers": sum(kernel.kind not in _SIGNALS for kernel in layers),
        "attention": _counts("attention blocks", attention, told_blocks, notes),
        "layer_norms": _counts("LayerNorms", norm, told_norms, notes),
        "reformats": _reformats(layers, times, notes),
        "slowest": _slowest(layers, times),
        "notes": notes,
    }


def fusion_without_layers(reason: str, built: Optional[FusionCounts]) -> Dict[str, Any]:
    """The audit of an engine whose layers are not told, for that reason."""
    found = fusion_from_layers({"Layers": []}, None, built=built)
    nothing = {"count": None, "time_ms": None, "percent": None}
    return {**found, "layers": None, "reformats": nothing, "notes": [reason]}


class _Seen(NamedTuple):
    """How many are in layers that tell what they hold, and how many of these are fused."""

    seen: int
    fused: int


def _parts(node: str) -> Tuple[str, str]:
    folder, _, base = node.rpartition("/")
    return folder, base


def _homes(layers: Iterable[EngineLayer]) -> Dict[str, List[EngineLayer]]:
    """For each ONNX node the layers that hold a part of it, reformats and blocks left out."""
    homes: Dict[str, List[EngineLayer]] = defaultdict(list)
    for kernel in layers:
        if not kernel.opaque and not kernel.is_reformat:
            for node in dict.fromkeys(kernel.nodes):
                homes[node].append(kernel)
    return homes


def _attention(layers: List[EngineLayer], blocks: Iterable[str]) -> _Seen:
    homes = _homes(layers)
    seen = [node for node in blocks if homes[node]]
    return _Seen(
        len(seen), sum(any(_whole(kernel, node) for kernel in homes[node]) for node in seen)
    )


def _whole(kernel: EngineLayer, softmax: str) -> bool:
    """Whether the layer holds both products beside the softmax."""
    parts = [_parts(node) for node in dict.fromkeys(kernel.nodes)]
    folder = _parts(softmax)[0]
    products = sum(place == folder and bool(_PRODUCT.fullmatch(base)) for place, base in parts)
    return kernel.is_attention or products >= 2


def _norms(layers: List[EngineLayer], norms: Mapping[str, Tuple[str, ...]]) -> _Seen:
    homes = _homes(layers)
    seen = [nodes for nodes in norms.values() if any(homes[node] for node in nodes)]
    # Names of layers may repeat, so a layer is told from another by what it is, not by its name.
    held = [{id(kernel) for node in nodes for kernel in homes[node]} for nodes in seen]
    return _Seen(len(seen), sum(len(ids) == 1 for ids in held))


def _expected(counted: _Seen, opaque: List[EngineLayer]) -> Tuple[Optional[int], Optional[int]]:
    """(found, fused) of an engine that does not say what it was built from."""
    return (None if opaque else counted.seen), None


def _counts(
    what: str, counted: _Seen, built: Tuple[Optional[int], Optional[int]], notes: List[str]
) -> Dict[str, Optional[int]]:
    """Found and fused; of the layers where they show all, else as it was when it was built."""
    found, fused = built
    if counted.seen == found:
        return {"found": found, "fused": counted.fused}
    total = "an unknown number of" if found is None else str(found)
    notes.append(
        f"{counted.seen} of {total} {what} are in layers that tell what they hold"
        + (f", {counted.fused} of them fused" if counted.seen else "")
        + ("" if fused is None else "; the number of fused ones is what the builder listed")
    )
    return {"found": found, "fused": fused}


def _reformats(
    layers: List[EngineLayer], times: Mapping[str, float], notes: List[str]
) -> Dict[str, Any]:
    names = {kernel.name for kernel in layers}
    strange = sum(name not in names for name in times)
    told = strange < len(times) and sum(times.values()) > 0
    if not told:
        notes.append("the times of the layers were not told")
    elif strange:
        notes.append(f"{strange} of {len(times)} times are of layers that are not listed")

    def spent(found: List[EngineLayer]) -> Optional[float]:
        listed = {kernel.name for kernel in found}
        return sum(ms for name, ms in times.items() if name in listed) if told else None

    reformats = [kernel for kernel in layers if kernel.is_reformat]
    others = sum(kernel.kind == "Reformat" and not kernel.is_reformat for kernel in layers)
    if others:
        notes.append(f"{others} more layers of type Reformat quantize, cast or copy for the model")
    moves = [kernel for kernel in layers if _MOVES.fullmatch(kernel.name)]
    if moves:
        ms = spent(moves)
        shown = "" if ms is None else f" ({ms:.2f} ms)"
        notes.append(f"{len(moves)} compiled kernels{shown} move data and do no more")
    ms = spent(reformats)
    percent = None if ms is None else 100.0 * ms / sum(times.values())
    return {"count": len(reformats), "time_ms": ms, "percent": percent}


def _slowest(layers: List[EngineLayer], times: Mapping[str, float]) -> List[Dict[str, Any]]:
    by_name = {kernel.name: kernel for kernel in layers}
    found = []
    for name in sorted(times, key=lambda name: -times[name])[:SLOWEST]:
        nodes = by_name[name].nodes if name in by_name else ()
        places = layers_named_in(" ".join(nodes) or name)
        more = f" and {len(places) - MOST_PLACES} more" if len(places) > MOST_PLACES else ""
        shown = ", ".join(places[:MOST_PLACES]) + more
        found.append({"name": name, "layer": shown or None, "ms": times[name]})
    return found
