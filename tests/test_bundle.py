from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_models import bundle_document, tiny_bundle, write_document

from engines.bundle import (
    BuildHints,
    Bundle,
    FileInfo,
    Gate,
    InputSpec,
    bundle_from_folder,
    bundle_path,
    write_bundle_json,
)
from engines.errors import BundleError, OutputError
from engines.resize import ResizeRule


def changed(path: str, value: Any) -> dict[str, Any]:
    """The valid document with the value at a dotted path replaced."""
    document = bundle_document()
    *parents, last = path.split(".")
    place: Any = document
    for key in parents:
        place = place[int(key)] if isinstance(place, list) else place[key]
    place[int(last) if isinstance(place, list) else last] = value
    return document


def spec_with(**changes: Any) -> InputSpec:
    spec = InputSpec(
        name="image",
        hw=(512, 512),
        channels=3,
        channel_order="RGB",
        mean=(123.675, 116.28, 103.53),
        std=(58.395, 57.12, 57.375),
        resize="stretch",
        batch=(1, 1, 8),
    )
    return replace(spec, **changes)


def test_a_bundle_is_read_into_typed_fields(tmp_path: Path) -> None:
    bundle = bundle_from_folder(tiny_bundle(tmp_path))
    assert bundle.name == "tiny"
    assert bundle.input.hw == (2, 3)
    assert bundle.input.batch == (1, 1, 8)
    assert bundle.palette == ((0, 0, 255), (10, 0, 254), (20, 0, 253), (30, 0, 252))
    assert bundle.model.head is None
    assert bundle.gate is None
    assert bundle.files["fp32"].file == "tiny.fp32.onnx"
    assert bundle.files["fp32"].bytes == (tmp_path / "tiny.fp32.onnx").stat().st_size


def test_the_padding_value_is_the_mean_rounded_to_the_nearest_byte() -> None:
    assert spec_with().pad_value == (124, 116, 104)
    assert spec_with(mean=(0.5, 0.0, 127.5)).pad_value == (1, 0, 128)
    assert spec_with(mean=(-3.0, 255.6, 900.0)).pad_value == (0, 255, 255)


def test_the_resize_rule_is_the_named_one() -> None:
    assert spec_with().rule == ResizeRule("stretch")
    assert spec_with(resize="letterbox").rule == ResizeRule("letterbox")


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    bundle = bundle_from_folder(tiny_bundle(tmp_path))
    bundle = replace(
        bundle,
        gate=Gate(max_drop=1.0, drop=0.25, passed=True),
        calibration={"method": "percentile", "images": 64},
        warnings=("int8 is slower on a CPU",),
    )
    write_bundle_json(bundle, tmp_path)
    assert bundle_from_folder(tmp_path) == bundle
    assert [path.name for path in tmp_path.glob("*bundle.json*")] == ["bundle.json"]


def test_a_bundle_of_an_older_export_has_no_build_hints(tmp_path: Path) -> None:
    document = bundle_document()
    assert "build" not in document
    assert bundle_from_folder(write_document(document, tmp_path / "older")).build is None
    write_document({**document, "build": None}, tmp_path / "none")
    assert bundle_from_folder(tmp_path / "none").build is None


def test_build_hints_are_read_and_written(tmp_path: Path) -> None:
    hints = {"target": "jetpack5", "fp32_nodes": ["/net/norm/Pow", "/net/정규화/Div"]}
    write_document({**bundle_document(), "build": hints}, tmp_path)
    bundle = bundle_from_folder(tmp_path)
    assert bundle.build == BuildHints("jetpack5", ("/net/norm/Pow", "/net/정규화/Div"))
    write_bundle_json(bundle, tmp_path)
    written = json.loads((tmp_path / "bundle.json").read_text(encoding="utf-8"))
    assert written["build"] == hints


