"""TrtPredictor on a made-up GPU: results, order of the calls, ownership, threads and errors."""

from __future__ import annotations

import contextlib
import logging
import re
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from fake_tensorrt import plan_bytes
from tiny_engines import BANDS, RED, Rig, engine_file, flat, header_of, image_of

from engines.errors import DeviceError, EngineError, InputError
from engines.resize import ResizeRule
from engines.trt.engine_file import write_engine
from engines.trt.predictor import TrtPredictor

FREE = (1, 1, 8)


@pytest.fixture
def rig(tmp_path):
    rig = Rig(tmp_path)
    yield rig
    assert rig.cuda.leaks() == []
    assert not rig.cuda.closed, "a GPU that was lent was closed"


@pytest.mark.parametrize("version", ["8.6.1", "10.3.0", "11.4.0"])
@pytest.mark.parametrize("batch", [1, FREE])
@pytest.mark.parametrize("integrated", [False, True])
@pytest.mark.parametrize("shuffle", [None, 1, 2])
def test_labels_are_the_ones_worked_out_by_hand(tmp_path, version, batch, integrated, shuffle):
    rig = Rig(tmp_path, version, integrated=integrated, shuffle=shuffle)
    with rig.open(batch=batch, header={"runtime_version": version}) as predictor:
        labels = predictor.labels(image_of(RED)[np.newaxis])
        again = predictor.labels(image_of(RED[::-1])[np.newaxis])
    assert labels.dtype == np.uint8
    assert labels.tolist() == [BANDS]
    assert again.tolist() == [BANDS[::-1]]
    assert rig.cuda.leaks() == []


def test_what_the_engine_is_can_be_read_from_the_predictor(rig):
    with rig.open(batch=FREE, hw=(4, 6), channels=5, outputs=["labels", "logits"]) as predictor:
        assert predictor.input_hw == (4, 6)
        assert predictor.channels == 5
        assert predictor.fixed_batch is None
        assert predictor.max_batch == 8
        assert predictor.has_logits
        assert predictor.name == "tiny.engine"
        assert predictor.runtime == "TensorRT 10.3.0 on Orin"
        assert predictor.header.precision == "fp16"
    with rig.open(batch=2, options={"name": "TensorRT FP16"}) as predictor:
        assert predictor.fixed_batch == predictor.max_batch == 2
        assert not predictor.has_logits
        assert predictor.name == "TensorRT FP16"


def test_a_profile_of_one_size_is_a_fixed_batch(rig):
    with rig.open(batch=(2, 2, 2)) as predictor:
        assert predictor.fixed_batch == 2
        assert predictor.labels(flat(200)).tolist() == [[[3] * 3] * 2]
        assert "launch" in rig.cuda.names()


@pytest.mark.parametrize("batch", [1, 2, 4, (1, 1, 2), (1, 2, 4)])
def test_a_batch_of_three_gives_each_image_its_own_labels(rig, batch):
    images = np.stack([image_of(RED), image_of(RED[::-1]), image_of(np.full_like(RED, 200))])
    with rig.open(batch=batch) as predictor:
        labels = predictor.labels(images)
    assert labels.tolist() == [BANDS, BANDS[::-1], [[3, 3, 3], [3, 3, 3]]]


def test_only_what_a_free_batch_needs_is_copied(rig):
    with rig.open(batch=FREE) as predictor:
        predictor.labels(np.concatenate([flat(1), flat(2)]))
    copies = [call.about[0] for call in rig.cuda.calls if call.name.startswith("copy")]
    assert copies == [2 * 2 * 3 * 3, 2 * 2 * 3]


def test_results_are_new_arrays_that_stay_as_they_are(rig):
    with rig.open() as predictor:
        first = predictor.labels(flat(0))
        second = predictor.labels(flat(255))
    assert first.max() == 0
    assert second.min() == 3
    assert first.flags.owndata or first.base.flags.owndata


def test_an_array_with_strides_is_taken_as_it_looks_and_is_not_changed(rig):
    mirrored = image_of(RED)[np.newaxis, :, ::-1]
    mirrored.setflags(write=False)
    with rig.open() as predictor:
        assert predictor.labels(mirrored).tolist() == [[[1, 0, 0], [3, 2, 1]]]


def test_predict_gives_the_labels_at_both_sizes(rig):
    with rig.open() as predictor:
        prediction = predictor.predict(image_of(RED), (4, 6), ResizeRule("stretch"))
    assert prediction.network.tolist() == BANDS
    assert prediction.image.tolist() == np.kron(BANDS, np.ones((2, 2), int)).tolist()


