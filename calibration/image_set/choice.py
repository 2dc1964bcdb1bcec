"""So many images from each stratum: every one is heard, and the large ones get more."""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter, defaultdict, deque
from collections.abc import Sequence

from calibration.image_set.facts import ImageFacts
from calibration.image_set.strata import Stratum


def chosen_indices(
    images: Sequence[ImageFacts], strata: Sequence[Stratum], *, count: int, seed: int
) -> list[int]:
    """Indices of at most `count` images, in the order in which they were chosen.

    The images are shuffled, by SHA-256 over seed and content: the same on every machine, whatever
    the files are called. Each stratum first gives one image: while a class has not been seen, the
    largest stratum with the rarest such class; then the others as a random draw meets them. After
    that the next image always comes from the stratum with the most images per image chosen (Adams'
    divisor method, as seats are given to states): nearly proportional, in favour of small ones.
    The first K of the answer are the answer for a count of K.
    """
    lots = [_lot(image, seed) for image in images]
    waiting: dict[Stratum, deque[int]] = defaultdict(deque)
    for index in sorted(range(len(images)), key=lots.__getitem__):
        waiting[strata[index]].append(index)
    sizes = {stratum: len(queue) for stratum, queue in waiting.items()}
    chosen = [waiting[stratum].popleft() for stratum in _first_round(sizes)[:count]]
    # The least of a heap comes first; between equal ones decides the lot of their next image.
    heap = [
        (-float(sizes[stratum]), lots[queue[0]], 1, stratum)
        for stratum, queue in waiting.items()
        if 0 < len(queue) < sizes[stratum]
    ]
    heapq.heapify(heap)
    while heap and len(chosen) < count:
        _, _, taken, stratum = heapq.heappop(heap)
        queue = waiting[stratum]
        chosen.append(queue.popleft())
        if queue:
            priority = -sizes[stratum] / (taken + 1)
            heapq.heappush(heap, (priority, lots[queue[0]], taken + 1, stratum))
    return chosen


def _first_round(sizes: dict[Stratum, int]) -> list[Stratum]:
    """Every stratum once; `sizes` are in the order in which a random draw meets the strata."""
    images_with: Counter[int] = Counter()
    for stratum, size in sizes.items():
        images_with.update(dict.fromkeys(stratum.classes or (), size))
    order: dict[Stratum, None] = {}
    for index in sorted(images_with, key=lambda index: (images_with[index], index)):
        if not any(index in (stratum.classes or ()) for stratum in order):
            holders = [stratum for stratum in sizes if index in (stratum.classes or ())]
            order[max(holders, key=sizes.__getitem__)] = None
    order.update(dict.fromkeys(sizes))
    return list(order)


def _lot(image: ImageFacts, seed: int) -> str:
    return hashlib.sha256(f"{seed} {image.sha256}".encode()).hexdigest()
