"""Graphs small enough to read, written as ONNX text, for the tests of calibration."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
from onnx import numpy_helper

# One transformer block with everything that placement must tell apart: a first convolution, a
# linear layer and a convolution reading the same LayerNormalization, an attention product, a
# residual addition, a depthwise convolution, a classifier.
BLOCK = """
<ir_version: 8, opset_import: ["" : 17]>
block (uint8[N, 8, 8, 3] image) => (uint8[N, 4, 4] labels, float[N, 3, 4, 4] logits)
<int64[3] to_rows = {0, 8, 16}, int64[3] to_short_rows = {0, 8, 4},
 int64[4] to_map = {0, 8, 4, 4}, int64[4] to_wide_map = {0, 16, 4, 4},
 float half = {0.5}, float[1] any_roi = {0}, float[4] same_size = {1, 1, 1, 1}>
{
  ["/Cast"] pixels = Cast <to = 1> (image)
  ["/Transpose"] planes = Transpose <perm = [0, 3, 1, 2]> (pixels)
  ["/patch/Conv"] patches = Conv <kernel_shape = [2, 2], strides = [2, 2]> (planes, w_patch)
  ["/Reshape"] columns = Reshape (patches, to_rows)
  ["/rows"] rows = Transpose <perm = [0, 2, 1]> (columns)
  ["/norm1"] normed = LayerNormalization <axis = -1> (rows, gamma, beta)
  ["/attn/q/MatMul"] q = MatMul (normed, w_q)
  ["/attn/sr/Transpose"] sr_columns = Transpose <perm = [0, 2, 1]> (normed)
  ["/attn/sr/Reshape"] sr_map = Reshape (sr_columns, to_map)
  ["/attn/sr/Conv"] reduced = Conv <kernel_shape = [2, 2], strides = [2, 2]> (sr_map, w_sr)
  ["/attn/k"] k = Reshape (reduced, to_short_rows)
  ["/attn/QK"] scores = MatMul (q, k)
  ["/attn/Softmax"] weights = Softmax <axis = -1> (scores)
  ["/attn/v"] v = Transpose <perm = [0, 2, 1]> (k)
  ["/attn/AV"] mixed = MatMul (weights, v)
  ["/attn/proj/MatMul"] projected = MatMul (mixed, w_proj)
  ["/Add"] sum = Add (normed, projected)
  ["/ffn/fc1/MatMul"] wide = MatMul (sum, w_fc1)
  ["/ffn/Transpose"] wide_columns = Transpose <perm = [0, 2, 1]> (wide)
  ["/ffn/Reshape"] wide_map = Reshape (wide_columns, to_wide_map)
  ["/ffn/dw/Conv"] filtered = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1], group = 16>
      (wide_map, w_dw)
  ["/ffn/Relu"] positive = Relu (filtered)
  ["/ffn/Mul"] halved = Mul (positive, half)
  ["/head/Conv"] fused = Conv <kernel_shape = [1, 1]> (halved, w_head)
  ["/head/Resize"] resized = Resize <mode = "linear"> (fused, any_roi, same_size)
  ["/seg/Conv"] logits = Conv <kernel_shape = [1, 1]> (resized, w_seg)
  ["/ArgMax"] best = ArgMax <axis = 1, keepdims = 0> (logits)
  ["/labels"] labels = Cast <to = 2> (best)
}
"""

_WEIGHT_SHAPES = {
    "w_patch": (8, 3, 2, 2),
    "w_q": (8, 8),
    "w_sr": (8, 8, 2, 2),
    "w_proj": (8, 8),
    "w_fc1": (8, 16),
    "w_dw": (16, 1, 3, 3),
    "w_head": (8, 16, 1, 1),
    "w_seg": (3, 8, 1, 1),
}


def block_model() -> onnx.ModelProto:
    """BLOCK with random weights, the same ones every time."""
    rng = np.random.default_rng(7)
    weights = {
        name: rng.normal(0, 1 / np.sqrt(np.prod(shape[1:])), shape)
        for name, shape in _WEIGHT_SHAPES.items()
    }
    weights["w_patch"] /= 64
    return model_from_text(BLOCK, gamma=np.ones(8), beta=np.zeros(8), **weights)


def model_from_text(text: str, **initializers: np.ndarray) -> onnx.ModelProto:
    """ONNX text with initializers added, the floating ones as float32."""
    model = onnx.parser.parse_model(text)
    for name, values in initializers.items():
        array = values.astype(np.float32) if values.dtype == np.float64 else values
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    onnx.checker.check_model(model)
    return model


def saved(model: onnx.ModelProto, folder: Path, name: str = "model.onnx") -> Path:
    path = folder / name
    onnx.save(model, str(path))
    return path


def random_images(count: int, hwc: tuple[int, int, int] = (8, 8, 3)) -> list[np.ndarray]:
    rng = np.random.default_rng(11)
    return [rng.integers(0, 256, hwc, dtype=np.uint8) for _ in range(count)]


def outputs_of(path: Path, batch: np.ndarray) -> dict[str, np.ndarray]:
    """What ONNX Runtime answers, by output name."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, {"image": batch}), strict=True))
