"""A `tensorrt` module whose engines band an image: label = image[..., 0] // step.

An engine that takes bands does the same with their values; it composes nothing.

It has the names that the real bindings of a version have, runs on a `RecordingCuda`, and refuses
what TensorRT refuses: a call without a current context, two threads in one execution context, a
free batch without a shape, an address of 0, a capture before the first run.
A plan is JSON, see `plan_bytes`.
"""

from __future__ import annotations

import enum
import json
import threading
import weakref
from types import SimpleNamespace

import numpy as np
from fake_cuda import Work

KERNEL_MS = 10.0


class Severity(enum.IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class ILogger:
    Severity = Severity
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = Severity

    def log(self, severity, message):
        raise NotImplementedError


class Logger(ILogger):
    def __init__(self, severity=Severity.WARNING):
        self.min_severity = severity

    def log(self, severity, message):
        pass


class DataType(enum.Enum):
    FLOAT = 0
    HALF = 1
    INT8 = 2
    INT32 = 3
    BOOL = 4
    UINT8 = 5
    INT64 = 8


class LayerInformationFormat(enum.Enum):
    ONELINE = 0
    JSON = 1


class IProfiler:
    def report_layer_time(self, layer_name, ms):
        raise NotImplementedError


class TensorIOMode(enum.Enum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


def plan_bytes(
    *,
    batch=1,
    hw=(2, 3),
    channels=3,
    step=64,
    classes=4,
    outputs=("labels",),
    takes="image",
    tensors=None,
    stripped=False,
    layers=(),
    times=(),
    refuses=(),
):
    """A plan of the fake. `batch` is a number, or (smallest, usual, largest) where it is free.

    `takes` is the input's name, "image" or "bands".

    `tensors` replaces [name, "INPUT" or "OUTPUT", dtype, shape] of all inputs and outputs.
    `layers` is what the inspector lists, `times` [layer name, ms] what a profiler is told of a run.
    `refuses` names what fails: "deserialize", "context", "execute", "capture", "shape", "inspect",
    "second context", "profile".
    """
    size = -1 if isinstance(batch, tuple) else batch
    made = {
        "labels": ["labels", "OUTPUT", "UINT8", [size, *hw]],
        "logits": ["logits", "OUTPUT", "FLOAT", [size, classes, *hw]],
    }
    kind = "FLOAT" if takes == "bands" else "UINT8"
    ports = [[takes, "INPUT", kind, [size, *hw, channels]]]
    ports += [made[name] for name in outputs]
    plan = {
        "tensors": ports if tensors is None else tensors,
        "profile": list(batch) if isinstance(batch, tuple) else [batch] * 3,
        "step": step,
        "stripped": stripped,
        "layers": list(layers),
        "times": list(times),
        "refuses": list(refuses),
    }
    return json.dumps(plan).encode("utf-8")


def logits_of(image, classes, step):
    """(N, K, H, W) float32: 1 for the band, falling by its distance."""
    band = (image[..., 0] // step)[:, np.newaxis].astype(np.float32)
    return 1 - np.abs(np.arange(classes, dtype=np.float32)[:, np.newaxis, np.newaxis] - band)


def fake_tensorrt(cuda, version="10.3.0"):
    """A module object; `made` on it has a weak reference to each runtime, engine and context."""
    major = int(version.split(".")[0])
    made = []

    class Native:
        """What TensorRT's destructors free on the GPU: in a context, and from the inside out."""

        def __init__(self):
            made.append(weakref.ref(self))

        def __del__(self):
            assert cuda.is_current() or cuda.closed, "no CUDA context on this thread"
            cuda.note("free_" + type(self).__name__)

    class Runtime(Native):
        def __init__(self, logger):
            assert isinstance(logger, ILogger)
            super().__init__()
            self.logger, self.DLA_core, self.engine_host_code_allowed = logger, -1, False

        def deserialize_cuda_engine(self, plan):
            assert cuda.is_current(), "no CUDA context on this thread"
            cuda.note("deserialize", self.engine_host_code_allowed, self.DLA_core)
            try:
                found = json.loads(bytes(plan).decode("utf-8"))
            except ValueError:
                found = {"refuses": ["deserialize"]}
            if "deserialize" in found["refuses"]:
                self.logger.log(Severity.ERROR, "Serialization assertion magicTag failed")
                return None
            return ICudaEngine(found, self.logger)

    class ICudaEngine(Native):
        num_optimization_profiles = 1

        def __init__(self, plan, logger):
            super().__init__()
            self.plan, self.logger, self.refittable = plan, logger, plan["stripped"]
            self.num_io_tensors = len(plan["tensors"])
            self.contexts = 0
            self.weights = not plan["stripped"]
            if major < 11:
                self.device_memory_size = 5_000_000
            if major >= 10:
                self.device_memory_size_v2 = 5_000_000

        def _port(self, name):
            return next(port for port in self.plan["tensors"] if port[0] == name)

        def get_tensor_name(self, index):
            return self.plan["tensors"][index][0]

        def get_tensor_mode(self, name):
            return TensorIOMode[self._port(name)[1]]

        def get_tensor_dtype(self, name):
            return DataType[self._port(name)[2]]

        def get_tensor_shape(self, name):
            return tuple(self._port(name)[3])

        def get_tensor_profile_shape(self, name, profile_index):
            assert profile_index == 0
            shape = self._port(name)[3]
            return [(size, *shape[1:]) for size in self.plan["profile"]]

        def create_execution_context(self):
            assert cuda.is_current(), "no CUDA context on this thread"
            cuda.note("create_context")
            self.contexts += 1
            refusals = ["context"] + (["second context"] if self.contexts > 1 else [])
            if any(refusal in self.plan["refuses"] for refusal in refusals):
                self.logger.log(Severity.ERROR, "OutOfMemory: cannot allocate 5000000 bytes")
                return None
            return IExecutionContext(self)

        def create_engine_inspector(self):
            assert cuda.is_current(), "no CUDA context on this thread"
            if "inspect" in self.plan["refuses"]:
                self.logger.log(Severity.ERROR, "createEngineInspector: not supported")
                return None
            return EngineInspector(self)

    class EngineInspector(Native):
        def __init__(self, engine):
            super().__init__()
            self.engine = engine

        def get_engine_information(self, format):
            assert format is LayerInformationFormat.JSON
            layers = json.dumps({"Layers": self.engine.plan["layers"], "Bindings": ["image"]})
            # As the real one: control characters stand bare in its text.
            return layers.replace("\\u001f", "\x1f").replace("\\u001e", "\x1e")

    class IExecutionContext(Native):
        profiler = None

        def __init__(self, engine):
            super().__init__()
            self.engine, self.addresses, self.ran = engine, {}, False
            shape = engine.get_tensor_shape(engine.get_tensor_name(0))
            self.shape = None if -1 in shape else shape
            self.inside = threading.Lock()

        def set_input_shape(self, name, shape):
            assert cuda.is_current(), "no CUDA context on this thread"
            cuda.note("set_input_shape", tuple(shape))
            low, _, high = self.engine.plan["profile"]
            if not low <= shape[0] <= high or "shape" in self.engine.plan["refuses"]:
                return self._refused("setInputShape: out of the profile's range")
            if tuple(shape) != self.shape:
                self.ran = False
            self.shape = tuple(shape)
            return True

        def set_tensor_address(self, name, memory):
            self.addresses[name] = memory
            return memory != 0 or self._refused("setTensorAddress: null")

        def execute_async_v3(self, stream_handle):
            assert self.inside.acquire(blocking=False), "two threads in one execution context"
            try:
                return self._execute(cuda._streams[stream_handle - 1001])
            finally:
                self.inside.release()

        def _execute(self, stream):
            assert cuda.is_current(), "no CUDA context on this thread"
            plan = self.engine.plan
            cuda.note("execute", stream.number)
            if self.shape is None or len(self.addresses) < self.engine.num_io_tensors:
                return self._refused("executeAsync: shapes or addresses are missing")
            if "execute" in plan["refuses"] or not self.engine.weights:
                return self._refused("executeAsync: CUDA error 700, illegal memory access")
            if stream.recording is not None and not (self.ran and "capture" not in plan["refuses"]):
                return self._refused("executeAsync: operation not permitted while capturing")
            if self.profiler is not None:
                if "profile" in plan["refuses"] or stream.recording is not None:
                    return self._refused("executeAsync: cannot be profiled")
                for name, ms in plan["times"]:
                    self.profiler.report_layer_time(name, ms)
            self.ran = True
            shape, addresses, step = self.shape, dict(self.addresses), plan["step"]
            classes = self.engine.get_tensor_shape("logits")[1] if "logits" in addresses else 0

            given = self.engine.get_tensor_name(0)
            dtype = np.float32 if given == "bands" else np.uint8
            nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
            height, width = self.engine.get_tensor_shape(self.engine.get_tensor_name(1))[-2:]

            def run():
                image = cuda.bytes_at(addresses[given], nbytes).view(dtype).reshape(shape)
                if "labels" in addresses:
                    labels = (image[:, :height, :width, 0] // step).astype(np.uint8)
                    cuda.bytes_at(addresses["labels"], labels.size)[:] = labels.ravel()
                if "logits" in addresses:
                    logits = logits_of(image, classes, step)
                    target = cuda.bytes_at(addresses["logits"], logits.nbytes)
                    target.view(np.float32)[:] = logits.ravel()

            cuda.enqueue(stream, Work("kernel", run, cost_ms=KERNEL_MS))
            return True

        def _refused(self, message):
            self.engine.logger.log(Severity.ERROR, message)
            return False

    class Refitter:
        def __init__(self, engine, logger):
            assert cuda.is_current(), "no CUDA context on this thread"
            self.engine, self.logger, self.ready = engine, logger, False

        def refit_cuda_engine(self):
            self.engine.weights = self.ready
            return self.ready

    class OnnxParserRefitter:
        def __init__(self, refitter, logger):
            self.refitter, self.num_errors = refitter, 0

        def refit_from_bytes(self, model):
            cuda.note("refit_from_bytes", model)
            self.refitter.ready = model.startswith(b"weights")
            if not self.refitter.ready:
                self.refitter.logger.log(Severity.ERROR, "refit: conv1.weight is missing")
            return self.refitter.ready

    module = SimpleNamespace(
        __name__="tensorrt",
        __version__=version,
        ILogger=ILogger,
        Logger=Logger,
        DataType=DataType,
        TensorIOMode=TensorIOMode,
        LayerInformationFormat=LayerInformationFormat,
        IProfiler=IProfiler,
        EngineInspector=EngineInspector,
        Runtime=Runtime,
        ICudaEngine=ICudaEngine,
        IExecutionContext=IExecutionContext,
        Refitter=Refitter,
        made=made,
    )
    if major >= 10:
        module.OnnxParserRefitter = OnnxParserRefitter
    return module
