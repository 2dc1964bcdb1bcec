"""Every kind of graph the exporter writes, taken by the real parser and builder of TensorRT-RTX.

This proves that each graph parses without an error, builds into a plan without an error, has the
inputs, outputs and precisions it is meant to have, and that the builder finds every attention block
to be one it fuses. It does not prove that an engine runs, how fast, or that its labels are right:
that needs a GPU, see tests/gpu. Nor does it stand for TensorRT 8 and 10, whose parsers differ.

B0 and B1 have their true widths; B2 to B5 their true depths at an eighth of the widths, for time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
import torch

from calibration.fp16 import fp16_onnx_from_onnx
from calibration.placement import QuantizePolicy
from calibration.quantize import QuantizeRecord, int8_onnx_from_ranges
from calibration.ranges import ranges_from_images
from exporter.architectures.segformer import Segformer
from exporter.onnx_graph import GraphSpec, decomposed_layer_norms, onnx_from_model
from exporter.rewrites.rewritten import rewritten_for_export
from exporter.simplify import simplify_onnx
from tests.rtx.builder import Outcome, outcome_of_build
from tests.test_segformer import DEPTHS, shape_of
from tests.tiny_models import model_from_text, write_onnx

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
PRECISIONS = ("fp32", "fp16", "int8", "int8_fp16")
OUTPUTS = {"labels": ["labels"], "logits": ["logits"], "both": ["labels", "logits"]}
THIN = (8, 16, 40, 64)  # an eighth of the true widths
# B4 with 42 blocks and B5 with 52 take 10 s to build each time.
EVERY_VARIANT = [
    *product(["b0", "b1", "linear b0", "thin b2"], PRECISIONS),
    *product(["thin b3", "thin b4", "thin b5"], ("fp32", "fp16", "int8")),
]


@dataclass(frozen=True)
class Graph:
    """The four files of one network, and what is in them."""

    files: dict[str, Path]
    blocks: int
    quantized: QuantizeRecord


Make = Callable[..., Graph]


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """graph("b0", (64, 64), output="both", …) exports each network once."""

    @cache
    def make(variant: str, hw: tuple[int, int], **changes: object) -> Graph:
        policy = QuantizePolicy(fold_weights=bool(changes.pop("fold_weights", False)))
        folder = tmp_path_factory.mktemp(variant)
        spec = GraphSpec(hw, MEAN, STD, **changes)  # type: ignore[arg-type]
        return exported(network(variant), spec, folder, policy=policy)

    return make


def network(variant: str) -> Segformer:
    """Random weights; "thin b0" is B0 at an eighth of the widths, "linear b0" has NVlabs' head."""
    torch.manual_seed(3)
    kind, _, name = variant.rpartition(" ")
    dims, depths = DEPTHS[name]
    width = 256 if name in ("b0", "b1") else 768
    if kind == "thin":
        dims, width = THIN, 32
    head = "linear" if kind == "linear" else "mmsegmentation"
    shape = shape_of(embed_dims=dims, depths=depths, head_channels=width, head_kind=head)
    return Segformer(shape).eval()


def exported(net: Segformer, spec: GraphSpec, folder: Path, *, policy: QuantizePolicy) -> Graph:
    """The stages of an export, calibrated on two pictures of noise."""
    files = {precision: folder / f"{precision}.onnx" for precision in PRECISIONS}
    onnx_from_model(rewritten_for_export(net), spec, folder / "traced.onnx", num_outputs=4)
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (max(2, spec.batch[1]), *spec.input_hw, 3), dtype=np.uint8)
    simplify_onnx(folder / "traced.onnx", files["fp32"], batch=images[: spec.batch[1]])
    held = decomposed_layer_norms(net, onnx.load(files["fp32"]))
    ranges = ranges_from_images(files["fp32"], images, method="minmax", policy=policy)
    quantized = int8_onnx_from_ranges(files["fp32"], ranges, files["int8"], policy=policy)
    fp16_onnx_from_onnx(files["fp32"], files["fp16"], fp32_nodes=held)
    fp16_onnx_from_onnx(files["int8"], files["int8_fp16"], fp32_nodes=held)
    return Graph(files, sum(net.shape.depths), quantized)


