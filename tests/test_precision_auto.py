"""`riceseg export --precision auto` and `--policy`, on networks whose answer is known."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import Result
from PIL import Image
from torch import nn

from calibration.placement import EVERY_LAYER
from calibration.policy import PrecisionPolicy
from calibration.policy_json import policy_from_path
from calibration.recipe import Int8Recipe, calibrated_from_images
from engines.bundle import bundle_from_folder
from engines.bundle_runtime import tensorrt_precision
from engines.errors import ConfigError, GraphError
from engines.progress import SilentProgress
from exporter import precision_search, quantization
from exporter.calibrate import OnePass, steps_of
from exporter.precision import told_policy
from exporter.precision_search import Rung, Trial, first_within
from exporter.quantization import nodes_matching
from exporter.request import DataOptions, ExportRequest, Int8Options
from exporter.trials import Scorer
from tests.test_groups import exported
from tests.tiny_segformer import (
    MEAN,
    STD,
    error_of,
    export_tiny,
    photo,
    run_cli,
    tiny_net,
    write_checkpoint,
)

AUTO = ("--precision", "auto", "--val", "DATA")
# Nothing is left to measure but the precision.
PLAIN = ("--no-equalize", "--no-bias-correction", "--rounding", "nearest", "--calibrator", "mse")


def hostile_net(factor: float = 256) -> nn.Module:
    """The tiny network, with one channel that the head's fusion reads `factor` times as large.

    Its weights make up for it exactly, in floating point: a power of two. One INT8 scale for all
    channels leaves the others next to nothing.
    """
    net = tiny_net()
    head = net.decode_head
    with torch.no_grad():
        norm, fusion = head.convs[0].bn, head.fusion_conv.conv
        norm.weight[0].mul_(factor)
        norm.bias[0].mul_(factor)
        fusion.weight[:, 0].div_(factor)
    return net


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lab_of(hostile_net(), tmp_path_factory.mktemp("lab"))


def write_lab_of(net: nn.Module, root: Path) -> Path:
    """A checkpoint with its own answers as masks: FP32 scores 100 %, and every loss is INT8's."""
    write_checkpoint(root / "tiny.pth", tensors=dict(net.state_dict()))
    mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
    for part, count, seed in (("calibration", 4, 100), ("validation", 4, 200)):
        for i in range(count):
            picture = photo((64, 64), seed + i)
            save(picture, root / "data/images" / part / f"사진{i}.png")
            pixels = (torch.from_numpy(picture).float().permute(2, 0, 1) - mean) / std
            with torch.no_grad():
                logits = nn.functional.interpolate(net(pixels[None]), (64, 64), mode="bilinear")
            save(
                logits.argmax(1)[0].numpy().astype(np.uint8),
                root / f"data/masks/{part}/사진{i}.png",
            )
    return root


