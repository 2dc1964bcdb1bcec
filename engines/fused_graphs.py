"""Graphs that compose bands by themselves: what those who write, build and run them agree on."""

from __future__ import annotations

from typing import Tuple

from engines.bundle import Bundle
from engines.errors import ConfigError

# Of the keys in `Bundle.files`: "int8_fp16_bands" is the sibling of "int8_fp16".
_KEY_SUFFIX = "_bands"

# The names of the nodes that compose. A weakly typed TensorRT holds these in FP32.
NODE_PREFIX = "/bands/"


def graph_key(precision: str, *, fused: bool) -> str:
    """The key in `Bundle.files` of a graph: of the one that takes bands, or of the plain one."""
    return precision + _KEY_SUFFIX if fused else precision


def bands_shape(bundle: Bundle) -> Tuple[Tuple[int, int], int]:
    """((h, w), B) of the scenes that the bundle's fused graphs take; ConfigError without any."""
    bands = bundle.bands
    if bands is None or bands.fused_hw is None:
        raise ConfigError(
            f"the bundle {bundle.name!r}, whose graphs take composed images",
            expected="one with graphs that take bands",
            do="export it with --bands and --fuse-bands, or leave fused out",
        )
    return bands.fused_hw, len(bands.letters)