def assert_built(outcome: Outcome) -> None:
    assert outcome.errors == []
    assert outcome.strongly_typed
    assert outcome.plan_bytes > 0


def assert_precision(outcome: Outcome, graph: Graph, precision: str) -> None:
    """The types that the builder must keep, for the network is strongly typed."""
    real = "HALF" if precision.endswith("fp16") else "FLOAT"
    for kind in ("MATRIX_MULTIPLY", "CONVOLUTION", "SOFTMAX"):
        assert outcome.types[kind, real] == outcome.layers[kind] > 0, outcome.types
    pairs = graph.quantized.activations + graph.quantized.weights
    assert outcome.layers["DEQUANTIZE"] == (pairs if precision.startswith("int8") else 0)


@pytest.mark.parametrize(("variant", "precision"), EVERY_VARIANT)
def test_every_variant_builds_with_every_attention_block_found(
    tensorrt_rtx: ModuleType, graph: Make, variant: str, precision: str
) -> None:
    made = graph(variant, (64, 64))
    outcome = outcome_of_build(tensorrt_rtx, made.files[precision])
    assert_built(outcome)
    assert_precision(outcome, made, precision)
    # Two products and the softmax between them per block.
    assert len(outcome.fused) == 3 * made.blocks
    assert outcome.tensors == {
        "image": ("UINT8", (1, 64, 64, 3)),
        "labels": ("UINT8", (1, 64, 64)),
    }


@pytest.mark.parametrize(
    ("hw", "precision"),
    [*product([(512, 512)], PRECISIONS), *product([(384, 640)], ("fp16", "int8_fp16"))],
)
def test_b0_builds_at_the_sizes_of_the_field(
    tensorrt_rtx: ModuleType, graph: Make, hw: tuple[int, int], precision: str
) -> None:
    made = graph("b0", hw)
    outcome = outcome_of_build(tensorrt_rtx, made.files[precision])
    assert_built(outcome)
    assert_precision(outcome, made, precision)
    assert len(outcome.fused) == 3 * made.blocks
    assert outcome.tensors["labels"] == ("UINT8", (1, *hw))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("output", OUTPUTS)
def test_every_choice_of_outputs_builds_with_its_types(
    tensorrt_rtx: ModuleType, graph: Make, output: str, precision: str
) -> None:
    made = graph("thin b0", (64, 96), output=output)
    outcome = outcome_of_build(tensorrt_rtx, made.files[precision])
    assert_built(outcome)
    all_outputs = {"labels": ("UINT8", (1, 64, 96)), "logits": ("FLOAT", (1, 4, 64, 96))}
    image = {"image": ("UINT8", (1, 64, 96, 3))}
    assert outcome.tensors == image | {name: all_outputs[name] for name in OUTPUTS[output]}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("batch", [(1, 2, 4), (3, 3, 3)])
def test_a_free_and_a_fixed_batch_build(
    tensorrt_rtx: ModuleType, graph: Make, batch: tuple[int, int, int], precision: str
) -> None:
    made = graph("thin b0", (64, 64), output="both", batch=batch)
    outcome = outcome_of_build(tensorrt_rtx, made.files[precision], batch=batch)
    assert_built(outcome)
    assert_precision(outcome, made, precision)
    size = 3 if batch[0] == batch[2] else -1
    assert outcome.tensors["image"] == ("UINT8", (size, 64, 64, 3))
    assert outcome.tensors["logits"] == ("FLOAT", (size, 4, 64, 64))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("opset", [13, 16, 17, 20])
def test_every_opset_builds(
    tensorrt_rtx: ModuleType, graph: Make, opset: int, precision: str
) -> None:
    made = graph("thin b0", (64, 64), opset=opset)
    outcome = outcome_of_build(tensorrt_rtx, made.files[precision])
    assert_built(outcome)
    assert_precision(outcome, made, precision)
    assert (outcome.layers["NORMALIZATION"] > 0) == (opset >= 17)


