"""A `tensorrt` module whose builder records what it was asked for, with one version's names only.

Touching a name that this version lacks is an AttributeError, as with the real bindings, which also
take no attribute that they do not have. The parser ignores the file: `module.graph` says what it
finds in it.
"""

from __future__ import annotations

import enum
from types import ModuleType, SimpleNamespace

FLAGS = ["GPU_FALLBACK", "REFIT", "TF32", "FP16", "INT8", "OBEY_PRECISION_CONSTRAINTS"]


class DataType(enum.Enum):
    FLOAT, HALF, INT8, INT32, BOOL, UINT8 = range(6)

    @property
    def itemsize(self):
        return {"FLOAT": 4, "HALF": 2, "INT32": 4}.get(self.name, 1)


class LayerType(enum.Enum):
    CONSTANT, CAST, QUANTIZE, DEQUANTIZE, SHAPE, ASSERTION, CONVOLUTION, SHUFFLE, TOPK = range(9)


class Tensor(SimpleNamespace):
    def __init__(self, name, dtype, shape):
        super().__init__(name=name, dtype=DataType[dtype], shape=shape)


class Strict:
    """Takes the attributes of `_names` and no others, as a pybind11 class does."""

    _names = ()

    def __setattr__(self, name, value):
        if name not in self._names and not name.startswith("_"):
            raise AttributeError(f"{type(self).__name__} has no attribute {name}")
        object.__setattr__(self, name, value)


class Layer(Strict):
    """`outputs` and `inputs` are dtype names, an input that is left out being None; `node` is the
    ONNX node it was made of, told from 8.6 on.
    """

    _names = ("name", "precision")

    def __init__(
        self,
        name,
        kind="CONVOLUTION",
        outputs=("FLOAT",),
        shape=(1, 4),
        node=None,
        inputs=(None,),
    ):
        self.name = name
        self._type = LayerType[kind]
        self._outputs = [Tensor(f"{name}:{i}", dtype, shape) for i, dtype in enumerate(outputs)]
        self._inputs = [
            None if dtype is None else Tensor(f"{name}<{i}", dtype, shape)
            for i, dtype in enumerate(inputs)
        ]
        self._held = {}
        self._metadata = "" if node is None else f"[ONNX Layer: {node}]"
        self._version = (0,)

    @property
    def metadata(self):
        if self._version < (8, 6):
            raise AttributeError("ILayer has no attribute metadata")
        return self._metadata

    type = property(lambda self: self._type)
    num_inputs = property(lambda self: len(self._inputs))
    num_outputs = property(lambda self: len(self._outputs))

    def get_input(self, index):
        return self._inputs[index]

    def get_output(self, index):
        return self._outputs[index]

    def __setattr__(self, name, value):
        if name == "precision" and self._version >= (11,):
            raise AttributeError("ILayer has no attribute precision")
        super().__setattr__(name, value)

    def set_output_type(self, index, dtype):
        if self._version >= (11,):
            raise AttributeError("ILayer has no attribute set_output_type")
        self._held[index] = dtype

    @property
    def _held_outputs(self):
        """Output indices whose type was set to FLOAT, and "precision"."""
        held = {index for index, dtype in self._held.items() if dtype == DataType.FLOAT}
        return held | (
            {"precision"} if getattr(self, "precision", None) == DataType.FLOAT else set()
        )


class Graph:
    """What the parser finds: layers, one input, outputs, or errors instead."""

    def __init__(
        self,
        layers=(),
        batch=1,
        hw=(2, 3),
        outputs=None,
        errors=(),
        messages=(),
        takes=("image", "UINT8"),
    ):
        self.layers = list(layers) or [Layer("/net/Conv")]
        self.image = Tensor(*takes, (batch, *hw, 3))
        self.outputs = outputs or [Tensor("labels", "UINT8", (batch, *hw))]
        self.errors, self.messages = list(errors), list(messages)


def parser_error(text, *, number=0, name=None, operator=None, code="INVALID_NODE"):
    """`name` and `operator` exist from TensorRT 10 on."""
    error = SimpleNamespace(desc=lambda: text, node=lambda: number, code=lambda: code)
    if name is not None:
        error.node_name, error.node_operator = (lambda: name), (lambda: operator)
    return error


def fake_module(version="10.3.0", *, graph=None, plan=b"ftrt plan", on_build=None, dla_cores=0):
    """The module. `on_build(config, monitor)` runs inside the build and may return a plan.

    A `plan` of None is a build that fails. `module.calls` is a list of (name, value) in order,
    `module.configs` the configurations, `module.logger` the builder's logger.
    """
    parts = tuple(int(part) for part in version.split("."))
    module = ModuleType("tensorrt")
    module.__version__ = version
    module.calls, module.configs = [], []
    module.graph = Graph() if graph is None else graph
    module.plan, module.on_build, module.logger = plan, on_build, None
    for layer in module.graph.layers:
        layer._version = parts
    _add_enums(module, parts)
    _add_classes(module, parts)
    module.Builder.num_DLA_cores = dla_cores
    return module


