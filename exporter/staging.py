"""A folder that appears whole or not at all, even when the process is killed."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from engines.bundle_fields import FILE_NAME
from engines.errors import OutputError, output_error

_OLD = ".old"  # what a replaced bundle is called until the new one has its place


@contextlib.contextmanager
def whole_folder(target: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield a hidden folder beside `target`; it takes the name `target` when the block succeeds.

    An existing `target` is replaced only with `overwrite`, and only when it is a bundle or empty.
    On any exception, Ctrl-C included, the hidden folder is removed, and so are parents of `target`
    that were made for it. What a killed process left behind is removed by the next run for the
    same target; a bundle that it was just replacing comes back.
    Raises OutputError when the place cannot be written to or is taken.
    """
    target = Path(os.path.realpath(target))
    _check_name(target)
    with contextlib.ExitStack() as undo:
        try:
            _make_parents(target.parent, undo)
            _remove_leftovers(target)
            _check_free(target, overwrite)
            partial, lock = _locked_folder(target)
        except OSError as error:
            raise output_error(str(target.parent), error) from error
        try:
            yield partial
            _check_free(target, overwrite)  # another run may have been faster
            _swap(partial, target)
        except BrokenPipeError:
            raise  # whoever read our output is gone; the place is not to blame
        except OSError as error:
            raise output_error(str(target), error) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            os.close(lock)
        undo.pop_all()


def _check_name(target: Path) -> None:
    try:
        str(target).encode("utf-8")
    except UnicodeEncodeError as error:
        raise OutputError(
            f"{target}, which is not a name in UTF-8",
            expected="a name that torch and ONNX Runtime can open",
            do="choose another --out; if the name is right, set PYTHONUTF8=1",
        ) from error


def _make_parents(parent: Path, undo: contextlib.ExitStack) -> None:
    """Make the missing folders; `undo` removes those that are still empty."""
    missing = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        undo.callback(_remove_empty, folder)


def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):  # something else was put there meanwhile
        folder.rmdir()


def _check_free(target: Path, overwrite: bool) -> None:
    if os.path.ismount(target):
        raise OutputError(
            f"{target}, where a file system is mounted: it cannot be replaced in one step",
            expected="a new folder",
            do=f"choose a folder inside it, for example --out {target / 'bundle'}",
        )
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


def _locked_folder(target: Path) -> tuple[Path, int]:
    """A new hidden folder beside `target`, and the descriptor that keeps it locked."""
    while True:
        name = f".{target.name}.partial-{os.getpid()}-{secrets.token_hex(4)}"
        partial = target.with_name(name)
        partial.mkdir()
        with contextlib.suppress(FileNotFoundError):  # taken for a leftover before it was locked
            lock = os.open(partial, os.O_RDONLY)
            if _locked(lock) is not False and partial.exists():
                return partial, lock
            os.close(lock)


def _locked(descriptor: int) -> bool | None:
    """Lock it until it is closed, at the latest when the process ends, however it ends.

    False when another process holds it, None where the file system knows no locks (some NFS).
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _remove_leftovers(target: Path) -> None:
    """Hidden folders of runs that no longer live."""
    for leftover in target.parent.glob(f".{glob.escape(target.name)}.partial-*"):
        with contextlib.suppress(OSError):  # its run has just ended, or it is another user's
            lock = os.open(leftover, os.O_RDONLY)
            try:
                if not _abandoned(leftover, lock):
                    continue
                if leftover.suffix == _OLD and not os.path.lexists(target):
                    os.rename(leftover, target)
                else:
                    shutil.rmtree(leftover, ignore_errors=True)
            finally:
                os.close(lock)


def _abandoned(leftover: Path, lock: int) -> bool:
    locked = _locked(lock)
    if locked is not None:
        return locked
    pid = leftover.name.split(".partial-")[-1].partition("-")[0]
    return pid.isdigit() and not _alive(int(pid))


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _swap(partial: Path, target: Path) -> None:
    if not (target / FILE_NAME).exists():  # nothing, or an empty folder
        os.rename(partial, target)
        return
    old = partial.with_name(partial.name + _OLD)
    lock = os.open(target, os.O_RDONLY)
    try:
        _locked(lock)
        os.rename(target, old)
        try:
            os.rename(partial, target)
        except BaseException:
            os.rename(old, target)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        os.close(lock)
