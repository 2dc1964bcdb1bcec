"""Background: order, how far ahead, errors, and early ends."""

from __future__ import annotations

import threading
import time

import pytest

from engines.background import Background


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    end = time.monotonic() + 10
    while any(thread.name == "source" for thread in threading.enumerate()):
        assert time.monotonic() < end


def background(items, ahead=2):
    return Background(items, ahead=ahead, name="source")


def test_the_order_stays():
    assert list(background(range(1000))) == list(range(1000))


@pytest.mark.parametrize("ahead", [1, 3])
def test_it_is_as_far_ahead_as_it_was_told(ahead):
    made = []

    def source():
        for i in range(100):
            made.append(i)
            yield i

    ready = background(source(), ahead)
    assert next(ready) == 0
    # `ahead` lie ready, one more is made and waits for its place.
    end = time.monotonic() + 10
    while len(made) < 1 + ahead + 1:
        assert time.monotonic() < end
    time.sleep(0.02)
    assert len(made) == 1 + ahead + 1
    ready.stop()
    assert list(ready) == []


def test_an_error_comes_in_its_place_and_once():
    def source():
        yield 1
        yield 2
        raise ValueError("no more")

    ready = background(source())
    assert [next(ready), next(ready)] == [1, 2]
    with pytest.raises(ValueError, match="no more"):
        next(ready)
    assert list(ready) == []


def test_after_stop_neither_elements_nor_errors_come():
    def source():
        yield 1
        raise ValueError("no more")

    ready = background(source())
    ready.stop()
    ready.stop()
    assert list(ready) == []


def test_stop_may_be_called_by_the_source_itself():
    found = []

    def source():
        yield 1
        found[0].stop()
        yield 2

    ready = background(iter(()))
    assert list(ready) == []
    gate = threading.Event()

    def gated():
        assert gate.wait(10)
        yield from source()

    found.append(background(gated()))
    gate.set()
    assert list(found[0]) in ([1], [])


def test_a_generator_that_is_left_is_closed():
    closed = threading.Event()

    def source():
        try:
            while True:
                yield 1
        finally:
            closed.set()

    ready = background(source())
    assert next(ready) == 1
    ready.stop()
    assert closed.wait(10)