@pytest.mark.parametrize("integrated", [False, True])
def test_logits_come_from_an_engine_that_has_them(tmp_path, integrated):
    rig = Rig(tmp_path, integrated=integrated)
    with rig.open(batch=FREE, outputs=["labels", "logits"]) as predictor:
        logits = predictor.logits(np.concatenate([flat(70), flat(200)]))
        assert predictor.labels(flat(70)).max() == 1
    assert logits.shape == (2, 4, 2, 3)
    assert logits.dtype == np.float32
    # Band 1 is 1 away from 0 and 2, and 2 away from 3: 1 - distance.
    assert logits[0, :, 0, 0].tolist() == [0, 1, 0, -1]
    assert logits[1, :, 1, 2].tolist() == [-2, -1, 0, 1]
    assert rig.cuda.leaks() == []


def test_labels_of_logits_alone_are_their_argmax(rig):
    with rig.open(outputs=["logits"]) as predictor:
        labels = predictor.labels(image_of(RED)[np.newaxis])
    assert labels.dtype == np.uint8
    assert labels.tolist() == [BANDS]


def test_an_engine_without_logits_says_how_to_get_them(rig):
    with rig.open() as predictor, pytest.raises(EngineError, match=r"labels alone.*--output both"):
        predictor.logits(flat(0))


def test_the_parts_of_a_timed_run_are_the_gpus_own(rig):
    # The made-up GPU takes 1 ms for a copy and 10 ms for the engine.
    with rig.open(batch=(1, 1, 2)) as predictor:
        labels, timing = predictor.timed(flat(200))
        assert labels.min() == 3
        assert (timing.copy_in_ms, timing.compute_ms, timing.copy_out_ms) == (1.0, 10.0, 1.0)
        assert 0 < timing.end_to_end_ms < 5000
        _, twice = predictor.timed(np.concatenate([flat(200)] * 3))
        assert (twice.copy_in_ms, twice.compute_ms, twice.copy_out_ms) == (2.0, 20.0, 2.0)


def test_device_memory_counts_activations_weights_and_buffers(rig):
    plan = len(plan_bytes(batch=(1, 1, 4)))
    slot = 4 * (2 * 3 * 3 + 2 * 3)
    with rig.open(batch=(1, 1, 4)) as predictor:
        assert predictor.device_memory_bytes() == 5_000_000 + plan + slot
        list(predictor.stream([flat(0)]))
        assert predictor.device_memory_bytes() == 5_000_000 + plan + 3 * slot


@pytest.mark.parametrize("integrated", [False, True])
def test_an_output_that_a_stream_does_not_read_has_no_memory_of_its_own_there(tmp_path, integrated):
    rig = Rig(tmp_path, integrated=integrated)
    with rig.open(outputs=["labels", "logits"]) as predictor:
        assert [labels.max() for labels in predictor.stream([flat(70), flat(130)])] == [1, 2]
        assert predictor.logits(flat(200))[0, :, 0, 0].tolist() == [-2, -1, 0, 1]
    kind = "host_buffer" if integrated else "device_buffer"
    sizes = [call.about[0] for call in rig.cuda.calls if call.name == kind]
    assert sorted(sizes) == [6] * 3 + [18] * 3 + [4 * 6 * 4]


# CUDA graphs


def test_a_fixed_batch_runs_as_a_graph_that_was_captured_after_one_run(rig):
    with rig.open() as predictor:
        opened = rig.cuda.names("execute", "synchronize", "capture", "launch")
        assert opened == ["execute", "synchronize", "capture", "execute"]
        for _ in range(3):
            assert predictor.labels(flat(200)).min() == 3
        assert rig.cuda.names("execute", "launch") == ["execute"] * 2 + ["launch"] * 3
        assert predictor.notes == []


@pytest.mark.parametrize(
    ("cuda", "plan", "note"),
    [
        ({"supports_graphs": False}, {}, "no CUDA graph: recording has none"),
        ({}, {"refuses": ["capture"]}, "no CUDA graph: .*not permitted while capturing"),
        ({}, {"batch": (1, 1, 8)}, "no CUDA graph: the engine takes batches of any size"),
    ],
)
def test_where_no_graph_can_be_had_it_runs_without_and_says_why(tmp_path, caplog, cuda, plan, note):
    caplog.set_level(logging.INFO)
    rig = Rig(tmp_path, **cuda)
    with rig.open(**plan) as predictor:
        assert predictor.labels(flat(200)).min() == 3
        assert [x.tolist() for x in predictor.stream([flat(70)])] == [[[[1] * 3] * 2]]
        (found,) = predictor.notes
        assert "launch" not in rig.cuda.names()
    assert re.search(note, found)
    assert len([text for text in caplog.messages if "no CUDA graph" in text]) == 1
    assert rig.cuda.leaks() == []


