"""The part of pycuda.driver that the project uses, with its rules, on whatever libcuda.so.1 is.

Written after the behaviour of pycuda 2026.1 (src/cpp/cuda.hpp): a stack of contexts per thread, of
which the driver only sees the top; objects belong to the context on top when they are made, and can
only be cleaned up with it on top, or on the thread that made it.
"""

from __future__ import annotations

import ctypes
import threading
import warnings

import numpy as np

_cuda = ctypes.CDLL("libcuda.so.1")
_stacks = threading.local()


class Error(Exception):
    """Root of pycuda's errors."""


class MemoryError(Error):
    """CUDA_ERROR_OUT_OF_MEMORY."""


class LogicError(Error):
    """Most statuses."""


class RuntimeError(Error):
    """CUDA_ERROR_NO_DEVICE, CUDA_ERROR_NOT_READY."""


def _check(routine, *arguments):
    code = getattr(_cuda, routine)(*arguments)
    if code:
        text = ctypes.c_char_p()
        _cuda.cuGetErrorString(code, ctypes.byref(text))
        kind = {2: MemoryError, 100: RuntimeError, 600: RuntimeError}.get(code, LogicError)
        # The real one dies of a status without a text.
        raise kind(f"{routine} failed: {(text.value or b'?').decode()}")


def _made(routine, *arguments, kind=ctypes.c_void_p):
    value = kind()
    _check(routine, ctypes.byref(value), *arguments)
    return value.value


def _stack():
    if not hasattr(_stacks, "contexts"):
        _stacks.contexts = []
    return _stacks.contexts


def init(flags=0):
    _check("cuInit", flags)


def get_driver_version():
    return _made("cuDriverGetVersion", kind=ctypes.c_int)


class device_attribute:
    INTEGRATED = 18
    CAN_MAP_HOST_MEMORY = 19


class host_alloc_flags:
    PORTABLE = 1
    DEVICEMAP = 2


class event_flags:
    DEFAULT = 0
    DISABLE_TIMING = 2


class Device:
    def __init__(self, number):
        self._device = _made("cuDeviceGet", number, kind=ctypes.c_int)

    @staticmethod
    def count():
        return _made("cuDeviceGetCount", kind=ctypes.c_int)

    def name(self):
        text = ctypes.create_string_buffer(1024)
        _check("cuDeviceGetName", text, 1024, self._device)
        return text.value.decode()

    def compute_capability(self):
        return self.get_attribute(75), self.get_attribute(76)

    def total_memory(self):
        return _made("cuDeviceTotalMem_v2", self._device, kind=ctypes.c_size_t)

    def get_attribute(self, which):
        return _made("cuDeviceGetAttribute", which, self._device, kind=ctypes.c_int)

    def make_context(self, flags=0):
        _leave_top()
        context = Context(_made("cuCtxCreate_v2", flags, self._device))
        _stack().append(context)
        return context

    def retain_primary_context(self):
        return Context(_made("cuDevicePrimaryCtxRetain", self._device), primary=True)


class Context:
    def __init__(self, handle, primary=False):
        self.handle = handle
        self.primary = primary
        self.thread = threading.get_ident()

    def push(self):
        _leave_top()
        _check("cuCtxPushCurrent_v2", ctypes.c_void_p(self.handle))
        _stack().append(self)

    @staticmethod
    def pop():
        _leave_top()
        if not _stack():
            raise LogicError("context::pop failed: invalid device context - cannot pop")
        _stack().pop()
        if _stack():
            _check("cuCtxPushCurrent_v2", ctypes.c_void_p(_stack()[-1].handle))

    def __del__(self):
        if self.primary:  # The real destructor calls cuCtxDetach on it, and prints this.
            warnings.warn("a clean-up operation failed", stacklevel=1)
        else:
            _check("cuCtxDestroy_v2", ctypes.c_void_p(self.handle))


def _leave_top():
    if _stack():
        _check("cuCtxPopCurrent_v2", None)


