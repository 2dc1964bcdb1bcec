"""The sides between unlike pixels of a few rows, and how they follow each other as outlines.

All outlines of a strip are found together, with numpy. The horizontal pieces on each line between
two rows are found by comparing the rows: each has its inner side above or below, and is walked with
that side to its right (rows count downwards). At each of its ends a vertical piece begins or ends;
on one vertical line those with the same inner side belong together in the order of their rows: an
upper end and the next lower one. A vertical piece whose lower end is not in the strip stays open.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Dict, List, NamedTuple, Tuple

import numpy as np

from engines.field.palette import NODATA

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from engines.resize import Labels

    Points = NDArray[np.int32]  # (n, 2) column and row of pixel corners
    Ints = NDArray[np.int64]
    Bools = NDArray[np.bool_]

# The inner side of a vertical piece, which is walked downwards with it on the left of the picture,
# upwards with it on the right. A vertical line is told as twice its column plus one of these.
INNER_LEFT, INNER_RIGHT = 0, 1

_WALKED = -2
_LEAST_TOUCHING = 8  # corners of an outline that comes to a point again: two squares at a corner


class Pieces(NamedTuple):
    """Horizontal pieces of a strip: those with the inner side above first, then those below it.

    `line` is the index of the strip's line, `start` and `end` are columns in the order of walking.
    An end is convex where the inner side ends too; else it goes on around the corner.
    """

    above: Bools  # where the inner side is
    line: Ints
    start: Ints
    end: Ints
    start_convex: Bools
    end_convex: Bools
    label: Labels  # of the inner side


class Carried(NamedTuple):
    """The vertical lines from which open outlines hang: where their walks begin and end."""

    heads: Ints
    tails: Ints


class Links(NamedTuple):
    """What follows what. Carried outlines are numbered first, then the pieces."""

    follower: Ints  # -1: nothing yet
    open_heads: Ints  # those that nothing precedes yet
    head_lines: Ints
    tail_lines: Ints  # (count,), of those that nothing follows yet; else -1
    inlets: Tuple[Ints, Ints]  # pairs of numbers that are outlines of the same region


def pieces_of_block(block: Labels) -> Pieces:
    """The pieces on the lines between the rows of `block` (n + 1, W) uint8; 255 is no inside."""
    border = _borders(block)
    differ = block[1:] != block[:-1]
    line_a, left_a, right_a, convex_a = _spans(differ & (block[:-1] != NODATA), border[:-1])
    line_b, left_b, right_b, convex_b = _spans(differ & (block[1:] != NODATA), border[1:])
    return Pieces(
        above=np.arange(len(line_a) + len(line_b)) < len(line_a),
        line=np.concatenate([line_a, line_b]),
        start=np.concatenate([right_a, left_b]),
        end=np.concatenate([left_a, right_b]),
        start_convex=np.concatenate([convex_a[1], convex_b[0]]),
        end_convex=np.concatenate([convex_a[0], convex_b[1]]),
        label=np.concatenate([block[line_a, left_a], block[line_b + 1, left_b]]),
    )


def links_of_pieces(pieces: Pieces, carried: Carried, block: Labels) -> Links:
    """Links the pieces of `block` and the outlines that hang from above it."""
    first, lines = len(carried.heads), len(block)
    owners = np.arange(first, first + len(pieces.line))
    # The four kinds of corners: a walk that starts at a piece comes down to it with the inner side
    # on the left, or up to it with the inner side on the right, and the same at its end, mirrored.
    start_down = pieces.start_convex != pieces.above
    end_down = pieces.end_convex != pieces.above
    start_line = 2 * pieces.start + np.where(start_down, INNER_RIGHT, INNER_LEFT)
    end_line = 2 * pieces.end + np.where(end_down, INNER_LEFT, INNER_RIGHT)
    start_key = _keys(start_line, pieces.line + 1, lines, start_down)
    end_key = _keys(end_line, pieces.line + 1, lines, end_down)

    hanging = np.concatenate([carried.heads, carried.tails])
    top_keys = np.concatenate(
        [_keys(hanging, 0, lines, True), start_key[start_down], end_key[end_down]]
    )
    above = np.arange(first)
    top_owners = np.concatenate([above, above, owners[start_down], owners[end_down]])
    order = np.argsort(top_keys, kind="stable")
    top_keys, top_owners = top_keys[order], top_owners[order]

    follower = np.full(first + len(owners), -1, np.int64)
    taken = np.zeros(len(top_keys), bool)
    partner = np.searchsorted(top_keys, start_key[~start_down]) - 1
    follower[top_owners[partner]] = owners[~start_down]
    taken[partner] = True
    partner = np.searchsorted(top_keys, end_key[~end_down]) - 1
    follower[owners[~end_down]] = top_owners[partner]
    taken[partner] = True

    open_lines, open_owners = top_keys[~taken] // (2 * (lines + 1)), top_owners[~taken]
    is_head = open_lines % 2 == INNER_RIGHT
    tail_lines = np.full(len(follower), -1, np.int64)
    tail_lines[open_owners[~is_head]] = open_lines[~is_head]
    # A hole's topmost piece has its region above it and goes on at both ends around corners. The
    # row above it, followed to the left, leads to another outline of that region, which is not
    # below; from hole to hole so to the outer one.
    inlet = pieces.above & ~pieces.start_convex & ~pieces.end_convex
    row = pieces.line[inlet]
    run_line = 2 * _run_starts(block, row, pieces.end[inlet]) + INNER_RIGHT
    left = top_owners[
        np.searchsorted(top_keys, _keys(run_line, row, lines, True), side="right") - 1
    ]
    return Links(
        follower, open_owners[is_head], open_lines[is_head], tail_lines, (owners[inlet], left)
    )


def walks(links: Links) -> Tuple[Ints, List[int]]:
    """All numbers in the order of walking, and where each outline ends in it.

    The open ones come first, in the order of `links.open_heads`.
    """
    follower = links.follower.tolist()
    order: List[int] = []
    ends: List[int] = []
    for number in links.open_heads.tolist():
        _walk(number, follower, order)
        ends.append(len(order))
    for number in range(len(follower)):
        if follower[number] != _WALKED:
            _walk(number, follower, order)
            ends.append(len(order))
    return np.array(order, np.int64), ends


def pixels_inside(ring: Points) -> int:
    """Pixels inside a closed outline as it was walked, whose even points start a horizontal piece.

    Negative for a hole.
    """
    steps = (ring[0::2, 0] - ring[1::2, 0]).astype(np.int64)
    return int(steps @ ring[0::2, 1].astype(np.int64))


def simple_rings(ring: Points, width: int) -> List[Points]:
    """`ring` cut where it comes to a point again: pixels that touch at a corner alone.

    Of a region's outline the parts are its outer ring and holes, as GeoJSON wants them.
    """
    if len(ring) < _LEAST_TOUCHING:
        return [ring]
    keys: List[int] = (ring[:, 1].astype(np.int64) * (width + 1) + ring[:, 0]).tolist()
    if len(set(keys)) == len(keys):
        return [ring]
    rings: List[Points] = []
    path: List[int] = []  # indices of points
    place: Dict[int, int] = {}  # of a point in the path, by key
    for index, key in enumerate(keys):
        if key in place:
            start = place[key]
            rings.append(ring[path[start:]])
            for gone in path[start:]:
                del place[keys[gone]]
            del path[start:]
        place[key] = len(path)
        path.append(index)
    return [*rings, ring[path]]


def doubled_area(ring: Points) -> int:
    """Twice the signed area in pixels of any simple ring, positive if clockwise on the screen."""
    x, y = ring[:, 0].astype(np.int64), ring[:, 1].astype(np.int64)
    return int(x @ np.roll(y, -1) - y @ np.roll(x, -1))


def _walk(number: int, follower: List[int], order: List[int]) -> None:
    """To the end of the outline or back to its beginning; marks what was passed."""
    while number >= 0:
        order.append(number)
        following = follower[number]
        follower[number] = _WALKED
        number = following if following >= 0 and follower[following] != _WALKED else -1


def _borders(block: Labels) -> Bools:
    """(rows, W + 1): whether a pixel is unlike the one to its left; True at the raster's edges."""
    border = np.ones((len(block), block.shape[1] + 1), bool)
    np.not_equal(block[:, 1:], block[:, :-1], out=border[:, 1:-1])
    return border


def _spans(side: Bools, border: Bools) -> Tuple[Ints, Ints, Ints, Tuple[Bools, Bools]]:
    """Line, first and last column of each piece of `side`, and whether these ends are convex."""
    opens, closes = side.copy(), side.copy()
    opens[:, 1:] &= ~side[:, :-1] | border[:, 1:-1]
    closes[:, :-1] &= ~side[:, 1:] | border[:, 1:-1]
    line, left = np.nonzero(opens)
    right = np.nonzero(closes)[1] + 1
    return line, left, right, (border[line, left], border[line, right])


def _keys(line: Ints, row: Ints | int, lines: int, down: Bools | bool) -> Ints:
    """Sorts by vertical line, then row; at one corner what ends before what begins."""
    keys: Ints = (line * (lines + 1) + row) * 2 + down
    return keys


def _run_starts(block: Labels, rows: Ints, columns: Ints) -> Ints:
    """The first column of the equal pixels in a row that the given pixel belongs to."""
    across = block.shape[1] + 1
    starts = np.flatnonzero(_borders(block))
    places = np.searchsorted(starts, rows * across + columns, side="right") - 1
    firsts: Ints = starts[places] % across
    return firsts
