"""The board's command line, started as a program: help, mistakes, exit codes."""

from __future__ import annotations

import errno
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from device_bundle import bundle_in

from engines.commands.mistakes import exit_code_of
from engines.cuda.status import StatusError
from engines.errors import GateError, ImageError, MissingPackageError, output_error

ROOT = Path(__file__).parents[2]
COMMANDS = ["build", "trt-eval", "bench", "report", "doctor"]


def engines(*arguments, cwd=ROOT, **environment):
    return subprocess.run(
        [sys.executable, "-m", "engines", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )


def error_of(done, code=2):
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.strip().splitlines()[-1]


def report_of(device, power_mode, fps):
    return {
        "format": "riceseg-report",
        "format_version": 1,
        "name": "벼",
        "machine": {"device": device, "power_mode": power_mode},
        "rows": [{"form": "TensorRT FP16", "precision": "fp16", "fps": fps}],
    }


def test_the_help_lists_every_command():
    shown = engines("--help").stdout
    assert [line.split()[0] for line in shown.splitlines() if line.startswith("  ")] == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_shows_its_options_and_examples(command):
    done = engines(command, "--help")
    assert done.returncode == 0
    assert "Examples:" in done.stdout
    assert command in done.stdout.partition("Examples:")[2]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["segment"], "the command 'segment'; expected one of build, trt-eval"),
        (["build"], "the following arguments are required: BUNDLE|ONNX"),
        (["build", "x", "--opt-level", "6"], "'6' is no whole number from 0 to 5"),
        (["build", "x", "--batch", "4:1:8"], "'4:1:8' is no MIN:OPT:MAX"),
        (["build", "x", "--prec", "fp16"], "unrecognized arguments: --prec"),
        (["build", "missing.onnx", "--calib", "."], "--calib without --implicit-int8"),
        (["build", "missing.onnx", "--rtx"], "missing.onnx"),
        (["bench", "x.onnx", "--runs", "0"], "'0' is no whole number from 1 to"),
        (["bench", "missing.onnx"], "missing.onnx"),
        (["report", "missing.json"], "missing.json"),
        (["trt-eval", "--bundle", "x"], "the following arguments are required: --data"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, said, tmp_path):
    line = error_of(engines(*arguments, cwd=tmp_path))
    assert line.startswith("error: got ")
    assert said in line
    assert "do this: " in line


def test_a_folder_without_a_bundle_is_not_built(tmp_path):
    (tmp_path / "empty").mkdir()
    assert "a folder without bundle.json" in error_of(engines("build", tmp_path / "empty"))


@pytest.mark.parametrize("command", ["build", "bench", "report"])
def test_a_path_that_the_system_refuses_is_a_mistake(command, tmp_path):
    line = error_of(engines(command, "a" * 5000, cwd=tmp_path))
    assert "File name too long" in line
    assert len(line) < 500


def test_output_that_cannot_be_written_is_a_mistake_and_no_failed_gate():
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = subprocess.run(
            [sys.executable, "-m", "engines", "--help"],
            cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("error: got a file: No space left on device")
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (MemoryError("12 GB"), 2, "got too little memory (12 GB)"),
        (RuntimeError("could not allocate memory"), 2, "got too little memory"),
        (
            PermissionError(13, "Permission denied", "x.engine"),
            2,
            "got x.engine: Permission denied",
        ),
        (GateError("mIoU fell"), 1, "error: mIoU fell"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_what_ends_a_command_is_one_line(raised, code, said, capsys):
    def work():
        raise raised

    assert exit_code_of(work) == code
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        ImageError("벼.tif", expected="a photo", do="take another"),
        MissingPackageError("ray", needed_for="--ray", extra="ray"),
        StatusError("no device", code=100, expected="one", do="look for it"),
    ],
)
def test_an_error_is_the_same_in_another_process(error):
    there = pickle.loads(pickle.dumps(error))
    assert type(there) is type(error)
    assert str(there) == str(error)
    assert vars(there) == vars(error)


