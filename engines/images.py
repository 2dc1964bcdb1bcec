"""Image and mask files become uint8 arrays, with nothing lost in silence.

An image is read as OpenCV, and therefore mmsegmentation, reads it: turned upright by its EXIF
orientation, RGB, the first page of several. What would lose something on the way (16 bits, an
alpha channel) or add something (grey as RGB) is refused unless asked for. Needs Pillow; with
OpenCV in its place fewer kinds of files are read (`engines.opencv_images`).
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Sequence, Tuple, Union

import numpy as np

from engines.bands.names import TIFF_SUFFIXES
from engines.bands.tiff import multi_page_tiff_from_file
from engines.decoding import MAX_PIXELS, Decoded, decoded_file, upright
from engines.errors import DatasetError, ImageError, UserError
from engines.opencv_images import image_by_opencv, mask_by_opencv, opencv_instead_of_pillow

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

    from engines.resize import Image, Labels

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".npy", ".png", ".tif", ".tiff", ".webp")
LIST_SUFFIX = ".txt"

_IMAGE_FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP")
_MASK_FORMATS = ("PNG", "TIFF", "BMP")  # Not those that may have altered an index to save space.

# Pillow's modes that become RGB only on request, as a user would call them.
_CONVERTIBLE = {
    "1": "black and white",
    "L": "grey",
    "LA": "grey with alpha",
    "PA": "palette with alpha",
    "RGBA": "RGB with alpha",
    "RGBX": "RGB with further channels",  # Before Pillow 11; now its mode is RGB.
    "CMYK": "CMYK",
    "YCbCr": "YCbCr",
    "I;16": "16-bit grey",
    "I;16L": "16-bit grey",
    "I;16B": "16-bit grey",
    "I;16N": "16-bit grey",
}


def image_from_file(
    path: Union[str, os.PathLike[str]], *, channels: int = 3, convert: bool = False
) -> Image:
    """The image (H, W, channels) uint8, newly allocated and contiguous.

    Takes 8-bit RGB and opaque palette images (JPEG, PNG, BMP, TIFF, WebP), and .npy arrays (H, W,
    channels) of uint8; for a number of channels other than 3 only .npy and TIFFs with one page of
    8-bit grey for each channel. `convert` also takes what mmsegmentation would make RGB of: grey is
    repeated, alpha and further channels are dropped, the low 8 bits of 16 are dropped, CMYK and
    YCbCr are computed. Never 32 bits, float or Lab.
    Raises ImageError when the file is damaged, not of that kind or has over 300 million pixels.
    """
    path = _readable_file(path)
    if path.suffix.lower() == ".npy":
        return _image_from_npy(path, channels)
    if channels != 3 and path.suffix.lower() in TIFF_SUFFIXES:
        return multi_page_tiff_from_file(path, channels)
    if channels != 3:
        raise ImageError(
            f"{str(path)!r} for a network of {channels} channels",
            expected=f"a .npy file of uint8 with shape (height, width, {channels}), or a TIFF of "
            f"{channels} pages",
            do="save the channels in the order of the training with numpy.save",
        )
    if opencv_instead_of_pillow():
        return image_by_opencv(path, convert=convert)
    decoded = decoded_file(path, _IMAGE_FORMATS)
    loss = _loss_as_rgb(decoded, path)
    if loss and not convert:
        raise ImageError(
            f"{str(path)!r}, {loss} (mode {decoded.image.mode})",
            expected="8-bit RGB, as the network was trained on",
            do="pass --convert-images if it is meant to be read as RGB",
        )
    return upright(_rgb_array(decoded.image), decoded.orientation)


def mask_from_file(path: Union[str, os.PathLike[str]]) -> Labels:
    """The class index of each pixel, (H, W) uint8, newly allocated and contiguous.

    Takes PNG, TIFF and BMP of one channel: 1 to 8 bits, palette (its indices, not its colours),
    16 and 32 bits where no value is above 255. Indices of 2 and 4 bits stay 0..3 and 0..15.
    Raises ImageError when it cannot be read, DatasetError when it holds no indices.
    """
    path = _readable_file(path)
    if opencv_instead_of_pillow():
        return mask_by_opencv(path)
    decoded = decoded_file(path, _MASK_FORMATS)
    mode = decoded.image.mode
    if mode not in ("1", "L", "P", "I") and not mode.startswith("I;16"):
        raise DatasetError(
            f"mask {str(path)!r} of mode {mode}",
            expected="one channel with the class index of each pixel",
            do="replace each colour by its class index and save as 8-bit grey or palette PNG",
        )
    indices = np.asarray(decoded.image)
    if mode == "L" and decoded.storage.startswith(("L;2", "L;4")):
        # Pillow spreads 2 and 4 bits over 0..255.
        indices = indices // (85 if decoded.storage.startswith("L;2") else 17)
    if indices.min() < 0 or indices.max() > 255:
        raise DatasetError(
            f"mask {str(path)!r} with values from {indices.min()} to {indices.max()}",
            expected="class indices 0..254, and 255 where there is no label",
            do="save the class indices, not an image or instance numbers",
        )
    return upright(indices.astype(np.uint8), decoded.orientation)


def image_files_from(path: Union[str, os.PathLike[str]]) -> Tuple[Path, ...]:
    """Image files of a folder, of a list or one image; never empty, not opened.

    A folder gives the images directly in it, by name, hidden files left out. A list is a .txt file
    in UTF-8, one path a line, relative to the list's folder; blank lines and lines that begin with
    # are left out, the order stays. Raises ImageError when there is none or one is missing.
    """
    path = Path(path)
    if os.path.isdir(path):
        files = files_in_folder(path, IMAGE_SUFFIXES)
        if not files:
            raise ImageError(
                f"no image directly in folder {str(path)!r}",
                expected=f"files that end in {', '.join(IMAGE_SUFFIXES)}",
                do="give the folder that holds the images themselves",
            )
        return files
    path = _readable_file(path)
    if path.suffix.lower() == LIST_SUFFIX:
        return _files_of_list(path)
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise ImageError(
            f"{str(path)!r}",
            expected=f"a folder, a {LIST_SUFFIX} list or a file in {', '.join(IMAGE_SUFFIXES)}",
            do="give the images in one of these forms",
        )
    return (path,)


def files_in_folder(folder: Path, suffixes: Sequence[str]) -> Tuple[Path, ...]:
    """Files directly in `folder` that end so, in either case, by name, hidden ones left out."""
    try:
        with os.scandir(folder) as entries:
            names = [
                entry.name
                for entry in entries
                if not entry.name.startswith(".")
                and os.path.splitext(entry.name)[1].lower() in suffixes
                and entry.is_file()
            ]
    except OSError as error:
        raise ImageError(
            f"folder {str(folder)!r}: {error.strerror}",
            expected="a folder that can be read",
            do="check its name and its permissions",
        ) from error
    return tuple(folder / name for name in sorted(names))


def sha256_of_file(path: Union[str, os.PathLike[str]]) -> str:
    """SHA-256 of the file's bytes, 64 lower-case hex digits; UserError when it cannot be read."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
    except OSError as error:
        raise UserError(
            f"{os.fspath(path)!r}: {error.strerror}",
            expected="a file that can be read",
            do="check its name and its permissions",
        ) from error
    return digest.hexdigest()


