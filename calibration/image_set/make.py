"""From a folder of images to a list of those to calibrate on, with its sheet and its coverage."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from calibration.image_set.choice import chosen_indices
from calibration.image_set.copies import LeftOut, Reason, without_copies
from calibration.image_set.coverage import Choice, CoverageRow, coverage_rows
from calibration.image_set.facts import ImageFacts, facts_from_file
from calibration.image_set.files import SetFiles, check_place, list_line
from calibration.image_set.reading import read_files
from calibration.image_set.request import SetRequest
from calibration.image_set.strata import strata_of_images
from calibration.image_set.written import write_set
from engines.dataset import calibration_images_from, masks_of_images, validation_images_from
from engines.errors import DatasetError, ImageError, OutputError
from engines.progress import Progress
from engines.reports.report import check_writable

MAX_NAMED = 10  # files told of for one reason; the coverage file names all


@dataclass(frozen=True)
class SetRecord:
    """The files written, how many of the `candidates` were chosen, and whom they stand for."""

    files: SetFiles
    candidates: int
    chosen: int
    rows: tuple[CoverageRow, ...]
    left_out: tuple[LeftOut, ...]


def calibration_set(request: SetRequest, progress: Progress) -> SetRecord:
    """Choose images and write list, contact sheet and coverage, which appear together.

    Without `val` a data set's own validation part stands for it. Only numbers are kept of an image
    that was read: memory hardly grows with the folder. Raises DatasetError, ImageError (neither for
    a bad file, with `skip_bad`) or OutputError; then nothing is written.
    """
    files = SetFiles(request.out)
    images = calibration_images_from(request.source)
    if request.val is None and _has_validation_part(request.source, images):
        progress.note("compared with the data set's own validation images")
        request = replace(request, val=request.source)
    validation = validation_images_from(request.val) if request.val is not None else ()
    masks = _masks(request, images)
    _check_out(request, files, [*images, *validation, *masks.values()])

    candidates, left_out = _candidates(request, images, validation, masks, progress=progress)
    strata = strata_of_images(candidates)
    chosen = chosen_indices(candidates, strata.of_image, count=request.count, seed=request.seed)
    choice = Choice(candidates, strata, chosen, request.class_names)
    _tell(request, choice, left_out, progress)
    write_set(files, choice, left_out, request, progress=progress)
    return SetRecord(files, len(candidates), len(chosen), coverage_rows(choice), tuple(left_out))


def _has_validation_part(source: Path, images: Sequence[Path]) -> bool:
    """Whether `source`, a data set with `images` to calibrate on, has others to validate on."""
    if not os.path.isdir(source):
        return False
    try:
        found = validation_images_from(source)
    except ImageError:  # a data set without such a part, or with an empty one
        return False
    # Images that lie in `source` itself, beside the parts, are no part.
    return found[0].parent not in (images[0].parent, Path(source))


def _masks(request: SetRequest, images: Sequence[Path]) -> Mapping[Path, Path]:
    """By image; DatasetError where a folder of masks was given that fits none of them."""
    masks = masks_of_images(images, masks=request.masks)
    if request.masks is not None and not masks:
        raise DatasetError(
            f"--masks {os.fspath(request.masks)!r} without a mask for any of the {len(images)} "
            f"images, {images[0].name} the first",
            expected="masks with the names of the images, as .png, .bmp or .tif",
            do="give the folder that holds the masks themselves, or leave --masks out",
        )
    return masks


def _check_out(request: SetRequest, files: SetFiles, sources: Sequence[Path]) -> None:
    check_place(files, sources=sources, overwrite=request.overwrite)
    written = {os.path.realpath(path) for path in files.all}
    for path in (request.source, request.val, request.classes_file):
        if path is not None and os.path.realpath(path) in written:
            raise OutputError(
                f"--out {os.fspath(files.list)!r}, which would replace {path.name}, which is read",
                expected="a name of its own",
                do="choose another --out",
            )
    check_writable(files.list.parent)


def _candidates(
    request: SetRequest,
    images: Sequence[Path],
    validation: Sequence[Path],
    masks: Mapping[Path, Path],
    *,
    progress: Progress,
) -> tuple[list[ImageFacts], list[LeftOut]]:
    """What there is to choose from, one or more, and what was left out."""
    folder = request.out.parent

    def facts(path: Path) -> ImageFacts:
        list_line(path, folder)
        return facts_from_file(path, masks.get(path), reading=request.reading)

    def facts_alone(path: Path) -> ImageFacts:
        return facts_from_file(path, reading=request.reading)

    skip_bad = request.skip_bad
    with progress.stage("read images"):
        read, bad = read_files(images, facts, skip_bad=skip_bad, progress=progress)
    known: list[ImageFacts] = []
    if validation:
        with progress.stage("read validation images"):
            known, unknown = read_files(
                validation, facts_alone, skip_bad=skip_bad, progress=progress
            )
        for path, text in unknown.items():
            progress.warn(f"nothing is compared with validation image {path.name}: {text}")
    left_out = [LeftOut(path, "unreadable", text) for path, text in bad.items()]
    with progress.stage("look for copies"):
        kept, copies = without_copies(
            read, known, near_bits=request.near_bits, on_image=progress.advance
        )
    left_out += copies
    if not kept:
        raise DatasetError(
            f"{len(images)} images, none of which is left to choose from; the first: "
            f"{left_out[0].path.name}: {left_out[0].text}",
            expected="at least one readable image that is not a validation image",
            do="give a folder of training images",
        )
    return kept, left_out


def _tell(
    request: SetRequest, choice: Choice, left_out: Sequence[LeftOut], progress: Progress
) -> None:
    """What the user must not miss: files left out, classes unknown, fewer images than wanted."""
    for reason in get_args(Reason):
        found = [item for item in left_out if item.reason == reason]
        for item in found[:MAX_NAMED]:
            progress.warn(f"left out {item.path.name}: {item.text}")
        if len(found) > MAX_NAMED:
            progress.warn(
                f"left out {len(found) - MAX_NAMED} more ({reason}); "
                f"{SetFiles(request.out).coverage.name} names them"
            )
    if request.val is None:
        progress.warn("not compared with validation images: no --val")
    without_mask = sum(image.classes is None for image in choice.images)
    if without_mask == len(choice.images):
        progress.note("no masks: chosen by light and sharpness alone")
    elif without_mask:
        progress.warn(f"{without_mask} of {len(choice.images)} images have no mask")
    if len(choice.images) < request.count:
        progress.warn(
            f"{len(choice.images)} images to choose from, fewer than --count {request.count}: "
            "all are taken"
        )
