"""Images that show what another one shows are left out, and those of the validation set first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from calibration.image_set.facts import ImageFacts
from calibration.image_set.perceptual_hash import BITS, different_bits

Reason = Literal["unreadable", "validation", "near validation", "duplicate", "near duplicate"]


@dataclass(frozen=True)
class LeftOut:
    """A file that is not to be calibrated on; `text` says why, after its name."""

    path: Path
    reason: Reason
    text: str


def without_copies(
    images: Sequence[ImageFacts],
    validation: Sequence[ImageFacts],
    *,
    near_bits: int,
    on_image: Callable[[int, int], object] = lambda done, total: None,
) -> tuple[list[ImageFacts], list[LeftOut]]:
    """The images to choose from and the others, in the given order, but those with masks first.

    Left out are: any with the bytes of a validation image, or whose perceptual hash differs from
    that of one in at most `near_bits` bits; then any with the bytes of one that is kept, or so near
    to it. Of those kept, each two differ in more bits. Each image is compared with all that are
    kept; of tens of thousands that is still far less than reading them.
    """
    of_validation = _Known(validation, ("validation", "near validation"), "validation image ")
    kept = _Known((), ("duplicate", "near duplicate"), "")
    left_out = []
    masked_first = sorted(images, key=lambda image: image.classes is None)
    for done, image in enumerate(masked_first, start=1):
        found = of_validation.like(image, near_bits) or kept.like(image, near_bits)
        if found is not None:
            left_out.append(found)
        else:
            kept.add(image)
        on_image(done, len(images))
    return kept.images, left_out


class _Known:
    """Images to compare others with."""

    def __init__(
        self, images: Sequence[ImageFacts], reasons: tuple[Reason, Reason], kind: str
    ) -> None:
        self.images: list[ImageFacts] = []
        self._reasons, self._kind = reasons, kind
        self._by_sha256: dict[str, ImageFacts] = {}
        self._looks = np.zeros(64, np.uint64)
        for image in images:
            self.add(image)

    def add(self, image: ImageFacts) -> None:
        if len(self.images) == len(self._looks):
            self._looks = np.concatenate([self._looks, np.zeros_like(self._looks)])
        self._looks[len(self.images)] = image.look
        self.images.append(image)
        self._by_sha256.setdefault(image.sha256, image)

    def like(self, image: ImageFacts, near_bits: int) -> LeftOut | None:
        """Why `image` is one of these, or too near to one; the nearest is named."""
        same = self._by_sha256.get(image.sha256)
        if same is not None:
            text = f"the same file as {self._kind}{same.path.name}"
            return LeftOut(image.path, self._reasons[0], text)
        if not self.images:
            return None
        bits = different_bits(image.look, self._looks[: len(self.images)])
        nearest = int(bits.argmin())
        if bits[nearest] > near_bits:
            return None
        other = self.images[nearest].path.name
        text = f"looks like {self._kind}{other} ({bits[nearest]} of {BITS} bits differ)"
        return LeftOut(image.path, self._reasons[1], text)
