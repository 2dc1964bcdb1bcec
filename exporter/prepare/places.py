"""Where a prepared data set lies, and the hidden folder in it in which it is being made.

    OUT/images/train/NAME.png  OUT/masks/train/NAME.png     and so for val and test
    OUT/classes.txt  split.csv  balance.csv  sheet.png  prepare.json

Of several combinations of bands each is a data set of its own with a sheet: OUT/GNE/images/...,
OUT/RGB/images/... and so on; the other files are common.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from engines.errors import OutputError, output_error
from exporter.prepare.scene import (
    TEMPORARY_SUFFIX,
    FinishedScene,
    SceneSettings,
    WrittenFile,
)
from exporter.prepare.split import PARTS

WORK = ".riceseg-prepare"
KINDS = ("images", "masks")


@dataclass(frozen=True)
class Places:
    """The data set's folder `out` and the letters of each combination in it."""

    out: Path
    letters: tuple[str, ...]

    @property
    def roots(self) -> Mapping[str, Path]:
        """Folders that are data sets, by letters."""
        if len(self.letters) == 1:
            return {self.letters[0]: self.out}
        return {letters: self.out / letters for letters in self.letters}

    @property
    def work(self) -> Path:
        return self.out / WORK

    @property
    def staging(self) -> Path:
        return self.work / "staging"

    def folders(self, part: str) -> tuple[Path, ...]:
        """Those of a scene's files, in their order, for a part of the split."""
        return tuple(root / kind / part for root in self.roots.values() for kind in KINDS)

    def inside(self, part: str) -> tuple[str, ...]:
        """The folders of a part as places below `out`."""
        return tuple(folder.relative_to(self.out).as_posix() for folder in self.folders(part))


def check_place(places: Places, source: Path) -> None:
    """OutputError where a data set must not be made."""
    out, raw = os.path.realpath(places.out), os.path.realpath(source)
    if os.path.isdir(raw) and (out == raw or out.startswith(raw.rstrip(os.sep) + os.sep)):
        raise OutputError(
            f"--out {os.fspath(places.out)!r} inside the raw data, where its files would be "
            "taken for more of it",
            expected="a folder of its own",
            do="choose one beside the raw data",
        )
    if not os.path.lexists(out):
        return
    if not os.path.isdir(out):
        raise OutputError(
            f"--out {os.fspath(places.out)!r}, which is a file",
            expected="a folder, or a new name",
            do="choose another --out",
        )
    try:
        foreign = sorted(set(os.listdir(out)) - {WORK}) if not places.work.is_dir() else []
    except OSError as error:
        raise output_error(repr(os.fspath(places.out)), error) from error
    if foreign:
        raise OutputError(
            f"--out {os.fspath(places.out)!r}, which holds {foreign[0]!r} and was not made here",
            expected="a new or empty folder, or one that prepare made of the same scenes",
            do="choose another --out",
        )


@contextlib.contextmanager
def work_folder(places: Places, settings: SceneSettings) -> Iterator[None]:
    """Make the folders that scenes are put in, for this run alone.

    At the end half-written files are removed, and folders that are still empty. Raises OutputError
    when another run is at work in `out`, or they cannot be made.
    """
    missing = [path for path in (places.out, *places.out.parents) if not path.exists()]
    with contextlib.ExitStack() as undo:
        try:
            for folder in reversed(missing):  # removed from the inner ones to the outer
                undo.callback(_remove_empty, folder)
            places.work.mkdir(parents=True, exist_ok=True)
            undo.callback(_remove_empty, places.work)
            lock = os.open(places.work, os.O_RDONLY)
            undo.callback(os.close, lock)
            _take(lock, places.out)
            undo.callback(_clear_staging, settings)
            for folder in (inner for pair in settings.folders for inner in pair):
                folder.mkdir(parents=True, exist_ok=True)
            _remove_temporary(settings)
        except OSError as error:
            raise output_error(repr(os.fspath(places.out)), error) from error
        yield


def make_parts(places: Places, parts: Iterable[str]) -> None:
    """The folders of these parts; OSError when they cannot be made."""
    for folder in (folder for part in parts for folder in places.folders(part)):
        folder.mkdir(parents=True, exist_ok=True)


def placed_scenes(
    scenes: Iterable[FinishedScene], parts: Mapping[str, str], places: Places
) -> list[FinishedScene]:
    """The scenes as they will be recorded in their parts of the split; nothing is moved."""
    inside = {part: places.inside(part) for part in PARTS}
    placed: list[FinishedScene] = []
    for scene in scenes:
        part = parts[scene.name]
        files = tuple(
            WrittenFile(f"{folder}/{file.place.rpartition('/')[2]}", file.size, file.crc32)
            for file, folder in zip(scene.files, inside[part], strict=True)
        )
        placed.append(replace(scene, files=files, part=part))
    return placed


def place_scene(scene: FinishedScene, placed: FinishedScene, places: Places) -> FinishedScene:
    """Rename the files of `scene` to where `placed` has them, which is returned; OSError."""
    for source, target in zip(scene.files, placed.files, strict=True):
        if source.place != target.place:
            os.replace(f"{places.out}/{source.place}", f"{places.out}/{target.place}")
    return placed


def remove_stale(
    places: Places, scenes: Sequence[FinishedScene], known: Mapping[str, FinishedScene]
) -> tuple[str, ...]:
    """Remove files of `known` scenes that are no longer where `scenes` have theirs.

    Returns files that nobody here made, as places; they stay. Raises OSError.
    """
    expected = {file.place for scene in scenes for file in scene.files}
    ours = {os.path.basename(file.place) for scene in known.values() for file in scene.files}
    ours |= {os.path.basename(place) for place in expected}
    foreign: list[str] = []
    for inside in (inside for part in PARTS for inside in places.inside(part)):
        folder = places.out / inside
        if not folder.is_dir():
            continue
        with os.scandir(folder) as entries:
            others = [e for e in entries if f"{inside}/{e.name}" not in expected]
        for entry in others:
            if entry.name in ours and entry.is_file(follow_symlinks=False):
                os.unlink(entry.path)
            else:
                foreign.append(f"{inside}/{entry.name}")
        _remove_empty(folder)
    return tuple(sorted(foreign))


def _take(lock: int, out: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise OutputError(
            f"--out {os.fspath(out)!r}, in which another prepare is at work",
            expected="one at a time",
            do="wait for it, or choose another --out",
        ) from error
    except OSError:  # a file system without locks, some NFS
        pass


def _remove_temporary(settings: SceneSettings) -> None:
    """What a killed process was just writing."""
    for folder in (inner for pair in settings.folders for inner in pair):
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.endswith(TEMPORARY_SUFFIX):
                    os.unlink(entry.path)


def _clear_staging(settings: SceneSettings) -> None:
    _remove_temporary(settings)
    for images, masks in settings.folders:
        for folder in (images, masks, images.parent):
            _remove_empty(folder)
    _remove_empty(settings.staging)


def clear_staging(places: Places) -> None:
    """What lies there of scenes that are in the data set or are no more."""
    shutil.rmtree(places.staging, ignore_errors=True)


def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):  # it is not empty
        folder.rmdir()
