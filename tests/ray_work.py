"""`riceseg` with workers that die or wait, as a program: python -m tests.ray_work ARGUMENTS.

RICESEG_TEST_KILL names a folder and what is killed: FOLDER|NAME|TIMES. A worker that has written
half of a file called NAME... kills itself, so many times in all. Each worker that opens notes its
process and node in FOLDER. Where FOLDER/hold is, a worker that has finished a scene notes
held-NODE and waits in the midst of the next one until FOLDER/go is there.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import time
import unittest.mock
from collections.abc import Callable
from pathlib import Path
from typing import Any

import exporter.cluster.driver
import exporter.cluster.scenes
import exporter.prepare.scene
import exporter.segmentation

HEAD_SECONDS = 3.0  # in place of that of exporter.cluster.driver
SECONDS = 200  # a worker that waits for longer has been forgotten


def dying(open_worker: Callable[..., Any], wanted: str, *arguments: Any) -> Any:
    """`open_worker` in a worker whose `os.replace` dies or waits before a file gets its name."""
    folder, name, times = wanted.split("|")
    notes = Path(folder)
    node = _node()
    (notes / f"opened-{os.getpid()}-{node}-{os.urandom(4).hex()}").touch()
    replace = os.replace
    done = 0

    def killing(source: Any, target: Any) -> None:
        if Path(target).name.startswith(name):
            deaths = sorted(notes.glob("death-*"))
            if len(deaths) < int(times):
                (notes / f"death-{len(deaths)}").touch()
                os.truncate(source, os.path.getsize(source) // 2)
                os.kill(os.getpid(), signal.SIGKILL)
        if done and (notes / "hold").exists():
            (notes / f"held-{node}").touch()
            wait_for(notes / "go")
        replace(source, target)

    os.replace = killing
    work = open_worker(*arguments)

    def counted(item: Any) -> Any:
        nonlocal done
        result = work(item)
        done += 1
        return result

    return counted


def devices(folder: str, workers: int) -> Callable[[int], int]:
    """Each worker notes its node and its devices, and waits until there are so many workers."""
    notes = Path(folder)
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    (notes / f"opened-{os.getpid()}-{_node()}-{seen}").touch()

    def work(item: int) -> int:
        deadline = time.monotonic() + SECONDS
        while len(list(notes.glob("opened-*"))) < workers and time.monotonic() < deadline:
            time.sleep(0.05)
        return item

    return work


def _node() -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id())


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(path)
        time.sleep(0.05)


def main() -> None:
    from exporter.commands.group import riceseg

    before = signal.getsignal(signal.SIGTERM)
    wanted = os.environ["RICESEG_TEST_KILL"]
    module = exporter.cluster.scenes
    changed = {name: getattr(module, name) for name in ("_preparer", "_segmenting")}
    for name, function in changed.items():
        patched = functools.partial(dying, function, wanted)
        unittest.mock.patch.object(module, name, patched).start()
    unittest.mock.patch.object(exporter.cluster.driver, "HEAD_SECONDS", HEAD_SECONDS).start()
    try:
        riceseg(sys.argv[1:], prog_name="riceseg")
    finally:
        import ray

        assert not ray.is_initialized()
        assert signal.getsignal(signal.SIGTERM) is before


if __name__ == "__main__":
    from tests.ray_work import main as imported  # so that workers find `dying` in a module

    imported()
