"""`doctor`: what can be built and run here, and what to install for the rest."""

from __future__ import annotations

import argparse
import json

from engines.commands.parsing import Command, count
from engines.progress import Progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", type=count(0, 255), default=0, metavar="N", help="which GPU")
    parser.add_argument("--json", action="store_true", help="print the record as JSON")


def run(options: argparse.Namespace, progress: Progress) -> int:
    """Exit code 0 if a bundle can be run here in some way, else 1."""
    from engines.doctor import doctor_record, doctor_text

    with progress.stage("look around"):
        record = doctor_record(device=options.device)
    if options.json:
        print(json.dumps(record, ensure_ascii=False, indent=1))
    else:
        print(doctor_text(record), end="")
    return 0 if record["can"]["engines"]["works"] or record["can"]["onnx"]["works"] else 1


COMMAND = Command(
    name="doctor",
    summary="What can be built and run here, and what to install for the rest.",
    examples=("riceseg doctor", "riceseg doctor --json > board.json"),
    add_arguments=add_arguments,
    run=run,
)
