"""Which of a bundle's graphs becomes the engine, with what options, under which name."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from types import SimpleNamespace

import pytest
from device_bundle import bundle_in
from fake_builder import Graph, Layer, fake_module
from fake_cuda import RecordingCuda

from engines.bundle import bundle_from_folder
from engines.errors import BundleError, ConfigError, OutputError
from engines.progress import SilentProgress
from engines.trt.api import TensorRt, tensorrt_from_module
from engines.trt.build import BuildOptions, Calibration, engine_from_bundle
from engines.trt.bundle_choice import engine_name, onnx_key, options_from_bundle
from engines.trt.engine_file import header_from_engine

WEAK = TensorRt(None, "TensorRT", (10, 3, 0))
STRONG = TensorRt(None, "TensorRT", (11, 4, 0))
RTX = TensorRt(None, "TensorRT-RTX", (1, 7, 1))
ALL = ("fp32", "fp16", "int8", "int8_fp16")


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("RICESEG_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("tensorrt", "options", "there", "key"),
    [
        (WEAK, BuildOptions("fp32"), ALL, "fp32"),
        (WEAK, BuildOptions("fp16"), ALL, "fp16"),
        (WEAK, BuildOptions("fp16"), ("fp32",), "fp32"),
        (WEAK, BuildOptions("int8"), ALL, "int8"),
        (WEAK, BuildOptions("int8", implicit_int8=True), ALL, "fp32"),
        (STRONG, BuildOptions("fp16"), ALL, "fp16"),
        (STRONG, BuildOptions("int8"), ALL, "int8_fp16"),
        (RTX, BuildOptions("int8"), ALL, "int8_fp16"),
    ],
)
def test_each_kind_of_tensorrt_takes_its_graph(tmp_path, tensorrt, options, there, key):
    bundle = bundle_from_folder(bundle_in(tmp_path / "b", precisions=there))
    assert onnx_key(bundle, tensorrt, options) == (key, "")


def test_int8_with_fp32_around_it_is_taken_with_a_warning(tmp_path):
    bundle = bundle_from_folder(bundle_in(tmp_path / "b", precisions=("fp32", "int8")))
    key, warning = onnx_key(bundle, RTX, BuildOptions("int8"))
    assert key == "int8"
    assert "computes what is not INT8 in this bundle in FP32: export it again" in warning


@pytest.mark.parametrize(
    ("tensorrt", "options", "message"),
    [
        (
            STRONG,
            BuildOptions("fp16"),
            "--precision fp16 for a bundle with fp32; expected fp16",
        ),
        (WEAK, BuildOptions("int8"), "--precision int8 for a bundle with fp32; expected int8 in"),
        (RTX, BuildOptions("int8"), "expected int8_fp16 or int8 in it, which TensorRT-RTX 1.7.1"),
    ],
)
def test_a_precision_that_the_bundle_lacks_is_refused(tmp_path, tensorrt, options, message):
    bundle = bundle_from_folder(bundle_in(tmp_path / "b", precisions=("fp32",)))
    with pytest.raises(ConfigError, match=message):
        onnx_key(bundle, tensorrt, options)


def test_the_engine_s_name_tells_precision_version_and_gpu():
    gpu = RecordingCuda().info
    assert engine_name(BuildOptions("fp16"), WEAK, gpu) == "fp16-trt10.3.0-sm87.engine"
    assert engine_name(BuildOptions("int8", dla=0), WEAK, gpu) == "int8-trt10.3.0-sm87-dla0.engine"
    implicit = BuildOptions("int8", implicit_int8=True)
    assert engine_name(implicit, WEAK, gpu) == "int8-implicit-trt10.3.0-sm87.engine"
    assert engine_name(BuildOptions("fp16"), RTX, None) == "fp16-rtx1.7.1.engine"
    assert engine_name(BuildOptions("fp16"), RTX, gpu) == "fp16-rtx1.7.1.engine"


def test_batch_and_fp32_nodes_come_from_the_bundle(tmp_path):
    folder = bundle_in(tmp_path / "b")
    bundle = bundle_from_folder(folder)
    assert options_from_bundle(bundle, folder, BuildOptions()).batch == (1, 1, 1)
    assert options_from_bundle(bundle, folder, BuildOptions(batch=(1, 2, 4))).batch == (1, 2, 4)
    hinted = SimpleNamespace(
        build=SimpleNamespace(fp32_nodes=("/net/norm/Pow",)),
        input=bundle.input,
        files={},
        outputs=("labels",),
    )
    assert options_from_bundle(hinted, folder, BuildOptions()).fp32_nodes == ("/net/norm/Pow",)
    own = options_from_bundle(hinted, folder, BuildOptions(fp32_nodes=("/a",)))
    assert own.fp32_nodes == ("/a",)


def bundle_with_cache(folder):
    bundle_in(folder, precisions=("fp32",))
    path = folder / "calibration.cache"
    path.write_bytes(b"TRT-8601-EntropyCalibration2\nimage: 3f800000\n")
    document = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    document["files"]["calibration_cache"] = {
        "file": "calibration.cache",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "bytes": path.stat().st_size,
    }
    (folder / "bundle.json").write_text(json.dumps(document), encoding="utf-8")
    return folder


def test_implicit_int8_takes_the_bundle_s_cache_unless_images_are_given(tmp_path):
    folder = bundle_with_cache(tmp_path / "b")
    bundle = bundle_from_folder(folder)
    options = BuildOptions("int8", implicit_int8=True)
    found = options_from_bundle(bundle, folder, options).calibration
    assert found.cache == folder / "calibration.cache"
    assert (found.rule.kind, found.pad_value) == ("stretch", (124, 124, 124))
    images = (tmp_path / "a.png",)
    given = dataclasses.replace(options, calibration=Calibration(images=images))
    found = options_from_bundle(bundle, folder, given).calibration
    assert (found.cache, found.images) == (None, images)


def build(folder, options, version="10.3.0", **fake):
    module = fake_module(version, **fake)
    return engine_from_bundle(
        folder,
        options,
        cuda=RecordingCuda(),
        progress=SilentProgress(),
        tensorrt=tensorrt_from_module(module),
    )


def test_the_engine_and_its_log_go_into_the_bundle(tmp_path):
    folder = bundle_in(tmp_path / "묶음")
    record = build(folder, BuildOptions("fp16"))
    assert record.path == folder / "engines" / "fp16-trt10.3.0-sm87.engine"
    assert record.log_path == folder / "engines" / "fp16-trt10.3.0-sm87.log"
    assert sorted(os.listdir(str(folder / "engines"))) == [
        "fp16-trt10.3.0-sm87.engine",
        "fp16-trt10.3.0-sm87.log",
    ]
    header = header_from_engine(record.path)
    assert header.onnx_file == "tiny.fp16.onnx"
    assert header.onnx_sha256 == hashlib.sha256(b"no graph, fp16").hexdigest()


def test_a_bundle_is_built_again_over_its_engine(tmp_path):
    folder = bundle_in(tmp_path / "b")
    build(folder, BuildOptions("fp16"), plan=b"first plan")
    record = build(folder, BuildOptions("fp16"), plan=b"second plan, longer")
    assert header_from_engine(record.path).plan_bytes == 19


def test_implicit_int8_is_built_from_the_fp32_graph(tmp_path):
    folder = bundle_with_cache(tmp_path / "b")
    seen = []

    def on_build(config, monitor):
        seen.append(config.int8_calibrator.read_calibration_cache().split(b"\n")[0])

    record = build(folder, BuildOptions("int8", implicit_int8=True), on_build=on_build)
    assert seen == [b"TRT-100300-EntropyCalibration2"]
    assert record.header.onnx_file == "tiny.fp32.onnx"


def test_int8_on_a_strongly_typed_tensorrt_is_one_graph_with_fp16(tmp_path):
    folder = bundle_in(tmp_path / "b", precisions=ALL)
    graph = Graph([Layer("/net/Q", "QUANTIZE", outputs=["INT8"])])
    record = build(folder, BuildOptions("int8"), "11.4.0", graph=graph)
    assert record.header.onnx_file == "tiny.int8_fp16.onnx"


def test_a_graph_that_was_altered_is_not_built(tmp_path):
    folder = bundle_in(tmp_path / "b")
    (folder / "tiny.fp16.onnx").write_bytes(b"no graph, fp61")
    with pytest.raises(BundleError, match=r"with SHA-256 .* as bundle\.json says"):
        build(folder, BuildOptions("fp16"))
    assert not (folder / "engines").exists()


def test_a_bundle_that_takes_no_folder_is_an_output_error(tmp_path):
    folder = bundle_in(tmp_path / "b")
    (folder / "engines").write_bytes(b"a file in its place")
    with pytest.raises(OutputError, match="a bundle folder that can be written to"):
        build(folder, BuildOptions("fp16"))
