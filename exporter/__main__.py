"""The command line. `python -m exporter` is `riceseg export`."""

from __future__ import annotations

import sys


def main() -> None:
    """The `riceseg` command."""
    _require_click()
    from exporter.commands.group import riceseg

    riceseg(prog_name="riceseg")


def export() -> None:
    """The `export` console script and `python -m exporter`: `riceseg export`."""
    _require_click()
    from exporter.commands.group import riceseg

    riceseg(args=["export", *sys.argv[1:]], prog_name="riceseg")


def _require_click() -> None:
    try:
        import click  # noqa: F401
        import rich  # noqa: F401
    except ImportError as error:
        print(
            f"error: got no package {error.name!r} in this Python; expected it for the command "
            "line; do this: pip install 'riceseg[export]'",
            file=sys.stderr,
        )
        raise SystemExit(2) from None


if __name__ == "__main__":
    export()
