"""Files that are named like the raw data set's, and what is told of those not used."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

from exporter.prepare.raw_layout import LeftOut, RawSource

BAND, SCENE = "R20220726A25G1036.tif", "R20220726A25R1036"


def zip_of(path: Path, *files: tuple[str | zipfile.ZipInfo, bytes], **options: Any) -> Path:
    with zipfile.ZipFile(path, "w", **options) as written:
        for name, data in files:
            written.writestr(name, data)
    return path


def with_a_good_scene(folder: Path) -> Path:
    """So that what else lies there is told of and not raised."""
    (folder / "R20220101A01R0001.tif").write_bytes(b"good")
    return folder


def only_left_out(source: RawSource) -> LeftOut:
    assert [scene.name for scene in source.scenes] == ["R20220101A01R0001"]
    assert len(source.left_out) == 1
    return source.left_out[0]
