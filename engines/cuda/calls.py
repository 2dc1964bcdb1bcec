"""The driver calls that are used, and the one thing that a binding must be able to do: call one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Tuple

if TYPE_CHECKING:
    from typing import Protocol
else:
    Protocol = object

# CUdevice_attribute, CUstreamCaptureMode and flags of cuda.h.
COMPUTE_CAPABILITY_MAJOR = 75
COMPUTE_CAPABILITY_MINOR = 76
INTEGRATED = 18
CAN_MAP_HOST_MEMORY = 19
CAPTURE_THREAD_LOCAL = 1
CAPTURE_RELAXED = 2
STREAM_NON_BLOCKING = 1
EVENT_DISABLE_TIMING = 2
HOST_PORTABLE = 1
HOST_DEVICE_MAP = 2


class DriverCalls(Protocol):
    """Functions of the driver API by name."""

    binding: str

    def call(self, name: str, *arguments: Any) -> Tuple[Any, ...]:
        """Call `name` (without its _v2) with its inputs in the order of cuda.h; its outputs.

        Handles and addresses are int both ways. Raises StatusError for every status but success.
        """

    def check_driver(self, version: Tuple[int, int]) -> None:
        """Raise StatusError where this binding needs a newer driver than one for `version`."""
