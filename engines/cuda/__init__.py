"""The GPU through one small interface, by cuda-python, by pycuda, or by the driver's own library.

Importing it calls nothing of CUDA and makes no context.
"""

from __future__ import annotations

from engines.cuda.interface import Cuda, DeviceBuffer, Event, GpuInfo, Graph, HostBuffer, Stream
from engines.cuda.opening import open_cuda

__all__ = [
    "Cuda",
    "DeviceBuffer",
    "Event",
    "GpuInfo",
    "Graph",
    "HostBuffer",
    "Stream",
    "open_cuda",
]
