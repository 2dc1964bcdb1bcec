"""Who owns what in the primary context, and when it may be released.

Every buffer, stream, event and graph is a `Resource` of one `Context`. A call holds the resources
it works on; one that is freed meanwhile, by any thread, is released when the last call has ended.
What is dropped without being freed is only noted by the garbage collector, which may run anywhere
(inside a driver call, while a graph is recorded), and is released by the next call that allocates
or frees, or at once where nobody is left to make one. At the end of the process nothing is
released: the driver does it, and a view of pinned memory stays good to the last line of Python.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from types import TracebackType
from typing import Deque, Dict, List, Optional, Set, Tuple, Type

from engines.cuda.operations import EVENT, STREAM, Operations
from engines.cuda.resource import Lock, Resource, used_after
from engines.cuda.status import StatusError
from engines.errors import DeviceError, InputError

_log = logging.getLogger(__name__)


class Context:
    """The primary context as one `Cuda` holds it; every public method may be called by any thread.

    `_lock` is held for bookkeeping only, never during a driver call, and whoever holds it waits for
    nothing. The garbage collector may run while it is held, and calls `drop`: sets are copied
    before they are walked, and nothing is released until the holder is out. `_waiting` is held
    while streams are waited for and things are freed, so that no stream is freed meanwhile and none
    begins to be recorded, which waiting for it would spoil.
    """

    def __init__(self, operations: Operations) -> None:
        """Retain the primary context. StatusError as the driver says."""
        self.operations = operations
        self.closed = False
        self._lost: Optional[StatusError] = None  # After it the driver refuses everything.
        self._process = os.getpid()
        self._lock = Lock()
        self._waiting = threading.RLock()
        self._resources: Set[Resource] = set()
        self._dropped: Deque[Resource] = deque()
        self._recording: Dict[int, List[Resource]] = {}  # thread: what its graph works on
        self._recorded: Set[Resource] = set()  # streams
        self._calls = 0
        self._released = False
        operations.retain()

    def call(self, *resources: Resource) -> Call:
        """A block with the context current that works on these; see `Call`."""
        return Call(self, resources)

    def add(self, kind: str, token: object) -> Resource:
        """The new resource, owned by this context; call it inside a `call()` block."""
        resource = Resource(kind, token)
        with self._lock:
            self._resources.add(resource)
        return resource

    def free(self, resource: Resource) -> None:
        """Release it now, or when the calls that work on it have ended; nothing the second time.

        Waits for the streams first. While its thread records a graph it is put off until after.
        """
        with self._lock:
            if resource.closed:
                return
            resource.close()
        self._dropped.append(resource)
        self._settle()

    def drop(self, resource: Resource) -> None:
        """What the garbage collector calls: does not raise, and blocks only after `close`."""
        resource.close()
        self._dropped.append(resource)
        if self.closed:  # Nobody will come by to do it.
            self.settle()

    def drop_view(self, resource: Resource) -> None:
        """What the garbage collector calls when the last view of pinned memory is gone."""
        resource.viewed = False
        if resource.closed:
            self.drop(resource)

    def settle(self) -> None:
        """Release what was dropped; a failure is logged, for nobody here caused it."""
        try:
            self._settle()
        except StatusError as error:
            _log.warning("%s", error)

    def close(self) -> None:
        """Release all that is open, then the context; StatusError with the first failure."""
        self.closed = True
        for resource in list(self._resources):
            resource.close()
            self._dropped.append(resource)
        self._settle()

    def abandon(self) -> None:
        """What the garbage collector calls when nobody holds the `Cuda` any more."""
        self.closed = True
        self.settle()

    def begin(self, resources: Tuple[Resource, ...]) -> None:
        """Hold the resources; InputError where one is closed or of another context."""
        if os.getpid() != self._process:
            raise DeviceError(
                "a call in a forked process",
                expected="calls in the process that opened CUDA",
                do="open it after the fork, or use multiprocessing's 'spawn' method",
            )
        if self._lost is not None:
            raise _again(self._lost)
        try:
            with self._lock:
                if self.closed:
                    raise used_after("close()", "Cuda")
                for resource in resources:
                    self._check(resource)
                for resource in resources:
                    resource.calls += 1
                self._calls += 1
        except InputError:
            self._end()
            raise
        self._recording.get(threading.get_ident(), []).extend(resources)

    def end(self, resources: Tuple[Resource, ...], error: Optional[BaseException]) -> None:
        """Let go of them, release those that were closed meanwhile; `error` ended the call."""
        self.note(error)
        with self._lock:
            for resource in resources:
                resource.calls -= 1
                if resource.closed and not resource.calls:
                    self._dropped.append(resource)
            self._calls -= 1
        if self._dropped and any(resource.closed for resource in resources):
            self.settle()
        self._end()

    def begin_recording(self, stream: Resource) -> None:
        """This thread records from now on; InputError where it does already."""
        thread = threading.get_ident()
        with self._waiting:
            if thread in self._recording or stream in self._recorded:
                raise InputError(
                    "a recording inside a recording",
                    expected="one recording a thread and stream at a time",
                    do="call capture() after the other has returned",
                )
            self._recording[thread] = []
            self._recorded.add(stream)

    def end_recording(self, stream: Resource) -> Tuple[Resource, ...]:
        """What the calls of this thread worked on meanwhile."""
        self._recorded.discard(stream)
        return tuple(dict.fromkeys(self._recording.pop(threading.get_ident(), [])))

    def note(self, error: Optional[BaseException]) -> None:
        """Remember an error after which the context is gone."""
        if self._lost is None and isinstance(error, StatusError) and error.context_is_lost:
            self._lost = error

    def _check(self, resource: Resource) -> None:
        if resource.closed:
            raise used_after("it was freed or destroyed", resource.kind)
        if resource not in self._resources:
            raise InputError(
                f"a {resource.kind} of another Cuda",
                expected="buffers, streams and events of one Cuda",
                do="make all of them with the same object that open_cuda returned",
            )

    def _settle(self) -> None:
        if self._lock.is_mine() or threading.get_ident() in self._recording:
            return  # Whatever comes next does it; freeing would end a recording.
        ready = []
        with self._lock:
            while self._dropped:
                resource = self._dropped.popleft()
                if not (resource.calls or resource.viewed or resource.released):
                    resource.released = True
                    ready.append(resource)
            self._calls += 1
        try:
            first = self._free(ready) if ready and os.getpid() == self._process else None
        finally:
            with self._lock:
                self._resources.difference_update(ready)
                self._calls -= 1
            self._end()
        if first is not None:
            raise first

    def _free(self, resources: List[Resource]) -> Optional[StatusError]:
        """The first failure, after trying all; None where it is known that the context is lost."""
        known = self._lost is not None
        errors: List[StatusError] = []
        try:
            self.operations.push()
        except StatusError as error:
            return None if known else error
        with self._waiting:
            if any(resource.kind != EVENT for resource in resources):
                self._wait_for_streams(errors)
            for resource in sorted(resources, key=lambda item: item.kind == STREAM):
                token, resource.token = resource.token, None
                try:
                    self.operations.free(resource.kind, token)
                except StatusError as error:
                    errors.append(error)
                del token  # pycuda's objects end here, while the context is current.
        try:
            self.operations.pop()
        except StatusError as error:
            errors.append(error)
        for failure in errors:
            self.note(failure)
        return errors[0] if errors and not known else None

    def _wait_for_streams(self, errors: List[StatusError]) -> None:
        """Until all work is done that was enqueued so far: it may use what is about to be freed."""
        for item in list(self._resources):
            if item.kind == STREAM and item.token is not None and item not in self._recorded:
                try:
                    self.operations.synchronize(STREAM, item.token)
                except StatusError as error:
                    errors.append(error)

    def _end(self) -> None:
        """Let go of the context when it is closed and nothing of it is left."""
        if not self.closed or self._calls:
            return
        if any(not (item.calls or item.viewed or item.released) for item in list(self._dropped)):
            self.settle()
            return
        with self._lock:
            if self._resources or self._calls or self._released:
                return
            self._released = True
        if os.getpid() == self._process:
            try:
                self.operations.release_context()
            except StatusError as error:
                _log.warning("%s", error)


class Call:
    """A block that holds resources and has the primary context current; then all is put back."""

    __slots__ = ("_context", "_resources")

    def __init__(self, context: Context, resources: Tuple[Resource, ...]) -> None:
        self._context = context
        self._resources = resources

    def __enter__(self) -> None:
        self._context.begin(self._resources)
        try:
            self._context.operations.push()
        except BaseException as error:
            self._context.end(self._resources, error)
            raise

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        failure: Optional[StatusError] = None
        try:
            self._context.operations.pop()
        except StatusError as refused:
            failure = refused
        self._context.end(self._resources, error or failure)
        if failure is not None and error is None:
            raise failure
        if failure is not None:
            _log.warning("%s", failure)  # The first error says more.


def _again(error: StatusError) -> StatusError:
    """A new exception that says the same: raising one twice would tie its tracebacks together."""
    return StatusError(error.got, code=error.code, expected=error.expected, do=error.do)
