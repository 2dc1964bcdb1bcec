"""A TensorRT engine as a predictor: uint8 images or float32 bands in, uint8 labels out, on the
GPU.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    Dict,
    Iterable,
    Iterator,
    List,
    Optional,
    Tuple,
    Union,
)

import numpy as np

from engines.batches import LOGITS_NAME, Batch, check_batch, closed_error, padded, pieces
from engines.errors import EngineError
from engines.evaluation.evaluate import Prediction
from engines.resize import Labels, ResizeRule, labels_at_image_size
from engines.trt.api import load_tensorrt
from engines.trt.engine_file import onnx_of_engine, plan_from_engine
from engines.trt.engine_header import Here, check_fits, platform_text
from engines.trt.session import Session
from engines.trt.slots import Slot
from engines.trt.stream import Lanes, labels_from

if TYPE_CHECKING:
    from types import TracebackType

    from engines.cuda.interface import Cuda
    from engines.trt.api import TensorRt


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call: its three parts by the GPU's clock, the whole by the host's.

    The whole also holds the copy into pinned memory and out of it. Mapped memory has no copies.
    """

    copy_in_ms: float
    compute_ms: float
    copy_out_ms: float
    end_to_end_ms: float


class TrtPredictor:
    """One engine on this machine's GPU.

    The engine takes `image`, (N, H, W, C) uint8, and gives `labels`, (N, H, W) uint8, or `logits`,
    (N, K, H, W) float32, or both. One built from a graph of `--fuse-bands` takes `bands` instead,
    (N, h, w, B) float32, the measured values of scenes. All methods may be called from several
    threads at once; runs take turns. Buffers are allocated once, for the largest batch, in pinned
    memory; on a GPU that shares the host's DRAM (every Jetson) they are mapped and nothing is
    copied. With a fixed batch the run is a CUDA graph where the binding and the engine can.

    Attributes: `path`, `name` (shown in tables), `runtime` ("TensorRT 10.3.0 on Orin"), `header`,
    `input_hw` in pixels, `channels`, `input_dtype` (uint8, or float32 for bands), `output_hw`,
    `fixed_batch` (None when N is free), `max_batch` of one run, `has_logits`, `notes` (what is not
    as fast as it could be, and why).

    An engine is native code: load only what you or somebody you trust has built.
    """

    def __init__(
        self,
        path: Union[str, os.PathLike[str]],
        *,
        name: Optional[str] = None,
        cuda: Optional[Cuda] = None,
        tensorrt: Optional[TensorRt] = None,
        cuda_graph: bool = True,
        refit_from: Optional[Path] = None,
    ) -> None:
        """Load the engine; `name` is the file's unless given.

        `cuda` stays its owner's; without it one is opened and closed with the predictor. An engine
        without weights takes them from the ONNX file `refit_from`, else from the one that it was
        built from, beside it or in its bundle.
        Raises EngineError for a file that is damaged, foreign or built for another GPU or version,
        DeviceError without a usable GPU, TensorRT or enough memory; nothing stays allocated.
        """
        self.path = Path(path)
        self.name = self.path.name if name is None else name
        self.header, plan = plan_from_engine(self.path)
        self._lock = threading.RLock()
        self._timers: List[Any] = []
        if refit_from is None and self.header.stripped:
            refit_from = onnx_of_engine(self.path, self.header)
        with contextlib.ExitStack() as stack:
            if tensorrt is None:
                tensorrt = load_tensorrt(rtx=self.header.runtime == "TensorRT-RTX")
            if cuda is None:
                from engines.cuda import open_cuda

                cuda = open_cuda()
                stack.callback(cuda.close)
            self._cuda = cuda
            self.runtime = f"{tensorrt} on {cuda.info.name}"
            check_fits(self.header, here_from(tensorrt, cuda), self.path)
            self._session = Session(
                cuda,
                tensorrt,
                (self.path, self.header, plan),
                refit_from=refit_from,
                cuda_graph=cuda_graph,
            )
            stack.callback(self._session.close)
            mapped = cuda.info.integrated and cuda.info.can_map_host
            self._slot = self._session.new_slot(mapped=mapped)
            stack.callback(self._slot.free)
            self._owned = stack.pop_all()
        session = self._session
        self._lanes = Lanes(session, lock=self._lock, lender=self._slot, owned=self._owned)
        self.input_hw, self.channels = session.input_hw, session.channels
        self.input_dtype, self.output_hw = session.input_dtype, session.output_hw
        self.fixed_batch, self.max_batch = session.fixed_batch, session.max_batch
        self.has_logits = session.has_logits
        # Also without `close`, at the latest when the interpreter ends, and then before TensorRT's
        # and CUDA's own libraries are taken down.
        self._release = weakref.finalize(self, _released, self._lock, self._lanes, self._owned)

    @property
    def notes(self) -> List[str]:
        """One line for each thing that could not be had, such as a CUDA graph."""
        refusal = self._session.graph_refusal
        return [f"no CUDA graph: {refusal}"] if refusal else []

    def labels(self, batch: Batch) -> Labels:
        """Labels (N, H, W) uint8, newly allocated, of a batch (N, H, W, C) that is only read.

        N may be any number above 0: more than `max_batch` images take several runs.
        Raises InputError for another dtype or shape and after `close`, EngineError or DeviceError
        when the run fails.
        """
        output = self._session.output
        labels: Labels = self._in_pieces(
            batch, lambda images: self._run(images, output, labels_from)
        )
        return labels

    def logits(self, batch: Batch) -> Any:
        """Logits (N, K, H, W) float32, newly allocated; EngineError for an engine without them."""
        if not self.has_logits:
            raise EngineError(
                f"{self.path.name!r}, which gives labels alone",
                expected="an engine with the output 'logits'",
                do="export with --output both and build the engine again",
            )
        return self._in_pieces(
            batch,
            lambda images: self._run(
                images, LOGITS_NAME, lambda name, slot, count: slot.read(name, count)
            ),
        )

    def predict(
        self, network_image: Batch, image_hw: Tuple[int, int], rule: ResizeRule
    ) -> Prediction:
        """Labels of one network-sized image (H, W, C), there and at the image's own size."""
        network = self.labels(network_image[np.newaxis])[0]
        return Prediction(network=network, image=labels_at_image_size(network, image_hw, rule))

    def timed(self, batch: Batch) -> Tuple[Labels, Timing]:
        """`labels` and where the time went; of several runs the sum."""
        started = time.perf_counter()
        parts = (0.0, 0.0, 0.0)

        def run(images: Batch) -> Labels:
            nonlocal parts
            labels, spent = self._timed_run(images)
            parts = (parts[0] + spent[0], parts[1] + spent[1], parts[2] + spent[2])
            return labels

        labels = self._in_pieces(batch, run)
        return labels, Timing(*parts, end_to_end_ms=(time.perf_counter() - started) * 1000.0)

    def fusion(self, batch: Batch, *, runs: int = 20) -> Dict[str, Any]:
        """Fused attention blocks and LayerNorms, reformat layers, the slowest layers: see
        `engines.trt.fusion.fusion_from_layers`.

        Layers are timed in `runs` runs of the first `max_batch` images, in an execution context of
        their own: other calls take as long as before. What cannot be told is a note, not an error.
        """
        from engines.trt.layer_audit import session_fusion

        self._check_open()
        check_batch(batch, self.input_hw, self.channels, dtype=self.input_dtype)
        images = padded(batch[: self.max_batch], self.fixed_batch or 0)
        with self._lock:
            self._check_open()
            return session_fusion(self._session, self._slot, images, runs)

    def stream(self, batches: Iterable[Batch]) -> Iterator[Labels]:
        """`labels` of each batch, in order, with copies, computing and `batches` overlapped.

        `batches` is iterated in a thread of its own, up to two runs and one batch ahead: what it
        decodes and resizes costs no time as long as the GPU takes longer. An array that it gave may
        be filled again. What it raises is raised here in its place, after the results before it.
        Leaving early (closing this generator, an exception, Ctrl-C) ends the thread, which finishes
        the element it is making, and waits for the GPU; the predictor can be used as before.
        Other calls and other streams may run meanwhile and take turns with this one; each stream
        has two sets of buffers, which the next stream takes over.
        After `close` the next result is an InputError.
        """
        self._check_open()
        return self._streamed(batches)

    def device_memory_bytes(self) -> int:
        """Bytes on the GPU as far as known: activations, weights (the plan's size) and buffers."""
        with self._lock:
            self._check_open()
            buffers = self._slot.nbytes + self._lanes.nbytes()
            return self._session.device_memory_bytes() + buffers

    def close(self) -> None:
        """Wait for a call that runs in another thread, end the streams, release everything.

        Harmless when called twice.
        """
        self._release()

    def __enter__(self) -> TrtPredictor:
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        if not self._release.alive:
            raise closed_error(self.name)

    def _in_pieces(self, batch: Batch, run: Callable[[Batch], Any]) -> Any:
        self._check_open()
        check_batch(batch, self.input_hw, self.channels, dtype=self.input_dtype)
        parts = [run(images) for images in pieces(batch, self.max_batch)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _run(self, images: Batch, output: str, read: Callable[[str, Slot, int], Any]) -> Any:
        """One run in the compute stream; `read` makes the result of the first len(images)."""
        batch = padded(images, self.fixed_batch or 0)
        with self._lock:
            self._check_open()
            slot, stream = self._slot, self._session.stream
            slot.make_readable(output)
            slot.fill(batch)
            slot.copy_in(len(batch), stream)
            self._session.enqueue(slot, len(batch))
            slot.copy_out(output, len(batch), stream)
            stream.synchronize()
            return read(output, slot, len(images))

    def _timed_run(self, images: Batch) -> Tuple[Labels, Tuple[float, float, float]]:
        """As `_run`, with an event between the parts."""
        batch = padded(images, self.fixed_batch or 0)
        with self._lock:
            self._check_open()
            session, slot, stream = self._session, self._slot, self._session.stream
            while len(self._timers) < 4:
                event = self._cuda.event(timing=True)
                self._owned.callback(event.destroy)
                self._timers.append(event)
            slot.fill(batch)
            self._timers[0].record(stream)
            slot.copy_in(len(batch), stream)
            self._timers[1].record(stream)
            session.enqueue(slot, len(batch))
            self._timers[2].record(stream)
            slot.copy_out(session.output, len(batch), stream)
            self._timers[3].record(stream)
            stream.synchronize()
            labels = labels_from(session.output, slot, len(images))
            start, copied, computed, end = self._timers
            spent = (
                copied.elapsed_ms(start),
                computed.elapsed_ms(copied),
                end.elapsed_ms(computed),
            )
            return labels, spent

    def _streamed(self, batches: Iterable[Batch]) -> Iterator[Labels]:
        with self._lock:
            self._check_open()
            run = self._lanes.open_run()
        try:
            yield from run.results(batches)
        finally:
            with self._lock:
                if self._release.alive:
                    self._lanes.end_run(run)


def here_from(tensorrt: TensorRt, cuda: Cuda) -> Here:
    """The machine that engines are compared with."""
    info = cuda.info
    return Here(
        runtime=tensorrt.runtime,
        version=tensorrt.version,
        gpu_name=info.name,
        compute_capability=info.compute_capability,
        platform=platform_text(),
    )


def _released(lock: threading.RLock, lanes: Lanes, owned: contextlib.ExitStack) -> None:
    """The end of a predictor, which may be gone by then.

    Everything is released even where the GPU reports an error; then that is raised.
    """
    with lock, owned:
        lanes.stop()
