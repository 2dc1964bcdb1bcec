"""Overlapped runs: while the GPU computes one batch, the next is made, copied in and enqueued."""

from __future__ import annotations

import contextlib
import queue
import threading
from typing import TYPE_CHECKING, Iterable, Iterator, List, NamedTuple, Optional, Set

import numpy as np

from engines.background import Background
from engines.batches import Batch, check_batch, closed_error, padded, pieces
from engines.resize import Labels
from engines.trt.slots import Slot

if TYPE_CHECKING:
    from engines.cuda.interface import Stream
    from engines.trt.session import Session


class CopyStreams(NamedTuple):
    """Copies in and copies out each have a stream.

    In one stream the copy of the next input would stand behind that of the last output, and
    therefore wait for the run between them.
    """

    into: Stream
    out: Stream


class Ticket(NamedTuple):
    """A run that was enqueued: where, how many images, and whether it ends its batch."""

    slot: Slot
    images: int
    last: bool


class StreamRun:
    """One `stream()` call. A thread makes batches and enqueues them; the caller waits and reads.

    The thread enqueues, and not the caller, so that the GPU has the next run before the caller has
    done anything with the last result; with two slots it is never more than two runs ahead. `lock`
    is the predictor's: slots are filled, enqueued and read under it, the GPU is waited for without.
    """

    def __init__(
        self, session: Session, slots: List[Slot], *, lock: threading.RLock, copies: CopyStreams
    ) -> None:
        self.slots = slots
        self._session, self._lock, self._copies = session, lock, copies
        self._free: queue.Queue[Optional[Slot]] = queue.Queue()
        for slot in slots:
            self._free.put(slot)
        self._stopped = False
        self._waiting = threading.Lock()

    def results(self, batches: Iterable[Batch]) -> Iterator[Labels]:
        """Labels of each batch in order; an error of `batches` is raised after those before it."""
        name = f"stream of {self._session.path.name}"
        feed = Background(self._tickets(batches), ahead=len(self.slots), name=name)
        parts: List[Labels] = []
        try:
            for ticket in feed:
                parts.append(self._finished(ticket))
                if ticket.last:
                    yield parts[0] if len(parts) == 1 else np.concatenate(parts)
                    parts = []
            self._check_open()
        finally:
            self.stop()
            feed.stop()

    def stop(self) -> None:
        """Nothing is filled, enqueued or read from now on; the GPU may still be at work."""
        with self._lock:
            self._stopped = True
        self._free.put(None)

    def wait_for_waiting(self) -> None:
        """Return when the caller's thread waits for no event of a slot any more."""
        with self._waiting:
            pass

    def _tickets(self, batches: Iterable[Batch]) -> Iterator[Ticket]:
        session = self._session
        for batch in batches:
            check_batch(batch, session.input_hw, session.channels, dtype=session.input_dtype)
            left = len(batch)
            for images in pieces(batch, session.max_batch):
                left -= len(images)
                slot = self._free.get()
                if slot is None:
                    return
                with self._lock:
                    if self._stopped:
                        return
                    self._enqueue(slot, images)
                yield Ticket(slot, len(images), left == 0)

    def _enqueue(self, slot: Slot, images: Batch) -> None:
        session, copies = self._session, self._copies
        images = padded(images, session.fixed_batch or 0)
        count = len(images)
        slot.fill(images)
        if not slot.mapped:
            slot.copy_in(count, copies.into)
            slot.copied_in.record(copies.into)
            session.stream.wait(slot.copied_in)
        session.enqueue(slot, count)
        if slot.mapped:
            slot.done.record(session.stream)
            return
        slot.computed.record(session.stream)
        copies.out.wait(slot.computed)
        slot.copy_out(session.output, count, copies.out)
        slot.done.record(copies.out)

    def _finished(self, ticket: Ticket) -> Labels:
        with self._waiting:
            self._check_open()
            ticket.slot.done.synchronize()
        with self._lock:
            self._check_open()
            labels = labels_from(self._session.output, ticket.slot, ticket.images)
        self._free.put(ticket.slot)
        return labels

    def _check_open(self) -> None:
        if self._stopped:
            raise closed_error(self._session.path.name)


class Lanes:
    """Slots and copy streams of a predictor's `stream()` calls; its callers hold the lock.

    Attributes: `runs`, those that are open, and `busy`, the streams that may be at work.
    """

    def __init__(
        self, session: Session, *, lock: threading.RLock, lender: Slot, owned: contextlib.ExitStack
    ) -> None:
        """What is made here is released with `owned`; the slots borrow from `lender`."""
        self.runs: Set[StreamRun] = set()
        self.busy: List[Stream] = [session.stream]
        self._session, self._lock, self._lender, self._owned = session, lock, lender, owned
        self._idle: List[List[Slot]] = []
        self._copies: Optional[CopyStreams] = None

    def open_run(self) -> StreamRun:
        """A run with two slots of its own: those of a run that ended, or new ones."""
        if not self._idle:
            self._idle.append(self._new_pair())
        if self._copies is None:
            self._copies = self._new_copies()
        slots = self._idle.pop()
        run = StreamRun(self._session, slots, lock=self._lock, copies=self._copies)
        self.runs.add(run)
        return run

    def end_run(self, run: StreamRun) -> None:
        """Take the slots back, once the GPU is done with them."""
        self.runs.discard(run)
        self.synchronize()
        self._idle.append(run.slots)

    def synchronize(self) -> None:
        for stream in self.busy:
            stream.synchronize()

    def nbytes(self) -> int:
        """Device memory of all slots here."""
        pairs = [*self._idle, *(run.slots for run in self.runs)]
        return sum(slot.nbytes for pair in pairs for slot in pair)

    def stop(self) -> None:
        """End all runs for good, so that the slots can be released."""
        for run in self.runs:
            run.stop()
        self.synchronize()
        for run in self.runs:
            run.wait_for_waiting()

    def _new_copies(self) -> CopyStreams:
        """Two streams, or none when one cannot be had."""
        compute = self._session.stream
        if self._lender.mapped:
            return CopyStreams(compute, compute)
        with contextlib.ExitStack() as stack:
            made = []
            for _ in range(2):
                made.append(self._session.cuda.stream())
                stack.callback(made[-1].destroy)
            self._owned.callback(stack.pop_all().close)
        self.busy += made
        return CopyStreams(*made)

    def _new_pair(self) -> List[Slot]:
        """Two slots, or none when memory ends."""
        with contextlib.ExitStack() as stack:
            pair = []
            for _ in range(2):
                slot = self._session.new_slot(mapped=self._lender.mapped, lender=self._lender)
                stack.callback(slot.free)
                pair.append(slot)
            self._owned.callback(stack.pop_all().close)
        return pair


def labels_from(output: str, slot: Slot, count: int) -> Labels:
    """New labels (count, H, W) of a run that was waited for; of logits alone, their argmax."""
    found = slot.read(output, count)
    labels: Labels = found if found.ndim == 3 else found.argmax(axis=1).astype(np.uint8)
    return labels
