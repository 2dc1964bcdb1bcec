"""`riceseg bench`: the board's command, and PyTorch checkpoints as well."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from engines.commands.bench import COMMAND as BOARD_COMMAND
from engines.commands.bench import shown
from engines.errors import ConfigError
from engines.progress import Progress
from engines.reports.report import check_writable

ENGINE_FILES = (".onnx", ".engine")


def run(options: argparse.Namespace, progress: Progress) -> int:
    target: Path = options.target
    if target.suffix in ENGINE_FILES or (
        target.is_dir() and not (target / "config.json").is_file()
    ):
        return BOARD_COMMAND.run(options, progress)
    for name in ("precision", "batch"):
        if getattr(options, name) is not None:
            raise ConfigError(
                f"--{name} for a checkpoint",
                expected=f"--{name} with a bundle or a graph; PyTorch runs FP32, one image a call",
                do="leave it out, or export the checkpoint first",
            )
    if options.out is not None:
        check_writable(options.out)
    return shown(_torch_report(options, progress), options.out)


def _torch_report(options: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    from exporter.load import load_model, network_input, network_size
    from exporter.measure import report_record, scored_model, torch_row
    from exporter.request import DataOptions, LoadOptions

    with progress.stage("load"):
        loaded = load_model(options.target, LoadOptions())
        hw, resize = network_size(loaded, None)
        model = scored_model(loaded, network_input(loaded, hw, resize))
    with progress.stage("time PyTorch"):
        row = torch_row(
            model,
            loaded.checkpoint,
            "PyTorch FP32",
            options.runs,
            warmup=options.warmup,
            threads=options.threads,
        )
    return report_record(model, [row], DataOptions(), None, loaded.warnings)


COMMAND = BOARD_COMMAND._replace(
    run=run,
    examples=(*BOARD_COMMAND.examples, "riceseg bench best.pth            (a checkpoint, PyTorch)"),
)
