"""The command line. `python -m exporter` is `riceseg export`."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from typing import Any

from engines.commands.mistakes import INTERRUPTED


def main() -> None:
    """The `riceseg` command; on a board with numpy alone, its commands for engines."""
    if not _has_click():
        from engines.__main__ import main as board_main

        raise SystemExit(board_main(prog="riceseg"))
    _command_group()(prog_name="riceseg")


def export() -> None:
    """The `export` console script and `python -m exporter`: `riceseg export`."""
    if not _has_click():
        print(
            "error: got no click and rich in this Python; expected them for exporting; "
            "do this: pip install 'riceseg[export]'",
            file=sys.stderr,
        )
        raise SystemExit(2)
    _command_group()(args=["export", *sys.argv[1:]], prog_name="riceseg")


def _command_group() -> Callable[..., Any]:
    try:
        from exporter.commands.group import riceseg
    except KeyboardInterrupt:  # loading the packages takes a moment
        print("\ninterrupted", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    return riceseg


def _has_click() -> bool:
    return all(importlib.util.find_spec(name) for name in ("click", "rich"))


if __name__ == "__main__":
    export()
