"""The driver API by ctypes, straight from the driver's own library: nothing to install."""

from __future__ import annotations

import ctypes
from typing import Any, Dict, List, Tuple

from engines.cuda.status import (
    DRIVER_TOO_OLD,
    StatusError,
    driver_too_old,
    error_from_status,
    missing_driver,
)

# A Jetson has it in /usr/lib/aarch64-linux-gnu/tegra or /nvidia, which JetPack names in
# ld.so.conf.d, so the name is enough; installed by hand it may lack the link that ends in .so.1
# (https://github.com/NVIDIA/nvidia-container-toolkit/issues/231).
LIBRARY_NAMES = ("libcuda.so.1", "libcuda.so")

_HANDLE = ctypes.c_void_p  # CUcontext, CUstream, CUevent, CUgraph, CUgraphExec, void *
_ADDRESS = ctypes.c_uint64  # CUdeviceptr is unsigned long long on every 64-bit platform
_SIZE = ctypes.c_size_t
_INT = ctypes.c_int
_UINT = ctypes.c_uint
_NAME_BYTES = 256

# name: (symbol, types of the outputs, types of the inputs). In C the outputs come first, as
# pointers; the three functions where they do not are methods below. Where cuda.h maps a name to
# name_v2, the plain symbol is another, older function. cuEventElapsedTime has a _v2 only from 12.8
# on and cuGraphInstantiateWithFlags is there from 11.4 (JetPack 5) on, unchanged.
_FUNCTIONS: Dict[str, Tuple[str, Tuple[Any, ...], Tuple[Any, ...]]] = {
    "cuInit": ("cuInit", (), (_UINT,)),
    "cuDriverGetVersion": ("cuDriverGetVersion", (_INT,), ()),
    "cuDeviceGetCount": ("cuDeviceGetCount", (_INT,), ()),
    "cuDeviceGet": ("cuDeviceGet", (_INT,), (_INT,)),
    "cuDeviceTotalMem": ("cuDeviceTotalMem_v2", (_SIZE,), (_INT,)),
    "cuDeviceGetAttribute": ("cuDeviceGetAttribute", (_INT,), (_INT, _INT)),
    "cuDevicePrimaryCtxRetain": ("cuDevicePrimaryCtxRetain", (_HANDLE,), (_INT,)),
    "cuDevicePrimaryCtxRelease": ("cuDevicePrimaryCtxRelease_v2", (), (_INT,)),
    "cuCtxPushCurrent": ("cuCtxPushCurrent_v2", (), (_HANDLE,)),
    "cuCtxPopCurrent": ("cuCtxPopCurrent_v2", (_HANDLE,), ()),
    "cuCtxGetCurrent": ("cuCtxGetCurrent", (_HANDLE,), ()),
    "cuCtxSetCurrent": ("cuCtxSetCurrent", (), (_HANDLE,)),
    "cuMemGetInfo": ("cuMemGetInfo_v2", (_SIZE, _SIZE), ()),
    "cuMemAlloc": ("cuMemAlloc_v2", (_ADDRESS,), (_SIZE,)),
    "cuMemFree": ("cuMemFree_v2", (), (_ADDRESS,)),
    "cuMemHostAlloc": ("cuMemHostAlloc", (_HANDLE,), (_SIZE, _UINT)),
    "cuMemFreeHost": ("cuMemFreeHost", (), (_HANDLE,)),
    "cuMemHostGetDevicePointer": ("cuMemHostGetDevicePointer_v2", (_ADDRESS,), (_HANDLE, _UINT)),
    "cuMemcpyHtoDAsync": ("cuMemcpyHtoDAsync_v2", (), (_ADDRESS, _HANDLE, _SIZE, _HANDLE)),
    "cuMemcpyDtoHAsync": ("cuMemcpyDtoHAsync_v2", (), (_HANDLE, _ADDRESS, _SIZE, _HANDLE)),
    "cuStreamCreate": ("cuStreamCreate", (_HANDLE,), (_UINT,)),
    "cuStreamDestroy": ("cuStreamDestroy_v2", (), (_HANDLE,)),
    "cuStreamSynchronize": ("cuStreamSynchronize", (), (_HANDLE,)),
    "cuStreamWaitEvent": ("cuStreamWaitEvent", (), (_HANDLE, _HANDLE, _UINT)),
    "cuStreamBeginCapture": ("cuStreamBeginCapture_v2", (), (_HANDLE, _INT)),
    "cuEventCreate": ("cuEventCreate", (_HANDLE,), (_UINT,)),
    "cuEventRecord": ("cuEventRecord", (), (_HANDLE, _HANDLE)),
    "cuEventSynchronize": ("cuEventSynchronize", (), (_HANDLE,)),
    "cuEventElapsedTime": ("cuEventElapsedTime", (ctypes.c_float,), (_HANDLE, _HANDLE)),
    "cuEventDestroy": ("cuEventDestroy_v2", (), (_HANDLE,)),
    "cuGraphInstantiateWithFlags": (
        "cuGraphInstantiateWithFlags",
        (_HANDLE,),
        (_HANDLE, ctypes.c_ulonglong),
    ),
    "cuGraphLaunch": ("cuGraphLaunch", (), (_HANDLE, _HANDLE)),
    "cuGraphDestroy": ("cuGraphDestroy", (), (_HANDLE,)),
    "cuGraphExecDestroy": ("cuGraphExecDestroy", (), (_HANDLE,)),
}


