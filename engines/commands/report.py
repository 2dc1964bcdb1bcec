"""`report` where nothing but numpy is installed: several reports in one Markdown table."""

from __future__ import annotations

import argparse
from pathlib import Path

from engines.commands.parsing import Command
from engines.progress import Progress, printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "reports", type=Path, nargs="+", help="report.json files, or folders that hold one"
    )


def run(options: argparse.Namespace, progress: Progress) -> int:
    from engines.reports.merge import merged_markdown, merged_report, reports_from_paths

    found, sources = reports_from_paths(options.reports)
    for line in merged_markdown(merged_report(found, sources=sources)).rstrip("\n").split("\n"):
        print(printable(line))
    return 0


COMMAND = Command(
    name="report",
    summary="Reports of several devices in one table.",
    examples=("riceseg report orin-nano/report.json workstation/report.json",),
    add_arguments=add_arguments,
    run=run,
)
