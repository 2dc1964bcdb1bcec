"""What a status of the driver means for a user; numbers and meanings are those of cuda.h."""

from __future__ import annotations

from typing import Dict, Tuple

from engines.errors import DeviceError

NO_LIBRARY = 0  # no status: libcuda.so.1 could not be asked
OUT_OF_MEMORY = 2
DRIVER_TOO_OLD = 36  # CUDA_ERROR_CALL_REQUIRES_NEWER_DRIVER
NO_DEVICE = 100
INVALID_DEVICE = 101
NOT_READY = 600

# "This leaves the process in an inconsistent state and any further CUDA work will return the same
# error. To continue using CUDA, the process must be terminated and relaunched" (cuda.h); 4 and 709
# say that the context is gone, 214 and 220 that the hardware failed.
_LOST = frozenset({4, 214, 220, 226, 700, 702, 709, 710, *range(714, 720), 721})

_NEW_DRIVER = (
    "install a newer NVIDIA driver (on a Jetson: a newer JetPack), or an older CUDA binding"
)
_INSTALL_DRIVER = (
    "install the NVIDIA driver and reboot (check with `nvidia-smi`; a Jetson has it with JetPack); "
    "in a container start with `--gpus all`, on a Jetson with `--runtime nvidia`"
)
_CAPTURE = "allocate, free and synchronise before recording, or run without a CUDA graph"

# code: (what was expected, what to do)
_ADVICE: Dict[int, Tuple[str, str]] = {
    OUT_OF_MEMORY: (
        "enough free memory on the GPU",
        "use a smaller batch or image size, close other programs that use the GPU, "
        "and on a Jetson also those that fill the shared memory",
    ),
    3: (
        "CUDA used by the process that opened it",
        "open it after the fork, or start processes with multiprocessing's 'spawn' method",
    ),
    34: (
        "the driver's own libcuda.so.1",
        f"take the toolkit's stubs off the path; {_INSTALL_DRIVER}",
    ),
    DRIVER_TOO_OLD: ("a driver as new as the CUDA binding", f"{_NEW_DRIVER}, or an older binding"),
    46: (
        "a GPU that takes another process",
        "end the process that holds it, or set its compute mode to default with `nvidia-smi -c 0`",
    ),
    NO_DEVICE: (
        "an NVIDIA GPU that this process may use",
        f"check CUDA_VISIBLE_DEVICES; {_INSTALL_DRIVER}; without a GPU use ONNX Runtime",
    ),
    INVALID_DEVICE: ("the number of a GPU", "count from 0, and check CUDA_VISIBLE_DEVICES"),
    201: ("a context that is current", "close what was opened after another library reset the GPU"),
    304: ("a driver that can be used", _INSTALL_DRIVER),
    NOT_READY: ("work that is finished", "call synchronize() on the event or its stream first"),
    802: ("a GPU that is ready", "wait until the system has started, and check `nvidia-smi`"),
    803: (
        "libcuda.so.1 and the kernel module of one driver version",
        "reboot after updating the driver; in a container leave the image's own libcuda out",
    ),
    804: (
        "a GPU that takes the forward compatibility package",
        "take cuda-compat off the library path, or install a newer driver",
    ),
    999: ("a working driver", "restart the process; if it stays, reboot and check `dmesg`"),
}


class StatusError(DeviceError):
    """A call to the driver that failed; `code` is its CUresult, NO_LIBRARY where it has none."""

    def __init__(self, got: str, *, code: int, expected: str, do: str) -> None:
        super().__init__(got, expected=expected, do=do)
        self.code = code

    @property
    def context_is_lost(self) -> bool:
        """Every later call fails as well, until the process is started again."""
        return self.code in _LOST


def error_from_status(code: int, *, name: str, text: str, operation: str) -> StatusError:
    """The error for status `code`, called `name` and described by `text` by the driver."""
    expected, do = _ADVICE.get(
        code, ("CUDA_SUCCESS", "check the driver with `riceseg doctor`, and restart the process")
    )
    if 900 <= code <= 908:
        expected, do = "work that a CUDA graph can record", _CAPTURE
    elif code in _LOST:
        expected = "a GPU that finishes its work"
        do = (
            "restart the process: CUDA cannot be used in it any more; if it happens again, "
            "rebuild the engine, and look for another library that reset the GPU"
        )
    described = f": {text}" if text else ""
    return StatusError(
        f"{name} ({code}) from {operation}{described}", code=code, expected=expected, do=do
    )


def missing_driver(reason: str) -> StatusError:
    """The error where libcuda.so.1 cannot be loaded."""
    return StatusError(
        f"no NVIDIA driver library ({reason})",
        code=NO_LIBRARY,
        expected="libcuda.so.1, which comes with the driver",
        do=f"{_INSTALL_DRIVER}; without a GPU use ONNX Runtime",
    )


def driver_too_old(binding: str, *, wanted: str, driver: Tuple[int, int]) -> StatusError:
    """The error where the binding was made for a newer CUDA than the driver supports."""
    return StatusError(
        f"{binding} made for CUDA {wanted} on a driver for CUDA {driver[0]}.{driver[1]}",
        code=DRIVER_TOO_OLD,
        expected="a binding whose CUDA version has the driver's first number",
        do=f"pip install 'cuda-python=={driver[0]}.*', or set RICESEG_CUDA=driver; {_NEW_DRIVER}",
    )
