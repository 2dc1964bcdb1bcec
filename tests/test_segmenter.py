from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from tiny_models import (
    bands_model,
    bundle_document,
    file_entry,
    tiny_bundle,
    write_document,
    write_onnx,
)

from engines.errors import BundleError, ConfigError, DeviceError, GraphError, InputError
from engines.segmenter import Segmenter

RED = np.array([[0, 63, 64], [127, 128, 255]], np.uint8)
BANDS = [[0, 0, 1], [1, 2, 3]]


def image_of(red: np.ndarray) -> np.ndarray:
    image = np.full((*red.shape, 3), 99, np.uint8)
    image[..., 0] = red
    return image


def edit(folder: Path, **changes: Any) -> Path:
    """Replace top-level fields of a bundle.json."""
    path = folder / "bundle.json"
    write_document({**json.loads(path.read_text(encoding="utf-8")), **changes}, folder)
    return folder


def test_an_image_of_the_networks_size_gives_the_labels_worked_out_by_hand(tmp_path: Path) -> None:
    with Segmenter.open(tiny_bundle(tmp_path)) as seg:
        labels = seg(image_of(RED))
    assert labels.dtype == np.uint8
    assert labels.tolist() == BANDS


def test_an_image_of_any_size_gets_labels_of_its_own_size(tmp_path: Path) -> None:
    # Four quadrants of one colour: stretched to 2x2 each network pixel has one quadrant's colour.
    image = image_of(np.kron([[0, 70], [130, 200]], np.ones((5, 7))).astype(np.uint8))
    with Segmenter.open(tiny_bundle(tmp_path, hw=(2, 2))) as seg:
        labels = seg(image)
    assert labels.tolist() == np.kron([[0, 1], [2, 3]], np.ones((5, 7), int)).tolist()


def test_a_letterboxed_bundle_drops_its_padding(tmp_path: Path) -> None:
    # 2x4 image in a 4x4 network: the lower half is padding of the mean, 124, hence band 1.
    image = image_of(np.array([[0, 0, 200, 200], [0, 0, 200, 200]], np.uint8))
    with Segmenter.open(tiny_bundle(tmp_path, hw=(4, 4), resize="letterbox")) as seg:
        assert seg(image).tolist() == [[0, 0, 3, 3], [0, 0, 3, 3]]


def test_names_and_colours_come_from_the_bundle(tmp_path: Path) -> None:
    with Segmenter.open(tiny_bundle(tmp_path)) as seg:
        assert seg.classes == ("background", "정상", "도열병", "도복")
        assert seg.palette[1] == (10, 0, 254)
        assert seg.bundle.name == "tiny"
        assert seg.precision == "fp32"


def test_the_precision_that_was_asked_for_is_the_one_that_runs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    folder = tiny_bundle(tmp_path, steps={"fp32": 64, "int8": 128})
    with Segmenter.open(folder, precision="int8", runtime="onnx", threads=1) as seg:
        assert seg(image_of(RED)).tolist() == [[0, 0, 0], [0, 1, 1]]
        assert seg.precision == "int8"
        assert seg.notes == []
    assert caplog.messages == []


def test_without_a_precision_fp32_is_taken_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    folder = tiny_bundle(tmp_path, steps={"int8": 128, "fp32": 64})
    with Segmenter.open(folder, runtime="onnx") as seg:
        assert seg(image_of(RED)).tolist() == BANDS
    assert caplog.messages == ["tiny: fp32 on ONNX Runtime's CPU provider, where int8 is slower"]


def test_without_tensorrt_onnx_runtime_runs_it_and_one_line_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    with Segmenter.open(tiny_bundle(tmp_path)) as seg:
        assert seg(image_of(RED)).tolist() == BANDS
        assert seg.runtime == f"ONNX Runtime {onnxruntime.__version__} on CPU"
        (note,) = seg.notes
    assert note.startswith("ONNX Runtime instead of TensorRT: no TensorRT")
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [("INFO", f"tiny: {note}")]
    with pytest.raises(DeviceError, match="no TensorRT"):
        Segmenter.open(tmp_path, runtime="tensorrt")