def test_a_graph_that_is_not_wanted_is_not_missed(rig):
    with rig.open(options={"cuda_graph": False}) as predictor:
        predictor.labels(flat(0))
        assert predictor.notes == []
        assert rig.cuda.names("capture", "launch") == []


# Memory


def test_on_shared_memory_nothing_is_copied(tmp_path):
    rig = Rig(tmp_path, integrated=True)
    with rig.open(outputs=["labels", "logits"]) as predictor:
        assert predictor.labels(flat(200)).min() == 3
        predictor.logits(flat(200))
        assert [labels.min() for labels in predictor.stream([flat(64), flat(128)])] == [1, 2]
        _, timing = predictor.timed(flat(0))
        assert (timing.copy_in_ms, timing.compute_ms, timing.copy_out_ms) == (0.0, 10.0, 0.0)
    assert rig.cuda.names("copy_in", "copy_out", "device_buffer") == []
    assert rig.cuda.leaks() == []


def test_a_gpu_with_shared_memory_that_cannot_map_it_is_copied_to(tmp_path):
    rig = Rig(tmp_path, integrated=True)
    rig.cuda.info = type(rig.cuda.info)(**{**vars(rig.cuda.info), "can_map_host": False})
    with rig.open() as predictor:
        assert predictor.labels(flat(200)).min() == 3
    assert rig.cuda.names("copy_in", "copy_out") == ["copy_in", "copy_out"]


def test_runs_allocate_nothing(rig):
    with rig.open(batch=FREE, outputs=["labels", "logits"]) as predictor:

        def everything():
            predictor.labels(flat(0))
            predictor.logits(flat(0))
            predictor.timed(flat(0))
            list(predictor.stream([flat(0)] * 3))

        everything()
        before = len(rig.cuda.leaks())
        for _ in range(5):
            everything()
        assert len(rig.cuda.leaks()) == before


@pytest.mark.parametrize("integrated", [False, True])
def test_whatever_fails_while_opening_leaves_nothing_allocated(tmp_path, integrated):
    rig = Rig(tmp_path, integrated=integrated)
    rig.open(outputs=["labels", "logits"]).close()
    kinds = ("device_buffer", "host_buffer", "stream", "event")
    opened = rig.cuda.names(*kinds)
    assert len(opened) > 6
    for kind in set(opened):
        for at in range(1, opened.count(kind) + 1):
            rig.cuda.fail(kind, at=at)
            with pytest.raises(DeviceError, match="a refusal of " + kind):
                rig.open(outputs=["labels", "logits"])
            assert rig.cuda.leaks() == [], (kind, at)


def test_whatever_fails_while_a_stream_opens_leaves_the_predictor_as_it_was(rig):
    with rig.open() as predictor:
        before = rig.cuda.leaks()
        for kind, most in {"device_buffer": 4, "host_buffer": 4, "event": 6}.items():
            for at in range(1, most + 1):
                rig.cuda.fail(kind, at=at)
                with pytest.raises(DeviceError, match="a refusal of " + kind):
                    list(predictor.stream([flat(0)]))
                assert rig.cuda.leaks() == before, (kind, at)
        for at in (1, 2):
            rig.cuda.fail("stream", at=at)
            with pytest.raises(DeviceError, match="a refusal of stream"):
                list(predictor.stream([flat(0)]))
            assert rig.cuda.leaks().count("FakeStream") == before.count("FakeStream")
        assert [labels.max() for labels in predictor.stream([flat(70)])] == [1]


def test_a_gpu_that_was_opened_here_is_closed_here(tmp_path, monkeypatch):
    rig = Rig(tmp_path)
    monkeypatch.setattr("engines.cuda.open_cuda", lambda: rig.cuda, raising=False)
    monkeypatch.setattr("engines.trt.predictor.load_tensorrt", lambda rtx: rig.tensorrt)
    path = engine_file(tmp_path)
    with TrtPredictor(path) as predictor:
        assert predictor.labels(flat(200)).min() == 3
    assert rig.cuda.closed
    assert rig.cuda.leaks() == []


