"""A folder that appears whole or not at all, even when the process is killed."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from engines.bundle_fields import FILE_NAME
from engines.errors import OutputError


@contextlib.contextmanager
def whole_folder(target: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield a hidden folder beside `target`; it takes the name `target` when the block succeeds.

    An existing `target` is replaced only with `overwrite`, and only when it is a bundle or empty.
    On any exception, Ctrl-C included, the hidden folder is removed. What a killed process left
    behind is removed by the next run for the same target.
    Raises OutputError when the place cannot be written to or is taken.
    """
    target = Path(os.path.abspath(target))
    _check_free(target, overwrite)
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(target)
        partial.mkdir()
    except OSError as error:
        raise OutputError(
            f"{target.parent}: {error.strerror}",
            expected="a folder that can be written to",
            do="choose another --out",
        ) from error
    try:
        yield partial
        _swap(partial, target)
    except OSError as error:
        raise OutputError(
            f"{target}: {error.strerror}",
            expected="room for the bundle and leave to write it",
            do="free some space or choose another --out",
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check_free(target: Path, overwrite: bool) -> None:
    if not os.path.lexists(target) or (target.is_dir() and not any(target.iterdir())):
        return
    if not target.is_dir() or not (target / FILE_NAME).is_file():
        raise OutputError(
            f"{target}, which exists and is not a bundle",
            expected="a new folder, an empty one, or a bundle to replace",
            do="choose another --out",
        )
    if not overwrite:
        raise OutputError(
            f"{target}, which already holds a bundle",
            expected="a new or empty folder",
            do="choose another --out, or pass --overwrite to replace it",
        )


def _remove_leftovers(target: Path) -> None:
    """Hidden folders of runs that no longer live."""
    for leftover in target.parent.glob(f".{target.name}.partial-*"):
        pid = leftover.name.rsplit("-", 1)[1]
        if pid.isdigit() and not _alive(int(pid)):
            shutil.rmtree(leftover, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _swap(partial: Path, target: Path) -> None:
    old = None
    if target.exists():
        old = partial.with_name(f"{partial.name}.old")
        os.rename(target, old)
    os.rename(partial, target)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)