@pytest.mark.parametrize(
    ("build", "message"),
    [
        ([], r"\[\] \(list\) as build .*an object"),
        ({"target": "any"}, "without 'build.fp32_nodes'"),
        ({"target": 5, "fp32_nodes": []}, r"5 \(int\) as build.target"),
        ({"target": "any", "fp32_nodes": "x"}, "as build.fp32_nodes .*a list"),
        ({"target": "any", "fp32_nodes": ["a", 1]}, r"as build.fp32_nodes\[1\]"),
        ({"target": "any", "fp32_nodes": ["a\n"]}, "without control characters"),
    ],
)
def test_build_hints_of_another_form_are_refused(build: Any, message: str, tmp_path: Path) -> None:
    write_document({**bundle_document(), "build": build}, tmp_path)
    with pytest.raises(BundleError, match=message):
        bundle_from_folder(tmp_path)


def test_korean_class_names_stay_readable_in_the_file(tmp_path: Path) -> None:
    bundle = bundle_from_folder(tiny_bundle(tmp_path))
    write_bundle_json(bundle, tmp_path)
    assert "도열병".encode() in (tmp_path / "bundle.json").read_bytes()
    assert bundle_from_folder(tmp_path).classes == ("background", "정상", "도열병", "도복")


def test_a_field_that_a_newer_writer_added_is_ignored(tmp_path: Path) -> None:
    document = {**bundle_document(), "colour_space": "sRGB"}
    assert bundle_from_folder(write_document(document, tmp_path)).name == "tiny"


def test_a_newer_format_version_says_what_to_install(tmp_path: Path) -> None:
    write_document({**bundle_document(), "format_version": 2}, tmp_path)
    with pytest.raises(BundleError, match=r"format version 2; expected format version 1; .*newer"):
        bundle_from_folder(tmp_path)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("format", "other-bundle", r"'other-bundle' \(str\) as format"),
        ("format_version", "1", r"'1' \(str\) as format_version .*an integer"),
        ("format_version", True, r"True \(bool\) as format_version"),
        ("name", 7, r"7 \(int\) as name .*text"),
        ("name", "a\x1b[31m", "as name .*without control characters"),
        ("name", "x" * 301, "at most 300 characters"),
        ("model", [], r"\[\] \(list\) as model .*an object"),
        ("model.parameters", 1.5, r"1.5 \(float\) as model.parameters"),
        ("model.in_channels", 4, "3 .*as input.channels .*expected 4, as the model takes"),
        ("model.num_outputs", 5, "4 .*as num_outputs .*expected 5, as the model gives"),
        ("checkpoint.sha256", "A" * 64, "as checkpoint.sha256 .*lower-case"),
        ("checkpoint.sha256", "0" * 63, "as checkpoint.sha256 .*64"),
        ("input.hw", [2], r"\[2\] \(list\) as input.hw .*a list of 2 values"),
        ("input.hw.1", 0, r"0 \(int\) as input.hw\[1\] .*from 1 to 16384"),
        ("input.hw.0", 10**9, r"as input.hw\[0\] .*from 1 to 16384"),
        ("input.hw.0", False, r"False \(bool\) as input.hw\[0\]"),
        ("input.mean", [0.0, 0.0], r"as input.mean .*a list of 3 values"),
        ("input.mean.0", "0", r"'0' \(str\) as input.mean\[0\] .*a finite number"),
        ("input.std.2", 0, "as input.std .*above 0"),
        ("input.channel_order", "BGR", "'BGR' .*expected 'RGB'"),
        ("input.resize", "crop", "'crop' .*expected 'stretch' or 'letterbox'"),
        ("input.resize", ["stretch"], "as input.resize .*expected 'stretch' or 'letterbox'"),
        ("input.batch", [4, 1, 8], "as input.batch .*ascending"),
        ("outputs", [], "as outputs .*a list of 1 to 2 values"),
        ("outputs.0", "mask", r"'mask' \(str\) as outputs\[0\]"),
        ("classes", ["a"] * 5, "as classes .*a list of 1 to 4 values"),
        ("classes.1", None, r"None \(NoneType\) as classes\[1\]"),
        ("palette", [[0, 0, 0]], "as palette .*a list of 4 values"),
        ("palette.3.2", 256, r"256 \(int\) as palette\[3\]\[2\] .*from 0 to 255"),
        ("num_outputs", 256, "as num_outputs .*from 1 to 255"),
        ("reduce_zero_label", 0, r"0 \(int\) as reduce_zero_label .*true or false"),
        ("test_mode", {}, "bundle.json without 'test_mode.mode'"),
        ("files", {"fp32": "a.onnx"}, r"'a.onnx' \(str\) as files.fp32 .*an object"),
        ("files", {"fp32": {"file": "a.onnx"}}, "without 'files.fp32.sha256'"),
        ("calibration", "none", "as calibration .*an object"),
        ("gate", {"max_drop": 1, "drop": 2, "passed": "no"}, "as gate.passed .*true or false"),
        ("warnings", "none", "as warnings .*a list"),
        ("versions", {"onnx": 1}, r"1 \(int\) as versions.onnx"),
    ],
)
def test_a_wrong_value_is_refused_by_its_place(
    tmp_path: Path, path: str, value: Any, message: str
) -> None:
    write_document(changed(path, value), tmp_path)
    with pytest.raises(BundleError, match=message):
        bundle_from_folder(tmp_path)


