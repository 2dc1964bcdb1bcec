"""What must hold for every architecture, shown on small networks of each.

Logits against other people's programs are in tests/reference, true sizes there and in
tests/test_rtx_graphs.py.
"""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from calibration.fp16 import fp16_onnx_from_onnx
from calibration.groups import OTHER, nodes_by_group
from calibration.layers import weighted_nodes
from calibration.placement import DEFAULT_POLICY
from calibration.quantize import int8_onnx_from_ranges
from calibration.ranges import ranges_from_images
from engines.errors import CheckpointError, ConfigError
from exporter.detect import ARCHITECTURES, model_from_state_dict
from exporter.groups import floating_layers, groups_of
from exporter.onnx_graph import GraphSpec, decomposed_layer_norms, onnx_from_model
from exporter.rewrites.rewritten import rewritten_for_export
from exporter.simplify import simplify_onnx
from tests.architectures.example import Example
from tests.rtx.builder import outcome_of_build

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
# Those that read a shape, depend on values, or that some TensorRT does not take.
FORBIDDEN = {
    "Shape", "Loop", "If", "NonZero", "Where", "ScatterND", "Range", "ConstantOfShape", "Expand",
    "Einsum", "Unique", "TopK",
}  # fmt: skip
FAMILIES = [path.stem for path in sorted(Path(__file__).parent.glob("tiny_*.py"))]
EXAMPLES = [
    example
    for family in FAMILIES
    for example in importlib.import_module(f"tests.architectures.{family}").EXAMPLES
]
every_example = pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.id)


@cache
def network(id_: str) -> nn.Module:
    return next(example for example in EXAMPLES if example.id == id_).make()


def tensors_of(example: Example) -> dict[str, Tensor]:
    return dict(network(example.id).state_dict())


