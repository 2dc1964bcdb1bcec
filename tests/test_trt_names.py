"""What engines/trt uses of TensorRT exists, under that name and with those parameters.

Checked against the real Python bindings of TensorRT 8.6.1, 10.3, 10.13, 10.16 and 11.4, imported
over libraries of empty functions, and of TensorRT-RTX 1.7.1. What a name does is not seen here.

`USES` is every name used, with the versions that need it. The scan of the source makes sure that
none is missing from it: neither an attribute that TensorRT has, nor one that is read from a
variable which holds an object of TensorRT.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engines.trt.api import TENSORRT, TENSORRT_RTX, TensorRt
from tests.conftest import skip_or_fail
from tests.rtx.bindings import BINDINGS, RTX, Names, names_of_bindings
from tests.rtx.wheels_folder import FixtureUnavailable

SOURCES = Path(__file__).resolve().parent.parent / "engines" / "trt"

When = Callable[[TensorRt], bool]


def always(_: TensorRt) -> bool:
    return True


def before_10(trt: TensorRt) -> bool:
    return not trt.is_rtx and trt.version < (10, 0, 0)


def weakly_typed(trt: TensorRt) -> bool:
    return not trt.strongly_typed_only()


# Which versions each name is used with: those whose TensorRt says so.
USES: dict[When, str] = {
    always: """
        Builder Runtime OnnxParser ILogger NetworkDefinitionCreationFlag DataType LayerType
        ProfilingVerbosity MemoryPoolType BuilderFlag TensorIOMode LayerInformationFormat IProfiler
        LayerInformationFormat.JSON
        DataType.FLOAT DataType.HALF DataType.UINT8 DataType.itemsize LayerType.QUANTIZE
        ProfilingVerbosity.DETAILED MemoryPoolType.WORKSPACE TensorIOMode.INPUT
        Builder.create_network Builder.create_builder_config Builder.create_optimization_profile
        Builder.build_serialized_network
        IBuilderConfig.add_optimization_profile IBuilderConfig.set_flag
        IBuilderConfig.set_memory_pool_limit IBuilderConfig.profiling_verbosity
        IOptimizationProfile.set_shape BuilderFlag.REFIT
        OnnxParser.parse OnnxParser.num_errors OnnxParser.get_error
        ParserError.code ParserError.desc
        INetworkDefinition.num_inputs INetworkDefinition.get_input
        INetworkDefinition.num_outputs INetworkDefinition.get_output
        INetworkDefinition.num_layers INetworkDefinition.get_layer
        ILayer.name ILayer.type ILayer.num_inputs ILayer.get_input ILayer.num_outputs
        ILayer.get_output
        ITensor.name ITensor.dtype ITensor.shape
        Runtime.deserialize_cuda_engine
        ICudaEngine.create_execution_context ICudaEngine.num_io_tensors ICudaEngine.get_tensor_name
        ICudaEngine.get_tensor_shape ICudaEngine.get_tensor_dtype ICudaEngine.get_tensor_mode
        ICudaEngine.get_tensor_profile_shape
        IExecutionContext.set_input_shape IExecutionContext.set_tensor_address
        IExecutionContext.execute_async_v3 IExecutionContext.profiler
        ICudaEngine.create_engine_inspector EngineInspector.get_engine_information
    """,
    before_10: "NetworkDefinitionCreationFlag.EXPLICIT_BATCH ParserError.node",
    weakly_typed: """
        BuilderFlag.FP16 BuilderFlag.INT8 BuilderFlag.OBEY_PRECISION_CONSTRAINTS
        ILayer.precision ILayer.set_output_type
        LayerType.CONSTANT LayerType.CAST LayerType.DEQUANTIZE LayerType.SHAPE LayerType.ASSERTION
    """,
    TensorRt.strongly_typed_only: "NetworkDefinitionCreationFlag.STRONGLY_TYPED",
    TensorRt.has_implicit_int8: """
        IInt8EntropyCalibrator2 IBuilderConfig.int8_calibrator
        IBuilderConfig.set_calibration_profile
        LayerType.SHUFFLE IConstantLayer IConstantLayer.weights
    """,
    TensorRt.has_progress_monitor: "IProgressMonitor IBuilderConfig.progress_monitor",
    TensorRt.has_node_errors: "ParserError.node_name ParserError.node_operator",
    TensorRt.has_layer_metadata: "ILayer.metadata",
    TensorRt.has_timing_cache: """
        IBuilderConfig.create_timing_cache IBuilderConfig.set_timing_cache
        IBuilderConfig.get_timing_cache ITimingCache.serialize
    """,
    TensorRt.has_opt_level: "IBuilderConfig.builder_optimization_level",
    TensorRt.has_version_compatible: """
        BuilderFlag.VERSION_COMPATIBLE Runtime.engine_host_code_allowed
    """,
    TensorRt.has_hardware_compatible: """
        HardwareCompatibilityLevel HardwareCompatibilityLevel.AMPERE_PLUS
        IBuilderConfig.hardware_compatibility_level
    """,
    TensorRt.has_strip_weights: "BuilderFlag.STRIP_PLAN BuilderFlag.REFIT_IDENTICAL",
    TensorRt.has_onnx_refitter: """
        Refitter Refitter.refit_cuda_engine OnnxParserRefitter OnnxParserRefitter.refit_from_bytes
    """,
    TensorRt.has_dla: """
        DeviceType DeviceType.DLA BuilderFlag.GPU_FALLBACK Builder.num_DLA_cores
        IBuilderConfig.default_device_type IBuilderConfig.DLA_core Runtime.DLA_core
    """,
}

# Of each of these one is enough; the code takes what is there.
EITHER = [("ICudaEngine.device_memory_size", "ICudaEngine.device_memory_size_v2")]

# What a call passes, in order. Where TensorRT calls us (ILogger, IProgressMonitor, calibrator):
# what it passes.
CALLS = {
    "Builder.__init__": "logger",
    "Builder.create_network": "flags",
    "Builder.create_builder_config": "",
    "Builder.create_optimization_profile": "",
    "Builder.build_serialized_network": "network config",
    "IBuilderConfig.add_optimization_profile": "profile",
    "IBuilderConfig.set_flag": "flag",
    "IBuilderConfig.set_memory_pool_limit": "pool pool_size",
    "IBuilderConfig.set_calibration_profile": "profile",
    "IBuilderConfig.create_timing_cache": "serialized_timing_cache",
    "IBuilderConfig.set_timing_cache": "cache ignore_mismatch",
    "IBuilderConfig.get_timing_cache": "",
    "ITimingCache.serialize": "",
    "IOptimizationProfile.set_shape": "input min opt max",
    "OnnxParser.__init__": "network logger",
    "OnnxParser.parse": "model",
    "OnnxParser.get_error": "index",
    "ParserError.code": "",
    "ParserError.desc": "",
    "ParserError.node": "",
    "ParserError.node_name": "",
    "ParserError.node_operator": "",
    "INetworkDefinition.get_input": "index",
    "INetworkDefinition.get_output": "index",
    "INetworkDefinition.get_layer": "index",
    "ILayer.get_input": "index",
    "ILayer.get_output": "index",
    "ILayer.set_output_type": "index dtype",
    "Runtime.__init__": "logger",
    "Runtime.deserialize_cuda_engine": "serialized_engine",
    "ICudaEngine.create_execution_context": "",
    "ICudaEngine.get_tensor_name": "index",
    "ICudaEngine.get_tensor_shape": "name",
    "ICudaEngine.get_tensor_dtype": "name",
    "ICudaEngine.get_tensor_mode": "name",
    "ICudaEngine.get_tensor_profile_shape": "name profile_index",
    "IExecutionContext.set_input_shape": "name shape",
    "IExecutionContext.set_tensor_address": "name memory",
    "IExecutionContext.execute_async_v3": "stream_handle",
    "ICudaEngine.create_engine_inspector": "",
    "EngineInspector.get_engine_information": "format",
    "IProfiler.__init__": "",
    "IProfiler.report_layer_time": "layer_name ms",
    "Refitter.__init__": "engine logger",
    "Refitter.refit_cuda_engine": "",
    "OnnxParserRefitter.__init__": "refitter logger",
    "OnnxParserRefitter.refit_from_bytes": "model",
    "ILogger.__init__": "",
    "ILogger.log": "severity msg",
    "IProgressMonitor.__init__": "",
    "IProgressMonitor.phase_start": "phase_name parent_phase num_steps",
    "IProgressMonitor.step_complete": "phase_name step",
    "IProgressMonitor.phase_finish": "phase_name",
    "IInt8EntropyCalibrator2.__init__": "",
    "IInt8EntropyCalibrator2.get_batch_size": "",
    "IInt8EntropyCalibrator2.get_batch": "names",
    "IInt8EntropyCalibrator2.read_calibration_cache": "",
    "IInt8EntropyCalibrator2.write_calibration_cache": "cache",
}
# Our classes that TensorRT calls, by the class they are derived from.
OURS_CALLED = {
    "ForwardingLogger": "ILogger",
    "BuildMonitor": "IProgressMonitor",
    "Calibrator": "IInt8EntropyCalibrator2",
    "AddingProfiler": "IProfiler",
}

# Names that TensorRT has as well, but which mean files, arrays, lists or our own objects here.
NOT_THEIRS = """
    append clear destroy enqueue file float32 format free kind log logger max message nbytes pop
    read remove seek size start tactic tensorrt uint8 update value warnings write
