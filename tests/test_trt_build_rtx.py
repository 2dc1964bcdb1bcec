"""Engines built by the real TensorRT-RTX, ahead of time, without a GPU."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest

import engines
from calibration.fp16 import fp16_onnx_from_onnx
from calibration.quantize import int8_onnx_from_ranges
from calibration.ranges import ranges_from_images
from engines.errors import ConfigError, EngineError, GraphError
from engines.progress import SilentProgress
from engines.trt.api import load_tensorrt
from engines.trt.build import BuildOptions, engine_from_bundle, engine_from_onnx
from engines.trt.engine_file import header_from_engine, plan_from_engine
from tests.rtx.assemble import assembled_tensorrt
from tests.small_graphs import block_model, random_images, saved
from tests.tiny_models import bundle_document, file_entry, write_document

RTX = BuildOptions(precision="fp32", rtx=True)


class Recorded(SilentProgress):
    def __init__(self) -> None:
        super().__init__()
        self.done: list[tuple[int, int | None]] = []
        self.notes: list[str] = []

    def advance(self, done: int, total: int | None) -> None:
        self.done.append((done, total))

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One transformer block in fp32, fp16 and int8; its batch is free."""
    folder = tmp_path_factory.mktemp("graphs")
    fp32 = saved(block_model(), folder, "fp32.onnx")
    fp16_onnx_from_onnx(fp32, folder / "fp16.onnx")
    ranges = ranges_from_images(fp32, random_images(4), method="minmax")
    int8_onnx_from_ranges(fp32, ranges, folder / "int8.onnx")
    return folder


def fixed(model: onnx.ModelProto, batch: int = 1) -> onnx.ModelProto:
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = batch
    return model


@pytest.mark.usefixtures("tensorrt_rtx")
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_each_precision_is_built_from_its_own_graph(
    graphs: Path, tmp_path: Path, precision: str
) -> None:
    options = BuildOptions(precision, rtx=True, batch=(1, 2, 4))
    progress = Recorded()
    out = tmp_path / "결과.engine"
    record = engine_from_onnx(graphs / f"{precision}.onnx", out, options, progress=progress)
    header, plan = plan_from_engine(out)
    assert header == record.header
    assert (header.runtime, header.runtime_version) == ("TensorRT-RTX", "1.7.1")
    assert (header.gpu_name, header.compute_capability) == (None, None)
    assert len(plan) > 1_000
    assert record.engine_bytes == out.stat().st_size
    assert (
        "Building" in record.log_path.read_text(encoding="utf-8") or record.log_path.stat().st_size
    )
    assert progress.done[-1] == (100, 100)
    assert [done for done, _ in progress.done] == sorted(done for done, _ in progress.done)
    assert any(note.startswith("forecast: ") for note in progress.notes)
    assert record.peak_host_bytes is not None
    assert record.peak_host_bytes > 50_000_000


@pytest.mark.usefixtures("tensorrt_rtx")
def test_a_fixed_batch_needs_no_range(tmp_path: Path) -> None:
    path = saved(fixed(block_model()), tmp_path)
    engine_from_onnx(path, tmp_path / "a.engine", RTX)
    assert header_from_engine(tmp_path / "a.engine").precision == "fp32"


@pytest.mark.usefixtures("tensorrt_rtx")
@pytest.mark.parametrize(
    ("file", "precision", "written"),
    [("fp32", "fp16", "FP32"), ("fp32", "int8", "FP32"), ("fp16", "fp32", "FP16")],
)
def test_the_types_in_the_file_decide(
    graphs: Path, tmp_path: Path, file: str, precision: str, written: str
) -> None:
    options = BuildOptions(precision, rtx=True, batch=(1, 1, 1))
    with pytest.raises(ConfigError, match=f"--precision {precision} .* is written in {written}"):
        engine_from_onnx(graphs / f"{file}.onnx", tmp_path / "a.engine", options)
    assert not (tmp_path / "a.engine").exists()


