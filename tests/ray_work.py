"""`riceseg` with workers that die, as a program: python -m tests.ray_work ARGUMENTS.

RICESEG_TEST_KILL names a folder and what is killed: FOLDER|NAME|TIMES. A worker that has written
half of a file called NAME... kills itself, so many times in all. Each worker that opens notes its
process in FOLDER.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import unittest.mock
from collections.abc import Callable
from pathlib import Path
from typing import Any

import exporter.prepare.scene
import exporter.scenes_on_ray
import exporter.segmentation


def dying(open_worker: Callable[..., Any], wanted: str, *arguments: Any) -> Any:
    """`open_worker` in a worker whose `os.replace` dies before a file gets its name."""
    folder, name, times = wanted.split("|")
    (Path(folder) / f"opened-{os.getpid()}-{os.urandom(4).hex()}").touch()
    replace = os.replace

    def killing(source: Any, target: Any) -> None:
        if Path(target).name.startswith(name):
            deaths = sorted(Path(folder).glob("death-*"))
            if len(deaths) < int(times):
                (Path(folder) / f"death-{len(deaths)}").touch()
                os.truncate(source, os.path.getsize(source) // 2)
                os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    os.replace = killing
    return open_worker(*arguments)


def main() -> None:
    from exporter.commands.group import riceseg

    before = signal.getsignal(signal.SIGTERM)
    wanted = os.environ["RICESEG_TEST_KILL"]
    module = exporter.scenes_on_ray
    changed = {name: getattr(module, name) for name in ("_preparer", "_segmenting")}
    for name, function in changed.items():
        patched = functools.partial(dying, function, wanted)
        unittest.mock.patch.object(module, name, patched).start()
    try:
        riceseg(sys.argv[1:], prog_name="riceseg")
    finally:
        import ray

        assert not ray.is_initialized()
        assert signal.getsignal(signal.SIGTERM) is before


if __name__ == "__main__":
    from tests.ray_work import main as imported  # so that workers find `dying` in a module

    imported()
