"""`trt-eval`: a bundle's engines on labelled images, beside PyTorch's recorded mIoU."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Tuple

from engines.bundle_runtime import PRECISIONS, RUNTIMES
from engines.commands.parsing import Command, count
from engines.evaluation.request import MODES, DeviceRequest
from engines.progress import Progress, printable

TEXT_NAME = "report.md"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bundle", type=Path, required=True, metavar="DIR", help="what to measure")
    parser.add_argument(
        "--data", type=Path, required=True, metavar="VAL", help="labelled images to score on"
    )
    parser.add_argument(
        "--masks", type=Path, metavar="DIR", help="their masks, where they do not lie beside them"
    )
    parser.add_argument(
        "--precision",
        type=_precisions,
        action="append",
        default=[],
        metavar="|".join(PRECISIONS),
        help="may be repeated, or a list with commas  [default: all that the bundle has]",
    )
    parser.add_argument(
        "--iterations", type=count(1, 1_000_000), default=200, help="timed calls  [default: 200]"
    )
    parser.add_argument(
        "--warmup", type=count(0, 1_000_000), default=5, help="calls left out  [default: 5]"
    )
    parser.add_argument(
        "--mode",
        choices=MODES,
        default="whole",
        help="whole images at the network's size, or windows of images at the scale that is "
        "recorded (else their own), which needs a bundle with logits  [default: whole]",
    )
    parser.add_argument(
        "--against",
        type=Path,
        metavar="REPORT",
        help="a report.json, or its folder, with PyTorch's mIoU  [default: the bundle's own]",
    )
    parser.add_argument(
        "--runtime",
        choices=RUNTIMES,
        default="auto",
        help="auto: TensorRT where it is installed, else ONNX Runtime  [default: auto]",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("trt_eval"),
        metavar="DIR",
        help="where report.json and report.md go  [default: trt_eval]",
    )
    parser.add_argument(
        "--max-drop",
        type=_points,
        metavar="POINTS",
        help="mIoU that may be lost against PyTorch; beyond it the exit code is 1",
    )
    parser.add_argument("--no-build", action="store_true", help="only take engines that are there")
    parser.add_argument("--skip-bad", action="store_true", help="leave unreadable images out")
    parser.add_argument(
        "--convert-images", action="store_true", help="make RGB of grey, 16-bit, alpha or CMYK"
    )


def run(options: argparse.Namespace, progress: Progress) -> int:
    """Measure, write the report, print it. Raises GateError with `--max-drop`."""
    from engines.evaluation.device import check_gate, report_from_device
    from engines.reports.report import check_writable, write_report_json, write_text
    from engines.reports.text import text_of_report

    check_writable(options.out)
    request = DeviceRequest(
        bundle=options.bundle,
        data=options.data,
        masks=options.masks,
        precisions=tuple(name for names in options.precision for name in names),
        iterations=options.iterations,
        warmup=options.warmup,
        mode=options.mode,
        runtime=options.runtime,
        against=options.against,
        max_drop=options.max_drop,
        build=not options.no_build,
        skip_bad=options.skip_bad,
        convert_images=options.convert_images,
    )
    report = report_from_device(request, progress)
    path = write_report_json(report, options.out)
    write_text(path.with_name(TEXT_NAME), text_of_report(report))
    print(text_of_report(report, shown=printable))
    progress.note(f"written: {path} and {path.with_name(TEXT_NAME)}")
    check_gate(report, request)
    return 0


def _precisions(text: str) -> Tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if not all(name in PRECISIONS for name in names):
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(PRECISIONS)}")
    return names


def _points(text: str) -> float:
    try:
        points = float(text)
    except ValueError:
        points = math.nan
    if not -100 <= points <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from -100 to 100")
    return points


COMMAND = Command(
    name="trt-eval",
    summary="mIoU, agreement with PyTorch, time, memory and power of a bundle on this device.",
    examples=(
        "%(prog)s --bundle build/b0 --data rice",
        "%(prog)s --bundle build/b0 --data rice --precision fp16,int8 --max-drop 1",
        "%(prog)s --bundle build/b0 --data rice --runtime onnx",
    ),
    add_arguments=add_arguments,
    run=run,
)
