"""File names of any script in a picture, with a font of this computer."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

from PIL import ImageFont

from engines.progress import printable

Font: TypeAlias = "ImageFont.FreeTypeFont | ImageFont.ImageFont"

# Pillow looks for these names in the folders of the system. Korean is in all but the first, which
# has more of the other alphabets.
FONT_FILES = (
    "DejaVuSans.ttf",
    "NotoSansCJK-Regular.ttc",
    "NotoSansKR-Regular.otf",
    "NotoSansKR-Regular.ttf",
    "NanumGothic.ttf",
    "UnDotum.ttf",
    "AppleSDGothicNeo.ttc",
    "malgun.ttf",
)
_NO_CHARACTER = "\U0010ffff"  # which no font has: drawn as the font draws what it lacks


@dataclass(frozen=True)
class Lettering:
    """A font, and the characters of the texts it was chosen for that it cannot draw."""

    font: Font
    missing: frozenset[str]

    def drawable(self, text: str) -> str:
        """On one line, and what the font lacks as an escape like \\ub17c, never as an empty box."""
        shown = _normal(text)
        if not self.missing:
            return shown
        return "".join(
            c.encode("ascii", "backslashreplace").decode() if c in self.missing else c
            for c in shown
        )

    def fitted(self, text: str, width: float) -> str:
        """`drawable`, with "..." in its middle where it is wider than so many pixels."""
        shown = self.drawable(text)
        if self.font.getlength(shown) <= width:
            return shown
        for kept in range(len(shown) - 1, 1, -1):
            shorter = f"{shown[: kept // 2]}...{shown[len(shown) - (kept - kept // 2) :]}"
            if self.font.getlength(shorter) <= width:
                return shorter
        return "..."


def lettering_for(texts: Iterable[str], size: int) -> Lettering:
    """The first known font of this computer that has every character, else the one with most.

    Where none is found, Pillow's own, which has those of western Europe alone.
    """
    wanted = {c for text in texts for c in _normal(text) if not c.isspace()}
    best: Lettering | None = None
    for name in FONT_FILES:
        font = _font(name, size)
        if font is None:
            continue
        missing = frozenset(wanted - _held(font, wanted))
        if best is None or len(missing) < len(best.missing):
            best = Lettering(font, missing)
        if not missing:
            return best
    if best is not None:
        return best
    own = ImageFont.load_default()
    return Lettering(own, frozenset(wanted - _held(own, wanted)))


def _normal(text: str) -> str:
    # Bytes of a file name that Python could not decode are those of UTF-8 as a rule. Not by
    # os.fsencode: where the locale is ASCII it has no letter of Korean, as class names have.
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    # macOS stores Korean letters in pieces, which fonts draw beside each other.
    return printable(unicodedata.normalize("NFC", text))


def _font(name: str, size: int) -> Font | None:
    """None where this computer has no such font."""
    try:
        return ImageFont.truetype(name, size)
    except (OSError, ImportError):  # ImportError: a Pillow without FreeType
        return None


def _held(font: Font, characters: Iterable[str]) -> set[str]:
    lacking = _drawn(font, _NO_CHARACTER)
    return {c for c in characters if _drawn(font, c) not in (lacking, None)}


def _drawn(font: Font, character: str) -> tuple[Any, bytes] | None:
    try:
        mask = font.getmask(character)
    except UnicodeEncodeError:  # Pillow's bitmap font
        return None
    return mask.size, bytes(mask)
