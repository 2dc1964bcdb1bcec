"""A run that is killed, interrupted or out of room goes on where it was, and to the same file."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from field_rasters import Weights, network_of, read_labels, rice, write_raster

import engines.field.work
from engines.bands.recipe import BandRecipe
from engines.errors import ConfigError, OutputError
from engines.field.run import FieldOptions, FieldResult, segment_field
from engines.progress import SilentProgress

HW = (150, 201)  # 6 rows and 9 columns of windows
STRIPES = [(0, 4), (4, 5), (5, 9)]
RECIPE = BandRecipe("GNE")

KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from field_rasters import Weights, network_of
import engines.field.run, engines.field.work
from engines.bands.recipe import BandRecipe
from engines.field.run import FieldOptions, segment_field
from engines.progress import SilentProgress

engines.field.work.SAVE_EVERY_S = 0
engines.field.run.stripes_of_grid = lambda *_: [(0, 4), (4, 5), (5, 9)]
folder, overlap, logits = Path(sys.argv[2]), float(sys.argv[4]), sys.argv[5] == "True"
network = network_of(Weights(killed_at=int(sys.argv[3]), has_logits=logits),
                     recipe=BandRecipe("GNE"))
segment_field(network, folder / "field.tif", folder / "labels.tif", FieldOptions(overlap),
              SilentProgress())
"""


@pytest.fixture(autouse=True)
def _three_stripes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engines.field.run.stripes_of_grid", lambda *_: STRIPES)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    bands = rice(HW).astype(np.float32)
    bands[:30, :40] = -10000
    return write_raster(tmp_path / "field.tif", bands, nodata=-10000)


def segmented(
    tmp_path: Path, predictor: Any = None, options: FieldOptions | None = None, **given: Any
) -> FieldResult:
    network = network_of(predictor or Weights(), recipe=given.pop("recipe", RECIPE))
    progress = given.pop("progress", SilentProgress())
    source, out = tmp_path / "field.tif", tmp_path / "labels.tif"
    return segment_field(network, source, out, options or FieldOptions(), progress, **given)


class Failing(Weights):
    """Raises in call number `at`."""

    def __init__(self, at: int, error: BaseException) -> None:
        super().__init__()
        self._at, self._error = at, error

    def logits(self, batch: np.ndarray) -> np.ndarray:
        if len(self.calls) == self._at:
            raise self._error
        return super().logits(batch)


def interrupted(tmp_path: Path, at: int = 12, **given: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        segmented(tmp_path, Failing(at, KeyboardInterrupt()), **given)


@pytest.mark.parametrize(
    ("call", "overlap", "has_logits"),
    [(9, 0.25, True), (13, 0.5, True), (22, 0.25, True), (14, 0.25, False)],
)
def test_a_killed_run_goes_on_to_the_identical_file(
    tmp_path: Path, source: Path, call: int, overlap: float, has_logits: bool
) -> None:
    arguments = [str(Path(__file__).parent), str(tmp_path), str(call), str(overlap)]
    killed = subprocess.run([sys.executable, "-c", KILLED, *arguments, str(has_logits)])
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "labels.tif").exists()
    rest = Weights(has_logits=has_logits)
    result = segmented(tmp_path, rest, FieldOptions(overlap))
    found = (tmp_path / "labels.tif").read_bytes()
    whole = Weights(has_logits=has_logits)
    again = segmented(tmp_path, whole, FieldOptions(overlap))
    assert found == (tmp_path / "labels.tif").read_bytes()
    assert (result.resumed, again.resumed) == (True, False)
    assert sum(rest.calls) < sum(whole.calls)
    assert result.limits == again.limits
    assert result.pixels == again.pixels


