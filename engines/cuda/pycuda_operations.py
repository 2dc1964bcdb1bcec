"""Operations by pycuda's objects. Never imports pycuda.autoinit, which would make its own context.

pycuda keeps a stack of contexts per thread, beside the driver's, and asks that stack which context
an object belongs to. So contexts are pushed and popped by pycuda, and every object is made, used
and dropped with ours on top: an object that dies on a thread without its context is leaked, with a
UserWarning (scoped_context_activation in pycuda's src/cpp/cuda.hpp, read for 2026.1).
"""

from __future__ import annotations

import ctypes
import importlib
import threading
from typing import TYPE_CHECKING, Any, Callable, Dict, Tuple

from engines.cuda.ctypes_calls import CtypesCalls
from engines.cuda.interface import GpuInfo
from engines.cuda.operations import (
    DEVICE_MEMORY,
    HOST_MEMORY,
    check_device,
    foreign_context,
)
from engines.cuda.status import error_from_status, missing_driver

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.uint8]

# pycuda shows a status as text only. These are the codes that engines.cuda.status knows.
_CODES = (*range(1, 5), 34, 36, 46, 100, 101, *range(200, 230), 304, 400, 600, *range(700, 722))
_MORE_CODES = (*range(800, 813), *range(900, 912), 999)
_STREAM_NON_BLOCKING = 1  # pycuda passes the number on; older releases have no name for it.

# One retained context a GPU, kept to the end of the process, for pycuda cannot let go of a primary
# context properly. `detach` leaves it on the thread's stack (it expects the pop that cuCtxDetach
# does, and cuDevicePrimaryCtxRelease does not) and does nothing on any thread but the one that
# retained it. The destructor calls cuCtxDetach, which is wrong for a primary context and prints a
# warning at exit (tried with 2026.1), hence the reference in `retain` that is never given back.
_contexts: Dict[int, Any] = {}
_contexts_lock = threading.Lock()


