"""What is chosen becomes files: the list, the picture, and the numbers behind both as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibration.image_set.contact_sheet import Caption, contact_sheet
from calibration.image_set.copies import LeftOut
from calibration.image_set.coverage import Choice, coverage_rows, stratum_counts, stratum_title
from calibration.image_set.files import SetFiles, list_line, written_together
from calibration.image_set.request import SetRequest
from engines.images import image_files_from, image_from_file
from engines.progress import Progress
from engines.reports.report import write_text

if TYPE_CHECKING:
    from PIL.Image import Image

FORMAT = "riceseg calibration set"
FORMAT_VERSION = 1


def write_set(
    files: SetFiles,
    choice: Choice,
    left_out: Sequence[LeftOut],
    request: SetRequest,
    *,
    progress: Progress,
) -> None:
    """Write all three; the list is read back before it gets its name. Raises OutputError."""
    folder = files.list.parent
    lines = [list_line(image.path, folder) for image in choice.chosen_images]
    text = f"# riceseg calibrate-set --count {request.count} --seed {request.seed}\n"
    text += "".join(f"{line}\n" for line in lines)
    document = _document(choice, left_out, request, lines)
    with progress.stage("draw the contact sheet"):
        sheet = _sheet(choice, request, progress)
        with written_together(files, overwrite=request.overwrite) as hidden:
            sheet.save(hidden.sheet, format="PNG")
            write_text(hidden.coverage, document)
            hidden.list.write_bytes(text.encode("utf-8"))
            _check_list(hidden.list, choice)


def _check_list(path: Path, choice: Choice) -> None:
    wanted = [os.path.realpath(image.path) for image in choice.chosen_images]
    assert [os.path.realpath(file) for file in image_files_from(path)] == wanted


def _sheet(choice: Choice, request: SetRequest, progress: Progress) -> Image:
    captions = [
        Caption(choice.images[index].path.name, stratum_title(choice.strata.of_image[index]))
        for index in choice.chosen
    ]
    reading = request.reading
    pictures = (
        image_from_file(image.path, channels=reading.channels, convert=reading.convert)
        for image in choice.chosen_images
    )
    title = (
        f"{len(choice.chosen)} of {len(choice.images)} images to calibrate on, "
        f"from {request.source.name or request.source}, seed {request.seed}"
    )
    sheet, lettering = contact_sheet(title, captions, pictures, on_picture=progress.advance)
    if lettering.missing:
        progress.warn(
            f"no font here has {''.join(sorted(lettering.missing)[:10])!r}: escaped in the contact "
            "sheet, whose numbers are the lines of the list; a font like Noto Sans CJK "
            "(apt install fonts-noto-cjk) shows Korean"
        )
    return sheet


def _document(
    choice: Choice, left_out: Sequence[LeftOut], request: SetRequest, lines: Sequence[str]
) -> str:
    """The coverage as JSON; `images` in the order of the list."""
    document: dict[str, Any] = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "source": str(request.source),
        "validation": None if request.val is None else str(request.val),
        "count": request.count,
        "seed": request.seed,
        "near_bits": request.near_bits,
        "candidates": len(choice.images),
        "chosen": len(choice.chosen),
        "limits": choice.strata.limits,
        "coverage": [asdict(row) for row in coverage_rows(choice)],
        "strata": [
            {"stratum": stratum_title(stratum), "candidates": size, "chosen": taken}
            for stratum, (size, taken) in stratum_counts(choice).items()
        ],
        "left_out": [
            {"file": str(item.path), "reason": item.reason, "why": item.text} for item in left_out
        ],
        "images": [
            {
                "file": line,
                "sha256": choice.images[index].sha256,
                "perceptual_hash": f"{choice.images[index].look:016x}",
                "classes": choice.images[index].classes,
                "brightness": choice.images[index].brightness,
                "contrast": choice.images[index].contrast,
                "sharpness": choice.images[index].sharpness,
                "stratum": stratum_title(choice.strata.of_image[index]),
            }
            for line, index in zip(lines, choice.chosen, strict=True)
        ],
    }
    return json.dumps(document, ensure_ascii=False, allow_nan=False, indent=2) + "\n"
