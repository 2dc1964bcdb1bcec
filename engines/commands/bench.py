"""`bench`: latency, rate, memory and power of a bundle's forms, or of one file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Mapping, Optional

from engines.commands.parsing import Command, count
from engines.progress import Progress, printable

PRECISIONS = ("fp32", "fp16", "int8", "int8_fp16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", type=Path, help="a bundle, an .onnx file or an .engine file")
    parser.add_argument("--precision", choices=PRECISIONS, help="of a bundle: only these forms")
    parser.add_argument(
        "--runs", type=count(1, 1_000_000), default=100, metavar="N", help="timed runs (100)"
    )
    parser.add_argument(
        "--warmup", type=count(0, 1_000_000), default=5, metavar="N", help="runs left out (5)"
    )
    parser.add_argument(
        "--threads", type=count(1, 4096), metavar="N", help="of ONNX Runtime; else all cores"
    )
    parser.add_argument(
        "--batch", type=count(1, 4096), metavar="N", help="images a call; else the file's own, or 1"
    )
    parser.add_argument("--out", type=Path, help="write report.json into this folder")


def run(options: argparse.Namespace, progress: Progress) -> int:
    from engines.reports.report import check_writable
    from engines.speed.target import BenchmarkOptions, benchmark_report, benchmark_target

    if options.out is not None:
        check_writable(options.out)
    rows = benchmark_target(
        options.target,
        options.precision,
        options=BenchmarkOptions(options.runs, options.warmup, options.threads, options.batch),
        progress=progress,
    )
    return shown(benchmark_report(options.target, rows), options.out)


def shown(report: Mapping[str, Any], out: Optional[Path]) -> int:
    """Print the report, write it into `out`; exit code 0 if anything could be measured."""
    from engines.reports.report import write_report_json
    from engines.reports.text import text_of_report

    print(text_of_report(report, shown=printable), end="")
    if out is not None:
        print(f"report: {printable(str(write_report_json(report, out)))}")
    return 0 if any(row["error"] is None for row in report["rows"]) else 1


COMMAND = Command(
    name="bench",
    summary="Latency, rate, memory and power of a bundle's forms, or of one file.",
    examples=(
        "riceseg bench build/segformer-b0",
        "riceseg bench build/segformer-b0 --precision int8 --runs 500 --out bench-orin",
        "riceseg bench build/segformer-b0/model.int8.onnx --threads 1",
    ),
    add_arguments=add_arguments,
    run=run,
)
