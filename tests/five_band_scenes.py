"""Small five-band scenes in the raw layout of the rice data set, for the tests.

What is written is known exactly: each scene comes back with its arrays and polygons, so that a
test computes what it expects from them and not from the files.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.TiffImagePlugin
from numpy.typing import NDArray

Array = NDArray[np.float32]

LETTERS = "RGBNE"
NODATA = -10000.0
CODES = ("01", "02", "03", "04", "05")  # classes 1 to 5

# Reflectance of R, G, B, N, E, 0..1: bare wet soil, then the classes 1 to 5. Vegetation is dark in
# red and bright in the near infrared; blast browns it, lodging brightens it, gaps show the soil.
_REFLECTANCE = (
    (0.095, 0.080, 0.060, 0.140, 0.120),
    (0.040, 0.080, 0.030, 0.450, 0.250),
    (0.090, 0.090, 0.050, 0.320, 0.220),
    (0.070, 0.120, 0.060, 0.500, 0.320),
    (0.100, 0.085, 0.065, 0.200, 0.150),
    (0.060, 0.100, 0.040, 0.300, 0.240),
)
_PLACES = ("나주시", "김제시", "당진시", "이천시")  # Text that differs between UTF-8 and CP949.


@dataclass(frozen=True)
class WrittenScene:
    """`bands` by letter, (H, W) float32 as in the files; polygons as (code, points (n, 2) xy)."""

    name: str
    files: dict[str, Path]
    json: Path
    bands: dict[str, Array]
    polygons: tuple[tuple[str, NDArray[np.int32]], ...]


def scene_name(number: int, letter: str = "R") -> str:
    """The stem of a band file: date, field, band letter, four digits; 25 scenes to a field."""
    return f"R20220726A{number // 25 % 100:02d}{letter}{number:04d}"


def write_scene(
    folder: Path,
    number: int,
    seed: int = 0,
    hw: tuple[int, int] = (96, 128),
    *,
    codes: tuple[str, ...] | None = None,
    encoding: str = "utf-8",
    georeference: bool = False,
    nested: bool = False,
) -> WrittenScene:
    """Five single-band TIFFs of float32 and the JSON of band R, in `folder` or in its own folders.

    The left and upper border is nodata, and a few other pixels are a little below 0. Every
    scene has class 01 and, by its number, up to two others that overlap it; `codes` sets them,
    ascending. Scenes of odd number list their polygons in descending order. `nested`:
    FIELD+letter/NAME.tif and labels/NAME.json below `folder`.
    """
    random = np.random.default_rng((seed, number))
    if codes is None:
        others = (CODES[1 + number % 4], CODES[1 + (number // 4 + 1) % 4])
        codes = ("01", *sorted(set(others[: number % 3])))
    polygons = tuple((code, _polygon(random, index, hw)) for index, code in enumerate(codes))
    bands = _bands(random, polygons, hw)
    polygons = polygons[:: -1 if number % 2 else 1]
    files: dict[str, Path] = {}
    for letter in LETTERS:
        name = scene_name(number, letter)
        files[letter] = folder / (name[:13] if nested else "") / f"{name}.tif"
        files[letter].parent.mkdir(parents=True, exist_ok=True)
        write_band(files[letter], bands[letter], georeference=georeference)
    name = scene_name(number)
    labels = folder / ("labels" if nested else "") / f"{name}.json"
    labels.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(labels_record(name, hw, polygons), ensure_ascii=False, indent=1)
    labels.write_bytes(text.encode(encoding))
    return WrittenScene(name, files, labels, bands, polygons)


def write_data_set(
    folder: Path,
    scenes: int = 8,
    zipped: bool = False,
    *,
    seed: int = 0,
    hw: tuple[int, int] = (96, 128),
    encodings: tuple[str, ...] = ("utf-8", "utf-8-sig", "cp949"),
) -> tuple[WrittenScene, ...]:
    """Scenes in the folders in which they are delivered; JSON in each of `encodings` by turns.

    With `zipped` the files of a scene lie in two zips with Korean names in CP949, as Windows
    writes them, and the paths that are returned no longer exist.
    """
    written = tuple(
        write_scene(
            folder, number, seed, hw, encoding=encodings[number % len(encodings)], nested=True
        )
        for number in range(scenes)
    )
    if zipped:
        images = [path for scene in written for path in scene.files.values()]
        labels = [scene.json for scene in written]
        _move_to_zip(folder / "TS_org.zip", images, inside="원천데이터")
        _move_to_zip(folder / "TL_json.zip", labels, inside="라벨링데이터")
    return written


def labels_record(
    name: str, hw: tuple[int, int], polygons: tuple[tuple[str, NDArray[np.int32]], ...]
) -> dict[str, Any]:
    """What the JSON of a scene holds."""
    return {
        "IMAGES": {
            "PHOTO_FILE_NM": f"{name}.tif",
            "PHOTO_FILE_MG": list(hw),
            "PLACE": _PLACES[int(name[-4:]) % len(_PLACES)],
        },
        "ANNOTATIONS": [
            {
                "OBJECT_NO": index,
                "OBJECT_CLASS_CODE": code,
                "PYN_XCRDNT": points[:, 0].tolist(),
                "PYN_YCRDNT": points[:, 1].tolist(),
            }
            for index, (code, points) in enumerate(polygons, start=1)
        ],
    }


def write_band(
    path: Path,
    band: NDArray[Any],
    *,
    georeference: bool = False,
    origin_m: tuple[float, float] = (302_000.0, 3_870_000.0),
    nodata_tag: str | None = None,
) -> None:
    """One band (H, W), float32, uint16 or uint8, as a TIFF; on request with GeoTIFF tags.

    The georeference is UTM zone 52N, pixels of 5 cm, `origin_m` the upper left corner's easting and
    northing.
    """
    tags = PIL.TiffImagePlugin.ImageFileDirectory_v2()
    if georeference:
        shorts, doubles = PIL.TiffImagePlugin.TiffTags.SHORT, PIL.TiffImagePlugin.TiffTags.DOUBLE
        for tag, kind, value in (
            (33550, doubles, (0.05, 0.05, 0.0)),  # ModelPixelScale
            (33922, doubles, (0.0, 0.0, 0.0, *origin_m, 0.0)),  # ModelTiepoint
            # GeoKeyDirectory: projected, pixel is area, EPSG 32652
            (34735, shorts, (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 32652)),
        ):
            tags.tagtype[tag] = kind
            tags[tag] = value
    if nodata_tag is not None:
        tags.tagtype[42113] = PIL.TiffImagePlugin.TiffTags.ASCII
        tags[42113] = nodata_tag
    PIL.Image.fromarray(band).save(path, format="TIFF", tiffinfo=tags)


def _polygon(random: np.random.Generator, index: int, hw: tuple[int, int]) -> NDArray[np.int32]:
    """An irregular polygon; the first covers most of the scene, later ones a part of it."""
    height, width = hw
    corners = 12
    angle = np.linspace(0.0, 2 * np.pi, corners, endpoint=False)
    size = (0.46 if index == 0 else 0.24) * random.uniform(0.75, 1.0, corners)
    centre = (0.5, 0.5) if index == 0 else tuple(random.uniform(0.35, 0.65, 2))
    points = np.stack(
        [(centre[0] + size * np.cos(angle)) * width, (centre[1] + size * np.sin(angle)) * height],
        axis=1,
    )
    return np.clip(np.rint(points), 0, (width - 1, height - 1)).astype(np.int32)


def _bands(
    random: np.random.Generator,
    polygons: tuple[tuple[str, NDArray[np.int32]], ...],
    hw: tuple[int, int],
) -> dict[str, Array]:
    height, width = hw
    classes = np.zeros(hw, np.intp)
    for code, points in polygons:
        classes[_inside(points, hw)] = int(code) if code in CODES else 0
    light = np.linspace(0.9, 1.1, width)[np.newaxis, :] * random.uniform(0.9, 1.1)
    border = np.add.outer(np.arange(height), np.arange(width) // 4) < max(3, height // 12)
    border[:, : max(2, width // 20)] = True
    bands: dict[str, Array] = {}
    for index, letter in enumerate(LETTERS):
        mean = np.array(_REFLECTANCE)[classes, index]
        band = (mean * light * random.normal(1.0, 0.06, hw)).astype(np.float32)
        band[random.random(hw) < 0.002] = -0.003  # dark pixels after calibration
        band[border] = NODATA
        bands[letter] = band
    return bands


def _inside(points: NDArray[np.int32], hw: tuple[int, int]) -> NDArray[np.bool_]:
    """By counting crossings of a ray to the right; border pixels either way."""
    y, x = np.mgrid[: hw[0], : hw[1]]
    inside = np.zeros(hw, bool)
    for (x1, y1), (x2, y2) in zip(points, np.roll(points, -1, axis=0), strict=True):
        if y1 != y2:
            at = x1 + (y - y1) * ((x2 - x1) / (y2 - y1))
            inside ^= ((y1 > y) != (y2 > y)) & (x < at)
    return inside


def _move_to_zip(archive: Path, files: list[Path], *, inside: str) -> None:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as written:
        for path in files:
            name = f"{inside}/{path.parent.name}/{path.name}"
            written.writestr(Cp949Member(name), path.read_bytes(), zipfile.ZIP_DEFLATED)
            path.unlink()
    for folder in {path.parent for path in files}:
        folder.rmdir()


class Cp949Member(zipfile.ZipInfo):
    """A member whose name is stored in CP949 without the UTF-8 flag, as Windows stores it.

    Of itself zipfile marks every name that is not ASCII as UTF-8.
    """

    def _encodeFilenameFlags(self) -> tuple[bytes, int]:
        return self.filename.encode("cp949"), 0