@pytest.mark.usefixtures("tensorrt_rtx")
@pytest.mark.parametrize(
    "options",
    [
        BuildOptions(rtx=True, version_compatible=True),
        BuildOptions(rtx=True, hardware_compatible=True),
        BuildOptions(rtx=True, timing_cache=Path("x.cache")),
        BuildOptions("int8", rtx=True, implicit_int8=True),
        BuildOptions(rtx=True, dla=0),
    ],
)
def test_options_that_tensorrt_rtx_lacks_are_refused(
    graphs: Path, tmp_path: Path, options: BuildOptions
) -> None:
    with pytest.raises(ConfigError, match=r"with TensorRT-RTX 1\.7\.1; expected TensorRT"):
        engine_from_onnx(graphs / "fp16.onnx", tmp_path / "a.engine", options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("tensorrt_rtx")
def test_options_that_tensorrt_rtx_has_are_taken(graphs: Path, tmp_path: Path) -> None:
    options = BuildOptions(rtx=True, batch=(1, 1, 2), workspace_mb=64, opt_level=1)
    assert engine_from_onnx(graphs / "fp16.onnx", tmp_path / "a.engine", options).warnings == ()


def text_graph(body: str, output: str = "uint8[1, 8, 8, 3] labels") -> onnx.ModelProto:
    return onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17, "own": 1]> '
        f"g (uint8[1, 8, 8, 3] image) => ({output}) {{ {body} }}"
    )


@pytest.mark.usefixtures("tensorrt_rtx")
@pytest.mark.parametrize(
    ("body", "output", "message"),
    [
        (
            '["/net/head/Cast"] x = Cast <to = 1> (image) '
            '["/net/head/seg/Foo"] y = own.Foo (x) '
            '["/net/head/Cast_1"] labels = Cast <to = 2> (y)',
            "uint8[1, 8, 8, 3] labels",
            r"does not take /net/head/seg/Foo \(operator Foo, layer net\.head\.seg\): there is no "
            r"such operator",
        ),
        (
            '["/net/Cast"] x = Cast <to = 1> (image) ["/net/a/Det"] logits = Det (x)',
            "float[1, 8] logits",
            r"/net/a/Det \(operator Det, layer net\.a\): there is no such operator",
        ),
        (
            '["/net/head/Transpose"] labels = Transpose <perm = [0, 3, 1, 2]> (image)',
            "uint8[1, 3, 8, 8] labels",
            r"/net/head/Transpose \(operator Transpose, layer net\.head\): .*type UInt8 but must",
        ),
        (
            "x = Cast <to = 1> (image) mask = Cast <to = 2> (x)",
            "uint8[1, 8, 8, 3] mask",
            r"the outputs: mask DataType\.UINT8; expected 'labels' of uint8",
        ),
    ],
)
def test_a_graph_that_cannot_be_built_is_named_by_node_and_layer(
    tmp_path: Path, body: str, output: str, message: str
) -> None:
    path = tmp_path / "나쁜.onnx"
    onnx.save(text_graph(body, output), str(path))
    with pytest.raises(GraphError, match=message) as caught:
        engine_from_onnx(path, tmp_path / "a.engine", RTX)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "a.engine").exists()


@pytest.mark.usefixtures("tensorrt_rtx")
def test_a_file_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "wrong.onnx"
    path.write_bytes(b"no graph at all")
    with pytest.raises(GraphError, match=r"'wrong\.onnx', of which .*Failed to parse the ONNX"):
        engine_from_onnx(path, tmp_path / "a.engine", RTX)
    assert (tmp_path / "a.failed.log").read_text(encoding="utf-8")
    assert not (tmp_path / "a.log").exists()