def test_ctrl_c_keeps_the_work_and_tells_how_to_go_on(
    tmp_path: Path, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        interrupted(tmp_path)
    assert "the same command goes on from there" in caplog.text
    assert sorted(path.name for path in tmp_path.iterdir()) == [".labels.tif.work", "field.tif"]
    assert segmented(tmp_path).resumed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["field.tif", "labels.tif"]


def test_ctrl_c_before_the_first_row_leaves_nothing(tmp_path: Path, source: Path) -> None:
    interrupted(tmp_path, at=0)
    assert [path.name for path in tmp_path.iterdir()] == ["field.tif"]


def test_a_run_can_be_interrupted_again_and_again(tmp_path: Path, source: Path) -> None:
    segmented(tmp_path)
    expected = read_labels(tmp_path / "labels.tif")
    (tmp_path / "labels.tif").unlink()
    interruptions = 0
    while not (tmp_path / "labels.tif").exists():
        try:
            segmented(tmp_path, Failing(6, KeyboardInterrupt()))
        except KeyboardInterrupt:
            interruptions += 1
    assert interruptions > 2
    assert (read_labels(tmp_path / "labels.tif") == expected).all()


def test_the_bands_are_not_measured_again(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(tmp_path)
    monkeypatch.setattr("engines.field.raster.RunningLimits", None)
    assert segmented(tmp_path).resumed


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"options": FieldOptions(0.5)}, "another options"),
        ({"options": FieldOptions(nodata=0)}, "another options"),
        ({"recipe": BandRecipe("ENG")}, "another bundle"),
        ({"predictor": Weights(has_logits=False)}, "another bundle"),
    ],
)
def test_another_command_does_not_go_on_with_the_work(
    tmp_path: Path, source: Path, change: dict[str, Any], what: str
) -> None:
    interrupted(tmp_path)
    with pytest.raises(ConfigError, match=f"{what}.*--no-resume"):
        segmented(tmp_path, **change)
    assert segmented(tmp_path).resumed


def test_another_source_does_not_go_on_with_the_work(tmp_path: Path, source: Path) -> None:
    interrupted(tmp_path)
    status = source.stat()
    os.utime(source, ns=(status.st_atime_ns, status.st_mtime_ns + 1000))
    with pytest.raises(ConfigError, match="another source"):
        segmented(tmp_path)


def test_no_resume_starts_over(tmp_path: Path, source: Path) -> None:
    interrupted(tmp_path)
    options = FieldOptions(0.5, resume=False)
    assert not segmented(tmp_path, options=options).resumed
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["field.tif", "labels.tif"]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        "[" * 100_000,
        '{"format": 1, "about": {}, "more": {}, "hw": [1], "stripes": [], "done": []}',
        '{"format": 1, "about": {}, "more": {}, "hw": [1, 1], "stripes": [[0]], "done": [0]}',
        '{"format": 1, "about": {}, "more": {}, "hw": [1, 1], "stripes": [], "done": [-1]}',
    ],
)
def test_a_damaged_record_is_refused(tmp_path: Path, source: Path, content: str) -> None:
    interrupted(tmp_path)
    (tmp_path / ".labels.tif.work" / "progress.json").write_text(content)
    with pytest.raises(ConfigError, match="damaged or of another version"):
        segmented(tmp_path)


@pytest.mark.parametrize("more", [{}, {"low": [0.0], "high": [1.0]}, {"low": 3, "high": 4}])
def test_a_record_without_the_limits_is_refused(
    tmp_path: Path, source: Path, more: dict[str, Any]
) -> None:
    interrupted(tmp_path)
    path = tmp_path / ".labels.tif.work" / "progress.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "more": more}))
    with pytest.raises(ConfigError, match="without the limits"):
        segmented(tmp_path)


def test_labels_that_were_lost_are_made_again(tmp_path: Path, source: Path) -> None:
    interrupted(tmp_path)
    (tmp_path / ".labels.tif.work" / "labels.u8").write_bytes(b"")
    assert not segmented(tmp_path).resumed


def test_two_runs_do_not_write_to_one_output(tmp_path: Path, source: Path) -> None:
    class Both(Weights):
        def logits(self, batch: np.ndarray) -> np.ndarray:
            with pytest.raises(OutputError, match="another run is writing"):
                segmented(tmp_path)
            return super().logits(batch)

    assert segmented(tmp_path, Both()).windows > 50