def test_every_missing_field_is_named(tmp_path: Path) -> None:
    for key in bundle_document():
        document = bundle_document()
        del document[key]
        write_document(document, tmp_path)
        with pytest.raises(BundleError, match=f"bundle.json without '{key}'"):
            bundle_from_folder(tmp_path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not plain JSON"),
        (b"\xff\xfe{}", "not plain JSON .*utf-8"),
        (b"[1, 2", "not plain JSON"),
        (b"[]", r"\[\] \(list\) as .*an object"),
        (b"null", "an object"),
        (b"[" * 200_000, "not plain JSON"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "not plain JSON"),
        (b'{"a": NaN}', "number NaN"),
        (b'{"a": -Infinity}', "number -Infinity"),
        (b'{"a": 1e999}', "number 1e999"),
        (b'{"a": ' + b"9" * 1_000_000 + b"}", "number 99999"),
        (b'{"a": "\\ud800"}', "surrogates"),
        (b" " * 4_000_001, "more than 4 MB"),
    ],
    ids=lambda value: repr(value[:12]),
)
def test_bytes_that_are_no_plain_json_are_refused(
    tmp_path: Path, data: bytes, message: str
) -> None:
    (tmp_path / "bundle.json").write_bytes(data)
    with pytest.raises(BundleError, match=message):
        bundle_from_folder(tmp_path)


@pytest.mark.parametrize(
    "file",
    [
        "../secret.onnx",
        "/etc/passwd",
        "a/../../secret.onnx",
        "a//b.onnx",
        "./a.onnx",
        "..",
        "",
        "a/",
        "C:\\secret.onnx",
        "C:secret.onnx",
        "..\\secret.onnx",
        "a\x00.onnx",
    ],
)
def test_a_file_name_that_could_lead_out_of_the_folder_is_refused(
    tmp_path: Path, file: str
) -> None:
    entry = {"file": file, "sha256": "0" * 64, "bytes": 6}
    (tmp_path / "secret.onnx").write_bytes(b"secret")
    write_document({**bundle_document(), "files": {"fp32": entry}}, tmp_path / "bundle")
    with pytest.raises(BundleError, match=r"as files\.fp32\.file"):
        bundle_from_folder(tmp_path / "bundle")
    write_document({**bundle_document(), "report": file}, tmp_path / "bundle")
    with pytest.raises(BundleError, match="as report"):
        bundle_from_folder(tmp_path / "bundle")


def test_a_link_that_leads_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret.onnx").write_bytes(b"secret")
    entry = {"file": "a.onnx", "sha256": "0" * 64, "bytes": 6}
    folder = write_document({**bundle_document(), "files": {"fp32": entry}}, tmp_path / "bundle")
    (folder / "a.onnx").symlink_to(tmp_path / "secret.onnx")
    with pytest.raises(BundleError, match=r"'a\.onnx' .*leads out of the folder"):
        bundle_from_folder(folder)


def test_a_linked_subfolder_that_leads_out_is_refused(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "a.onnx").write_bytes(b"secret")
    entry = {"file": "sub/a.onnx", "sha256": "0" * 64, "bytes": 6}
    folder = write_document({**bundle_document(), "files": {"fp32": entry}}, tmp_path / "bundle")
    (folder / "sub").symlink_to(tmp_path / "outside", target_is_directory=True)
    with pytest.raises(BundleError, match="leads out of the folder"):
        bundle_from_folder(folder)


