"""What a `Cuda` hands out, the same for every binding; each object keeps its `OpenCuda` alive."""

from __future__ import annotations

import ctypes
import weakref
from typing import TYPE_CHECKING, Any, Tuple

import numpy as np
import numpy.typing as npt

from engines.cuda import interface
from engines.cuda.operations import DEVICE_MEMORY, EVENT, GRAPH, HOST_MEMORY, STREAM
from engines.cuda.resource import Resource, used_after
from engines.errors import InputError

if TYPE_CHECKING:
    from engines.cuda.session import OpenCuda


class _Owned:
    """Something in the context; keeps its `OpenCuda` alive, and drops the resource with itself."""

    def __init__(self, cuda: OpenCuda, kind: str, token: object) -> None:
        self.cuda = cuda
        self.context = cuda.context
        self.resource = self.context.add(kind, token)
        weakref.finalize(self, self.context.drop, self.resource).atexit = False

    def checked(self) -> Any:
        """The token. InputError where it is freed or its Cuda closed."""
        if self.resource.closed or self.context.closed:
            raise used_after("it was freed or its Cuda closed", self.resource.kind)
        return self.resource.token


class DeviceBuffer(_Owned):
    """See interface.DeviceBuffer."""

    def __init__(self, cuda: OpenCuda, token: object, nbytes: int) -> None:
        super().__init__(cuda, DEVICE_MEMORY, token)
        self.nbytes = nbytes

    @property
    def address(self) -> int:
        """See interface.DeviceBuffer."""
        return int(self.checked())

    def free(self) -> None:
        """See interface.DeviceBuffer."""
        self.context.free(self.resource)


class HostBuffer(_Owned):
    """See interface.HostBuffer."""

    def __init__(self, cuda: OpenCuda, memory: Tuple[object, int, int], nbytes: int) -> None:
        token, address, self._on_device = memory
        super().__init__(cuda, HOST_MEMORY, token)
        self.nbytes = nbytes
        # Every view of the array refers to `raw`, so the memory is given back after the last one.
        raw = (ctypes.c_uint8 * nbytes).from_address(address)
        self.resource.viewed = True
        weakref.finalize(raw, self.context.drop_view, self.resource).atexit = False
        self.resource.array = np.frombuffer(memoryview(raw), np.uint8)

    @property
    def array(self) -> npt.NDArray[np.uint8]:
        """See interface.HostBuffer."""
        self.checked()
        array = self.resource.array
        if array is None:  # Another thread freed it since the line above.
            raise used_after("it was freed", HOST_MEMORY)
        return array

    @property
    def address(self) -> int:
        """See interface.HostBuffer."""
        self.checked()
        return self._on_device

    def free(self) -> None:
        """See interface.HostBuffer."""
        self.context.free(self.resource)


class Stream(_Owned):
    """See interface.Stream."""

    def __init__(self, cuda: OpenCuda, token: object) -> None:
        super().__init__(cuda, STREAM, token)

    @property
    def handle(self) -> int:
        """See interface.Stream."""
        return self.context.operations.stream_handle(self.checked())

    def synchronize(self) -> None:
        """See interface.Stream."""
        with self.context.call(self.resource):
            self.context.operations.synchronize(STREAM, self.resource.token)

    def wait(self, event: interface.Event) -> None:
        """See interface.Stream."""
        mark = own(event, Event).resource
        with self.context.call(self.resource, mark):
            self.context.operations.wait(self.resource.token, mark.token)

    def destroy(self) -> None:
        """See interface.Stream."""
        self.context.free(self.resource)


class Event(_Owned):
    """See interface.Event."""

    def __init__(self, cuda: OpenCuda, token: object, timing: bool) -> None:
        super().__init__(cuda, EVENT, token)
        self._timing = timing
        self._recorded = False

    def record(self, stream: interface.Stream) -> None:
        """See interface.Event."""
        queue = own(stream, Stream).resource
        with self.context.call(self.resource, queue):
            self.context.operations.record(self.resource.token, queue.token)
        self._recorded = True

    def synchronize(self) -> None:
        """See interface.Event."""
        with self.context.call(self.resource):
            self.context.operations.synchronize(EVENT, self.resource.token)

    def elapsed_ms(self, since: interface.Event) -> float:
        """See interface.Event."""
        first = own(since, Event)
        for event in (first, self):
            if not (event._timing and event._recorded):
                raise InputError(
                    "an event made with timing=False"
                    if not event._timing
                    else "an event that was never recorded",
                    expected="two events with timing, both recorded",
                    do="make them with cuda.event() and call record(stream)",
                )
        with self.context.call(first.resource, self.resource):
            return self.context.operations.elapsed_ms(first.resource.token, self.resource.token)

    def destroy(self) -> None:
        """See interface.Event."""
        self.context.free(self.resource)


class Graph(_Owned):
    """See interface.Graph."""

    def __init__(self, cuda: OpenCuda, token: object, works_on: Tuple[Resource, ...]) -> None:
        super().__init__(cuda, GRAPH, token)
        # Streams and events of the recording are not used by a launch.
        self._memory = tuple(item for item in works_on if item.kind in (DEVICE_MEMORY, HOST_MEMORY))

    def launch(self, stream: interface.Stream) -> None:
        """See interface.Graph."""
        queue = own(stream, Stream).resource
        with self.context.call(self.resource, queue, *self._memory):
            self.context.operations.launch(self.resource.token, queue.token)

    def destroy(self) -> None:
        """See interface.Graph."""
        self.context.free(self.resource)


def own(thing: Any, kind: Any) -> Any:
    """The thing, which must be one of this file's; InputError for another implementation's."""
    if not isinstance(thing, kind):
        raise InputError(
            f"a {type(thing).__name__}",
            expected=f"a {kind.__name__} that this Cuda made",
            do="make it with the object that open_cuda returned",
        )
    return thing
