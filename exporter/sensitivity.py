"""What INT8 costs in each group of layers of a bundle: quick measures, ranges, and mIoU."""

from __future__ import annotations

import datetime
import itertools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import onnx

from calibration.group_errors import (
    EVERYTHING,
    GroupError,
    group_errors,
    policies_by_group,
)
from calibration.group_ranges import group_ranges
from calibration.groups import OTHER, LayerGroup
from calibration.images import calibration_list
from calibration.onnx_file import image_input, model_from_onnx_file
from calibration.quantize import int8_model_from_ranges
from calibration.ranges import Method, Ranges, ranges_from_images
from engines.board.machine import machine_record, package_versions
from engines.bundle import Bundle, bundle_from_folder, verified_path
from engines.dataset import Pair, calibration_images_from, pairs_from_folder
from engines.errors import BundleError, ConfigError
from engines.evaluation.evaluate import Evaluation, evaluate_predictors
from engines.evaluation.scored_rows import check_something_was_scored
from engines.onnx_predictor import OnnxPredictor
from engines.progress import Progress
from exporter.groups import groups_of
from exporter.network_images import evenly, first_readable, left_out_lines, network_images
from exporter.request import DataOptions

FORMAT, FORMAT_VERSION = "riceseg-sensitivity", 1
METHOD: Method = "mse"
# SQNR of 15 groups on 8 of 40 rice panicle tiles: within 1.2 dB of that on all, in the same order.
ERROR_IMAGES = 8


@dataclass(frozen=True)
class _Subject:
    """What is looked at: one FP32 graph, its groups, and the images."""

    bundle: Bundle
    path: Path
    model: onnx.ModelProto
    groups: tuple[LayerGroup, ...]
    calib: tuple[Path, ...]
    pairs: tuple[Pair, ...]
    data: DataOptions


def sensitivity_of_bundle(
    folder: Path, data: DataOptions, *, most_images: int, progress: Progress
) -> dict[str, Any]:
    """The content of sensitivity.json: each group alone in INT8, the rest in FP32, against FP32.

    `data.calib` must be set; without `data.val` no mIoU is measured. Of each set at most
    `most_images` are used, evenly spread over it. The bundle is only read, and not trusted.
    Raises DatasetError when the two sets share an image, and the UserError of whatever cannot be
    used. Nothing is left behind, even when it is interrupted.
    """
    with progress.stage("load"):
        subject = _subject(folder, data, most_images)
    reference = _reference(subject, progress) if subject.pairs else None
    with progress.stage(f"calibrate ({METHOD})"):
        subject, ranges = _calibrated(subject, progress)
    with progress.stage("compare each group with FP32"):
        # Ranges were fitted to none of the validation images.
        files = [pair.image for pair in subject.pairs] or subject.calib
        images = first_readable(files, ERROR_IMAGES, subject.bundle.input, data)
        errors = group_errors(
            subject.path, images, ranges, subject.groups, on_group=progress.advance
        )
    drops: dict[str, float] = {}
    if reference is not None:
        with progress.stage("score each group"):
            drops = _drops(subject, ranges, reference, progress)
    section = {
        "images": ranges.images,
        "error_images": len(images),
        "val_images": 0 if reference is None else reference.images,
        "method": ranges.method,
        "reference_miou": None if reference is None else reference.rows[0].scores.miou,
        "groups": _group_records(subject, ranges, errors, drops),
    }
    return _document(subject, section, reference)


def _subject(folder: Path, data: DataOptions, most_images: int) -> _Subject:
    bundle = bundle_from_folder(folder)
    if "fp32" not in bundle.files:
        raise ConfigError(
            f"the bundle {folder} without an FP32 graph",
            expected="the graph that INT8 is compared with",
            do="export the checkpoint again",
        )
    path = verified_path(folder, bundle.files["fp32"])
    model = model_from_onnx_file(path)
    _, hwc = image_input(model)
    if hwc != (*bundle.input.hw, bundle.input.channels):
        raise BundleError(
            f"{path.name} for images of {hwc}",
            expected=f"{(*bundle.input.hw, bundle.input.channels)}, as bundle.json says",
            do="export the checkpoint again",
        )
    assert data.calib is not None  # the command requires it
    pairs = pairs_from_folder(data.val, masks=data.val_masks) if data.val is not None else ()
    files = calibration_images_from(data.calib)
    calib = calibration_list(files, validation_files=[pair.image for pair in pairs])
    return _Subject(
        bundle,
        path,
        model,
        groups_of(bundle.model.architecture),
        tuple(evenly([item.path for item in calib], most_images)),
        tuple(evenly(pairs, most_images)),
        data,
    )


