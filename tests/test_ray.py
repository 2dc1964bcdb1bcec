"""`--ray`: the same files as one process makes, also when a worker is killed in the middle.

Ray runs in processes of its own: it warns, and leaves threads behind.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from engines.errors import ClusterError, ConfigError, ImageError, MissingPackageError
from exporter.cluster.address import check_address
from exporter.cluster.answers import Spread as RaySpread
from exporter.cluster.work import results_on_ray
from exporter.cluster.worker import MAX_DEATHS, Lost, Worker
from exporter.commands.group import riceseg
from tests.band_bundles import band_bundle, fused_bundle, stretched
from tests.five_band_scenes import WrittenScene, scene_name, write_data_set, write_scene
from tests.ray_cluster import ROOT, Cluster, running_cluster

HW = (24, 32)
SCENES = 24


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with running_cluster() as cluster:
        yield cluster


def here(*arguments: object) -> Result:
    """`riceseg ARGUMENTS` in this process, without Ray."""
    result = CliRunner().invoke(riceseg, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def on_cluster(
    cluster: Cluster, notes: Path, *arguments: object, kill: str = "nothing", times: int = 1
) -> subprocess.CompletedProcess[str]:
    """The same over the cluster; workers that write a file called `kill`... die `times` times."""
    notes.mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, "-m", "tests.ray_work", *map(str, arguments), "--ray", cluster.address],
        cwd=notes.parent,
        env={**cluster.environment, "RICESEG_TEST_KILL": f"{notes}|{kill}|{times}"},
        capture_output=True,
        encoding="utf-8",
        timeout=300,  # a machine that has more to do
        check=False,
    )


def files_below(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def noted(notes: Path, what: str) -> list[str]:
    return sorted(path.name for path in notes.glob(f"{what}-*"))


# --- prepare --------------------------------------------------------------------------------------


@pytest.fixture
def raw(tmp_path: Path) -> tuple[WrittenScene, ...]:
    """raw/ with scenes, one of which has no band E."""
    scenes = write_data_set(tmp_path / "raw", SCENES, hw=HW)
    scenes[5].files["E"].unlink()
    return scenes


def test_prepare_makes_the_files_of_one_process_when_a_worker_is_killed(
    cluster: Cluster, raw: tuple[WrittenScene, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # paths that are relative must mean the same in a worker
    arguments = ["prepare", "raw", "--bands", "GNE", "--out", "data"]
    alone = here(*arguments, "--jobs", 1)
    assert alone.exit_code == 0, alone.stderr
    expected = files_below(tmp_path / "data")
    (tmp_path / "data").rename(tmp_path / "alone")
    done = on_cluster(cluster, tmp_path / "notes", *arguments, kill=raw[7].name)
    assert done.returncode == 0, done.stderr
    assert noted(tmp_path / "notes", "death") == ["death-0"]
    found = files_below(tmp_path / "data")
    journals = [name for name in expected if name.endswith(".jsonl")]
    # Of what a run finished; in another order, for scenes are finished as they come.
    for name in journals:
        assert sorted(found.pop(name).splitlines()) == sorted(expected.pop(name).splitlines())
    assert journals
    assert found == expected
    assert sum(name.startswith("images/") for name in found) == SCENES - 1
    assert not list((tmp_path / "data").rglob(".riceseg-ray-*"))
    assert done.stdout == alone.stdout


def test_a_scene_that_kills_every_worker_is_left_out(cluster: Cluster, tmp_path: Path) -> None:
    scenes = write_data_set(tmp_path / "raw", 6, hw=HW)
    arguments = ["prepare", tmp_path / "raw", "--bands", "GNE", "--out", tmp_path / "data"]
    arguments += ["--jobs", 1]
    done = on_cluster(cluster, tmp_path / "notes", *arguments, kill=scenes[2].name, times=99)
    assert done.returncode == 0, done.stderr
    assert len(noted(tmp_path / "notes", "death")) == MAX_DEATHS
    assert f"left out {scenes[2].name}: got scene {scenes[2].name}, of which" in done.stderr
    names = {path.stem for path in (tmp_path / "data/images").rglob("*.png")}
    assert names == {scene.name for scene in scenes} - {scenes[2].name}
    assert not list((tmp_path / "data").rglob("*.part"))


# --- segment --------------------------------------------------------------------------------------


def test_segment_writes_what_one_process_does_and_opens_the_bundle_once_in_each_worker(
    cluster: Cluster, tmp_path: Path
) -> None:
    bundle = band_bundle(tmp_path / "bundle", HW)
    scenes = [write_scene(tmp_path / "논", number, hw=HW) for number in range(12)]
    scenes[4].files["G"].write_bytes(b"no TIFF")
    arguments = ["segment", bundle, tmp_path / "논", "--skip-bad", "--out"]
    alone = here(*arguments, tmp_path / "alone")
    assert alone.exit_code == 0, alone.stderr
    killed = scene_name(8)
    done = on_cluster(cluster, tmp_path / "notes", *arguments, tmp_path / "out", kill=killed)
    assert done.returncode == 0, done.stderr
    assert noted(tmp_path / "notes", "death") == ["death-0"]
    assert files_below(tmp_path / "out") == files_below(tmp_path / "alone")
    lines = [line for line in done.stderr.splitlines() if "left out" in line]
    assert lines == [line for line in alone.stderr.splitlines() if "left out" in line]
    assert len(lines) == 1
    labels = np.asarray(Image.open(tmp_path / "out/labels" / f"{killed}.png"))
    np.testing.assert_array_equal(labels, stretched(scenes[8].bands["E"]) // 64)
    opened = [name.split("-")[1] for name in noted(tmp_path / "notes", "opened")]
    assert len(opened) == len(set(opened)) <= 3  # two workers, and one in place of the killed


def test_fused_graphs_run_in_the_workers(cluster: Cluster, tmp_path: Path) -> None:
    bundle = fused_bundle(tmp_path / "bundle", HW, step=32)
    scenes = [write_scene(tmp_path / "in", number, hw=HW) for number in range(6)]
    arguments = ["segment", bundle, tmp_path / "in", "--fused", "--out"]
    alone = here(*arguments, tmp_path / "alone")
    assert alone.exit_code == 0, alone.stderr
    done = on_cluster(cluster, tmp_path / "notes", *arguments, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert files_below(tmp_path / "out") == files_below(tmp_path / "alone")
    for scene in scenes:
        labels = np.asarray(Image.open(tmp_path / "out/labels" / f"{scene.name}.png"))
        np.testing.assert_array_equal(labels, stretched(scene.bands["E"]) // 32)


def test_a_bad_scene_stops_segment_with_the_message_of_one_process(
    cluster: Cluster, tmp_path: Path
) -> None:
    bundle = band_bundle(tmp_path / "bundle", HW)
    write_scene(tmp_path / "in", 1, hw=HW).files["N"].write_bytes(b"no TIFF")
    arguments = ["segment", bundle, tmp_path / "in", "--out", tmp_path / "out"]
    alone = here(*arguments)
    done = on_cluster(cluster, tmp_path / "notes", *arguments)
    assert (done.returncode, alone.exit_code) == (2, 2)
    errors = [
        [line for line in text.splitlines() if line.startswith("error: ")]
        for text in (done.stderr, alone.stderr)
    ]
    assert errors[0] == errors[1]
    assert len(errors[0]) == 1
    assert done.stdout == ""
    assert not list((tmp_path / "out").glob(".riceseg-ray-*"))


# --- what cannot be done --------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["", "local", "ray://head:10001", "head", "head:", ":6379"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match=r"--ray '.*'; expected auto, or HOST:PORT"):
        check_address(address)


def test_without_ray_the_install_command_is_shown_and_nothing_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ray", "ray.data"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingPackageError, match=r"pip install 'riceseg\[ray\]'"):
        check_address("auto")
    write_data_set(tmp_path / "raw", 1, hw=HW)
    out = tmp_path / "data"
    done = here("prepare", tmp_path / "raw", "--out", out, "--bands", "GNE", "--ray", "auto")
    assert done.exit_code == 2
    assert "no package 'ray' in this Python" in done.stderr
    assert not out.exists()


def test_a_cluster_that_nobody_runs_is_found_out_at_once(tmp_path: Path) -> None:
    bundle = band_bundle(tmp_path / "bundle", HW)
    write_scene(tmp_path / "in", 1, hw=HW)
    done = subprocess.run(
        [sys.executable, "-c", "from exporter.__main__ import main; main()", "segment", bundle,
         tmp_path / "in", "--out", tmp_path / "out", "--ray", "127.0.0.1:1"],
        cwd=ROOT, capture_output=True, encoding="utf-8", timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "no connection to the Ray cluster '127.0.0.1:1'" in done.stderr
    assert "ray start --head" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("host", ["a..b", "a" * 70])
def test_a_host_that_no_machine_can_be_called_is_not_reached(host: str, tmp_path: Path) -> None:
    work = RaySpread(lambda: str, tmp_path)
    with pytest.raises(ClusterError, match=f"no connection to the Ray cluster '{host}:6379'"):
        list(results_on_ray(f"{host}:6379", [1], work))
    assert list(tmp_path.iterdir()) == []


def test_a_field_is_not_spread(tmp_path: Path) -> None:
    done = here("segment", tmp_path, tmp_path, "--out", tmp_path / "l.tif", "--ray", "auto")
    assert done.exit_code == 2
    assert "--ray with --out" in done.stderr


def test_nothing_to_do_needs_no_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("exporter.cluster.address.ray_package", lambda: None)
    spread: Any = RaySpread(lambda: abs, tmp_path)
    assert list(results_on_ray("127.0.0.1:1", [], spread)) == []


# --- a worker, by itself --------------------------------------------------------------------------


def answer(worker: Worker, item: Any, index: int = 3) -> Any:
    row = worker({"index": index, "item": pickle.dumps(item)})
    assert row["index"] == index
    return pickle.loads(row["answer"])


def test_a_worker_opens_once_and_leaves_nothing(tmp_path: Path) -> None:
    opened = []
    worker = Worker(lambda: opened.append(1) or abs, tmp_path)
    assert [answer(worker, -2), answer(worker, -5, 4)] == [2, 5]
    assert opened == [1]
    assert list(tmp_path.iterdir()) == []


def test_an_error_comes_back_with_its_three_parts(tmp_path: Path) -> None:
    def refuse(item: str) -> None:
        raise ImageError(item, expected="a photo", do="take another")

    error = answer(Worker(lambda: refuse, tmp_path), "벼.tif").error
    assert isinstance(error, ImageError)
    assert str(error) == "got 벼.tif; expected a photo; do this: take another"
    fault = answer(Worker(lambda: abs, tmp_path), "text").error
    assert isinstance(fault, RuntimeError)
    assert "Traceback" in str(fault)


def test_an_item_that_workers_died_of_is_not_tried_again(tmp_path: Path) -> None:
    (tmp_path / "3").write_bytes(b"." * (MAX_DEATHS - 1))
    assert answer(Worker(lambda: abs, tmp_path), -1) == 1
    (tmp_path / "3").write_bytes(b"." * MAX_DEATHS)
    assert isinstance(answer(Worker(lambda: abs, tmp_path), -1), Lost)


def test_a_machine_that_does_not_see_the_folder_says_so(tmp_path: Path) -> None:
    error = answer(Worker(lambda: abs, tmp_path / "elsewhere/mark"), -1).error
    assert isinstance(error, ClusterError)
    assert "which does not see" in str(error)
    assert str(tmp_path / "elsewhere") in str(error)
