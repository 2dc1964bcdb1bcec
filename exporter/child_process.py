"""What the processes that this one starts have in common."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import multiprocessing.resource_tracker
import os
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def ctrl_c_held_back() -> Iterator[None]:
    """For processes started meanwhile: one that still imports would print a traceback."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    multiprocessing.resource_tracker.ensure_running()  # it lets Ctrl-C through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_parent() -> None:
    """A killed parent cannot say that nobody waits any more."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # whoever calls this was started by another
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)