@pytest.mark.usefixtures("tensorrt_rtx")
def test_a_build_that_needs_a_gpu_says_so(graphs: Path, tmp_path: Path) -> None:
    """TensorRT-RTX 1.7.1 compiles kernels for the GPU at once when weights stay exchangeable."""
    options = BuildOptions(rtx=True, batch=(1, 1, 1), refit=True)
    if Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has a GPU")
    with pytest.raises(
        EngineError, match=r"gave up: .*build it on a machine with a GPU.*a\.failed\.log"
    ):
        engine_from_onnx(graphs / "fp16.onnx", tmp_path / "a.engine", options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.failed.log"]


def bundle_of(graphs: Path, folder: Path, **keys: str) -> Path:
    files: dict[str, Any] = {}
    folder.mkdir()
    for key, name in keys.items():
        path = folder / f"model.{key}.onnx"
        path.write_bytes((graphs / f"{name}.onnx").read_bytes())
        files[key] = file_entry(path, folder)
    document = bundle_document(hw=(8, 8), files=files)
    document["outputs"] = ["labels", "logits"]
    return write_document(document, folder)


@pytest.mark.usefixtures("tensorrt_rtx")
def test_a_bundle_gets_its_engine_and_log(graphs: Path, tmp_path: Path) -> None:
    folder = bundle_of(graphs, tmp_path / "묶음", fp32="fp32", fp16="fp16")
    record = engine_from_bundle(folder, BuildOptions("fp16"))
    assert record.path == folder / "engines" / "fp16-rtx1.7.1.engine"
    assert record.log_path == folder / "engines" / "fp16-rtx1.7.1.log"
    assert header_from_engine(record.path).onnx_file == "model.fp16.onnx"


def test_tensorrt_rtx_is_found_and_makes_strongly_typed_networks(tensorrt_rtx: ModuleType) -> None:
    found = load_tensorrt()
    assert (found.module, found.version) == (tensorrt_rtx, (1, 7, 1))
    logger = tensorrt_rtx.Logger(tensorrt_rtx.Logger.ERROR)
    network = found.new_network(found.new_builder(logger))
    assert network.get_flag(tensorrt_rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


@pytest.mark.usefixtures("tensorrt_rtx")
def test_a_batch_of_0_is_refused(tmp_path: Path) -> None:
    model = text_graph("labels = Cast <to = 2> (image)")
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 0
    onnx.save(model, str(tmp_path / "a.onnx"))
    with pytest.raises(GraphError, match=r"\(0, 8, 8, 3\)"):
        engine_from_onnx(tmp_path / "a.onnx", tmp_path / "a.engine", RTX)


@pytest.mark.usefixtures("tensorrt_rtx")
@pytest.mark.parametrize("folder", ["벼".encode(), b"\xff\xfe"])
def test_the_command_builds_in_any_folder_and_locale_as_the_file_s_types_say(
    graphs: Path, tmp_path: Path, folder: bytes
) -> None:
    path = os.path.join(os.fsencode(tmp_path), folder)
    os.mkdir(path)
    shutil.copy(graphs / "fp16.onnx", os.path.join(path, "모델.onnx".encode()))
    root = Path(engines.__file__).parent.parent
    done = subprocess.run(
        [
            *(sys.executable, "-m", "engines", "build", "--rtx", "--batch", "1:1:1"),
            os.path.join(path, "모델.onnx".encode()),
        ],
        env={
            **os.environ,
            "PYTHONPATH": f"{root}:{assembled_tensorrt()}",
            **{"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        },
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    header = header_from_engine(os.fsdecode(os.path.join(path, "모델.engine".encode())))
    assert (header.onnx_file, header.precision) == ("모델.onnx", "fp16")


SLOW = """
import sys
from pathlib import Path
from engines.progress import PlainProgress
from engines.trt.build import BuildOptions, engine_from_onnx
options = BuildOptions("fp32", rtx=True)
engine_from_onnx(sys.argv[1], sys.argv[2], options, progress=PlainProgress(sys.stdout))
"""


def deep_model(layers: int) -> onnx.ModelProto:
    """Convolutions in a row, enough for a build of some seconds."""
    rng = np.random.default_rng(3)
    model = text_graph("logits = Cast <to = 1> (image)", "float[1, 8, 8, 3] logits")
    del model.graph.node[:]
    add = model.graph.node.append
    add(onnx.helper.make_node("Cast", ["image"], ["cast"], to=1))
    add(onnx.helper.make_node("Transpose", ["cast"], ["x0"], perm=[0, 3, 1, 2]))
    for i in range(layers):
        weight = rng.normal(0, 0.1, (3, 3, 3, 3)).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight, f"w{i}"))
        add(onnx.helper.make_node("Conv", [f"x{i}", f"w{i}"], [f"c{i}"], pads=[1, 1, 1, 1]))
        add(onnx.helper.make_node("Sin", [f"c{i}"], [f"x{i + 1}"]))
    add(onnx.helper.make_node("Identity", [f"x{layers}"], ["logits"]))
    shape = model.graph.output[0].type.tensor_type.shape
    shape.dim[1].dim_value, shape.dim[3].dim_value = 3, 8
    return model


@pytest.mark.usefixtures("tensorrt_rtx")
def test_ctrl_c_ends_a_build_and_leaves_no_file(tmp_path: Path) -> None:
    path = saved(deep_model(400), tmp_path)
    root = Path(engines.__file__).parent.parent
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, str(path), str(tmp_path / "a.engine")],
        env={**os.environ, "PYTHONPATH": f"{root}:{assembled_tensorrt()}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("build the engine ..."):
            time.sleep(0.3)
            process.send_signal(signal.SIGINT)
            break
    rest, _ = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGINT, "".join(lines) + rest
    assert "KeyboardInterrupt" in rest
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx"]
