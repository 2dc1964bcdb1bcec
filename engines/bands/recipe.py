"""Which bands make up a network's image, in which order, and how their values become 0..255."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Dict, Mapping

from engines.errors import ConfigError

LETTERS = "RGBNE"  # red, green, blue, near infrared, red edge
NORMS = ("chw_minmax", "uint8")
NODATA = -10000.0  # of the raw scenes

# The largest finite float32: bands are compared with nodata in that type.
LARGEST = 3.4028234663852886e38


@dataclass(frozen=True)
class BandRecipe:
    """How (H, W, B) bands, in the order of `letters`, become the image of a network.

    Norm "chw_minmax" stretches each band of a scene over 0..255, "uint8" takes values that are
    0..255 already. `nodata` is the value of pixels without a measurement; NaN always is one too.
    Raises ConfigError for letters other than R, G, B, N, E, for one that comes twice, for an
    unknown norm and for a nodata that is no finite float32.
    """

    letters: str
    norm: str = "chw_minmax"
    nodata: float = NODATA

    def __post_init__(self) -> None:
        check_letters(self.letters)
        if self.norm not in NORMS:
            raise ConfigError(
                f"norm {self.norm!r}", expected=" or ".join(NORMS), do="use one of these"
            )
        if (
            isinstance(self.nodata, bool)
            or not isinstance(self.nodata, (int, float))
            or not math.isfinite(self.nodata)
            or abs(self.nodata) > LARGEST
        ):
            raise ConfigError(
                f"nodata {self.nodata!r}",
                expected="a finite number that a float32 can hold; NaN is nodata anyway",
                do=f"give the value of empty pixels, {NODATA:g} in the raw scenes",
            )

    @property
    def channels(self) -> str:
        """The letters in the order of the network's channels.

        Three are stacked in their order and written by OpenCV, which takes them for blue, green
        and red; whoever reads that PNG as RGB, as the training did, has them reversed.
        """
        return self.letters[::-1] if len(self.letters) == 3 else self.letters

    def record(self) -> Dict[str, Any]:
        """For a JSON file; `recipe_from_record` reads it."""
        return {"letters": self.letters, "norm": self.norm, "nodata": float(self.nodata)}


def recipe_from_record(record: Mapping[str, Any]) -> BandRecipe:
    """The recipe of `BandRecipe.record`, further keys ignored; ConfigError as for `BandRecipe`."""
    missing = (
        [key for key in ("letters", "norm", "nodata") if key not in record]
        if isinstance(record, Mapping)
        else ["letters"]
    )
    if missing:
        raise ConfigError(
            f"a record of bands without {' and '.join(missing)}",
            expected="letters, norm and nodata",
            do="take the record as it was written",
        )
    return BandRecipe(record["letters"], record["norm"], record["nodata"])


def check_letters(letters: str) -> None:
    """Raises ConfigError unless they are one to five of R, G, B, N, E, each once."""
    valid = isinstance(letters, str) and 0 < len(letters) == len(set(letters))
    if not valid or not set(letters) <= set(LETTERS):
        raise ConfigError(
            f"bands {letters!r}",
            expected=f"one to five letters of {', '.join(LETTERS)}, none of them twice",
            do="name the bands in the order of the training's composite, such as GNE",
        )