@pytest.mark.parametrize(
    ("number", "expected", "advice"),
    [
        (errno.ENAMETOOLONG, "names that the file system takes", "choose a shorter name"),
        (errno.EACCES, "a place that may be written to", "change its permissions, or go elsewhere"),
        (errno.EROFS, "a file system that can be written to", "go elsewhere"),
        (errno.ENOSPC, "room for it", "free some space, or go elsewhere"),
        (errno.EDQUOT, "room for it", "free some space, or go elsewhere"),
        (
            errno.EFBIG,
            "a file system and a limit (ulimit -f)",
            "raise that limit and check the free space, or go elsewhere",
        ),
        (errno.EEXIST, "a new name, or an older file to replace", "go elsewhere"),
        (errno.ENOTDIR, "a folder", "go elsewhere"),
    ],
)
def test_the_advice_for_a_place_fits_the_system_s_reason(number, expected, advice):
    said = os.strerror(number)
    error = output_error("'x'", OSError(number, said), expected="a folder", do="go elsewhere")
    assert error.got == f"'x': {said}"
    assert error.expected.startswith(expected)
    assert error.do == advice


def test_a_name_that_is_too_long_is_not_told_of_the_disk(tmp_path, capsys):
    def work():
        (tmp_path / ("논" * 86) / "labels").mkdir(parents=True)

    assert exit_code_of(work) == 2
    line = capsys.readouterr().err
    assert "File name too long; expected names that the file system takes" in line
    assert "do this: choose a shorter name" in line
    assert "disk" not in line


def test_a_bug_is_raised_on():
    with pytest.raises(ZeroDivisionError):
        exit_code_of(lambda: 1 // 0)


def test_an_option_for_files_is_refused_for_a_bundle(tmp_path):
    bundle = bundle_in(tmp_path / "bundle")
    line = error_of(engines("build", bundle, "--out", "x.engine"))
    assert "--out for a bundle" in line


def test_reports_of_two_boards_are_merged_with_a_word_on_their_power_modes(tmp_path):
    for name, mode, fps in (("a", "15W", 10.0), ("b", "25W", 20.0)):
        folder = tmp_path / name
        folder.mkdir()
        document = report_of("Orin Nano", mode, fps)
        (folder / "report.json").write_text(json.dumps(document), encoding="utf-8")
    done = engines("report", tmp_path / "a", tmp_path / "b")
    assert done.returncode == 0, done.stderr
    assert "| 10.0 |" in done.stdout
    assert "| 20.0 |" in done.stdout
    assert "15W" in done.stdout.partition("|")[0]  # named above the table


def test_a_merged_report_is_written_where_it_was_asked_for(tmp_path):
    document = report_of("[Orin](x)", "15W", 10.0)
    (tmp_path / "report.json").write_text(json.dumps(document), encoding="utf-8")
    done = engines("report", tmp_path, "--out", tmp_path / "새 폴더")
    assert done.returncode == 0, done.stderr
    names = sorted(path.name for path in (tmp_path / "새 폴더").iterdir())
    assert names == ["comparison.json", "comparison.md"]
    assert "| [Orin](x) · 15W |" in done.stdout
    written = (tmp_path / "새 폴더" / "comparison.md").read_text(encoding="utf-8")
    assert "\\[Orin\\](x) · 15W |" in written
    assert error_of(engines("report", tmp_path, "--out", tmp_path / "report.json"))


def test_a_place_for_the_report_that_cannot_be_used_is_told_before_anything_is_measured(tmp_path):
    (tmp_path / "file").write_text("x", encoding="utf-8")
    line = error_of(engines("bench", tmp_path / "missing.onnx", "--out", tmp_path / "file"))
    assert "not a folder at" in line
    options = ["--bundle", tmp_path, "--data", tmp_path]
    line = error_of(engines("trt-eval", *options, "--out", tmp_path / "file"))
    assert "not a folder at" in line


def test_bench_takes_the_precision_of_mixed_forms(tmp_path):
    line = error_of(engines("bench", "missing", "--precision", "int8_fp16", cwd=tmp_path))
    assert "invalid choice" not in line


def test_doctor_says_in_json_what_it_found_and_its_exit_code_whether_anything_runs():
    done = engines("doctor", "--json")
    record = json.loads(done.stdout)
    works = record["can"]["engines"]["works"] or record["can"]["onnx"]["works"]
    assert done.returncode == (0 if works else 1)
    assert record["python"]["version"].startswith(f"{sys.version_info[0]}.{sys.version_info[1]}")
