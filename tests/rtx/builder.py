"""TensorRT's parser and builder with everything they said, apart from the code under test."""

from __future__ import annotations

import gc
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

Shape = tuple[int, ...]


@dataclass
class Outcome:
    """errors: parser errors as (node name, operator, description), then those of the log.

    tensors: name -> (type, shape) of inputs and outputs. layers: how many of each kind.
    types: (kind of layer, type of its first output) -> how many. fused: layers that the builder
    found to be part of self-attention. plan_bytes: 0 where nothing was built.
    """

    errors: list[tuple[str, str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    tensors: dict[str, tuple[str, Shape]] = field(default_factory=dict)
    layers: Counter[str] = field(default_factory=Counter)
    types: Counter[tuple[str, str]] = field(default_factory=Counter)
    fused: set[str] = field(default_factory=set)
    strongly_typed: bool = False
    plan_bytes: int = 0


def outcome_of_build(
    trt: ModuleType, onnx_path: Path, *, batch: tuple[int, int, int] = (1, 1, 1)
) -> Outcome:
    """Parse `onnx_path` into a strongly typed network and build it; never raises for its content.

    batch: (min, opt, max) for inputs whose first axis is free.
    """
    logger = _recorder(trt)
    outcome = Outcome()
    builder = trt.Builder(logger)
    flag = trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    network = builder.create_network(1 << int(flag))
    outcome.strongly_typed = network.get_flag(flag)
    parser = trt.OnnxParser(network, logger)
    if parser.parse(onnx_path.read_bytes()):
        _describe(network, outcome)
        config = builder.create_builder_config()
        config.add_optimization_profile(_profile(builder, network, batch))
        plan = builder.build_serialized_network(network, config)
        outcome.plan_bytes = 0 if plan is None else plan.nbytes
        del plan, config
    for i in range(parser.num_errors):
        error = parser.get_error(i)
        outcome.errors.append((error.node_name(), error.node_operator(), error.desc()))
    _sort_messages(trt, logger.messages, outcome)
    del parser, network, builder
    gc.collect()  # while one of them lives, the next build's logger is ignored
    return outcome


def _recorder(trt: ModuleType) -> Any:
    class Recorder(trt.ILogger):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.messages: list[tuple[Any, str]] = []

        def log(self, severity: Any, message: str) -> None:
            self.messages.append((severity, message))

    return Recorder()


def _describe(network: Any, outcome: Outcome) -> None:
    sides = [(network.num_inputs, network.get_input), (network.num_outputs, network.get_output)]
    for count, get in sides:
        for tensor in map(get, range(count)):
            outcome.tensors[tensor.name] = (tensor.dtype.name, tuple(tensor.shape))
    for layer in map(network.get_layer, range(network.num_layers)):
        outcome.layers[layer.type.name] += 1
        outcome.types[layer.type.name, layer.get_output(0).dtype.name] += 1


def _profile(builder: Any, network: Any, batch: tuple[int, int, int]) -> Any:
    profile = builder.create_optimization_profile()
    for tensor in map(network.get_input, range(network.num_inputs)):
        rest = tuple(tensor.shape)[1:]
        profile.set_shape(tensor.name, *((n, *rest) for n in batch))
    return profile


def _sort_messages(trt: ModuleType, messages: list[tuple[Any, str]], outcome: Outcome) -> None:
    bad = (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR)
    for severity, message in messages:
        if severity in bad:
            outcome.errors.append(("", "", message))
        elif severity == trt.ILogger.WARNING:
            outcome.warnings.append(message)
        elif message.startswith("Found ") and "part of self-attention pattern" in message:
            outcome.fused.add(message.split()[1])
