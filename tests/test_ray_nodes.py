"""`--ray` over two nodes: both work, and what is left when one, or the head, or the user goes.

The nodes are on this machine; what waits in the middle waits for a file.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from engines.errors import ClusterError, ConfigError
from exporter.cluster.address import check_address
from exporter.cluster.driver import _messages
from tests.five_band_scenes import write_data_set
from tests.ray_cluster import ROOT, Cluster, running_cluster
from tests.test_ray import HW, files_below, here, noted

SCENES = 12  # few enough for blocks of one: each comes back when it is done
GPUS = 2
SECONDS = 300  # a machine that has more to do


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head without GPUs, and a node that says it has more of them than cores."""
    with running_cluster({"num_cpus": 1}, {"num_cpus": 1, "num_gpus": GPUS}) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nodes")
    write_data_set(folder / "raw", SCENES, hw=HW)
    done = here("prepare", folder / "raw", "--bands", "GNE", "--out", folder / "data", "--jobs", 1)
    assert done.exit_code == 0, done.stderr
    return folder / "raw"


def expected(raw: Path) -> dict[str, bytes]:
    """The files of one process."""
    return in_any_order(files_below(raw.parent / "data"))


def in_any_order(files: dict[str, bytes]) -> dict[str, bytes]:
    """Scenes are added to the journal as they come, each once."""
    return {
        name: b"\n".join(sorted(data.split(b"\n"))) if name.endswith(".jsonl") else data
        for name, data in files.items()
    }


@contextlib.contextmanager
def preparing(
    raw: Path, folder: Path, environment: dict[str, str], *ray: str, hold: bool = True
) -> Iterator[subprocess.Popen[str]]:
    """`riceseg prepare` into folder/data; with `hold` every worker waits in its second scene."""
    notes = folder / "notes"
    notes.mkdir()
    if hold:
        (notes / "hold").touch()
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.ray_work", "prepare", str(raw), "--bands", "GNE",
         "--out", str(folder / "data"), "--ray", *ray],
        env={**environment, "RICESEG_TEST_KILL": f"{notes}|nothing|0"},
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8",
        start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def until_held(folder: Path, process: subprocess.Popen[str], nodes: int = 2) -> None:
    """Until the workers of so many nodes have done a scene, and are in the midst of another."""
    deadline = time.monotonic() + SECONDS
    while len(noted(folder / "notes", "held")) < nodes:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def until_kept(folder: Path) -> None:
    """Until a scene is in the journal."""
    deadline = time.monotonic() + SECONDS
    while not any(
        journal.read_bytes().count(b"\n") > 1
        for journal in (folder / "data").rglob("finished.jsonl")
    ):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def goes_on(raw: Path, folder: Path) -> None:
    """The same command on this machine alone, which has less to do."""
    done = here("prepare", raw, "--bands", "GNE", "--out", folder / "data", "--jobs", 1)
    assert done.exit_code == 0, done.stderr
    assert "of them from before" in done.stdout
    assert in_any_order(files_below(folder / "data")) == expected(raw)


def let_go(folder: Path) -> None:
    (folder / "notes/go").touch()


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    stdout, stderr = process.communicate(timeout=SECONDS)
    return process.returncode, stdout, stderr


# --- both nodes work ------------------------------------------------------------------------------


def test_both_nodes_prepare_and_the_files_are_those_of_one_process(
    cluster: Cluster, raw: Path, tmp_path: Path
) -> None:
    environment = {**cluster.environment, "RAY_ADDRESS": cluster.address, "RAY_TMPDIR": "/nowhere"}
    with preparing(raw, tmp_path, environment, "auto") as process:
        until_held(tmp_path, process)
        let_go(tmp_path)
        code, _, stderr = ended(process)
    assert code == 0, stderr
    assert in_any_order(files_below(tmp_path / "data")) == expected(raw)


