"""What `bundle.json` says: names, sizes, classes, files and measured results of one exported model.

A bundle is a folder that travels to the device; `bundle.json` in it is the only place from which
a runtime takes input size, normalisation, classes and palette. The file may come from anywhere,
so every field is checked before it is used, and no name in it can lead out of the folder.
"""

from __future__ import annotations

import json
import os
import stat
from dataclasses import asdict
from pathlib import Path
from typing import Dict, Tuple, Union

from engines.bundle_bands import bands_from_field
from engines.bundle_fields import EXPORT_AGAIN, FILE_NAME, MAX_JSON_BYTES, Field, field_from_json
from engines.bundle_records import (
    MAX_BATCH,
    MAX_CHANNELS,
    MAX_OUTPUTS,
    MAX_SIDE,
    BandsInfo,
    BuildHints,
    Bundle,
    CheckpointInfo,
    FileInfo,
    Gate,
    InputSpec,
    ModelInfo,
)
from engines.errors import BundleError, output_error
from engines.images import sha256_of_file

__all__ = [
    "MAX_BATCH",
    "MAX_CHANNELS",
    "MAX_OUTPUTS",
    "MAX_SIDE",
    "BandsInfo",
    "BuildHints",
    "Bundle",
    "CheckpointInfo",
    "FileInfo",
    "Gate",
    "InputSpec",
    "ModelInfo",
    "bundle_from_folder",
    "bundle_path",
    "write_bundle_json",
]

FORMAT = "riceseg-bundle"
FORMAT_VERSION = 1
MAX_NODES = 100_000


def bundle_from_folder(folder: Union[str, os.PathLike[str]]) -> Bundle:
    """Read and check `folder/bundle.json`.

    Guarantees on return: every field has its documented type and range, the numbers agree with
    each other, and every file named in `files` and `report` is a regular file inside the folder
    (symbolic links followed) with the recorded size. Hashes are not computed here.
    Raises BundleError for everything else, whatever the file contains.
    """
    root = Path(folder)
    if not root.is_dir():
        raise BundleError(
            f"{str(root)!r}, which is not a folder",
            expected=f"a bundle: a folder with {FILE_NAME} in it",
            do="give the folder that the export wrote",
        )
    bundle = _bundle_from_bytes(_json_bytes(bundle_path(root, FILE_NAME)))
    for info in bundle.files.values():
        size = bundle_path(root, info.file).stat().st_size
        if size != info.bytes:
            raise BundleError(
                f"{info.file!r} of {size} bytes",
                expected=f"{info.bytes} bytes, as {FILE_NAME} says",
                do=EXPORT_AGAIN,
            )
    if bundle.report is not None:
        bundle_path(root, bundle.report)
    return bundle


