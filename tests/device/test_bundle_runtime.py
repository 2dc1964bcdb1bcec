"""Segmenter on a board: which engine it takes, when it builds one, and when it does without."""

from __future__ import annotations

import json
import logging
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from device_bundle import bundle_in, entry_of
from fake_cuda import RecordingCuda
from tiny_engines import BANDS, RED, engine_file, image_of, tensorrt_on

from engines.bundle_runtime import Wish
from engines.errors import (
    BundleError,
    ConfigError,
    DeviceError,
    EngineError,
    GraphError,
    InputError,
    MissingPackageError,
    OutputError,
)
from engines.segmenter import Segmenter

NO_GPU = DeviceError("no GPU", expected="a GPU", do="install a driver")
NO_TENSORRT = DeviceError("no TensorRT in this Python", expected="TensorRT", do="apt install it")


def edit(folder, **changes):
    path = folder / "bundle.json"
    document = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    path.write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")


def sha256(folder, key):
    document = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    return document["files"][key]["sha256"]


class Board:
    """A machine with a made-up GPU; `built` lists what was built on it and where to."""

    def __init__(self, monkeypatch, tmp_path, version="10.3.0"):
        self.folder = tmp_path / "bundle"
        self.cache = tmp_path / "cache"
        self.cudas, self.built, self.refusal, self.onnx = [], [], None, []
        self.version, self.plan = version, {}
        monkeypatch.setenv("RICESEG_CACHE", str(self.cache))
        monkeypatch.setattr("engines.cuda.open_cuda", self.open_cuda)
        monkeypatch.setattr("engines.trt.api.load_tensorrt", self.load_tensorrt)
        monkeypatch.setattr("engines.trt.bundle_engine.engine_from_bundle", self.build)
        monkeypatch.setattr("engines.bundle_runtime.OnnxPredictor", self.onnx_predictor)
        monkeypatch.setattr("engines.bundle_runtime._is_installed", lambda: True)

    def load_tensorrt(self):
        self.cuda = RecordingCuda(integrated=True)
        return tensorrt_on(self.cuda, self.version)

    def open_cuda(self):
        self.cudas.append(self.cuda)
        return self.cuda

    def build(self, folder, options, *, cuda, tensorrt, into, progress=None):
        assert cuda is self.cuda
        self.built.append((options.precision, into))
        if self.refusal is not None:
            raise self.refusal
        return SimpleNamespace(path=self.engine(options.precision, into))

    def engine(self, precision, into=None, name=None, source=None, **header):
        fields = {
            "onnx_sha256": sha256(self.folder, source or precision),
            "precision": precision,
            "runtime_version": self.version,
            **header,
        }
        into = self.folder / "engines" if into is None else into
        name = f"{precision}.engine" if name is None else name
        return engine_file(into, name, header=fields, hw=(2, 3), **self.plan)

    def onnx_predictor(self, path, *, threads, name):
        self.onnx.append((path.name, threads, name))
        return SimpleNamespace(
            path=path,
            runtime="ONNX Runtime 1.17.3 on CPU",
            input_hw=(2, 3),
            output_hw=(2, 3),
            input_dtype=np.uint8,
            channels=3,
            close=lambda: None,
        )

    def closed(self):
        return all(cuda.closed and cuda.leaks() == [] for cuda in self.cudas)


@pytest.fixture
def board(monkeypatch, tmp_path):
    board = Board(monkeypatch, tmp_path)
    bundle_in(board.folder, precisions=("fp32", "fp16", "int8"))
    yield board
    assert board.closed()


def lose_tensorrt(monkeypatch, error=NO_TENSORRT):
    def load():
        raise error

    monkeypatch.setattr("engines.trt.api.load_tensorrt", load)


# The engine that is there


def test_the_engine_that_fits_is_taken(board, caplog):
    board.engine("fp16")
    with Segmenter.open(board.folder) as seg:
        assert seg(image_of(RED)).tolist() == BANDS
        assert seg.precision == "fp16"
        assert seg.runtime == "TensorRT 10.3.0 on Orin"
        assert seg.notes == []
        assert seg.classes[1] == "정상"
        assert seg.palette[1] == (10, 0, 254)
    assert board.built == []
    assert board.onnx == []
    assert caplog.messages == []


