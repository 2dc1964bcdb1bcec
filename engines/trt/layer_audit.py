"""What an engine's inspector lists, and the time of each layer by TensorRT's profiler."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Dict, Mapping

from engines.batches import Batch
from engines.errors import ConfigError, EngineError
from engines.trt.fusion import fusion_from_layers, fusion_without_layers
from engines.trt.log import errors_text
from engines.trt.session import Session, errors_of
from engines.trt.slots import Slot

if TYPE_CHECKING:
    from engines.cuda.interface import Cuda, Stream
    from engines.trt.api import TensorRt

UNTIMED_RUNS = 3  # The first settles what TensorRT puts off until then.


def session_fusion(session: Session, slot: Slot, images: Batch, runs: int) -> Dict[str, Any]:
    """`fusion_from_layers` of a session's engine, timed in `runs` runs of `images` in `slot`.

    What TensorRT does not tell, or fails to, is a note. ConfigError for less than one run.
    """
    if runs < 1:
        raise ConfigError(
            f"{runs} runs to time layers in", expected="1 or more", do="leave runs out"
        )
    built = session.header.fusion
    shapes = {session.ports[0].name: images.shape}
    addresses = {port.name: slot.address(port.name) for port in session.ports}
    times_ms: Dict[str, float] = {}
    failure = ""
    # A benchmark has its figures by now: whatever the audit stumbles over must not cost them.
    with session.audit() as audit:
        try:
            layers_json = audit.layers_json()
        except Exception as error:
            return fusion_without_layers(f"the layers are not told: {_reason(error)}", built)
        try:
            slot.fill(images)
            slot.copy_in(len(images), session.stream)
            times_ms = audit.times_ms(shapes, addresses, stream=session.stream, runs=runs)
        except Exception as error:
            failure = f"the layers were not timed: {_reason(error)}"
    try:
        found = fusion_from_layers(layers_json, times_ms, built=built)
    except ValueError as error:
        return fusion_without_layers(f"the layers' list is not understood: {error}", built)
    if failure:
        found["notes"].append(failure)
    return found


def _reason(error: Exception) -> str:
    return error.got if isinstance(error, EngineError) else f"{type(error).__name__}: {error}"


class LayerAudit:
    """The inspector of an engine, and a second execution context of it that times its layers.

    The context that labels come from never gets a profiler: with one, TensorRT waits after each
    layer's events and records no CUDA graph. A context manager; `close` frees what the second
    context holds on the GPU, in the GPU's context.
    """

    def __init__(self, tensorrt: TensorRt, engine: Any, cuda: Cuda) -> None:
        self._tensorrt, self._cuda = tensorrt, cuda
        # Attributes, because a local one would live on in the traceback of an error.
        self._engine: Any = engine
        self._inspector: Any = None
        self._context: Any = None
        self._profiler: Any = None

    def layers_json(self) -> str:
        """The layers as the inspector gives them. EngineError when there is none."""
        module = self._tensorrt.module
        with self._cuda.current():
            self._inspector = self._engine.create_engine_inspector()
            if self._inspector is None:
                raise self._refused("without an engine inspector", "")
            return str(self._inspector.get_engine_information(module.LayerInformationFormat.JSON))

    def times_ms(
        self,
        shapes: Mapping[str, Any],
        addresses: Mapping[str, int],
        *,
        stream: Stream,
        runs: int,
    ) -> Dict[str, float]:
        """The mean time of each layer in one run; {} if none is told.

        `shapes` of the inputs, `addresses` of all ports. Raises EngineError when a run fails, as it
        does where there is no room for a second context.
        """
        with errors_of(self._tensorrt) as errors, self._cuda.current():
            self._context = self._engine.create_execution_context()
            if self._context is None:
                raise self._refused("which makes no second execution context", errors_text(errors))
            ready = all(self._context.set_input_shape(*item) for item in shapes.items())
            ready = ready and all(
                self._context.set_tensor_address(*item) for item in addresses.items()
            )
            for number in range(UNTIMED_RUNS + runs if ready else 0):
                if number == UNTIMED_RUNS:
                    stream.synchronize()
                    self._profiler = _profiler(self._tensorrt.module)
                    # execute_async_v3 then reports to it, for enqueue_emits_profile is on.
                    self._context.profiler = self._profiler
                ready = ready and self._context.execute_async_v3(stream.handle)
                stream.synchronize()
            if not ready:
                raise self._refused("which does not run with a profiler", errors_text(errors))
        total: Mapping[str, float] = self._profiler.total_ms
        return {name: ms / runs for name, ms in total.items()}

    def close(self) -> None:
        try:
            with self._cuda.current():
                self._forget()
        finally:
            self._forget()

    def _forget(self) -> None:
        # In this order: a context before what it reports to, both before the engine.
        self._context = None
        self._profiler = None
        self._inspector = None
        self._engine = None

    def __enter__(self) -> LayerAudit:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _refused(self, what: str, reason: str) -> EngineError:
        return EngineError(
            f"an engine {what}" + (f": {reason}" if reason else ""),
            expected=f"one whose layers {self._tensorrt} tells",
            do="go on without the audit of its layers",
        )


def _profiler(module: Any) -> Any:
    """An IProfiler that adds up the time of each layer, in ms."""
    base: Any = module.IProfiler

    class AddingProfiler(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)  # pybind11 needs it called by this name.
            self.total_ms: Dict[str, float] = defaultdict(float)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            with contextlib.suppress(Exception):  # C++ calls this and takes no exception.
                self.total_ms[layer_name] += ms

    return AddingProfiler()
