"""Overlapped runs keep their order and their images."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.mark.parametrize("bundle", ["fixed", "free"])
def test_a_stream_gives_every_batch_its_labels_in_order(opened, images, bundle):
    predictor = opened("fp16", bundle)
    sizes = [1, 2, 1, 4, 3, 1]
    starts = np.cumsum([0, *sizes[:-1]])
    batches = [images[start : start + size] for start, size in zip(starts, sizes)]
    streamed = list(predictor.stream(batches * 5))
    assert [len(labels) for labels in streamed] == sizes * 5
    for labels, batch in zip(streamed, batches * 5):
        np.testing.assert_array_equal(labels, predictor.labels(batch))


def test_an_array_that_is_filled_again_for_each_batch_is_safe(opened, images):
    predictor = opened("fp16")
    buffer = np.empty_like(images[:1])

    def camera():
        for i in range(len(images)):
            buffer[0] = images[i]
            yield buffer
            buffer[0] = 0

    streamed = np.concatenate(list(predictor.stream(camera())))
    np.testing.assert_array_equal(streamed, predictor.labels(images))


def test_a_source_that_fails_gives_what_came_before_and_then_its_error(opened, images):
    predictor = opened("fp16")

    def source():
        yield images[:1]
        yield images[1:2]
        raise OSError("camera unplugged")

    stream = predictor.stream(source())
    assert len(next(stream)) == 1
    assert len(next(stream)) == 1
    with pytest.raises(OSError, match="camera unplugged"):
        next(stream)
    predictor.labels(images[:1])


def test_a_stream_that_is_left_early_leaves_the_predictor_usable(opened, images):
    predictor = opened("fp16")
    wanted = predictor.labels(images[:1])
    for _ in range(20):
        stream = predictor.stream(images[:1] for _ in range(100))
        next(stream)
        stream.close()
    np.testing.assert_array_equal(predictor.labels(images[:1]), wanted)
