"""One stripe from its pixels to its labels: reading, the network and blending in three threads."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Iterator, Optional, Tuple

import numpy as np

from engines.background import Background
from engines.errors import GraphError
from engines.field.blend import Blend, labels_from_sums
from engines.field.network import FieldNetwork
from engines.field.palette import NODATA
from engines.field.raster import FieldRaster
from engines.field.stripe import Batch, Grid, Window, batches_of_stripe
from engines.field.work import Work
from engines.resize import Labels

if TYPE_CHECKING:
    Results = Any  # logits (N, K, h, w) float32 or labels (N, h, w) uint8

# Batches that are read before their turn.
_AHEAD = 2


def label_stripe(
    network: FieldNetwork,
    raster: FieldRaster,
    grid: Grid,
    work: Work,
    index: int,
    *,
    beside: bool,
) -> Iterator[Tuple[int, int]]:
    """Write the labels of stripe `index` from where `work` ends; for each batch of windows gives
    how many they are and how many of them were run.

    `beside` blends a batch while the network runs the next: one more batch of logits in memory.
    """
    first_row = work.done[index]
    if first_row >= len(grid.rows):
        return
    labels = _StripeLabels(network, grid, work, index)
    # Sums that wait at an interruption are not kept: rows before the first one give them again.
    start = grid.rows.first_on(first_row)
    batches = batches_of_stripe(raster, grid, work.stripes[index], start)
    source = Background(batches, ahead=_AHEAD, name="field reader")
    try:
        with ThreadPoolExecutor(1, thread_name_prefix="field labels") as pool:
            pending: Optional[Future[None]] = None
            for batch in source:
                results = _results(network, batch)
                if pending is not None:
                    pending.result()
                pending = pool.submit(labels.add, batch, results)
                del results
                if not beside:
                    pending.result()
                yield len(batch.windows), 0 if batch.pixels is None else len(batch.pixels)
            if pending is not None:
                pending.result()
    finally:
        source.stop()


class _StripeLabels:
    """Takes the results of every batch in order and writes each row of windows when it is full."""

    def __init__(self, network: FieldNetwork, grid: Grid, work: Work, index: int) -> None:
        self._grid, self._work, self._index = grid, work, index
        self._first, self._stop = work.stripes[index]
        self._left = grid.columns.edges[self._first]
        self._first_row = work.done[index]
        self._outputs = network.outputs
        self._blend: Optional[Blend] = None
        if network.predictor.has_logits:
            stripe = (self._first, self._stop)
            self._blend = Blend(grid.rows, grid.columns, network.outputs, stripe)
        width = grid.columns.edges[self._stop] - self._left
        self._row: Labels = np.full((grid.rows.size, width), NODATA, np.uint8)

    def add(self, batch: Batch, results: Results) -> None:
        if self._blend is not None and results is not None:
            results = self._own_logits(results)
        for window in batch.windows:
            if window.place is not None:
                self._label(window, results[window.place])
            if window.column == self._stop - 1 and window.row >= self._first_row:
                self._finish(window.row)

    def _label(self, window: Window, result: Any) -> None:
        rows, columns = self._grid.rows, self._grid.columns
        row, column, _, valid = window
        if self._blend is not None:
            sums = self._blend.finished(row, column, result)
            if sums is None or row < self._first_row:
                return
            labels = labels_from_sums(sums, valid, NODATA)
        else:
            top, left = rows.starts[row], columns.starts[column]
            labels = result[
                rows.edges[row] - top : rows.edges[row + 1] - top,
                columns.edges[column] - left : columns.edges[column + 1] - left,
            ]
            if valid is not None:
                labels = np.where(valid, labels, np.uint8(NODATA))
        left = columns.edges[column] - self._left
        self._row[: labels.shape[0], left : left + labels.shape[1]] = labels

    def _finish(self, row: int) -> None:
        edges = self._grid.rows.edges
        height = edges[row + 1] - edges[row]
        self._work.write(edges[row], self._left, self._row[:height])
        self._work.finish_row(self._index, row + 1)
        self._row[:] = NODATA

    def _own_logits(self, logits: Any) -> Any:
        """As they are if they may be overwritten."""
        size = (self._grid.rows.size, self._grid.columns.size)
        if logits.ndim != 4 or logits.shape[1:] != (self._outputs, *size):
            raise GraphError(
                f"logits of shape {logits.shape}",
                expected=f"(N, {self._outputs}, {size[0]}, {size[1]}), as bundle.json says",
                do="export the model again: its logits must be as large as its input",
            )
        return np.require(logits, np.float32, ["W"])


def _results(network: FieldNetwork, batch: Batch) -> Results:
    if batch.pixels is None:
        return None
    predictor = network.predictor
    return (
        predictor.logits(batch.pixels) if predictor.has_logits else predictor.labels(batch.pixels)
    )