def write_bundle_json(bundle: Bundle, folder: Union[str, os.PathLike[str]]) -> Path:
    """Write `folder/bundle.json` (UTF-8) in one step, replacing an older one; returns its path.

    The text is read back before it takes the name, so that what was written can be opened.
    Raises BundleError when a field is not valid and OutputError when the folder takes no file;
    in both cases an older bundle.json stays as it was. The files it names are not looked at.
    """
    try:
        document = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(bundle)}
        text = json.dumps(document, ensure_ascii=False, allow_nan=False, indent=2)
        data = (text + "\n").encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise BundleError(
            f"a record that JSON cannot hold ({error})",
            expected="finite numbers, text, lists and dictionaries",
            do="replace the value, for example NaN by None",
        ) from error
    _bundle_from_bytes(data)
    path = Path(folder) / FILE_NAME
    temporary = path.with_name(f".{FILE_NAME}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError as error:
        if temporary.exists():
            temporary.unlink()
        raise output_error(
            repr(str(path)), error, do="check the folder, or choose another"
        ) from error
    return path


def bundle_path(folder: Union[str, os.PathLike[str]], file: str) -> Path:
    """Path of a file that a bundle names; BundleError unless it is a regular file in the folder."""
    root = Path(folder)
    try:
        real_root, real = os.path.realpath(root), os.path.realpath(root / file)
        inside = os.path.commonpath([real_root, real]) == real_root
        regular = stat.S_ISREG(os.stat(real).st_mode)
    except (OSError, ValueError) as error:
        raise BundleError(
            f"no readable file {file!r} in {str(root)!r} ({error})",
            expected="every file of the bundle beside its bundle.json",
            do=EXPORT_AGAIN,
        ) from error
    if not (inside and regular):
        problem = "which leads out of the folder" if not inside else "which is not a regular file"
        raise BundleError(
            f"{file!r} in {str(root)!r}, {problem}",
            expected="a file inside the bundle",
            do=EXPORT_AGAIN,
        )
    return root / file


def verified_path(folder: Union[str, os.PathLike[str]], info: FileInfo) -> Path:
    """As `bundle_path`; BundleError also where the file is not the recorded one, by its SHA-256."""
    path = bundle_path(folder, info.file)
    found = sha256_of_file(path)
    if found != info.sha256:
        raise BundleError(
            f"{info.file!r} with SHA-256 {found}",
            expected=f"{info.sha256}, as bundle.json says",
            do=EXPORT_AGAIN,
        )
    return path


def _json_bytes(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(MAX_JSON_BYTES + 1)
    except OSError as error:
        raise BundleError(
            f"{str(path)!r}: {error.strerror}",
            expected="a readable file",
            do="check its permissions",
        ) from error


def _bundle_from_bytes(data: bytes) -> Bundle:
    root = field_from_json(data)
    root["format"].one_of(FORMAT)
    if root["format_version"].integer(1, 1_000_000) != FORMAT_VERSION:
        raise BundleError(
            f"a bundle of format version {root['format_version'].value}",
            expected=f"format version {FORMAT_VERSION}",
            do="install a newer riceseg, or export the model again",
        )
    return _bundle_from_field(root)


def _bundle_from_field(root: Field) -> Bundle:
    num_outputs = root["num_outputs"].integer(1, MAX_OUTPUTS)
    classes = tuple(entry.text() for entry in root["classes"].entries(1, num_outputs))
    palette = root["palette"].entries(len(classes), len(classes))
    outputs = tuple(entry.one_of("labels", "logits") for entry in root["outputs"].entries(1, 2))
    bundle = Bundle(
        name=root["name"].text(),
        created=root["created"].text(),
        model=_model_from_field(root["model"]),
        checkpoint=CheckpointInfo(
            file=root["checkpoint"]["file"].text(), sha256=root["checkpoint"]["sha256"].sha256()
        ),
        input=_input_from_field(root["input"]),
        outputs=outputs,
        classes=classes,
        palette=tuple(_rgb_from_field(entry) for entry in palette),
        num_outputs=num_outputs,
        reduce_zero_label=root["reduce_zero_label"].flag(),
        test_mode=root["test_mode"].record(),
        opset=root["opset"].integer(1, 1_000),
        files=_files_from_field(root["files"]),
        calibration=root["calibration"].or_none(Field.record),
        parity=root["parity"].or_none(Field.record),
        report=root["report"].or_none(Field.relative_path),
        gate=root["gate"].or_none(_gate_from_field),
        warnings=tuple(w.text(10_000) for w in root["warnings"].entries(0, 1_000)),
        versions={key: root["versions"][key].text() for key in root["versions"].record()},
        build=root["build"].or_none(_build_from_field) if "build" in root.record() else None,
        bands=root["bands"].or_none(bands_from_field) if "bands" in root.record() else None,
    )
    root["test_mode"]["mode"].text()
    if bundle.model.in_channels != bundle.input.channels:
        raise root["input"]["channels"].refused(f"{bundle.model.in_channels}, as the model takes")
    if bundle.model.num_outputs != num_outputs:
        raise root["num_outputs"].refused(f"{bundle.model.num_outputs}, as the model gives")
    if bundle.bands is not None and len(bundle.bands.letters) != bundle.input.channels:
        wanted = f"as many bands as the input has channels, {bundle.input.channels}"
        raise root["bands"]["letters"].refused(wanted)
    return bundle


def _model_from_field(field: Field) -> ModelInfo:
    return ModelInfo(
        architecture=field["architecture"].text(),
        variant=field["variant"].text(),
        head=field["head"].or_none(Field.text),
        head_channels=field["head_channels"].or_none(lambda f: f.integer(1, 1_000_000)),
        in_channels=field["in_channels"].integer(1, MAX_CHANNELS),
        num_outputs=field["num_outputs"].integer(1, MAX_OUTPUTS),
        parameters=field["parameters"].integer(0, 10**15),
        source=field["source"].text(),
    )


def _input_from_field(field: Field) -> InputSpec:
    channels = field["channels"].integer(1, MAX_CHANNELS)
    height, width = (side.integer(1, MAX_SIDE) for side in field["hw"].entries(2, 2))
    low, usual, high = (size.integer(1, MAX_BATCH) for size in field["batch"].entries(3, 3))
    std = tuple(entry.number() for entry in field["std"].entries(channels, channels))
    if not low <= usual <= high:
        raise field["batch"].refused("[smallest, usual, largest] in ascending order")
    if min(std) <= 0:
        raise field["std"].refused("numbers above 0")
    order = field["channel_order"]
    resize = field["resize"].one_of("stretch", "letterbox")
    return InputSpec(
        name=field["name"].text(),
        hw=(height, width),
        channels=channels,
        channel_order=order.one_of("RGB") if channels == 3 else order.text(),
        mean=tuple(entry.number() for entry in field["mean"].entries(channels, channels)),
        std=std,
        resize="stretch" if resize == "stretch" else "letterbox",
        batch=(low, usual, high),
    )


def _rgb_from_field(field: Field) -> Tuple[int, int, int]:
    red, green, blue = (value.integer(0, 255) for value in field.entries(3, 3))
    return red, green, blue


def _files_from_field(field: Field) -> Dict[str, FileInfo]:
    files = {}
    for key in field.record():
        Field(key, f"a key of {field.where}").text()
        info = field[key]
        files[key] = FileInfo(
            file=info["file"].relative_path(),
            sha256=info["sha256"].sha256(),
            bytes=info["bytes"].integer(0, 10**13),
        )
    return files


def _gate_from_field(field: Field) -> Gate:
    return Gate(
        max_drop=field["max_drop"].number(),
        drop=field["drop"].number(),
        passed=field["passed"].flag(),
    )


def _build_from_field(field: Field) -> BuildHints:
    nodes = field["fp32_nodes"].entries(0, MAX_NODES)
    return BuildHints(
        target=field["target"].text(), fp32_nodes=tuple(node.text(1_000) for node in nodes)
    )
