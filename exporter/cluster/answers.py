"""Work given to workers by Ray Data, and their answers, by a process that is connected."""

from __future__ import annotations

import contextlib
import logging
import pickle
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from engines.errors import ClusterError, UserError
from exporter.cluster.worker import Failure, Lost, RemoteError, Worker

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_ROWS = 8  # items of a block, which is redone as a whole and whose results come together
MAX_LOST_IN_A_ROW = 6  # without a result between them: it is not the items


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


def answers_of_workers(
    ray: Any, address: str, items: Sequence[Item], spread: Spread[Item, Result], mark: Path
) -> Iterator[tuple[int, Result | Lost]]:
    """(index of the item, its result), each once, by the cluster that `ray` is connected to.

    `mark` is a folder that the workers must see. Ray's own exceptions become a ClusterError.
    """
    try:
        yield from _answers(ray, items, spread, mark)
    except (UserError, RemoteError):
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ClusterError(
            f"the Ray cluster {address!r}, which failed ({reason[:300]})",
            expected="machines that have riceseg, with the same versions",
            do="look at the logs of the cluster; the same command goes on",
        ) from error


def _answers(
    ray: Any, items: Sequence[Item], spread: Spread[Item, Result], mark: Path
) -> Iterator[tuple[int, Result | Lost]]:
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0)) if spread.gpus else 0
    most = gpus or max(1, int(resources.get("CPU", 1)))
    workers = min(len(items), spread.workers or most, most)
    rows = [{"index": i, "item": pickle.dumps(item)} for i, item in enumerate(items)]
    size = max(1, min(MAX_ROWS, len(rows) // (4 * workers)))
    with _quiet(ray):
        data = ray.data.from_items(rows, override_num_blocks=-(-len(rows) // size)).map(
            Worker,
            fn_constructor_args=(spread.open_worker, mark),
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_cpus=0 if gpus else 1,  # a machine may have fewer cores than GPUs to give
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
            if isinstance(result, Failure):
                raise result.error
            lost = lost + 1 if isinstance(result, Lost) else 0
            if lost == MAX_LOST_IN_A_ROW:
                raise ClusterError(
                    f"workers that died of {lost} items one after the other",
                    expected="workers that live as long as there is work",
                    do="look whether memory is short on the cluster's machines",
                )
            yield index, result


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
