"""A quantized ONNX file as a checkpoint: its scales, its answer, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from calibration.ranges_json import ranges_from_json
from engines.bundle import bundle_from_folder
from engines.errors import ConfigError, GateError, GraphError
from tests.qat_models import (
    HW,
    fake_quantized,
    int8_scales,
    photos,
    planes_model,
    quantize_with_onnxruntime,
    trace,
    write_plain_onnx,
    write_planes_onnx,
)
from tests.rtx.builder import outcome_of_build
from tests.small_graphs import saved
from tests.tiny_segformer import CLASSES, error_of, run_cli, tiny_net, write_dataset


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """plain.onnx, symmetric.onnx, asymmetric.onnx, planes.onnx and data/."""
    root = tmp_path_factory.mktemp("qat")
    plain = write_plain_onnx(root / "plain.onnx")
    quantize_with_onnxruntime(plain, root / "symmetric.onnx")
    quantize_with_onnxruntime(plain, root / "asymmetric.onnx", extra_options={})
    write_planes_onnx(root / "planes.onnx")
    write_dataset(root / "data")
    (root / "이름.txt").write_text("\n".join(CLASSES), encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def bundle(lab: Path) -> Path:
    """symmetric.onnx exported with everything."""
    result = export(lab / "symmetric.onnx", lab / "묶음", "--fp16", "--val", lab / "data",
                    "--classes", lab / "이름.txt")  # fmt: skip
    assert result.exit_code == 0, result.stderr
    return lab / "묶음"


def export(path: Path, out: Path, *arguments: object) -> Any:
    return run_cli("export", "--checkpoint", path, "--out", out, "--runs", 1, *arguments)


def answer(path: Path, batch: np.ndarray[Any, Any], name: str = "image") -> np.ndarray[Any, Any]:
    """Node by node, as the file says: ONNX Runtime's fusions round otherwise."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {name: image[None]})[0] for image in batch])


def operators(path: Path) -> set[str]:
    return {node.op_type for node in onnx.load(str(path)).graph.node}


# --- a graph in this project's own form -----------------------------------------------------------


@pytest.mark.parametrize("name", ["model.int8.onnx", "model.int8.fp16.onnx"])
def test_every_scale_of_the_file_is_kept_bit_for_bit(name: str, lab: Path, bundle: Path) -> None:
    scales = int8_scales(lab / "symmetric.onnx")
    assert len(scales) > 60
    assert int8_scales(bundle / name) == scales


def test_the_int8_graph_answers_as_the_file_does(lab: Path, bundle: Path) -> None:
    images = photos(3)
    assert np.array_equal(
        answer(bundle / "model.int8.onnx", images), answer(lab / "symmetric.onnx", images)
    )


def test_the_fp32_graph_has_no_pairs_and_dequantized_weights(lab: Path, bundle: Path) -> None:
    assert not operators(bundle / "model.onnx") & {"QuantizeLinear", "DequantizeLinear"}
    given = {t.name: numpy_helper.to_array(t)
             for t in onnx.load(str(lab / "symmetric.onnx")).graph.initializer}  # fmt: skip
    weight = "net.backbone.layers.0.0.projection.weight"
    steps = given[f"{weight}_scale"].reshape(-1, 1, 1, 1)
    wanted = given[f"{weight}_quantized"].astype(np.float32) * steps
    stored = [
        numpy_helper.to_array(t) for t in onnx.load(str(bundle / "model.onnx")).graph.initializer
    ]
    assert sum(a.shape == wanted.shape and np.array_equal(a, wanted) for a in stored) == 1


def test_the_graph_without_pairs_is_close_to_the_one_before_quantization(
    lab: Path, bundle: Path
) -> None:
    images = photos(3)
    same = answer(bundle / "model.onnx", images) == answer(lab / "plain.onnx", images)
    assert same.mean() > 0.95  # its weights are still on the int8 grid