def _loss_as_rgb(decoded: Decoded, path: Path) -> str:
    """What the image is if RGB is not quite the same, else ""; ImageError if it never becomes RGB.

    Pillow calls 16-bit and many-band files "RGB" too and drops the rest; the storage tells.
    """
    image, storage = decoded.image, decoded.storage
    if image.mode == "RGB":
        if ";16" in storage:
            return "16-bit RGB"
        # BMP's and WebP's fourth byte is padding.
        many = image.format == "TIFF" and storage.startswith("RGBX")
        return "RGB with further channels" if many else ""
    if image.mode == "P":
        return "palette with transparency" if "transparency" in image.info else ""
    if image.mode == "I" and image.format == "PNG":
        return "16-bit grey"  # Pillow 10 and older; now its mode is I;16.
    if image.mode not in _CONVERTIBLE:
        raise ImageError(
            f"{str(path)!r} of mode {image.mode}",
            expected="8-bit RGB",
            do="decide how its values become 0..255 and save it as 8-bit RGB",
        )
    return _CONVERTIBLE[image.mode]


def _rgb_array(image: PillowImage) -> Image:
    """(H, W, 3) uint8 of an image that `_loss_as_rgb` let pass."""
    if image.mode.startswith("I"):
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, np.newaxis], 3, axis=2)
    if image.mode in ("P", "PA"):
        # By way of RGBA, because Pillow warns when transparency goes straight to RGB.
        image = image.convert("RGBA")
    elif image.mode not in ("RGB", "RGBA"):
        image = image.convert("RGB")
    return np.array(np.asarray(image)[:, :, :3], order="C")


def array_in_npy(path: Path) -> Any:
    """The array of a .npy file, of any dtype and shape, mapped; ImageError for any other file.

    Mapped, so that a header that promises more than the file holds costs no memory.
    """
    try:
        return np.lib.format.open_memmap(os.fspath(path), mode="r")
    except Exception as error:  # The header is text that numpy evaluates: any error is possible.
        raise ImageError(
            f"{str(path)!r}, which cannot be read ({error})",
            expected="a .npy file of numbers with shape (height, width, channels)",
            do="save it again with numpy.save",
        ) from error


def _image_from_npy(path: Path, channels: int) -> Image:
    stored = array_in_npy(path)
    shape: Tuple[int, ...] = stored.shape
    if (
        stored.dtype != np.uint8
        or len(shape) != 3
        or shape[2] != channels
        or not 0 < shape[0] * shape[1] <= MAX_PIXELS
    ):
        raise ImageError(
            f"{str(path)!r} of {stored.dtype} with shape {shape}",
            expected=f"uint8 with shape (height, width, {channels})",
            do="save it as the network was trained on it, channels last",
        )
    return np.array(stored, order="C", subok=False)


def _files_of_list(path: Path) -> Tuple[Path, ...]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ImageError(
            f"list {str(path)!r}, which cannot be read ({error})",
            expected="text in UTF-8 with one path a line",
            do="save the list as UTF-8",
        ) from error
    lines: Dict[int, Path] = {
        number: path.parent / line.strip()
        for number, line in enumerate(text.split("\n"), start=1)
        if line.strip() and not line.lstrip().startswith("#")
    }
    missing = [number for number, file in lines.items() if not os.path.isfile(file)]
    if missing or not lines:
        raise ImageError(
            f"list {str(path)!r} with {len(missing)} missing files, the first in line "
            f"{missing[0]}: {str(lines[missing[0]])!r}"
            if missing
            else f"list {str(path)!r} without any path",
            expected="one image path a line, relative to the list's folder",
            do="correct the list",
        )
    return tuple(lines.values())


def _readable_file(path: Union[str, os.PathLike[str]]) -> Path:
    path = Path(path)
    problem = (
        "which is a folder"
        if os.path.isdir(path)
        else "which does not exist"
        if not os.path.exists(path)
        else "which is not a regular file"
        if not os.path.isfile(path)
        else "an empty file"
        if os.path.getsize(path) == 0
        else ""
    )
    if problem:
        raise ImageError(
            f"{str(path)!r}, {problem}",
            expected="a file with data in it",
            do="check its name and its permissions",
        )
    return path
