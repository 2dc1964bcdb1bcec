"""`riceseg models`, the completion of its names, and how an export takes one."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from exporter import download
from exporter.zoo import ZOO, ZooEntry
from tests.tiny_segformer import BIN, environment, error_of, run_cli, write_checkpoint


def lines_of(*arguments: str) -> list[str]:
    shown = run_cli("models", *arguments)
    assert shown.exit_code == 0
    assert max(map(len, shown.stdout.splitlines())) <= 80
    return [line.rstrip() for line in shown.stdout.splitlines()]


def test_everything_is_listed_by_family_within_80_columns() -> None:
    lines = lines_of()
    assert lines[0].split() == (
        ["model", "data", "set", "crop", "test", "mIoU", "ms+flip", "fps", "M", "par"]
    )
    families = [line.split()[0] for line in lines if "(fps on" in line]
    assert families == ["deeplabv3plus", "knet", "mask2former", "segformer", "segmenter", "upernet"]
    assert "mask2former (fps on A100)" in lines


def test_a_row_has_size_mode_figures_and_parameters() -> None:
    lines = lines_of("--model", "segmenter", "--dataset", "ade20k")
    row = ["segmenter-l-mask", "ade20k", "640x640", "slide", "52.16", "53.65", "2.62", "333.2"]
    assert row in [line.split() for line in lines]
    assert len(lines) == 1 + 1 + 1 + 5


def test_figures_stand_below_each_other_where_some_are_missing() -> None:
    lines = lines_of("--model", "deeplabv3plus-r101", "--dataset", "cityscapes")
    amp = next(line for line in lines if "80k-amp" in line)
    other = next(line for line in lines if "/40k " in line)
    assert amp.index("7.87") == other.index("2.60")
    assert amp.split()[-3:] == ["80.46", "7.87", "60.2"]


def test_of_one_model_the_notes_are_shown() -> None:
    lines = lines_of("--model", "upernet-swin-b")
    assert "ade20k/in22k-w7: short side 512, ratio kept; mIoU 50.31 in mmsegmentation 0.x" in lines
    assert not any("short side" in line for line in lines_of("--model", "upernet"))


def test_what_cannot_be_downloaded_is_said_with_its_reason() -> None:
    lines = lines_of("--dataset", "rice")
    assert "rice: as printed in RiceSeg's table, whose figures are those of ADE20K weights" in lines
    assert lines[-1] == "No public address, pass the file with --checkpoint: rice"
    assert not any("No public address" in line for line in lines_of("--model", "upernet"))


def test_programs_get_addresses_and_what_is_taken_without_a_recipe() -> None:
    records = json.loads(run_cli("models", "--model", "mask2former-swin-b", "--json").stdout)
    assert [(r["dataset"], r["recipe"], r["taken_without_recipe"]) for r in records] == [
        ("ade20k", "in22k", True),
        ("ade20k", "in1k", False),
        ("cityscapes", "", True),
    ]
    assert {r["family"] for r in records} == {"mask2former"}
    assert records[0]["url"].endswith("-7ec0f569.pth")


def test_an_unknown_name_is_one_line() -> None:
    assert "did you mean mask2former" in error_of(run_cli("models", "--model", "maskformer"))
    assert "did you mean ade20k?" in error_of(run_cli("models", "--dataset", "ade"))


@pytest.mark.parametrize(
    ("typed", "offered", "kept_back"),
    [
        ("export --model segmenter-s", ["segmenter-s-linear", "segmenter-s-mask"], ["upernet-r50"]),
        ("models --model upernet-swin-b", ["upernet-swin-b"], ["upernet-swin-t"]),
        ("export --model deeplabv3plus-r50 --dataset l", ["loveda"], ["ade20k"]),
        ("export --model mask2former-swin-b --dataset ade20k/", ["ade20k/in22k"], ["ade20k/160k"]),
        ("models --dataset v", ["vaihingen"], ["rice"]),
    ],
)
def test_a_shell_completes_the_names(typed: str, offered: list[str], kept_back: list[str]) -> None:
    words = f"riceseg {typed}"
    asked = {"_RICESEG_COMPLETE": "bash_complete", "COMP_WORDS": words}
    asked["COMP_CWORD"] = str(len(words.split()) - 1)
    told = subprocess.run(
        [BIN / "riceseg"], env=environment(**asked), capture_output=True, check=True, text=True
    )
    names = [line.partition(",")[2] for line in told.stdout.splitlines()]
    assert names == offered or set(offered) <= set(names)
    assert not set(kept_back) & set(names)


def test_an_export_takes_the_best_weights_and_names_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[ZooEntry] = []

    def local_file(entry: ZooEntry, **_: object) -> Path:
        asked.append(entry)
        return tmp_path / "tiny.pth"

    write_checkpoint(tmp_path / "tiny.pth")
    monkeypatch.setattr(download, "file_from_zoo", local_file)
    for dataset, taken in (("ade20k", "640"), ("ade20k/512", "512")):
        arguments = ["--model", "SegFormer_MiT-B5", "--dataset", dataset]
        result = run_cli("export", *arguments, "--out", tmp_path / "out")
        assert asked[-1].recipe == taken
        assert f"fetch segformer-b5 (ade20k/{taken})" in result.stderr
        # The zoo's spelling of the model is what the file's content is compared with.
        assert "--model segformer-b5 with a checkpoint of segformer-custom" in result.stderr
    assert "--dataset also takes ade20k/640" in result.stderr


def test_an_export_of_weights_without_an_address_says_what_to_do(tmp_path: Path) -> None:
    result = run_cli(
        "export", "--model", "knet-swin-l-upernet", "--dataset", "rice", "--out", tmp_path / "out"
    )
    assert "knet-swin-l-upernet on rice, of which no public address is known" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_parameters_of_the_zoo_are_shown_as_they_are() -> None:
    shown = {(c[0], c[1]): c[-1] for line in lines_of() if len(c := line.split()) >= 7}
    for entry in ZOO:
        assert shown[entry.model, entry.weights] == f"{entry.parameters_m:.1f}"