def test_labels_have_the_images_own_size(board):
    board.engine("fp16")
    big = image_of(np.kron(RED, np.ones((4, 5))).astype(np.uint8))
    with Segmenter.open(board.folder) as seg:
        # 8 x 15 halved and more: each network pixel lies inside one block of one colour.
        assert seg(big).tolist() == np.kron(BANDS, np.ones((4, 5), int)).tolist()


@pytest.mark.parametrize(
    "header",
    [
        {"gpu_name": "NVIDIA GeForce RTX 4090", "compute_capability": (8, 9)},
        {"runtime_version": "8.6.1"},
        {"onnx_sha256": "9" * 64},
        {"dla": 0},
    ],
)
def test_an_engine_that_does_not_fit_is_built_anew_and_told_why(board, caplog, header):
    path = board.engine("fp16", name="old.engine", **header)
    with Segmenter.open(board.folder) as seg:
        assert seg(image_of(RED)).tolist() == BANDS
        assert board.built == [("fp16", board.folder / "engines")]
        (note,) = seg.notes
        assert note.startswith("engine built when it was opened: ")
    (message,) = caplog.messages
    assert "no fp16 engine for this machine" in message
    assert "old.engine" in message
    assert path.exists()
    with Segmenter.open(board.folder) as seg:
        assert seg.notes == []
    assert len(board.built) == 1


@pytest.mark.parametrize("damage", ["truncated", "foreign", "altered"])
def test_a_damaged_engine_is_built_anew(board, caplog, damage):
    path = board.engine("fp16")
    data = path.read_bytes()
    broken = {"truncated": data[:-3], "foreign": b"ftrt1234", "altered": data[:-1] + b"?"}
    path.write_bytes(broken[damage])
    with Segmenter.open(board.folder) as seg:
        assert seg(image_of(RED)).tolist() == BANDS
    assert len(board.built) == 1
    assert "fp16.engine" in caplog.text


def test_an_engine_of_another_precision_is_no_answer(board):
    board.engine("fp32")
    with Segmenter.open(board.folder) as seg:
        assert seg.precision == "fp16"
    assert board.built == [("fp16", board.folder / "engines")]


def test_of_two_engines_the_one_from_the_graph_of_its_precision_is_taken(board):
    board.engine("fp16", name="a.engine", source="fp32")
    board.engine("fp16", name="b.engine")
    with Segmenter.open(board.folder) as seg:
        assert seg._predictor.path.name == "b.engine"


def test_an_engine_without_weights_takes_those_of_the_bundle(board):
    onnx = board.folder / "tiny.fp16.onnx"
    onnx.write_bytes(b"weights!")
    bundle_in(board.folder, precisions=("fp32",))
    edit(board.folder, files={"fp16": entry_of(onnx, board.folder)})
    board.plan = {"stripped": True}
    board.engine("fp16", stripped=True)
    with Segmenter.open(board.folder) as seg:
        assert seg(image_of(RED)).tolist() == BANDS


def test_an_engine_for_another_size_than_the_bundle_says_is_refused(board):
    board.plan = {}
    path = board.engine("fp16")
    header = {"onnx_sha256": sha256(board.folder, "fp16")}
    engine_file(path.parent, path.name, header=header, hw=(4, 4))
    with pytest.raises(BundleError, match=r"for input \(4, 4\) .*expected \(2, 3\)"):
        Segmenter.open(board.folder)


# Precision


@pytest.mark.parametrize(
    ("gate", "precisions", "taken"),
    [
        (None, ("fp32", "fp16", "int8"), "fp16"),
        (False, ("fp32", "fp16", "int8"), "fp16"),
        (True, ("fp32", "fp16", "int8"), "int8"),
        (True, ("fp32", "fp16"), "fp16"),
        (False, ("fp32", "int8"), "fp32"),
    ],
)
def test_the_fastest_precision_that_is_known_to_be_right_is_taken(board, gate, precisions, taken):
    bundle_in(board.folder, precisions=precisions)
    if gate is not None:
        edit(board.folder, gate={"max_drop": 1.0, "drop": 0.5, "passed": gate})
    with Segmenter.open(board.folder) as seg:
        assert seg.precision == taken
    assert [precision for precision, _ in board.built] == [taken]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_the_precision_that_was_asked_for_is_the_one_that_runs(board, precision):
    with Segmenter.open(board.folder, precision=precision) as seg:
        assert seg.precision == precision
        assert seg._predictor.header.precision == precision


