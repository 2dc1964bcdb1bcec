"""What a build reads and writes: nothing of others is replaced, and names may be anything."""

from __future__ import annotations

import errno
import json
import os
import signal

import pytest
from device_bundle import bundle_in
from fake_builder import Graph, Layer, Tensor, fake_module, parser_error
from fake_cuda import RecordingCuda

from engines.errors import BundleError, ConfigError, EngineError, GraphError, OutputError
from engines.progress import SilentProgress
from engines.trt.api import tensorrt_from_module
from engines.trt.build import AS_WRITTEN, BuildOptions, engine_from_bundle, engine_from_onnx
from engines.trt.bundle_engine import _opened_lock
from engines.trt.engine_file import header_from_engine
from engines.trt.places import not_written, replace_file

ONNX = b"\x08\x08" + bytes(100)
LOG = "fp16-trt10.3.0-sm87.log"


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("RICESEG_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "site"
    path.mkdir()
    (path / "model.onnx").write_bytes(ONNX)
    return path


def build(onnx, out, options=None, **fake):
    module = fake_module("10.3.0", **fake)
    record = engine_from_onnx(
        onnx,
        out,
        options or BuildOptions(),
        cuda=RecordingCuda(),
        progress=fake.get("progress") or SilentProgress(),
        tensorrt=tensorrt_from_module(module),
    )
    return record, module


def from_bundle(folder, **fake):
    return engine_from_bundle(
        folder,
        BuildOptions("fp16"),
        cuda=RecordingCuda(),
        tensorrt=tensorrt_from_module(fake_module("10.3.0", **fake)),
    )


def never(config, monitor):
    raise AssertionError("the build began")


def left(folder):
    return sorted(os.listdir(str(folder)))


@pytest.mark.parametrize("out", ["", ".", "..", "folder", "pipe", "link to a pipe"])
def test_an_engine_replaces_only_regular_files(folder, monkeypatch, out):
    (folder / "folder").mkdir()
    os.mkfifo(str(folder / "pipe"))
    (folder / "link to a pipe").symlink_to("pipe")
    monkeypatch.chdir(folder)
    before = left(folder)
    with pytest.raises(OutputError, match=r"names no file|is not a regular file"):
        build(folder / "model.onnx", out, on_build=never)
    assert left(folder) == before


@pytest.mark.parametrize("name", ["model.onnx", "link", "hard", "model.onnx/../model.onnx"])
def test_an_engine_never_replaces_its_own_input(folder, monkeypatch, name):
    (folder / "link").symlink_to("model.onnx")
    os.link(str(folder / "model.onnx"), str(folder / "hard"))
    monkeypatch.chdir(folder)
    with pytest.raises(OutputError, match=r"the ONNX file itself|Not a directory"):
        build("model.onnx", name, on_build=never)
    assert (folder / "model.onnx").read_bytes() == ONNX


@pytest.mark.parametrize("onnx", ["a.log", "a.failed.log", "a.calibration.cache"])
def test_what_goes_beside_the_engine_does_not_replace_the_input(folder, onnx):
    (folder / "model.onnx").rename(folder / onnx)
    with pytest.raises(OutputError, match="the ONNX file itself"):
        build(folder / onnx, folder / "a.engine", on_build=never)
    assert (folder / onnx).read_bytes() == ONNX


def test_a_timing_cache_replaces_neither_the_input_nor_a_pipe(folder):
    onnx = folder / "model.onnx"
    with pytest.raises(ConfigError, match=r"--timing-cache .*the ONNX file itself"):
        build(onnx, folder / "a.engine", BuildOptions(timing_cache=onnx), on_build=never)
    os.mkfifo(str(folder / "pipe"))
    record, _ = build(onnx, folder / "a.engine", BuildOptions(timing_cache=folder / "pipe"))
    assert "was not written: it exists and is not a regular file" in record.warnings[-1]
    assert (folder / "pipe").is_fifo()


def test_a_link_in_place_of_a_log_leads_nowhere(tmp_path):
    (tmp_path / "precious").write_bytes(b"mine")
    folder = bundle_in(tmp_path / "b")
    (folder / "engines").mkdir()
    (folder / "engines" / LOG).symlink_to(tmp_path / "precious")
    record = from_bundle(folder)
    assert (tmp_path / "precious").read_bytes() == b"mine"
    assert not record.log_path.is_symlink()
    (folder / "engines" / LOG).unlink()
    os.mkfifo(str(folder / "engines" / LOG))
    with pytest.raises(OutputError, match="not a regular file"):
        from_bundle(folder)


def test_a_link_in_place_of_the_engines_folder_is_refused(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    folder = bundle_in(tmp_path / "b")
    (folder / "engines").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match="it is a symbolic link"):
        from_bundle(folder, on_build=never)
    assert left(tmp_path / "elsewhere") == []


def test_a_lock_follows_no_link_and_waits_for_no_pipe(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "made elsewhere")
    with pytest.raises(OSError, match="symbolic link"):
        _opened_lock(tmp_path / "link")
    assert left(tmp_path) == ["link"]
    os.mkfifo(str(tmp_path / "pipe"))
    _opened_lock(tmp_path / "pipe").close()


def test_a_failed_build_leaves_the_log_of_the_good_engine(folder):
    out = folder / "a.engine"
    build(folder / "model.onnx", out)
    good = (folder / "a.log").read_bytes()
    with pytest.raises(EngineError, match=r"its log is '.*a\.failed\.log'"):
        build(
            folder / "model.onnx", out, graph=Graph(messages=[(1, "it was the second")]), plan=None
        )
    assert (folder / "a.log").read_bytes() == good
    assert "the second" in (folder / "a.failed.log").read_text(encoding="utf-8")
    build(folder / "model.onnx", out)
    assert left(folder) == ["a.engine", "a.log", "model.onnx"]


def test_ctrl_c_while_the_engine_is_written_leaves_no_file(folder, monkeypatch):
    def interrupted(source, target):
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("engines.trt.places.os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(folder / "model.onnx", folder / "a.engine", BuildOptions(timing_cache=None))
    assert left(folder) == ["model.onnx"]


def test_a_name_that_cannot_be_made_is_refused_before_the_build(folder):
    with pytest.raises(OutputError, match=r"File name too long.*choose a shorter name"):
        build(folder / "model.onnx", folder / ("a" * 249 + ".engine"), on_build=never)
    long = folder / ("a" * 237 + ".engine")  # with .calibration.cache it has 255 bytes
    assert build(folder / "model.onnx", long)[0].path.is_file()


def test_a_file_that_is_too_large_is_explained():
    shown = str(not_written("a.engine", OSError(errno.EFBIG, "File too large")))
    assert "ulimit -f" in shown
    assert "free space" in shown


def test_a_write_that_fails_keeps_the_old_file_and_nothing_else(tmp_path):
    def parts():
        yield b"new"
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(OSError, match="No space"):
        replace_file(tmp_path / "a", parts())
    assert (left(tmp_path), (tmp_path / "a").read_bytes()) == (["a"], b"old")


def test_a_folder_whose_name_is_no_utf_8_is_no_obstacle(folder):
    strange = folder / os.fsdecode(b"\xff\xfe")
    strange.mkdir()
    (folder / "model.onnx").rename(strange / "벼.onnx")
    _, module = build(strange / "벼.onnx", strange / "a.engine")
    assert ("parse", ONNX) in module.calls
    assert header_from_engine(strange / "a.engine").onnx_file == "벼.onnx"


@pytest.mark.parametrize("name", [b"a\nb.onnx", b"\xff.onnx", b"a\x1b[0m.onnx"])
def test_a_name_that_the_header_cannot_hold_is_refused_before_the_build(folder, name):
    path = folder / os.fsdecode(name)
    (folder / "model.onnx").rename(path)
    with pytest.raises(GraphError, match=r"control characters.*rename it"):
        build(path, folder / "a.engine", on_build=never)


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (Graph(hw=(4, 3)), r"bundle\.json that says .* a size of \(2, 3\) where .* has \(4, 3\)"),
        (Graph(batch=2), r"a batch of \[1, 1, 1\] where the graph has \[2, 2, 2\]"),
        (
            Graph(outputs=[Tensor("logits", "FLOAT", (1, 4, 2, 3))]),
            "the outputs labels where the graph has logits",
        ),
    ],
)
def test_a_bundle_that_says_something_else_of_its_graph_is_refused(tmp_path, graph, message):
    folder = bundle_in(tmp_path / "b")
    with pytest.raises(BundleError, match=message):
        from_bundle(folder, graph=graph, on_build=never)
    assert left(folder / "engines") == []