"""
# Variables that hold an object of TensorRT, wherever engines/trt has them; an `engine` may also be
# the path of one.
HOLDERS = """
    builder config engine inspector layer module network parser profile refitter
    _context _engine _inspector _runtime
"""
LISTED = {name: when for when, text in USES.items() for name in text.split()}


def listed_attributes() -> set[str]:
    """The last part of every name listed."""
    names = {*LISTED, *CALLS, *(name for names in EITHER for name in names)}
    return {name.rpartition(".")[2] for name in names}


def names_or_skip(which: str) -> Names:
    try:
        return names_of_bindings(which)
    except FixtureUnavailable as error:
        skip_or_fail(f"no bindings of {which}: {error}")


def tensorrt_of(names: Names, which: str) -> TensorRt:
    return TensorRt(None, TENSORRT_RTX if which == RTX else TENSORRT, names.version)


@pytest.mark.parametrize("which", BINDINGS)
def test_every_name_used_exists(which: str) -> None:
    names = names_or_skip(which)
    version = tensorrt_of(names, which)
    missing = [name for name, when in LISTED.items() if when(version) and not names.has(name)]
    missing += [" or ".join(either) for either in EITHER if not any(map(names.has, either))]
    assert missing == []


@pytest.mark.parametrize("which", BINDINGS)
def test_every_call_passes_what_the_bindings_take(which: str) -> None:
    names = names_or_skip(which)
    version = tensorrt_of(names, which)
    wrong = []
    for call, passed in CALLS.items():
        owner = call.partition(".")[0]
        if LISTED.get(call, LISTED.get(owner, always))(version):
            overloads = names.signatures(call) if names.has(call) else []
            if not any(_takes(overload, passed.split()) for overload in overloads):
                wrong.append((call, overloads))
    assert wrong == []


def _takes(overload: tuple[str, ...], passed: list[str]) -> bool:
    bare = [name.rstrip("=") for name in overload]
    rest = overload[len(passed) :]
    return bare[: len(passed)] == passed and all(name.endswith("=") for name in rest)


# For these, the bindings have the name exactly in the versions that have the capability.
MARKS = {
    "IInt8EntropyCalibrator2": TensorRt.has_implicit_int8,
    "BuilderFlag.FP16": weakly_typed,
    "ILayer.precision": weakly_typed,
    "IProgressMonitor": TensorRt.has_progress_monitor,
    "ParserError.node_name": TensorRt.has_node_errors,
    "ILayer.metadata": TensorRt.has_layer_metadata,
    "IBuilderConfig.builder_optimization_level": TensorRt.has_opt_level,
    "BuilderFlag.STRIP_PLAN": TensorRt.has_strip_weights,
    "OnnxParserRefitter": TensorRt.has_onnx_refitter,
    "NetworkDefinitionCreationFlag.EXPLICIT_BATCH": lambda trt: (
        not trt.is_rtx and trt.version < (11, 0, 0)
    ),
}


@pytest.mark.parametrize("which", BINDINGS)
def test_a_capability_is_there_exactly_where_its_name_is(which: str) -> None:
    names = names_or_skip(which)
    version = tensorrt_of(names, which)
    assert {name: names.has(name) for name in MARKS} == {
        name: has(version) for name, has in MARKS.items()
    }


def sources() -> Iterator[tuple[str, ast.AST]]:
    paths = sorted(SOURCES.glob("*.py"))
    assert paths
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            yield path.name, node


def test_no_name_of_tensorrt_is_used_without_being_listed() -> None:
    theirs: set[str] = set()
    for which in BINDINGS:
        names = names_or_skip(which)
        theirs.update(names.module, *names.classes.values())
    listed = listed_attributes()
    unlisted = {
        f"{file}:{node.lineno} .{node.attr}"
        for file, node in sources()
        if isinstance(node, ast.Attribute)
        and node.attr in theirs
        and node.attr not in NOT_THEIRS.split()
        and node.attr not in listed
    }
    assert unlisted == set()


def test_nothing_is_read_from_an_object_of_tensorrt_without_being_listed() -> None:
    listed = listed_attributes()
    unlisted = {
        f"{file}:{node.lineno} {ast.unparse(node)}"
        for file, node in sources()
        if isinstance(node, ast.Attribute)
        and ast.unparse(node.value).rpartition(".")[2] in HOLDERS.split()
        and node.attr not in listed
        and not node.attr.startswith("__")
        and not hasattr(Path, node.attr)
    }
    assert unlisted == set()


def test_flags_and_kinds_that_are_given_as_text_are_listed() -> None:
    members = {"BuilderFlag", "LayerType"}
    known: set[str] = set()
    for which in BINDINGS:
        names = names_or_skip(which)
        known.update(f"{owner}.{name}" for owner in members for name in names.classes[owner])
    unlisted = set()
    for file, node in sources():
        # Their own places: config.py has flags, network.py kinds of layers.
        owner = {"config.py": "BuilderFlag", "network.py": "LayerType"}.get(file)
        if owner and isinstance(node, ast.Constant) and isinstance(node.value, str):
            name = f"{owner}.{node.value}"
            if node.value.isupper() and name in known and name not in LISTED:
                unlisted.add(f"{file}:{node.lineno} {name}")
    assert unlisted == set()


def test_our_classes_that_tensorrt_calls_take_what_it_passes() -> None:
    found = {}
    for _, node in sources():
        if isinstance(node, ast.ClassDef) and node.name in OURS_CALLED:
            for method in node.body:
                assert isinstance(method, ast.FunctionDef)
                call = f"{OURS_CALLED[node.name]}.{method.name}"
                if call in CALLS and method.name != "__init__":
                    found[call] = len(method.args.args) - 1
    wanted = {
        call: len(passed.split())
        for call, passed in CALLS.items()
        if call.partition(".")[0] in OURS_CALLED.values() and not call.endswith("__init__")
    }
    assert found == wanted
