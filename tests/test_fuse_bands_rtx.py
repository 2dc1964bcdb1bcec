"""Graphs that compose bands by themselves, taken by the parser and builder of TensorRT-RTX.

As in `tests.test_rtx_graphs` nothing runs here: what an engine computes needs a GPU.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from small_graphs import model_from_text, saved
from tiny_models import bundle_document, file_entry, write_document, write_onnx

from calibration.fp16 import fp16_onnx_from_onnx
from calibration.placement import QuantizePolicy
from engines.__main__ import main as board_main
from engines.bands.recipe import BandRecipe
from engines.errors import BundleError, ConfigError
from engines.trt.build import BuildOptions, engine_from_bundle, engine_from_onnx
from engines.trt.engine_file import header_from_engine
from exporter.fuse_bands import fused_with_bands
from exporter.onnx_graph import GraphSpec
from tests.rtx.builder import Outcome, outcome_of_build
from tests.test_rtx_graphs import MEAN, PRECISIONS, STD, Graph, exported, network

HW = (64, 64)
GNE = BandRecipe("GNE")


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    """A thin SegFormer in all precisions."""
    folder = tmp_path_factory.mktemp("plain")
    return exported(network("thin b0"), GraphSpec(HW, MEAN, STD), folder, policy=QuantizePolicy())


def classifier(folder: Path, *, opset: int = 17, batch: str | int = 1) -> Path:
    """A 1x1 convolution in FP16 between what every graph begins and ends with."""
    rows = np.random.default_rng(0).normal(size=(4, 3, 1, 1))
    text = f"""<ir_version: 8, opset_import: ["" : {opset}]>
    tiny (uint8[{batch}, 64, 64, 3] image)
        => (uint8[{batch}, 64, 64] labels, float[{batch}, 4, 64, 64] logits)
    {{
        ["/Cast"] levels = Cast <to = 1> (image)
        ["/Transpose"] planes = Transpose <perm = [0, 3, 1, 2]> (levels)
        ["/net/Conv"] logits = Conv <kernel_shape = [1, 1]> (planes, rows)
        ["/ArgMax"] best = ArgMax <axis = 1, keepdims = 0> (logits)
        ["/Cast_1"] numbers = Cast <to = 1> (best)
        ["/Cast_2"] labels = Cast <to = 2> (numbers)
    }}"""
    fp16_onnx_from_onnx(saved(model_from_text(text, rows=rows), folder), folder / "fp16.onnx")
    return folder / "fp16.onnx"


def fused_file(plain: Path, folder: Path, recipe: BandRecipe = GNE, **options: Any) -> Path:
    return write_onnx(fused_with_bands(onnx.load(plain), recipe, **options), folder / "f.onnx")


def assert_built(outcome: Outcome) -> None:
    assert outcome.errors == []
    assert outcome.strongly_typed
    assert outcome.plan_bytes > 0


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision_builds_and_composes_in_float32(
    tensorrt_rtx: ModuleType, graph: Graph, tmp_path: Path, precision: str
) -> None:
    made = graph
    plain = outcome_of_build(tensorrt_rtx, made.files[precision])
    fused = outcome_of_build(tensorrt_rtx, fused_file(made.files[precision], tmp_path))
    assert_built(fused)
    assert fused.tensors == {
        "bands": ("FLOAT", (1, *HW, 3)),
        "labels": ("UINT8", (1, *HW)),
    }
    # The smallest and the largest value of each band, and nothing else that reduces in FP16.
    assert fused.types["REDUCE", "FLOAT"] == plain.types["REDUCE", "FLOAT"] + 2
    assert fused.types["REDUCE", "HALF"] == plain.types["REDUCE", "HALF"]
    assert fused.types["SELECT", "HALF"] == plain.types["SELECT", "HALF"]
    assert fused.types["SELECT", "FLOAT"] == plain.types["SELECT", "FLOAT"] + 3
    # The network is the plain graph's.
    for kind in ("QUANTIZE", "DEQUANTIZE", "CONVOLUTION", "MATRIX_MULTIPLY", "SOFTMAX"):
        assert fused.layers[kind] == plain.layers[kind], kind
    assert fused.fused == plain.fused
    assert len(fused.fused) == 3 * made.blocks


@pytest.mark.parametrize("opset", [13, 16, 18, 20])
def test_every_opset_builds(tensorrt_rtx: ModuleType, tmp_path: Path, opset: int) -> None:
    outcome = outcome_of_build(
        tensorrt_rtx, fused_file(classifier(tmp_path, opset=opset), tmp_path)
    )
    assert_built(outcome)
    assert outcome.types["CONVOLUTION", "HALF"] == 1
    assert outcome.types["REDUCE", "FLOAT"] == 2


@pytest.mark.parametrize("batch", [(1, 2, 4), (3, 3, 3)])
def test_a_free_and_a_fixed_batch_build_also_for_larger_scenes(
    tensorrt_rtx: ModuleType, tmp_path: Path, batch: tuple[int, int, int]
) -> None:
    size = 3 if batch[0] == batch[2] else -1
    plain = classifier(tmp_path, batch="N" if size < 0 else size)
    for options in ({}, {"scene_hw": (90, 130)}, {"scene_hw": (90, 130), "pad_value": (1, 2, 3)}):
        path = fused_file(plain, tmp_path, **options)
        outcome = outcome_of_build(tensorrt_rtx, path, batch=batch)
        assert_built(outcome)
        hw = options.get("scene_hw", HW)
        assert outcome.tensors["bands"] == ("FLOAT", (size, *hw, 3))
        assert outcome.tensors["logits"] == ("FLOAT", (size, 4, *HW))


@pytest.mark.parametrize("recipe", [BandRecipe("GNE", "uint8"), BandRecipe("NGR", nodata=65535)])
def test_the_other_norm_and_another_nodata_build(
    tensorrt_rtx: ModuleType, tmp_path: Path, recipe: BandRecipe
) -> None:
    path = fused_file(classifier(tmp_path), tmp_path, recipe)
    assert_built(outcome_of_build(tensorrt_rtx, path))


# Engine files


@pytest.mark.usefixtures("tensorrt_rtx")
def test_an_engine_of_a_file_knows_its_precision_and_that_it_takes_bands(tmp_path: Path) -> None:
    plain = classifier(tmp_path)
    options = BuildOptions("as written", rtx=True)
    for path, takes_bands in ((plain, False), (fused_file(plain, tmp_path), True)):
        record = engine_from_onnx(path, tmp_path / "a.engine", options)
        header = header_from_engine(record.path)
        assert (header.precision, header.takes_bands) == ("fp16", takes_bands)


@pytest.mark.usefixtures("tensorrt_rtx")
def test_a_bundle_s_fused_graphs_are_built_beside_its_others(tmp_path: Path) -> None:
    folder = bundle_with_bands(tmp_path)
    plain = engine_from_bundle(folder, BuildOptions("fp16", rtx=True))
    fused = engine_from_bundle(folder, BuildOptions("fp16", rtx=True, fused=True))
    assert plain.path.name == "fp16-rtx1.7.1.engine"
    assert fused.path.name == "fp16-bands-rtx1.7.1.engine"
    assert (plain.header.onnx_file, fused.header.onnx_file) == ("fp16.onnx", "fp16.bands.onnx")
    assert (plain.header.takes_bands, fused.header.takes_bands) == (False, True)


@pytest.mark.usefixtures("tensorrt_rtx")
@pytest.mark.parametrize(("kind", "other"), [("fp16", "fp16_bands"), ("fp16_bands", "fp16")])
def test_a_graph_under_the_other_kind_s_name_is_refused(
    tmp_path: Path, kind: str, other: str
) -> None:
    folder = bundle_with_bands(tmp_path)
    document = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    document["files"][kind] = document["files"][other]
    write_document(document, folder)
    options = BuildOptions("fp16", rtx=True, fused=kind == "fp16_bands")
    with pytest.raises(BundleError, match=r"the input (image|bands) where the graph has"):
        engine_from_bundle(folder, options)


@pytest.mark.usefixtures("tensorrt_rtx")
def test_the_command_builds_a_bundle_s_fused_graph(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = bundle_with_bands(tmp_path)
    assert board_main(["build", str(folder), "--fused", "--rtx"]) == 0
    assert "fp16-bands-rtx1.7.1.engine" in capsys.readouterr().out
    path = str(folder / "fp16.bands.onnx")
    assert board_main(["build", path, "--rtx"]) == 0
    assert header_from_engine(folder / "fp16.bands.engine").takes_bands
    assert board_main(["build", path, "--rtx", "--fused"]) == 2
    assert "--fused for an ONNX file" in capsys.readouterr().err


@pytest.mark.usefixtures("tensorrt_rtx")
def test_a_bundle_without_them_builds_none(tmp_path: Path) -> None:
    folder = bundle_with_bands(tmp_path, fused=False)
    with pytest.raises(ConfigError, match=r"fp16_bands.* in it.*--fuse-bands"):
        engine_from_bundle(folder, BuildOptions("fp16", rtx=True, fused=True))


def bundle_with_bands(folder: Path, *, fused: bool = True) -> Path:
    plain = classifier(folder)
    files = {"fp16": file_entry(plain, folder)}
    if fused:
        model = fused_with_bands(onnx.load(plain), GNE)
        files["fp16_bands"] = file_entry(write_onnx(model, folder / "fp16.bands.onnx"), folder)
    document = bundle_document(hw=HW, files=files)
    document["input"]["batch"] = [1, 1, 1]
    document["outputs"] = ["labels", "logits"]
    document["bands"] = {
        "letters": "GNE",
        "norm": "chw_minmax",
        "nodata": -10000.0,
        "fused_hw": list(HW) if fused else None,
    }
    return write_document(document, folder)