@pytest.mark.parametrize("precision", ["int8", "ranges", "FP32"])
def test_a_precision_that_the_bundle_lacks_is_answered_with_those_it_has(
    tmp_path: Path, precision: str
) -> None:
    folder = tiny_bundle(tmp_path, steps={"fp32": 64, "fp16": 64})
    message = f"precision '{precision}'; expected one that the bundle has: fp32, fp16"
    with pytest.raises(ConfigError, match=message):
        Segmenter.open(folder, precision=precision)


def test_a_bundle_without_a_graph_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="it has no ONNX file"):
        Segmenter.open(write_document(bundle_document(), tmp_path))


def test_an_altered_graph_of_the_same_size_is_refused_unless_told_otherwise(tmp_path: Path) -> None:
    path = tiny_bundle(tmp_path) / "tiny.fp32.onnx"
    path.write_bytes(path.read_bytes().replace(b"band", b"bent"))
    with pytest.raises(
        BundleError, match=r"'tiny\.fp32\.onnx' with SHA-256 [0-9a-f]{64}; expected"
    ):
        Segmenter.open(tmp_path)
    with Segmenter.open(tmp_path, verify=False) as seg:
        assert seg(image_of(RED)).tolist() == BANDS


def test_a_graph_of_another_size_than_the_record_is_refused(tmp_path: Path) -> None:
    path = write_onnx(bands_model((4, 4)), tmp_path / "a.onnx")
    write_document(bundle_document(hw=(2, 3), files={"fp32": file_entry(path, tmp_path)}), tmp_path)
    with pytest.raises(BundleError, match=r"for input \(4, 4\) .*expected \(2, 3\)"):
        Segmenter.open(tmp_path)


def test_a_broken_graph_is_a_graph_error(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"no graph")
    entry = file_entry(tmp_path / "a.onnx", tmp_path)
    write_document(bundle_document(files={"fp32": entry}), tmp_path)
    with pytest.raises(GraphError, match=r"'a\.onnx', which ONNX Runtime"):
        Segmenter.open(tmp_path)


def test_a_bundle_that_failed_its_gate_opens_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    edit(tiny_bundle(tmp_path), gate={"max_drop": 1.0, "drop": 7.125, "passed": False})
    Segmenter.open(tmp_path, precision="fp32").close()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "7.12 points below PyTorch's, limit 1.00" in caplog.text


def test_a_bundle_that_passed_its_gate_opens_without_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    edit(tiny_bundle(tmp_path), gate={"max_drop": 1.0, "drop": 0.5, "passed": True})
    Segmenter.open(tmp_path, precision="fp32").close()
    assert caplog.records == []


def test_a_model_that_is_meant_for_sliding_windows_opens_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    edit(tiny_bundle(tmp_path), test_mode={"mode": "slide", "crop": 512, "stride": 480})
    Segmenter.open(tmp_path, precision="fp32").close()
    assert "'slide' windows, run here on the whole image" in caplog.text


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((5, 5, 3), np.float64), "an image of float64; expected .*uint8"),
        ("image.png", "an image of str; expected a numpy array"),
        (np.zeros((5, 5), np.uint8), r"shape \(5, 5\); expected \(height, width, 3\); .*repeat"),
        (np.zeros((3, 5, 5), np.uint8), r"\(3, 5, 5\); .*transpose\(1, 2, 0\)"),
        (np.zeros((1, 5, 5, 3), np.uint8), r"\(1, 5, 5, 3\); .*one image at a time"),
        (np.zeros((5, 5, 4), np.uint8), r"\(5, 5, 4\); .*3 channels"),
        (np.zeros((0, 5, 3), np.uint8), r"shape \(0, 5, 3\)"),
    ],
)
def test_a_wrong_array_is_told_what_to_do(tmp_path: Path, image: Any, message: str) -> None:
    with (
        Segmenter.open(tiny_bundle(tmp_path)) as seg,
        pytest.raises(InputError, match=message),
    ):
        seg(image)


def test_an_image_with_masked_pixels_is_refused(tmp_path: Path) -> None:
    image = np.ma.masked_greater(image_of(RED), 200)
    hidden = int((image_of(RED) > 200).any(axis=2).sum())
    assert hidden > 0
    with (
        Segmenter.open(tiny_bundle(tmp_path)) as seg,
        pytest.raises(InputError, match=f"image with {hidden} masked pixels; .*image.filled"),
    ):
        seg(image)


