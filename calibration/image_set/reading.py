"""Many files are read, several at a time, and the unreadable ones named."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from engines.errors import DatasetError, ImageError
from engines.progress import Progress

T = TypeVar("T")

# Each holds one image. Pillow decodes one at a time (engines.decoding), beside which hashing,
# shrinking and measuring of the others goes on, so that more than two bring little.
MAX_THREADS = 2


def read_files(
    files: Sequence[Path],
    read: Callable[[Path], T],
    *,
    skip_bad: bool,
    progress: Progress,
) -> tuple[list[T], dict[Path, str]]:
    """`read(file)` of each file in their order, and what was wrong with those left out.

    Raises the ImageError or DatasetError of the first bad file, unless `skip_bad`. When it ends,
    for Ctrl-C too, no thread is left.
    """
    results: list[T] = []
    bad: dict[Path, str] = {}
    for done, (file, future) in enumerate(_ended(files, read), start=1):
        try:
            results.append(future.result())
        except (ImageError, DatasetError) as error:
            if not skip_bad:
                raise
            bad[file] = str(error)
        progress.advance(done, len(files))
    return results, bad


def _ended(files: Sequence[Path], read: Callable[[Path], T]) -> Iterator[tuple[Path, Future[T]]]:
    pool = ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1), "read images")
    try:
        futures = deque(pool.submit(read, file) for file in files)
        for file in files:
            # Not kept: the error of a bad file holds on to the image it happened with.
            yield file, futures.popleft()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
