"""A GPU in numpy memory, for tests: as late as the real one may be, and it remembers every call.

Nothing that is enqueued runs until something waits for it, and then only what that wait needs: a
copy that nobody waited for has not happened, a kernel that does not wait for a copy in another
stream reads old bytes. With `shuffle` work of every stream runs at random moments instead, as far
as its order in the stream and the events allow. Fresh memory is filled with 0xAB.
"""

from __future__ import annotations

import random
import threading
from contextlib import contextmanager

import numpy as np

from engines.cuda.interface import GpuInfo
from engines.errors import DeviceError, InputError

JUNK = 0xAB


class Call:
    """One call: its name, what it was about, and the thread it came from."""

    def __init__(self, name, about=()):
        self.name, self.about, self.thread = name, about, threading.get_ident()

    def __repr__(self):
        return f"{self.name}{self.about}"


class Work:
    """Something enqueued: `run` does it, once everything in `after` is done."""

    def __init__(self, name, run, after=(), touches=(), cost_ms=0.0):
        self.name, self.run, self.after, self.touches = name, run, tuple(after), tuple(touches)
        self.cost_ms, self.done = cost_ms, False


class RecordingCuda:
    """The Cuda protocol of engines.cuda.interface.

    `calls` holds every call in order; `leaks()` what was not released. `fail("stream", at=2)` makes
    the second call of that method from then on a DeviceError.
    """

    binding = "recording"
    device = 0

    def __init__(
        self, *, integrated=False, supports_graphs=True, shuffle=None, free=8 << 30, name="Orin"
    ):
        self.info = GpuInfo(
            name=name,
            compute_capability=(8, 7),
            total_bytes=8 << 30,
            integrated=integrated,
            can_map_host=integrated,
            driver_version=(12, 6),
        )
        self.supports_graphs = supports_graphs
        self.calls = []
        self.closed = False
        self.before = {}  # name of a call -> function that is called before it, outside the lock
        self.lock = threading.RLock()
        self.memory = {}  # device address -> object with .bytes
        self._alive = []
        self._failures = {}
        self._counts = {}
        self._free = free
        self._next_address = 0x7F00_0000_0000
        self._streams = []
        self.clock_ms = 0.0  # the GPU's clock: copies take 1 ms, what else enqueues says itself
        self._contexts = threading.local()
        self._random = None if shuffle is None else random.Random(shuffle)

    # What tests ask

    def names(self, *wanted):
        """Names of the calls, in order; only `wanted` ones if there are any."""
        return [call.name for call in self.calls if not wanted or call.name in wanted]

    def leaks(self):
        return [repr(thing) for thing in self._alive]

    def pending(self):
        """Names of the work that is enqueued and did not run yet."""
        with self.lock:
            return [work.name for stream in self._streams for work in stream.queue]

    def fail(self, name, *, at=1, error=None):
        """Make the `at`-th call of `name` from now on raise."""
        self._failures[name] = (self._counts.get(name, 0) + at, error)

    def note(self, name, *about):
        """Record a call, stop where the test wants it to fail, and let other streams go on."""
        hook = self.before.get(name)
        if hook is not None:
            hook()
        with self.lock:
            self.calls.append(Call(name, about))
            self._counts[name] = count = self._counts.get(name, 0) + 1
            at, error = self._failures.get(name, (0, None))
            if count == at:
                raise error or DeviceError(
                    f"a refusal of {name}", expected="success", do="nothing, it is a test"
                )
            if self.closed and not name.startswith(("free", "destroy", "close")):
                raise InputError("a call after close()", expected="open", do="open it")
            self._wander()

    def is_current(self):
        """Whether the calling thread is inside `current()`."""
        return getattr(self._contexts, "depth", 0) > 0

    # The protocol

    @contextmanager
    def current(self):
        if self.closed:
            raise InputError("a call after close()", expected="open", do="open it")
        self._contexts.depth = getattr(self._contexts, "depth", 0) + 1
        try:
            yield
        finally:
            self._contexts.depth -= 1

    def free_bytes(self):
        return self._free, 8 << 30

    def device_buffer(self, nbytes):
        return self._allocated(FakeDeviceBuffer(self, nbytes))

    def host_buffer(self, nbytes, *, mapped=False):
        if mapped and not self.info.can_map_host:
            raise DeviceError("mapped memory", expected="an integrated GPU", do="copy")
        return self._allocated(FakeHostBuffer(self, nbytes, mapped))

    def stream(self):
        self.note("stream")
        stream = FakeStream(self, len(self._streams) + 1)
        self._streams.append(stream)
        self._alive.append(stream)
        return stream

    def event(self, *, timing=True):
        self.note("event")
        event = FakeEvent(self, timing)
        self._alive.append(event)
        return event

    def copy_in(self, target, source, nbytes, stream):
        self._copy("copy_in", target, source, nbytes, stream)

    def copy_out(self, target, source, nbytes, stream):
        self._copy("copy_out", target, source, nbytes, stream)

    def capture(self, stream, work):
        self.note("capture", stream.number)
        if not self.supports_graphs:
            raise DeviceError("no graphs", expected="a binding with graphs", do="another binding")
        with self.lock:
            assert stream.recording is None, "a capture inside a capture"
            stream.recording = []
        try:
            work()
        finally:
            recorded, stream.recording = stream.recording, None
        graph = FakeGraph(self, recorded)
        self._alive.append(graph)
        return graph

    def close(self):
        if not self.closed:
            self.note("close")
            for stream in self._streams:
                if not stream.released:
                    stream.synchronize()
            self.closed = True

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    # How it works

    def enqueue(self, stream, work):
        with self.lock:
            stream.check()
            for thing in work.touches:
                thing.check()
            if stream.recording is not None:
                stream.recording.append(work)
            else:
                stream.queue.append(work)
            self._wander()

    def bytes_at(self, address, nbytes):
        """The `nbytes` at a device address, as a view."""
        for start, thing in self.memory.items():
            if start <= address and address + nbytes <= start + thing.nbytes:
                return thing.bytes[address - start : address - start + nbytes]
        raise AssertionError(f"nothing at device address {address:#x}")

    def run_until(self, work, stream):
        """Run what comes before `work` in its stream, and what that waits for; then `work`."""
        with self.lock:
            while not work.done:
                self._step(stream)

    def release(self, thing):
        with self.lock:
            for stream in self._streams:
                for work in stream.queue:
                    assert thing not in work.touches, f"{thing} released before {work.name}"
            self._alive.remove(thing)

    def _step(self, stream):
        work = stream.queue[0]
        for mark, other in work.after:
            self.run_until(mark, other)
        if work.done or not stream.queue or stream.queue[0] is not work:
            return
        stream.queue.pop(0)
        work.run()
        work.done = True
        self.clock_ms += work.cost_ms

    def _wander(self):
        if self._random is None:
            return
        for stream in self._random.sample(self._streams, len(self._streams)):
            while stream.queue and self._random.random() < 0.5:
                if not all(mark.done for mark, _ in stream.queue[0].after):
                    break
                self._step(stream)

    def _allocated(self, buffer):
        self.note(buffer.kind, buffer.nbytes)
        with self.lock:
            buffer.bytes = np.full(buffer.nbytes, JUNK, np.uint8)
            if buffer.on_device:
                buffer.place = self._next_address
                self.memory[buffer.place] = buffer
                self._free -= buffer.nbytes
            self._next_address += (buffer.nbytes // 256 + 2) * 256
            self._alive.append(buffer)
        return buffer

    def _copy(self, name, target, source, nbytes, stream):
        self.note(name, nbytes, stream.number)
        assert 0 < nbytes <= min(target.nbytes, source.nbytes)

        def run():
            target.bytes[:nbytes] = source.bytes[:nbytes]

        self.enqueue(stream, Work(name, run, touches=(target, source), cost_ms=1.0))


class Thing:
    """Anything that is released once; a use after it raises InputError."""

    def __init__(self, cuda):
        self.cuda, self.released = cuda, False

    def check(self):
        if self.released or self.cuda.closed:
            raise InputError(f"{self} after its end", expected="open", do="keep it open")

    def _release(self, name):
        self.cuda.note(name)
        if not self.released:
            self.cuda.release(self)
            self.released = True

    def __repr__(self):
        return type(self).__name__


class FakeDeviceBuffer(Thing):
    kind = "device_buffer"
    on_device = True

    def __init__(self, cuda, nbytes):
        super().__init__(cuda)
        self.nbytes, self.bytes, self.place = nbytes, None, 0

    @property
    def address(self):
        self.check()
        return self.place

    def free(self):
        self._release("free_device")
        self.cuda.memory.pop(self.place, None)


class FakeHostBuffer(Thing):
    kind = "host_buffer"

    def __init__(self, cuda, nbytes, mapped):
        super().__init__(cuda)
        self.nbytes, self.bytes, self.place, self.on_device = nbytes, None, 0, mapped

    @property
    def array(self):
        self.check()
        return self.bytes

    @property
    def address(self):
        self.check()
        return self.place

    def free(self):
        self._release("free_host")
        self.cuda.memory.pop(self.place, None)


class FakeStream(Thing):
    def __init__(self, cuda, number):
        super().__init__(cuda)
        self.number, self.queue, self.recording = number, [], None

    @property
    def handle(self):
        self.check()
        return 1000 + self.number

    def synchronize(self):
        self.check()
        self.cuda.note("synchronize", self.number)
        with self.cuda.lock:
            assert self.recording is None, "synchronised while recording"
            if self.queue:
                self.cuda.run_until(self.queue[-1], self)

    def wait(self, event):
        event.check()
        self.cuda.note("wait", self.number)
        if event.mark is not None:
            self.cuda.enqueue(self, Work("wait", lambda: None, after=[event.mark]))

    def destroy(self):
        while self.queue and not self.released:
            self.synchronize()
        self._release("destroy_stream")


class FakeEvent(Thing):
    def __init__(self, cuda, timing):
        super().__init__(cuda)
        self.timing, self.mark, self.passed_at = timing, None, None

    def record(self, stream):
        self.check()
        self.cuda.note("record", stream.number)

        def run():
            self.passed_at = self.cuda.clock_ms

        work = Work("record", run, touches=(self,))
        self.mark = (work, stream)
        self.cuda.enqueue(stream, work)

    def synchronize(self):
        self.check()
        self.cuda.note("event_synchronize")
        if self.mark is not None:
            self.cuda.run_until(*self.mark)

    def elapsed_ms(self, since):
        self.check()
        if not (self.timing and since.timing):
            raise InputError("an event without timing", expected="timing", do="event(timing=True)")
        if not (self.mark[0].done and since.mark[0].done):
            raise DeviceError("an event not passed yet", expected="passed", do="synchronise")
        return self.passed_at - since.passed_at

    def destroy(self):
        self._release("destroy_event")


class FakeGraph(Thing):
    def __init__(self, cuda, recorded):
        super().__init__(cuda)
        self.recorded = recorded

    def launch(self, stream):
        self.check()
        self.cuda.note("launch", stream.number)
        for work in self.recorded:
            self.cuda.enqueue(stream, Work(work.name, work.run, (), work.touches, work.cost_ms))

    def destroy(self):
        self._release("destroy_graph")