def test_a_precision_that_does_not_exist_is_refused_before_any_gpu_is_looked_at(board):
    with pytest.raises(ConfigError, match=r"precision 'fp8'; expected .*fp32, fp16, int8"):
        Segmenter.open(board.folder, precision="fp8")
    assert board.cudas == []


def test_a_precision_that_the_bundle_lacks_is_no_reason_for_another_runtime(board):
    bundle_in(board.folder, precisions=("fp32",))
    with pytest.raises(ConfigError, match="int8"):
        Segmenter.open(board.folder, precision="int8")
    assert board.onnx == []


# Building


def test_without_an_engine_one_is_built_once_and_kept(board, caplog):
    for _ in range(2):
        with Segmenter.open(board.folder) as seg:
            assert seg(image_of(RED)).tolist() == BANDS
    assert board.built == [("fp16", board.folder / "engines")]
    assert len(caplog.messages) == 1


def test_without_build_there_is_no_building(board, caplog):
    with pytest.raises(EngineError, match=r"no fp16 engine for this machine.*riceseg build"):
        Segmenter.open(board.folder, runtime="tensorrt", build=False)
    with Segmenter.open(board.folder, build=False) as seg:
        assert seg.runtime == "ONNX Runtime 1.17.3 on CPU"
        assert "no fp16 engine for this machine" in seg.notes[0]
    assert board.built == []
    assert not (board.folder / "engines").exists()


def test_a_bundle_that_cannot_be_written_to_keeps_its_engine_in_the_users_cache(
    board, monkeypatch, caplog
):
    deny(monkeypatch, board.folder)
    place = board.cache / "engines" / sha256(board.folder, "fp16")
    for _ in range(2):
        with Segmenter.open(board.folder) as seg:
            assert seg(image_of(RED)).tolist() == BANDS
    assert board.built == [("fp16", place)]
    assert not (board.folder / "engines").exists()
    assert f"its engine is kept in {str(place)!r}" in caplog.text


def test_with_no_place_to_write_to_nothing_is_built(board, monkeypatch):
    deny(monkeypatch, board.folder)
    deny(monkeypatch, board.cache)
    with pytest.raises(OutputError, match=r"no place for an engine: .*Read-only.*RICESEG_CACHE"):
        Segmenter.open(board.folder, runtime="tensorrt")
    assert board.built == []


