"""An iterable that runs in a thread of its own, some elements ahead of its reader."""

from __future__ import annotations

import logging
import threading
from collections import deque
from typing import Deque, Generic, Iterable, Iterator, Optional, TypeVar

T = TypeVar("T")

# How long `stop` waits for an element that is being made. A camera that is released by its owner
# while the thread still reads from it may crash the process, hence a wait at all; an iterable that
# blocks for ever must not block its reader as well, hence a limit.
STOP_S = 5.0

logger = logging.getLogger(__name__)


class Background(Generic[T]):
    """Iterator over `items`, whose elements are made in a thread, up to `ahead` before their turn.

    The order stays. What `items` raises is raised here, after the elements before it; then it is
    exhausted. `stop` must be called in the end; it may be called twice and in any thread.
    """

    def __init__(self, items: Iterable[T], *, ahead: int, name: str) -> None:
        """Starts the thread, which is a daemon: it never keeps the interpreter from ending."""
        self._changed = threading.Condition()
        self._ready: Deque[T] = deque()
        self._ahead = ahead
        self._ended = self._stopped = False
        self._error: Optional[BaseException] = None
        self._thread = threading.Thread(target=self._run, args=(items,), name=name, daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        with self._changed:
            while not (self._ready or self._ended or self._stopped):
                self._changed.wait()
            if self._ready and not self._stopped:
                self._changed.notify_all()
                return self._ready.popleft()
            error, self._error = self._error, None
        if error is not None and not self._stopped:
            raise error
        raise StopIteration

    def stop(self) -> None:
        """Take nothing more from the iterable; wait up to 5 s for an element that is being made."""
        with self._changed:
            self._stopped = True
            self._ready.clear()
            self._changed.notify_all()
        if self._thread is threading.current_thread():
            return
        self._thread.join(STOP_S)
        if self._thread.is_alive():
            logger.warning(
                "%s: still waiting for the next element of its source after %g s; its thread ends "
                "when the source gives one",
                self._thread.name,
                STOP_S,
            )

    def _run(self, items: Iterable[T]) -> None:
        error: Optional[BaseException] = None
        try:
            for item in items:
                if not self._put(item):
                    break
        except BaseException as caught:  # Raised again in the reader's thread.
            error = caught
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify_all()

    def _put(self, item: T) -> bool:
        with self._changed:
            while len(self._ready) >= self._ahead and not self._stopped:
                self._changed.wait()
            if not self._stopped:
                self._ready.append(item)
                self._changed.notify_all()
            return not self._stopped