def test_the_end_comes_from_the_inside_out(rig):
    predictor = rig.open()
    start = len(rig.cuda.calls)
    predictor.close()
    assert [made() for made in rig.tensorrt.module.made] == [None] * 3
    names = [call.name for call in rig.cuda.calls[start:]]
    order = ["synchronize", "destroy_graph", "free_device", "destroy_stream"]
    assert [names.index(name) for name in order] == sorted(names.index(name) for name in order)
    native = ["free_IExecutionContext", "free_ICudaEngine", "free_Runtime"]
    assert [name for name in names if name in native] == native
    assert names.index("free_IExecutionContext") > max(
        i for i, name in enumerate(names) if name in ("free_device", "free_host", "destroy_graph")
    )


def test_a_predictor_that_was_only_dropped_releases_everything(rig):
    predictor = rig.open()
    list(predictor.stream([flat(0)]))
    del predictor
    assert rig.cuda.leaks() == []


def test_a_gpu_that_fails_at_the_end_still_gives_everything_back(rig):
    predictor = rig.open()
    rig.cuda.fail("synchronize")
    with pytest.raises(DeviceError, match="a refusal of synchronize"):
        predictor.close()
    predictor.close()


def test_a_gpu_that_its_owner_closed_first_is_an_error_and_nothing_is_kept(tmp_path):
    rig = Rig(tmp_path)
    predictor = rig.open()
    rig.cuda.close()
    with pytest.raises(InputError):
        predictor.labels(flat(0))
    with pytest.raises(InputError):
        predictor.close()
    predictor.close()
    assert rig.cuda.leaks() == []
    names = ["free_IExecutionContext", "free_ICudaEngine", "free_Runtime"]
    assert rig.cuda.names(*names) == names


# Errors


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (np.zeros((1, 2, 3, 3), np.float32), "batch of float32; expected .*uint8.*the graph does"),
        ([[0]], "a batch of list; expected a numpy array"),
        (np.zeros((2, 3, 3), np.uint8), r"shape \(2, 3, 3\); expected \(N, 2, 3, 3\).*newaxis"),
        (np.zeros((1, 3, 2, 3), np.uint8), r"\(1, 3, 2, 3\); .*transpose\(0, 2, 3, 1\)"),
        (np.zeros((0, 2, 3, 3), np.uint8), r"\(0, 2, 3, 3\); .*N of 1 or more"),
    ],
)
def test_a_wrong_array_is_told_what_to_do(rig, batch, message):
    with rig.open() as predictor:
        for call in (predictor.labels, predictor.timed, lambda x: list(predictor.stream([x]))):
            with pytest.raises(InputError, match=message):
                call(batch)
        assert predictor.labels(flat(200)).min() == 3


def test_a_closed_predictor_says_so(rig):
    predictor = rig.open(outputs=["labels", "logits"])
    predictor.close()
    predictor.close()
    calls = (
        lambda: predictor.labels(flat(0)),
        lambda: predictor.logits(flat(0)),
        lambda: predictor.timed(flat(0)),
        lambda: predictor.stream([flat(0)]),
        predictor.device_memory_bytes,
    )
    for call in calls:
        with pytest.raises(InputError, match=r"'tiny\.engine' after close\(\); .*open it again"):
            call()


def test_an_engine_of_another_machine_is_refused_with_the_comparison_and_the_command(rig):
    header = {"gpu_name": "NVIDIA GeForce RTX 4090", "compute_capability": (8, 9)}
    with pytest.raises(EngineError, match=r"for .*4090 \(8\.9\), this is Orin \(8\.7\).*build"):
        rig.open(header=header)
    with pytest.raises(EngineError, match=r"built with TensorRT 8\.6\.1, this is 10\.3\.0"):
        rig.open(header={"runtime_version": "8.6.1"})
    assert "deserialize" not in rig.cuda.names()


def test_a_truncated_or_altered_engine_never_reaches_tensorrt(rig, tmp_path):
    path = engine_file(tmp_path)
    data = path.read_bytes()
    for broken, message in [
        (data[:-5], "ends after"),
        (data[:-1] + b"?", "SHA-256"),
        (b"ftrt" + data, "bare TensorRT plan"),
        (b"", "ends after 0 bytes"),
    ]:
        path.write_bytes(broken)
        with pytest.raises(EngineError, match=message):
            TrtPredictor(path, cuda=rig.cuda, tensorrt=rig.tensorrt)
    with pytest.raises(EngineError, match=r"missing\.engine"):
        TrtPredictor(tmp_path / "missing.engine", cuda=rig.cuda, tensorrt=rig.tensorrt)
    assert rig.cuda.calls == []