class CtypesCalls:
    """DriverCalls on libcuda.so.1; ctypes releases the interpreter lock during each call."""

    binding = "driver"

    def __init__(self) -> None:
        """Load the library. StatusError where there is none, or one without a function we need."""
        self._library = _library()
        try:
            self._functions = {name: self._function(*entry) for name, entry in _FUNCTIONS.items()}
            self._name = self._function("cuDeviceGetName", (), (ctypes.c_char_p, _INT, _INT))
            self._end_capture = self._function(
                "cuStreamEndCapture", (), (_HANDLE, ctypes.POINTER(_HANDLE))
            )
            self._exchange_mode = self._function(
                "cuThreadExchangeStreamCaptureMode", (), (ctypes.POINTER(_INT),)
            )
            text = (_INT, ctypes.POINTER(ctypes.c_char_p))
            self._error_name = self._function("cuGetErrorName", (), text)
            self._error_string = self._function("cuGetErrorString", (), text)
        except AttributeError as error:  # "undefined symbol: cuGraphInstantiateWithFlags"
            raise StatusError(
                f"a driver without a function that is needed ({error})",
                code=DRIVER_TOO_OLD,
                expected="a driver for CUDA 11.4 (JetPack 5) or newer",
                do="install a newer NVIDIA driver, or on a Jetson JetPack 5 or newer",
            ) from error

    def call(self, name: str, *arguments: Any) -> Tuple[Any, ...]:
        """See DriverCalls."""
        if name == "cuDeviceGetName":
            buffer = ctypes.create_string_buffer(_NAME_BYTES)
            self._check(name, self._name(buffer, _NAME_BYTES, *arguments))
            return (buffer.value.decode("utf-8", "replace"),)
        if name == "cuStreamEndCapture":
            graph = _HANDLE()
            self._check(name, self._end_capture(*arguments, ctypes.byref(graph)))
            return (graph.value or 0,)
        if name == "cuThreadExchangeStreamCaptureMode":
            mode = _INT(*arguments)
            self._check(name, self._exchange_mode(ctypes.byref(mode)))
            return (mode.value,)
        outputs: List[Any] = [kind() for kind in _FUNCTIONS[name][1]]
        references = [ctypes.byref(output) for output in outputs]
        self._check(name, self._functions[name](*references, *arguments))
        return tuple(output.value or 0 for output in outputs)  # ctypes gives None for a null handle

    def check_driver(self, version: Tuple[int, int]) -> None:
        """See DriverCalls; 11.4 brought cuGraphInstantiateWithFlags."""
        if version < (11, 4):
            raise driver_too_old("a runtime", wanted="11.4", driver=version)

    def text_of(self, code: int) -> Tuple[str, str]:
        """Name and description of a status; the driver knows its own, others get the number."""
        found = []
        for function in (self._error_name, self._error_string):
            text = ctypes.c_char_p()
            known = function(code, ctypes.byref(text)) == 0 and text.value
            found.append(text.value.decode("utf-8", "replace") if known and text.value else "")
        return found[0] or "an unknown CUDA error", found[1]

    def _check(self, name: str, code: int) -> None:
        if code != 0:
            known_as, text = self.text_of(code)
            raise error_from_status(code, name=known_as, text=text, operation=name)

    def _function(self, symbol: str, outputs: Tuple[Any, ...], inputs: Tuple[Any, ...]) -> Any:
        function = getattr(self._library, symbol)
        function.restype = _INT
        function.argtypes = [*(ctypes.POINTER(kind) for kind in outputs), *inputs]
        return function


def _library() -> ctypes.CDLL:
    reasons = []
    for name in LIBRARY_NAMES:
        try:
            return ctypes.CDLL(name)
        except OSError as error:
            reasons.append(str(error))
    raise missing_driver("; ".join(dict.fromkeys(reasons)))
