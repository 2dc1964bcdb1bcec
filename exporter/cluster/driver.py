"""A process of its own that is connected to the cluster, and may be lost with it.

Ray ends a connected process with no exception when the head, or this machine's part of the cluster,
is lost, and not at once.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

from engines.errors import ClusterError, UserError
from exporter.child_process import ctrl_c_held_back, end_with_parent
from exporter.cluster.address import not_connected, ray_package, refusal
from exporter.cluster.answers import answers_of_workers
from exporter.cluster.worker import RemoteError

HEAD_SECONDS = 30.0  # for which its port may be silent
_LOOK_SECONDS = 2.0
_END_SECONDS = 10.0
_CHATTER = "retries remaining"  # said for seconds of each task of a machine that is gone


def results_of_driver(address: str, work: bytes) -> Iterator[tuple[int, Any]]:
    """The results of `work`, done by a process that is connected to the cluster.

    This process outlives the other, and looks itself whether the head is there.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    driver = context.Process(target=_drive, args=(sender, address, work), daemon=True)
    with ctrl_c_held_back():  # it is for this process, which ends the other
        driver.start()
    sender.close()
    try:
        for kind, value in _messages(receiver, address):
            if kind == "result":
                yield value
            elif kind == "failure":
                raise value
            else:
                sys.stderr.write(value)
    finally:
        receiver.close()
        driver.terminate()
        driver.join(_END_SECONDS)
        driver.kill()
        driver.join()
        driver.close()


def _messages(receiver: Connection, address: str) -> Iterator[tuple[str, Any]]:
    """What the driver says, to its end; ClusterError when it dies or the head does."""
    head = ""
    silent = None  # since when
    try:
        while True:
            if receiver.poll(_LOOK_SECONDS):
                silent = None
                kind, value = pickle.loads(receiver.recv_bytes())
                if kind == "end":
                    return
                if kind == "head":
                    head = value
                else:
                    yield kind, value
            elif not head or refusal(head, _LOOK_SECONDS) is None:
                silent = None
            else:
                silent = silent or time.monotonic()
                if time.monotonic() - silent > HEAD_SECONDS:
                    lost = f"no answer for {HEAD_SECONDS:g} s by the head of the Ray cluster "
                    lost += repr(address)
                    break
    except (EOFError, ConnectionError):
        lost = f"no connection to the Ray cluster {address!r} any more"
    raise ClusterError(
        lost,
        expected="a cluster that runs, here and at its head, as long as there is work",
        do="start it again; the same command goes on, also without --ray",
    )


def _drive(sender: Connection, address: str, work: bytes) -> None:
    """Connect, do the work, and send what comes of it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()
    said = _Said(sender)
    # Ray's libraries write to the file itself, and much while something is lost.
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 2)
    sys.stdout = sys.stderr = said
    try:
        with _connected(address) as ray:
            said.send("head", ray.get_runtime_context().gcs_address)
            for answer in answers_of_workers(ray, address, *pickle.loads(work)):
                said.send("result", answer)
        said.send("end", None)
    except (UserError, RemoteError) as error:
        said.send("failure", error)
    except Exception:
        said.send("failure", RemoteError(traceback.format_exc()))


class _Said(io.TextIOBase):
    """Sends messages from any thread; as a file it sends what is printed, by lines."""

    def __init__(self, sender: Connection) -> None:
        self._sender, self._lock = sender, threading.Lock()
        self._line = ""

    def send(self, kind: str, value: Any) -> None:
        with self._lock:
            self._sender.send_bytes(pickle.dumps((kind, value)))

    def write(self, text: str) -> int:
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            if _CHATTER in line:
                continue
            with contextlib.suppress(OSError):  # nobody listens any more
                self.send("said", line + "\n")
        return len(text)


@contextlib.contextmanager
def _connected(address: str) -> Iterator[Any]:
    ray = ray_package()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ray.init(address=address, log_to_driver=False, logging_level="error")
    except Exception as error:
        raise not_connected(address, error) from error
    try:
        yield ray
    finally:
        ray.shutdown()