def deny(monkeypatch, folder):
    """Let nothing be made in `folder` (permissions do not stop root)."""
    real = Path.mkdir

    def mkdir(path, *arguments, **options):
        if str(path).startswith(str(folder)):
            raise OSError(30, "Read-only file system")
        return real(path, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", mkdir)


def test_of_two_that_open_at_once_one_builds_and_the_other_takes_its_engine(
    monkeypatch, tmp_path, caplog
):
    board = Board(monkeypatch, tmp_path)
    bundle_in(board.folder, precisions=("fp16",))
    building, go_on, local = threading.Event(), threading.Event(), threading.local()
    plain_load, plain_build = board.load_tensorrt, board.build
    lock = threading.Lock()

    def load():
        with lock:
            local.tensorrt = plain_load()
            local.cuda = board.cuda
            return local.tensorrt

    def build(folder, options, *, cuda, tensorrt, into, progress=None):
        building.set()
        assert go_on.wait(10)
        board.cuda = cuda
        return plain_build(folder, options, cuda=cuda, tensorrt=tensorrt, into=into)

    monkeypatch.setattr("engines.trt.api.load_tensorrt", load)
    monkeypatch.setattr("engines.cuda.open_cuda", lambda: local.cuda)
    monkeypatch.setattr("engines.trt.bundle_engine.engine_from_bundle", build)

    def opened():
        with Segmenter.open(board.folder) as seg:
            return seg(image_of(RED)).tolist()

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(opened)
        assert building.wait(10)
        second = pool.submit(opened)
        while "waiting for it" not in caplog.text:
            assert not second.done()
        go_on.set()
        assert first.result(10) == second.result(10) == BANDS
    assert len(board.built) == 1


def test_an_altered_graph_is_an_error_and_no_reason_for_another_runtime(board):
    board.refusal = BundleError("an altered file", expected="the other", do="copy it again")
    with pytest.raises(BundleError, match="an altered file"):
        Segmenter.open(board.folder)


# Falling back


@pytest.mark.parametrize(
    "refusal",
    [
        EngineError("a build that failed", expected="one that works", do="see its log"),
        GraphError("an operator it does not take", expected="others", do="export again"),
        DeviceError("too little memory", expected="more", do="close programs"),
    ],
)
def test_where_no_engine_can_be_built_onnx_runtime_runs_it_and_the_log_says_why(
    board, caplog, refusal
):
    board.refusal = refusal
    with Segmenter.open(board.folder, threads=2) as seg:
        assert seg.runtime == "ONNX Runtime 1.17.3 on CPU"
        assert seg.precision == "fp32"
        assert seg.notes == [f"ONNX Runtime instead of TensorRT: {refusal.got}"]
    assert board.onnx == [("tiny.fp32.onnx", 2, "tiny fp32")]
    assert caplog.messages[-1] == f"tiny: {seg.notes[0]}"
    assert caplog.records[-1].levelname == "WARNING"
    with pytest.raises(type(refusal), match=refusal.got):
        Segmenter.open(board.folder, runtime="tensorrt")


def test_without_a_gpu_onnx_runtime_runs_it(board, monkeypatch, caplog):
    def open_cuda():
        raise NO_GPU

    monkeypatch.setattr("engines.cuda.open_cuda", open_cuda)
    with Segmenter.open(board.folder, precision="int8") as seg:
        assert seg.precision == "int8"
    assert caplog.messages == ["tiny: ONNX Runtime instead of TensorRT: no GPU"]


def test_where_tensorrt_is_not_installed_nobody_is_warned(board, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    lose_tensorrt(monkeypatch)
    monkeypatch.setattr("engines.bundle_runtime._is_installed", lambda: False)
    Segmenter.open(board.folder).close()
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", "tiny: ONNX Runtime instead of TensorRT: no TensorRT in this Python")
    ]


def test_whether_tensorrt_is_installed_is_seen_without_importing_it(monkeypatch, tmp_path):
    from engines.bundle_runtime import _is_installed

    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.delitem(sys.modules, name, raising=False)
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemError", encoding="utf-8")
        monkeypatch.syspath_prepend(str(tmp_path / "nowhere"))
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert _is_installed()
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "path_importer_cache", {})
    assert not _is_installed()


def test_asked_for_tensorrt_there_is_no_other_runtime(board, monkeypatch):
    lose_tensorrt(monkeypatch)
    with pytest.raises(DeviceError, match="no TensorRT in this Python"):
        Segmenter.open(board.folder, runtime="tensorrt")
    assert board.onnx == []


def test_asked_for_onnx_runtime_no_gpu_is_looked_at(board, monkeypatch, caplog):
    lose_tensorrt(monkeypatch, AssertionError("TensorRT was looked for"))
    board.engine("fp32")
    with Segmenter.open(board.folder, runtime="onnx") as seg:
        assert seg.runtime == "ONNX Runtime 1.17.3 on CPU"
        assert seg.notes == []
    assert caplog.messages == []


@pytest.mark.parametrize("threads", [0, 4097, 10**9])
def test_a_number_of_threads_that_no_machine_has_is_refused(threads):
    with pytest.raises(ConfigError, match=rf"{threads} threads; expected 1 to 4096"):
        Wish(threads=threads)


def test_another_runtime_is_refused(board):
    with pytest.raises(ConfigError, match="runtime 'cuda'; expected auto or tensorrt or onnx"):
        Segmenter.open(board.folder, runtime="cuda")


def test_with_neither_runtime_both_reasons_are_told(board, monkeypatch):
    lose_tensorrt(monkeypatch)

    def missing(path, *, threads, name):
        raise MissingPackageError("onnxruntime", needed_for="running ONNX files", extra="onnx")

    monkeypatch.setattr("engines.bundle_runtime.OnnxPredictor", missing)
    with pytest.raises(
        DeviceError,
        match=r"no TensorRT in this Python.*onnxruntime.*apt install it; or pip install",
    ):
        Segmenter.open(board.folder)


# Use


def images(count):
    """Images of different sizes; the label of each is i % 4 everywhere."""
    return [image_of(np.full((3 + i, 5), 64 * (i % 4), np.uint8)) for i in range(count)]