def test_a_free_batch_in_bundle_json_over_a_fixed_graph_names_bundle_json(tmp_path):
    folder = bundle_in(tmp_path / "b")
    document = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    document["input"]["batch"] = [1, 2, 4]
    (folder / "bundle.json").write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(BundleError, match=r"\[1, 2, 4\] where the graph has \[1, 1, 1\]") as caught:
        from_bundle(folder, on_build=never)
    assert "--batch" not in str(caught.value)


def test_a_batch_of_0_is_refused(folder):
    with pytest.raises(GraphError, match=r"\(0, 2, 3, 3\); .*N not 0"):
        build(folder / "model.onnx", folder / "a.engine", graph=Graph(batch=0), on_build=never)


@pytest.mark.parametrize(
    ("layer", "precision"),
    [
        (Layer("a"), "fp32"),
        (Layer("a", outputs=["HALF"]), "fp16"),
        (Layer("q", "QUANTIZE", outputs=["INT8"]), "int8"),
    ],
)
def test_without_a_precision_the_file_s_types_decide(folder, layer, precision):
    record, _ = build(
        folder / "model.onnx",
        folder / "a.engine",
        BuildOptions(AS_WRITTEN),
        graph=Graph([layer]),
    )
    assert record.header.precision == precision


def test_a_tactic_without_memory_wants_a_larger_workspace(folder):
    graph = Graph(messages=[(1, "Error Code 2: OutOfMemory (Requested size was 4096 bytes.)")])
    with pytest.raises(EngineError, match="a larger --workspace or leave it out, and close other"):
        build(folder / "model.onnx", folder / "a.engine", graph=graph, plan=None)


def test_a_node_s_name_is_shown_in_part(folder):
    name = "/" + "n" * 100_000 + "/Foo"
    graph = Graph(errors=[parser_error("bad " + name, name=name, operator="Foo" * 1_000)])
    with pytest.raises(GraphError, match=r"/nnn.*\.\.\. \(operator Foo") as caught:
        build(folder / "model.onnx", folder / "a.engine", graph=graph)
    assert len(str(caught.value)) < 2_000
