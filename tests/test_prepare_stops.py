"""`prepare` with several processes: some of them die, the disk is full, somebody presses Ctrl-C."""

from __future__ import annotations

import errno
import io
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from five_band_scenes import write_data_set, write_scene

from engines.bands.recipe import BandRecipe
from engines.errors import OutputError
from engines.progress import SilentProgress
from exporter.prepare import scene as scene_module
from exporter.prepare.pool import outcomes_here
from exporter.prepare.raw_layout import RawScene, sources_from
from exporter.prepare.request import PreparedRecord, PrepareRequest
from exporter.prepare.run import prepare
from exporter.prepare.scene import FailedScene, FinishedScene, SceneSettings, SceneTask
from exporter.prepare.source_file import FileRef

ROOT = Path(__file__).parents[1]
GNE = (BandRecipe("GNE"),)


def prepared(source: Path, out: Path, **options: Any) -> PreparedRecord:
    options = {"jobs": 1, **options}
    return prepare(PrepareRequest(source, out, GNE, **options), SilentProgress())


def all_files(folder: Path) -> dict[str, bytes]:
    """What a data set consists of; not the journal and the summary, which tell of the run."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("finished.jsonl", "prepare.json")
    }


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    write_data_set(tmp_path / "raw", 24, hw=(40, 56))
    return tmp_path / "raw"


@pytest.fixture
def whole(raw: Path, tmp_path: Path) -> dict[str, bytes]:
    """The data set as one process makes it that nobody disturbs."""
    prepared(raw, tmp_path / "whole")
    return all_files(tmp_path / "whole")


def test_several_processes_make_the_same_files(
    raw: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    prepared(raw, tmp_path / "out", jobs=2)
    assert all_files(tmp_path / "out") == whole


# --- a worker is killed ---------------------------------------------------------------------------


class Trap(threading.Thread):
    """Kills the processes that read a pipe, so often, then lets one have `data`."""

    def __init__(self, pipe: Path, *, kills: int, data: bytes) -> None:
        super().__init__(daemon=True)
        os.mkfifo(pipe)
        self.killed: list[int] = []
        self._pipe, self._kills, self._data = pipe, kills, data
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.is_set():
            try:
                end = os.open(self._pipe, os.O_WRONLY | os.O_NONBLOCK)
            except OSError:  # nobody reads it
                time.sleep(0.005)
                continue
            if len(self.killed) < self._kills:
                for reader in self._readers():
                    self.killed.append(reader.pid)
                    reader.kill()
                    psutil.wait_procs([reader], 5)
            else:
                os.write(end, self._data)
                self._over.set()  # its reader may still have it open: it must not get it twice
            os.close(end)

    def stop(self) -> None:
        self._over.set()
        self.join()

    def _readers(self) -> list[psutil.Process]:
        while True:
            children = psutil.Process().children(recursive=True)
            found = [child for child in children if self._reads(child.pid)]
            if found:
                return found

    def _reads(self, pid: int) -> bool:
        try:
            links = [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()]
        except OSError:
            return False
        return str(self._pipe) in links


@pytest.fixture
def settings(tmp_path: Path) -> SceneSettings:
    settings = SceneSettings(GNE, ".png", tmp_path / "made", tmp_path / "made" / "staging")
    for folder in (folder for pair in settings.folders for folder in pair):
        folder.mkdir(parents=True)
    return settings


def with_trap(tmp_path: Path, kills: int) -> tuple[list[SceneTask], Trap]:
    """Twelve scenes, the labels of one of which are a pipe."""
    scenes = [write_scene(tmp_path / "raw12", number, hw=(40, 56)) for number in range(12)]
    trap = Trap(tmp_path / "pipe", kills=kills, data=scenes[5].json.read_bytes())
    tasks = [SceneTask(scene) for scene in sources_from(tmp_path / "raw12").scenes]
    of_pipe = RawScene(scenes[5].name, tasks[5].scene.bands, FileRef(str(tmp_path / "pipe")))
    tasks[5] = SceneTask(of_pipe)
    return tasks, trap


def outcomes_beside(
    trap: Trap, tasks: list[SceneTask], settings: SceneSettings
) -> list[FinishedScene | FailedScene]:
    trap.start()
    try:
        return list(outcomes_here(tasks, settings, 2))
    finally:
        trap.stop()


def test_the_scenes_of_a_killed_worker_are_done_by_another(
    tmp_path: Path, settings: SceneSettings
) -> None:
    # Once: a worker that dies late had no other scene, and for two such deaths its scene is blamed.
    tasks, trap = with_trap(tmp_path, kills=1)
    outcomes = outcomes_beside(trap, tasks, settings)
    assert len(trap.killed) == 1
    assert sorted(outcome.name for outcome in outcomes) == [task.scene.name for task in tasks]
    assert all(isinstance(outcome, FinishedScene) for outcome in outcomes)


def test_a_scene_of_which_every_worker_dies_is_left_out_alone(
    tmp_path: Path, settings: SceneSettings
) -> None:
    tasks, trap = with_trap(tmp_path, kills=99)
    outcomes = outcomes_beside(trap, tasks, settings)
    failed = [outcome for outcome in outcomes if isinstance(outcome, FailedScene)]
    assert [outcome.name for outcome in failed] == [tasks[5].scene.name]
    assert "whose process was killed 2 times" in str(failed[0].error)
    assert sorted(outcome.name for outcome in outcomes) == [task.scene.name for task in tasks]


# --- the command is stopped -----------------------------------------------------------------------

STOPPED = """
import os, signal, sys
from pathlib import Path
from engines.progress import PlainProgress
from exporter.commands import prepare as command

class Stopped(PlainProgress):
    def advance(self, done, total):
        if done == 9 and total == 24:
            import psutil
            print(*[child.pid for child in psutil.Process().children(recursive=True)], flush=True)
            {stop}

