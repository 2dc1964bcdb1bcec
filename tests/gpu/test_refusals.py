"""What cannot be run is refused with an error; nothing ends the interpreter."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import pytest

from engines.errors import EngineError, InputError
from engines.trt.engine_file import plan_from_engine, write_engine
from engines.trt.predictor import TrtPredictor


@pytest.fixture
def altered(engine, tmp_path, tensorrt, cuda):
    """altered(plan=…, **header): an opener of the engine with something changed."""

    def open_altered(*, plan=None, **changes):
        header, whole = plan_from_engine(engine("fp16").path)
        data = whole if plan is None else plan(whole)
        digest = hashlib.sha256(data).hexdigest()
        changes = {"plan_sha256": digest, "plan_bytes": len(data), **changes}
        path = tmp_path / "altered.engine"
        write_engine(path, dataclasses.replace(header, **changes), data)
        return TrtPredictor(path, cuda=cuda, tensorrt=tensorrt)

    return open_altered


def test_an_engine_of_another_version_is_refused_with_both_versions(altered, tensorrt):
    with pytest.raises(EngineError, match=r"built with .* 8\.0\.1, this is .*riceseg build"):
        altered(runtime_version="8.0.1", version_compatible=False)


def test_an_engine_of_another_gpu_is_refused_with_both_gpus(altered, tensorrt, cuda):
    if tensorrt.is_rtx:
        pytest.skip("TensorRT-RTX engines are tied to no GPU")
    with pytest.raises(EngineError, match=r"built for Tesla T4 \(7\.5\), this is .*riceseg build"):
        altered(gpu_name="Tesla T4", compute_capability=(7, 5), hardware_compatible=False)


def test_a_plan_that_tensorrt_does_not_know_is_refused(altered):
    with pytest.raises(EngineError, match="does not load"):
        altered(plan=lambda whole: b"xxxx" + whole[4:])


def test_a_plan_that_ends_too_early_is_refused(altered):
    with pytest.raises(EngineError, match="does not load"):
        altered(plan=lambda whole: whole[: len(whole) // 2])


def test_a_truncated_engine_file_is_refused(engine, tmp_path, tensorrt, cuda):
    whole = engine("fp16").path.read_bytes()
    path = tmp_path / "half.engine"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(EngineError, match="ends after"):
        TrtPredictor(path, cuda=cuda, tensorrt=tensorrt)


def test_a_bare_plan_is_refused_by_that_name(engine, tmp_path, tensorrt, cuda):
    _, plan = plan_from_engine(engine("fp16").path)
    path = tmp_path / "bare.engine"
    path.write_bytes(plan)
    with pytest.raises(EngineError, match="bare TensorRT plan"):
        TrtPredictor(path, cuda=cuda, tensorrt=tensorrt)


def test_after_refusals_the_right_engine_still_opens_and_runs(altered, opened, images):
    for _ in range(5):
        with pytest.raises(EngineError, match="does not load"):
            altered(plan=lambda whole: b"xxxx" + whole[4:])
    assert opened("fp16").labels(images[:1]).shape == images[:1].shape[:3]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda batch: batch.astype(np.float32), "float32"),
        (lambda batch: batch[0], "shape|axes|dimension"),
        (lambda batch: batch.transpose(0, 3, 1, 2), "shape"),
        (lambda batch: batch[:, :-1], "shape"),
        (lambda batch: batch[:0], "shape|empty|image"),
    ],
)
def test_a_batch_of_another_kind_is_refused(opened, images, change, match):
    predictor = opened("fp16")
    with pytest.raises(InputError, match=match):
        predictor.labels(change(images[:1]))
    predictor.labels(images[:1])


def test_a_batch_that_is_not_contiguous_is_taken(opened, images):
    predictor = opened("fp16")
    mirrored = images[:1, :, ::-1]
    np.testing.assert_array_equal(
        predictor.labels(mirrored), predictor.labels(np.ascontiguousarray(mirrored))
    )


def test_use_after_close_is_refused(opened, images):
    predictor = opened("fp16")
    predictor.close()
    predictor.close()
    for call in (predictor.labels, predictor.logits, predictor.timed):
        with pytest.raises(InputError, match=r"after close"):
            call(images[:1])
    with pytest.raises(InputError, match=r"after close"):
        next(iter(predictor.stream([images[:1]])))