def save(picture: np.ndarray[Any, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)


def export_auto(lab: Path, out: Path, max_drop: float, *arguments: object) -> Result:
    data = ("--calib", lab / "data", "--val", lab / "data", "--max-drop", max_drop)
    return export_tiny(lab, out, "--precision", "auto", *PLAIN, *data, *arguments)


@pytest.fixture(scope="module")
def found(lab: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("found") / "묶음"
    result = export_auto(lab, out, 25)
    assert result.exit_code == 0, result.stderr
    assert "INT8: mIoU" in result.stderr
    assert "(too much)" in result.stderr
    return out


def report_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def test_the_one_group_that_int8_harms_goes_back_to_floating_point(found: Path) -> None:
    policy = policy_from_path(found)
    assert policy.precision == "int8"
    assert policy.float_groups == ("head_fusion",)
    model = onnx.load(found / "model.int8.onnx")
    quantized = {n.output[0] for n in model.graph.node if n.op_type == "DequantizeLinear"}
    convs = [n for n in model.graph.node if n.op_type in ("Conv", "MatMul")]
    names = {True: "", False: ""}
    for node in convs:
        names[node.input[1] in quantized] += f"{node.name}\n"
    assert "/net/decode_head/fusion.0/Conv" in names[False]
    assert "fusion" not in names[True]
    assert "/net/decode_head/conv_seg/Conv" in names[True]


def test_every_trial_is_in_the_report(found: Path) -> None:
    search = report_of(found)["precision_search"]
    tried = [(t["rung"], t["precision"], t["float_groups"]) for t in search["trials"]]
    assert tried == [
        ("FP32", "fp32", []),
        ("INT8", "int8", []),
        ("INT8 without Head: fusion", "int8", ["head_fusion"]),
    ]
    assert [t["passed"] for t in search["trials"]] == [True, False, True]
    assert search["chosen"] == "INT8 without Head: fusion"
    assert search["max_drop"] == 25
    assert search["reference_miou"] == 100
    int8 = [t["int8_percent"] for t in search["trials"]]
    assert int8[0] == 0 < int8[2] < int8[1]
    assert search["order"][0]["name"] == "head_fusion"


def test_the_search_and_the_gate_measure_the_same_loss(found: Path) -> None:
    report = report_of(found)
    last = report["precision_search"]["trials"][-1]
    drops = [report["rows"][0]["miou"] - row["miou"] for row in report["rows"][2:]]
    assert [row["precision"] for row in report["rows"][2:]] == ["int8", "int8_fp16"]
    assert last["drop"] == pytest.approx(max(drops), abs=1e-9)
    assert policy_from_path(found).found.drop == last["drop"]  # type: ignore[union-attr]
    assert report["gate"]["passed"] is True


def test_the_bundle_holds_what_was_found_and_a_device_runs_it(found: Path) -> None:
    bundle = bundle_from_folder(found)
    written = {"fp32", "int8", "int8_fp16", "ranges", "calibration_cache", "policy"}
    assert set(bundle.files) == written
    others = {"bundle.json", "report.json", "report.html"}
    assert {p.name for p in found.iterdir()} == {i.file for i in bundle.files.values()} | others
    assert tensorrt_precision(bundle) == "int8"


def test_only_what_is_quantized_has_a_range(found: Path) -> None:
    graph = onnx.load(found / "model.int8.onnx").graph
    constants = {tensor.name for tensor in graph.initializer}
    read = {n.input[0] for n in graph.node if n.op_type == "QuantizeLinear"} - constants
    ranges = json.loads((found / "ranges.json").read_text(encoding="utf-8"))
    assert set(ranges["tensors"]) == read


@pytest.mark.parametrize("given", ["묶음", "묶음/policy.json"])
def test_the_policy_makes_the_same_graphs_again(
    given: str, lab: Path, found: Path, tmp_path: Path
) -> None:
    data = ("--calib", lab / "data", "--val", lab / "data", "--max-drop", 25)
    result = export_tiny(lab, tmp_path / "again", "--policy", found.parent / given, *data)
    assert result.exit_code == 0, result.stderr
    assert "precision_search" not in result.stderr
    for name in ("model.int8.onnx", "model.int8.fp16.onnx", "calibration.cache"):
        assert (tmp_path / "again" / name).read_bytes() == (found / name).read_bytes()
    # found was the loss of another export, perhaps of another checkpoint
    assert policy_from_path(tmp_path / "again") == replace(policy_from_path(found), found=None)


def test_int8_everywhere_is_taken_where_the_limit_allows_it(lab: Path, tmp_path: Path) -> None:
    assert export_auto(lab, tmp_path / "out", 100).exit_code == 0
    assert policy_from_path(tmp_path / "out").float_groups == ()
    search = report_of(tmp_path / "out")["precision_search"]
    assert [trial["rung"] for trial in search["trials"]] == ["FP32", "INT8"]
    assert search["order"] == []


def test_a_limit_that_fp32_itself_misses_fails_the_gate_without_a_search(
    lab: Path, tmp_path: Path
) -> None:
    result = export_auto(lab, tmp_path / "out", -100)
    assert "mIoU fell by 0.00 points, at most -100.00 allowed" in error_of(result, code=1)
    assert "FP32 itself loses 0.00 mIoU points" in result.stderr
    assert set(bundle_from_folder(tmp_path / "out").files) == {"fp32", "policy"}
    assert len(report_of(tmp_path / "out")["precision_search"]["trials"]) == 1


def test_every_switch_that_nothing_was_said_about_is_measured(lab: Path, tmp_path: Path) -> None:
    options = ("--calib", lab / "data", "--val", lab / "data", "--max-drop", 100)
    options += ("--rounding", "compensated", "--no-equalize")
    result = export_tiny(lab, tmp_path / "out", "--precision", "auto", *options)
    assert result.exit_code == 0, result.stderr
    report, policy = report_of(tmp_path / "out"), policy_from_path(tmp_path / "out")
    assert policy.recipe is not None
    rows = {row["name"]: row for row in report["techniques"]["rows"]}
    auto, rounding, bias = rows.values()
    assert list(rows)[1:] == ["compensated rounding", "bias correction"]
    assert report["techniques"]["images"] == 4
    assert rounding["used"]  # it was asked for
    assert policy.recipe.rounding == "compensated"
    assert not policy.recipe.equalize
    assert (policy.recipe.method == "auto") == auto["used"]
    assert policy.recipe.bias_correction == bias["used"]
    for row in (auto, bias):
        pays = row["sqnr_db"] - row["sqnr_db_without"] >= 0.1
        changed, before = 100 - row["agreement"], 100 - row["agreement_without"]
        assert row["used"] == (pays and changed <= 1.1 * before)
    assert f"{rounding['sqnr_db_without']:.1f} -> {rounding['sqnr_db']:.1f} dB" in result.stderr


def test_an_equalized_graph_is_the_bundles_fp32_graph_and_verified_as_such(
    lab: Path, tmp_path: Path
) -> None:
    data = ("--calib", lab / "data")
    for name, switch in (("plain", "--no-equalize"), ("equalized", "--equalize")):
        result = export_tiny(lab, tmp_path / name, "--precision", "int8", switch, *data)
        assert result.exit_code == 0, result.stderr
    plain, equalized = (gains_of(tmp_path / n / "model.onnx") for n in ("plain", "equalized"))
    assert plain.keys() == equalized.keys()
    assert any(not np.array_equal(plain[name], equalized[name]) for name in plain)
    report = report_of(tmp_path / "equalized")
    assert report["parity"]["agreement"] >= 99.99
    assert report["parity"] != report_of(tmp_path / "plain")["parity"]
    assert [row["name"] for row in report["techniques"]["rows"]] == ["equalization"]
    assert report_of(tmp_path / "plain")["techniques"] is None
    files = bundle_from_folder(tmp_path / "equalized").files
    data_bytes = (tmp_path / "equalized/model.onnx").read_bytes()
    assert files["fp32"].sha256 == hashlib.sha256(data_bytes).hexdigest()


def test_the_equalized_graph_is_tried_as_fp32_too_and_stays_where_int8_does(
    lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[list[str]] = []

    def scores(self: Scorer, paths: Sequence[Path], progress: object) -> tuple[float, float]:
        tried.append([path.name for path in paths])
        return 100.0, 100.0

    monkeypatch.setattr(Scorer, "scores", scores)
    result = export_auto(lab, tmp_path / "out", 100, "--equalize", "--target", "jetpack6")
    assert result.exit_code == 0, result.stderr
    assert tried == [["model.onnx", ".equalized.onnx"], ["trial.int8.onnx"]]
    assert export_tiny(lab, tmp_path / "plain").exit_code == 0
    gains, plain = (gains_of(tmp_path / name / "model.onnx") for name in ("out", "plain"))
    assert any(not np.array_equal(gains[name], plain[name]) for name in plain)
    recipe = policy_from_path(tmp_path / "out").recipe
    assert recipe is not None
    assert recipe.equalize
    assert [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")] == []


def test_a_bundle_of_fp16_alone_has_the_graph_as_it_was_traced(
    lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """INT8 was tried on an equalized graph, which is nothing to FP16."""
    data = ("--calib", lab / "data", "--val", lab / "data")
    assert export_tiny(lab, tmp_path / "plain", "--fp16", *data).exit_code == 0
    scores_by_name(monkeypatch, ["model.onnx", ".equalized.onnx", "trial.fp16.onnx"])
    monkeypatch.setattr(precision_search, "group_errors", lambda *_, **__: ())  # fewer rungs
    result = export_auto(lab, tmp_path / "out", 1, "--equalize")
    assert result.exit_code == 0, result.stderr
    assert "equalized graph" in result.stderr
    monkeypatch.undo()
    policy = ("--policy", tmp_path / "out")
    assert export_tiny(lab, tmp_path / "again", *policy, *data).exit_code == 0
    for name in ("model.onnx", "model.fp16.onnx"):
        written = [(tmp_path / out / name).read_bytes() for out in ("out", "plain", "again")]
        assert written[0] == written[1] == written[2]
    bundle = bundle_from_folder(tmp_path / "out")
    assert set(bundle.files) == {"fp32", "fp16", "policy"}
    assert bundle.calibration is None
    others = {"bundle.json", "report.json", "report.html"}
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {info.file for info in bundle.files.values()} | others


def test_equalization_that_finds_nothing_is_told_and_not_recorded(
    lab: Path, tmp_path: Path
) -> None:
    """Opset 16 has no LayerNormalization, and depthwise layers stay in floating point."""
    options = ("--int8", "--opset", 16, "--calib", lab / "data")
    assert export_tiny(lab, tmp_path / "plain", *options).exit_code == 0
    result = export_tiny(lab, tmp_path / "out", *options, "--equalize")
    assert result.exit_code == 0, result.stderr
    assert "warning: --equalize changed nothing" in result.stderr
    for name in ("model.onnx", "model.int8.onnx", "policy.json"):
        written = [(tmp_path / out / name).read_bytes() for out in ("out", "plain")]
        assert written[0] == written[1]
    report = report_of(tmp_path / "out")
    assert report["calibration"]["equalize"] is False
    assert [row["used"] for row in report["techniques"]["rows"]] == [False]


def gains_of(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The factors of every LayerNormalization, by its name."""
    graph = onnx.load(path).graph
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    norms = [node for node in graph.node if node.op_type == "LayerNormalization"]
    return {node.name: tensors[node.input[1]] for node in norms}


def test_layers_that_come_near_the_end_of_fp16_stay_in_fp32_in_every_graph(
    tmp_path: Path,
) -> None:
    lab = write_lab_of(hostile_net(2.0**14), tmp_path / "lab")
    result = export_auto(lab, tmp_path / "out", 25)
    assert result.exit_code == 0, result.stderr
    assert "beyond an eighth of FP16's range on 4 images" in result.stderr
    fusion = "/net/decode_head/fusion.0/Conv"
    hints = bundle_from_folder(tmp_path / "out").build
    assert hints is not None
    assert fusion in hints.fp32_nodes
    trials = report_of(tmp_path / "out")["precision_search"]["trials"]
    assert [trial["rung"] for trial in trials] == ["FP32", "INT8"]
    for name in ("model.int8.onnx", "model.int8.fp16.onnx"):
        graph = onnx.load(tmp_path / "out" / name).graph
        writers = {output: node.op_type for node in graph.node for output in node.output}
        node = next(node for node in graph.node if node.name == fusion)
        assert {writers.get(name) for name in node.input}.isdisjoint({"DequantizeLinear"})
        types = {v.name: v.type.tensor_type.elem_type for v in shapes(graph)}
        assert types[node.output[0]] == onnx.TensorProto.FLOAT


def shapes(graph: onnx.GraphProto) -> Sequence[onnx.ValueInfoProto]:
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    return onnx.shape_inference.infer_shapes(model).graph.value_info


def test_ctrl_c_in_the_search_leaves_nothing_behind(
    lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> tuple[float, float]:
        raise KeyboardInterrupt

    monkeypatch.setattr(Scorer, "scores", interrupted)
    result = export_auto(lab, tmp_path / "묶음/out", 1)
    assert result.exit_code == 130
    assert "interrupted" in result.stderr
    assert list(tmp_path.iterdir()) == []


def scores_by_name(monkeypatch: pytest.MonkeyPatch, good: Sequence[str]) -> None:
    """Full marks for graphs whose file name holds one of `good`, 40 points less for others."""

    def scores(self: Scorer, paths: Sequence[Path], progress: object) -> tuple[float, float]:
        right = all(any(part in path.name for part in good) for path in paths)
        return (100.0, 100.0) if right else (60.0, 60.0)

    monkeypatch.setattr(Scorer, "scores", scores)


def test_where_no_int8_passes_fp16_is_written_alone(
    lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores_by_name(monkeypatch, ["model.onnx", "trial.fp16.onnx"])
    assert export_auto(lab, tmp_path / "out", 1).exit_code == 0
    bundle = bundle_from_folder(tmp_path / "out")
    assert set(bundle.files) == {"fp32", "fp16", "policy"}
    assert tensorrt_precision(bundle) == "fp16"
    trials = report_of(tmp_path / "out")["precision_search"]["trials"]
    groups = [len(trial["float_groups"]) for trial in trials if trial["precision"] == "int8"]
    assert groups == list(range(len(groups)))  # one more on each rung
    assert len(groups) > 8
    assert [trial["precision"] for trial in trials[len(groups) + 1 :]] == ["fp16"]


def test_fp16_that_cannot_hold_the_network_leaves_fp32_and_says_why(
    lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def beyond(*_: object, **__: object) -> None:
        raise GraphError("3 tensors beyond float16", expected="less", do="leave it")

    monkeypatch.setattr(quantization, "fp16_onnx_from_onnx", beyond)
    scores_by_name(monkeypatch, ["model.onnx"])
    result = export_auto(lab, tmp_path / "out", 1, "--target", "jetpack6")
    assert result.exit_code == 0, result.stderr
    bundle = bundle_from_folder(tmp_path / "out")
    assert set(bundle.files) == {"fp32", "policy"}
    assert tensorrt_precision(bundle) == "fp32"
    last = report_of(tmp_path / "out")["precision_search"]["trials"][-1]
    assert last["precision"] == "fp16"
    assert (last["miou"], last["drop"], last["passed"]) == (None, None, False)
    assert "3 tensors beyond float16" in last["error"]


def test_named_nodes_stay_in_fp32_where_fp16_alone_loses_too_much(
    lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scores(self: Scorer, paths: Sequence[Path], progress: object) -> tuple[float, float]:
        kinds = {value.type.tensor_type.elem_type for value in softmax_types(paths[0])}
        return (100.0, 100.0) if kinds == {onnx.TensorProto.FLOAT} else (60.0, 60.0)

    def softmax_types(path: Path) -> Iterator[onnx.ValueInfoProto]:
        if "int8" in path.name:
            return
        graph = onnx.shape_inference.infer_shapes(onnx.load(path)).graph
        outputs = {node.output[0] for node in graph.node if node.op_type == "Softmax"}
        yield from (value for value in graph.value_info if value.name in outputs)

    monkeypatch.setattr(Scorer, "scores", scores)
    assert export_auto(lab, tmp_path / "out", 1, "--target", "jetpack6").exit_code == 0
    policy = policy_from_path(tmp_path / "out")
    assert (policy.precision, policy.fp32_nodes) == ("fp16", ("*LayerNormalization*", "*Softmax*"))
    hints = bundle_from_folder(tmp_path / "out").build
    assert hints is not None
    graph = onnx.load(tmp_path / "out/model.onnx").graph
    held = [n.name for n in graph.node if n.op_type in ("LayerNormalization", "Softmax")]
    assert list(hints.fp32_nodes) == held


def trial(rung: Rung, *, passed: bool) -> Trial:
    return Trial(rung.title, "int8", (), 70.0, 1.0, 99.0, 90.0, passed, 1.0)


def test_no_rung_is_made_before_the_one_below_has_failed() -> None:
    made: list[str] = []

    def ladder() -> Iterator[Rung]:
        for title in ("a", "b", "c"):
            made.append(title)
            yield Rung(title, PrecisionPolicy("fp32"))

    rung, trials = first_within(ladder(), lambda rung: trial(rung, passed=rung.title == "b"))
    assert rung is not None
    assert (rung.title, [t.rung for t in trials], made) == ("b", ["a", "b"], ["a", "b"])
    assert first_within(ladder(), lambda rung: trial(rung, passed=False))[0] is None


def test_a_repeated_image_counts_once(tmp_path: Path) -> None:
    """PyTorch and the graph are compared on four; one image stands in for the others."""
    lab = write_lab_of(hostile_net(2.0**14), tmp_path / "lab")
    for part in ("images", "masks"):
        for path in sorted((lab / "data" / part / "validation").iterdir())[1:]:
            path.unlink()
    options = ("--fp16", "--val", lab / "data", "--max-drop", 100)
    result = export_tiny(lab, tmp_path / "out", *options)
    assert result.exit_code == 0, result.stderr
    assert "beyond an eighth of FP16's range on 1 images" in result.stderr


def test_several_passes_are_counted_as_one(tmp_path: Path) -> None:
    exported(tiny_net(), tmp_path)
    recipe = Int8Recipe(EVERY_LAYER, "auto", equalize=True, bias_correction=True)
    progress = Counts()
    calibrated_from_images(
        tmp_path / "model.onnx",
        lambda: (photo((64, 64), seed) for seed in range(3)),
        recipe,
        equalized_path=tmp_path / "equalized.onnx",
        on_step=OnePass(progress, steps_of(recipe, 3)),
    )
    # to equalize, to take ranges, to choose between clips, to correct biases
    assert progress.seen == [(done, 12) for done in range(1, 13)]


class Counts(SilentProgress):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, int | None]] = []

    def advance(self, done: int, total: int | None) -> None:
        self.seen.append((done, total))


# --- what contradicts itself ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--precision", "auto", "--int8"], "--precision auto with --int8"),
        (["--precision", "fp16", "--fp16"], "--precision fp16 with --fp16"),
        (["--precision", "auto"], "--precision auto without --calib"),
        (["--precision", "auto", "--calib", "DATA"], "--precision auto without --val"),
        (["--precision", "auto", "--target", "cpu"], "--precision auto with --target cpu"),
        (["--precision", "int8"], "INT8 without --calib"),
        (["--precision", "fp32", "--policy", "P"], "--precision fp32 with --policy"),
        (["--policy", "none.json"], "--policy none.json, unreadable"),
        (["--policy", "DATA"], "no readable file 'bundle.json'"),
        (["--fp16", "--rounding", "nearest"], "--rounding with an export of FP16"),
        (["--equalize"], "--equalize with an export of FP32"),
        (["--policy", "P", "--no-equalize"], "--equalize with --policy, which says it"),
        (["--policy", "P", "--calibrator", "mse"], "--calibrator with --policy, which says it"),
        (["--policy", "P"], "INT8 without --calib"),
        (["--policy", "F", "--int8"], "--int8 with --policy"),
        (
            ["--int8", "--calib", "DATA", "--percentile", "99"],
            "--percentile with --calibrator mse, which takes none",
        ),
        (
            [*AUTO, "--calib", "DATA", "--calibrator", "entropy", "--percentile", "99"],
            "--percentile with --calibrator entropy",
        ),
    ],
)
def test_contradictions_are_told_before_anything_is_fetched(
    arguments: list[str], told: str, lab: Path, found: Path, tmp_path: Path
) -> None:
    fp16 = tmp_path / "fp16.json"
    record = json.loads((found / "policy.json").read_text(encoding="utf-8"))
    record.update(precision="fp16", recipe=None)
    fp16.write_text(json.dumps(record), encoding="utf-8")
    places = {"P": str(found), "F": str(fp16), "DATA": str(lab / "data")}
    result = run_cli("export", "--model", "no-such-model", *(places.get(a, a) for a in arguments))
    assert told in error_of(result)


def test_a_search_that_may_choose_percentiles_takes_one(lab: Path) -> None:
    request = ExportRequest(
        checkpoint=lab / "tiny.pth",
        out=lab / "out",
        data=DataOptions(calib=lab / "data", val=lab / "data"),
        auto=True,
        int8_options=Int8Options(percentile=99.0),
    )
    assert told_policy(request) is None


@pytest.mark.parametrize("field", ["fp32_nodes", "exclude_nodes"])
def test_a_pattern_that_matches_nothing_is_told_before_any_image_is_run(
    field: str, lab: Path, found: Path, tmp_path: Path
) -> None:
    record = json.loads((found / "policy.json").read_text(encoding="utf-8"))
    place = record if field == "fp32_nodes" else record["recipe"]["policy"]
    place[field] = ["*/없는 층/*"]
    (tmp_path / "policy.json").write_text(json.dumps(record), encoding="utf-8")
    options = ("--policy", tmp_path / "policy.json", "--calib", lab / "data")
    result = export_tiny(lab, tmp_path / "out", *options)
    assert "the pattern '*/없는 층/*'" in error_of(result)
    assert "verify" not in result.stderr
    assert "calibrate" not in result.stderr


def test_a_nodes_own_name_is_no_pattern(tmp_path: Path) -> None:
    graph = write_relus(tmp_path, ["a[1]", "a1", "b", "b2"])
    assert nodes_matching(graph, ["b*", "a[1]"]) == ("a[1]", "b", "b2")
    assert nodes_matching(graph, ["a[12]"]) == ("a1",)
    with pytest.raises(ConfigError, match=r"pattern 'c\*' of the policy, which matches no node"):
        nodes_matching(graph, ["b", "c*"])


def test_each_pattern_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """fnmatch keeps 256 compiled ones on some Pythons; a file may bring 2,000."""
    asked: list[str] = []

    def match(name: str, glob: str) -> bool:
        asked.append(glob)
        return fnmatchcase(name, glob)

    monkeypatch.setattr(quantization, "fnmatchcase", match)
    graph = write_relus(tmp_path, ["a", "b", "c"])
    globs = [*(f"{'*' * count}a" for count in range(1, 300)), "b"]
    assert nodes_matching(graph, globs) == ("a", "b")
    assert len(list(itertools.groupby(asked))) == 299


def write_relus(folder: Path, names: Sequence[str]) -> Path:
    """A chain of Relu nodes with these names."""
    nodes = [
        onnx.helper.make_node("Relu", [f"t{i}"], [f"t{i + 1}"], name=name)
        for i, name in enumerate(names)
    ]
    first, last = (
        onnx.helper.make_tensor_value_info(f"t{i}", onnx.TensorProto.FLOAT, [1])
        for i in (0, len(names))
    )
    graph = onnx.helper.make_graph(nodes, "relus", [first], [last])
    onnx.save(onnx.helper.make_model(graph), folder / "relus.onnx")
    return folder / "relus.onnx"


def test_a_policy_inside_the_folder_to_be_replaced_is_refused(
    lab: Path, found: Path, tmp_path: Path
) -> None:
    options = ("--policy", found, "--calib", lab / "data", "--overwrite")
    line = error_of(export_tiny(lab, found, *options))
    assert "which lies inside --out" in line