command.progress_for = Stopped
from exporter.__main__ import main
sys.argv[1:] = ["prepare", sys.argv[1], "--out", sys.argv[2], "--bands", "GNE", "--jobs", "2"]
main()
"""


def stopped(raw: Path, out: Path, stop: str) -> tuple[subprocess.CompletedProcess[str], list[int]]:
    """The command in a session of its own, so that a signal for its group does not reach us."""
    finished = subprocess.run(
        [sys.executable, "-c", STOPPED.format(stop=stop), str(raw), str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        start_new_session=True,
        timeout=60,
        check=False,
    )
    return finished, [int(pid) for pid in finished.stdout.split()[:10] if pid.isdigit()]


def alive(pids: list[int]) -> list[int]:
    """Those that are still there after some seconds; a dead one may wait for its parent."""
    until = time.monotonic() + 10
    while time.monotonic() < until:
        left = [
            pid
            for pid in pids
            if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        ]
        if not left:
            return []
        time.sleep(0.02)
    return left


def test_processes_are_started_with_ctrl_c_held_back() -> None:
    code = """
import signal, sys
from multiprocessing import util
from exporter.prepare import pool

started = util.spawnv_passfds

def noted(path, arguments, descriptors):
    if "forkserver" in " ".join(map(str, arguments)):
        print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ()))
    return started(path, arguments, descriptors)

util.spawnv_passfds = noted
pool.start_server()
print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ()))
"""
    finished = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert finished.stdout.split() == ["True", "False"]


def test_ctrl_c_leaves_finished_scenes_and_the_same_command_goes_on(
    raw: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    out = tmp_path / "out"
    # As a terminal does it: every process of the group gets the signal.
    finished, workers = stopped(raw, out, "os.killpg(0, signal.SIGINT)")
    assert finished.returncode == 130, finished.stderr
    assert "finished scenes are kept: the same command goes on from here" in finished.stderr
    assert "Traceback" not in finished.stderr
    assert len(workers) >= 2
    assert alive(workers) == []
    assert not (out / "images").exists()
    assert not list(out.rglob("*.part"))
    assert prepared(raw, out).reused >= 8
    assert all_files(out) == whole


def test_a_killed_command_takes_its_workers_with_it_and_can_be_repeated(
    raw: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    out = tmp_path / "out"
    finished, workers = stopped(raw, out, "os.kill(os.getpid(), signal.SIGKILL)")
    assert finished.returncode == -signal.SIGKILL
    assert len(workers) >= 2
    assert alive(workers) == []
    (out / ".riceseg-prepare" / "staging" / "0" / "images" / ".x.part").write_bytes(b"half")
    assert prepared(raw, out).reused >= 8
    assert all_files(out) == whole


def test_a_run_that_was_stopped_while_it_divided_goes_on(
    raw: Path, tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[str] = []

    def replace(source: Any, target: Any) -> None:
        if "staging" in str(source) and not str(source).endswith(".part"):
            if len(moved) == 11:
                raise KeyboardInterrupt
            moved.append(str(target))
        rename(source, target)

    rename = os.replace
    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        prepared(raw, tmp_path / "out")
    monkeypatch.undo()
    assert len(list((tmp_path / "out").glob("*/*/*.png"))) == 11
    assert prepared(raw, tmp_path / "out").reused == 24
    assert all_files(tmp_path / "out") == whole


# --- the disk is full -----------------------------------------------------------------------------


class FullDisk(io.FileIO):
    """Takes what fits into `left`, as a file system does, then nothing."""

    left = 0

    def write(self, data: Any, /) -> int:
        if FullDisk.left == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        part = bytes(data)[: FullDisk.left]
        FullDisk.left -= len(part)
        return super().write(part) or 0


@pytest.fixture
def disk_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    def set_size(size: int) -> None:
        FullDisk.left = size
        monkeypatch.setattr(
            scene_module, "open", lambda path, mode, **_: FullDisk(path, mode), raising=False
        )

    return set_size


def test_a_full_disk_stops_the_run_and_leaves_no_half_file(
    raw: Path,
    tmp_path: Path,
    whole: dict[str, bytes],
    disk_of: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    disk_of(40_000)
    with pytest.raises(OutputError, match=r"No space left on device; .*goes on where it stopped"):
        prepared(raw, out)
    assert not (out / "images").exists()
    assert not list(out.rglob("*.part"))
    monkeypatch.undo()
    record = prepared(raw, out)
    assert 1 <= record.reused < 24
    assert all_files(out) == whole


def test_a_file_that_cannot_be_written_stays_as_it_was(
    tmp_path: Path, disk_of: Callable[[int], None]
) -> None:
    path = tmp_path / "벼.png"
    scene_module.write_whole(path, b"old")
    disk_of(5)
    with pytest.raises(OutputError, match="No space left on device"):
        scene_module.write_whole(path, b"longer than the disk")
    assert [file.name for file in tmp_path.iterdir()] == ["벼.png"]
    assert path.read_bytes() == b"old"


def test_a_disk_that_is_full_for_workers_stops_them_all(raw: Path, tmp_path: Path) -> None:
    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))

    command = [sys.executable, "-c", "from exporter.__main__ import main; main()", "prepare"]
    finished = subprocess.run(
        [*command, str(raw), "--out", str(tmp_path / "out"), "--bands", "GNE", "--jobs", "2"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=small_files,
        timeout=60,
        check=False,
    )
    assert finished.returncode == 2
    assert "File too large; expected a file system and a limit" in finished.stderr
    assert "Traceback" not in finished.stderr
    assert not list((tmp_path / "out").rglob("*.part"))
    assert not list((tmp_path / "out").rglob("*.png"))
