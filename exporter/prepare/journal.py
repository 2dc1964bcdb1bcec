"""What an earlier run finished, so that the next one need not do it again.

A text file of JSON lines in the data set's hidden work folder: settings first, then a finished
scene in each. Lines are added while scenes are finished; one that a kill or a full disk cut short
is not believed, and its scene is done again.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from engines.errors import OutputError, output_error
from exporter.prepare.rice_classes import RICE_CLASSES
from exporter.prepare.scene import GO_ON, FinishedScene, WrittenFile, write_whole
from exporter.prepare.split import PARTS

FILE_NAME = "finished.jsonl"
FORMAT = "riceseg prepared scenes"
FORMAT_VERSION = 1  # another one: scenes of older versions are done again

MAX_BYTES = 1 << 31
MAX_LINE = 1 << 20


class Journal:
    """The journal of one data set; `known` are the scenes of earlier runs by name.

    `header` is what the earlier runs were asked for, {} where there is none.
    """

    def __init__(self, folder: Path) -> None:
        """Reads what is there; OutputError when it cannot be read."""
        self._path = folder / FILE_NAME
        self._file: BinaryIO | None = None
        self._begun = False
        self.header, self.known = _read(self._path)
        self._scenes = bool(self.known)

    def begin(self, header: Mapping[str, Any]) -> None:
        """Write whole what is known, and keep the file open for more lines."""
        self._begun = True
        self.write(header, self.known.values())
        self._file = open(self._path, "ab")  # noqa: SIM115  # until `close`

    def add(self, scene: FinishedScene) -> None:
        """A line that outlives this process, though not a loss of power."""
        assert self._file is not None  # begun
        self._scenes = True
        try:
            self._file.write(_line(_record(scene)))
            self._file.flush()
        except OSError as error:
            raise output_error(str(self._path.parent), error, do=GO_ON) from error

    def write(self, header: Mapping[str, Any], scenes: Iterable[FinishedScene]) -> None:
        """Replace the file as a whole."""
        self.close()
        lines = [_line({"format": FORMAT, "format_version": FORMAT_VERSION, **header})]
        lines += [_line(_record(scene)) for scene in scenes]
        self._scenes = len(lines) > 1
        write_whole(self._path, b"".join(lines))

    def close(self) -> None:
        """Harmless when called twice. No line is lost: each was written at once."""
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def end(self) -> None:
        """Close it, and remove it where it was begun and no scene was ever finished."""
        self.close()
        if self._begun and not self._scenes:
            with contextlib.suppress(OSError):
                self._path.unlink()


def _line(record: Mapping[str, Any]) -> bytes:
    # ASCII, so that names of any bytes come back as they were.
    return json.dumps(record, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"


def _record(scene: FinishedScene) -> dict[str, Any]:
    # Not dataclasses.asdict, which copies every part of it: 0.1 ms a scene.
    return {
        "name": scene.name,
        "stamps": scene.stamps,
        "files": [[file.place, file.size, file.crc32] for file in scene.files],
        "pixels": scene.pixels,
        "warnings": scene.warnings,
        "part": scene.part,
    }


def _read(path: Path) -> tuple[dict[str, Any], dict[str, FinishedScene]]:
    header: dict[str, Any] = {}
    known: dict[str, FinishedScene] = {}
    try:
        if not path.is_file() or path.stat().st_size > MAX_BYTES:
            return {}, {}
        with open(path, "rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(MAX_LINE), b"")):
                record = _parsed(line)
                if number == 0:
                    if (record.get("format"), record.get("format_version")) != (
                        FORMAT,
                        FORMAT_VERSION,
                    ):
                        return {}, {}
                    header = record
                    continue
                scene = _scene(record)
                if scene is not None:
                    known[scene.name] = scene
    except OSError as error:
        raise OutputError(
            f"{path}: {error.strerror or error}",
            expected="the list of finished scenes, which can be read",
            do="check its permissions, or choose another --out",
        ) from error
    return header, known


def _parsed(line: bytes) -> dict[str, Any]:
    """{} for anything but a whole line with an object."""
    if not line.endswith(b"\n"):
        return {}
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _scene(record: Mapping[str, Any]) -> FinishedScene | None:
    """None for a record that this version did not write."""
    try:
        files = tuple(
            WrittenFile(_place(place), int(size), int(crc32))
            for place, size, crc32 in record["files"]
        )
        pixels = tuple(int(count) for count in record["pixels"])
        stamps = tuple(tuple(stamp) for stamp in record["stamps"])
        warnings = tuple(str(text) for text in record["warnings"])
        name, part = record["name"], record["part"]
    except (KeyError, TypeError, ValueError, OverflowError):  # int(Infinity)
        return None
    if not isinstance(name, str) or part not in ("", *PARTS) or len(pixels) != len(RICE_CLASSES):
        return None
    return FinishedScene(name, stamps, files, pixels, warnings, part)


def _place(place: object) -> str:
    """A path inside the data set's folder; ValueError for others."""
    parts = str(place).split("/")
    if not all(parts) or ".." in parts or "\0" in str(place):
        raise ValueError("outside the data set")
    return "/".join(parts)
