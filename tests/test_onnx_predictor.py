from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tiny_models import bands_model, model_from_text, write_onnx

from engines.errors import ConfigError, GraphError, InputError, MissingPackageError
from engines.onnx_predictor import OnnxPredictor
from engines.resize import ResizeRule

# Red values 0 63 64 | 127 128 255 make bands of 64: 0 0 1 | 1 2 3.
RED = np.array([[0, 63, 64], [127, 128, 255]], np.uint8)
BANDS = [[0, 0, 1], [1, 2, 3]]


def image_of(red: np.ndarray, channels: int = 3) -> np.ndarray:
    image = np.full((*red.shape, channels), 99, np.uint8)
    image[..., 0] = red
    return image


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_onnx(bands_model(), tmp_path / "bands.onnx")


def test_labels_are_the_ones_worked_out_by_hand(path: Path) -> None:
    with OnnxPredictor(path) as predictor:
        labels = predictor.labels(image_of(RED)[np.newaxis])
    assert labels.dtype == np.uint8
    assert labels.tolist() == [BANDS]


def test_the_sizes_are_read_from_the_graph(tmp_path: Path) -> None:
    free = write_onnx(bands_model((4, 6), channels=5), tmp_path / "free.onnx")
    fixed = write_onnx(bands_model((4, 6), batch=2), tmp_path / "fixed.onnx")
    with OnnxPredictor(free) as predictor:
        assert predictor.input_hw == (4, 6)
        assert predictor.channels == 5
        assert predictor.fixed_batch is None
        assert predictor.name == "free.onnx"
        assert predictor.path == free
    with OnnxPredictor(fixed, name="ONNX FP32") as predictor:
        assert predictor.channels == 3
        assert predictor.fixed_batch == 2
        assert predictor.name == "ONNX FP32"


@pytest.mark.parametrize("batch", ["N", 1, 2, 4])
def test_a_batch_of_three_gives_each_image_its_own_labels(tmp_path: Path, batch: str | int) -> None:
    path = write_onnx(bands_model(batch=batch), tmp_path / "bands.onnx")
    images = np.stack([image_of(RED), image_of(RED[::-1]), image_of(np.full_like(RED, 200))])
    with OnnxPredictor(path, threads=1) as predictor:
        labels = predictor.labels(images)
    assert labels.tolist() == [BANDS, BANDS[::-1], [[3, 3, 3], [3, 3, 3]]]


def test_an_array_with_strides_is_taken_as_it_looks(path: Path) -> None:
    mirrored = image_of(RED)[np.newaxis, :, ::-1]
    assert not mirrored.flags.c_contiguous
    with OnnxPredictor(path) as predictor:
        assert predictor.labels(mirrored).tolist() == [[[1, 0, 0], [3, 2, 1]]]


def test_predict_gives_the_labels_at_both_sizes(path: Path) -> None:
    with OnnxPredictor(path) as predictor:
        prediction = predictor.predict(image_of(RED), (4, 6), ResizeRule("stretch"))
    assert prediction.network.tolist() == BANDS
    assert prediction.image.tolist() == np.kron(BANDS, np.ones((2, 2), int)).tolist()


def test_a_further_output_is_left_alone(tmp_path: Path) -> None:
    model = model_from_text(
        """
        two (uint8[N, 2, 3, 3] image) => (float[N, 3, 2, 3] logits, uint8[N, 2, 3] labels)
        <int64 first = {0}> {
            levels = Cast <to = 1> (image)
            logits = Transpose <perm = [0, 3, 1, 2]> (levels)
            labels = Gather <axis = 3> (image, first)
        }
        """
    )
    with OnnxPredictor(write_onnx(model, tmp_path / "two.onnx")) as predictor:
        assert predictor.labels(image_of(RED)[np.newaxis]).tolist() == [RED.tolist()]


def test_threads_may_share_one_predictor(path: Path) -> None:
    images = [image_of(np.full_like(RED, 64 * band)) for band in range(4)] * 25
    with OnnxPredictor(path) as predictor, ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda image: predictor.labels(image[np.newaxis]), images))
    assert [int(labels.min()) for labels in found] == [0, 1, 2, 3] * 25
    assert [int(labels.max()) for labels in found] == [0, 1, 2, 3] * 25


def test_a_stream_gives_the_labels_of_each_batch_in_order(path: Path) -> None:
    frame = image_of(RED)[np.newaxis]

    def source() -> Iterator[np.ndarray]:
        for i in range(20):
            frame[..., 0] = 64 * (i % 4)  # the same array again, as a camera may do
            yield np.repeat(frame, 1 + i % 3, axis=0) if i % 2 else frame

    with OnnxPredictor(path) as predictor:
        found = list(predictor.stream(source()))
    assert [len(labels) for labels in found] == [1 + i % 3 if i % 2 else 1 for i in range(20)]
    assert [set(np.unique(labels)) for labels in found] == [{i % 4} for i in range(20)]


