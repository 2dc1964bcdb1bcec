"""`riceseg evaluate`, `segment`, `inspect`, `models`, `completion`, and the terminals they meet."""

from __future__ import annotations

import builtins
import fcntl
import json
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import termios
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from rich.cells import cell_len

import exporter.__main__
from engines.bundle import bundle_from_folder
from engines.segmenter import Segmenter
from exporter.commands.group import riceseg
from exporter.zoo import ZOO
from tests.tiny_segformer import (
    BIN,
    CLASSES,
    PALETTE,
    environment,
    error_of,
    export_tiny,
    photo,
    process_arguments,
    run_cli,
    run_process,
    write_checkpoint,
    write_lab,
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny.pth, data/, and the bundle full/ of six classes in three precisions."""
    lab = write_lab(tmp_path_factory.mktemp("lab"))
    options = ["--int8", "--fp16", "--calib", lab / "data", "--val", lab / "data"]
    result = export_tiny(lab, lab / "full", *options, "--max-drop", "20")
    assert result.exit_code == 0, result.stderr
    return lab


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of 19 outputs, six of them named."""
    folder = tmp_path_factory.mktemp("many")
    write_checkpoint(folder / "tiny.pth", num_outputs=19)
    result = export_tiny(folder, folder / "full", "--output", "both")
    assert result.exit_code == 0, result.stderr
    return folder / "full"


def report_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def pixels(path: Path) -> np.ndarray[Any, Any]:
    with Image.open(path) as image:
        return np.array(image)


# --- evaluate ---------------------------------------------------------------------------------


def test_a_bundle_a_checkpoint_and_a_graph_get_the_scores_of_the_export(
    lab: Path, tmp_path: Path
) -> None:
    exported = {row["form"]: row["miou"] for row in report_of(lab / "full")["rows"]}
    (tmp_path / "names.txt").write_text("\n".join(CLASSES), encoding="utf-8")
    for target, options, forms in (
        ("full", [], ["ONNX FP32", "ONNX FP16", "ONNX INT8", "ONNX INT8+FP16"]),
        ("tiny.pth", ["--size", "64x64"], ["PyTorch FP32"]),
        ("full/model.int8.onnx", ["--classes", tmp_path / "names.txt"], ["ONNX INT8"]),
    ):
        out = tmp_path / Path(target).name
        arguments = [lab / target, "--data", lab / "data", "--out", out, *options]
        result = run_cli("evaluate", *arguments)
        assert result.exit_code == 0, result.stderr
        report = report_of(out)
        assert [row["miou"] for row in report["rows"]] == [exported[form] for form in forms]
        assert tuple(report["classes"]) == CLASSES
        assert (out / "report.html").stat().st_size > 5000
        assert f"report: {out / 'report.html'}" in result.stdout


def test_masks_may_lie_elsewhere(lab: Path, tmp_path: Path) -> None:
    shutil.copytree(lab / "data/images/validation", tmp_path / "photos")
    shutil.copytree(lab / "data/masks/validation", tmp_path / "truth")
    options = ["--data", tmp_path / "photos", "--masks", tmp_path / "truth"]
    result = run_cli("evaluate", lab / "full", *options, "--out", tmp_path / "report")
    assert result.exit_code == 0, result.stderr
    folders = (lab / "full", tmp_path / "report")
    scores = [[row["miou"] for row in report_of(folder)["rows"]] for folder in folders]
    assert scores[0][1:] == scores[1]


def test_a_graph_of_more_outputs_than_names(many: Path, lab: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("땅 #000000\n벼 #00ff00\n", encoding="utf-8")
    options = ["--data", lab / "data", "--classes", tmp_path / "names.txt", "--out", tmp_path / "r"]
    result = run_cli("evaluate", many / "model.onnx", *options)
    assert result.exit_code == 0, result.stderr
    report = report_of(tmp_path / "r")
    assert (report["classes"], report["palette"]) == (["땅", "벼"], [[0, 0, 0], [0, 255, 0]])


def test_bad_photos_are_left_out_of_a_score_on_request(lab: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(lab / "data", tmp_path / "data"))
    (data / "images/validation/val0.png").write_text("no photo")
    for target, size in ((lab / "full", []), (lab / "tiny.pth", ["--size", "64x64"])):
        arguments = ["evaluate", target, "--data", data, *size]
        assert "val0.png', which cannot be read" in error_of(run_cli(*arguments))
        result = run_cli(*arguments, "--skip-bad", "--out", tmp_path / "r")
        assert result.exit_code == 0, result.stderr
        assert "warning: validation image left out: val0.png" in result.stderr
        assert report_of(tmp_path / "r")["data"]["images"] == 3


@pytest.mark.parametrize(
    ("target", "options", "expected"),
    [
        ("nothing", [], "which does not exist"),
        ("data", [], "a folder without config.json"),
        ("full/report.html", [], "a web page"),
        ("full", ["--size", "96x96"], "--size for a bundle"),
        ("full", ["--keep-classes", "2"], "--keep-classes for a bundle"),
        ("full", ["--classes", "x"], "--classes for a bundle"),
        ("full/model.onnx", ["--mean", "1,2,3"], "--mean for an ONNX file"),
        ("tiny.pth", ["--size", "16x16"], "--size 16x16"),
        ("tiny.pth", ["--size", "64x64", "--keep-classes", "2"], "network does not have"),
    ],
)
def test_what_cannot_be_scored(
    target: str, options: list[str], expected: str, lab: Path, tmp_path: Path
) -> None:
    arguments = [lab / target, "--data", lab / "data", *options, "--out", tmp_path / "report"]
    assert expected in error_of(run_cli("evaluate", *arguments))
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_is_none_or_that_has_no_labels(lab: Path, tmp_path: Path) -> None:
    (tmp_path / "noise.onnx").write_bytes(os.urandom(500))
    arguments = ["--data", lab / "data"]
    assert "noise.onnx" in error_of(run_cli("evaluate", tmp_path / "noise.onnx", *arguments))
    assert "Missing option '--data'" in error_of(run_cli("evaluate", lab / "full"))


def test_a_bundle_that_was_altered_is_refused(lab: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(lab / "full", tmp_path / "full"))
    (bundle / "model.onnx").write_bytes((bundle / "model.onnx").read_bytes() + b"x")
    assert "bytes, as bundle.json says" in error_of(
        run_cli("evaluate", bundle, "--data", lab / "data")
    )
    (bundle / "bundle.json").write_text("{}")
    for command in (["evaluate", bundle, "--data", lab / "data"], ["inspect", bundle]):
        assert "bundle.json without 'format'" in error_of(run_cli(*command))


# --- segment ----------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_each_photo_becomes_a_label_png_and_an_overlay_of_its_own_size(
    precision: str, lab: Path, tmp_path: Path
) -> None:
    photos = lab / "data/images/validation"
    result = run_cli("segment", lab / "full", photos, "--out", tmp_path, "--precision", precision)
    assert result.exit_code == 0
    assert result.stdout.startswith("4 images: ")
    with Segmenter.open(lab / "full", precision=precision) as segmenter:
        for path in photos.iterdir():
            image = pixels(path)
            with Image.open(tmp_path / "labels" / path.name) as drawn:
                np.testing.assert_array_equal(np.asarray(drawn), segmenter(image))
                colours = drawn.getpalette() or []
            assert colours[: 3 * 6] == [value for rgb in PALETTE for value in rgb]
            assert pixels(tmp_path / "overlays" / f"{path.stem}.jpg").shape == image.shape
    assert len(list(tmp_path.rglob("*.*"))) == 8


def test_labels_beyond_the_named_classes_survive_the_png(many: Path, tmp_path: Path) -> None:
    """Six colours would fit into four bits, and 16, 17 and 18 would come back as 0, 1 and 2."""
    picture = photo((64, 96), 3)
    Image.fromarray(picture).save(tmp_path / "벼.png")
    result = run_cli("segment", many, tmp_path / "벼.png", "--out", tmp_path, "--no-overlay")
    assert result.exit_code == 0
    assert not (tmp_path / "overlays").exists()
    with Segmenter.open(many) as segmenter:
        expected = segmenter(picture)
    assert expected.max() > 15
    np.testing.assert_array_equal(pixels(tmp_path / "labels/벼.png"), expected)


def test_photos_of_the_same_name_do_not_replace_each_other(lab: Path, tmp_path: Path) -> None:
    names = ["a/1.png", "b/1.png", "b/1.bmp", "b/2.png"]
    for seed, name in enumerate(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(photo((20 + seed, 30), seed)).save(tmp_path / name)
    (tmp_path / "list.txt").write_text("\n".join(names))
    arguments = [lab / "full", tmp_path / "list.txt", "--out", tmp_path / "out", "--no-overlay"]
    assert run_cli("segment", *arguments).exit_code == 0
    heights = {p.name: len(pixels(p)) for p in (tmp_path / "out/labels").iterdir()}
    expected = {"1.png.png": 20, "1.png_2.png": 21, "1.bmp.png": 22, "2.png": 23}
    assert heights == expected


def test_bad_photos_are_left_out_of_a_folder_on_request(lab: Path, tmp_path: Path) -> None:
    Image.fromarray(photo((20, 30), 1)).save(tmp_path / "good.png")
    Image.fromarray(photo((20, 30), 2)).convert("L").save(tmp_path / "grey.png")
    (tmp_path / "bad.jpg").write_text("no photo")
    arguments = ["segment", lab / "full", tmp_path, "--out", tmp_path / "out"]
    assert "bad.jpg', which cannot be read" in error_of(run_cli(*arguments))
    result = run_cli(*arguments, "--skip-bad", "--convert-images")
    assert result.exit_code == 0
    assert "warning: left out bad.jpg: got" in result.stderr
    assert sorted(p.name for p in (tmp_path / "out/labels").iterdir()) == ["good.png", "grey.png"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nothing", "data/images/validation"], "which is not a folder"),
        (["data", "data/images/validation"], "no readable file 'bundle.json'"),
        (["tiny.pth", "data/images/validation"], "which is not a folder"),
        (["full", "data"], "no image directly in"),
        (["full", "nothing"], "which does not exist"),
        (["full", "data/images/validation", "--precision", "int4"], "'int4' is not one of"),
        (["full", "data/images/validation", "--alpha", "nan"], "--alpha 'nan'"),
        (["full", "data/images/validation", "--alpha", "1.01"], "--alpha '1.01'"),
        (["full"], "Missing argument 'IMAGES'"),
    ],
)
def test_what_cannot_be_segmented(
    arguments: list[str], expected: str, lab: Path, tmp_path: Path
) -> None:
    paths = [a if a.startswith("-") or not (lab / a).exists() else lab / a for a in arguments]
    assert expected in error_of(run_cli("segment", *paths, "--out", tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


def test_labels_that_cannot_be_written(lab: Path, many: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    photos = lab / "data/images/validation"
    for place in (tmp_path / "file", Path("/proc/x")):
        assert "choose another --out" in error_of(
            run_cli("segment", lab / "full", photos, "--out", place)
        )
    line = error_of(run_cli("segment", many, photos, "--out", tmp_path, "--precision", "int8"))
    assert "expected one that the bundle has: fp32" in line


# --- inspect, models, completion, help --------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("tiny.pth", ["checkpoint", "segformer-custom", "도열병", "0.05 M", "mmsegmentation 1.x"]),
        ("full", ["bundle", "64x64", "도열병", "int8 model.int8.onnx", "passed"]),
        ("full/model.onnx", ["ONNX graph", "FP32", "image uint8 (1 x 64 x 64 x 3)", "ArgMax 1"]),
        ("full/model.int8.onnx", ["ONNX graph", "INT8", "Q/DQ pairs"]),
        ("full/model.fp16.onnx", ["ONNX graph", "FP16"]),
    ],
)
def test_inspect_tells_people_and_programs_the_same(
    target: str, expected: list[str], lab: Path
) -> None:
    shown, told = run_cli("inspect", lab / target), run_cli("inspect", lab / target, "--json")
    assert (shown.exit_code, told.exit_code) == (0, 0)
    facts = json.loads(told.stdout)
    assert facts["kind"] == expected[0]
    for text in expected:
        assert text in shown.stdout
        assert text in told.stdout


def test_inspect_says_what_a_file_is_instead(lab: Path, tmp_path: Path) -> None:
    (tmp_path / "noise.onnx").write_bytes(os.urandom(500))
    for target in (tmp_path / "noise.onnx", tmp_path, tmp_path / "nothing", lab / "data"):
        assert str(target) in error_of(run_cli("inspect", target))
    assert "Missing argument 'TARGET'" in error_of(run_cli("inspect"))


def test_a_path_that_the_system_refuses_is_one_line_too(lab: Path, tmp_path: Path) -> None:
    """Too long here; the same holds for folders that may not be entered."""
    path = tmp_path / ("x" * 300)
    for arguments in (
        ["inspect", path],
        ["evaluate", path, "--data", lab / "data"],
        ["evaluate", lab / "full", "--data", path],
        ["segment", path, lab / "data/images/validation", "--out", tmp_path / "out"],
        ["segment", lab / "full", path, "--out", tmp_path / "out"],
        ["segment", lab / "full", lab / "data/images/validation", "--out", path],
        ["export", "--checkpoint", path, "--out", tmp_path / "out"],
    ):
        assert "xxx" in error_of(run_cli(*arguments))
    assert list(tmp_path.iterdir()) == []


def test_a_name_cannot_give_orders_to_the_terminal(lab: Path, tmp_path: Path) -> None:
    name = "\x1b]0;title\x07\x1b[2Jrice"
    write_checkpoint(tmp_path / "tiny.pth", classes=[name, *CLASSES[1:]])
    shown = run_cli("inspect", tmp_path / "tiny.pth")
    assert shown.exit_code == 0
    assert "rice" in shown.stdout
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", shown.stdout)


def test_models_lists_every_entry() -> None:
    shown, told = run_cli("models"), run_cli("models", "--json")
    assert len(json.loads(told.stdout)) == len(ZOO)
    rows = re.findall(r"^(\S+-\S+) +(\S+) +\d+x\d+ ", shown.stdout, flags=re.MULTILINE)
    assert rows == [(entry.model, entry.weights) for entry in ZOO]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_valid_and_complete(shell: str) -> None:
    script = run_cli("completion", shell).stdout
    assert "_RICESEG_COMPLETE" in script
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script.encode(), check=True)
    where = "exp" if shell == "fish" else "1"
    asked = {"_RICESEG_COMPLETE": f"{shell}_complete", "COMP_WORDS": "riceseg exp"}
    asked["COMP_CWORD"] = where
    told = subprocess.run(
        [BIN / "riceseg"], env=environment(**asked), capture_output=True, check=True
    )
    assert b"export" in told.stdout


@pytest.mark.parametrize(
    "command",
    ["", "export", "evaluate", "sensitivity", "segment", "inspect", "models", "completion"],
)
def test_help_tells_how_to_begin(command: str) -> None:
    result = run_cli(*command.split(), "--help")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"Usage: riceseg {command}".rstrip())
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert run_cli(*command.split(), "-h").stdout == result.stdout