class PycudaOperations:
    """Operations on pycuda.driver; tokens are its objects. pycuda records no graphs."""

    binding = "pycuda"
    supports_graphs = False

    def __init__(self, device: int) -> None:
        """Start the driver (no context yet). ImportError: not installed; StatusError: no GPU."""
        self._driver = pycuda_driver()
        self._calls = CtypesCalls()  # for the texts of errors and the current context
        self._number = device
        self._context: Any = None
        self._try("cuInit", self._driver.init)
        check_device(device, self._try("cuDeviceGetCount", self._driver.Device.count))
        self._device = self._try("cuDeviceGet", self._driver.Device, device)

    def info(self) -> GpuInfo:
        """See Operations."""
        attribute = self._driver.device_attribute
        version = self._try("cuDriverGetVersion", self._driver.get_driver_version)
        major, minor = self._try("cuDeviceGetAttribute", self._device.compute_capability)
        integrated, can_map = (
            bool(self._try("cuDeviceGetAttribute", self._device.get_attribute, which))
            for which in (attribute.INTEGRATED, attribute.CAN_MAP_HOST_MEMORY)
        )
        return GpuInfo(
            name=self._try("cuDeviceGetName", self._device.name),
            compute_capability=(major, minor),
            total_bytes=self._try("cuDeviceTotalMem", self._device.total_memory),
            integrated=integrated,
            can_map_host=can_map,
            driver_version=(version // 1000, version % 1000 // 10),
        )

    def retain(self) -> None:
        """See Operations."""
        with _contexts_lock:
            if self._number not in _contexts:
                retain = self._device.retain_primary_context
                context = self._try("cuDevicePrimaryCtxRetain", retain)
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(context))
                _contexts[self._number] = context
            self._context = _contexts[self._number]

    def release_context(self) -> None:
        """Nothing: see `_contexts`."""

    def push(self) -> None:
        """See Operations."""
        self._entered().append(self._calls.call("cuCtxGetCurrent")[0])
        try:
            self._try("cuCtxPushCurrent", self._context.push)
        except BaseException:
            self._entered().pop()
            raise

    def pop(self) -> None:
        """See Operations.

        pycuda pushes what it believes was current before; where torch or the CUDA runtime had set
        another context without telling it, that one is put back.
        """
        (left,) = self._calls.call("cuCtxGetCurrent")
        before = self._entered().pop()
        if left != self._context.handle:
            raise foreign_context()
        self._try("cuCtxPopCurrent", self._driver.Context.pop)
        if self._calls.call("cuCtxGetCurrent")[0] != before:
            self._calls.call("cuCtxSetCurrent", before)

    def memory(self) -> Tuple[int, int]:
        """See Operations."""
        free, total = self._try("cuMemGetInfo", self._driver.mem_get_info)
        return free, total

    def device_memory(self, nbytes: int) -> Any:
        """See Operations."""
        return self._try("cuMemAlloc", self._driver.mem_alloc, nbytes)

    def host_memory(self, nbytes: int, mapped: bool) -> Tuple[Any, int, int]:
        """See Operations; the token owns the memory, pycuda's own array of it is dropped."""
        flags = self._driver.host_alloc_flags
        wanted = flags.PORTABLE | (flags.DEVICEMAP if mapped else 0)
        array = self._try(
            "cuMemHostAlloc", self._driver.pagelocked_empty, nbytes, "u1", "C", wanted
        )
        token = array.base
        on_device = (
            self._try("cuMemHostGetDevicePointer", token.get_device_pointer) if mapped else 0
        )
        return token, int(array.ctypes.data), int(on_device)

    def new_stream(self) -> Any:
        """See Operations."""
        return self._try("cuStreamCreate", self._driver.Stream, _STREAM_NON_BLOCKING)

    def new_event(self, timing: bool) -> Any:
        """See Operations."""
        flags = self._driver.event_flags
        wanted = flags.DEFAULT if timing else flags.DISABLE_TIMING
        return self._try("cuEventCreate", self._driver.Event, int(wanted))

    def stream_handle(self, stream: Any) -> int:
        """See Operations."""
        return int(stream.handle)

    def copy_in(self, target: Any, source: Array, stream: Any) -> None:
        """See Operations."""
        copy = self._driver.memcpy_htod_async
        self._try("cuMemcpyHtoDAsync", copy, int(target), source, stream)

    def copy_out(self, target: Array, source: Any, stream: Any) -> None:
        """See Operations."""
        copy = self._driver.memcpy_dtoh_async
        self._try("cuMemcpyDtoHAsync", copy, target, int(source), stream)

    def synchronize(self, kind: str, token: Any) -> None:
        """See Operations."""
        self._try(f"synchronising a {kind}", token.synchronize)

    def record(self, event: Any, stream: Any) -> None:
        """See Operations."""
        self._try("cuEventRecord", event.record, stream)

    def wait(self, stream: Any, event: Any) -> None:
        """See Operations."""
        self._try("cuStreamWaitEvent", stream.wait_for_event, event)

    def elapsed_ms(self, since: Any, until: Any) -> float:
        """See Operations."""
        return float(self._try("cuEventElapsedTime", until.time_since, since))

    def begin_capture(self, stream: Any) -> None:
        """Never called: `supports_graphs` is False."""
        raise NotImplementedError

    end_capture = begin_capture

    def launch(self, graph: Any, stream: Any) -> None:
        """Never called: `supports_graphs` is False."""
        raise NotImplementedError

    def free(self, kind: str, token: Any) -> None:
        """See Operations; streams and events end with their last reference, the caller's."""
        if kind in (DEVICE_MEMORY, HOST_MEMORY):
            self._try(f"freeing a {kind}", token.free)

    def _entered(self) -> Any:
        """What was current on this thread before each push of ours that is not popped yet."""
        if not hasattr(_before, "stack"):
            _before.stack = []
        return _before.stack

    def _try(self, operation: str, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except self._driver.Error as error:
            text = str(error)
            code, name, description = self._status(text)
            raise error_from_status(
                code, name=name, text=description or text, operation=operation
            ) from error

    def _status(self, text: str) -> Tuple[int, str, str]:
        """Code, name and description in "cuMemAlloc failed: out of memory"; 0 where unknown."""
        shown = text.partition(" failed: ")[2]
        for code in (*_CODES, *_MORE_CODES):
            name, description = self._calls.text_of(code)
            if description and (shown == description or shown.startswith(f"{description} - ")):
                return code, name, shown
        return 0, "an error", text


_before = threading.local()


def pycuda_driver() -> Any:
    """pycuda.driver. ImportError where pycuda is missing or broken, StatusError without driver."""
    try:
        return importlib.import_module("pycuda.driver")
    except ImportError as error:
        if "libcuda" in str(error):
            raise missing_driver(str(error)) from error
        raise