def test_a_plan_that_tensorrt_refuses_is_told_with_its_last_error(rig):
    with pytest.raises(EngineError, match=r"does not load: .*magicTag"):
        rig.open(refuses=["deserialize"])


def test_a_context_that_does_not_fit_the_memory_says_how_much_is_free(rig):
    with pytest.raises(DeviceError, match=r"OutOfMemory.*8590 of 8590 MB are free.*smaller batch"):
        rig.open(refuses=["context"])


def test_a_run_that_tensorrt_refuses_is_an_engine_error_and_the_next_one_may_work(rig):
    with pytest.raises(EngineError, match=r"fails while running: .*illegal memory access"):
        rig.open(refuses=["execute"])
    with rig.open(batch=FREE) as predictor:
        plan = rig.plan()
        plan["refuses"] = ["execute"]
        with pytest.raises(EngineError, match=r"fails while running: .*illegal memory access"):
            predictor.labels(flat(0))
        plan["refuses"] = []
        assert predictor.labels(flat(200)).min() == 3


def test_a_shape_that_tensorrt_refuses_is_an_engine_error(rig):
    refusal = pytest.raises(EngineError, match=r"takes no batch of 1: .*range")
    with rig.open(batch=FREE, refuses=["shape"]) as predictor, refusal:
        predictor.labels(flat(0))


IMAGE = ["image", "INPUT", "UINT8", [1, 2, 3, 3]]
LABELS = ["labels", "OUTPUT", "UINT8", [1, 2, 3]]


@pytest.mark.parametrize(
    ("tensors", "found"),
    [
        ([], "no input and no output"),
        ([IMAGE], "input image"),
        ([LABELS], "output labels"),
        ([["picture", *IMAGE[1:]], LABELS], "input picture"),
        ([["image", "INPUT", "FLOAT", [1, 2, 3, 3]], LABELS], r"DataType\.FLOAT \(1, 2, 3, 3\)"),
        ([["image", "INPUT", "UINT8", [1, -1, 3, 3]], LABELS], r"\(1, -1, 3, 3\)"),
        ([["image", "INPUT", "UINT8", [2, 3, 3]], LABELS], r"image .*\(2, 3, 3\)"),
        ([IMAGE, ["labels", "OUTPUT", "INT32", [1, 2, 3]]], r"labels DataType\.INT32"),
        ([IMAGE, ["labels", "OUTPUT", "UINT8", [1, 4, 6]]], r"labels .*\(1, 4, 6\)"),
        ([IMAGE, ["labels", "OUTPUT", "UINT8", [2, 2, 3]]], r"labels .*\(2, 2, 3\)"),
        ([IMAGE, ["labels", "OUTPUT", "UINT8", [1, 1, 2, 3]]], r"labels .*\(1, 1, 2, 3\)"),
        ([IMAGE, ["logits", "OUTPUT", "HALF", [1, 4, 2, 3]]], r"logits DataType\.HALF"),
        ([IMAGE, LABELS, ["more", "OUTPUT", "UINT8", [1, 2, 3]]], "output more"),
        ([IMAGE, ["labels", "INPUT", "UINT8", [1, 2, 3]]], "input labels"),
    ],
)
def test_an_engine_with_another_contract_is_refused(rig, tensors, found):
    with pytest.raises(EngineError, match=found + r".*expected image uint8 \(N, H, W, C\) in"):
        rig.open(tensors=tensors)


# Version-compatible, DLA and stripped engines


def test_only_a_version_compatible_engine_may_bring_code_along(rig):
    rig.open().close()
    rig.open(header={"version_compatible": True, "runtime_version": "10.0.1"}).close()
    rig.open(header={"dla": 1}).close()
    made = [call.about for call in rig.cuda.calls if call.name == "deserialize"]
    assert made == [(False, -1), (True, -1), (False, 1)]


@pytest.fixture
def onnx(tmp_path):
    path = tmp_path / "tiny.fp16.onnx"
    path.write_bytes(b"weights of all layers")
    return path