def test_each_gpu_has_one_worker_and_each_worker_sees_its_own(
    cluster: Cluster, tmp_path: Path
) -> None:
    code = (
        "import functools, pathlib, ray, sys; from exporter.cluster.answers import Spread; "
        "from exporter.cluster.work import results_on_ray; "
        "from tests.ray_work import devices; address, folder, gpus = sys.argv[1:]; "
        "ray.init(address); "  # a connection that is there is used, and kept
        "work = functools.partial(devices, folder, int(gpus)); "
        "spread = Spread(work, pathlib.Path(folder), gpus=True, workers=9); "
        "print(sorted(results_on_ray(address, range(20), spread)), ray.is_initialized())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, cluster.address, str(tmp_path), str(GPUS)],
        env=cluster.environment, cwd=ROOT, capture_output=True, encoding="utf-8",
        timeout=SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{[(item, item) for item in range(20)]} True"
    _, _, nodes, devices = zip(
        *(name.split("-") for name in noted(tmp_path, "opened")), strict=True
    )
    assert sorted(devices) == [str(number) for number in range(GPUS)]
    assert len(set(nodes)) == 1


def test_ctrl_c_ends_it_with_its_workers_and_keeps_what_is_finished(
    cluster: Cluster, raw: Path, tmp_path: Path
) -> None:
    with preparing(raw, tmp_path, cluster.environment, "auto") as process:
        until_held(tmp_path, process)
        workers = [int(name.split("-")[1]) for name in noted(tmp_path / "notes", "opened")]
        assert all(map(psutil.pid_exists, workers))
        until_kept(tmp_path)
        before = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        code, _, stderr = ended(process)
    assert code == 130, stderr
    assert "finished scenes are kept" in stderr
    assert "Traceback" not in stderr
    assert time.monotonic() - before < 60
    deadline = time.monotonic() + 60
    while any(map(psutil.pid_exists, workers)):
        assert time.monotonic() < deadline, "workers that go on"
        time.sleep(0.05)
    assert not list((tmp_path / "data").glob(".riceseg-ray-*"))
    goes_on(raw, tmp_path)


# --- nodes that are lost --------------------------------------------------------------------------


@contextlib.contextmanager
def at_work_on_two_nodes(
    raw: Path, tmp_path: Path
) -> Iterator[tuple[Cluster, subprocess.Popen[str]]]:
    """A cluster of this test alone, each of whose nodes is in the middle of a scene."""
    with (
        running_cluster({"num_cpus": 1}, {"num_cpus": 1}) as cluster,
        preparing(raw, tmp_path, cluster.environment, cluster.address) as process,
    ):
        until_held(tmp_path, process)
        yield cluster, process


def test_a_node_that_is_lost_leaves_no_scene_out_and_none_comes_twice(
    raw: Path, tmp_path: Path
) -> None:
    with at_work_on_two_nodes(raw, tmp_path) as (cluster, process):
        cluster.kill(1)
        let_go(tmp_path)
        code, _, stderr = ended(process)
    assert code == 0, stderr
    assert "marked dead" in stderr
    assert "retries" not in stderr
    assert in_any_order(files_below(tmp_path / "data")) == expected(raw)


def test_a_head_that_is_lost_ends_the_run_which_goes_on_without_it(
    raw: Path, tmp_path: Path
) -> None:
    with at_work_on_two_nodes(raw, tmp_path) as (cluster, process):
        until_kept(tmp_path)
        before = time.monotonic()
        cluster.kill(0)
        code, stdout, stderr = ended(process)
        assert time.monotonic() - before < 60
    assert (code, stdout) == (2, "")
    error = stderr[stderr.index("error: ") :].splitlines()
    assert len(error) == 1
    assert "the head of the Ray cluster" in error[0]
    assert "the same command goes on, also without --ray" in error[0]
    assert not list((tmp_path / "data").glob(".riceseg-ray-*"))
    goes_on(raw, tmp_path)


@pytest.mark.parametrize("head", [None, "127.0.0.1:1"])
def test_a_connection_that_ends_without_a_word_is_told_of(
    head: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("exporter.cluster.driver.HEAD_SECONDS", 0.1)
    monkeypatch.setattr("exporter.cluster.driver._LOOK_SECONDS", 0.1)
    receiver, sender = multiprocessing.Pipe(duplex=False)
    with receiver, sender:
        sender.send_bytes(pickle.dumps(("result", (3, "벼"))))
        if head is None:
            sender.close()
        else:
            sender.send_bytes(pickle.dumps(("head", head)))
        messages = _messages(receiver, "auto")
        assert next(messages) == ("result", (3, "벼"))
        what = "no connection to the Ray cluster 'auto' any more" if head is None else "no answer"
        with pytest.raises(ClusterError, match=what):
            next(messages)


# --- which cluster --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stale", "message"),
    [
        (None, "got no Ray cluster on this machine; expected one, or RAY_ADDRESS or --ray"),
        ("127.0.0.1:1", "got no connection to the Ray cluster '127.0.0.1:1' ("),
    ],
)
def test_auto_without_a_cluster_is_an_error_at_once_and_starts_none(
    stale: str | None, message: str, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_address("auto")  # Ray is loaded, without its warnings
    # It looks through the machine's processes, among which may be a cluster of somebody.
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", frozenset)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    if stale is not None:  # of a cluster that was killed
        (tmp_path / "ray").mkdir()
        (tmp_path / "ray/ray_current_cluster").write_text(stale)
    before = time.monotonic()
    done = here("prepare", raw, "--bands", "GNE", "--out", tmp_path / "data", "--ray", "auto")
    assert time.monotonic() - before < 20
    assert done.exit_code == 2
    assert done.stderr.count("error: ") == 1
    assert message in done.stderr
    assert not list((tmp_path / "ray").glob("session*"))


@pytest.mark.parametrize("named", ["local", "ray://head:10001", "head"])
def test_an_address_in_the_environment_that_is_none_is_refused(
    named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", named)
    with pytest.raises(ConfigError, match=f"RAY_ADDRESS '{named}'; expected auto, or HOST:PORT"):
        check_address("auto")
    check_address("head:6379")
