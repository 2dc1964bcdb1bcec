"""The list, its contact sheet and its coverage: three files that appear together or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from engines.errors import ImageError, OutputError, output_error
from engines.images import LIST_SUFFIX


@dataclass(frozen=True)
class SetFiles:
    """Where the three files lie: NAME.txt, and beside it NAME.png and NAME.json."""

    list: Path

    @property
    def sheet(self) -> Path:
        return self.list.with_suffix(".png")

    @property
    def coverage(self) -> Path:
        return self.list.with_suffix(".json")

    @property
    def all(self) -> tuple[Path, ...]:
        """The list last: whoever sees it has the others."""
        return (self.sheet, self.coverage, self.list)


def check_place(files: SetFiles, *, sources: Sequence[Path], overwrite: bool) -> None:
    """OutputError unless the three files can be made; `sources` are all files that are read."""
    if files.list.suffix.lower() != LIST_SUFFIX:
        raise OutputError(
            f"--out {os.fspath(files.list)!r}",
            expected=f"a name that ends in {LIST_SUFFIX}, as lists of images do",
            do=f"give, for example, --out {files.list.stem or 'list'}{LIST_SUFFIX}",
        )
    folder = os.path.realpath(files.list.parent)
    if folder in {os.path.realpath(parent) for parent in {path.parent for path in sources}}:
        raise OutputError(
            f"--out {os.fspath(files.list)!r} among the images or masks, where its contact sheet "
            "would be taken for one of them",
            expected="a folder without images",
            do=f"choose another, for example --out {files.list.name}",
        )
    _check_free(files, overwrite=overwrite)


def list_line(path: Path, folder: Path) -> str:
    """What stands for `path` in a list in `folder`, as `image_files_from` reads it.

    Raises ImageError for a name that no line of UTF-8 text can hold.
    """
    # The real folders, because ".." after a link leads to the parent of where the link leads.
    start = os.path.realpath(folder)
    line = os.path.join(os.path.relpath(os.path.realpath(path.parent), start), path.name)
    line = os.path.normpath(line)
    try:
        line.encode("utf-8")
        unfit = "\n" in line or "\r" in line
    except UnicodeEncodeError:
        unfit = True
    if unfit:
        raise ImageError(
            f"{line!r}, a path that a list cannot hold",
            expected="names in UTF-8 without line breaks",
            do="rename the file or folder; if the name is right, set PYTHONUTF8=1",
        )
    # A reader strips lines, and takes those with # for comments.
    return f"./{line}" if line.startswith("#") or line[0].isspace() else line


@contextlib.contextmanager
def written_together(files: SetFiles, *, overwrite: bool) -> Iterator[SetFiles]:
    """Yield the same three files under hidden names, to be written; then they get their names.

    The folder is made if needed. On any exception, Ctrl-C included, nothing new is left, and what
    was there before stays. Raises OutputError.
    """
    token = secrets.token_hex(6)
    hidden, old = (
        SetFiles(files.list.with_name(f".{token}.{word}{LIST_SUFFIX}")) for word in ("tmp", "old")
    )
    try:
        with contextlib.ExitStack() as undo:
            _make_folder(files.list.parent, undo)
            for path in hidden.all:
                undo.callback(path.unlink, missing_ok=True)
            yield hidden
            _check_free(files, overwrite=overwrite)  # another run may have been faster
            for source, target, aside in zip(hidden.all, files.all, old.all, strict=True):
                _take_place(source, target, aside, undo)
            undo.pop_all()
            for aside in old.all:
                aside.unlink(missing_ok=True)
    except OSError as error:
        raise output_error(repr(os.fspath(files.list)), error) from error


def _take_place(source: Path, target: Path, aside: Path, undo: contextlib.ExitStack) -> None:
    """Rename `source` to `target`, and what was there to `aside`; `undo` knows of it beforehand."""
    if os.path.lexists(target):
        undo.callback(_put_back, aside, target)
        os.replace(target, aside)
    else:
        undo.callback(target.unlink, missing_ok=True)
    os.replace(source, target)


def _put_back(aside: Path, target: Path) -> None:
    if os.path.lexists(aside):
        os.replace(aside, target)


def _make_folder(folder: Path, undo: contextlib.ExitStack) -> None:
    missing = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    folder.mkdir(parents=True, exist_ok=True)
    for path in reversed(missing):
        undo.callback(_remove_empty, path)


def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):  # something else was put there meanwhile
        folder.rmdir()


def _check_free(files: SetFiles, *, overwrite: bool) -> None:
    for path in files.all:
        if not os.path.lexists(path):
            continue
        if not os.path.isfile(path):
            raise OutputError(
                f"{os.fspath(path)!r}, which exists and is not a regular file",
                expected="a new name or older files to replace",
                do="choose another --out",
            )
        if not overwrite:
            raise OutputError(
                f"{os.fspath(path)!r}, which already exists",
                expected="a new name",
                do="choose another --out, or pass --overwrite to replace it",
            )