class _Dependent:
    """Something in the context that is on top of pycuda's stack now."""

    def __init__(self):
        if not _stack():
            raise LogicError("explicit_context_dependent failed: invalid device context")
        self._context = _stack()[-1]

    def _clean_up(self, routine, value):
        current = _stack()[-1] if _stack() else None
        if current is self._context:
            _check(routine, value)
        elif threading.get_ident() == self._context.thread:
            self._context.push()
            _check(routine, value)
            Context.pop()
        else:
            warnings.warn(f"{routine} in out-of-thread context", UserWarning, stacklevel=1)


class Stream(_Dependent):
    def __init__(self, flags=0):
        super().__init__()
        self.handle = _made("cuStreamCreate", flags)

    def synchronize(self):
        _check("cuStreamSynchronize", ctypes.c_void_p(self.handle))

    def wait_for_event(self, event):
        _check("cuStreamWaitEvent", ctypes.c_void_p(self.handle), ctypes.c_void_p(event.handle), 0)

    def __del__(self):
        if "handle" in self.__dict__:
            self._clean_up("cuStreamDestroy_v2", ctypes.c_void_p(self.handle))


class Event(_Dependent):
    def __init__(self, flags=0):
        super().__init__()
        self.handle = _made("cuEventCreate", flags)

    def record(self, stream=None):
        _check("cuEventRecord", ctypes.c_void_p(self.handle), ctypes.c_void_p(stream.handle))
        return self

    def synchronize(self):
        _check("cuEventSynchronize", ctypes.c_void_p(self.handle))
        return self

    def time_since(self, start):
        handles = ctypes.c_void_p(start.handle), ctypes.c_void_p(self.handle)
        return _made("cuEventElapsedTime", *handles, kind=ctypes.c_float)

    def __del__(self):
        if "handle" in self.__dict__:
            self._clean_up("cuEventDestroy_v2", ctypes.c_void_p(self.handle))


class DeviceAllocation(_Dependent):
    def __init__(self, nbytes):
        super().__init__()
        self._address = _made("cuMemAlloc_v2", ctypes.c_size_t(nbytes), kind=ctypes.c_uint64)

    def __int__(self):
        return self._address

    def free(self):
        if self._address is None:
            raise LogicError("device_allocation::free failed: invalid resource handle")
        address, self._address = self._address, None
        self._clean_up("cuMemFree_v2", ctypes.c_uint64(address))

    def __del__(self):
        if self.__dict__.get("_address") is not None:
            self.free()


class PagelockedHostAllocation(_Dependent):
    def __init__(self, nbytes, flags):
        super().__init__()
        self._address = _made("cuMemHostAlloc", ctypes.c_size_t(nbytes), flags)
        self.__array_interface__ = {
            "shape": (nbytes,),
            "typestr": "|u1",
            "data": (self._address, False),
            "version": 3,
        }

    def get_device_pointer(self):
        host = ctypes.c_void_p(self._address)
        return _made("cuMemHostGetDevicePointer_v2", host, 0, kind=ctypes.c_uint64)

    def free(self):
        if self._address is None:
            raise LogicError("pagelocked_host_allocation::free failed: invalid resource handle")
        address, self._address = self._address, None
        self._clean_up("cuMemFreeHost", ctypes.c_void_p(address))

    def __del__(self):
        if self.__dict__.get("_address") is not None:
            self.free()


def mem_alloc(nbytes):
    return DeviceAllocation(nbytes)


def pagelocked_empty(shape, dtype, order="C", mem_flags=0):
    assert np.dtype(dtype) == np.uint8
    return np.asarray(PagelockedHostAllocation(shape, mem_flags))


def mem_get_info():
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    _check("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
    return free.value, total.value


def _copy(routine, target, source, nbytes, stream):
    size = ctypes.c_size_t(nbytes)
    addresses = ctypes.c_void_p(target), ctypes.c_void_p(source)
    _check(routine, *addresses, size, ctypes.c_void_p(stream.handle))


def memcpy_htod_async(dest, src, stream=None):
    assert isinstance(dest, int), "the real one takes an int or an allocation"
    _copy("cuMemcpyHtoDAsync_v2", dest, src.ctypes.data, src.nbytes, stream)


def memcpy_dtoh_async(dest, src, stream=None):
    assert dest.flags.writeable
    _copy("cuMemcpyDtoHAsync_v2", dest.ctypes.data, src, dest.nbytes, stream)
