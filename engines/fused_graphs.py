"""Graphs that compose bands by themselves: what those who write, build and run them agree on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, Optional, Tuple

from engines.bands.recipe import BandRecipe
from engines.bundle import Bundle, FileInfo, bundle_path
from engines.errors import BundleError, ConfigError
from engines.onnx_metadata import metadata_from_onnx

# Of the keys in `Bundle.files`: "int8_fp16_bands" is the sibling of "int8_fp16".
_KEY_SUFFIX = "_bands"

# The names of the nodes that compose. A weakly typed TensorRT holds these in FP32.
NODE_PREFIX = "/bands/"

# In the metadata of the ONNX file: the recipe that its nodes compose by.
RECIPE_KEY = "riceseg.bands"


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


def recipe_text(recipe: BandRecipe) -> str:
    """What is written under RECIPE_KEY."""
    return json.dumps(recipe.record())


def check_recipes(folder: Path, bundle: Bundle) -> None:
    """BundleError where a fused graph in `folder` composes by another recipe than `bundle` says.

    Bands in another order have the same shape, and would give wrong labels without a word. Files
    from before the recipe was written into them are taken as they are.
    """
    if bundle.bands is None:
        return
    wanted = bundle.bands.recipe.record()
    for key, info in bundle.files.items():
        found = _recipe_in(folder, info) if key.endswith(_KEY_SUFFIX) else None
        if found is not None and any(
            found.get(name, value) != value for name, value in wanted.items()
        ):
            raise BundleError(
                f"{info.file!r}, which composes {_shown(found)}",
                expected=f"{_shown(wanted)}, as bundle.json says",
                do="copy the folder from where it was made, or export the model again",
            )


def _recipe_in(folder: Path, info: FileInfo) -> Optional[Dict[str, Any]]:
    """None where none is written, or in no way that this version knows."""
    path = bundle_path(folder, info.file)
    try:
        found = json.loads(metadata_from_onnx(path).get(RECIPE_KEY, "null"))
    except OSError as error:
        raise BundleError(
            f"{info.file!r}: {error.strerror}",
            expected="a readable file",
            do="check its permissions",
        ) from error
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _shown(recipe: Dict[str, Any]) -> str:
    return f"{recipe.get('letters')}, {recipe.get('norm')}, nodata {recipe.get('nodata')}"
