"""What the bookkeeping of engines.cuda.lifetime is made of."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Optional

from engines.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class Resource:
    """One thing that the driver handed out; `token` is the binding's name for it.

    Pinned memory also has its array here, and is `viewed` until the last view of it is gone.
    """

    def __init__(self, kind: str, token: object) -> None:
        self.kind = kind
        self.token: object = token
        self.array: Optional[npt.NDArray[np.uint8]] = None
        self.viewed = False
        self.calls = 0  # that work on it now
        self.closed = False
        self.released = False

    def close(self) -> None:
        """No new call may use it."""
        self.closed = True
        self.array = None


class Lock:
    """A lock that its thread may take again, as the garbage collector does, and that knows it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._owner = 0
        self._depth = 0

    def __enter__(self) -> None:
        self._lock.acquire()
        self._owner = threading.get_ident()
        self._depth += 1

    def __exit__(self, *exception: object) -> None:
        self._depth -= 1
        if not self._depth:
            self._owner = 0
        self._lock.release()

    def is_mine(self) -> bool:
        """This thread holds it."""
        return self._owner == threading.get_ident()


def used_after(what: str, thing: str) -> InputError:
    """The error for a use of something that is gone."""
    return InputError(
        f"a use of a {thing} after {what}",
        expected=f"a {thing} that is open",
        do="free and close last, or make a new one",
    )
