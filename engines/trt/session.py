"""One engine on one GPU: loaded, checked against the contract, and enqueued in one stream.

Nothing here locks: TensorRT's execution context takes one thread at a time, and `TrtPredictor`
sees to that.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Deque, Iterator, NoReturn, Optional, Sequence, Tuple

import numpy as np

from engines.batches import BANDS_NAME, INPUT_DTYPES, INPUT_NAME, LOGITS_NAME, OUTPUT_NAME
from engines.errors import DeviceError, EngineError
from engines.trt.engine_header import BUILD_AGAIN
from engines.trt.log import MessageLog, errors_text, listening, process_logger
from engines.trt.places import bytes_of_onnx
from engines.trt.slots import Port, Slot

if TYPE_CHECKING:
    from engines.cuda.interface import Cuda
    from engines.trt.api import TensorRt
    from engines.trt.engine_header import EngineHeader
    from engines.trt.layer_audit import LayerAudit

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def errors_of(tensorrt: TensorRt) -> Iterator[Deque[str]]:
    """What TensorRT logs as an error inside the block; its warnings go to Python's log."""
    log = MessageLog()
    with listening(tensorrt, log):
        yield log.errors
    for warning in log.warnings:
        logger.info("TensorRT: %s", warning)


class Session:
    """A deserialised engine with its execution context and its one compute stream.

    Only attributes hold what TensorRT made: a local one would live on in the traceback of an error,
    and be destroyed later, in no context and after what it depends on.

    Attributes: `ports` (the input first), `output` (the one that labels come from), `input_hw`,
    `channels`, `input_dtype`, `output_hw` (another than `input_hw` only for an engine that takes
    bands), `fixed_batch` (None if free), `max_batch`, `stream`, `graph_refusal` (why there is no
    CUDA graph, "" while there is one), `plan_bytes`.
    """

    def __init__(
        self,
        cuda: Cuda,
        tensorrt: TensorRt,
        file: Tuple[Path, EngineHeader, bytes],
        *,
        refit_from: Optional[Path],
        cuda_graph: bool,
    ) -> None:
        """Load the plan. Raises EngineError or DeviceError, with nothing left allocated."""
        self.path, self.header, plan = file
        self.cuda, self._tensorrt = cuda, tensorrt
        self.plan_bytes = len(plan)
        self.graph_refusal = ""
        self._cuda_graph = cuda_graph
        self._bound: Optional[Tuple[Slot, int]] = None
        self._runtime: Any = None
        self._engine: Any = None
        self._context: Any = None
        with contextlib.ExitStack() as stack:
            stack.callback(self._drop)
            with cuda.current():
                self._engine = self._deserialised(plan)
                self.ports = self._checked_ports()
                if self.header.stripped:
                    self._refit(refit_from)
                self.fixed_batch, self.max_batch = self._batches()
                self._context = self._new_context()
            self.stream = cuda.stream()
            stack.callback(self.stream.destroy)
            self._owned = stack.pop_all()
        height, width, self.channels = self.ports[0].shape
        self.input_hw, self.input_dtype = (height, width), self.ports[0].dtype
        names = [port.name for port in self.ports]
        self.has_logits = LOGITS_NAME in names
        self.output = OUTPUT_NAME if OUTPUT_NAME in names else LOGITS_NAME
        self.output_hw: Tuple[int, ...] = self.ports[-1].shape[-2:]  # the same of every output

    def new_slot(self, *, mapped: bool, lender: Optional[Slot] = None) -> Slot:
        """Buffers for the largest batch; with a CUDA graph where one can be had."""
        slot = Slot(
            self.cuda, self.ports, self.max_batch, output=self.output, mapped=mapped, lender=lender
        )
        try:
            self._capture(slot)
        except BaseException:
            slot.free()
            raise
        return slot

    def enqueue(self, slot: Slot, count: int) -> None:
        """Enqueue one run of `count` images in `stream`; EngineError when TensorRT refuses."""
        if slot.graph is not None:
            slot.graph.launch(self.stream)
        else:
            self._bind(slot, count)
            self._execute()

    def device_memory_bytes(self) -> int:
        """Activations and weights: the latter are taken to be as large as the plan."""
        return self.plan_bytes + self._tensorrt.activation_bytes(self._engine)

    def audit(self) -> LayerAudit:
        """The engine's inspector and profiler; to be closed before the session."""
        from engines.trt.layer_audit import LayerAudit

        return LayerAudit(self._tensorrt, self._engine, self.cuda)

    def close(self) -> None:
        """Release context, engine and stream; the slots must have been freed."""
        self._owned.close()

    def _drop(self) -> None:
        # TensorRT's destructors free device memory: in the context it was allocated in, and a
        # context before its engine, an engine before its runtime.
        try:
            with self.cuda.current():
                self._forget()
        finally:
            self._forget()  # In the same order where the GPU's owner has closed it already.

    def _forget(self) -> None:
        self._bound = None
        self._context = None
        self._engine = None
        self._runtime = None

    def _deserialised(self, plan: bytes) -> Any:
        with errors_of(self._tensorrt) as errors:
            self._runtime = self._tensorrt.module.Runtime(process_logger(self._tensorrt))
            if self.header.version_compatible:
                # Its plan brings a runtime of its own version, as code, along.
                self._runtime.engine_host_code_allowed = True
            if self.header.dla is not None:
                self._runtime.DLA_core = self.header.dla
            engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            self._refused("which TensorRT does not load", errors)
        return engine

    def _new_context(self) -> Any:
        with errors_of(self._tensorrt) as errors:
            context = self._engine.create_execution_context()
        if context is None:
            free, total = self.cuda.free_bytes()
            raise DeviceError(
                f"{self.path.name!r}, for which TensorRT makes no execution context: "
                f"{errors_text(errors)}",
                expected=f"enough device memory; {free / 1e6:.0f} of {total / 1e6:.0f} MB are free",
                do="close other programs, or export with a smaller batch or input size",
            )
        return context

    def _refit(self, onnx: Optional[Path]) -> None:
        """Put the weights of the ONNX file into an engine that was built without them."""
        if not self._tensorrt.has_onnx_refitter() or onnx is None:
            raise EngineError(
                f"{self.path.name!r}, which was built without its weights",
                expected=f"the ONNX file {self.header.onnx_file!r} and TensorRT 10 or newer",
                do=f"pass refit_from=PATH, open the whole bundle, or {BUILD_AGAIN}",
            )
        # As bytes: the bindings take no path that is not UTF-8.
        data = bytes_of_onnx(onnx)
        found = hashlib.sha256(data).hexdigest()
        if found != self.header.onnx_sha256:
            raise EngineError(
                f"weights from {onnx.name!r} with SHA-256 {found}",
                expected=f"the ONNX file of {self.path.name!r}, {self.header.onnx_sha256}",
                do=f"give that file, or {BUILD_AGAIN}",
            )
        module = self._tensorrt.module
        with errors_of(self._tensorrt) as errors:
            log = process_logger(self._tensorrt)
            refitter = module.Refitter(self._engine, log)
            # The parser owns the weights, which are read by the second call.
            parser = module.OnnxParserRefitter(refitter, log)
            done = parser.refit_from_bytes(data) and refitter.refit_cuda_engine()
            del parser, refitter  # An error's traceback would keep them, and the engine.
        if not done:
            self._refused(f"which does not take the weights of {onnx.name!r}", errors)

    def _checked_ports(self) -> Tuple[Port, ...]:
        """The contract: `image` uint8 or `bands` float32, NHWC, in; `labels` uint8 NHW, `logits`
        float32 NKHW out, of the image's size. Scenes of bands may have another than the labels.
        """
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        given = BANDS_NAME if BANDS_NAME in names else INPUT_NAME
        data = self._tensorrt.module.DataType
        kinds = {INPUT_NAME: data.UINT8, BANDS_NAME: data.FLOAT}
        rules = {
            given: (True, kinds[given], INPUT_DTYPES[given], 4),
            OUTPUT_NAME: (False, data.UINT8, np.uint8, 3),
            LOGITS_NAME: (False, data.FLOAT, np.float32, 4),
        }
        found = {name: self._port_kind(name) for name in names}
        shapes = {name: shape for name, (_, _, shape) in found.items()}
        good = given in found and (OUTPUT_NAME in found or LOGITS_NAME in found)
        for name, (is_input, kind, shape) in found.items():
            rule = rules.get(name)
            good = good and rule is not None and (is_input, kind) == rule[:2]
            good = good and rule is not None and len(shape) == rule[3]
            good = good and min(shape[1:]) > 0 and shape[:1] == shapes[given][:1]
        areas = {shape[-2:] for name, shape in shapes.items() if name != given}
        good = good and len(areas) == 1
        good = good and (given == BANDS_NAME or areas == {shapes[given][1:3]})
        if not good:
            described = "; ".join(
                f"{'input' if is_input else 'output'} {name} {kind} {shape}"
                for name, (is_input, kind, shape) in found.items()
            )
            raise EngineError(
                f"{self.path.name!r} with {described or 'no input and no output'}",
                expected="image uint8 (N, H, W, C) in, or bands float32 (N, h, w, B); labels uint8 "
                "(N, H, W) and/or logits float32 (N, K, H, W) out; all but N fixed",
                do="build it from an ONNX file that `riceseg export` wrote",
            )
        order = sorted(names, key=lambda name: name != given)
        return tuple(Port(name, rules[name][2], shapes[name][1:]) for name in order)

    def _port_kind(self, name: str) -> Tuple[bool, Any, Tuple[int, ...]]:
        """(whether it is an input, TensorRT's type, shape)."""
        mode = self._engine.get_tensor_mode(name)
        is_input = bool(mode == self._tensorrt.module.TensorIOMode.INPUT)
        shape = tuple(int(side) for side in self._engine.get_tensor_shape(name))
        return is_input, self._engine.get_tensor_dtype(name), shape

    def _batches(self) -> Tuple[Optional[int], int]:
        """(fixed batch or None, largest batch)."""
        name = self.ports[0].name
        size = int(self._engine.get_tensor_shape(name)[0])
        if size > 0:
            return size, size
        shapes = self._engine.get_tensor_profile_shape(name, 0)
        low, high = int(shapes[0][0]), int(shapes[-1][0])
        return (high if low == high else None), high

    def _bind(self, slot: Slot, count: int) -> None:
        if self._bound == (slot, count):
            return
        self._bound = None
        with errors_of(self._tensorrt) as errors, self.cuda.current():
            shape = (count, *self.ports[0].shape)
            done = self._context.set_input_shape(self.ports[0].name, shape) and all(
                self._context.set_tensor_address(port.name, slot.address(port.name))
                for port in self.ports
            )
        if not done:
            self._refused(f"which takes no batch of {count}", errors)
        self._bound = (slot, count)

    def _execute(self) -> None:
        with errors_of(self._tensorrt) as errors, self.cuda.current():
            done = self._context.execute_async_v3(self.stream.handle)
        if not done:
            self._refused("which fails while running", errors)

    def _capture(self, slot: Slot) -> None:
        """Run once, then record the same run as a CUDA graph; keep on without where it cannot be.

        The first run settles what TensorRT puts off until then, which a capture must not contain
        (TensorRT's guide, "CUDA Graphs"). Several graphs of one context share its activations: they
        run one after another, in one stream.
        """
        if self.fixed_batch is None:
            self._refuse_graph("the engine takes batches of any size")
            return
        self._bind(slot, self.fixed_batch)
        self._execute()
        self.stream.synchronize()
        if not self._cuda_graph or self.graph_refusal:
            return
        if not self.cuda.supports_graphs:
            self._refuse_graph(f"{self.cuda.binding} has none")
            return
        try:
            slot.set_graph(self.cuda.capture(self.stream, self._execute))
        except (DeviceError, EngineError) as error:
            self._refuse_graph(error.got)

    def _refuse_graph(self, why: str) -> None:
        if self._cuda_graph and not self.graph_refusal:
            self.graph_refusal = why
            logger.info("%s: no CUDA graph, %s", self.path.name, why)

    def _refused(self, what: str, errors: Sequence[str]) -> NoReturn:
        raise EngineError(
            f"{self.path.name!r}, {what}: {errors_text(errors)}",
            expected=f"an engine that runs on {self._tensorrt}",
            do=BUILD_AGAIN,
        )
