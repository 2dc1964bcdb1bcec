"""Which binding is taken, and what is said where there is none."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Callable, Dict, Optional

from engines.cuda.interface import Cuda
from engines.cuda.status import DRIVER_TOO_OLD, NO_LIBRARY, StatusError
from engines.errors import ConfigError, DeviceError, InputError, UserError

if TYPE_CHECKING:
    from engines.cuda.operations import Operations

ENVIRONMENT = "RICESEG_CUDA"
BINDINGS = ("cuda-python", "pycuda", "driver")

_log = logging.getLogger(__name__)


def open_cuda(binding: Optional[str] = None, *, device: int = 0) -> Cuda:
    """GPU number `device` with its primary context retained; close it, or use it in a `with`.

    `binding` is one of BINDINGS; None takes the one that the environment variable RICESEG_CUDA
    names, else the first that works of those installed. `driver` is always installed.

    Raises ConfigError for an unknown binding, and DeviceError where the one asked for is not
    installed, and where there is no driver, no such GPU, or a driver too old for the binding.
    """
    if isinstance(device, bool) or not isinstance(device, int):
        raise InputError(
            f"device {device!r}", expected="the number of a GPU", do="count the GPUs from 0"
        )
    asked = binding if binding is not None else os.environ.get(ENVIRONMENT) or None
    if asked is not None and asked not in BINDINGS:
        source = "binding" if binding is not None else ENVIRONMENT
        raise ConfigError(
            f"{source} {asked!r}",
            expected=" or ".join(repr(name) for name in BINDINGS),
            do=f"leave it out, or set it to {BINDINGS[-1]!r}, which needs no package",
        )
    if asked is not None:
        return _opened(asked, device)
    for name in BINDINGS[:-1]:
        try:
            return _opened(name, device)
        except _NotInstalled:
            continue
        except StatusError as error:
            if error.code not in (NO_LIBRARY, DRIVER_TOO_OLD):
                raise
            level = logging.WARNING if error.code == DRIVER_TOO_OLD else logging.DEBUG
            _log.log(level, "%s", error)
    return _opened(BINDINGS[-1], device)


class _NotInstalled(DeviceError):
    """The package of a binding cannot be imported."""


def _opened(name: str, device: int) -> Cuda:
    from engines.cuda.session import OpenCuda

    try:
        operations = _OPERATIONS[name](device)
    except UserError:
        raise
    except Exception as error:  # A package built for another numpy fails with any class.
        package = f"the package of binding {name!r}"
        raise _NotInstalled(
            f"{package} cannot be imported ({type(error).__name__}: {error})",
            expected=f"{name} for this Python and this numpy",
            do=f"pip install {name}, or use binding 'driver', which needs no package",
        ) from error
    return OpenCuda(operations, device)


def _cuda_python(device: int) -> Operations:
    from engines.cuda.cuda_python_calls import CudaPythonCalls
    from engines.cuda.operations import DriverOperations

    return DriverOperations(CudaPythonCalls(), device)


def _pycuda(device: int) -> Operations:
    from engines.cuda.pycuda_operations import PycudaOperations

    return PycudaOperations(device)


def _driver(device: int) -> Operations:
    from engines.cuda.ctypes_calls import CtypesCalls
    from engines.cuda.operations import DriverOperations

    return DriverOperations(CtypesCalls(), device)


_OPERATIONS: Dict[str, Callable[[int], Operations]] = {
    "cuda-python": _cuda_python,
    "pycuda": _pycuda,
    "driver": _driver,
}