def test_a_wrong_batch_in_a_stream_comes_after_the_results_before_it(path: Path) -> None:
    batches = [image_of(RED)[np.newaxis], image_of(RED)]
    with OnnxPredictor(path) as predictor:
        results = predictor.stream(batches)
        assert next(results).tolist() == [BANDS]
        with pytest.raises(InputError, match=r"shape \(2, 3, 3\); .*newaxis"):
            next(results)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (np.zeros((1, 2, 3, 3), np.float32), "batch of float32; expected .*uint8.*the graph does"),
        ([[0]], "a batch of list; expected a numpy array"),
        (np.zeros((2, 3, 3), np.uint8), r"shape \(2, 3, 3\); expected \(N, 2, 3, 3\).*newaxis"),
        (np.zeros((1, 3, 2, 3), np.uint8), r"\(1, 3, 2, 3\); .*transpose\(0, 2, 3, 1\)"),
        (np.zeros((1, 4, 6, 3), np.uint8), r"\(1, 4, 6, 3\); .*network_image_from_image"),
        (np.zeros((1, 2, 3, 4), np.uint8), r"\(1, 2, 3, 4\); .*channels last"),
        (np.zeros((0, 2, 3, 3), np.uint8), r"\(0, 2, 3, 3\); .*N of 1 or more"),
    ],
)
def test_a_wrong_array_is_told_what_to_do(path: Path, batch: Any, message: str) -> None:
    with OnnxPredictor(path) as predictor, pytest.raises(InputError, match=message):
        predictor.labels(batch)


def test_a_closed_predictor_says_so(path: Path) -> None:
    predictor = OnnxPredictor(path)
    predictor.close()
    predictor.close()
    for call in (predictor.labels, predictor.stream):
        with pytest.raises(InputError, match=r"'bands\.onnx' after close\(\); .*open it again"):
            call(image_of(RED)[np.newaxis])


def test_less_than_one_thread_is_refused(path: Path) -> None:
    with pytest.raises(ConfigError, match="0 threads"):
        OnnxPredictor(path, threads=0)


def test_a_python_without_onnxruntime_says_what_to_install(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingPackageError, match=r"onnxruntime.*pip install 'riceseg\[onnx\]'"):
        OnnxPredictor(path)


@pytest.mark.parametrize(
    ("signature", "body", "message"),
    [
        (
            "(uint8[N, 2, 3, 3] picture) => (uint8[N, 2, 3, 3] labels)",
            "labels = Identity (picture)",
            r"inputs: picture .*expected one input 'image'",
        ),
        (
            "(float[N, 2, 3, 3] image) => (uint8[N, 2, 3, 3] labels)",
            "labels = Cast <to = 2> (image)",
            r"image tensor\(float\)",
        ),
        (
            "(uint8[N, H, W, 3] image) => (uint8[N, H, W, 3] labels)",
            "labels = Identity (image)",
            "with fixed H, W and C",
        ),
        (
            "(uint8[2, 3, 3] image) => (uint8[2, 3, 3] labels)",
            "labels = Identity (image)",
            r"image tensor\(uint8\) \[2, 3, 3\]",
        ),
        (
            "(uint8[N, 2, 3, 3] image, uint8[1] more) => (uint8[N, 2, 3, 3] labels)",
            "labels = Add (image, more)",
            r"more tensor\(uint8\)",
        ),
        (
            "(uint8[N, 2, 3, 3] image) => (uint8[N, 2, 3, 3] mask)",
            "mask = Identity (image)",
            r"outputs: mask tensor\(uint8\); expected an output 'labels'",
        ),
        (
            "(uint8[N, 2, 3, 3] image) => (int64[N, 2, 3, 3] labels)",
            "labels = Cast <to = 7> (image)",
            r"labels tensor\(int64\)",
        ),
    ],
)
def test_a_graph_with_another_contract_is_refused(
    tmp_path: Path, signature: str, body: str, message: str
) -> None:
    model = model_from_text(f"other {signature} {{ {body} }}")
    with pytest.raises(GraphError, match=message):
        OnnxPredictor(write_onnx(model, tmp_path / "other.onnx"))


def test_labels_of_an_unexpected_shape_are_an_error_and_not_a_result(tmp_path: Path) -> None:
    model = model_from_text(
        "four (uint8[N, 2, 3, 3] image) => (uint8[N, A, B, C] labels) { labels = Identity (image) }"
    )
    path = write_onnx(model, tmp_path / "four.onnx")
    with (
        OnnxPredictor(path) as predictor,
        pytest.raises(GraphError, match=r"labels of shape \(1, 2, 3, 3\); .*\(1, 2, 3\)"),
    ):
        predictor.labels(image_of(RED)[np.newaxis])


