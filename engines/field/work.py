"""What an unfinished run leaves on disk: the labels so far and how far they go.

`.NAME.work/` beside the output holds `labels.u8`, one byte for each pixel, row by row, and
`progress.json`. A run goes on only where everything that its labels depend on is as it was.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Optional, Tuple

import numpy as np

from engines.errors import ConfigError, OutputError, output_error
from engines.resize import Labels

if TYPE_CHECKING:
    from types import TracebackType

FORMAT = 1

# A GPU does a row of windows in less time than a disk needs to say that it has it.
SAVE_EVERY_S = 2.0

LABELS_NAME, RASTER_NAME, LOCK_NAME = "labels.u8", "labels.tif", "lock"
RECORD_NAME, PARTIAL_NAME = "progress.json", "progress.json.partial"
_MOST_RECORD_BYTES = 16 << 20


class Work:
    """The work folder of the output `out`, of `hw` pixels; one process has it at a time.

    `done` is for each stripe how many rows of windows are written. A context manager: leaving it
    keeps the folder, `remove` ends it.
    """

    def __init__(self, out: Path, hw: Tuple[int, int]) -> None:
        """Raises OutputError when the folder cannot be made or another run is using it."""
        self.folder = folder_of(out)
        self.hw = hw
        self.stripes: List[Tuple[int, int]] = []
        self.done: List[int] = []
        self._about: Dict[str, Any] = {}
        self._labels = self._lock = -1
        self._saved = 0.0
        if self.folder.is_symlink() or (self.folder.exists() and not self.folder.is_dir()):
            raise OutputError(
                f"{str(self.folder)!r}, which is not a folder",
                expected="nothing of this name, or the folder of an interrupted run",
                do="remove it, or choose another --out",
            )
        with _told(self.folder):
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            if not self.folder.is_dir():
                self.folder.mkdir()
            self._lock = _locked(self.folder / LOCK_NAME)

    def __enter__(self) -> Work:
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        for descriptor in (self._labels, self._lock):
            if descriptor >= 0:
                os.close(descriptor)
        self._labels = self._lock = -1

    def resume(self, about: Dict[str, Any]) -> Optional[Dict[str, Any]]:
        """Open what an interrupted run with the same `about` left, to go on; None if nothing is.

        Gives what `begin` was told as `more`. Raises ConfigError when that run was another one.
        """
        record = self._record()
        if record is None:
            return None
        different = sorted(
            key for key in {*about, *record["about"]} if about.get(key) != record["about"].get(key)
        )
        if different:
            raise ConfigError(
                f"{str(self.folder)!r}, the work of an interrupted run with another "
                f"{' and another '.join(different)}",
                expected="the same source, bundle and options, to go on with it",
                do="repeat the command as it was, or start over with --no-resume",
            )
        self._about = {"about": about, "more": record["more"]}
        self.stripes = [(first, last) for first, last in record["stripes"]]
        self.done = list(record["done"])
        with _told(self.folder):
            self._labels = _opened(self.folder / LABELS_NAME, os.O_RDWR)
        more: Dict[str, Any] = record["more"]
        return more

    def begin(
        self, about: Dict[str, Any], more: Dict[str, Any], stripes: List[Tuple[int, int]]
    ) -> None:
        """Start over, with room for every label reserved. Raises OutputError if there is none."""
        try:
            self._begin(about, more, stripes)
        except OutputError:
            self.remove()  # what was reserved in part
            raise

    def _begin(
        self, about: Dict[str, Any], more: Dict[str, Any], stripes: List[Tuple[int, int]]
    ) -> None:
        self._about = {"about": about, "more": more}
        self.stripes, self.done = stripes, [0] * len(stripes)
        with _told(self.folder):
            for name in (RECORD_NAME, LABELS_NAME, RASTER_NAME):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.folder / name)
            self._labels = _opened(self.folder / LABELS_NAME, os.O_RDWR | os.O_CREAT | os.O_EXCL)
            _reserve(self._labels, self.hw[0] * self.hw[1])
            self._save()

    def write(self, top: int, left: int, labels: Labels) -> None:
        """Put labels (h, w) where they belong; what lies outside `hw` is left out."""
        inside = labels[: max(0, self.hw[0] - top), : max(0, self.hw[1] - left)]
        with _told(self.folder):
            if inside.shape[1] == self.hw[1]:
                _write_all(self._labels, np.ascontiguousarray(inside), top * self.hw[1])
                return
            for row, line in enumerate(inside, start=top):
                _write_all(self._labels, np.ascontiguousarray(line), row * self.hw[1] + left)

    def finish_row(self, stripe: int, rows: int) -> None:
        """The first `rows` rows of windows of a stripe are written; a kill loses 2 s of them."""
        self.done[stripe] = rows
        if time.monotonic() - self._saved >= SAVE_EVERY_S:
            self.save()

    def save(self) -> None:
        """Everything that is written so far stays, even if the power fails now."""
        with _told(self.folder):
            getattr(os, "fdatasync", os.fsync)(self._labels)
            self._save()

    def rows(self, top: int, bottom: int) -> Labels:
        """Labels (bottom - top, width) as they were written."""
        width = self.hw[1]
        with _told(self.folder):
            data = b"".join(_read_all(self._labels, top * width, (bottom - top) * width))
        return np.frombuffer(data, np.uint8).reshape(bottom - top, width)

    @property
    def is_begun(self) -> bool:
        """Whether `begin` or `resume` has opened it."""
        return self._labels >= 0

    def remove_if_unused(self) -> None:
        """Remove the folder unless an interrupted run has left something in it."""
        if not (self.folder / RECORD_NAME).exists():
            self.remove()

    def remove(self) -> None:
        """The work is done: nothing of it stays."""
        self.__exit__(None, None, None)
        for name in (RECORD_NAME, PARTIAL_NAME, LABELS_NAME, RASTER_NAME, LOCK_NAME):
            _remove(self.folder / name)
        with contextlib.suppress(OSError):  # somebody has put something there
            self.folder.rmdir()

    def _save(self) -> None:
        record = {
            "format": FORMAT,
            **self._about,
            "hw": list(self.hw),
            "stripes": [list(stripe) for stripe in self.stripes],
            "done": self.done,
        }
        partial = self.folder / PARTIAL_NAME
        try:
            with open(partial, "w", encoding="utf-8") as file:
                json.dump(record, file, ensure_ascii=False)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, self.folder / RECORD_NAME)
        except OSError:
            _remove(partial)
            raise
        self._saved = time.monotonic()

    def _record(self) -> Optional[Dict[str, Any]]:
        """None where nothing was begun; ConfigError for a record that no run has written."""
        path = self.folder / RECORD_NAME
        try:
            if path.stat().st_size > _MOST_RECORD_BYTES:
                raise ValueError("too large")
            record = json.loads(path.read_text(encoding="utf-8"))
            size = (self.folder / LABELS_NAME).stat().st_size
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError):
            record, size = None, -1
        if not _is_valid(record):
            raise ConfigError(
                f"{str(path)!r}, which is damaged or of another version",
                expected="what an interrupted run has left",
                do="start over with --no-resume",
            )
        return record if size == self.hw[0] * self.hw[1] == _product(record["hw"]) else None


def folder_of(out: Path) -> Path:
    """Where the work of an output lies: hidden, and in the same folder, to be renamed at once."""
    return out.with_name(f".{out.name}.work")


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def _is_valid(record: Any) -> bool:
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        return False
    stripes, done = record.get("stripes"), record.get("done")
    return (
        isinstance(record.get("about"), dict)
        and isinstance(record.get("more"), dict)
        and _are_counts(record.get("hw"), 2)
        and isinstance(stripes, list)
        and all(_are_counts(stripe, 2) for stripe in stripes)
        and _are_counts(done, len(stripes))
    )


def _are_counts(values: Any, count: int) -> bool:
    return (
        isinstance(values, list)
        and len(values) == count
        and all(type(value) is int and value >= 0 for value in values)
    )


def _product(values: List[int]) -> int:
    return values[0] * values[1]


def _opened(path: Path, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0), 0o666)


def _locked(path: Path) -> int:
    """A descriptor that keeps other runs away until it is closed, however this process ends."""
    descriptor = _opened(path, os.O_RDWR | os.O_CREAT)
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_free = os.path.exists(path) and os.path.samestat(os.fstat(descriptor), os.stat(path))
    except (BlockingIOError, FileNotFoundError):
        is_free = False
    except (ImportError, OSError):
        is_free = True  # a system, or some NFS, without such locks
    if is_free:
        return descriptor
    os.close(descriptor)
    raise OutputError(
        f"{str(path.parent)!r}, which another run is writing to",
        expected="one run for each output",
        do="wait for it, or choose another --out",
    )


def _reserve(descriptor: int, size: int) -> None:
    """Now rather than after hours: a disk that is too full says so."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.truncate(descriptor, size)


def _write_all(descriptor: int, values: Labels, offset: int) -> None:
    view = values.data.cast("B")
    while len(view):
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def _read_all(descriptor: int, offset: int, size: int) -> Iterator[bytes]:
    while size:
        data = os.pread(descriptor, size, offset)
        if not data:
            raise OSError(errno.EIO, "the file of labels is shorter than it was")
        yield data
        size, offset = size - len(data), offset + len(data)


@contextlib.contextmanager
def _told(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise not_written(folder, error) from error


def not_written(path: Path, error: OSError) -> OutputError:
    """For a place that could not be written to; the work so far stays."""
    return output_error(
        repr(str(path)),
        error,
        expected="room for one byte a pixel, twice at most",
        do="choose another --out; the same command goes on where it stopped",
    )
