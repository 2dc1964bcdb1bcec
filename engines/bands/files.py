"""From files of single bands to a scene: which of them belong together, and whether they fit."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    BinaryIO,
    Dict,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Tuple,
    Union,
)

import numpy as np

from engines.bands.micasense import micasense_letter
from engines.bands.names import TIFF_SUFFIXES, micasense_name, raw_band_name
from engines.bands.recipe import LETTERS, NODATA, check_letters
from engines.bands.tiff import BandFile, narrowed, only_band, opened_tiff, pixels_of_page
from engines.bands.tiff_pages import TiffPage
from engines.errors import ImageError

if TYPE_CHECKING:
    from engines.bands.composite import BandsArray


@dataclass(frozen=True)
class SceneFiles:
    """The files of a scene by the letter of their band; not all five need be there."""

    name: str
    files: Dict[str, Path]


class _OpenBand(NamedTuple):
    letter: str
    file: BinaryIO
    where: str
    page: TiffPage


def scenes_in_folder(
    folder: Union[str, os.PathLike[str]],
) -> Tuple[Tuple[SceneFiles, ...], Tuple[str, ...]]:
    """The scenes of a folder of band files, by name, and its TIFFs that are left out, with reason.

    Takes raw names (R20220726A25B1036.tif) and MicaSense captures (IMG_0001_1.tif), whose bands
    are told by their metadata first. Where no band file lies in the folder itself, raw ones are
    looked for in the folders directly in it: the raw data has one for each band. A scene that would
    be put together from several of these, and of which one has a band that another has too, may be
    of two flights and is left out whole. Hidden files are left out. Whether a scene has the bands
    that one needs shows when they are read. Raises ImageError for a folder that cannot be read and
    where all scenes are of such folders; finds nothing in one without band files.
    """
    folder = Path(folder)
    files, folders = _tiffs_and_folders(folder)
    found = _Found()
    for path in files:
        found.add(path)
    if not found.scenes:
        for path in (file for inner in folders for file in _tiffs_and_folders(inner)[0]):
            if raw_band_name(path.name) is not None:
                found.add(path)
        _leave_out_mixed(found, folder)
    scenes = [SceneFiles(name, found.scenes[name]) for name in sorted(found.scenes)]
    return tuple(scenes), tuple(found.left_out)


def scene_of_band_file(path: Union[str, os.PathLike[str]]) -> SceneFiles:
    """The scene that one band file belongs to, with those of its bands that there are.

    They lie in the same folder, or, with raw names, in folders beside it that are named for their
    band as this one is (R20220726A25B beside R20220726A25R). Raises ImageError when the name is
    that of no band file or the file does not exist.
    """
    path = Path(path)
    raw, mica = raw_band_name(path.name), micasense_name(path.name)
    if not path.is_file() or (raw is None and mica is None):
        raise ImageError(
            f"{str(path)!r}, which is {'no band file' if path.is_file() else 'no file'}",
            expected="a file named like R20220726A25B1036.tif or IMG_0001_1.tif",
            do="give one band of the scene, the others beside it",
        )
    if raw is not None:
        letters = {letter: _raw_file(path, raw.of_band(letter), letter) for letter in LETTERS}
        letters[raw.letter] = path
        return SceneFiles(raw.scene, {key: file for key, file in letters.items() if file})
    found = _Found()
    for file in _tiffs_and_folders(path.parent)[0]:
        other = micasense_name(file.name)
        if mica is not None and other is not None and other.capture == mica.capture:
            found.add(file)
    if not found.scenes:
        raise ImageError(
            f"{str(path)!r} ({'; '.join(found.left_out)})",
            expected="a capture with bands of R, G, B, N, E, each once",
            do="give another capture",
        )
    return SceneFiles(mica.capture if mica else "", next(iter(found.scenes.values())))


def bands_from_files(
    files: Mapping[str, BandFile], letters: str, *, nodata: Optional[float] = None
) -> BandsArray:
    """The bands of a scene, (H, W, B) uint16 or float32, in the order of `letters`.

    `files` by letter; those of other letters are not opened. Each band lies in memory as one piece.
    What a file itself calls nodata (GDAL's tag) becomes `nodata`, -10000 without it; NaN, which is
    nodata everywhere, stays.
    uint16 when all files are of 8 or 16 bits and call nothing nodata, or `nodata` fits.
    Raises ImageError for a missing band, bands of different size or georeference, which is found
    before a pixel is decoded, and as `read_band`.
    """
    check_letters(letters)
    missing = [letter for letter in letters if letter not in files]
    if missing:
        raise ImageError(
            f"a scene without band {', '.join(missing)}, with {', '.join(files) or 'none'}",
            expected=f"a file for each of {', '.join(letters)}",
            do="add the missing file, or leave the scene out",
        )
    with ExitStack() as stack:
        opened = []
        for letter in letters:
            file, where = stack.enter_context(opened_tiff(files[letter]))
            opened.append(_OpenBand(letter, file, where, only_band(file, where)))
        for band in opened[1:]:
            _check_fits(opened[0], band)
        empty = NODATA if nodata is None else float(nodata)
        whole = all(_stays_whole(band.page, empty) for band in opened)
        bands = np.empty((len(letters), *opened[0].page.hw), np.uint16 if whole else np.float32)
        for index, band in enumerate(opened):
            _read_into(bands[index], band, empty)
    return bands.transpose(1, 2, 0)


def _stays_whole(page: TiffPage, nodata: float) -> bool:
    """Whether a uint16 holds the band, with `nodata` where its file says so."""
    if page.dtype.kind != "u" or page.dtype.itemsize > 2:
        return False
    return page.nodata is None or (0 <= nodata <= 65535 and nodata == int(nodata))


def _read_into(target: Any, band: _OpenBand, nodata: float) -> None:
    """Fill (H, W) with the band, and with `nodata` where its file says so."""
    values = pixels_of_page(band.file, band.where, band.page, target)
    empty: Any = None
    if band.page.nodata is not None:
        # As the pixels hold it: the tag's text has more digits than a float32.
        with np.errstate(over="ignore"):
            own = band.page.nodata if values.dtype != np.float32 else np.float32(band.page.nodata)
        empty = values == own
    if values is not target:
        target[...] = narrowed(values)
    if empty is not None:
        target[empty] = nodata


def _check_fits(first: _OpenBand, band: _OpenBand) -> None:
    if band.page.hw != first.page.hw:
        sizes = [f"{page.hw[1]}x{page.hw[0]}" for page in (first.page, band.page)]
        raise ImageError(
            f"band {first.letter} of {sizes[0]} ({first.where!r}) and band {band.letter} of "
            f"{sizes[1]} ({band.where!r})",
            expected="bands of one size",
            do="export them on one grid, or leave the scene out",
        )
    if not first.page.georeference.agrees_with(band.page.georeference):
        raise ImageError(
            f"bands {first.letter} ({first.where!r}) and {band.letter} ({band.where!r}) of "
            "different georeference",
            expected="bands of the same place, pixel size and coordinate system",
            do="export them on one grid, or leave the scene out",
        )


class _Found:
    """Scenes that grow file by file, and what cannot be part of one."""

    def __init__(self) -> None:
        self.scenes: Dict[str, Dict[str, Path]] = {}
        self.left_out: List[str] = []
        self.again: Dict[str, List[Tuple[str, Path]]] = {}  # letters and files of a scene

    def add(self, path: Path) -> None:
        raw, mica = raw_band_name(path.name), micasense_name(path.name)
        if raw is not None:
            self._take(raw.scene, raw.letter, path)
            return
        if mica is None:
            self.left_out.append(
                f"{path.name}: not named like R20220726A25B1036.tif or IMG_0001_1.tif"
            )
            return
        letter = micasense_letter(path, mica.number)
        if letter is None:
            self.left_out.append(f"{path.name}: none of the bands {', '.join(LETTERS)}")
            return
        self._take(mica.capture, letter, path)

    def _take(self, scene: str, letter: str, path: Path) -> None:
        files = self.scenes.setdefault(scene, {})
        if letter not in files:
            files[letter] = path
            return
        first = files[letter]
        folders = ("", "") if first.parent == path.parent else (path.parent.name, first.parent.name)
        shown, before = (os.path.join(f, p.name) for f, p in zip(folders, (path, first)))
        self.left_out.append(f"{shown}: band {letter} again, after {before}")
        self.again.setdefault(scene, []).append((letter, path))


def _leave_out_mixed(found: _Found, folder: Path) -> None:
    """Take scenes out whose files may not belong together; ImageError where none is left.

    One folder for each band is how the raw data lies, and then no band comes twice. Where all bands
    were found in one folder, those of others are left out alone.
    """
    for scene, again in found.again.items():
        files = found.scenes[scene]
        doubled = [(letter, path) for letter, path in again if path.parent != files[letter].parent]
        if not doubled or len({path.parent for path in files.values()}) == 1:
            continue
        letter, path = doubled[0]
        del found.scenes[scene]
        found.left_out.append(
            f"scene {scene}: its bands lie in several folders, and band {letter} in two of them, "
            f"{files[letter].parent.name!r} and {path.parent.name!r}: which belong together?"
        )
    if found.again and not found.scenes:
        raise ImageError(
            f"folder {str(folder)!r}: {found.left_out[-1]}",
            expected="each band of a scene once, or all in one folder",
            do="give one of the folders, or move the others away",
        )


def _raw_file(path: Path, stem: str, letter: str) -> Optional[Path]:
    """The band's file beside `path`, or in the band's own folder beside that of `path`."""
    folders = [path.parent]
    if path.parent.name[-1:] in tuple(LETTERS):
        folders.append(path.parent.parent / (path.parent.name[:-1] + letter))
    for folder in folders:
        for suffix in (path.suffix, *TIFF_SUFFIXES):
            file = folder / (stem + suffix)
            if file.is_file():
                return file
    return None


def _tiffs_and_folders(folder: Path) -> Tuple[List[Path], List[Path]]:
    """TIFFs and folders directly in `folder`, by name, without hidden ones."""
    try:
        with os.scandir(folder) as entries:
            shown = [(e.name, _is_dir(e)) for e in entries if not e.name.startswith(".")]
    except OSError as error:
        raise ImageError(
            f"folder {str(folder)!r}: {error.strerror}",
            expected="a folder that can be read",
            do="check its name and its permissions",
        ) from error
    names = sorted(name for name, is_dir in shown if not is_dir)
    tiffs = [folder / name for name in names if name.lower().endswith(TIFF_SUFFIXES)]
    return tiffs, [folder / name for name, is_dir in sorted(shown) if is_dir]


def _is_dir(entry: os.DirEntry[str]) -> bool:
    """A link that leads to itself is none; it fails when it is read, and alone."""
    try:
        return entry.is_dir()
    except OSError:
        return False
