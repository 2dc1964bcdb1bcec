"""The driver API by NVIDIA's own package: cuda-bindings, or cuda-python as it was before 12.6."""

from __future__ import annotations

import importlib
from typing import Any, Tuple

from engines.cuda.status import (
    DRIVER_TOO_OLD,
    StatusError,
    driver_too_old,
    error_from_status,
    missing_driver,
)

_MODULES = ("cuda.bindings.driver", "cuda.cuda")
_NAME_BYTES = 256
# Inputs that must be members of an enumeration: function -> (index of the input, enumeration).
_ENUMERATIONS = {
    "cuDeviceGetAttribute": (0, "CUdevice_attribute"),
    "cuStreamBeginCapture": (1, "CUstreamCaptureMode"),
    "cuThreadExchangeStreamCaptureMode": (0, "CUstreamCaptureMode"),
}


class CudaPythonCalls:
    """DriverCalls on the package's driver module, whose functions return (status, *values)."""

    binding = "cuda-python"

    def __init__(self) -> None:
        """Import the package. ImportError where it is not installed; nothing of CUDA runs."""
        self._driver = _driver_module()

    def call(self, name: str, *arguments: Any) -> Tuple[Any, ...]:
        """See DriverCalls."""
        if name == "cuDeviceGetName":
            (raw,) = self._values(name, _NAME_BYTES, *arguments)
            return (bytes(raw).split(b"\0")[0].decode("utf-8", "replace"),)
        if name in _ENUMERATIONS:
            index, enumeration = _ENUMERATIONS[name]
            member = getattr(self._driver, enumeration)(arguments[index])
            arguments = (*arguments[:index], member, *arguments[index + 1 :])
        values = self._values(name, *arguments)
        return tuple(value if isinstance(value, float) else int(value) for value in values)

    def check_driver(self, version: Tuple[int, int]) -> None:
        """See DriverCalls.

        A package for another minor version works, one for a newer major version does not
        (https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html).
        """
        made_for = int(self._driver.CUDA_VERSION)
        if made_for // 1000 > version[0]:
            wanted = f"{made_for // 1000}.{made_for % 1000 // 10}"
            raise driver_too_old("cuda-python", wanted=wanted, driver=version)

    def _values(self, name: str, *arguments: Any) -> Tuple[Any, ...]:
        try:
            status, *values = self._function(name)(*arguments)
        except Exception as error:  # Missing library or function: the class differs by version.
            text = f"{type(error).__name__}: {error}"
            if name == "cuInit":
                raise missing_driver(text) from error
            raise StatusError(
                f"{text} from {name} of cuda-python",
                code=DRIVER_TOO_OLD,
                expected="a driver that has this function",
                do="install a newer NVIDIA driver or an older cuda-python, or RICESEG_CUDA=driver",
            ) from error
        if int(status) != 0:
            raise error_from_status(
                int(status),
                name=self._text("cuGetErrorName", status) or "an unknown CUDA error",
                text=self._text("cuGetErrorString", status),
                operation=name,
            )
        return tuple(values)

    def _function(self, name: str) -> Any:
        """From 12.0 on cuGraphInstantiate is what 11 calls cuGraphInstantiateWithFlags."""
        function = getattr(self._driver, name, None)
        if function is None and name == "cuGraphInstantiateWithFlags":
            return self._driver.cuGraphInstantiate
        return function

    def _text(self, function: str, status: Any) -> str:
        code, text = getattr(self._driver, function)(status)
        return bytes(text).decode("utf-8", "replace") if int(code) == 0 and text else ""


def _driver_module() -> Any:
    for name in _MODULES[:-1]:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    return importlib.import_module(_MODULES[-1])
