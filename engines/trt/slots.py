"""Memory for one batch in flight: an engine's input and outputs, on the host and on the GPU."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Dict, Optional, Tuple

import numpy as np

from engines.batches import Batch

if TYPE_CHECKING:
    from engines.cuda.interface import Cuda, DeviceBuffer, Graph, HostBuffer, Stream


@dataclass(frozen=True)
class Port:
    """An input or output of an engine: `shape` is that of one image, without the batch."""

    name: str
    dtype: Any
    shape: Tuple[int, ...]

    def nbytes(self, count: int) -> int:
        """Bytes of `count` images."""
        return count * int(np.prod(self.shape)) * int(np.dtype(self.dtype).itemsize)


class Slot:
    """Buffers for up to `batch` images, and the CUDA graph and events that belong to them.

    With `mapped` there is one buffer on each port, which host and GPU share, and copies do nothing:
    on a Jetson both are the same DRAM. Else there are two, a pinned one on the host for those that
    the host fills or reads. `lender` lends the outputs other than `output`: what nobody reads is
    written to the same place by every slot.
    A slot belongs to one run at a time; who lends it has to see to that.
    """

    def __init__(
        self,
        cuda: Cuda,
        ports: Tuple[Port, ...],
        batch: int,
        *,
        output: str,
        mapped: bool,
        lender: Optional[Slot] = None,
    ) -> None:
        """`ports[0]` is the input. DeviceError, with nothing left allocated, when memory ends."""
        self.cuda, self.batch, self.mapped, self.output = cuda, batch, mapped, output
        self.input, self.ports = ports[0], {port.name: port for port in ports}
        self.graph: Optional[Graph] = None
        self.nbytes = 0  # on the device, mapped memory included
        self._hosts: Dict[str, HostBuffer] = {}
        self._devices: Dict[str, DeviceBuffer] = {}
        self._lender = lender
        with contextlib.ExitStack() as stack:
            for port in ports:
                if lender is None or port.name in (self.input.name, output):
                    self._allocate(port, stack)
            self.copied_in, self.computed, self.done = (
                self._event(stack, timing=False) for _ in range(3)
            )
            self._owned = stack.pop_all()

    def fill(self, images: Batch) -> None:
        """Write the input of a run of len(images) images, at most `batch`."""
        target = self._view(self.input.name, len(images))
        np.copyto(target, images)

    def address(self, name: str) -> int:
        """Device address of a port."""
        if name in self._devices:
            return self._devices[name].address
        if self._lender is not None and name not in self._hosts:
            return self._lender.address(name)
        return self._hosts[name].address

    def copy_in(self, count: int, stream: Stream) -> None:
        """Enqueue the input's copy to the GPU."""
        if not self.mapped:
            name = self.input.name
            nbytes = self.input.nbytes(count)
            self.cuda.copy_in(self._devices[name], self._hosts[name], nbytes, stream)

    def copy_out(self, name: str, count: int, stream: Stream) -> None:
        """Enqueue an output's copy to the host."""
        if not self.mapped:
            nbytes = self.ports[name].nbytes(count)
            self.cuda.copy_out(self._hosts[name], self._devices[name], nbytes, stream)

    def read(self, name: str, count: int) -> Any:
        """An output (count, ...) as a new array, after its copy was waited for."""
        return np.array(self._view(name, count))

    def make_readable(self, name: str) -> None:
        """Give an output that is not `output` its host memory too; once is enough."""
        if name not in self._hosts:
            self._pin(self.ports[name], self._owned)

    def free(self) -> None:
        """Release everything; the GPU must be done with it."""
        self._owned.close()
        self._hosts.clear()
        self._devices.clear()

    def set_graph(self, graph: Graph) -> None:
        """The graph is released with the slot, before its buffers."""
        self.graph = graph
        self._owned.callback(graph.destroy)

    def _allocate(self, port: Port, stack: contextlib.ExitStack) -> None:
        self.nbytes += port.nbytes(self.batch)
        if self.mapped or port.name in (self.input.name, self.output):
            self._pin(port, stack)
        if not self.mapped:
            buffer = self.cuda.device_buffer(port.nbytes(self.batch))
            stack.callback(buffer.free)
            self._devices[port.name] = buffer

    def _pin(self, port: Port, stack: contextlib.ExitStack) -> None:
        buffer = self.cuda.host_buffer(port.nbytes(self.batch), mapped=self.mapped)
        stack.callback(buffer.free)
        self._hosts[port.name] = buffer

    def _event(self, stack: contextlib.ExitStack, *, timing: bool) -> Any:
        event = self.cuda.event(timing=timing)
        stack.callback(event.destroy)
        return event

    def _view(self, name: str, count: int) -> Any:
        port = self.ports[name]
        used = self._hosts[name].array[: port.nbytes(count)]
        return used.view(port.dtype).reshape(count, *port.shape)