def test_a_graph_that_fails_while_running_is_a_graph_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = model_from_text(
        """
        late (uint8[N, 2, 3, 3] image) => (uint8[N, A, B] labels)
        <int64[3] shape = {1, 2, 4}> { labels = Reshape (image, shape) }
        """
    )
    path = write_onnx(model, tmp_path / "late.onnx")
    with OnnxPredictor(path) as predictor, pytest.raises(GraphError, match="fails while running"):
        predictor.labels(image_of(RED)[np.newaxis])
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "data", [b"no graph at all", b"\x08\x08", b"\x08\x00\x00\x00ORTM" + b"0" * 64]
)
def test_a_file_that_is_no_onnx_graph_is_refused_in_one_line_and_silently(
    tmp_path: Path, data: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "wrong.onnx"
    path.write_bytes(data)
    with pytest.raises(GraphError, match=r"'wrong\.onnx', which ONNX Runtime .* refuses") as caught:
        OnnxPredictor(path)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_a_path_without_a_usable_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.onnx").touch()
    with pytest.raises(GraphError, match="of 0 bytes"):
        OnnxPredictor(tmp_path / "empty.onnx")
    with pytest.raises(GraphError, match=r"missing\.onnx.*No such file"):
        OnnxPredictor(tmp_path / "missing.onnx")
    with pytest.raises(GraphError, match="no file"):
        OnnxPredictor(tmp_path)


def test_a_file_beyond_the_limit_of_protobuf_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / "huge.onnx", "wb") as file:
        file.truncate(2**31)  # a sparse file: it takes no space
    with pytest.raises(GraphError, match=r"of 2147483648 bytes; expected .*2 GiB"):
        OnnxPredictor(tmp_path / "huge.onnx")


def model_with_external_weights(location: str) -> onnx.ModelProto:
    """`bands_model` plus an addend of 2x3 zeros that is stored in the file `location`."""
    addend = TensorProto(name="addend", data_type=TensorProto.UINT8, dims=[2, 3])
    addend.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "6")):
        entry = addend.external_data.add()
        entry.key, entry.value = key, value
    model = bands_model(step=1)
    model.graph.initializer.append(addend)
    model.graph.node[-1].output[0] = "before"
    model.graph.node.append(helper.make_node("Add", ["before", "addend"], ["labels"]))
    return model


@pytest.mark.parametrize(
    "location", ["../weights.bin", "weights.bin", "{folder}/weights.bin", "link.bin"]
)
def test_a_graph_whose_weights_are_in_another_file_is_refused(
    tmp_path: Path, location: str
) -> None:
    (tmp_path / "weights.bin").write_bytes(bytes(6))
    folder = tmp_path / "bundle"
    folder.mkdir()
    shutil.copy(tmp_path / "weights.bin", folder)
    (folder / "link.bin").symlink_to(tmp_path / "weights.bin")
    model = model_with_external_weights(location.format(folder=tmp_path))
    with pytest.raises(GraphError, match="keeps weights in another file"):
        OnnxPredictor(write_onnx(model, folder / "external.onnx"))


def test_weights_in_another_file_are_found_wherever_they_are_in_the_graph(tmp_path: Path) -> None:
    data = model_with_external_weights("../weights.bin").SerializeToString()
    place = data.index(b"\x0a\x08location")
    for start in (1 << 20) - 12, (1 << 20) - 5, (1 << 20) + 3, 2 << 20:
        # Field 2 of a model, producer_name, in front: moves the entry over the reader's chunks.
        length = start - place - 4
        varint = bytes([length & 127 | 128, length >> 7 & 127 | 128, length >> 14])
        path = tmp_path / "padded.onnx"
        path.write_bytes(b"\x12" + varint + b"x" * length + data)
        assert path.read_bytes().index(b"\x0a\x08location") == start
        with pytest.raises(GraphError, match="keeps weights in another file"):
            OnnxPredictor(path)


@pytest.mark.parametrize("tag", [b"\x8a\x80\x00", b"\x8a\x80\x80\x80\x10"])
def test_weights_in_another_file_are_found_when_the_lengths_are_padded(
    tmp_path: Path, tag: bytes
) -> None:
    """The second tag's bit 32 is dropped by protobuf in C++; the one in Python refuses it."""
    addend = TensorProto(name="w", data_type=TensorProto.UINT8, dims=[1])
    entry = tag + b"\x88\x80\x00" + b"location" + b"\x12\x01x"
    data = addend.SerializeToString() + b"\x6a" + bytes([len(entry)]) + entry + b"\x70\x01"
    if len(tag) == 3:
        parsed = TensorProto.FromString(data)
        assert [(item.key, item.value) for item in parsed.external_data] == [("location", "x")]
    (tmp_path / "w.onnx").write_bytes(data)
    with pytest.raises(GraphError, match="keeps weights in another file"):
        OnnxPredictor(tmp_path / "w.onnx")
