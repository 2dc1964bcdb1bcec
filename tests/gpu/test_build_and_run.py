"""Engines that are built on this GPU, run on it, and agree with ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest

from engines.segmenter import Segmenter
from engines.trt.engine_file import header_from_engine
from engines.trt.predictor import TrtPredictor


def percent_equal(found, wanted):
    return 100.0 * float(np.mean(found == wanted))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_the_header_names_this_gpu_and_this_version(engine, tensorrt, cuda, precision):
    record = engine(precision)
    header = header_from_engine(record.path)
    assert header == record.header
    assert (header.runtime, header.runtime_version) == (tensorrt.runtime, tensorrt.version_text())
    assert header.precision == precision
    if not tensorrt.is_rtx:
        assert header.gpu_name == cuda.info.name
        assert header.compute_capability == cuda.info.compute_capability


@pytest.mark.parametrize(("precision", "least"), [("fp32", 99.9), ("fp16", 99.9)])
def test_labels_agree_with_onnx_runtime_in_fp32(opened, images, expected, precision, least):
    wanted = expected("fp32")
    assert len(np.unique(wanted)) > 1, "one class everywhere would prove nothing"
    assert percent_equal(opened(precision).labels(images), wanted) >= least


def test_labels_of_int8_agree_with_onnx_runtime_on_the_same_graph(opened, images, expected):
    # Roundings at a step's middle differ from kernel to kernel, so less than in FP16 is asked.
    assert percent_equal(opened("int8").labels(images), expected("int8")) >= 99.0


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_labels_are_the_largest_logits(opened, images, precision):
    predictor = opened(precision)
    logits = predictor.logits(images[:2])
    assert logits.dtype == np.float32
    assert np.isfinite(logits).all()
    assert percent_equal(logits.argmax(axis=1), predictor.labels(images[:2])) >= 99.99


def test_a_free_batch_gives_each_image_its_own_answer(opened, images):
    predictor = opened("fp16", "free")
    assert (predictor.fixed_batch, predictor.max_batch) == (None, 4)
    together = predictor.labels(images[:7])  # runs of 4 and 3
    alone = np.concatenate([predictor.labels(images[i : i + 1]) for i in range(7)])
    # Another batch may take another kernel, whose FP16 sums round otherwise.
    assert percent_equal(together, alone) >= 99.9


def test_a_run_answers_the_same_every_time(opened, images):
    predictor = opened("fp16")
    first = predictor.labels(images[:4])
    for _ in range(20):
        np.testing.assert_array_equal(predictor.labels(images[:4]), first)


def test_timing_is_split_into_parts_that_fit_into_the_whole(opened, images):
    predictor = opened("fp16")
    predictor.timed(images[:1])
    labels, timing = predictor.timed(images[:1])
    np.testing.assert_array_equal(labels, predictor.labels(images[:1]))
    parts = (timing.copy_in_ms, timing.compute_ms, timing.copy_out_ms)
    assert timing.compute_ms > 0
    assert min(parts) >= 0
    assert sum(parts) <= timing.end_to_end_ms * 1.05


def test_a_stripped_engine_takes_its_weights_from_the_onnx_file(
    bundles, tensorrt, cuda, images, opened, tmp_path
):
    if not tensorrt.has_strip_weights():
        pytest.skip(f"{tensorrt} has no engines without weights")
    from engines.trt.build import BuildOptions, engine_from_onnx

    onnx = bundles / "fixed" / "model.onnx"
    options = BuildOptions(precision="fp32", strip_weights=True, rtx=tensorrt.is_rtx)
    record = engine_from_onnx(
        onnx, tmp_path / "stripped.engine", options, cuda=cuda, tensorrt=tensorrt
    )
    whole = opened("fp32")
    assert record.engine_bytes < whole.path.stat().st_size
    with TrtPredictor(record.path, cuda=cuda, tensorrt=tensorrt, refit_from=onnx) as stripped:
        assert percent_equal(stripped.labels(images[:4]), whole.labels(images[:4])) >= 99.9


def test_a_segmenter_builds_its_engine_once_and_takes_it_the_next_time(bundles, images):
    with Segmenter.open(bundles / "fixed", precision="fp16", runtime="tensorrt") as segmenter:
        assert segmenter.runtime.startswith("TensorRT")
        first = segmenter(images[0])
    engines = set((bundles / "fixed" / "engines").glob("fp16-*.engine"))
    with Segmenter.open(
        bundles / "fixed", precision="fp16", runtime="tensorrt", build=False
    ) as segmenter:
        np.testing.assert_array_equal(segmenter(images[0]), first)
    assert set((bundles / "fixed" / "engines").glob("fp16-*.engine")) == engines
