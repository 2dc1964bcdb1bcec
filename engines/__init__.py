"""What runs on the device: a bundle goes in, labels come out.

`import engines` needs Python 3.8 and numpy, nothing else; each predictor imports its own library
when it is opened. The names below are loaded when they are first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, List

if TYPE_CHECKING:
    from engines.bundle import Bundle, bundle_from_folder
    from engines.segmenter import Segmenter

__all__ = ["Bundle", "Segmenter", "bundle_from_folder"]

_MODULES = {
    "Bundle": "engines.bundle",
    "Segmenter": "engines.segmenter",
    "bundle_from_folder": "engines.bundle",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> List[str]:
    return sorted({*globals(), *__all__})