def test_the_cache_and_the_ranges_are_the_files_scales(lab: Path, bundle: Path) -> None:
    ranges = ranges_from_json((bundle / "ranges.json").read_text(encoding="utf-8"))
    assert (ranges.method, ranges.images) == ("file", 0)
    lines = (bundle / "calibration.cache").read_text(encoding="utf-8").splitlines()[1:]
    cache = dict(line.split(": ") for line in lines)
    given = {t.name: t for t in onnx.load(str(lab / "symmetric.onnx")).graph.initializer}
    assert len(cache) == len(ranges.tensors) > 20
    for name, found in ranges.tensors.items():
        scale = numpy_helper.to_array(given[f"{name}_scale"]).astype(">f4")
        assert cache[name] == scale.tobytes().hex()
        assert found.amax == pytest.approx(127 * float(scale.reshape(())), rel=1e-12)


def test_every_tensor_of_the_cache_is_one_of_the_fp32_graph(bundle: Path) -> None:
    ranges = ranges_from_json((bundle / "ranges.json").read_text(encoding="utf-8"))
    nodes = onnx.load(str(bundle / "model.onnx")).graph.node
    assert set(ranges.tensors) <= {name for node in nodes for name in node.output}


def test_the_bundle_says_where_its_scales_are_from(lab: Path, bundle: Path) -> None:
    found = bundle_from_folder(bundle)
    assert set(found.files) == {"fp32", "fp16", "int8", "int8_fp16", "ranges", "calibration_cache"}
    assert found.checkpoint.file == "symmetric.onnx"
    assert found.classes == CLASSES
    assert found.input.hw == HW
    assert found.input.mean == pytest.approx((123.675, 116.28, 103.53), rel=1e-6)
    assert found.input.std == pytest.approx((58.395, 57.12, 57.375), rel=1e-6)
    report = json.loads((bundle / "report.json").read_text(encoding="utf-8"))
    assert "keep the scales of symmetric.onnx" in report["calibration"]["method"]
    forms = [row["form"] for row in report["rows"]]
    assert forms == ["ONNX FP32", "ONNX FP16", "ONNX INT8", "ONNX INT8+FP16"]
    assert report["rows"][0]["agreement"] == 100.0
    assert report["gate"]["drop"] == pytest.approx(
        report["rows"][0]["miou"] - min(row["miou"] for row in report["rows"][1:])
    )
    assert report["calibration"]["int8_macs_percent"] == 100.0
    assert report["calibration"]["int8_weighted_percent"] == 100.0
    said = [text for text in found.warnings if "weights stored as integers" in text]
    assert len(said) == 1
    assert said[0] in report["warnings"]


def test_a_bundle_of_it_is_evaluated_again(lab: Path, bundle: Path) -> None:
    result = run_cli("evaluate", bundle, "--data", lab / "data")
    assert result.exit_code == 0, result.stderr


def test_tensorrt_takes_the_int8_graph_and_not_the_file_itself(
    tensorrt_rtx: ModuleType, lab: Path, bundle: Path
) -> None:
    outcome = outcome_of_build(tensorrt_rtx, bundle / "model.int8.fp16.onnx")
    assert (outcome.errors, outcome.plan_bytes > 0) == ([], True)
    given = outcome_of_build(tensorrt_rtx, lab / "symmetric.onnx")
    assert "input has type Int32" in " ".join(text for *_, text in given.errors)


# --- a network by itself --------------------------------------------------------------------------


def test_a_torch_fake_quantized_network_gets_preprocessing_and_argmax(
    lab: Path, tmp_path: Path
) -> None:
    mean, std = (100.0, 110.0, 120.0), (50.0, 60.0, 70.0)
    result = export(lab / "planes.onnx", tmp_path / "out", "--fp16", "--output", "both",
                    "--mean", "100,110,120", "--std", "50,60,70")  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert int8_scales(tmp_path / "out/model.int8.onnx") == int8_scales(lab / "planes.onnx")
    images = photos(3)[:, :32, :32]
    planes = images.transpose(0, 3, 1, 2).astype(np.float64) - np.reshape(mean, (1, 3, 1, 1))
    planes = (planes / np.reshape(std, (1, 3, 1, 1))).astype(np.float32)
    logits = torch.from_numpy(answer(lab / "planes.onnx", planes, "input"))
    full = torch.nn.functional.interpolate(logits, (32, 32), mode="bilinear", align_corners=False)
    labels = answer(tmp_path / "out/model.int8.onnx", images)
    assert (labels == full.argmax(1).numpy()).mean() > 0.999  # 1/std is rounded once more
    bundle = bundle_from_folder(tmp_path / "out")
    assert (bundle.outputs, bundle.num_outputs) == (("labels", "logits"), 4)
    assert (bundle.input.mean, bundle.input.std) == (mean, std)
    assert not any("weights stored as integers" in text for text in bundle.warnings)


