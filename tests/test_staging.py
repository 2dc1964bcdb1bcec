"""A folder that appears whole or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from engines.errors import OutputError
from exporter.staging import whole_folder


def test_the_folder_takes_its_name_when_the_block_succeeds(tmp_path: Path) -> None:
    target = tmp_path / "a" / "bundle"
    with whole_folder(target, overwrite=False) as folder:
        (folder / "bundle.json").write_text("{}")
        assert not target.exists()
    assert [p.name for p in target.iterdir()] == ["bundle.json"]
    assert [p.name for p in target.parent.iterdir()] == ["bundle"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failed_block_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def fail_half_way(folder: Path) -> None:
        (folder / "model.onnx").write_bytes(b"x")
        raise error

    with pytest.raises(error), whole_folder(tmp_path / "bundle", overwrite=False) as folder:
        fail_half_way(folder)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_replacement_keeps_the_old_bundle(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "bundle.json").write_text("old")
    with pytest.raises(ValueError, match="stop"), whole_folder(target, overwrite=True):
        raise ValueError("stop")
    assert (target / "bundle.json").read_text() == "old"


def test_a_bundle_is_replaced_only_when_told_so(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "bundle.json").write_text("old")
    with (
        pytest.raises(OutputError, match="--overwrite"),
        whole_folder(target, overwrite=False),
    ):
        pytest.fail("must not begin")
    with whole_folder(target, overwrite=True) as folder:
        (folder / "bundle.json").write_text("new")
    assert (target / "bundle.json").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_folder_that_is_no_bundle_is_never_replaced(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with (
        pytest.raises(OutputError, match="is not a bundle"),
        whole_folder(tmp_path, overwrite=overwrite),
    ):
        pytest.fail("must not begin")
    assert (tmp_path / "thesis.txt").exists()


def test_a_place_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(OutputError, match="choose another --out"),
        whole_folder(tmp_path / "file" / "bundle", overwrite=False),
    ):
        pytest.fail("must not begin")


def test_what_a_killed_run_left_behind_is_removed_by_the_next(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from exporter.staging import whole_folder\n"
        "with whole_folder(Path(sys.argv[1]), overwrite=False) as folder:\n"
        "    (folder / 'model.onnx').write_bytes(b'x'); print('ready', flush=True); time.sleep(60)"
    )
    root = Path(__file__).parent.parent
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "bundle")],
        stdout=subprocess.PIPE,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert not (tmp_path / "bundle").exists()
    assert len(list(tmp_path.iterdir())) == 1
    with whole_folder(tmp_path / "bundle", overwrite=False) as folder:
        (folder / "bundle.json").write_text("{}")
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]