def _calibrated(subject: _Subject, progress: Progress) -> tuple[_Subject, Ranges]:
    """The ranges of every tensor that any group needs, and `subject` without unreadable images."""
    skipped: dict[Path, str] = {}
    total = len(subject.calib)
    ranges = ranges_from_images(
        subject.path,
        network_images(subject.calib, subject.bundle.input, subject.data, skipped),
        method=METHOD,
        policy=EVERYTHING,
        on_image=lambda done: progress.advance(done + len(skipped), total),
    )
    lines = [f"{path.name}: {reason}" for path, reason in skipped.items()]
    for line in left_out_lines("calibration", lines):
        progress.warn(line)
    readable = tuple(path for path in subject.calib if path not in skipped)
    return replace(subject, calib=readable), ranges


def _reference(subject: _Subject, progress: Progress) -> Evaluation:
    """FP32's scores, first of all: masks that cannot be scored are then told at once."""
    with progress.stage("score FP32"):
        reference = _evaluation(subject, subject.path, progress.advance)
    for line in left_out_lines("validation", reference.skipped):
        progress.warn(line)
    check_something_was_scored(reference)
    return reference


def _drops(
    subject: _Subject, ranges: Ranges, reference: Evaluation, progress: Progress
) -> dict[str, float]:
    """The points of mIoU that each group loses."""
    policies = policies_by_group(subject.model, subject.groups)
    steps, total = itertools.count(1), len(policies) * len(subject.pairs)

    def on_image(done: int, of: int) -> None:
        progress.advance(next(steps), total)

    drops = {}
    with tempfile.TemporaryDirectory(prefix="riceseg-sensitivity-") as scratch:
        file = Path(scratch) / "group.onnx"
        for name, policy in policies.items():
            quantized, _ = int8_model_from_ranges(subject.model, ranges, policy=policy)
            onnx.save(quantized, str(file))
            scores = _evaluation(subject, file, on_image).rows[0].scores
            drops[name] = reference.rows[0].scores.miou - scores.miou
    return drops


def _evaluation(subject: _Subject, path: Path, on_image: Callable[[int, int], None]) -> Evaluation:
    bundle, data = subject.bundle, subject.data
    told = data.reduce_zero_label
    with OnnxPredictor(path) as predictor:
        return evaluate_predictors(
            [predictor],
            subject.pairs,
            input=bundle.input,
            num_outputs=bundle.num_outputs,
            num_classes=len(bundle.classes),
            reduce_zero_label=bundle.reduce_zero_label if told is None else told,
            convert_images=data.convert_images,
            skip_bad=data.skip_bad,
            on_image=on_image,
        )


def _group_records(
    subject: _Subject, ranges: Ranges, errors: Sequence[GroupError], drops: Mapping[str, float]
) -> list[dict[str, Any]]:
    by_group = group_ranges(subject.model, ranges, subject.groups, policy=EVERYTHING)
    titles = {group.name: group.title for group in (*subject.groups, OTHER)}
    return [
        {
            "name": error.name,
            "title": titles[error.name],
            "nodes": len(error.nodes),
            "macs_percent": error.macs_percent,
            "miou_drop": drops.get(error.name),
            "sqnr_db": error.sqnr_db,
            "agreement": error.agreement,
            **asdict(by_group[error.name]),
        }
        for error in errors
    ]


def _document(
    subject: _Subject, section: Mapping[str, Any], reference: Evaluation | None
) -> dict[str, Any]:
    info, data = subject.bundle.files["fp32"], subject.data
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "name": subject.bundle.name,
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "checkpoint": asdict(subject.bundle.checkpoint),
        "machine": machine_record(),
        "versions": package_versions(),
        "data": {
            "calib": str(data.calib),
            "val": None if data.val is None else str(data.val),
            "sha256": None if reference is None else reference.images_sha256,
        },
        "file": info.file,
        "sha256": info.sha256,
        **section,
    }