def test_a_bundle_json_that_is_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    write_document(bundle_document(), tmp_path / "other")
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "bundle.json").symlink_to(tmp_path / "other" / "bundle.json")
    with pytest.raises(BundleError, match="leads out of the folder"):
        bundle_from_folder(tmp_path / "bundle")


def test_a_folder_that_is_reached_through_a_link_is_a_bundle_like_any_other(
    tmp_path: Path,
) -> None:
    tiny_bundle(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real", target_is_directory=True)
    assert bundle_from_folder(tmp_path / "link").name == "tiny"


def test_a_pipe_in_place_of_bundle_json_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "bundle.json")
    with pytest.raises(BundleError, match="not a regular file"):
        bundle_from_folder(tmp_path)


def test_a_link_to_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bundle.json").symlink_to("bundle.json")
    with pytest.raises(BundleError, match=r"no readable file 'bundle\.json'"):
        bundle_from_folder(tmp_path)


def test_a_missing_file_of_the_bundle_is_named(tmp_path: Path) -> None:
    (tiny_bundle(tmp_path) / "tiny.fp32.onnx").unlink()
    with pytest.raises(BundleError, match=r"no readable file 'tiny\.fp32\.onnx'"):
        bundle_from_folder(tmp_path)


def test_a_file_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    path = tiny_bundle(tmp_path) / "tiny.fp32.onnx"
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    with pytest.raises(BundleError, match=rf"{len(data) - 1} bytes; expected {len(data)} bytes"):
        bundle_from_folder(tmp_path)


def test_a_folder_without_bundle_json_and_a_path_that_is_no_folder_are_refused(
    tmp_path: Path,
) -> None:
    with pytest.raises(BundleError, match=r"no readable file 'bundle\.json'"):
        bundle_from_folder(tmp_path)
    with pytest.raises(BundleError, match="which is not a folder"):
        bundle_from_folder(tmp_path / "missing")


def test_bundle_path_refuses_a_folder(tmp_path: Path) -> None:
    (tmp_path / "engines").mkdir()
    with pytest.raises(BundleError, match="not a regular file"):
        bundle_path(tmp_path, "engines")


def test_a_record_that_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    bundle = bundle_from_folder(tiny_bundle(tmp_path))
    before = (tmp_path / "bundle.json").read_bytes()
    wrong: list[tuple[Bundle, str]] = [
        (replace(bundle, parity={"largest": float("nan")}), "JSON cannot hold"),
        (replace(bundle, parity={"path": Path("a")}), "JSON cannot hold"),
        (replace(bundle, classes=("\ud800", "a", "b", "c")), "JSON cannot hold"),
        (replace(bundle, palette=()), "as palette"),
        (replace(bundle, files={"fp32": FileInfo("../a.onnx", "0" * 64, 1)}), "as files.fp32.file"),
    ]
    for record, message in wrong:
        with pytest.raises(BundleError, match=message):
            write_bundle_json(record, tmp_path)
    assert (tmp_path / "bundle.json").read_bytes() == before


def test_a_folder_that_takes_no_file_is_an_output_error(tmp_path: Path) -> None:
    bundle = bundle_from_folder(tiny_bundle(tmp_path))
    with pytest.raises(OutputError, match="expected a folder that can be written to"):
        write_bundle_json(bundle, tmp_path / "missing")
    (tmp_path / "taken" / "bundle.json").mkdir(parents=True)
    with pytest.raises(OutputError, match="expected a folder that can be written to"):
        write_bundle_json(bundle, tmp_path / "taken")
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["bundle.json"]


def test_the_written_file_is_valid_json_for_other_readers(tmp_path: Path) -> None:
    path = write_bundle_json(bundle_from_folder(tiny_bundle(tmp_path)), tmp_path)
    document = json.loads(path.read_text(encoding="utf-8"))
    assert list(document)[:3] == ["format", "format_version", "name"]
    assert document["input"]["hw"] == [2, 3]
