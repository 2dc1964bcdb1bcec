"""The regions of a label raster that is given a few rows at a time, as polygons.

A region is a set of equal pixels connected over their sides. Where it touches the rows that are yet
to come its outline waits for them. GDAL's polygonizer (`rasterio.features.shapes`) takes a whole
raster and holds all its polygons at once, or cuts them at the blocks that it is given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Iterator, List, NamedTuple, Optional, Tuple

import numpy as np

from engines.field.outlines import (
    Carried,
    doubled_area,
    links_of_pieces,
    pieces_of_block,
    pixels_inside,
    simple_rings,
    walks,
)
from engines.field.palette import NODATA

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from engines.field.outlines import Ints, Links, Pieces, Points
    from engines.resize import Labels

MAX_HELD_BYTES = 256 * 2**20  # of outlines that wait for rows to come
STRIP_PIXELS = 2**20  # taken at a time: pure noise needs some 200 bytes for each
_PART_BYTES = 200  # what an array takes beside its points
_MAX_PARTS = 256  # of an open outline, before they become one array


class Region(NamedTuple):
    """One class, connected, with its holes.

    `rings` are closed outlines (n, 2) of (column, row), the first point not repeated, no three
    points on one line, and no point twice in a ring. The outer ring is first and runs clockwise on
    the screen; holes run the other way, and may touch each other and the outer ring at points.
    """

    label: int
    pixels: int
    rings: Tuple[Points, ...]


class _Growing:
    """A region that may go on below; `into` is the one that it turned out to be part of."""

    __slots__ = ("held", "into", "label", "rings")

    def __init__(self, label: int) -> None:
        self.label = label
        self.rings: List[Points] = []
        self.held = 0  # bytes
        self.into: Optional[_Growing] = None


class _Chain(NamedTuple):
    """An outline that is open at both ends, and the vertical lines that it hangs from."""

    region: _Growing
    parts: List[Points]  # in the order of walking
    head: int
    tail: int


class RegionTracer:
    """Takes the rows of a label raster and gives each region as soon as it is complete.

    Memory: some 200 MB for what is at work at most, and the outlines that wait. When those pass
    `max_held_bytes` all regions are ended along the next line and begin again below it: `cuts`
    tells above which rows.
    """

    def __init__(self, width: int, *, max_held_bytes: int = MAX_HELD_BYTES) -> None:
        self.cuts: List[int] = []
        self._width = width
        self._max_held = max_held_bytes
        self._held = 0
        self._row = 0  # the next one
        self._nothing: Labels = np.full((1, width), NODATA, np.uint8)
        self._above = self._nothing
        self._chains: List[_Chain] = []

    def add(self, rows: Labels) -> Iterator[Region]:
        """Complete regions, from the next `rows` (h, width) uint8; 255 belongs to none."""
        step = max(1, STRIP_PIXELS // self._width)
        for start in range(0, len(rows), step):
            strip = rows[start : start + step]
            yield from self._traced(strip)
            self._row += len(strip)
            self._above = strip[-1:].copy()
            if self._held > self._max_held and (strip[-1] != NODATA).any():
                self.cuts.append(self._row)
                yield from self.finish()

    def finish(self) -> Iterator[Region]:
        """The regions that reach the last row. Rows added after this begin new regions."""
        yield from self._traced(self._nothing)
        self._above = self._nothing
        assert not self._chains  # what ends at this line has nothing to wait for

    def _traced(self, strip: Labels) -> Iterator[Region]:
        block = np.concatenate([self._above, strip])
        pieces = pieces_of_block(block)
        if not len(pieces.line):
            return
        carried = Carried(
            np.array([chain.head for chain in self._chains], np.int64),
            np.array([chain.tail for chain in self._chains], np.int64),
        )
        links = links_of_pieces(pieces, carried, block)
        order, ends = walks(links)
        grown = self._grown(pieces, links, order, ends)
        number = np.empty(len(order), np.int64)
        number[order] = np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0))
        for one, other in zip(*(number[pair].tolist() for pair in links.inlets)):
            _join(grown[one], grown[other])
        waiting = {id(_root(chain.region)) for chain in self._chains}
        closed = (_root(region) for region in grown[len(links.open_heads) :])
        for region in {id(region): region for region in closed}.values():
            if id(region) not in waiting:
                self._held -= region.held
                yield _region(region, self._width)

    def _grown(self, pieces: Pieces, links: Links, order: Ints, ends: List[int]) -> List[_Growing]:
        """The region of each outline, which has been given its points; the open ones are kept."""
        carried, self._chains = self._chains, []
        first = len(carried)
        walked = _corners(pieces, self._row)[np.maximum(order - first, 0)]
        begins = [0, *ends[:-1]]
        mixed = np.logical_or.reduceat(order < first, begins).tolist()
        labels = pieces.label.tolist()
        numbers: List[int] = order.tolist()
        grown: List[_Growing] = []
        for index, (begin, end) in enumerate(zip(begins, ends)):
            if mixed[index]:
                region, parts = self._continued(carried, numbers[begin:end], walked[begin:end])
            else:
                region = _Growing(labels[numbers[begin] - first])
                parts = [walked[begin:end].reshape(-1, 2).copy()]
                self._hold(region, parts[0])
            grown.append(region)
            if index >= len(links.open_heads):
                region.rings.append(parts[0] if len(parts) == 1 else np.concatenate(parts))
                continue
            head, tail = int(links.head_lines[index]), int(links.tail_lines[numbers[end - 1]])
            self._chains.append(_Chain(region, parts, head, tail))
        return grown

    def _continued(
        self, carried: List[_Chain], numbers: List[int], walked: NDArray[np.int32]
    ) -> Tuple[_Growing, List[Points]]:
        """The region and the parts of an outline that has carried ones among its `numbers`."""
        own = [place for place, number in enumerate(numbers) if number < len(carried)]
        region = _root(carried[numbers[own[0]]].region)
        parts: List[Points] = []
        for place, following in zip([-1, *own], [*own, len(numbers)]):
            if place >= 0:
                chain = carried[numbers[place]]
                region = _join(region, chain.region)
                parts += chain.parts
            if following > place + 1:
                parts.append(walked[place + 1 : following].reshape(-1, 2).copy())
                self._hold(region, parts[-1])
        if len(parts) > _MAX_PARTS:
            parts = [np.concatenate(parts)]
        return region, parts

    def _hold(self, region: _Growing, part: Points) -> None:
        region.held += part.nbytes + _PART_BYTES
        self._held += part.nbytes + _PART_BYTES


def _corners(pieces: Pieces, row: int) -> NDArray[np.int32]:
    """(n, 2, 2) start and end of each piece as (column, row)."""
    corners = np.empty((len(pieces.line), 2, 2), np.int32)
    corners[:, 0, 0], corners[:, 1, 0] = pieces.start, pieces.end
    corners[:, :, 1] = (pieces.line + row)[:, np.newaxis]
    return corners


def _root(region: _Growing) -> _Growing:
    while region.into is not None:
        if region.into.into is not None:
            region.into = region.into.into  # halves the way for the next
        region = region.into
    return region


def _join(one: _Growing, other: _Growing) -> _Growing:
    """What both are from now on."""
    one, other = _root(one), _root(other)
    if one is other:
        return one
    if len(one.rings) < len(other.rings):
        one, other = other, one
    one.rings += other.rings
    one.held += other.held
    other.rings, other.into = [], one
    return one


def _region(region: _Growing, width: int) -> Region:
    pixels = 0
    outer: List[Points] = []
    holes: List[Points] = []
    for ring in region.rings:
        inside = pixels_inside(ring)
        pixels += inside
        parts = simple_rings(ring, width)
        for part in parts:
            is_outer = (inside if len(parts) == 1 else doubled_area(part)) > 0
            (outer if is_outer else holes).append(part)
    return Region(region.label, pixels, (*outer, *holes))
