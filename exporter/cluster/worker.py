"""What a worker of the cluster does with one item after the other, and what it answers."""

from __future__ import annotations

import contextlib
import pickle
import socket
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.errors import ClusterError, UserError

MAX_DEATHS = 2  # of workers that were at the same item


class Lost:
    """In place of the result of an item of which its workers died `MAX_DEATHS` times."""


class RemoteError(RuntimeError):
    """A mistake of ours in a worker, with the traceback of there."""


@dataclass(frozen=True)
class Failure:
    """In place of a result: what is to be raised where it is waited for."""

    error: Exception


class Worker:
    """Opens once, then does one row after the other; it answers what goes wrong, never raises."""

    def __init__(self, open_worker: Callable[[], Callable[[Any], Any]], mark: Path) -> None:
        self._open, self._mark = open_worker, mark
        self._run: Callable[[Any], Any] | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        answer = self._answer(int(row["index"]), row["item"])
        return {"index": row["index"], "answer": pickle.dumps(answer)}

    def _answer(self, index: int, item: bytes) -> Any:
        # One byte for each worker that began with it and did not come to an end.
        begun = self._mark / str(index)
        try:
            with open(begun, "ab") as file:
                file.write(b".")
                file.flush()
                deaths = file.tell() - 1
        except OSError as error:
            unseen = ClusterError(
                f"machine {socket.gethostname()!r}, which does not see {self._mark.parent} "
                f"({error.strerror or error})",
                expected="data and --out in folders that every machine of the cluster sees",
                do="put them into a folder that all machines mount under the same path",
            )
            return Failure(unseen)
        if deaths >= MAX_DEATHS:
            return Lost()
        try:
            return self._result(pickle.loads(item))
        finally:
            with contextlib.suppress(OSError):
                begun.unlink()

    def _result(self, item: Any) -> Any:
        try:
            if self._run is None:
                self._run = self._open()
            return self._run(item)
        except UserError as error:
            return Failure(error)
        except Exception:
            return Failure(RemoteError(traceback.format_exc()))
