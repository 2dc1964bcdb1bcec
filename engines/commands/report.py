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
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="write comparison.json and comparison.md here"
    )


def run(options: argparse.Namespace, progress: Progress) -> int:
    from engines.reports.merge import (
        merged_markdown,
        merged_report,
        reports_from_paths,
        write_merged,
    )

    found, sources = reports_from_paths(options.reports)
    merged = merged_report(found, sources=sources)
    paths = [] if options.out is None else write_merged(merged, options.out)
    print(merged_markdown(merged, shown=printable), end="")
    if paths:
        print(f"\ncomparison: {printable(str(paths[-1]))}")
    return 0


COMMAND = Command(
    name="report",
    summary="Reports of several devices in one table.",
    examples=(
        "riceseg report orin-nano/report.json workstation/report.json",
        "riceseg report orin-nano workstation --out comparison",
    ),
    add_arguments=add_arguments,
    run=run,
)
