"""Work spread over the machines of a Ray cluster that is there, by Ray Data.

Every machine must have riceseg installed and see the files under the same paths: only results
travel. Ray redoes what a worker had when it died, so work must be such that doing it twice gives
the same files; each result is handed out once. Nothing is uploaded: Ray's usage statistics are off
in this process (for the cluster as a whole its own setting counts).
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import secrets
import shutil
import signal
import socket
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from engines.errors import ClusterError, ConfigError, MissingPackageError, OutputError, UserError

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_ROWS = 8  # items of a block, which is redone as a whole and whose results come together
MAX_DEATHS = 2  # of workers that were at the same item
MAX_LOST_IN_A_ROW = 6  # without a result between them: it is not the items
_REACH_SECONDS = 10.0


@dataclass(frozen=True)
class Spread(Generic[Item, Result]):
    """What workers do: `open_worker` is called once in each and gives what is called with an item.

    It and the items are pickled. Every machine must see the folder `shared`, in which a hidden one
    lies for the time of the work. `gpus`: a worker has a GPU to itself where the cluster has any.
    `workers`: how many at most, None for as many as the cluster has cores or GPUs.
    """

    open_worker: Callable[[], Callable[[Item], Result]]
    shared: Path
    gpus: bool = False
    workers: int | None = None


class Lost:
    """In place of the result of an item of which its workers died `MAX_DEATHS` times."""


def results_on_ray(
    address: str, items: Sequence[Item], spread: Spread[Item, Result]
) -> Generator[tuple[int, Result | Lost], None, None]:
    """(index of the item, its result), each once, as they become ready.

    `address` is "auto" (the cluster of this machine, or RAY_ADDRESS) or HOST:PORT. A connection
    made here is closed when this generator is, with the workers. What Ray prints goes to stderr. A
    UserError in a worker is raised here; so are MissingPackageError without ray, ConfigError for
    another address, and ClusterError when the cluster cannot be reached, does not see `shared`, or
    fails.
    """
    check_address(address)
    if not items:
        return
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        ray = stack.enter_context(_connected(address))
        mark = stack.enter_context(_mark(spread.shared))
        answers = _answers(ray, items, spread, mark)
        yield from _checked(answers, address)


def check_address(address: str) -> None:
    """ConfigError unless it is "auto" or HOST:PORT; MissingPackageError without ray."""
    host, _, port = address.rpartition(":")
    if address != "auto" and not (host and "/" not in host and port.isdecimal()):
        raise ConfigError(
            f"--ray {address!r}",
            expected="auto, or HOST:PORT of a cluster's head",
            do="start a cluster (ray start --head) and pass --ray auto on one of its machines",
        )
    _ray()


def _ray() -> Any:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import ray.data
    except ImportError as error:
        raise MissingPackageError("ray", needed_for="--ray", extra="ray") from error
    return ray


@contextlib.contextmanager
def _connected(address: str) -> Iterator[Any]:
    """Ray, connected; a connection that was there is used, and left as it is."""
    ray = _ray()
    if ray.is_initialized():
        yield ray
        return
    _check_reachable(os.environ.get("RAY_ADDRESS", address) if address == "auto" else address)
    here = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ray.init(address=address, log_to_driver=False, logging_level="error")
    except Exception as error:
        raise _not_connected(address, error) from error
    finally:
        if here:  # ray.init puts its own handler there
            signal.signal(signal.SIGTERM, before)
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """ray.init tries for minutes, and writes about it, where nobody listens."""
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _REACH_SECONDS).close()
    except (OSError, OverflowError, UnicodeError) as error:  # the last: no name of a host
        raise _not_connected(address, error) from error


def _not_connected(address: str, error: BaseException) -> ClusterError:
    causes = [error]
    while (cause := causes[-1].__cause__) is not None:
        causes.append(cause)
    do = "start one (ray start --head), and run this on one of its machines"
    if any("uthenticat" in f"{type(cause).__name__} {cause}" for cause in causes):
        do = "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH, as on the cluster's machines"
    reason = (str(causes[-1]) or type(error).__name__).splitlines()[0]
    return ClusterError(
        f"no connection to the Ray cluster {address!r} ({reason})",
        expected="a cluster of the same versions of Python and Ray",
        do=do,
    )


@contextlib.contextmanager
def _mark(shared: Path) -> Iterator[Path]:
    """A hidden folder in `shared`: by it workers know that they see the same files."""
    folder = Path(os.path.abspath(shared)) / f".riceseg-ray-{secrets.token_hex(8)}"
    try:
        folder.mkdir()
    except OSError as error:
        raise OutputError(
            f"{folder.parent}: {error.strerror or error}",
            expected="a folder that can be written to, and that all machines see",
            do="choose another --out",
        ) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _answers(
    ray: Any, items: Sequence[Item], spread: Spread[Item, Result], mark: Path
) -> Iterator[tuple[int, Result | Lost]]:
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0)) if spread.gpus else 0
    workers = min(len(items), spread.workers or gpus or max(1, int(resources.get("CPU", 1))))
    rows = [{"index": i, "item": pickle.dumps(item)} for i, item in enumerate(items)]
    size = max(1, min(MAX_ROWS, len(rows) // (4 * workers)))
    with _quiet(ray):
        data = ray.data.from_items(rows, override_num_blocks=-(-len(rows) // size)).map(
            _Worker,
            fn_constructor_args=(spread.open_worker, mark),
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_cpus=1,
            num_gpus=1 if gpus else None,
        )
        seen: set[int] = set()
        lost = 0
        for row in data.iter_rows():
            index = int(row["index"])
            if index in seen:  # Ray may compute a block again whose node is gone
                continue
            seen.add(index)
            result = pickle.loads(row["answer"])
            if isinstance(result, _Failure):
                raise result.as_error()
            lost = lost + 1 if isinstance(result, Lost) else 0
            if lost == MAX_LOST_IN_A_ROW:
                raise ClusterError(
                    f"workers that died of {lost} items one after the other",
                    expected="workers that live as long as there is work",
                    do="look whether memory is short on the cluster's machines",
                )
            yield index, result


def _checked(
    answers: Iterator[tuple[int, Result | Lost]], address: str
) -> Iterator[tuple[int, Result | Lost]]:
    """Ray's own exceptions become a ClusterError."""
    try:
        yield from answers
    except (UserError, _RemoteError):
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ClusterError(
            f"the Ray cluster {address!r}, which failed ({reason[:300]})",
            expected="machines that have riceseg, with the same versions",
            do="look at the logs of the cluster; the same command goes on",
        ) from error


