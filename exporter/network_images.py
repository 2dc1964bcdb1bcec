"""Image files as the network takes them, one at a time."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from engines.bundle import InputSpec
from engines.errors import ImageError
from engines.images import image_from_file
from engines.progress import printable
from engines.resize import network_image_from_image
from exporter.request import DataOptions

MOST_LINES = 20  # of images that were left out; a broken disk would fill the screen
_T = TypeVar("_T")


def network_images(
    files: Sequence[Path], input_spec: InputSpec, data: DataOptions, skipped: dict[Path, str]
) -> Iterator[np.ndarray[Any, Any]]:
    """(H, W, C) uint8 at network size; unreadable files raise, or are named in `skipped`."""
    for path in files:
        try:
            image = image_from_file(path, channels=input_spec.channels, convert=data.convert_images)
        except ImageError as error:
            if not data.skip_bad:
                raise
            skipped[path] = str(error)
            continue
        yield network_image_from_image(image, input_spec.hw, input_spec.rule, input_spec.pad_value)


def first_readable(
    files: Sequence[Path], most: int, input_spec: InputSpec, data: DataOptions
) -> list[np.ndarray[Any, Any]]:
    """At most `most` images as `network_images` has them, spread over the whole list.

    With `skip_bad` others stand in for unreadable ones; fewer only where no more can be read.
    """
    spread = evenly(range(len(files)), most)
    taken = frozenset(spread)
    order = [*spread, *(index for index in range(len(files)) if index not in taken)]
    images = network_images([files[index] for index in order], input_spec, data, {})
    return list(itertools.islice(images, most))


def evenly(items: Sequence[_T], most: int | None) -> list[_T]:
    """At most `most` of them, spread over the whole list; None for all."""
    count = len(items) if most is None else min(len(items), most)
    return [items[i * len(items) // count] for i in range(count)]


def left_out_lines(part: str, skipped: Sequence[str]) -> list[str]:
    """A warning for each image that was left out, of the first ones if there are many."""
    lines = [printable(f"{part} image left out: {line}") for line in skipped[:MOST_LINES]]
    more = len(skipped) - len(lines)
    return [*lines, f"{more} more {part} images left out"] if more > 0 else lines