@pytest.mark.parametrize("opset", [16, 17])
def test_layer_norms_that_fell_apart_are_computed_in_float32_in_fp16_graphs(
    tensorrt_rtx: ModuleType, graph: Make, opset: int
) -> None:
    made = graph("thin b0", (64, 64), opset=opset)
    outcome = outcome_of_build(tensorrt_rtx, made.files["fp16"])
    means = outcome.types["REDUCE", "FLOAT"]
    assert outcome.types["REDUCE", "HALF"] == 0
    norms = sum(isinstance(m, torch.nn.LayerNorm) for m in network("thin b0").modules())
    assert means == (2 * norms if opset == 16 else 0)


@pytest.mark.parametrize("precision", ["int8", "int8_fp16"])
def test_weights_stored_as_int8_build_as_well(
    tensorrt_rtx: ModuleType, graph: Make, precision: str
) -> None:
    made = graph("thin b0", (64, 64), fold_weights=True)
    outcome = outcome_of_build(tensorrt_rtx, made.files[precision])
    assert_built(outcome)
    assert outcome.layers["QUANTIZE"] == made.quantized.activations


def test_an_operator_that_tensorrt_lacks_is_refused_by_the_nodes_name(
    tensorrt_rtx: ModuleType, tmp_path: Path
) -> None:
    model = model_from_text(
        """
        lottery (uint8[1, 4, 4, 3] image) => (float[1, 4, 4, 3] drawn)
        {
            ["/Cast"] levels = Cast <to = 1> (image)
            ["/net/odd/Bernoulli"] drawn = Bernoulli (levels)
        }
        """
    )
    outcome = outcome_of_build(tensorrt_rtx, write_onnx(model, tmp_path / "odd.onnx"))
    assert outcome.plan_bytes == 0
    assert outcome.errors[0][:2] == ("/net/odd/Bernoulli", "Bernoulli")


def test_a_foreign_operator_is_refused_by_the_nodes_name(
    tensorrt_rtx: ModuleType, tmp_path: Path
) -> None:
    model = model_from_text(
        'own (float[1, 4] x) => (float[1, 4] y) { ["/net/own/Warp"] y = Relu (x) }'
    )
    model.graph.node[0].op_type, model.graph.node[0].domain = "Warp", "ours"
    model.opset_import.append(onnx.helper.make_opsetid("ours", 1))
    outcome = outcome_of_build(tensorrt_rtx, write_onnx(model, tmp_path / "own.onnx"))
    assert outcome.errors[0][:2] == ("/net/own/Warp", "Warp")
    assert "Plugin not found" in outcome.errors[0][2]


def test_nothing_but_a_cast_may_read_a_uint8_tensor(
    tensorrt_rtx: ModuleType, tmp_path: Path
) -> None:
    model = model_from_text(
        """
        moved (uint8[1, 4, 4, 3] image) => (uint8[1, 3, 4, 4] planes)
        { ["/Transpose"] planes = Transpose <perm = [0, 3, 1, 2]> (image) }
        """
    )
    outcome = outcome_of_build(tensorrt_rtx, write_onnx(model, tmp_path / "moved.onnx"))
    assert outcome.plan_bytes == 0
    node, operator, description = outcome.errors[0]
    assert (node, operator) == ("/Transpose", "Transpose")
    assert "first input has type UInt8" in description


def test_a_truncated_file_is_refused(tensorrt_rtx: ModuleType, graph: Make, tmp_path: Path) -> None:
    data = graph("thin b0", (64, 64)).files["fp32"].read_bytes()
    (tmp_path / "half.onnx").write_bytes(data[: len(data) // 2])
    outcome = outcome_of_build(tensorrt_rtx, tmp_path / "half.onnx")
    assert outcome.plan_bytes == 0
    assert outcome.errors
