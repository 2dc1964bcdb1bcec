"""Where files that can be had again are kept for this user."""

from __future__ import annotations

import os
from pathlib import Path

from engines.errors import OutputError


def cache_folder() -> Path:
    """RICESEG_CACHE, else XDG_CACHE_HOME/riceseg, else ~/.cache/riceseg.

    The folder need not exist yet. A relative XDG_CACHE_HOME is ignored, as its specification says.
    """
    own = os.environ.get("RICESEG_CACHE")
    if own:
        return Path(own)
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(xdg):
        return Path(xdg, "riceseg")
    try:
        return Path.home() / ".cache" / "riceseg"
    except RuntimeError as error:
        raise OutputError(
            "a user without a home folder",
            expected="a folder to keep files in",
            do="set RICESEG_CACHE to a folder that can be written to",
        ) from error
