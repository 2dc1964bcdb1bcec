"""What the real TensorRT-RTX says of the demo's attention blocks and LayerNorms as it builds.

No GPU is needed. That the kernels listed also run, and how fast, is not seen here.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from calibration.fp16 import fp16_onnx_from_onnx
from calibration.quantize import int8_onnx_from_ranges
from calibration.ranges import ranges_from_images
from engines.__main__ import main
from engines.trt.build import BuildOptions, engine_from_onnx
from engines.trt.engine_file import header_from_engine
from engines.trt.engine_header import FusionCounts
from exporter.load import load_model
from exporter.onnx_graph import GraphSpec, onnx_from_model
from exporter.rewrites.rewritten import rewritten_for_export
from exporter.simplify import simplify_onnx

CHECKPOINT = Path(__file__).resolve().parent.parent / "demo" / "segformer_b0_crop_weed.pth"
# SegFormer-B0 has 2 blocks in each of 4 stages: 8 attentions. LayerNorms: 2 in each block, 1 in
# the attention of each block of the first 3 stages (their keys are reduced), 1 after each stage's
# patch embedding and 1 after each stage: 16 + 6 + 4 + 4.
BLOCKS, NORMS = 8, 16 + 6 + 4 + 4


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's network at 512x512 as fp32.onnx, fp16.onnx, int8.onnx and int8_fp16.onnx."""
    folder = tmp_path_factory.mktemp("demo")
    loaded = load_model(CHECKPOINT)
    spec = GraphSpec((512, 512), (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
    onnx_from_model(rewritten_for_export(loaded.net), spec, folder / "traced.onnx", num_outputs=3)
    images = np.random.default_rng(1).integers(0, 256, (2, 512, 512, 3), dtype=np.uint8)
    simplify_onnx(folder / "traced.onnx", folder / "fp32.onnx", batch=images[:1])
    ranges = ranges_from_images(folder / "fp32.onnx", images, method="minmax")
    int8_onnx_from_ranges(folder / "fp32.onnx", ranges, folder / "int8.onnx")
    fp16_onnx_from_onnx(folder / "fp32.onnx", folder / "fp16.onnx")
    fp16_onnx_from_onnx(folder / "int8.onnx", folder / "int8_fp16.onnx")
    return folder


@pytest.mark.usefixtures("tensorrt_rtx")
@pytest.mark.parametrize(
    ("file", "precision", "fused"),
    [
        # The documentation: the products of a fused attention are FP16, BF16 or INT8. Those of the
        # first stage, whose single head holds the output projection, stay apart in FP16 too.
        ("fp32", "fp32", 0),
        ("fp16", "fp16", 6),
        ("int8", "int8", 0),
        ("int8_fp16", "int8", 6),
    ],
)
def test_the_builder_recognises_all_blocks_and_fuses_some(
    graphs: Path, tmp_path: Path, file: str, precision: str, fused: int
) -> None:
    out = tmp_path / "a.engine"
    record = engine_from_onnx(graphs / f"{file}.onnx", out, BuildOptions(precision, rtx=True))
    assert record.header.fusion == FusionCounts(BLOCKS, BLOCKS, fused, NORMS, 18)
    assert header_from_engine(out).fusion == record.header.fusion
    # Counted another way: each kernel of fused attention stands once in the list of the log.
    log = record.log_path.read_text(encoding="utf-8")
    assert sum(line.startswith("Name: _gemm_mha") for line in log.splitlines()) == fused


@pytest.mark.usefixtures("tensorrt_rtx")
def test_build_prints_what_fused(
    graphs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.engine"
    arguments = ["build", str(graphs / "int8_fp16.onnx"), "--precision", "int8", "--rtx"]
    assert main([*arguments, "--out", str(out)]) == 0
    line = "attention: 6 of 8 blocks fused (8 recognised); LayerNorm: 18 of 30 fused\n"
    assert line in capsys.readouterr().out
