"""INT8 after training by this project, ONNX Runtime and NVIDIA ModelOpt, side by side in one run.

All start from the same FP32 graph (of `riceseg export`) with the same calibration images, and are
scored on the same validation images: mIoU, agreement with FP32, operators and multiply-accumulates
in INT8 (counted by `ptq.counting` in every tool's graph), build with TensorRT-RTX, time, memory.

    .venv/bin/python scripts/compare_ptq.py --data DATA --images 32 --out docs/results/ptq.json

Runs in the environment of riceseg[export,test]; ModelOpt has one of its own, made once by

    python3.12 -m venv .venv-modelopt
    .venv-modelopt/bin/pip install -c constraints-modelopt.txt 'nvidia-modelopt[onnx]'

DATA holds segformer_b0_crop_weed.pth with crop_weed_full/, and segformer_b0_rice_panicle.pth with
rice_panicle/ (not free, left out where it is missing). Nothing else should run meanwhile: times
are measured. What is measured of a network is kept in OUT.part until all is. Exit code 1 when a
rule of `ptq.rules` is broken.

ONNX Runtime's quant_pre_process is run as its documentation advises, though the FP32 graph is
simplified already (onnxsim, shapes inferred): it still makes Gemm of 30 MatMul and Add. Not with
our default's layers, which would not stay the same (see `ptq.tool_onnxruntime`). Rice panicles, 8
images, 12 to score: agreement 0.03 and 0.02 points higher, symmetric and with our layers the same.
"""

from __future__ import annotations

import argparse
import datetime
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from ptq.jobs import modelopt_versions, tensorrt_folder
from ptq.measure import network_record
from ptq.networks import NETWORKS, Network, networks_there, task_from_network
from ptq.table import ptq_markdown

from engines.board.machine import machine_record, package_versions
from engines.errors import GateError, UserError
from engines.progress import Progress, text_progress
from engines.reports.check import plain_document
from engines.reports.report import check_file_writable, json_text, write_text

QUICK_IMAGES = 8


def main() -> int:
    options = arguments()
    try:
        return compare(options, text_progress(sys.stderr))
    except GateError as error:
        print(f"compare_ptq: {error}", file=sys.stderr)
        return 1
    except UserError as error:
        print(f"compare_ptq: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        kept = options.out is not None and part_of(options.out).exists()
        where = f"what was measured lies in {part_of(options.out)}" if kept else "nothing is kept"
        print(f"compare_ptq: stopped; {where}", file=sys.stderr)
        return 130


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with weights and images")
    parser.add_argument(
        "--images", type=int, default=24, help="calibration images of each network (24)"
    )
    names = [network.name for network in NETWORKS]
    parser.add_argument("--only", choices=names, help="one network alone; no --out then")
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"{QUICK_IMAGES} images to calibrate on and to score, to try the script; no --out",
    )
    parser.add_argument("--out", type=Path, help="where the record is written, as JSON")
    options = parser.parse_args()
    if options.images < 1:
        parser.error("--images must be 1 or more")
    if options.out is not None and (options.quick or options.only):
        parser.error("--out with --quick or --only, which are no whole comparison")
    return options


def compare(options: argparse.Namespace, progress: Progress) -> int:
    """What can fail at once comes first; `options.out` is written when all is measured."""
    versions = package_versions() | modelopt_versions()
    if options.out is not None:
        check_file_writable(options.out)
        part_of(options.out).unlink(missing_ok=True)  # of an earlier run
    networks, skipped = networks_there(options.data, only=options.only)
    for name in skipped:
        progress.warn(f"{name} is left out: its weights or images are not there")
    load_average = os.getloadavg()
    tensorrt, notes = tensorrt_or_note(progress)
    record: dict[str, Any] = {
        "format": "riceseg-ptq",
        "format_version": 1,
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": machine_record(),
        "load_average_before": load_average,
        "versions": versions,
        "runtime": "ONNX Runtime, CPUExecutionProvider",
        "notes": notes,
        "skipped": skipped,
        "networks": [],
    }
    with tempfile.TemporaryDirectory(prefix="compare-ptq-") as folder:
        for network in networks:
            with progress.stage(network.name):
                place = Path(folder) / network.name
                place.mkdir()
                found = measured(network, options, place, tensorrt, progress)
            record["networks"].append(found)
            if options.out is not None:
                write_text(part_of(options.out), json_text(plain_document(record)))
    return published(record, options.out)


def measured(
    network: Network,
    options: argparse.Namespace,
    folder: Path,
    tensorrt: Path | None,
    progress: Progress,
) -> dict[str, Any]:
    most = QUICK_IMAGES if options.quick else None
    with progress.stage("export FP32"):
        task = task_from_network(
            network,
            options.data,
            folder,
            images=options.images if most is None else most,
            most_pairs=most,
        )
    return network_record(network, replace(task, tensorrt=tensorrt), progress)


def tensorrt_or_note(progress: Progress) -> tuple[Path | None, list[str]]:
    try:
        return tensorrt_folder(), []
    except UserError as error:
        progress.warn(f"nothing is built: {error}")
        return None, [f"nothing was built: {error.got}"]


def published(record: dict[str, Any], out: Path | None) -> int:
    """Write, print; 1 when a rule is broken."""
    if out is not None:
        write_text(out, json_text(plain_document(record)))
        part_of(out).unlink(missing_ok=True)
    print(ptq_markdown(record))
    checks = [(network["name"], c) for network in record["networks"] for c in network["checks"]]
    for name, check in checks:
        print(f"{'ok' if check['passed'] else 'BROKEN'}: {name}: {check['text']}")
    return 0 if all(check["passed"] for _, check in checks) else 1


def part_of(out: Path) -> Path:
    """Where the networks lie that were measured so far."""
    return out.with_name(f"{out.name}.part")


if __name__ == "__main__":
    raise SystemExit(main())
