"""`riceseg export --target`: what is written for which device."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto

from engines.bundle import bundle_from_folder
from engines.errors import ConfigError, GraphError
from exporter import quantization
from exporter.targets import ANY, TARGETS, opset_for, target_named, target_warnings
from tests.tiny_segformer import error_of, export_tiny, photo, write_lab


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lab(tmp_path_factory.mktemp("lab"))


def opset_in(path: Path) -> int:
    return next(o.version for o in onnx.load(path).opset_import if o.domain == "")


@pytest.mark.parametrize(
    ("target", "opset", "int8_fp16"),
    [
        (None, 17, True),
        ("jetpack5", 16, False),
        ("jetpack6", 17, False),
        ("jetpack7", 17, True),
        ("desktop", 17, True),
        ("rtx", 17, True),
        ("cpu", 17, False),
    ],
)
def test_each_target_gets_its_opset_and_its_files(
    target: str | None, opset: int, int8_fp16: bool, lab: Path, tmp_path: Path
) -> None:
    options = ["--int8", "--calib", lab / "data", *(["--target", target] if target else [])]
    result = export_tiny(lab, tmp_path / "out", *options)
    assert result.exit_code == 0, result.stderr
    bundle = bundle_from_folder(tmp_path / "out")
    assert bundle.opset == opset
    assert {opset_in(path) for path in (tmp_path / "out").glob("*.onnx")} == {opset}
    assert ("int8_fp16" in bundle.files) == int8_fp16
    assert (tmp_path / "out/model.int8.fp16.onnx").exists() == int8_fp16
    assert bundle.build is not None
    assert bundle.build.target == (target or "any")
    assert bool(bundle.build.fp32_nodes) == (opset < 17)


def test_jetpack5_gets_the_pieces_of_every_layer_norm_named(lab: Path, tmp_path: Path) -> None:
    assert export_tiny(lab, tmp_path / "5", "--target", "jetpack5", "--fp16").exit_code == 0
    assert export_tiny(lab, tmp_path / "any", "--fp16").exit_code == 0
    kinds = {
        folder: [node.op_type for node in onnx.load(tmp_path / folder / "model.onnx").graph.node]
        for folder in ("5", "any")
    }
    norms = kinds["any"].count("LayerNormalization")
    assert norms > 0
    assert "LayerNormalization" not in kinds["5"]
    hints = bundle_from_folder(tmp_path / "5").build
    assert hints is not None
    for file in ("model.onnx", "model.fp16.onnx"):
        nodes = {n.name: n for n in onnx.load(tmp_path / "5" / file).graph.node if n.name}
        held = [nodes[name].op_type for name in hints.fp32_nodes]
        # mean, x - mean, square, its mean, + epsilon, root, quotient, gain, shift
        assert [held.count(kind) for kind in ("Pow", "Sqrt", "Div")] == [norms] * 3
        assert held.count("ReduceMean") == 2 * norms
        assert len(held) == 9 * norms


def test_the_rest_of_int8_is_fp16_and_the_labels_stay(lab: Path, tmp_path: Path) -> None:
    options = ["--int8", "--calib", lab / "data", "--target", "desktop"]
    assert export_tiny(lab, tmp_path / "out", *options).exit_code == 0
    paths = [tmp_path / "out" / name for name in ("model.int8.onnx", "model.int8.fp16.onnx")]
    models = [onnx.shape_inference.infer_shapes(onnx.load(path)) for path in paths]
    for model, kind in zip(models, (TensorProto.FLOAT, TensorProto.FLOAT16), strict=True):
        types = {v.name: v.type.tensor_type.elem_type for v in model.graph.value_info}
        softmax = [n.output[0] for n in model.graph.node if n.op_type == "Softmax"]
        assert softmax
        assert {types[name] for name in softmax} == {kind}
    pairs = [[n.op_type for n in m.graph.node].count("QuantizeLinear") for m in models]
    assert pairs[0] == pairs[1] > 0
    image = photo((64, 64), 1)[None]
    labels = [
        ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"image": image})
        for path in paths
    ]
    assert np.mean(labels[0][0] == labels[1][0]) > 0.96


def test_the_second_int8_file_is_scored_and_gated_like_the_others(
    lab: Path, tmp_path: Path
) -> None:
    options = ["--int8", "--calib", lab / "data", "--val", lab / "data", "--max-drop", "20"]
    assert export_tiny(lab, tmp_path / "out", *options).exit_code == 0
    report = json.loads((tmp_path / "out/report.json").read_text(encoding="utf-8"))
    rows = {row["form"]: row for row in report["rows"]}
    row = rows["ONNX INT8+FP16"]
    assert (row["precision"], row["file"]) == ("int8_fp16", "model.int8.fp16.onnx")
    assert 0 < row["miou"] <= 100
    drops = [rows["PyTorch FP32"]["miou"] - other["miou"] for other in report["rows"][1:]]
    assert report["gate"]["drop"] == pytest.approx(max(drops), abs=1e-9)


def test_an_int8_export_survives_a_network_that_fp16_cannot_hold(
    lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def beyond(*_: object, **__: object) -> None:
        raise GraphError("3 tensors beyond float16", expected="less", do="leave it")

    monkeypatch.setattr(quantization, "fp16_onnx_from_onnx", beyond)
    result = export_tiny(lab, tmp_path / "out", "--int8", "--calib", lab / "data")
    assert result.exit_code == 0, result.stderr
    assert "warning: no INT8 graph with its rest in FP16 (3 tensors beyond float16)" in (
        result.stderr
    )
    assert "int8_fp16" not in bundle_from_folder(tmp_path / "out").files
    line = error_of(export_tiny(lab, tmp_path / "other", "--fp16"))
    assert "3 tensors beyond float16" in line


@pytest.mark.parametrize(
    ("target", "opset", "wanted"),
    [
        ("jetpack5", 17, "13 to 16: TensorRT 8.5 has no LayerNorm"),
        ("rtx", 16, "17 to 20: LayerNorm"),
    ],
)
def test_an_opset_that_the_target_cannot_run_is_an_error(
    target: str, opset: int, wanted: str, lab: Path, tmp_path: Path
) -> None:
    line = error_of(export_tiny(lab, tmp_path / "out", "--target", target, "--opset", opset))
    assert f"got --opset {opset} with --target {target}; expected {wanted}" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("target", "opset"), [("jetpack5", 13), ("cpu", 15), ("jetpack6", 20)])
def test_an_opset_that_the_target_runs_is_taken(
    target: str, opset: int, lab: Path, tmp_path: Path
) -> None:
    options = ["--target", target, "--opset", opset]
    assert export_tiny(lab, tmp_path / "out", *options).exit_code == 0
    assert bundle_from_folder(tmp_path / "out").opset == opset


def test_an_unknown_target_is_an_error(lab: Path, tmp_path: Path) -> None:
    assert "jetpack9" in error_of(export_tiny(lab, tmp_path / "out", "--target", "jetpack9"))
    with pytest.raises(ConfigError, match="--target jetpack9; expected jetpack5, jetpack6"):
        target_named("jetpack9")


def test_without_a_target_every_opset_is_left_to_the_exporter() -> None:
    assert opset_for(ANY, None) == 17
    assert [opset_for(ANY, opset) for opset in (13, 20)] == [13, 20]


@pytest.mark.parametrize(
    ("target", "fp16", "int8", "told"),
    [
        ("any", True, True, ""),
        ("any", False, False, ""),
        ("jetpack5", False, False, "trtexec"),
        ("jetpack6", False, False, ""),
        ("jetpack6", True, False, "issue 4723"),
        ("jetpack7", False, False, "TensorRT 11 computes an FP32 graph in FP32"),
        ("jetpack7", True, False, ""),
        ("desktop", False, True, ""),
        ("rtx", False, False, "TensorRT-RTX computes an FP32 graph in FP32"),
        ("cpu", False, False, ""),
        ("cpu", False, True, "slower than FP32"),
    ],
)
def test_a_target_warns_of_what_goes_wrong_there(
    target: str, fp16: bool, int8: bool, told: str
) -> None:
    warnings = target_warnings({**TARGETS, "any": ANY}[target], fp16=fp16, int8=int8)
    assert len(warnings) == bool(told)
    assert all(told in line for line in warnings)


def test_the_warning_is_shown_and_kept(lab: Path, tmp_path: Path) -> None:
    result = export_tiny(lab, tmp_path / "out", "--target", "jetpack5")
    assert "warning: --target jetpack5 takes LayerNorm apart" in result.stderr
    assert any("takes LayerNorm apart" in w for w in bundle_from_folder(tmp_path / "out").warnings)
