"""One predictor, several threads."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np
import pytest

from engines.errors import InputError
from engines.segmenter import Segmenter


def test_each_thread_gets_the_labels_of_its_own_image(opened, images):
    predictor = opened("fp16")
    alone = [predictor.labels(image[np.newaxis]) for image in images]

    def work(start):
        return [
            np.array_equal(predictor.labels(images[i : i + 1]), alone[i])
            for i in ((start + step) % len(images) for step in range(100))
        ]

    with ThreadPoolExecutor(8) as pool:
        assert all(all(answers) for answers in pool.map(work, range(8)))


def test_calls_and_streams_take_turns(opened, images):
    predictor = opened("fp16")
    wanted = predictor.labels(images)
    batches = [images[i : i + 1] for i in range(len(images))]

    def stream(_):
        return np.concatenate(list(predictor.stream(batches)))

    with ThreadPoolExecutor(4) as pool:
        streamed = pool.map(stream, range(3))
        called = pool.submit(lambda: [predictor.labels(images) for _ in range(5)])
        for labels in (*streamed, *called.result()):
            np.testing.assert_array_equal(labels, wanted)


def test_a_segmenter_is_used_from_a_thread_that_did_not_open_it(bundles, images):
    answers = []
    with Segmenter.open(bundles / "fixed", precision="fp16", runtime="tensorrt") as segmenter:
        here = segmenter(images[0])
        thread = threading.Thread(target=lambda: answers.append(segmenter(images[0])))
        thread.start()
        thread.join()
    np.testing.assert_array_equal(answers[0], here)


def test_two_segmenters_run_at_once(bundles, images):
    with ExitStack() as stack:
        segmenters = [
            stack.enter_context(
                Segmenter.open(bundles / "fixed", precision="fp16", runtime="tensorrt")
            )
            for _ in range(2)
        ]
        wanted = segmenters[0](images[0])
        pool = stack.enter_context(ThreadPoolExecutor(2))
        for answers in pool.map(lambda one: [one(images[0]) for _ in range(50)], segmenters):
            for labels in answers:
                np.testing.assert_array_equal(labels, wanted)


def test_closing_in_another_thread_ends_calls_with_an_error_and_not_with_a_crash(opened, images):
    predictor = opened("fp16")
    started, ended = threading.Event(), []

    def work():
        try:
            while True:
                predictor.labels(images[:1])
                started.set()
        except InputError as error:
            ended.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    assert started.wait(60)
    predictor.close()
    thread.join(60)
    assert len(ended) == 1
    with pytest.raises(InputError, match=r"after close"):
        predictor.labels(images[:1])
