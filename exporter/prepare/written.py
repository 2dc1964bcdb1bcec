"""What is known of a finished data set, as files: classes, split, balance and a summary."""

from __future__ import annotations

import csv
import io
import json
import platform
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np

from engines.board.machine import package_versions
from exporter.prepare.balance import csv_from_balance
from exporter.prepare.places import Places
from exporter.prepare.png import opencv
from exporter.prepare.request import PreparedRecord, PrepareRequest
from exporter.prepare.rice_classes import RICE_CLASSES, classes_text
from exporter.prepare.scene import write_whole
from exporter.prepare.split import PARTS

FORMAT = "riceseg data set"
FORMAT_VERSION = 1
SPLIT_HEADINGS = ("scene", "part")


def write_tables(
    record: PreparedRecord, parts: Mapping[str, str], request: PrepareRequest, places: Places
) -> tuple[Path, ...]:
    """classes.txt, split.csv, balance.csv and, last, prepare.json; OutputError.

    All UTF-8; balance.csv begins with a byte-order mark, without which Excel garbles Korean.
    """
    files = {
        "classes.txt": classes_text(),
        "split.csv": _split_csv(parts),
        "balance.csv": "\ufeff" + csv_from_balance(record.balance),
        "prepare.json": _summary(record, parts, request),
    }
    for name, text in files.items():
        # Names of scenes can hold anything that a file system does.
        write_whole(places.out / name, text.encode("utf-8", "backslashreplace"))
    return tuple(places.out / name for name in files)


def _split_csv(parts: Mapping[str, str]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(SPLIT_HEADINGS)
    writer.writerows(parts.items())
    return text.getvalue()


def _summary(record: PreparedRecord, parts: Mapping[str, str], request: PrepareRequest) -> str:
    counts = Counter(parts.values())
    document = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "source": str(request.source),
        "combinations": [
            {
                **recipe.record(),
                "channels": recipe.channels,
                "folder": "." if len(record.roots) == 1 else record.roots[recipe.letters].name,
            }
            for recipe in request.recipes
        ],
        "suffix": request.suffix,
        "classes": [
            {"index": item.index, "name": item.name, "name_ko": item.korean, "rgb": item.rgb}
            for item in RICE_CLASSES
        ],
        "split": {
            "shares": dict(zip(PARTS, request.shares, strict=True)),
            "seed": request.seed,
            "scenes": {part: counts[part] for part in PARTS},
        },
        "scenes": record.scenes,
        "balance": [
            {**asdict(row), "scenes_percent": row.scenes_percent,
             "pixels_percent": row.pixels_percent}
            for row in record.balance
        ],
        "left_out": [asdict(item) for item in record.left_out],
        "warnings": list(record.warnings),
        "versions": {
            "riceseg": package_versions()["riceseg"],
            "python": platform.python_version(),
            "numpy": np.__version__,
            "opencv": opencv().__version__,
        },
    }  # fmt: skip
    return json.dumps(document, ensure_ascii=False, allow_nan=False, indent=2) + "\n"