def pictures(count: int, hw: tuple[int, int], channels: int = 3) -> np.ndarray[Any, Any]:
    """(N, H, W, C) uint8: blobs and grain."""
    rng = np.random.default_rng(7)
    coarse = rng.normal(size=(count, -(-hw[0] // 8), -(-hw[1] // 8), channels))
    soft = np.repeat(np.repeat(coarse, 8, axis=1), 8, axis=2)[:, : hw[0], : hw[1]]
    return np.clip(128 + 50 * soft + 15 * rng.normal(size=soft.shape), 0, 255).astype(np.uint8)


def logits_of(net: nn.Module, images: np.ndarray[Any, Any]) -> Tensor:
    """Written out by the graph contract: normalised, and resized to the image's size."""
    dtype = next(net.parameters()).dtype
    x = torch.from_numpy(images).to(dtype).permute(0, 3, 1, 2)
    mean, std = (torch.tensor(v, dtype=dtype).reshape(1, -1, 1, 1) for v in (MEAN, STD))
    with torch.no_grad():
        logits = net((x - mean) / std)
        return nn.functional.interpolate(
            logits, images.shape[1:3], mode="bilinear", align_corners=False
        )


# --- checkpoints ---------------------------------------------------------------------------------


def test_every_architecture_has_an_example() -> None:
    assert {a.NAME for a in ARCHITECTURES} == {e.description["architecture"] for e in EXAMPLES}


@every_example
def test_it_is_described_from_its_tensors_alone(example: Example) -> None:
    net, description = model_from_state_dict(tensors_of(example), hints=example.hints)
    got = {name: getattr(description, name) for name in example.description}
    assert got == dict(example.description)
    assert description.parameters == sum(p.numel() for p in network(example.id).parameters())
    images = pictures(1, example.hw)
    torch.testing.assert_close(
        logits_of(net, images), logits_of(network(example.id), images), rtol=0, atol=0
    )


@every_example
def test_a_batch_is_its_images_one_by_one(example: Example) -> None:
    images = pictures(3, example.hw)
    together = logits_of(network(example.id), images)
    single = torch.cat([logits_of(network(example.id), image[None]) for image in images])
    torch.testing.assert_close(together, single, rtol=1e-3, atol=1e-3 * float(single.std()))


@every_example
def test_every_tensor_is_needed_and_a_missing_one_is_named(example: Example) -> None:
    """All but BatchNorm's counter, which old files lack."""
    tensors = tensors_of(example)
    keys = [key for key in tensors if not key.endswith("num_batches_tracked")]
    for key in np.random.default_rng(1).choice(keys, size=min(12, len(keys)), replace=False):
        fewer = {k: t for k, t in tensors.items() if k != key}
        with pytest.raises(CheckpointError) as caught:
            model_from_state_dict(fewer, hints=example.hints)
        assert "Traceback" not in str(caught.value)


@every_example
def test_a_tensor_left_over_is_named(example: Example) -> None:
    tensors = tensors_of(example) | {"decode_head.surplus.weight": torch.ones(1)}
    with pytest.raises(CheckpointError, match=r"1 left over.*decode_head\.surplus\.weight"):
        model_from_state_dict(tensors, hints=example.hints)


@every_example
def test_a_tensor_of_another_shape_is_refused(example: Example) -> None:
    tensors = tensors_of(example)
    for key in np.random.default_rng(2).choice(list(tensors), size=8, replace=False):
        if tensors[key].dim() == 0:
            continue
        longer = torch.cat([tensors[key], tensors[key][:1]])
        with pytest.raises(CheckpointError):
            model_from_state_dict(tensors | {key: longer}, hints=example.hints)
        with pytest.raises(CheckpointError):
            model_from_state_dict(tensors | {key: torch.ones(())}, hints=example.hints)


@every_example
@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64], ids=str)
def test_a_weight_that_is_no_real_number_is_named_with_its_type(
    dtype: torch.dtype, example: Example
) -> None:
    tensors = tensors_of(example)
    key = next(k for k in tensors if k.startswith("decode_head.") and k.endswith(".weight"))
    other = torch.ones(tensors[key].shape, dtype=dtype)
    told = f"{re.escape(key)} .*{str(dtype).removeprefix('torch.')} instead of"
    with pytest.raises(CheckpointError, match=told):
        model_from_state_dict(tensors | {key: other}, hints=example.hints)


@every_example
def test_thousands_of_layers_are_refused_before_they_are_built(example: Example) -> None:
    tensors = tensors_of(example)
    layer = re.compile(r"backbone\.(layers?|stages)[.\d]*\.(?=\d+\.[a-z])")
    prefix = max((m[0] for m in map(layer.match, tensors) if m), key=len)
    more = {f"{prefix}{i}.surplus": torch.ones(1) for i in range(2000)}
    with pytest.raises(CheckpointError, match=rf"20\d\d layers called {re.escape(prefix)}\*"):
        model_from_state_dict(tensors | more, hints=example.hints)


@every_example
@pytest.mark.parametrize(
    ("part", "other"), [("decode_head.", "backbone"), ("backbone.", "decode head")]
)
def test_a_part_of_a_model_is_refused(part: str, other: str, example: Example) -> None:
    alone = {key: t for key, t in tensors_of(example).items() if key.startswith(part)}
    with pytest.raises(CheckpointError, match=rf"no {other}|without .*{other}|with no tensors"):
        model_from_state_dict(alone, hints=example.hints)


@every_example
def test_half_precision_and_an_auxiliary_head_make_no_difference(example: Example) -> None:
    halves = {k: t.half() if t.is_floating_point() else t for k, t in tensors_of(example).items()}
    halves["auxiliary_head.conv_seg.weight"] = torch.ones(9, 4, 1, 1)
    net, description = model_from_state_dict(halves, hints=example.hints)
    assert description.num_outputs == example.description["num_outputs"]
    assert {p.dtype for p in net.parameters()} == {torch.float32}


@every_example
def test_keeping_two_outputs_keeps_the_first_two(example: Example) -> None:
    hints = replace(example.hints, keep_outputs=2)
    kept, description = model_from_state_dict(tensors_of(example), hints=hints)
    images = pictures(1, example.hw)
    want = logits_of(network(example.id), images)[:, :2]
    torch.testing.assert_close(
        logits_of(kept, images), want, rtol=1e-3, atol=1e-4 * float(want.std())
    )
    assert description.num_outputs == 2


@every_example
@pytest.mark.parametrize("count", [0, -1, 256])
def test_keeping_an_impossible_number_of_outputs_is_refused(example: Example, count: int) -> None:
    hints = replace(example.hints, keep_outputs=count)
    with pytest.raises(ConfigError, match=f"expected 1 to {example.description['num_outputs']}"):
        model_from_state_dict(tensors_of(example), hints=hints)


# --- rewrites and graphs -------------------------------------------------------------------------


@every_example
@pytest.mark.parametrize("size", ["hw", "other_hw"])
def test_the_rewritten_network_is_the_same_function(example: Example, size: str) -> None:
    hw = getattr(example, size)
    original = network(example.id)
    rewritten = rewritten_for_export(original, hw)
    assert rewritten is not original
    images = pictures(2, hw)
    want = logits_of(original.double(), images)
    try:
        got = logits_of(rewritten_for_export(original, hw), images)
    finally:
        original.float()
    assert float(want.std()) > 1e-3
    torch.testing.assert_close(got, want, rtol=0, atol=1e-9 * max(1.0, float(want.abs().max())))


@dataclass(frozen=True)
class Exported:
    """The simplified graph, and the files made from it."""

    path: Path
    spec: GraphSpec
    held: tuple[str, ...]
    architecture: str


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """exported(example, hw, opset=17, …) traces each graph once."""

    @cache
    def make(id_: str, hw: tuple[int, int], **options: Any) -> Exported:
        folder = tmp_path_factory.mktemp(id_)
        spec = GraphSpec(hw, MEAN, STD, **options)
        net = network(id_)
        told = next(e for e in EXAMPLES if e.id == id_).description
        rewritten = rewritten_for_export(net, hw)
        onnx_from_model(rewritten, spec, folder / "traced.onnx", num_outputs=told["num_outputs"])
        batch = pictures(spec.batch[1], hw)
        simplify_onnx(folder / "traced.onnx", folder / "model.onnx", batch=batch)
        held = decomposed_layer_norms(net, onnx.load(folder / "model.onnx"))
        return Exported(folder / "model.onnx", spec, held, told["architecture"])

    return lambda example, hw, **options: make(example.id, hw, **options)


def run(path: Path, batch: np.ndarray[Any, Any], output: str) -> np.ndarray[Any, Any]:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    result: np.ndarray[Any, Any] = session.run([output], {"image": batch})[0]
    return result


def assert_same(got: np.ndarray[Any, Any], want: Tensor) -> None:
    """Within a thousandth of the logits' standard deviation."""
    assert np.isfinite(got).all()
    worst = float(np.abs(got - want.numpy()).max())
    assert worst <= 1e-3 * float(want.std()), f"{worst:.2e} at a deviation of {want.std():.2e}"


@every_example
@pytest.mark.parametrize(("size", "opset"), [("hw", 17), ("other_hw", 17), ("hw", 16)])
def test_the_graph_computes_what_the_network_does(
    exported: Any, example: Example, size: str, opset: int
) -> None:
    hw = getattr(example, size)
    made = exported(example, hw, opset=opset, output="both")
    images = pictures(1, hw)
    want = logits_of(network(example.id), images)
    assert_same(run(made.path, images, "logits"), want)
    labels = run(made.path, images, "labels")
    assert np.mean(labels == want.argmax(1).numpy()) > 0.999


@every_example
@pytest.mark.parametrize("size", ["hw", "other_hw"])
def test_the_graph_is_static_and_of_plain_operators(
    exported: Any, example: Example, size: str
) -> None:
    model = onnx.load(exported(example, getattr(example, size), output="both").path)
    assert {node.domain for node in model.graph.node} == {""}
    assert not FORBIDDEN & {node.op_type for node in model.graph.node}
    modes = [
        attribute.s
        for node in model.graph.node
        if node.op_type == "Resize"
        for attribute in node.attribute
        if attribute.name == "mode"
    ]
    assert b"cubic" not in modes


@every_example
def test_a_free_batch_size_gives_each_images_own_answer(exported: Any, example: Example) -> None:
    made = exported(example, example.hw, batch=(1, 2, 4), output="logits")
    images = pictures(3, example.hw)
    assert_same(run(made.path, images, "logits"), logits_of(network(example.id), images))
    assert_same(run(made.path, images[2:], "logits"), logits_of(network(example.id), images[2:]))


@every_example
def test_every_layer_has_a_group_with_a_name(exported: Any, example: Example) -> None:
    """Of which plain INT8 leaves some, never all, in floating point."""
    model = onnx.load(exported(example, example.hw, output="both").path)
    architecture = example.description["architecture"]
    groups = nodes_by_group(model, groups_of(architecture))
    assert OTHER.name not in groups, [item.node for item in groups[OTHER.name]]
    weighted = {item.node for item in weighted_nodes(model)}
    assert weighted - set(floating_layers(architecture, model))


def written(made: Exported, precision: str) -> Path:
    """The file of a precision, calibrated on two pictures where it is INT8."""
    target = made.path.with_name(f"{precision}.onnx")
    if precision == "int8" and not target.exists():
        images = pictures(2, made.spec.input_hw)
        floating = floating_layers(made.architecture, onnx.load(made.path))
        policy = replace(DEFAULT_POLICY, exclude_nodes=floating)
        ranges = ranges_from_images(made.path, images, method="minmax", policy=policy)
        int8_onnx_from_ranges(made.path, ranges, target, policy=policy)
    elif precision == "fp16" and not target.exists():
        fp16_onnx_from_onnx(made.path, target, fp32_nodes=made.held)
    return made.path if precision == "fp32" else target


@every_example
def test_int8_answers_like_fp32(exported: Any, example: Example) -> None:
    made = exported(example, example.hw, output="both")
    images = pictures(1, example.hw)
    want = logits_of(network(example.id), images)
    got = torch.from_numpy(run(written(made, "int8"), images, "logits"))
    signal, noise = float(want.std()), float((got - want).std())
    # Random weights leave thin networks little margin; a lost layer gives 1 and more.
    assert noise < 0.7 * signal, f"noise of {noise:.2e} in logits of deviation {signal:.2e}"


@every_example
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_tensorrt_takes_the_graph(
    tensorrt_rtx: ModuleType, exported: Any, example: Example, precision: str
) -> None:
    made = exported(example, example.hw, output="both")
    outcome = outcome_of_build(tensorrt_rtx, written(made, precision))
    assert outcome.errors == []
    assert outcome.plan_bytes > 0
    assert outcome.tensors["labels"] == ("UINT8", (1, *example.hw))
    if precision != "int8":
        assert len(outcome.fused) >= example.attention
