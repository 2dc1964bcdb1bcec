"""The ways of making INT8 that are compared, and where they run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

RICESEG, ONNXRUNTIME, MODELOPT = "riceseg", "ONNX Runtime", "NVIDIA ModelOpt"

# What quantize_static does best on SegFormer. Asymmetric activations, its default, agree better
# (rice panicles, 32 images: 99.56 % against 99.40 %); TensorRT takes symmetric ones alone.
# Without CalibStridedMinMax the percentile method keeps every tensor of every image (2.9 GB at
# 256x256 with 32 images in place of 0.9); the agreement differs by 0.01 points.
_TUNED: Mapping[str, Any] = {
    "op_types_to_quantize": ["Conv", "MatMul", "Gemm"],
    "per_channel": True,
    "calibrate_method": "Percentile",
    "extra_options": {"CalibPercentile": 99.999, "CalibStridedMinMax": 1},
}
_FOR_TENSORRT: Mapping[str, Any] = {
    **_TUNED,
    "extra_options": {
        **_TUNED["extra_options"],
        "ActivationSymmetric": True,
        "CalibTensorRangeSymmetric": True,
        "QuantizeBias": False,  # its INT32 biases are what the parser refuses first
    },
}


@dataclass(frozen=True)
class Row:
    """One way: `tool` RICESEG, ONNXRUNTIME or MODELOPT, `title` for tables.

    options: JSON values for the tool's own call. RICESEG: those of `Int8Recipe`, `exclude_kinds`
    for its policy. MODELOPT: those of `quantize`. ONNXRUNTIME: those of `quantize_static`, and
    `leave_out` for a list that a user has to make by hand, see `tool_onnxruntime.nodes_left_out`.
    """

    key: str
    tool: str
    title: str
    options: Mapping[str, Any]

    @property
    def is_judged(self) -> bool:
        """Whether the other tools are compared with this row of ours; named beforehand, for the
        best of several, picked after measuring, would win by luck."""
        return self.key in ("fitted", "fitted-products")

    @property
    def is_ours(self) -> bool:
        return self.tool == RICESEG


ROWS = (
    Row("default", RICESEG, "default", {}),
    Row(
        "every-layer",
        RICESEG,
        "every Conv and Linear",
        {"exclude_kinds": ["product", "residual"]},
    ),
    Row("products", RICESEG, "attention products too", {"exclude_kinds": ["residual"]}),
    Row(
        "fitted",
        RICESEG,
        "default, equalized, compensated rounding",
        {"equalize": True, "rounding": "compensated"},
    ),
    Row(
        "fitted-products",
        RICESEG,
        "attention products too, equalized, compensated rounding",
        {"exclude_kinds": ["residual"], "equalize": True, "rounding": "compensated"},
    ),
    Row("onnxruntime", ONNXRUNTIME, "defaults", {}),
    Row("onnxruntime-tuned", ONNXRUNTIME, "Conv, MatMul, Gemm; per channel; percentile", _TUNED),
    Row(
        "onnxruntime-tensorrt",
        ONNXRUNTIME,
        "the same, symmetric for TensorRT",
        _FOR_TENSORRT,
    ),
    Row(
        "onnxruntime-placed",
        ONNXRUNTIME,
        "percentile, our default's layers",
        {**_TUNED, "leave_out": True},
    ),
    # The default puts what is not INT8 into FP16, which alone costs it 3.6 points of agreement
    # (rice panicles, ONNX Runtime on the CPU); the other two stay in FP32, as all other rows do.
    Row("modelopt", MODELOPT, "defaults (entropy, rest in FP16)", {}),
    Row("modelopt-fp32", MODELOPT, "entropy, rest in FP32", {"high_precision_dtype": "fp32"}),
    Row(
        "modelopt-max",
        MODELOPT,
        "max, rest in FP32",
        {"high_precision_dtype": "fp32", "calibration_method": "max"},
    ),
)