def test_wrong_commands_are_one_line_too() -> None:
    assert "No such command 'exprot'" in error_of(run_cli("exprot"))
    assert "No such option '--colour'" in error_of(run_cli("--colour", "models"))
    assert "'tcsh' is not one of" in error_of(run_cli("completion", "tcsh"))
    assert "riceseg, version " in run_cli("--version").stdout
    alone = run_cli()
    assert (alone.exit_code, "Commands:" in alone.stderr + alone.stdout) == (2, True)


def test_help_and_completion_do_not_wait_for_torch() -> None:
    code = "import sys, exporter.commands.group; print(*sys.modules)"
    modules = subprocess.run(
        [BIN / "python", "-c", code], env=environment(), capture_output=True, check=True
    ).stdout.split()
    assert not {b"torch", b"onnx", b"onnxruntime", b"PIL"} & set(modules)


def test_a_missing_package_is_named_with_the_way_to_get_it(lab: Path, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError('no', name='torch')")
    arguments = [BIN / "riceseg", "inspect", lab / "tiny.pth"]
    paths = os.pathsep.join([str(tmp_path), environment()["PYTHONPATH"]])
    done = subprocess.run(
        arguments, env=environment(PYTHONPATH=paths), capture_output=True, encoding="utf-8",
        check=False,
    )  # fmt: skip
    assert "no package 'torch' in this Python" in error_of(done)
    assert "pip install 'riceseg[export]'" in done.stderr


# --- terminals --------------------------------------------------------------------------------


ENCODINGS = {
    "C": {"LC_ALL": "C", "LANG": "C"},
    "C without UTF-8 mode": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "ASCII": {"PYTHONIOENCODING": "ascii"},
    "Latin-1, strict": {"PYTHONIOENCODING": "latin-1:strict"},
    "CP949": {"PYTHONIOENCODING": "cp949"},
}


@pytest.mark.parametrize("name", ENCODINGS)
def test_korean_class_names_in_any_encoding(name: str, lab: Path, tmp_path: Path) -> None:
    changes = {k: v for k, v in environment().items() if k not in ("LANG", "LC_ALL", "LC_CTYPE")}
    env = {**changes, **ENCODINGS[name]}
    for arguments in (["inspect", "full"], ["inspect", "full", "--json"]):
        done = subprocess.run(
            [BIN / "riceseg", *arguments], cwd=lab, env=env, capture_output=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, b"")
        text = done.stdout.decode("cp949" if name == "CP949" else "utf-8")
        assert "도열병" in text or "\\ub3c4\\uc5f4\\ubcd1" in text


def test_an_export_with_korean_names_and_a_failed_gate_in_ascii(lab: Path, tmp_path: Path) -> None:
    start = ["export", "--checkpoint", lab / "tiny.pth", "--size", "64x64", "--out"]
    options = ["--val", lab / "data", "--max-drop", "-99"]
    env = environment(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", PYTHONIOENCODING="ascii")
    done = run_process(*start, tmp_path / "out", *options, env=env)
    assert "marked as failed" in error_of(done, code=1)
    assert "gate FAILED" in done.stdout
    assert bundle_from_folder(tmp_path / "out").classes == CLASSES
    done = run_process(*start, tmp_path / "묶음", *options, env=env)
    assert "set PYTHONUTF8=1" in error_of(done)


def on_terminal(
    arguments: list[str], *, columns: int = 80, interrupt_at: bytes = b"", **changes: str
) -> tuple[int, str, bool]:
    """Exit code, what a terminal of that width got, and whether its settings are as before."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    before = termios.tcgetattr(slave)
    env = environment(TERM="xterm-256color", **changes)
    for name in ("COLUMNS", "LINES", "NO_COLOR", "CI"):
        env.pop(name, None)
    child = subprocess.Popen(
        arguments,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=env,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    shown, deadline = b"", time.monotonic() + 120
    while time.monotonic() < deadline:
        if select.select([master], [], [], 0.1)[0]:
            shown += os.read(master, 65536)
            if interrupt_at and interrupt_at in shown:
                time.sleep(0.1)
                os.write(master, b"\x03")  # as the key does: the terminal signals its whole group
                interrupt_at = b""
        elif child.poll() is not None:
            break
    child.kill()
    same = termios.tcgetattr(slave) == before
    os.close(master)
    os.close(slave)
    return child.wait(), shown.decode("utf-8", "replace"), same


def export_arguments(lab: Path, out: Path) -> list[str]:
    start = ["--checkpoint", lab / "tiny.pth", "--size", "64x64", "--out", out]
    return process_arguments(
        "export", *start, "--val", lab / "data", "--int8", "--calib", lab / "data"
    )


@pytest.mark.parametrize("raised", [KeyboardInterrupt, click.Abort])
def test_ctrl_c_in_a_command_of_the_board_is_no_failed_gate(
    raised: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    def record(**options: object) -> None:
        raise raised

    monkeypatch.setattr("engines.doctor.doctor_record", record)
    result = CliRunner().invoke(riceseg, ["doctor"])
    assert result.exit_code == 130
    assert result.stderr.endswith("\ninterrupted\n")


def test_ctrl_c_gives_the_terminal_back_and_leaves_nothing(lab: Path, tmp_path: Path) -> None:
    arguments = export_arguments(lab, tmp_path / "place/out")
    code, shown, same = on_terminal(arguments, interrupt_at=b"verify")
    assert code == 130
    assert "Traceback" not in shown
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")  # the cursor is visible again
    assert same
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("columns", "term"), [(40, "xterm"), (200, "xterm"), (80, "dumb")])
def test_an_export_on_narrow_wide_and_dumb_terminals(
    columns: int, term: str, lab: Path, tmp_path: Path
) -> None:
    arguments = [*export_arguments(lab, tmp_path / "out"), "--max-drop", "20"]
    arguments[arguments.index("--size") + 1] = "64x64"
    code, shown, same = on_terminal(["env", f"TERM={term}", *arguments], columns=columns)
    assert (code, same) == (0, True)
    assert "gate passed" in shown
    for row in report_of(tmp_path / "out")["rows"]:  # nothing is cut off where it is narrow
        assert re.search(
            rf"{re.escape(row['form'])} +{row['miou']:.2f}.* {row['file_mb']:.1f}\s", shown
        )
    assert ("\x1b[" in shown) == (term != "dumb")


@pytest.mark.parametrize("columns", [20, 80, 200])
def test_no_terminal_is_too_narrow_for_the_list_of_models(columns: int) -> None:
    code, shown, _ = on_terminal([str(BIN / "riceseg"), "models"], columns=columns)
    assert code == 0
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown)
    assert max(map(cell_len, plain.splitlines())) <= max(columns, 80)
    for entry in ZOO:
        assert re.search(rf"{entry.model} +{entry.weights} .* {entry.miou:.2f} ", plain)


@pytest.mark.parametrize("command", ["riceseg models", "riceseg inspect full --json"])
def test_a_reader_that_goes_away(command: str, lab: Path) -> None:
    script = f"{BIN}/{command} | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", script], cwd=lab, env=environment(), capture_output=True, check=False
    )
    assert done.stdout.count(b"\n") == 1
    assert done.returncode in (0, 1, 128 + signal.SIGPIPE)
    assert done.stderr == b""


def test_an_export_whose_reader_goes_away_leaves_a_whole_bundle_or_none(
    lab: Path, tmp_path: Path
) -> None:
    command = " ".join(f"'{a}'" for a in export_arguments(lab, tmp_path / "out"))
    for pipe in ("2>&1 | head -1", "| head -0", ">&- 2>&-"):
        done = subprocess.run(
            ["bash", "-c", f"{command} --overwrite --max-drop 20 {pipe}"],
            env=environment(), capture_output=True, check=False,
        )  # fmt: skip
        assert b"Traceback" not in done.stdout + done.stderr
        assert {p.name for p in tmp_path.iterdir()} <= {"out"}
    assert bundle_from_folder(tmp_path / "out").classes == CLASSES


def test_bench_times_a_checkpoint_in_pytorch_and_refuses_what_pytorch_does_not_do(
    tmp_path: Path,
) -> None:
    write_checkpoint(tmp_path / "tiny.pth")
    options = ["--runs", "2", "--warmup", "1", "--out", str(tmp_path / "out")]
    command = [BIN / "riceseg", "bench", tmp_path / "tiny.pth", *options]
    done = subprocess.run(
        command, env=environment(), capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stderr
    (row,) = report_of(tmp_path / "out")["rows"]
    assert (row["form"], row["runs"], row["warmup"]) == ("PyTorch FP32", 2, 1)
    assert row["latency_p50_ms"] > 0
    refused = run_cli("bench", str(tmp_path / "tiny.pth"), "--batch", "2")
    assert "--batch for a checkpoint" in error_of(refused)


def test_ctrl_c_while_the_packages_load_is_one_line_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole_import = builtins.__import__

    def interrupted(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "exporter.commands.group":
            raise KeyboardInterrupt
        return whole_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", interrupted)
    with pytest.raises(SystemExit) as stopped:
        exporter.__main__.main()
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "\ninterrupted\n"