def _add_enums(module, parts):
    flags = list(FLAGS)
    flags += ["VERSION_COMPATIBLE"] if parts >= (8, 6) else []
    flags += ["STRIP_PLAN", "REFIT_IDENTICAL"] if parts >= (10,) else []
    if parts >= (11,):
        flags = [name for name in flags if name not in ("FP16", "INT8", FLAGS[-1])]
    creation = ["EXPLICIT_BATCH"] if parts < (11,) else []
    creation += ["STRONGLY_TYPED"] if parts >= (10,) else []
    module.BuilderFlag = enum.IntEnum("BuilderFlag", flags)
    module.NetworkDefinitionCreationFlag = enum.IntEnum("Creation", creation)
    module.MemoryPoolType = enum.IntEnum("MemoryPoolType", ["WORKSPACE"])
    module.ProfilingVerbosity = enum.IntEnum("ProfilingVerbosity", ["DETAILED"])
    module.DeviceType = enum.IntEnum("DeviceType", ["GPU", "DLA"])
    module.DataType, module.LayerType = DataType, LayerType
    if parts >= (8, 6):
        module.HardwareCompatibilityLevel = enum.IntEnum("Level", ["NONE", "AMPERE_PLUS"])


def _add_classes(module, parts):
    module.ILogger = type("ILogger", (), {})
    if parts >= (10,):
        module.IProgressMonitor = type("IProgressMonitor", (), {})
    if parts < (11,):
        module.IInt8EntropyCalibrator2 = type("IInt8EntropyCalibrator2", (), {})
    names = ["profiling_verbosity", "default_device_type", "DLA_core", "int8_calibrator"]
    names += ["builder_optimization_level"] if parts >= (8, 6) else []
    names += ["hardware_compatibility_level"] if parts >= (8, 6) else []
    names += ["progress_monitor"] if parts >= (10,) else []
    base = _CalibratingConfig if parts < (11,) else _Config
    if parts >= (11,):
        names.remove("int8_calibrator")
    Config = type("IBuilderConfig", (base,), {"_names": tuple(names)})

    class Builder:
        def __init__(self, logger):
            module.logger = logger

        def create_network(self, flags):
            module.calls.append(("create_network", flags))
            return _Network(module.graph)

        def create_builder_config(self):
            module.configs.append(Config(module))
            return module.configs[-1]

        def create_optimization_profile(self):
            return _Profile(module)

        def build_serialized_network(self, network, config):
            made = module.on_build(config, getattr(config, "progress_monitor", None))
            return module.plan if made is None else made

    class OnnxParser:
        def __init__(self, network, logger):
            self.logger = logger
            self.num_errors = 0

        def parse(self, data):
            module.calls.append(("parse", data))
            for severity, text in module.graph.messages:
                self.logger.log(severity, text)
            self.num_errors = len(module.graph.errors)
            return self.num_errors == 0

        def get_error(self, index):
            return module.graph.errors[index]

    module.on_build = module.on_build or (lambda config, monitor: None)
    module.Builder, module.OnnxParser, module.IBuilderConfig = Builder, OnnxParser, Config
    module.INetworkDefinition, module.IOptimizationProfile = _Network, _Profile
    module.ITimingCache = TimingCache


class _Network:
    def __init__(self, graph):
        self._graph = graph
        self.num_inputs, self.num_outputs = 1, len(graph.outputs)
        self.num_layers = len(graph.layers)

    def get_input(self, index):
        return self._graph.image

    def get_output(self, index):
        return self._graph.outputs[index]

    def get_layer(self, index):
        return self._graph.layers[index]


class _Profile:
    def __init__(self, module):
        self.set_shape = lambda *shapes: module.calls.append(("set_shape", shapes))


class TimingCache:
    """Takes data that begins with "cache of <version>"; serializes as that and one more line."""

    def __init__(self, data):
        self.data = data

    def serialize(self):
        return self.data + b"+"


class _Config(Strict):
    def __init__(self, module):
        self._module, self._cache = module, None
        self._flags = set()

    @property
    def flags(self):
        return {flag.name for flag in self._flags}

    def set_flag(self, flag):
        self._flags.add(flag)

    def set_memory_pool_limit(self, pool, size):
        self._module.calls.append(("workspace", size))

    def add_optimization_profile(self, profile):
        self._module.calls.append(("profile", profile))

    def create_timing_cache(self, data):
        if data and not data.startswith(b"cache of "):
            return None
        return TimingCache(data or b"cache of " + self._module.__version__.encode())

    def set_timing_cache(self, cache, ignore_mismatch):
        own = b"cache of " + self._module.__version__.encode()
        if not ignore_mismatch and not cache.data.startswith(own):
            return False
        self._cache = cache
        return True

    def get_timing_cache(self):
        return self._cache


class _CalibratingConfig(_Config):
    def set_calibration_profile(self, profile):
        self._module.calls.append(("calibration_profile", profile))
