"""The few things the runtime asks of CUDA, the same through each binding.

Everything here lives in the PRIMARY context of one GPU, the one that TensorRT, torch and the CUDA
runtime use as well. Each method makes it current on the calling thread and puts back what was
current before, so any thread may call, and a context that another library made current stays so.

Copies and graph launches only enqueue; what they write may be read after the stream or an event
recorded behind them was synchronised. `free`, `destroy` and `close` may be called twice. Anything
else on an object that was freed, or whose `Cuda` was closed, raises InputError; a call that is
running in another thread at that moment still ends normally, and the object is released after it.
Anything the driver refuses raises DeviceError.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable, ContextManager, Tuple

if TYPE_CHECKING:
    from typing import Protocol

    import numpy as np
    import numpy.typing as npt
else:
    Protocol = object

__all__ = ["Cuda", "DeviceBuffer", "Event", "GpuInfo", "Graph", "HostBuffer", "Stream"]


@dataclass(frozen=True)
class GpuInfo:
    """What is known about the GPU without running anything on it."""

    name: str  # as the driver spells it: "Orin", "NVIDIA GeForce RTX 4090"
    compute_capability: Tuple[int, int]  # (8, 7) for Orin
    total_bytes: int  # device memory; on a board with shared DRAM most of that DRAM
    integrated: bool  # the GPU shares the host's DRAM, as on every Jetson
    can_map_host: bool  # `host_buffer(mapped=True)` works
    driver_version: Tuple[int, int]  # newest CUDA version that the driver supports, e.g. (12, 6)


class DeviceBuffer(Protocol):
    """Device memory; owned by whoever asked for it."""

    @property
    def address(self) -> int:
        """Device address; valid until `free`. InputError after it."""

    @property
    def nbytes(self) -> int:
        """Size in bytes; known after `free` as well."""

    def free(self) -> None:
        """Wait for the streams of this `Cuda`, then give the memory back."""


class HostBuffer(Protocol):
    """Pinned host memory, which copies run from and to without a detour; not set to zero."""

    @property
    def array(self) -> npt.NDArray[np.uint8]:
        """1-D view of all bytes, writable; the same object each time. InputError after `free`.

        A view that the caller keeps stays readable and writable after `free` and `close`: the
        memory (and the context it belongs to) is given back when the last view is gone.
        """

    @property
    def address(self) -> int:
        """Device address of the same bytes where the buffer is mapped, else 0."""

    @property
    def nbytes(self) -> int:
        """Size in bytes; known after `free` as well."""

    def free(self) -> None:
        """Wait for the streams of this `Cuda`, then give the memory back (see `array`)."""


class Stream(Protocol):
    """A queue of work on the GPU, in order; independent of the legacy default stream."""

    @property
    def handle(self) -> int:
        """The CUstream (or cudaStream_t, which is the same) as a number, for TensorRT."""

    def synchronize(self) -> None:
        """Block until all work enqueued so far is done; DeviceError when some of it failed."""

    def wait(self, event: Event) -> None:
        """Work enqueued from now on runs after the event's last record; returns at once."""

    def destroy(self) -> None:
        """Wait for the work that is enqueued, then release the stream."""


class Event(Protocol):
    """A mark in a stream."""

    def record(self, stream: Stream) -> None:
        """Move the mark to the end of what is enqueued in the stream now."""

    def synchronize(self) -> None:
        """Block until the GPU has passed the mark; returns at once where none was recorded."""

    def elapsed_ms(self, since: Event) -> float:
        """Milliseconds on the GPU from the mark `since` to this one; both must have been passed.

        InputError where one was made with timing=False or never recorded, DeviceError where one
        was not passed yet.
        """

    def destroy(self) -> None:
        """Release the event."""


class Graph(Protocol):
    """Recorded work that is launched as a whole; it reads and writes the recorded addresses."""

    def launch(self, stream: Stream) -> None:
        """Enqueue; InputError when a buffer that was copied while recording has been freed."""

    def destroy(self) -> None:
        """Wait for the streams of this `Cuda`, then release the graph."""


class Cuda(Protocol):
    """One GPU through one binding; made by `open_cuda`, a context manager, usable by any thread."""

    @property
    def binding(self) -> str:
        """`cuda-python`, `pycuda` or `driver`."""

    @property
    def device(self) -> int:
        """Number of the GPU, as CUDA_VISIBLE_DEVICES leaves it."""

    @property
    def info(self) -> GpuInfo:
        """The GPU's facts; known after `close` as well."""

    @property
    def supports_graphs(self) -> bool:
        """`capture` can be tried; False with pycuda, which has no graphs."""

    def current(self) -> ContextManager[None]:
        """Make the primary context current on this thread until the block ends; may nest."""

    def free_bytes(self) -> Tuple[int, int]:
        """(free, total) bytes of device memory now.

        The system's estimate: on shared DRAM (`info.integrated`) it leaves out swap, and other
        programs change it meanwhile (cuMemGetInfo's documentation).
        """

    def device_buffer(self, nbytes: int) -> DeviceBuffer:
        """New device memory, contents undefined; InputError unless `nbytes` is 1 or more."""

    def host_buffer(self, nbytes: int, *, mapped: bool = False) -> HostBuffer:
        """New pinned host memory; `mapped`: the GPU reads and writes it in place.

        DeviceError for `mapped` where `info.can_map_host` is False.
        """

    def stream(self) -> Stream:
        """New stream."""

    def event(self, *, timing: bool = True) -> Event:
        """New event; without `timing` it is cheaper and only orders."""

    def copy_in(
        self, target: DeviceBuffer, source: HostBuffer, nbytes: int, stream: Stream
    ) -> None:
        """Enqueue a copy of the first `nbytes` to the GPU; `source` must not change until done."""

    def copy_out(
        self, target: HostBuffer, source: DeviceBuffer, nbytes: int, stream: Stream
    ) -> None:
        """Enqueue a copy of the first `nbytes` from the GPU."""

    def capture(self, stream: Stream, work: Callable[[], None]) -> Graph:
        """Record what `work` enqueues in `stream` (nothing of it runs) as a graph.

        DeviceError where the work cannot be recorded or the binding has no graphs; an exception
        of `work` passes through. The stream can be used as before in every case. While `work` runs
        its thread must not synchronise, allocate or free.
        """

    def close(self) -> None:
        """Wait for the streams, release all that is still open, then the primary context."""

    def __enter__(self) -> Cuda:
        """This object."""

    def __exit__(self, *exception: Any) -> None:
        """`close()`."""
