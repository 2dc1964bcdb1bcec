"""Work spread over the machines of a Ray cluster that is there, by Ray Data.

Every machine must have riceseg installed and see the files under the same paths: only results
travel. Ray redoes what a worker had when it died, so work must be such that doing it twice gives
the same files; each result is handed out once. Nothing is uploaded: Ray's usage statistics are off
in this process (for the cluster as a whole its own setting counts).
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import sys
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

from engines.errors import output_error
from exporter.cluster.address import check_address, check_reachable, found_address, ray_package
from exporter.cluster.answers import Item, Result, Spread, answers_of_workers
from exporter.cluster.driver import results_of_driver
from exporter.cluster.worker import Lost


def results_on_ray(
    address: str, items: Sequence[Item], spread: Spread[Item, Result]
) -> Generator[tuple[int, Result | Lost], None, None]:
    """(index of the item, its result), each once, as they become ready.

    `address` is "auto" (the cluster of this machine, or RAY_ADDRESS) or HOST:PORT. This process
    uses the connection that it has; else another one connects for as long as this generator is
    open, and its workers end with it. What Ray prints goes to stderr. A UserError in a worker is
    raised here; so are MissingPackageError without ray, ConfigError for another address, and
    ClusterError when the cluster cannot be reached, does not see `shared`, or fails.
    """
    check_address(address)
    if not items:
        return
    ray = ray_package()
    if not ray.is_initialized():
        check_reachable(found_address(address))
    with _mark(spread.shared) as mark:
        if not ray.is_initialized():
            yield from results_of_driver(address, ray.cloudpickle.dumps((items, spread, mark)))
            return
        with contextlib.redirect_stdout(sys.stderr):
            yield from answers_of_workers(ray, address, items, spread, mark)


@contextlib.contextmanager
def _mark(shared: Path) -> Iterator[Path]:
    """A hidden folder in `shared`: by it workers know that they see the same files."""
    folder = Path(os.path.abspath(shared)) / f".riceseg-ray-{secrets.token_hex(8)}"
    try:
        folder.mkdir()
    except OSError as error:
        expected = "a folder that can be written to, and that all machines see"
        raise output_error(str(folder.parent), error, expected=expected) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
