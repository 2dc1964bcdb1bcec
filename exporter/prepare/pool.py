"""Scenes on several cores of this machine; a worker that dies takes no other scene with it."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import numpy as np

from engines.errors import OutputError
from exporter.child_process import ctrl_c_held_back, end_with_parent
from exporter.prepare.scene import (
    Outcome,
    SceneSettings,
    SceneTask,
    prepare_scene,
    scene_that_kills,
)

Chunk = tuple[SceneTask, ...]

# A message to a worker and back costs the time of a tenth of a small scene.
MAX_CHUNK = 8
MAX_DEATHS = 2  # of workers that had a scene alone
MAX_DEATHS_IN_A_ROW = 6  # without any scene between them: it is not the scenes

_KEPT_BYTES = 16 << 20  # more than any array of a scene of 512x512, less than glibc's limit of 32

# Not "fork", which copies the locks of a live progress display as they are.
_METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


def cores() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def outcomes_here(
    tasks: Sequence[SceneTask], settings: SceneSettings, jobs: int
) -> Iterator[Outcome]:
    """`prepare_scene` of each task, in any order, by so many processes; by this one for one job.

    When a worker is killed (the kernel does so when memory ends), the scenes that it had are done
    again, each alone; a scene that its worker died of twice more is a `FailedScene`. When this
    generator is closed, for Ctrl-C too, workers end after the scene that they are at. They end as
    well when this process is killed. Raises OutputError when workers die whatever they do.
    """
    if jobs == 1 or len(tasks) < 2:
        _keep_freed_memory()
        return (prepare_scene(task, settings) for task in tasks)
    return _Workers(settings, jobs).outcomes(tasks)


def _keep_freed_memory() -> None:
    """glibc gives back memory of megabytes whenever it is freed, until a larger piece was freed.

    Without this each scene may wait 3 ms (of 9) for the pages of the one before it.
    """
    np.empty(_KEPT_BYTES, np.uint8)


class _Workers:
    """Processes that are replaced when one of them dies."""

    def __init__(self, settings: SceneSettings, jobs: int) -> None:
        self._settings, self._jobs = settings, jobs
        self._waiting: deque[Chunk] = deque()
        self._alone: deque[SceneTask] = deque()  # one of which a worker died
        self._running: dict[Future[list[Outcome]], Chunk] = {}
        self._deaths: Counter[str] = Counter()
        self._deaths_in_a_row = 0

    def outcomes(self, tasks: Sequence[SceneTask]) -> Iterator[Outcome]:
        size = max(1, min(MAX_CHUNK, len(tasks) // (4 * self._jobs)))
        self._waiting.extend(
            tuple(tasks[start : start + size]) for start in range(0, len(tasks), size)
        )
        while self._waiting or self._alone:
            with _started(self._settings, self._jobs) as pool:
                yield from self._until_a_death(pool)

    def _until_a_death(self, pool: ProcessPoolExecutor) -> Iterator[Outcome]:
        while self._submit(pool):
            done, _ = wait(self._running, return_when=FIRST_COMPLETED)
            try:
                for future in done:
                    results = future.result()
                    del self._running[future]
                    self._deaths_in_a_row = 0
                    yield from results
            except BrokenProcessPool:
                yield from self._after_a_death()
                return

    def _submit(self, pool: ProcessPoolExecutor) -> bool:
        """Give the workers something to do; whether they have anything."""
        try:
            if self._alone and not self._running:
                self._start(pool, (self._alone.popleft(),))
            while self._waiting and not self._alone and len(self._running) < 2 * self._jobs:
                self._start(pool, self._waiting.popleft())
        except BrokenProcessPool:  # it was the last thing a worker did
            pass
        return bool(self._running)

    def _start(self, pool: ProcessPoolExecutor, chunk: Chunk) -> None:
        try:
            self._running[pool.submit(_prepare_chunk, chunk)] = chunk
        except BrokenProcessPool:
            self._waiting.appendleft(chunk)
            raise

    def _after_a_death(self) -> Iterator[Outcome]:
        """Sort what was running: results that came, scenes to do again, and who is to blame."""
        self._deaths_in_a_row += 1
        if self._deaths_in_a_row >= MAX_DEATHS_IN_A_ROW:
            raise OutputError(
                f"{self._deaths_in_a_row} processes that ended one after the other",
                expected="processes that live as long as there are scenes",
                do="look whether memory is short, or pass --jobs 1; the same command goes on",
            )
        lost: list[SceneTask] = []
        for future, chunk in self._running.items():
            if future.done() and not future.cancelled() and future.exception() is None:
                yield from future.result()
            else:
                lost.extend(chunk)
        self._running.clear()
        if len(lost) == 1:
            name = lost[0].scene.name
            self._deaths[name] += 1
            if self._deaths[name] >= MAX_DEATHS:
                died = f"whose process was killed {self._deaths[name]} times"
                yield scene_that_kills(name, died)
                return
        self._alone.extendleft(reversed(lost))


# --- inside a worker ------------------------------------------------------------------------------

_settings: SceneSettings
_stop: Any  # an event of multiprocessing


def _begin(settings: SceneSettings, stop: Any) -> None:
    """Ctrl-C on a terminal reaches every process: only the one that started the others obeys."""
    global _settings, _stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _settings, _stop = settings, stop
    with contextlib.suppress(ImportError):
        import cv2

        cv2.setNumThreads(1)
    _keep_freed_memory()
    threading.Thread(target=end_with_parent, daemon=True).start()


def _prepare_chunk(chunk: Chunk) -> list[Outcome]:
    """Fewer outcomes than tasks when it is to stop, for which nobody waits any more."""
    outcomes: list[Outcome] = []
    for task in chunk:
        if _stop.is_set():
            break
        outcomes.append(prepare_scene(task, _settings))
    return outcomes


@contextlib.contextmanager
def _started(settings: SceneSettings, jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Workers; at the end, however it comes, they are waited for."""
    start_server()
    context = multiprocessing.get_context(_METHOD)
    stop = context.Event()
    pool = ProcessPoolExecutor(jobs, context, _begin, (settings, stop))
    try:
        yield pool
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


def start_server() -> None:
    """Start the process that workers are forked from, unless it runs; it loads packages meanwhile.

    All workers inherit that Ctrl-C is held back.
    """
    if _METHOD != "forkserver":
        return
    # Imported once for all workers; what is not there is passed over.
    preload = [__name__, "cv2", "PIL.Image", "PIL.PngImagePlugin"]
    multiprocessing.get_context(_METHOD).set_forkserver_preload(preload)
    with ctrl_c_held_back():
        multiprocessing.forkserver.ensure_running()


Spread = Callable[[Sequence[SceneTask], SceneSettings, int], Iterator[Outcome]]
