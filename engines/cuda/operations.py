"""What a binding must be able to do, one level below the interface, and the two that can call.

Tokens are whatever the binding hands out for a buffer, stream, event or graph. All methods but
`info`, `retain` and `release_context` are called with the primary context current on the thread.
Every failure is a StatusError. Ownership, threads and misuse are engines.cuda.lifetime's business.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Tuple

from engines.cuda import calls
from engines.cuda.interface import GpuInfo
from engines.cuda.status import INVALID_DEVICE, NO_DEVICE, StatusError, error_from_status

if TYPE_CHECKING:
    from typing import Protocol

    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.uint8]
else:
    Protocol = object

DEVICE_MEMORY, HOST_MEMORY, STREAM, EVENT, GRAPH = (
    "device buffer",
    "host buffer",
    "stream",
    "event",
    "graph",
)


class Operations(Protocol):
    """One GPU by one binding."""

    binding: str
    supports_graphs: bool

    def info(self) -> GpuInfo:
        """Facts of the GPU; needs no context."""

    def retain(self) -> None:
        """Take hold of the primary context, and make it where this process has none yet."""

    def release_context(self) -> None:
        """Let go of it."""

    def push(self) -> None:
        """Make it current on this thread."""

    def pop(self) -> None:
        """Put back what was current before; StatusError where other code left its own context."""

    def memory(self) -> Tuple[int, int]:
        """(free, total) bytes."""

    def device_memory(self, nbytes: int) -> Any:
        """Token of new device memory; int(token) is its address."""

    def host_memory(self, nbytes: int, mapped: bool) -> Tuple[Any, int, int]:
        """Token, host address, device address (0 unless mapped) of new pinned memory."""

    def new_stream(self) -> Any:
        """Token of a stream that does not wait for the legacy default stream."""

    def new_event(self, timing: bool) -> Any:
        """Token of an event."""

    def stream_handle(self, stream: Any) -> int:
        """The CUstream."""

    def copy_in(self, target: Any, source: Array, stream: Any) -> None:
        """Enqueue a copy of all of `source`."""

    def copy_out(self, target: Array, source: Any, stream: Any) -> None:
        """Enqueue a copy that fills `target`."""

    def synchronize(self, kind: str, token: Any) -> None:
        """Block until a stream's work, or the work before an event, is done."""

    def record(self, event: Any, stream: Any) -> None:
        """Put the event at the stream's end."""

    def wait(self, stream: Any, event: Any) -> None:
        """Hold the stream's later work until the event."""

    def elapsed_ms(self, since: Any, until: Any) -> float:
        """Milliseconds between two events."""

    def begin_capture(self, stream: Any) -> None:
        """Record what this thread enqueues in the stream from now on."""

    def end_capture(self, stream: Any) -> Any:
        """Token of the graph that can be launched."""

    def launch(self, graph: Any, stream: Any) -> None:
        """Enqueue the graph."""

    def free(self, kind: str, token: Any) -> None:
        """Give back what a token stands for, also while this thread records a graph."""


_FREE = {
    DEVICE_MEMORY: "cuMemFree",
    HOST_MEMORY: "cuMemFreeHost",
    STREAM: "cuStreamDestroy",
    EVENT: "cuEventDestroy",
    GRAPH: "cuGraphExecDestroy",
}
_SYNCHRONIZE = {STREAM: "cuStreamSynchronize", EVENT: "cuEventSynchronize"}


