"""INT8 of every family: accuracy, what each group of layers costs, and builds with TensorRT-RTX.

Takes the checkpoints of scripts/train_short.py, trained for minutes: they stand in for trained
weights that may not be redistributed, and show which layers suffer, not how good a network is.

    PYTHONPATH=$(.venv/bin/python -m tests.rtx.assemble) .venv/bin/python \\
        scripts/measure_families.py FOLDER DATA --out docs/results/families.json
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from measure_build import built

from engines.board.machine import machine_record, package_versions
from engines.images import sha256_of_file
from engines.progress import text_progress
from engines.reports.check import plain_document
from engines.reports.report import json_text, write_text
from exporter.export import ExportResult, export_bundle
from exporter.request import DataOptions, ExportRequest, GraphOptions, Int8Options
from exporter.sensitivity import sensitivity_of_bundle

SIZE = (256, 256)
CALIBRATION, VALIDATION, FOR_GROUPS = 32, 24, 8  # images
PRECISION = {"fp32": "fp32", "fp16": "fp16", "int8": "int8", "int8_fp16": "int8"}


def main() -> None:
    options = arguments()
    families: dict[str, Any] = {}
    if options.out is not None and options.out.exists():  # the others stay as they were measured
        families = json.loads(options.out.read_text(encoding="utf-8"))["families"]
    with tempfile.TemporaryDirectory() as place:
        data = data_of(options.data, Path(place))
        for checkpoint in sorted(options.checkpoints.glob("*.pth")):
            print(checkpoint.stem, file=sys.stderr, flush=True)
            folder = Path(place) / checkpoint.stem
            families[checkpoint.stem] = measured(checkpoint, folder, data, tensorrt=options.build)
            record = {
                "format": "riceseg-families",
                "format_version": 1,
                "created": datetime.datetime.now(datetime.timezone.utc).isoformat(
                    timespec="seconds"
                ),
                "machine": machine_record(),
                "versions": package_versions(),
                "input_hw": SIZE,
                "calibration_images": CALIBRATION,
                "validation_images": VALIDATION,
                "families": families,
            }
            if options.out is not None:
                write_text(options.out, json_text(plain_document(record)))
    print(table(families))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("checkpoints", type=Path, help="folder of scripts/train_short.py")
    parser.add_argument("data", type=Path, help="images/{train,val} and masks/{train,val}")
    parser.add_argument("--build", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--out", type=Path, help="what other checkpoints gave stays in it")
    return parser.parse_args()


def data_of(data: Path, place: Path) -> DataOptions:
    """Lists of some images, evenly spread over the training and the validation part."""
    for part, count in (("train", CALIBRATION), ("val", VALIDATION)):
        files = sorted((data / "images" / part).iterdir())
        chosen = [files[i * len(files) // count] for i in range(count)]
        for kind, suffix in (("images", None), ("masks", ".png")):
            folder = place / "data" / kind / part
            folder.mkdir(parents=True)
            for path in chosen:
                source = path if suffix is None else data / kind / part / f"{path.stem}{suffix}"
                (folder / source.name).symlink_to(source.resolve())
    images = place / "data" / "images" / "train"
    # The configurations in the checkpoints are ADE20K's, whose index 0 is no class.
    return DataOptions(calib=images, val=place / "data", reduce_zero_label=False)


def measured(
    checkpoint: Path, folder: Path, data: DataOptions, *, tensorrt: bool
) -> dict[str, Any]:
    """Rows of plain INT8 and with every switch, the sensitivity of each group, and the builds."""
    progress = text_progress(sys.stderr)
    plain = export_bundle(request_of(checkpoint, folder, data, Int8Options()), progress)
    best = export_bundle(
        request_of(
            checkpoint,
            folder.with_name(f"{folder.name}-best"),
            data,
            Int8Options(equalize=True, rounding="compensated", bias_correction=True),
        ),
        progress,
    )
    sensitivity = sensitivity_of_bundle(folder, data, most_images=FOR_GROUPS, progress=progress)
    forms = {form: folder / f"model.{form}.onnx" for form in PRECISION}
    forms["fp32"] = folder / "model.onnx"
    forms["int8_fp16"] = folder / "model.int8.fp16.onnx"
    return {
        "checkpoint_sha256": sha256_of_file(checkpoint),
        "name": plain.report["name"],
        "int8_macs_percent": plain.report["calibration"]["int8_macs_percent"],
        "rows": rows_of(plain),
        "rows_with_every_switch": rows_of(best),
        "sensitivity": sensitivity,
        "builds": {form: built(path, PRECISION[form]) for form, path in forms.items()}
        if tensorrt
        else None,
    }


def request_of(checkpoint: Path, out: Path, data: DataOptions, int8: Int8Options) -> ExportRequest:
    return ExportRequest(
        checkpoint=checkpoint,
        out=out,
        graph=GraphOptions(size=SIZE, resize="stretch"),
        data=data,
        int8=True,
        fp16=True,
        int8_options=int8,
        max_drop=100.0,
        runs=3,
    )


def rows_of(result: ExportResult) -> list[dict[str, Any]]:
    return [
        {key: row[key] for key in ("form", "miou", "agreement", "file_mb")}
        for row in result.report["rows"]
    ]


def table(families: dict[str, Any]) -> str:
    """Of plain INT8 and of each group of layers alone in INT8, the noisiest two."""
    lines = [
        "| network | mIoU | INT8 | same labels | with every switch | MACs in INT8 "
        "| noisiest groups alone in INT8 (share of MACs) |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    for family in families.values():
        rows, best = (
            {row["form"]: row for row in family[key]} for key in ("rows", "rows_with_every_switch")
        )
        int8 = rows["ONNX INT8"]
        groups = sorted(family["sensitivity"]["groups"], key=lambda group: group["sqnr_db"])
        noisiest = [
            f"{group['title']} {group['sqnr_db']:.0f} dB ({group['macs_percent']:.1f} %)"
            for group in groups[:2]
        ]
        cells = [
            family["name"],
            f"{rows['PyTorch FP32']['miou']:.2f}",
            f"{int8['miou']:.2f}",
            f"{int8['agreement']:.2f} %",
            f"{best['ONNX INT8']['agreement']:.2f} %",
            f"{family['int8_macs_percent']:.0f} %",
            "; ".join(noisiest),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
