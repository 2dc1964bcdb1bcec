"""The layers of an engine as TensorRT lists them: by its inspector, or in the builder's log.

With ProfilingVerbosity.DETAILED each layer names the ONNX nodes that it was made of, as
"[ONNX Layer: /net/attn/MatMul]"; what Myelin, TensorRT's compiler, has compiled appears kernel by
kernel (seen with TensorRT-RTX 1.7; NVIDIA/TensorRT issue 4397 shows it of 10.10). Older ones, and
engines without that verbosity, list one layer "{ForeignNode[first...last]}" instead, whose inside
nobody tells.
"""

from __future__ import annotations

import json
import re
from typing import Any, List, Mapping, NamedTuple, Tuple, Union

_NODE = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
_NAMED = re.compile(r"/[\w.\-]+(?:/[\w.\-]+)+")
# One layer in the verbose log: "Name: x, LayerType: kgen, Inputs: ..., TacticName: y, StreamId: 0".
_LISTED = re.compile(r"^Name: (.*?), LayerType: (\w*)(.*)$", re.MULTILINE)
_TACTIC = re.compile(r"TacticName: ([^,\s]*)")

# Kernels of fused attention: _gemm_mha_v2_0x97..., _gemv_mha_v1, fmha_v2_flash_attention_fp16_...
_FUSED_ATTENTION = re.compile(r"(?<![a-z])f?mha(?![a-z])")
_REFORMATTING = "Reformatting CopyNode"
_BLOCK = "{ForeignNode["  # of Myelin, or what a DLA core runs


class EngineLayer(NamedTuple):
    """A layer of an engine. `kind`, `tactic` and `origin` are "" where they are not told."""

    name: str
    kind: str
    tactic: str
    origin: str
    nodes: Tuple[str, ...]

    @property
    def opaque(self) -> bool:
        """Many operators whose kernels are not listed."""
        return self.kind == "Myelin" or self.name.startswith(_BLOCK)

    @property
    def is_attention(self) -> bool:
        """A kernel of fused attention, by its name; the model's own names do not count."""
        own = "" if "/" in self.name else self.name
        return _FUSED_ATTENTION.search(f"{self.tactic} {own}") is not None

    @property
    def is_reformat(self) -> bool:
        """A conversion between formats that TensorRT put in.

        Its other layers of this kind quantize, cast or copy for the model ("Origin" says so).
        """
        if self.kind:
            return self.kind == "Reformat" and self.origin in ("", "REFORMAT")
        return self.name.startswith(_REFORMATTING)


def layers_from_inspector(layers_json: Union[str, bytes, Mapping[str, Any]]) -> List[EngineLayer]:
    """The layers of IEngineInspector.get_engine_information in JSON. ValueError for other text.

    A layer is an object or, with verbosity LAYER_NAMES_ONLY, its name.
    """
    document: Any = layers_json
    if isinstance(layers_json, (str, bytes)):
        # TensorRT parts the names in "Metadata" by a bare control character, \x1e or \x1f.
        document = json.loads(layers_json, strict=False)
    entries = document.get("Layers") if isinstance(document, Mapping) else None
    if not isinstance(entries, list):
        raise ValueError("no list 'Layers'")
    return [_layer(entry) for entry in entries]


def layers_from_listing(text: str) -> List[EngineLayer]:
    """The layers that the builder writes into its verbose log at the end."""
    found = []
    for name, kind, rest in _LISTED.findall(text):
        tactic = _TACTIC.search(rest)
        nodes = tuple(_NODE.findall(rest))
        found.append(EngineLayer(name, kind, tactic[1] if tactic else "", "", nodes))
    return found


def _layer(entry: Any) -> EngineLayer:
    fields = entry if isinstance(entry, Mapping) else {"Name": entry}

    def text(*keys: str) -> str:
        return next((str(fields[key]) for key in keys if fields.get(key) not in (None, "")), "")

    name = text("Name")
    # Without metadata the names of what was joined are in the layer's name, but for a block, which
    # bears only its first and last.
    nodes = _NODE.findall(text("Metadata"))
    if not nodes and "ForeignNode[" not in name:
        nodes = _NAMED.findall(name)
    return EngineLayer(name, text("LayerType"), text("TacticName"), text("Origin"), tuple(nodes))
