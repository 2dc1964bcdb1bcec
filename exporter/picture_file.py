"""Pictures that are whole or not there."""

from __future__ import annotations

import os
from pathlib import Path

from PIL import Image

from engines.errors import OutputError


def write_picture(
    picture: Image.Image, path: Path, *, do: str = "free some space or choose another --out"
) -> None:
    """Write a .png or a JPEG in one step; OutputError, with the advice `do`, when it cannot be."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        picture.save(temporary, format="PNG" if path.suffix == ".png" else "JPEG")
        os.replace(temporary, path)
    except OSError as error:
        raise OutputError(
            f"{str(path)!r}: {error.strerror or error}",
            expected="room and leave to write",
            do=do,
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
