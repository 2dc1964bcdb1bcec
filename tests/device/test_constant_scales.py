"""Cache lines for the constants of a network."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from fake_builder import LayerType, Tensor, fake_module

from engines.trt.api import tensorrt_from_module
from engines.trt.constant_scales import constant_scale_lines


class ILayer:
    """As the bindings give it: without the weights, until its class is named."""

    def __init__(self, kind, output, *, dtype="FLOAT", reads=None, weights=None):
        self.type = LayerType[kind]
        self._output, self._reads, self._weights = Tensor(output, dtype, (1,)), reads, weights

    def get_output(self, index):
        return self._output

    def get_input(self, index):
        return None if self._reads is None else Tensor(self._reads, "FLOAT", (1,))


class IConstantLayer(ILayer):
    @property
    def weights(self):
        return self._weights


def lines_of(*layers):
    module = fake_module("8.6.1")
    module.IConstantLayer = IConstantLayer
    network = SimpleNamespace(num_layers=len(layers), get_layer=lambda index: layers[index])
    return constant_scale_lines(network, tensorrt_from_module(module)).decode()


def test_a_scale_is_the_largest_magnitude_over_127():
    weights = np.array([[1.0, -190.5], [0.0, 127.0]], np.float32)  # 1.5 = 0x3fc00000
    assert lines_of(
        ILayer("CONSTANT", "(Unnamed Layer* 8) [Constant]_output", weights=weights)
    ) == ("(Unnamed Layer* 8) [Constant]_output: 3fc00000\n")


def test_a_reshaped_constant_has_the_same_scale_and_a_reshaped_activation_none():
    weights = np.array([127.0], np.float32)
    lines = lines_of(
        ILayer("SHUFFLE", "moved", reads="image"),
        ILayer("CONSTANT", "bias", weights=weights),
        ILayer("SHUFFLE", "wide", reads="bias"),
        ILayer("SHUFFLE", "wider", reads="wide"),
        ILayer("SHUFFLE", "free"),
        ILayer("CONVOLUTION", "y", reads="wider"),
    )
    assert lines == "bias: 3f800000\nwide: 3f800000\nwider: 3f800000\n"


def test_shapes_and_zeros_have_no_scale():
    shape = ILayer("CONSTANT", "shape", dtype="INT32", weights=np.array([1, 2], np.int32))
    zeros = ILayer("CONSTANT", "zeros", weights=np.zeros(3, np.float32))
    empty = ILayer("CONSTANT", "empty", weights=np.zeros(0, np.float32))
    assert lines_of(shape, zeros, empty, ILayer("SHUFFLE", "z", reads="zeros")) == ""
