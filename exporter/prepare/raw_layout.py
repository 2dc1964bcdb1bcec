"""The raw data set, wherever its files lie: scenes by name, from folders and from zips.

Bands are single TIFFs whose name holds the band's letter, as `engines.bands.names` knows it;
labels are the JSON with the name of band R's file. The folders between, which differ from delivery
to delivery, do not matter.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field

from engines.bands.names import TIFF_SUFFIXES, RawName, raw_band_name
from engines.errors import DatasetError
from exporter.prepare.archive import files_in_zip
from exporter.prepare.source_file import FileRef

LABEL_SUFFIX = ".json"
LABEL_LETTER = "R"

# A name becomes the name of files, on whatever system.
_UNSAFE = re.compile(r'[/\\:*?"<>|]')
_ARCHIVE_PART = re.compile(r"\.(?:part\d+|z\d\d|\d\d\d)$")
_OTHER_ARCHIVES = (".7z", ".alz", ".egg", ".gz", ".rar", ".tar", ".tgz")
_MAX_NAMED = 5


@dataclass(frozen=True, slots=True)
class RawScene:
    """`name` is the stem of band R's file; `bands` by letter, one or more; can be pickled."""

    name: str
    bands: dict[str, FileRef]
    labels: FileRef | None


@dataclass(frozen=True)
class LeftOut:
    """One or more files of a folder or zip that are not used for the same reason.

    `where` is the folder or zip, or the file if it is one; `files` is their number, and `reason`
    names the first of them.
    """

    where: str
    reason: str
    files: int


@dataclass(frozen=True)
class RawSource:
    """`scenes` by name; a scene may lack bands or labels."""

    scenes: tuple[RawScene, ...]
    left_out: tuple[LeftOut, ...]


def sources_from(path: str | os.PathLike[str]) -> RawSource:
    """The scenes in a folder, at any depth and in the zips in it, or in one zip.

    Of a file that is there twice the first is taken: folders before zips, by name. Hidden files
    and files of other kinds are passed over. No file is opened but the zips. Raises DatasetError
    when there is no scene.
    """
    path = os.fspath(path)
    found = _Found()
    if os.path.isdir(path):
        archives = _add_folder(path, found)
    elif os.path.isfile(path) and path.lower().endswith(".zip"):
        archives = [path]
    else:
        there = "which is neither a folder nor a zip" if os.path.exists(path) else "nothing there"
        raise _no_scene(path, there)
    for archive in archives:
        _add_zip(archive, found)
    source = found.source()
    if not source.scenes:
        first = source.left_out[0] if source.left_out else None
        raise _no_scene(path, f"no scene; {first.where}: {first.reason}" if first else "no scene")
    return source


@dataclass
class _Found:
    bands: dict[str, dict[str, FileRef]] = field(default_factory=dict)
    labels: dict[str, FileRef] = field(default_factory=dict)
    other_labels: dict[str, FileRef] = field(default_factory=dict)
    left_out: dict[tuple[str, str], list[FileRef]] = field(default_factory=dict)

    def add(self, file: FileRef, name: str, unreadable: str = "") -> None:
        """`name` is the file's; hidden files, as macOS adds to a zip, and other kinds are not."""
        stem, suffix = os.path.splitext(name)
        suffix = suffix.lower()
        if suffix not in (*TIFF_SUFFIXES, LABEL_SUFFIX) or name.startswith("."):
            return
        if unreadable:
            return self.leave_out(file, unreadable)
        raw = _raw_name(stem)
        if raw is None:
            return self.leave_out(file, "its name does not follow the data set's pattern")
        if suffix != LABEL_SUFFIX:
            kept = self.bands.setdefault(raw.scene, {}).setdefault(raw.letter, file)
        elif raw.letter == LABEL_LETTER:
            kept = self.labels.setdefault(raw.scene, file)
        else:
            kept = file
            self.other_labels.setdefault(raw.scene, file)
        if kept is not file:
            self.leave_out(file, "a file of this scene and band was found before it")

    def leave_out(self, file: FileRef, reason: str) -> None:
        self.left_out.setdefault((file.container, reason), []).append(file)

    def source(self) -> RawSource:
        for name, file in self.other_labels.items():
            if name in self.bands and name not in self.labels:
                self.leave_out(file, f"labels of a band other than {LABEL_LETTER} are not used")
        for name, file in self.labels.items():
            if name not in self.bands:
                self.leave_out(file, "labels of a scene without band files")
        scenes = tuple(
            RawScene(name, self.bands[name], self.labels.get(name)) for name in sorted(self.bands)
        )
        told = [_left_out(where, why, files) for (where, why), files in self.left_out.items()]
        return RawSource(scenes, tuple(told))


def _raw_name(stem: str) -> RawName | None:
    """Of band file or labels; the pattern counts from the end of a name with four for .tif."""
    raw = raw_band_name(f"{stem}.tif")
    # Not printable is also what is not UTF-8.
    return raw if raw and raw.scene.isprintable() and not _UNSAFE.search(raw.scene) else None


def _left_out(where: str, reason: str, files: list[FileRef]) -> LeftOut:
    if len(files) == 1:
        return LeftOut(str(files[0]), reason, 1)
    names = ", ".join(file.name for file in files[:_MAX_NAMED])
    more = ", ..." if len(files) > _MAX_NAMED else ""
    return LeftOut(where, f"{len(files)} files ({names}{more}): {reason}", len(files))


def _add_folder(top: str, found: _Found) -> list[str]:
    """All files below `top` but the zips, which are returned, by name."""
    archives: list[str] = []
    seen: set[tuple[int, int]] = set()  # A link to a folder above it must not go round for ever.
    folders = [top]
    while folders:
        folder = folders.pop()
        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as entries:
                inside = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            found.leave_out(FileRef(folder), f"a folder that cannot be read: {error.strerror}")
            continue
        below: list[str] = []
        for entry in inside:
            if entry.name.startswith("."):
                continue
            try:
                if entry.is_dir():
                    below.append(entry.path)
                elif entry.is_file():
                    _add_file(entry, found, archives)
            except OSError as error:  # a link to itself, or to where one may not look
                found.leave_out(FileRef(entry.path), f"a link that leads nowhere: {error.strerror}")
        folders += reversed(below)
    return archives


def _add_file(entry: os.DirEntry[str], found: _Found, archives: list[str]) -> None:
    name = entry.name.lower()
    if name.endswith(".zip"):
        archives.append(entry.path)
    elif _ARCHIVE_PART.search(name):
        found.leave_out(FileRef(entry.path), "a part of an archive: join the parts first")
    elif name.endswith(_OTHER_ARCHIVES):
        found.leave_out(FileRef(entry.path), "an archive that is no zip: unpack it first")
    else:
        found.add(FileRef(entry.path), entry.name)


def _add_zip(archive: str, found: _Found) -> None:
    try:
        for file, unreadable in files_in_zip(archive):
            if file.name.lower().endswith(".zip"):
                found.leave_out(file, "a zip inside a zip: unpack the outer one first")
            else:
                found.add(file, file.name, unreadable)
    except DatasetError as error:
        found.leave_out(FileRef(archive), error.got)


def _no_scene(path: str, reason: str) -> DatasetError:
    return DatasetError(
        f"{path!r}: {reason}",
        expected="band files such as R20220726A25B1036.tif, also in zip files",
        do="give the folder into which the data set was downloaded",
    )
