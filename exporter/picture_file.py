"""Pictures that are whole or not there."""

from __future__ import annotations

import os
from pathlib import Path

from PIL import Image

from engines.errors import output_error


def write_picture(picture: Image.Image, path: Path, *, do: str = "choose another --out") -> None:
    """Write a .png or a JPEG in one step; OutputError as of `output_error` when it cannot be."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        picture.save(temporary, format="PNG" if path.suffix == ".png" else "JPEG")
        os.replace(temporary, path)
    except OSError as error:
        raise output_error(repr(str(path)), error, do=do) from error
    finally:
        temporary.unlink(missing_ok=True)
