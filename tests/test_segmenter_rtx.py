"""Segmenter's attention in TensorRT-RTX at the true widths and size of ViT-T/16.

Two of the encoder's twelve layers, for time; smaller networks of every family are in
tests/architectures.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from calibration.fp16 import fp16_onnx_from_onnx
from calibration.quantize import int8_onnx_from_ranges
from calibration.ranges import ranges_from_images
from engines.trt.build import BuildOptions, engine_from_onnx
from exporter.architectures.segmenter import MaskDecoderShape, Segmenter, SegmenterShape
from exporter.architectures.vit import VitShape
from exporter.onnx_graph import GraphSpec, onnx_from_model
from exporter.rewrites.rewritten import rewritten_for_export
from exporter.simplify import simplify_onnx
from tests.architectures.example import lively

HW, CLASSES = (512, 512), 6
BLOCKS = 2 + 2
NORMS = 2 * BLOCKS + 3  # after the encoder, after the decoder, over the classes


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """fp32.onnx, fp16.onnx, int8.onnx and int8_fp16.onnx; the positions are of 24 x 24 patches."""
    folder = tmp_path_factory.mktemp("segmenter")
    encoder = VitShape(3, 192, 2, 3, 768, 16, (24, 24))
    net = lively(Segmenter(SegmenterShape(encoder, MaskDecoderShape(192, 2, 3, 768, 6), CLASSES)))
    spec = GraphSpec(HW, (127.5,) * 3, (127.5,) * 3)
    traced = folder / "traced.onnx"
    onnx_from_model(rewritten_for_export(net, HW), spec, traced, num_outputs=CLASSES)
    images = np.random.default_rng(1).integers(0, 256, (2, *HW, 3), dtype=np.uint8)
    simplify_onnx(traced, folder / "fp32.onnx", batch=images[:1])
    ranges = ranges_from_images(folder / "fp32.onnx", images, method="minmax")
    int8_onnx_from_ranges(folder / "fp32.onnx", ranges, folder / "int8.onnx")
    fp16_onnx_from_onnx(folder / "fp32.onnx", folder / "fp16.onnx")
    fp16_onnx_from_onnx(folder / "int8.onnx", folder / "int8_fp16.onnx")
    return folder


@pytest.mark.usefixtures("tensorrt_rtx")
@pytest.mark.parametrize(
    ("file", "precision", "fused"),
    # The documentation: the products of a fused attention are FP16, BF16 or INT8.
    [("fp32", "fp32", 0), ("fp16", "fp16", BLOCKS), ("int8", "int8", 0),
     ("int8_fp16", "int8", BLOCKS)],
)  # fmt: skip
def test_every_attention_block_is_recognised_and_fused_in_fp16(
    graphs: Path, tmp_path: Path, file: str, precision: str, fused: int
) -> None:
    options = BuildOptions(precision, rtx=True)
    found = engine_from_onnx(graphs / f"{file}.onnx", tmp_path / "a.engine", options).header.fusion
    assert found is not None
    assert found.attention_blocks == found.attention_recognised == BLOCKS
    assert found.attention_fused == fused
    assert found.layer_norms == NORMS