@contextlib.contextmanager
def _quiet(ray: Any) -> Iterator[None]:
    """No bars and log lines of Ray Data among ours."""
    logger = logging.getLogger("ray.data")
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        context = ray.data.DataContext.get_current()
        changed = {"enable_progress_bars": False, "print_on_execution_start": False}
        before = {name: getattr(context, name) for name in changed if hasattr(context, name)}
        try:
            for name in before:
                setattr(context, name, changed[name])
            logger.setLevel(logging.CRITICAL)
            yield
        finally:
            logger.setLevel(level)
            for name, value in before.items():
                setattr(context, name, value)


# --- inside a worker ------------------------------------------------------------------------------


class _RemoteError(RuntimeError):
    """A mistake of ours in a worker, with the traceback of there."""


@dataclass(frozen=True)
class _Failure:
    """An exception as it travels: those of this project cannot be pickled."""

    error: type[UserError] | None
    got: str
    expected: str = ""
    do: str = ""

    def as_error(self) -> Exception:
        if self.error is None:
            return _RemoteError(self.got)
        return self.error(self.got, expected=self.expected, do=self.do)


class _Worker:
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
            return _Failure(
                ClusterError,
                f"machine {socket.gethostname()!r}, which does not see {self._mark.parent} "
                f"({error.strerror or error})",
                "data and --out in folders that every machine of the cluster sees",
                "put them into a folder that all machines mount under the same path",
            )
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
            # MissingPackageError is made of other words.
            kind = UserError if isinstance(error, MissingPackageError) else type(error)
            return _Failure(kind, error.got, error.expected, error.do)
        except Exception:
            return _Failure(None, traceback.format_exc())
