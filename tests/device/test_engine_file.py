"""Engine files: what is written, what is refused, and what fits which machine."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import struct

import pytest

from engines.errors import EngineError, OutputError
from engines.trt.engine_file import header_from_engine, plan_from_engine, write_engine
from engines.trt.engine_header import EngineHeader, Here, check_fits, misfits, rebuild_command

PLAN = b"ftrt" + bytes(range(200))


def header_for(plan=PLAN, **changes):
    header = EngineHeader(
        onnx_file="벼 생육.fp16.onnx",
        onnx_sha256="ab" * 32,
        precision="fp16",
        runtime="TensorRT",
        runtime_version="10.3.0",
        cuda_version="12.6",
        gpu_name="Orin",
        compute_capability=(8, 7),
        platform="linux-aarch64",
        jetpack="6.2",
        power_mode="MAXN",
        created="2026-01-02T03:04:05+00:00",
        version_compatible=False,
        hardware_compatible=False,
        dla=None,
        stripped=False,
        plan_sha256=hashlib.sha256(plan).hexdigest(),
        plan_bytes=len(plan),
        riceseg="0.1.0",
        notes=("한 줄",),
    )
    return dataclasses.replace(header, **changes)


def here(**changes):
    machine = Here("TensorRT", (10, 3, 0), "Orin", (8, 7), "linux-aarch64")
    return dataclasses.replace(machine, **changes)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "현장.engine"
    write_engine(path, header_for(), PLAN)
    return path


def engine_bytes(document, plan=PLAN):
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    return struct.pack("<I", len(text)) + text + plan


def document_of(path):
    data = path.read_bytes()
    (length,) = struct.unpack("<I", data[:4])
    return json.loads(data[4 : 4 + length].decode("utf-8"))


def test_what_was_written_is_read_back(path):
    assert header_from_engine(path) == header_for()
    assert plan_from_engine(path) == (header_for(), PLAN)


def test_the_layout_is_a_length_json_and_the_plan(path):
    data = path.read_bytes()
    (length,) = struct.unpack("<I", data[:4])
    document = json.loads(data[4 : 4 + length].decode("utf-8"))
    assert document["format"] == "riceseg-engine"
    assert document["format_version"] == 1
    assert document["compute_capability"] == [8, 7]
    assert document["onnx_file"] == "벼 생육.fp16.onnx"
    assert data[4 + length :] == PLAN


def test_writing_returns_name_hash_and_size_of_the_whole_file(tmp_path):
    info = write_engine(tmp_path / "a.engine", header_for(), PLAN)
    data = (tmp_path / "a.engine").read_bytes()
    assert (info.file, info.bytes) == ("a.engine", len(data))
    assert info.sha256 == hashlib.sha256(data).hexdigest()
    assert os.listdir(str(tmp_path)) == ["a.engine"]


def test_a_header_of_another_plan_is_not_written(tmp_path):
    with pytest.raises(EngineError, match="a plan of 4 bytes"):
        write_engine(tmp_path / "a.engine", header_for(), b"ftrt")
    assert os.listdir(str(tmp_path)) == []


def test_a_header_that_could_not_be_read_back_is_not_written(path):
    before = path.read_bytes()
    with pytest.raises(EngineError, match=r"'fp8'.*precision"):
        write_engine(path, header_for(precision="fp8"), PLAN)
    assert path.read_bytes() == before


def test_a_folder_that_takes_no_file_is_an_output_error(tmp_path):
    with pytest.raises(OutputError, match="folder that can be written to"):
        write_engine(tmp_path / "no" / "a.engine", header_for(), PLAN)


def test_a_file_cut_anywhere_is_refused(path):
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(EngineError, match=r"ends after|SHA-256") as caught:
            plan_from_engine(path)
        assert "build it again" in str(caught.value)


def test_the_header_alone_tells_that_the_plan_is_cut(path):
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(EngineError, match=r"ends after \d+ bytes; expected \d+ bytes"):
        header_from_engine(path)


def test_a_file_that_goes_on_after_the_plan_is_refused(path):
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(EngineError, match="as its header says"):
        header_from_engine(path)


def test_an_altered_plan_is_refused_when_it_is_read(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    assert header_from_engine(path) == header_for()
    with pytest.raises(EngineError, match="whose plan has SHA-256"):
        plan_from_engine(path)


@pytest.mark.parametrize("start", [b"ftrt", b"ptrt", b"vtrt"])
def test_a_bare_plan_of_trtexec_is_told_apart(tmp_path, start):
    path = tmp_path / "model.engine"
    path.write_bytes(start + bytes(100))
    with pytest.raises(EngineError, match="a bare TensorRT plan as trtexec writes it"):
        header_from_engine(path)


@pytest.mark.parametrize(
    "data",
    [
        b"\x08\x08\x12\x07pytorch" + bytes(3000),  # an ONNX file
        b"PK\x03\x04" + bytes(100),
        b"\x02\x00\x00\x00[]",
        b"\x05\x00\x00\x00hello",
        struct.pack("<I", 1_000_001) + b"{" * 2_000_000,
        b"\xff\xff\xff\xff{}",
        bytes(100),
    ],
)
def test_a_foreign_file_is_refused(tmp_path, data):
    path = tmp_path / "other.engine"
    path.write_bytes(data)
    with pytest.raises(EngineError, match="no engine of this program") as caught:
        header_from_engine(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{}", "without 'format'"),
        (b'{"format": "riceseg-engine", "format_version": NaN}', "number NaN"),
        (b'{"format": "riceseg-engine", "x": 1e999}', "number 1e999"),
        (b'{"format": "riceseg-engine", "x": "\\ud800"}', "not plain JSON"),
        (b"{" + b'"a":[' * 50_000, "not plain JSON"),
        (b'{"format": "\xff"}', "not plain JSON"),
        (b'{"format": "riceseg-bundle"}', "'riceseg-bundle' .* as format"),
        (b'{"format": "riceseg-engine", "format_version": 2}', "format version 2"),
    ],
)
def test_a_hostile_header_is_refused_in_one_line(tmp_path, text, message):
    path = tmp_path / "hostile.engine"
    path.write_bytes(engine_bytes(text))
    with pytest.raises(EngineError, match=message) as caught:
        header_from_engine(path)
    assert "\n" not in str(caught.value)
    assert "bundle.json" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("onnx_sha256", "AB" * 32),
        ("precision", "bf16"),
        ("runtime", "ONNX Runtime"),
        ("runtime_version", "10.3"),
        ("runtime_version", "10.3.x"),
        ("compute_capability", [8]),
        ("compute_capability", [8, True]),
        ("gpu_name", "Orin\x1b[2J"),
        ("version_compatible", 1),
        ("dla", -1),
        ("plan_bytes", 0),
        ("plan_bytes", 2**60),
        ("notes", ["x"] * 101),
    ],
)
def test_every_field_is_checked(path, field, value):
    document = document_of(path)
    document[field] = value
    path.write_bytes(engine_bytes(document))
    with pytest.raises(EngineError, match=rf"as {field}(\[\d\])? in the engine's header"):
        header_from_engine(path)


def test_a_missing_field_is_named(path):
    document = document_of(path)
    del document["gpu_name"]
    path.write_bytes(engine_bytes(document))
    with pytest.raises(
        EngineError, match=r"the engine's header of '현장\.engine' without 'gpu_name'"
    ):
        header_from_engine(path)


def test_a_path_without_a_usable_file_is_refused(tmp_path):
    with pytest.raises(EngineError, match=r"missing\.engine.*No such file"):
        header_from_engine(tmp_path / "missing.engine")
    with pytest.raises(EngineError, match="not a regular file"):
        header_from_engine(tmp_path)
    os.mkfifo(str(tmp_path / "pipe.engine"))
    with pytest.raises(EngineError, match="not a regular file"):
        header_from_engine(tmp_path / "pipe.engine")


def test_an_engine_fits_where_it_was_built():
    assert misfits(header_for(), here()) == ()
    assert misfits(header_for(), here(platform="")) == ()


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"gpu_name": "NVIDIA GeForce RTX 4090", "compute_capability": (8, 9)},
            "built for Orin (8.7), this is NVIDIA GeForce RTX 4090 (8.9)",
        ),
        ({"gpu_name": "Orin Nano"}, "built for Orin (8.7), this is Orin Nano (8.7)"),
        ({"version": (10, 4, 0)}, "built with TensorRT 10.3.0, this is 10.4.0"),
        ({"version": (10, 2, 0)}, "built with TensorRT 10.3.0, this is 10.2.0"),
        ({"runtime": "TensorRT-RTX"}, "built by TensorRT, this is TensorRT-RTX"),
        ({"platform": "linux-x86_64"}, "built on linux-aarch64, this is linux-x86_64"),
    ],
)
def test_an_engine_does_not_fit_another_machine(changes, line):
    assert misfits(header_for(), here(**changes)) == (line,)


def test_every_misfit_is_told():
    lines = misfits(header_for(), here(version=(10, 4, 0), gpu_name="Thor"))
    assert len(lines) == 2


@pytest.mark.parametrize(
    ("built", "version", "fits"),
    [
        ("8.6.1", (10, 3, 0), True),
        ("8.6.1", (11, 4, 0), False),
        ("10.3.0", (10, 13, 0), True),
        ("10.3.0", (11, 4, 0), True),
        ("10.3.0", (10, 2, 0), False),
        ("11.0.0", (10, 3, 0), False),
        ("10.3.1", (10, 3, 0), False),
    ],
)
def test_a_version_compatible_engine_runs_on_newer_versions_alone(built, version, fits):
    header = header_for(version_compatible=True, runtime_version=built)
    lines = misfits(header, here(version=version))
    assert (lines == ()) == fits
    assert all("version-compatible" in line for line in lines)


@pytest.mark.parametrize(("capability", "fits"), [((7, 5), False), ((8, 0), True), ((12, 0), True)])
def test_a_hardware_compatible_engine_runs_from_ampere_on(capability, fits):
    header = header_for(hardware_compatible=True)
    machine = here(gpu_name="another", compute_capability=capability)
    assert (misfits(header, machine) == ()) == fits


def rtx_header(**changes):
    return header_for(
        runtime="TensorRT-RTX",
        runtime_version="1.7.1",
        gpu_name=None,
        compute_capability=None,
        **changes,
    )


@pytest.mark.parametrize(
    ("capability", "version", "count"),
    [
        ((8, 6), (1, 7, 1), 0),
        ((12, 0), (1, 7, 1), 0),
        ((7, 5), (1, 7, 1), 1),
        ((8, 9), (1, 8, 0), 1),
    ],
)
def test_an_engine_of_tensorrt_rtx_fits_any_rtx_gpu_and_one_release(capability, version, count):
    machine = Here("TensorRT-RTX", version, "some GPU", capability, "linux-x86_64")
    assert len(misfits(rtx_header(), machine)) == count


def test_the_refusal_compares_and_gives_the_command(tmp_path):
    (tmp_path / "engines").mkdir()
    (tmp_path / "bundle.json").write_text("{}", encoding="utf-8")
    path = tmp_path / "engines" / "fp16-trt10.3.0-sm87.engine"
    machine = here(gpu_name="NVIDIA GeForce RTX 4090", compute_capability=(8, 9))
    with pytest.raises(EngineError) as caught:
        check_fits(header_for(), machine, path)
    assert str(caught.value) == (
        "got 'fp16-trt10.3.0-sm87.engine', built for Orin (8.7), this is NVIDIA GeForce RTX 4090 "
        "(8.9); expected an engine that was built for this GPU and this version; do this: "
        f"riceseg build {tmp_path} --precision fp16"
    )
    check_fits(header_for(), here(), path)


def test_the_command_that_rebuilds_has_the_same_options(tmp_path):
    header = header_for(
        version_compatible=True, hardware_compatible=True, dla=1, stripped=True, precision="int8"
    )
    assert rebuild_command(header, tmp_path / "a.engine") == (
        "riceseg build '벼 생육.fp16.onnx' --precision int8 --version-compatible "
        "--hardware-compatible --dla 1 --strip-weights"
    )
    assert rebuild_command(rtx_header(), tmp_path / "a.engine").endswith("--precision fp16 --rtx")


def test_a_huge_plan_is_refused_before_it_is_read(path, monkeypatch):
    document = {**document_of(path), "plan_bytes": 2**32 + 1}
    path.write_bytes(engine_bytes(document))
    with pytest.raises(EngineError, match=r"4294967297 .*from 1 to 4294967296"):
        header_from_engine(path)
    path.write_bytes(engine_bytes({**document, "plan_bytes": 2**28}, b""))
    os.truncate(str(path), path.stat().st_size + 2**28)
    with pytest.raises(EngineError, match="whose plan has SHA-256 a6d72ac7"):
        plan_from_engine(path)


def test_a_plan_without_memory_for_it_is_an_engine_error(path, monkeypatch):
    class Small(io.BytesIO):
        def read(self, size=-1):
            if size == len(PLAN):
                raise MemoryError
            return super().read(size)

        def fileno(self):
            return file.fileno()

    with open(path, "rb") as file:
        monkeypatch.setattr("engines.trt.engine_file._opened", lambda _: Small(path.read_bytes()))
        with pytest.raises(EngineError, match=r"a plan of 204 bytes; expected as much free memory"):
            plan_from_engine(path)


def test_a_format_version_of_later_names_the_file(path):
    path.write_bytes(engine_bytes({**document_of(path), "format_version": 2}))
    with pytest.raises(EngineError, match=r"an engine '현장\.engine' of format version 2"):
        header_from_engine(path)