def test_a_closed_segmenter_says_so(tmp_path: Path) -> None:
    with Segmenter.open(tiny_bundle(tmp_path)) as seg:
        pass
    seg.close()
    with pytest.raises(InputError, match=r"after close\(\)"):
        seg(image_of(RED))


def test_threads_may_share_one_segmenter(tmp_path: Path) -> None:
    images = [image_of(np.full((3 + i, 5), 64 * (i % 4), np.uint8)) for i in range(60)]
    with Segmenter.open(tiny_bundle(tmp_path)) as seg, ThreadPoolExecutor(8) as pool:
        found = list(pool.map(seg, images))
    assert [labels.shape for labels in found] == [(3 + i, 5) for i in range(60)]
    assert [set(np.unique(labels)) for labels in found] == [{i % 4} for i in range(60)]


def test_the_image_is_not_changed(tmp_path: Path) -> None:
    image = image_of(RED)
    image.setflags(write=False)
    with Segmenter.open(tiny_bundle(tmp_path)) as seg:
        assert seg(image).tolist() == BANDS


@pytest.mark.parametrize("batch", ["N", 1, 3])
def test_a_batch_of_images_of_any_size_gets_labels_of_their_sizes(
    tmp_path: Path, batch: str | int
) -> None:
    images = [image_of(np.full((3 + i, 5), 64 * (i % 4), np.uint8)) for i in range(20)]
    with Segmenter.open(tiny_bundle(tmp_path, batch=batch)) as seg:
        found = seg.batch(iter(images))
        assert seg.batch([]) == []
    assert [labels.shape for labels in found] == [(3 + i, 5) for i in range(20)]
    assert [set(np.unique(labels)) for labels in found] == [{i % 4} for i in range(20)]


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_a_stream_gives_labels_of_the_images_sizes_in_order(tmp_path: Path, batch: int) -> None:
    frame = image_of(RED)

    def camera() -> Iterator[np.ndarray]:
        for i in range(20):
            frame[..., 0] = 64 * (i % 4)  # the same array again, as a camera may do
            yield frame[:, : 1 + i % 3]

    with Segmenter.open(tiny_bundle(tmp_path)) as seg:
        found = list(seg.stream(camera(), batch=batch))
    assert [labels.shape for labels in found] == [(2, 1 + i % 3) for i in range(20)]
    assert [set(np.unique(labels)) for labels in found] == [{i % 4} for i in range(20)]


def test_while_an_image_is_segmented_the_next_one_is_made(tmp_path: Path) -> None:
    second = threading.Event()

    def source() -> Iterator[np.ndarray]:
        yield image_of(RED)
        second.set()
        yield image_of(RED)

    with Segmenter.open(tiny_bundle(tmp_path)) as seg:
        results = seg.stream(source())
        assert next(results).tolist() == BANDS
        assert second.wait(10)
        assert next(results).tolist() == BANDS
        assert list(results) == []


def test_what_a_stream_raises_comes_after_the_results_before_it(tmp_path: Path) -> None:
    with Segmenter.open(tiny_bundle(tmp_path)) as seg:
        results = seg.stream([image_of(RED), image_of(RED), np.zeros((5, 5), np.uint8)], batch=8)
        assert [next(results).tolist() for _ in range(2)] == [BANDS, BANDS]
        with pytest.raises(InputError, match=r"shape \(5, 5\)"):
            next(results)
        assert list(results) == []


def test_a_stream_that_is_left_ends_its_thread(tmp_path: Path) -> None:
    with Segmenter.open(tiny_bundle(tmp_path)) as seg:
        results = seg.stream(image_of(RED) for _ in range(1000))
        assert next(results).tolist() == BANDS
        results.close()
        assert not [t for t in threading.enumerate() if t.name.startswith("stream of")]
        assert seg(image_of(RED)).tolist() == BANDS
    with pytest.raises(InputError, match=r"after close\(\)"):
        seg.stream([])


def test_importing_the_runtime_needs_numpy_alone() -> None:
    code = (
        "import sys, engines.segmenter, engines.evaluation.evaluate, engines.speed.benchmark\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'PIL', 'cv2', 'tensorrt'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    parent = Path(__file__).resolve().parent.parent
    child = subprocess.run(
        [sys.executable, "-c", code], cwd=parent, capture_output=True, text=True, check=False
    )
    assert (child.returncode, child.stderr) == (0, "")
