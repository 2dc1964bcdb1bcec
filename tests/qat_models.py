"""Graphs and checkpoints that were quantized by others: ONNX Runtime's tools, torch's, by hand."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn

from exporter.onnx_graph import GraphSpec, onnx_from_model
from exporter.rewrites.rewritten import rewritten_for_export
from exporter.simplify import simplify_onnx
from tests.small_graphs import model_from_text
from tests.tiny_segformer import MEAN, STD, photo, tiny_net

HW = (64, 64)


def photos(count: int) -> np.ndarray[Any, Any]:
    """(count, 64, 64, 3) uint8."""
    return np.stack([photo(HW, seed) for seed in range(count)])


def write_plain_onnx(path: Path, *, batch: tuple[int, int, int] = (1, 1, 1)) -> Path:
    """The tiny network as this project exports it, in FP32."""
    net, spec = rewritten_for_export(tiny_net()), GraphSpec(HW, MEAN, STD, batch=batch)
    raw = path.with_name("raw.onnx")
    onnx_from_model(net, spec, raw, num_outputs=6)
    simplify_onnx(raw, path, batch=photos(batch[1]))
    raw.unlink()
    return path


def quantize_with_onnxruntime(source: Path, target: Path, **changes: Any) -> Path:
    """`quantize_static` to symmetric int8 with a scale per weight channel; `changes` to that."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            name = onnx.load(str(source)).graph.input[0].name
            self._batches: Iterator[Any] = iter([{name: image[None]} for image in photos(2)])

        def get_next(self) -> Any:
            return next(self._batches, None)

    options: dict[str, Any] = {
        "activation_type": QuantType.QInt8,
        "weight_type": QuantType.QInt8,
        "per_channel": True,
        "op_types_to_quantize": ["Conv", "MatMul"],
        "extra_options": {"ActivationSymmetric": True, "WeightSymmetric": True},
    }
    logging.disable(logging.WARNING)  # "Please consider pre-processing"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            quantize_static(str(source), str(target), Reader(), **{**options, **changes})
    finally:
        logging.disable(logging.NOTSET)
    return target


class FakeQuantized(nn.Module):
    """A small network with torch's own fake quantization, trained for two steps.

    (N, 3, 32, 32) float -> logits (N, 4, 16, 16) float: a strided convolution, a linear layer over
    channels, as in a transformer, and a classifier.
    """

    def __init__(self) -> None:
        super().__init__()
        from torch.ao.quantization import QuantStub

        self.quant = QuantStub()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.relu = nn.ReLU()
        self.mix = nn.Linear(8, 8)
        self.seg = nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.stem(self.quant(x)))
        rows = self.mix(x.flatten(2).transpose(1, 2))
        return self.seg(rows.transpose(1, 2).reshape(-1, 8, *x.shape[2:]))


def fake_quantized(net: nn.Module, batch: torch.Tensor) -> nn.Module:
    """`net` prepared by torch's eager QAT for symmetric int8, with the ranges of `batch`."""
    from torch.ao import quantization as ao

    symmetric = {"quant_min": -128, "quant_max": 127, "dtype": torch.qint8}
    activation = ao.FakeQuantize.with_args(
        observer=ao.MovingAverageMinMaxObserver, qscheme=torch.per_tensor_symmetric, **symmetric
    )
    weight = ao.FakeQuantize.with_args(
        observer=ao.MovingAveragePerChannelMinMaxObserver,
        qscheme=torch.per_channel_symmetric,
        ch_axis=0,
        **symmetric,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao is deprecated
        net.qconfig = ao.QConfig(activation, weight)  # type: ignore[assignment]
        net.train()
        ao.prepare_qat(net, inplace=True)
        net.apply(ao.enable_observer)
        for _ in range(2):
            net(batch)
        net.apply(ao.disable_observer)
    return net.eval()


def write_planes_onnx(path: Path, *, dynamic: dict[int, str] | None = None) -> Path:
    """`FakeQuantized` as torch.onnx.export writes it."""
    torch.manual_seed(3)
    net = fake_quantized(FakeQuantized(), torch.randn(2, 3, 32, 32))
    return trace(net, path, torch.randn(1, 3, 32, 32), dynamic=dynamic)


def trace(
    net: nn.Module, path: Path, batch: torch.Tensor, *, dynamic: dict[int, str] | None = None
) -> Path:
    """`net` by itself: planes of floats in (`input`), logits out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what tracing says about sizes
        torch.onnx.export(
            net,
            (batch,),
            str(path),
            input_names=["input"],
            output_names=["logits"],
            opset_version=17,
            dynamic_axes=None if dynamic is None else {"input": dynamic},
            dynamo=False,
        )
    return path


PLANES = """
<ir_version: 9, opset_import: ["" : {opset}]>
network (float[1, 3, 32, 32] planes) => (float[1, 2, 32, 32] scores)
<{kind} zero = {{{zero}}}, float step = {{0.05}}, float[2] weight_steps = {{0.01, 0.02}},
 int8[2] weight_zeros = {{0, 0}}>
{{
  ["/in/Q"] quantized = QuantizeLinear (planes, step, zero)
  ["/in/DQ"] real = DequantizeLinear (quantized, step, zero)
  ["/w/Q"] w_int8 = QuantizeLinear <axis = 0> (w, weight_steps, weight_zeros)
  ["/w/DQ"] w_real = DequantizeLinear <axis = 0> (w_int8, weight_steps, weight_zeros)
  ["/Conv"] scores = Conv <kernel_shape = [1, 1]> (real, w_real)
}}
"""


def planes_model(*, kind: str = "int8", zero: int = 0, opset: int = 17) -> onnx.ModelProto:
    """One quantized 1x1 convolution, to be changed by a test."""
    weights = np.array([[0.5, -1.0, 0.03], [2.0, 0.0, -0.77]]).reshape(2, 3, 1, 1)
    return model_from_text(PLANES.format(kind=kind, zero=zero, opset=opset), w=weights)


def int8_scales(path: Path) -> list[bytes]:
    """The bytes of the scale of each int8 DequantizeLinear, as stored, in the graph's order."""
    model = onnx.load(str(path))
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    tensors |= {n.output[0]: n.attribute[0].t for n in model.graph.node if n.op_type == "Constant"}
    copied = {n.output[0]: n.input[0] for n in model.graph.node if n.op_type == "Identity"}
    found = []
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear":
            stored = tensors.get(node.input[0])
            if stored is None or stored.data_type == onnx.TensorProto.INT8:
                name = copied.get(node.input[1], node.input[1])
                found.append(numpy_helper.to_array(tensors[name]).tobytes())
    return found