@pytest.mark.parametrize("fixed", [1, 3, (1, 1, 4)])
def test_a_batch_of_images_of_any_size_gets_labels_of_their_sizes(board, fixed):
    document = json.loads((board.folder / "bundle.json").read_text(encoding="utf-8"))
    edit(board.folder, input={**document["input"], "batch": [1, 1, 4]})
    board.plan = {"batch": fixed}
    with Segmenter.open(board.folder) as seg:
        found = seg.batch(images(10))
        assert seg.batch([]) == []
    assert [labels.shape for labels in found] == [(3 + i, 5) for i in range(10)]
    assert [set(labels.ravel().tolist()) for labels in found] == [{i % 4} for i in range(10)]


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_a_stream_of_images_of_any_size_gives_labels_of_their_sizes_in_order(board, batch):
    document = json.loads((board.folder / "bundle.json").read_text(encoding="utf-8"))
    edit(board.folder, input={**document["input"], "batch": [1, 1, 4]})
    board.plan = {"batch": (1, 1, 4)}
    with Segmenter.open(board.folder) as seg:
        found = list(seg.stream(iter(images(11)), batch=batch))
        assert list(seg.stream([])) == []
    assert [labels.shape for labels in found] == [(3 + i, 5) for i in range(11)]
    assert [set(labels.ravel().tolist()) for labels in found] == [{i % 4} for i in range(11)]


def test_what_a_stream_raises_comes_after_the_results_before_it(board):
    document = json.loads((board.folder / "bundle.json").read_text(encoding="utf-8"))
    edit(board.folder, input={**document["input"], "batch": [1, 1, 4]})
    board.plan = {"batch": (1, 1, 4)}

    def source():
        yield from images(6)
        raise OSError("the camera is gone")

    with Segmenter.open(board.folder) as seg:
        results = seg.stream(source(), batch=4)
        assert [next(results).max() for _ in range(6)] == [0, 1, 2, 3, 0, 1]
        with pytest.raises(OSError, match="the camera is gone"):
            next(results)
        wrong = seg.stream([*images(2), np.zeros((5, 5), np.uint8)], batch=4)
        assert [next(wrong).max() for _ in range(2)] == [0, 1]
        with pytest.raises(InputError, match=r"shape \(5, 5\).*repeat a grey image"):
            next(wrong)
        assert seg(image_of(RED)).tolist() == BANDS


@pytest.mark.parametrize("batch", [0, 2])
def test_a_stream_in_batches_that_the_bundle_was_not_made_for_is_refused(board, batch):
    refusal = pytest.raises(ConfigError, match=f"batch {batch}; expected 1 to 1")
    with Segmenter.open(board.folder) as seg, refusal:
        seg.stream([], batch=batch)


def test_a_stream_that_is_left_leaves_no_thread_and_the_segmenter_goes_on(board):
    with Segmenter.open(board.folder) as seg:
        for labels in seg.stream(images(100)):
            assert labels.max() == 0
            break
        results = seg.stream(images(100))
        assert next(results).max() == 0
        results.close()
        assert not [t for t in threading.enumerate() if t.name.startswith("stream of")]
        assert seg(image_of(RED)).tolist() == BANDS


def test_a_closed_segmenter_says_so_and_gave_back_the_gpu(board):
    with Segmenter.open(board.folder) as seg:
        pass
    assert board.cuda.closed
    seg.close()
    calls = (lambda: seg(image_of(RED)), lambda: seg.batch(images(2)), lambda: seg.stream([]))
    for call in calls:
        with pytest.raises(InputError, match=r"'tiny fp16' after close\(\)"):
            call()


def test_threads_may_share_one_segmenter(board):
    with Segmenter.open(board.folder) as seg, ThreadPoolExecutor(8) as pool:
        found = list(pool.map(seg, images(60)))
    assert [labels.shape for labels in found] == [(3 + i, 5) for i in range(60)]
    assert [set(labels.ravel().tolist()) for labels in found] == [{i % 4} for i in range(60)]


def test_why_there_is_no_graph_is_among_the_notes(board):
    board.plan = {"refuses": ["capture"]}
    board.engine("fp16")
    with Segmenter.open(board.folder) as seg:
        (note,) = seg.notes
    assert note.startswith("no CUDA graph: ")
