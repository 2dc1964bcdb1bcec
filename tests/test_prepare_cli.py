"""`riceseg prepare` as it is typed."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from five_band_scenes import write_data_set
from PIL import Image

from engines.images import image_from_file
from exporter.commands.group import riceseg

ROOT = Path(__file__).parents[1]
START = "from exporter.__main__ import main; main()"


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(riceseg, ["prepare", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    write_data_set(tmp_path / "논" / "raw", 10, hw=(40, 56))
    return tmp_path / "논" / "raw"


def test_it_says_what_it_made(raw: Path, tmp_path: Path) -> None:
    result = run(raw, "--out", tmp_path / "자료", "--bands", "GNE", "--jobs", 1)
    assert result.exit_code == 0, result.stderr
    assert f"10 scenes: {tmp_path / '자료'}" in result.stdout
    assert "normal 정상" in result.stdout
    assert "prepare scenes: 100 % (10/10)" in result.stderr
    again = run(raw, "--out", tmp_path / "자료", "--bands", "GNE", "--jobs", 1)
    assert "10 scenes, 10 of them from before" in again.stdout


def test_a_zip_is_a_source_of_its_own(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    write_data_set(raw, 2, zipped=True, hw=(40, 56))
    result = run(raw / "TS_org.zip", "--out", tmp_path / "out", "--bands", "GNE")
    assert result.exit_code == 2  # the labels are in the other zip
    assert "without labels" in result.stderr
    assert run(raw, "--out", tmp_path / "out", "--bands", "GNE").exit_code == 0


def test_the_nodata_that_gdal_writes_is_taken(raw: Path, tmp_path: Path) -> None:
    smallest = np.finfo(np.float32).min
    assert run(raw, "--out", tmp_path / "as it was", "--bands", "GNE", "--jobs", 1).exit_code == 0
    for path in raw.rglob("*.tif"):
        band = np.array(Image.open(path))
        band[band == -10000] = smallest
        Image.fromarray(band).save(path)
    nodata = ["--band-nodata", repr(float(smallest))]
    result = run(raw, "--out", tmp_path / "gdal", "--bands", "GNE", *nodata, "--jobs", 1)
    assert result.exit_code == 0, result.stderr
    pictures = [p.relative_to(tmp_path / "gdal") for p in (tmp_path / "gdal").glob("images/*/*")]
    assert len(pictures) == 10
    for place in pictures:
        expected = (tmp_path / "as it was" / place).read_bytes()
        assert (tmp_path / "gdal" / place).read_bytes() == expected


def test_several_combinations_may_be_named(raw: Path, tmp_path: Path) -> None:
    result = run(raw, "--out", tmp_path / "out", "--bands", "gne, RGB", "--jobs", 1)
    assert result.exit_code == 0, result.stderr
    assert sorted(path.name for path in (tmp_path / "out").glob("*/sheet.png")) == ["sheet.png"] * 2
    assert {path.parent.name for path in (tmp_path / "out").glob("*/sheet.png")} == {"GNE", "RGB"}


def test_values_that_are_uint8_already_are_taken_as_they_are(tmp_path: Path) -> None:
    from five_band_scenes import write_band, write_scene

    scene = write_scene(tmp_path / "raw", 0, hw=(40, 56))
    values = np.arange(40 * 56, dtype=np.float32).reshape(40, 56) % 256
    for letter in "GNE":
        write_band(scene.files[letter], values)
    options = ("--bands", "GNE", "--norm", "uint8")
    assert run(tmp_path / "raw", "--out", tmp_path / "out", *options).exit_code == 0
    image = image_from_file(next((tmp_path / "out").glob("images/*/*.png")))
    np.testing.assert_array_equal(image, np.repeat(values.astype(np.uint8)[:, :, None], 3, axis=2))


def test_the_split_and_its_seed_can_be_chosen(raw: Path, tmp_path: Path) -> None:
    options = ("--bands", "GNE", "--split", "0.5,0.5,0", "--seed", 3)
    assert run(raw, "--out", tmp_path / "out", *options).exit_code == 0
    split = json.loads((tmp_path / "out" / "prepare.json").read_text(encoding="utf-8"))["split"]
    assert split == {
        "shares": {"train": 0.5, "val": 0.5, "test": 0.0},
        "seed": 3,
        "scenes": {"train": 5, "val": 5, "test": 0},
    }
    assert not (tmp_path / "out" / "images" / "test").exists()


def test_a_bad_scene_is_told_of_and_strict_stops_at_it(raw: Path, tmp_path: Path) -> None:
    next(raw.rglob("*N0004.tif")).unlink()
    result = run(raw, "--out", tmp_path / "out", "--bands", "GNE")
    assert result.exit_code == 0
    assert "warning: left out R20220726A00R0004: got scene R20220726A00R0004 without band N" in (
        result.stderr
    )
    assert "left out: 1, named with reasons in" in result.stdout
    strict = run(raw, "--out", tmp_path / "strict", "--bands", "GNE", "--strict")
    assert strict.exit_code == 2
    assert "error: got scene R20220726A00R0004 without band N" in strict.stderr
    assert not (tmp_path / "strict" / "images").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "expected one of --bands and --all-combinations"),
        (["--bands", "GNE", "--all-combinations"], "expected one of --bands and"),
        (["--bands", "GNX"], "bands 'GNX'"),
        (["--bands", "GNG"], "none of them twice"),
        (["--bands", "GNE,GNE"], "with GNE twice"),
        (["--bands", "GNE", "--split", "0.8,0.1"], "three numbers from 0 to 1 that sum to 1"),
        (["--bands", "GNE", "--split", "a,b,c"], "for example, --split 0.8,0.1,0.1"),
        (["--bands", "GNE", "--band-nodata", "nan"], "expected a number from"),
        (["--bands", "RGBN", "--format", "png"], "leave --format out"),
        (["--bands", "GNE", "--jobs", "0"], "--jobs"),
    ],
)
def test_what_cannot_be_asked_for_is_one_line(
    raw: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    result = run(raw, "--out", tmp_path / "out", *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_out_that_is_too_long_is_told_so(raw: Path, tmp_path: Path) -> None:
    for out in (tmp_path / ("논" * 86), tmp_path / ("논" * 86) / "data"):
        result = run(raw, "--out", out, "--bands", "GNE", "--jobs", 1)
        assert result.exit_code == 2
        assert "File name too long" in result.stderr
        assert result.stderr.rstrip().endswith("do this: choose a shorter name")


def test_a_source_without_scenes_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    result = run(tmp_path / "raw", "--out", tmp_path / "out", "--bands", "GNE")
    assert result.exit_code == 2
    assert "no scene" in result.stderr
    assert not (tmp_path / "out").exists()


def test_the_sheet_shows_each_part_with_its_colours(raw: Path, tmp_path: Path) -> None:
    run(raw, "--out", tmp_path / "out", "--bands", "GNE")
    sheet = np.asarray(Image.open(tmp_path / "out" / "sheet.png"))
    colours = {tuple(pixel) for pixel in sheet.reshape(-1, 3).tolist()}
    assert {(8, 39, 245), (0, 229, 245), (225, 0, 26), (250, 0, 204), (245, 123, 0)} <= colours


def as_a_program(*arguments: object, reader: str = "", **changes: str) -> tuple[int, str, str]:
    """Exit code, what `reader` got of stdout (all of it without one), and stderr."""
    command = shlex.join([sys.executable, "-c", START, *map(str, arguments)])
    done = subprocess.run(
        ["bash", "-c", f"{command} {reader}; exit ${{PIPESTATUS[0]}}"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **changes},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_an_ascii_locale_draws_the_same_contact_sheet(raw: Path, tmp_path: Path) -> None:
    sheets = []
    for out, changes in (("one", {}), ("둘", ASCII)):
        arguments = ("prepare", raw, "--out", tmp_path / out, "--bands", "GNE", "--jobs", 1)
        code, _, told = as_a_program(*arguments, **changes)
        assert code == 0, told
        sheets.append((tmp_path / out / "sheet.png").read_bytes())
    assert sheets[0] == sheets[1]


@pytest.mark.parametrize("reader", ["| head -1", "| true"])
def test_a_reader_that_goes_away_ends_it_without_a_word_and_the_data_set_is_whole(
    raw: Path, tmp_path: Path, reader: str
) -> None:
    arguments = ("prepare", raw, "--out", tmp_path / "out", "--bands", "GNE", "--jobs", 1)
    code, shown, told = as_a_program(*arguments, reader=reader)
    assert code in (0, 1, 128 + signal.SIGPIPE)
    assert shown.count("\n") <= 1
    for word in ("error", "Traceback", "Broken pipe", "Exception"):
        assert word not in told
    assert json.loads((tmp_path / "out/prepare.json").read_text(encoding="utf-8"))


def test_preparing_needs_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['onnx'] = None\n"
        "from exporter.__main__ import main; main()"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code, "prepare", "nowhere", "--out", "o", "--bands", "GNE"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "nothing there" in finished.stderr
    assert finished.returncode == 2