def test_logits_are_the_output_whatever_an_inner_tensor_is_called(tmp_path: Path) -> None:
    model = planes_model()
    conv = model.graph.node[4]
    conv.output[0] = "logits"
    conv.attribute.append(helper.make_attribute("strides", [2, 2]))
    twice = helper.make_tensor("twice", 1, [4], [1.0, 1.0, 2.0, 2.0])
    model.graph.initializer.append(twice)
    resize = helper.make_node("Resize", ["logits", "", "twice"], ["scores"], "/R", mode="linear")
    model.graph.node.append(resize)
    path = saved(model, tmp_path)
    result = export(path, tmp_path / "out", "--output", "both", "--mean", "0,0,0", "--std", "1,1,1")
    assert result.exit_code == 0, result.stderr
    nodes = onnx.load(str(tmp_path / "out/model.int8.onnx")).graph.node
    assert sum(node.op_type == "Resize" for node in nodes) == 1
    images = photos(1)[:, :32, :32]
    scores = answer(path, images.transpose(0, 3, 1, 2).astype(np.float32), "planes")
    assert np.array_equal(answer(tmp_path / "out/model.int8.onnx", images), scores.argmax(1))


def test_the_range_of_an_input_that_is_renamed_is_kept(tmp_path: Path) -> None:
    model = planes_model()
    model.graph.input[0].name = model.graph.node[0].input[0] = "image"
    result = export(saved(model, tmp_path), tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    ranges = ranges_from_json((tmp_path / "out/ranges.json").read_text(encoding="utf-8"))
    clips = [found.amax for found in ranges.tensors.values()]
    assert clips == [pytest.approx(127 * 0.05, rel=1e-6)]


def test_products_of_two_activations_are_no_weighted_layers(tmp_path: Path) -> None:
    """A convolution of 2 * 3 * 32 * 32 in INT8 and a product of 2 * 32 * 32 * 32 that is not."""
    model = planes_model()
    model.graph.node[4].output[0] = "c"
    model.graph.node.append(helper.make_node("MatMul", ["c", "c"], ["scores"], "/product"))
    result = export(saved(model, tmp_path), tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    found = bundle_from_folder(tmp_path / "out").calibration
    assert found is not None
    assert found["int8_macs_percent"] == pytest.approx(100 * 3 / (3 + 32))
    assert found["int8_weighted_percent"] == 100.0


def test_a_linear_layers_pair_behind_a_transpose_counts_as_int8(lab: Path, tmp_path: Path) -> None:
    assert export(lab / "planes.onnx", tmp_path / "out").exit_code == 0
    report = json.loads((tmp_path / "out/report.json").read_text(encoding="utf-8"))
    assert report["calibration"]["int8_macs_percent"] == 100.0
    assert report["calibration"]["int8_nodes"] == 3


def test_tensorrt_takes_a_wrapped_network(
    tensorrt_rtx: ModuleType, lab: Path, tmp_path: Path
) -> None:
    assert export(lab / "planes.onnx", tmp_path / "out", "--fp16").exit_code == 0
    for name in ("model.onnx", "model.fp16.onnx", "model.int8.onnx", "model.int8.fp16.onnx"):
        outcome = outcome_of_build(tensorrt_rtx, tmp_path / "out" / name)
        assert (outcome.errors, outcome.plan_bytes > 0) == ([], True), name


@pytest.mark.parametrize(
    ("arguments", "batch"), [(("--dynamic-batch", "1:2:4"), (1, 2, 4)), ((), (1, 1, 1))]
)
def test_a_free_batch_stays_free_when_asked_for(
    arguments: tuple[str, ...], batch: tuple[int, int, int], tmp_path: Path
) -> None:
    model = planes_model()
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    result = export(saved(model, tmp_path), tmp_path / "out", *arguments)
    assert result.exit_code == 0, result.stderr
    assert bundle_from_folder(tmp_path / "out").input.batch == batch
    for name in ("model.onnx", "model.int8.onnx"):
        session = onnxruntime.InferenceSession(str(tmp_path / "out" / name))
        first = session.get_inputs()[0].shape[0]
        assert first == (1 if batch == (1, 1, 1) else "batch")
        assert len(session.run(None, {"image": photos(first if first == 1 else 3)[:, :32, :32]})[0])


def test_a_transformer_keeps_to_onnxs_own_operators(lab: Path, tmp_path: Path) -> None:
    """onnxsim makes one node of com.microsoft of an attention, which no TensorRT has."""
    net = fake_quantized(tiny_net(), torch.randn(2, 3, *HW))
    path = trace(net, tmp_path / "segformer.onnx", torch.randn(1, 3, *HW))
    result = export(path, tmp_path / "out", "--val", lab / "data", "--max-drop", 100)
    assert result.exit_code == 0, result.stderr
    assert "could not be simplified" not in result.stderr
    for name in ("model.onnx", "model.int8.onnx"):
        nodes = onnx.load(str(tmp_path / "out" / name)).graph.node
        assert {node.domain for node in nodes} == {""}
    assert int8_scales(tmp_path / "out/model.int8.onnx") == int8_scales(path)


def test_free_sides_need_a_size(tmp_path: Path) -> None:
    write_planes_onnx(tmp_path / "free.onnx", dynamic={2: "h", 3: "w"})
    line = error_of(export(tmp_path / "free.onnx", tmp_path / "out"))
    assert "whose input has no fixed size, without --size" in line
    assert not (tmp_path / "out").exists()


def test_normalisation_is_assumed_aloud(lab: Path, tmp_path: Path) -> None:
    result = export(lab / "planes.onnx", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert "ImageNet mean and std assumed" in result.stderr
    assert "no class names: the 4 outputs are called class 0" in result.stderr


def test_logits_of_the_input_size_are_not_resized(tmp_path: Path) -> None:
    result = export(saved(planes_model(), tmp_path), tmp_path / "out", "--output", "both")
    assert result.exit_code == 0, result.stderr
    assert "Resize" not in operators(tmp_path / "out/model.int8.onnx")
    assert bundle_from_folder(tmp_path / "out").outputs == ("labels", "logits")


# --- FP16 -----------------------------------------------------------------------------------------


def test_scales_stay_float32_where_float16_ones_are_allowed(tmp_path: Path) -> None:
    path = saved(planes_model(opset=19), tmp_path)
    result = export(path, tmp_path / "out", "--fp16")
    assert result.exit_code == 0, result.stderr
    assert int8_scales(tmp_path / "out/model.int8.fp16.onnx") == int8_scales(path)


def test_a_file_in_fp16_is_the_int8_fp16_graph_and_int8_has_its_numbers(tmp_path: Path) -> None:
    """As ModelOpt writes it: opset 19, scales and weights in float16."""
    model = planes_model(opset=19)
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            half = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(half, tensor.name))
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    path = saved(model, tmp_path)
    result = export(path, tmp_path / "out", "--target", "jetpack6")
    assert result.exit_code == 0, result.stderr
    given = int8_scales(path)
    assert int8_scales(tmp_path / "out/model.int8.fp16.onnx") == given
    for scale, half in zip(int8_scales(tmp_path / "out/model.int8.onnx"), given, strict=True):
        assert np.frombuffer(scale, np.float32).tolist() == np.frombuffer(half, np.float16).tolist()
    types = {
        t.data_type for t in onnx.load(str(tmp_path / "out/model.int8.onnx")).graph.initializer
    }
    assert TensorProto.FLOAT16 not in types
    assert "computes in FP16" in result.stderr


def test_layers_near_fp16s_end_stay_in_fp32(lab: Path, tmp_path: Path) -> None:
    model = planes_model()
    bias = helper.make_tensor("bias", 1, [2], [20_000.0, 0.0])
    model.graph.initializer.append(bias)
    model.graph.node[4].input.append("bias")
    calib = ("--calib", lab / "data")
    result = export(saved(model, tmp_path), tmp_path / "out", "--fp16", *calib)
    assert result.exit_code == 0, result.stderr
    assert "keeps its own scales; FP16 overflows were looked for" in result.stderr
    build = bundle_from_folder(tmp_path / "out").build
    assert build is not None
    assert "/Conv" in build.fp32_nodes
    for name in ("model.fp16.onnx", "model.int8.fp16.onnx"):
        graph = onnx.load(str(tmp_path / "out" / name)).graph
        conv = next(node for node in graph.node if node.op_type == "Conv")
        kept = next(t for t in graph.initializer if t.name == conv.input[2])
        assert kept.data_type == TensorProto.FLOAT


def test_calibration_images_that_cannot_be_read_are_named_and_not_counted(
    lab: Path, tmp_path: Path
) -> None:
    photo, calib = next((lab / "data").rglob("*.png")), tmp_path / "calib"
    calib.mkdir()
    (calib / "good.png").write_bytes(photo.read_bytes())
    (calib / "bad.png").write_bytes(photo.read_bytes()[:50])
    model = planes_model()
    model.graph.initializer.append(helper.make_tensor("bias", 1, [2], [20_000.0, 0.0]))
    model.graph.node[4].input.append("bias")
    path = saved(model, tmp_path)
    result = export(path, tmp_path / "out", "--calib", calib, "--skip-bad")
    assert result.exit_code == 0, result.stderr
    warnings = bundle_from_folder(tmp_path / "out").warnings
    assert sum("calibration image left out: bad.png" in text for text in warnings) == 1
    assert sum("beyond an eighth of FP16's range on 1 images" in text for text in warnings) == 1


def test_a_graph_that_cannot_be_simplified_is_taken_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no\n  kernel \x1b[2J")  # onnxsim's own texts have several lines

    monkeypatch.setattr("exporter.qat.bundle.simplify_onnx", fail)
    result = export(saved(planes_model(), tmp_path), tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    said = "model.onnx could not be simplified (no kernel ?[2J)"
    assert said in result.stderr
    assert said in bundle_from_folder(tmp_path / "out").warnings
    assert not operators(tmp_path / "out/model.onnx") & {"QuantizeLinear", "DequantizeLinear"}
    assert len(list((tmp_path / "out").glob("*.onnx"))) == 3  # nothing is left of the attempt


# --- what is refused ------------------------------------------------------------------------------


def test_zero_points_are_refused_for_tensorrt_and_taken_for_a_cpu(
    lab: Path, tmp_path: Path
) -> None:
    line = error_of(export(lab / "asymmetric.onnx", tmp_path / "out"))
    assert "a DequantizeLinear with a zero point that is not 0" in line
    assert "or pass --target cpu" in line
    assert not (tmp_path / "out").exists()
    result = export(lab / "asymmetric.onnx", tmp_path / "out", "--target", "cpu")
    assert result.exit_code == 0, result.stderr
    assert "TensorRT refuses model.int8.onnx" in result.stderr
    assert int8_scales(tmp_path / "out/model.int8.onnx") == int8_scales(lab / "asymmetric.onnx")
    assert set(bundle_from_folder(tmp_path / "out").files) == {"fp32", "int8"}
    images = photos(2)
    assert np.array_equal(
        answer(tmp_path / "out/model.int8.onnx", images), answer(lab / "asymmetric.onnx", images)
    )


def test_a_symmetric_file_for_a_cpu_stays_as_it_is(lab: Path, tmp_path: Path) -> None:
    result = export(lab / "symmetric.onnx", tmp_path / "out", "--target", "cpu")
    assert result.exit_code == 0, result.stderr
    kinds = {
        t.data_type for t in onnx.load(str(tmp_path / "out/model.int8.onnx")).graph.initializer
    }
    assert {TensorProto.INT8, TensorProto.INT32} <= kinds


def _without_pairs(model: onnx.ModelProto) -> None:
    del model.graph.node[:4]
    model.graph.node[0].input[:] = ["planes", "w"]


def _computed_scale(model: onnx.ModelProto) -> None:
    model.graph.node.insert(0, helper.make_node("ReduceMax", ["planes"], ["peak"], keepdims=0))
    for node in model.graph.node[1:3]:
        node.input[1] = "peak"


def _per_channel_activation(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(helper.make_tensor("steps", 1, [3], [0.1, 0.2, 0.3]))
    model.graph.initializer.append(helper.make_tensor("zeros", 3, [3], [0, 0, 0]))
    for node in model.graph.node[:2]:
        node.input[1:] = ["steps", "zeros"]
        node.attribute.append(helper.make_attribute("axis", 1))


def _other_scale_behind(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(helper.make_tensor("other", 1, [], [0.07]))
    model.graph.node[1].input[1] = "other"


def _no_zero_point(model: onnx.ModelProto) -> None:
    for node in model.graph.node[:2]:
        del node.input[2:]


def _zero_scale(model: onnx.ModelProto) -> None:
    next(t for t in model.graph.initializer if t.name == "step").CopyFrom(
        helper.make_tensor("step", 1, [], [0.0])
    )


def _dynamic_operator(model: onnx.ModelProto) -> None:
    node = model.graph.node[0]
    node.CopyFrom(helper.make_node("DynamicQuantizeLinear", ["planes"], ["quantized", "s", "z"]))


def _axis_beyond(model: onnx.ModelProto) -> None:
    for node in model.graph.node[2:4]:
        node.attribute[0].i = 7


def _too_many_zero_points(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(helper.make_tensor("more", 3, [3], [0, 0, 0]))
    for node in model.graph.node[2:4]:
        node.input[2] = "more"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_without_pairs, "an ONNX file without Q/DQ pairs"),
        (_computed_scale, "whose scale is computed while it runs"),
        (_per_channel_activation, "with a scale per channel for an activation"),
        (_other_scale_behind, "read by /in/DQ"),
        (_no_zero_point, "to uint8"),
        (_zero_scale, "with a scale that is not above 0"),
        (_axis_beyond, "with 2 scales on axis 7 of [2, 3, 1, 1]"),
        (_too_many_zero_points, "with 2 scales and 3 zero points"),
        (_dynamic_operator, "an operator DynamicQuantizeLinear"),
    ],
)
def test_what_tensorrt_would_refuse_is_refused_with_its_name(
    change: Any, said: str, tmp_path: Path
) -> None:
    model = planes_model()
    change(model)
    line = error_of(export(saved(model, tmp_path), tmp_path / "out"))
    assert said in line
    assert not (tmp_path / "out").exists()


def test_a_name_that_no_bundle_takes_is_refused_at_once(tmp_path: Path) -> None:
    model = planes_model()
    model.graph.node[4].name = "/Co\nnv"
    line = error_of(export(saved(model, tmp_path), tmp_path / "out"))
    assert r"a node named '/Co\nnv'" in line


@pytest.mark.parametrize("kind", ["uint8", "int16", "uint16"])
def test_only_int8_is_taken(kind: str, tmp_path: Path) -> None:
    opset = 17 if kind == "uint8" else 21
    path = saved(planes_model(kind=kind, opset=opset), tmp_path)
    assert f"a DequantizeLinear to {kind}; expected int8" in error_of(
        export(path, tmp_path / "out")
    )


def test_a_graph_of_another_shape_is_refused_with_its_inputs_and_outputs(tmp_path: Path) -> None:
    model = planes_model()
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    line = error_of(export(saved(model, tmp_path), tmp_path / "out"))
    assert "planes uint8 [1, 3, 32, 32]" in line
    assert "before any softmax or argmax" in line


@pytest.mark.parametrize(
    "arguments",
    [("--size", "32x32"), ("--mean", "1,2,3"), ("--std", "1,2,3"), ("--opset", "17"),
     ("--model", "segformer-b0"), ("--keep-classes", "2"), ("--dynamic-batch", "1:2:4"),
     ("--output", "logits"), ("--keep-reference", "--val", "VAL"), ("--calibrator", "minmax"),
     ("--equalize",), ("--precision", "fp16"), ("--precision", "fp32")],
)  # fmt: skip
def test_an_option_that_could_only_be_ignored_is_refused(
    arguments: tuple[str, ...], lab: Path, tmp_path: Path
) -> None:
    given = [lab / "data" if text == "VAL" else text for text in arguments]
    line = error_of(export(lab / "symmetric.onnx", tmp_path / "out", *given))
    assert "ONNX file" in line
    assert not (tmp_path / "out").exists()


def test_labels_alone_of_a_file_with_logits_too_are_refused_where_they_are_asked_for(
    tmp_path: Path,
) -> None:
    both = export(saved(planes_model(), tmp_path), tmp_path / "both", "--output", "both")
    assert both.exit_code == 0, both.stderr
    path = tmp_path / "both/model.int8.onnx"
    line = error_of(export(path, tmp_path / "out", "--output", "labels"))
    assert "--output for an ONNX file that has this inside" in line
    result = export(path, tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert bundle_from_folder(tmp_path / "out").outputs == ("labels", "logits")


def test_int8_may_be_said_without_images(lab: Path, tmp_path: Path) -> None:
    result = export(lab / "planes.onnx", tmp_path / "out", "--int8")
    assert result.exit_code == 0, result.stderr


def test_weights_in_another_file_are_read(tmp_path: Path) -> None:
    model = planes_model()
    onnx.save(model, str(tmp_path / "m.onnx"), save_as_external_data=True, location="m.bin",
              size_threshold=0)  # fmt: skip
    assert (tmp_path / "m.bin").exists()
    assert export(tmp_path / "m.onnx", tmp_path / "out").exit_code == 0
    assert int8_scales(tmp_path / "out/model.int8.onnx") == int8_scales(tmp_path / "m.onnx")


def test_weights_outside_the_folder_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    path = tmp_path / "inner/m.onnx"
    onnx.save(planes_model(), str(path), save_as_external_data=True, location="m.bin",
              size_threshold=0)  # fmt: skip
    model = onnx.load(str(path), load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../m.bin"
    (tmp_path / "inner/m.bin").rename(tmp_path / "m.bin")
    path.write_bytes(model.SerializeToString())
    assert "with its data in '../m.bin'" in error_of(export(path, tmp_path / "out"))


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"\x08\x07\x12 no graph")
    line = error_of(export(tmp_path / "bad.onnx", tmp_path / "out"))
    assert "bad.onnx, unreadable as ONNX" in line


def test_a_scale_that_was_lost_is_found() -> None:
    from exporter.qat.promises import check_scales_kept
    from exporter.qat.quantizers import quantizers_from_graph

    model = planes_model()
    before = quantizers_from_graph(model)
    assert check_scales_kept(before, model, asymmetric=False) == 3
    step = next(t for t in model.graph.initializer if t.name == "step")
    step.CopyFrom(helper.make_tensor("step", 1, [], [np.nextafter(np.float32(0.05), 1)]))
    with pytest.raises(
        GateError,
        match=r"1 of 2 scales of the file were not kept \(2 are there\), first that of /in/DQ",
    ):
        check_scales_kept(before, model, asymmetric=False)


def test_the_parts_of_a_layer_norm_taken_apart_are_held_in_fp32() -> None:
    from exporter.qat.graph_rewrites import layer_norm_parts
    from tests.tiny_models import model_from_text as text_model

    model = text_model("""
        norm (float[1, 4] x) => (float[1, 4] y)
        <float two = {2}, float small = {0.001}> {
          ["/norm/mean"] m = ReduceMean <axes = [-1]> (x)
          ["/norm/Sub"] c = Sub (x, m)
          ["/norm/Pow"] p = Pow (c, two)
          ["/norm/mean2"] v = ReduceMean <axes = [-1]> (p)
          ["/norm/Add"] e = Add (v, small)
          ["/norm/Sqrt"] d = Sqrt (e)
          ["/norm/Div"] n = Div (c, d)
          ["/gain"] y = Mul (n, n)
        }""")
    names = ["mean", "Sub", "Pow", "mean2", "Add", "Sqrt", "Div"]
    assert layer_norm_parts(model) == tuple(f"/norm/{name}" for name in names)


def test_more_than_255_outputs_do_not_fit_a_label(tmp_path: Path) -> None:
    from exporter.qat.outside import logits_shape
    from tests.tiny_models import model_from_text as text_model

    model = text_model("""
        wide (float[1, 300, 2, 2] x) => (float[1, 300, 2, 2] y) { y = Relu (x) }""")
    with pytest.raises(ConfigError, match="300 outputs"):
        logits_shape(model, "y")


# --- parts ----------------------------------------------------------------------------------------

OWN = """
    own (uint8[1, 4, 4, 3] image) => (uint8[1, 4, 4] labels) {{
      pixels = Cast <to = 1> (image)
      planes = Transpose <perm = [0, 3, 1, 2]> (pixels)
      other = ArgMax <axis = 2> (planes)
      best = ArgMax <axis = {axis}, keepdims = 0> (planes)
      labels = Cast <to = 2> (best)
    }}"""


def test_the_logits_of_an_image_graph_are_what_its_own_labels_are_made_of() -> None:
    from exporter.qat.outside import logits_of_labels, logits_shape
    from tests.tiny_models import model_from_text as text_model

    model = text_model(OWN.format(axis=1).replace("(planes)\n      best", "(pixels)\n      best"))
    assert logits_of_labels(model) == "planes"
    assert logits_shape(model, "planes") == (1, 3, 4, 4)
    for wrong in (text_model(OWN.format(axis=2)), text_model(_labels_of_nothing())):
        with pytest.raises(GraphError, match="expected an ArgMax over axis 1"):
            logits_of_labels(wrong)


def _labels_of_nothing() -> str:
    return "f (uint8[1, 4, 4, 3] image) => (uint8[1, 4, 4, 3] labels) { labels = Identity (image) }"


@pytest.mark.parametrize(
    ("interface", "said"),
    [
        ("(uint8[1, 4, 4, 3] image) => (float[1, 4, 4] labels)", "labels float"),
        ("(uint8[1, 4, 4, 3] image) => (uint8[1, 4, 4, 1] labels)", "labels uint8 [1, 4, 4, 1]"),
        ("(uint8[1, 4, 4, 3] image) => (uint8[1, 4, 4] labels, int8[1, 2, 4, 4] logits)", "int8"),
        ("(uint8[1, 4, 16385, 3] image) => (uint8[1, 4, 16385] labels)", "longer side of 16385"),
        ("(uint8[4097, 4, 4, 3] image) => (uint8[4097, 4, 4] labels)", "batch size of 4097"),
        ("(float[1, 65, 4, 4] x) => (float[1, 2, 4, 4] y)", "number of channels of 65"),
    ],
)
def test_what_no_bundle_can_hold_is_refused_at_once(interface: str, said: str) -> None:
    from exporter.qat.outside import outside_of
    from tests.tiny_models import model_from_text as text_model

    with pytest.raises(GraphError, match=re.escape(said)):
        outside_of(text_model(f"wrong {interface} {{ }}"))


def test_a_cast_is_known_by_its_type_whatever_comes_first() -> None:
    from exporter.qat.graph_rewrites import with_constants_in_place

    model = planes_model(opset=19)
    model.graph.initializer.append(helper.make_tensor("float_zero", 1, [], [0.0]))
    cast = helper.make_node("Cast", ["float_zero"], ["int8_zero"], saturate=1, to=TensorProto.INT8)
    cast.attribute.sort(key=lambda item: item.name)
    assert cast.attribute[0].name == "saturate"
    model.graph.node.insert(0, cast)
    for node in model.graph.node[1:3]:
        node.input[2] = "int8_zero"
    result = with_constants_in_place(model)
    assert {node.op_type for node in result.graph.node} == {
        "QuantizeLinear", "DequantizeLinear", "Conv",
    }  # fmt: skip
    kinds = {tensor.name: tensor.data_type for tensor in result.graph.initializer}
    assert kinds["int8_zero"] == TensorProto.INT8


def test_a_constant_that_goes_is_no_input_any_more() -> None:
    """Files of older tools list their constants as inputs too."""
    from exporter.qat.graph_rewrites import without_pairs

    model = planes_model()
    for tensor in model.graph.initializer:
        model.graph.input.append(
            helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        )
    result = without_pairs(model)
    assert [value.name for value in result.graph.input] == ["planes", "w"]
    assert [tensor.name for tensor in result.graph.initializer] == ["w"]


def test_what_onnx_runtime_does_not_run_is_an_error_of_the_graph() -> None:
    from exporter.qat.promises import check_same_answer
    from exporter.run_onnx import outputs_from_onnx
    from tests.tiny_models import model_from_text as text_model

    batch = np.zeros((1, 4), np.uint8)
    refused = text_model("r (uint8[1, 4] image) => (uint8[1, 4] y) { y = NoSuchThing (image) }")
    fails = text_model("""
        f (uint8[1, 4] image) => (uint8[a, b] y) <int64[1] three = {3}> {
          y = Reshape (image, three)
        }""")
    for model in (refused, fails):
        with pytest.raises(GraphError, match="a graph that"):
            check_same_answer(model, model, batch)
        with pytest.raises(GraphError, match="a graph that"):
            outputs_from_onnx(model, batch)