# Of b"weights of all layers" and b"other weights", by sha256sum.
ONNX_SHA256 = "6f0a2e805933eb437ffc1483111806279bdfb39205de393f00f235391e5e134e"
OTHER_SHA256 = "53959fa102f31e51d8d1ee12fe89c2fd7cd556dbaf2c6102046d195a504850a0"


def test_an_engine_without_weights_takes_them_from_its_onnx_file(rig, onnx):
    header = {"stripped": True, "onnx_sha256": ONNX_SHA256}
    with rig.open(stripped=True, header=header, options={"refit_from": onnx}) as predictor:
        assert predictor.labels(flat(200)).min() == 3
    assert rig.cuda.names("refit_from_bytes", "create_context") == [
        "refit_from_bytes",
        "create_context",
    ]


def test_an_engine_without_weights_finds_its_onnx_file_beside_it(rig, onnx):
    header = {"stripped": True, "onnx_sha256": ONNX_SHA256}
    with rig.open(stripped=True, header=header) as predictor:
        assert predictor.labels(flat(200)).min() == 3
    onnx.write_bytes(b"other weights")
    with pytest.raises(EngineError, match=r"built without its weights"):
        rig.open(stripped=True, header=header)


def test_an_engine_without_weights_takes_them_from_no_other_file(rig, onnx):
    header = {"stripped": True, "onnx_sha256": "2" * 64}
    with pytest.raises(EngineError, match=r"weights from 'tiny.fp16.onnx' with SHA-256 .*2222"):
        rig.open(stripped=True, header=header, options={"refit_from": onnx})
    with pytest.raises(EngineError, match=r"built without its weights.*'tiny\.fp16\.onnx'.*refit"):
        rig.open(stripped=True, header={"stripped": True})


def test_weights_that_tensorrt_does_not_take_are_an_engine_error(rig, onnx):
    onnx.write_bytes(b"other weights")
    header = {
        "stripped": True,
        "onnx_sha256": "53959fa102f31e51d8d1ee12fe89c2fd7cd556dbaf2c6102046d195a504850a0",
    }
    with pytest.raises(EngineError, match=r"does not take the weights .*conv1.weight is missing"):
        rig.open(stripped=True, header=header, options={"refit_from": onnx})


def test_tensorrt_8_cannot_refit(tmp_path, onnx):
    rig = Rig(tmp_path, "8.6.1")
    header = {"stripped": True, "onnx_sha256": ONNX_SHA256, "runtime_version": "8.6.1"}
    with pytest.raises(EngineError, match="TensorRT 10 or newer"):
        rig.open(stripped=True, header=header, options={"refit_from": onnx})
    assert rig.cuda.leaks() == []


# Threads


@pytest.mark.parametrize("batch", [1, (1, 1, 2)])
@pytest.mark.parametrize("shuffle", [None, 3])
def test_eight_threads_may_share_one_predictor(tmp_path, batch, shuffle):
    rig = Rig(tmp_path, shuffle=shuffle)
    images = [np.concatenate([flat(64 * (i % 4)), flat(64 * (i // 4 % 4))]) for i in range(96)]
    with rig.open(batch=batch) as predictor, ThreadPoolExecutor(8) as pool:
        calls = [predictor.labels, lambda x: predictor.timed(x)[0]]
        found = list(pool.map(lambda i: calls[i % 2](images[i]), range(96)))
    for i, labels in enumerate(found):
        assert labels.tolist() == [[[i % 4] * 3] * 2, [[i // 4 % 4] * 3] * 2]
    assert rig.cuda.leaks() == []


def until_closed(predictor):
    """Wait until another thread has begun to close it; `stream` does not wait for its turn."""
    with contextlib.suppress(InputError):
        while True:
            predictor.stream([])


def test_close_waits_for_a_run_in_another_thread(rig):
    predictor = rig.open()
    inside, go_on = threading.Event(), threading.Event()

    def hold():
        inside.set()
        assert go_on.wait(10)

    rig.cuda.before["copy_out"] = hold
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(predictor.labels, flat(200))
        assert inside.wait(10)
        closing = pool.submit(predictor.close)
        until_closed(predictor)
        assert not closing.done()
        assert "free_device" not in rig.cuda.names()
        go_on.set()
        assert running.result(10).min() == 3
        closing.result(10)


def test_a_plan_of_another_length_than_its_header_says_cannot_be_written(tmp_path):
    with pytest.raises(EngineError, match="a header for a plan of"):
        write_engine(tmp_path / "x.engine", header_of(b"four"), b"five5")
