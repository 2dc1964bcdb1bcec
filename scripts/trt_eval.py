#!/usr/bin/env python3
"""Validate a bundle on the device it runs on: its engines' mIoU beside PyTorch's, and their speed.

    python3 scripts/trt_eval.py --bundle DIR --data VAL

Runs from a checkout without being installed, with numpy, Pillow, TensorRT and a CUDA binding; with
`--runtime onnx` on ONNX Runtime instead. Writes report.json, which `riceseg report` turns into a
page or a table of several devices, and report.md. The exit code is 0, 1 when more mIoU was lost
than `--max-drop`, and 2 for what could not be used.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if (ROOT / "engines").is_dir():
    sys.path.insert(0, str(ROOT))

from engines.commands.mistakes import exit_code_of  # noqa: E402 - found by the line above
from engines.commands.parsing import parsed  # noqa: E402
from engines.commands.trt_eval import COMMAND  # noqa: E402
from engines.progress import text_progress  # noqa: E402


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; the exit code. Every mistake of a user is one line on stderr."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    return exit_code_of(
        lambda: COMMAND.run(parsed(COMMAND, "trt_eval.py", arguments), text_progress(sys.stderr))
    )


if __name__ == "__main__":
    sys.exit(main())