class DriverOperations:
    """Operations by calls of the driver API; tokens are the driver's handles and addresses."""

    supports_graphs = True

    def __init__(self, driver: calls.DriverCalls, device: int) -> None:
        """Start the driver (no context yet). StatusError: no driver, too old, no such GPU."""
        self.binding = driver.binding
        self._call = driver.call
        self._call("cuInit", 0)
        (version,) = self._call("cuDriverGetVersion")
        self._version = version // 1000, version % 1000 // 10
        driver.check_driver(self._version)
        self._device = self._checked_device(device)
        self._context = 0

    def info(self) -> GpuInfo:
        """See Operations."""
        major, minor, integrated, can_map = (
            self._call("cuDeviceGetAttribute", attribute, self._device)[0]
            for attribute in (
                calls.COMPUTE_CAPABILITY_MAJOR,
                calls.COMPUTE_CAPABILITY_MINOR,
                calls.INTEGRATED,
                calls.CAN_MAP_HOST_MEMORY,
            )
        )
        return GpuInfo(
            name=self._call("cuDeviceGetName", self._device)[0],
            compute_capability=(major, minor),
            total_bytes=self._call("cuDeviceTotalMem", self._device)[0],
            integrated=bool(integrated),
            can_map_host=bool(can_map),
            driver_version=self._version,
        )

    def retain(self) -> None:
        """See Operations."""
        (self._context,) = self._call("cuDevicePrimaryCtxRetain", self._device)

    def release_context(self) -> None:
        """See Operations."""
        self._call("cuDevicePrimaryCtxRelease", self._device)

    def push(self) -> None:
        """See Operations."""
        self._call("cuCtxPushCurrent", self._context)

    def pop(self) -> None:
        """See Operations."""
        (popped,) = self._call("cuCtxPopCurrent")
        if popped != self._context:
            self._call("cuCtxPushCurrent", popped)
            raise foreign_context()

    def memory(self) -> Tuple[int, int]:
        """See Operations."""
        free, total = self._call("cuMemGetInfo")
        return free, total

    def device_memory(self, nbytes: int) -> Any:
        """See Operations."""
        return self._call("cuMemAlloc", nbytes)[0]

    def host_memory(self, nbytes: int, mapped: bool) -> Tuple[Any, int, int]:
        """See Operations; portable, so that other contexts know the memory as pinned too."""
        flags = calls.HOST_PORTABLE | (calls.HOST_DEVICE_MAP if mapped else 0)
        (address,) = self._call("cuMemHostAlloc", nbytes, flags)
        if not mapped:
            return address, address, 0
        try:
            (on_device,) = self._call("cuMemHostGetDevicePointer", address, 0)
        except StatusError:
            self._call("cuMemFreeHost", address)
            raise
        return address, address, on_device

    def new_stream(self) -> Any:
        """See Operations."""
        return self._call("cuStreamCreate", calls.STREAM_NON_BLOCKING)[0]

    def new_event(self, timing: bool) -> Any:
        """See Operations."""
        return self._call("cuEventCreate", 0 if timing else calls.EVENT_DISABLE_TIMING)[0]

    def stream_handle(self, stream: Any) -> int:
        """See Operations."""
        return int(stream)

    def copy_in(self, target: Any, source: Array, stream: Any) -> None:
        """See Operations."""
        self._call("cuMemcpyHtoDAsync", target, source.ctypes.data, source.size, stream)

    def copy_out(self, target: Array, source: Any, stream: Any) -> None:
        """See Operations."""
        self._call("cuMemcpyDtoHAsync", target.ctypes.data, source, target.size, stream)

    def synchronize(self, kind: str, token: Any) -> None:
        """See Operations."""
        self._call(_SYNCHRONIZE[kind], token)

    def record(self, event: Any, stream: Any) -> None:
        """See Operations."""
        self._call("cuEventRecord", event, stream)

    def wait(self, stream: Any, event: Any) -> None:
        """See Operations."""
        self._call("cuStreamWaitEvent", stream, event, 0)

    def elapsed_ms(self, since: Any, until: Any) -> float:
        """See Operations."""
        return float(self._call("cuEventElapsedTime", since, until)[0])

    def begin_capture(self, stream: Any) -> None:
        """See Operations; thread-local: calls of other threads neither end it nor are refused."""
        self._call("cuStreamBeginCapture", stream, calls.CAPTURE_THREAD_LOCAL)

    def end_capture(self, stream: Any) -> Any:
        """See Operations."""
        (graph,) = self._call("cuStreamEndCapture", stream)
        try:
            return self._call("cuGraphInstantiateWithFlags", graph, 0)[0]
        finally:
            self._call("cuGraphDestroy", graph)

    def launch(self, graph: Any, stream: Any) -> None:
        """See Operations."""
        self._call("cuGraphLaunch", graph, stream)

    def free(self, kind: str, token: Any) -> None:
        """See Operations; in relaxed mode freeing does not end another library's recording."""
        (mode,) = self._call("cuThreadExchangeStreamCaptureMode", calls.CAPTURE_RELAXED)
        try:
            self._call(_FREE[kind], token)
        finally:
            self._call("cuThreadExchangeStreamCaptureMode", mode)

    def _checked_device(self, device: int) -> int:
        (count,) = self._call("cuDeviceGetCount")
        check_device(device, count)
        return int(self._call("cuDeviceGet", device)[0])


def check_device(device: int, count: int) -> None:
    """Raise StatusError where the machine shows `count` GPUs and `device` is none of them."""
    if count == 0:
        raise error_from_status(
            NO_DEVICE, name="CUDA_ERROR_NO_DEVICE", text="no GPU", operation="cuDeviceGetCount"
        )
    if not 0 <= device < count:
        text = f"GPU {device} of {count}"
        raise error_from_status(
            INVALID_DEVICE, name="CUDA_ERROR_INVALID_DEVICE", text=text, operation="cuDeviceGet"
        )


def foreign_context() -> StatusError:
    """The error where a block ends with another context on top than the one it began with."""
    return StatusError(
        "a context that other code made current and left so",
        code=201,
        expected="each library to put back the context that it found",
        do="import pycuda.autoinit, torch and the like before, not inside, `with cuda.current()`",
    )