def test_a_disk_that_is_full_is_told_before_the_work(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    predictor = Weights()
    with pytest.raises(OutputError, match=r"No space left on device.*free some space"):
        segmented(tmp_path, predictor)
    assert predictor.calls == []
    assert [path.name for path in tmp_path.iterdir()] == ["field.tif"]


def test_a_disk_that_gets_full_keeps_what_is_done(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, calls = os.pwrite, [0]

    def full_at_last(*given: Any) -> int:
        calls[0] += 1
        if calls[0] > 200:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(*given)

    with monkeypatch.context() as patched:
        patched.setattr(engines.field.work.os, "pwrite", full_at_last)
        with pytest.raises(OutputError, match="No space left on device"):
            segmented(tmp_path)
    assert segmented(tmp_path).resumed


FULL_AT_THE_END = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from field_rasters import Weights, network_of
from engines.errors import OutputError
from engines.field.run import FieldOptions, segment_field
from engines.progress import SilentProgress

class FullAtTheEnd(SilentProgress):
    def stage(self, title):
        if title == "write the labels":
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), -1))
        return super().stage(title)

folder = Path(sys.argv[2])
try:
    segment_field(network_of(Weights()), folder / "rgb.tif", folder / "labels.tif",
                  FieldOptions(), FullAtTheEnd())
except OutputError as error:
    print(error)
"""


@pytest.mark.parametrize("room", [100, 3000])
def test_a_geotiff_that_has_no_room_is_not_left_half_written(tmp_path: Path, room: int) -> None:
    write_raster(tmp_path / "rgb.tif", rice(HW))
    run = subprocess.run(
        [
            sys.executable,
            "-c",
            FULL_AT_THE_END,
            str(Path(__file__).parent),
            str(tmp_path),
            str(room),
        ],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr  # where libtiff itself prints a line or two
    assert "free some space, or choose another --out; the same command goes on" in run.stdout
    assert not (tmp_path / "labels.tif").exists()
    work = tmp_path / ".labels.tif.work"
    assert sorted(path.name for path in work.iterdir()) == ["labels.u8", "lock", "progress.json"]


def test_finish_sees_the_whole_file_before_it_has_its_name(tmp_path: Path, source: Path) -> None:
    seen = []

    def finish(path: Path) -> None:
        assert not (tmp_path / "labels.tif").exists()
        seen.append(read_labels(path))

    segmented(tmp_path, finish=finish)
    assert (seen[0] == read_labels(tmp_path / "labels.tif")).all()


def test_an_error_in_finish_leaves_no_file_and_loses_no_work(tmp_path: Path, source: Path) -> None:
    def fails(path: Path) -> None:
        raise OutputError("no overview", expected="one", do="nothing")

    with pytest.raises(OutputError, match="no overview"):
        segmented(tmp_path, finish=fails)
    assert not (tmp_path / "labels.tif").exists()
    predictor = Weights()
    assert segmented(tmp_path, predictor).resumed
    assert predictor.calls == []


@pytest.mark.parametrize("length", [4, 100, 400])
def test_a_geotiff_that_a_kill_left_half_written_is_written_again(
    tmp_path: Path, source: Path, length: int
) -> None:
    def interrupts(path: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        segmented(tmp_path, finish=interrupts)
    half = tmp_path / ".labels.tif.work" / "labels.tif"
    half.write_bytes(half.read_bytes()[:length])
    assert segmented(tmp_path).resumed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["field.tif", "labels.tif"]


def test_the_labels_are_not_written_over_the_source(tmp_path: Path, source: Path) -> None:
    network = network_of(Weights(), recipe=RECIPE)
    with pytest.raises(OutputError, match="what shall be read"):
        segment_field(network, source, source, FieldOptions(), SilentProgress())
    with pytest.raises(OutputError, match="which is a folder"):
        segment_field(network, source, tmp_path, FieldOptions(), SilentProgress())


def test_a_work_folder_that_is_a_link_is_not_followed(tmp_path: Path, source: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".labels.tif.work").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match=r"which is not a folder.*remove it"):
        segmented(tmp_path)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_an_existing_output_stays_until_the_new_one_is_whole(tmp_path: Path, source: Path) -> None:
    (tmp_path / "labels.tif").write_bytes(b"old")
    interrupted(tmp_path)
    assert (tmp_path / "labels.tif").read_bytes() == b"old"
    segmented(tmp_path)
    assert read_labels(tmp_path / "labels.tif").shape == HW
