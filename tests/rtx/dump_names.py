"""Program: the names and docstrings of a TensorRT module as JSON. `dump_names.py MODULE FILE`"""

from __future__ import annotations

import importlib
import json
import sys
import warnings


def members_of(owner: object) -> dict[str, str]:
    """Public names and their docstrings; "" where there is none or reading it fails."""
    found = {}
    for name in dir(owner):
        if not name.startswith("_") or name == "__init__":
            value = owner.__dict__.get(name) if isinstance(owner, type) else None
            value = getattr(owner, name, None) if value is None else value
            found[name] = str(getattr(value, "__doc__", None) or "")
    return found


def names_of(module: object) -> dict[str, object]:
    """{"version", "module": {name: doc}, "classes": {class: {member: doc}}}; a nested class too."""
    classes = {}
    for name in dir(module):
        value = getattr(module, name)
        if isinstance(value, type):
            classes[name] = members_of(value)
    return {
        "version": getattr(module, "__version__", ""),
        "module": members_of(module),
        "classes": classes,
    }


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    names = names_of(importlib.import_module(sys.argv[1]))
    with open(sys.argv[2], "w", encoding="utf-8") as file:
        json.dump(names, file)
