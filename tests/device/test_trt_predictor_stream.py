"""TrtPredictor.stream on a made-up GPU: order, overlap, early ends, errors and mixed use."""

from __future__ import annotations

import gc
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tiny_engines import Rig, flat

from engines.errors import DeviceError, EngineError, InputError

FREE = (1, 1, 2)


@pytest.fixture
def rig(tmp_path):
    rig = Rig(tmp_path)
    yield rig
    assert rig.cuda.leaks() == []
    assert feeders() == []


def feeders():
    """Threads of streams that are still running."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("stream of")]


def levels(labels):
    """The one label of each image of a batch; every pixel must have it."""
    assert all(image.min() == image.max() for image in labels)
    return [int(image.max()) for image in labels]


def until(condition):
    """Wait for a condition of another thread, 10 s at most."""
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.001)


@pytest.mark.parametrize("batch", [1, 2, FREE])
@pytest.mark.parametrize("integrated", [False, True])
@pytest.mark.parametrize("shuffle", [None, 1, 2, 3])
def test_results_come_in_order_whatever_the_batches(tmp_path, batch, integrated, shuffle):
    rig = Rig(tmp_path, integrated=integrated, shuffle=shuffle)
    wanted = [[(7 * i + k) % 4 for k in range(1 + i % 5)] for i in range(24)]
    batches = [np.concatenate([flat(64 * level) for level in batch]) for batch in wanted]
    with rig.open(batch=batch) as predictor:
        found = list(predictor.stream(iter(batches)))
    assert [levels(labels) for labels in found] == wanted
    assert rig.cuda.leaks() == []


def test_labels_of_logits_alone_are_streamed_too(rig):
    with rig.open(outputs=["logits"]) as predictor:
        found = list(predictor.stream([flat(0), flat(130), flat(255)]))
    assert [levels(labels) for labels in found] == [[0], [2], [3]]


def test_a_source_may_fill_the_same_array_again(rig):
    frame = flat(0)

    def camera():
        for i in range(12):
            frame[..., 0] = 64 * (i % 4)
            yield frame

    with rig.open() as predictor:
        found = [levels(labels) for labels in predictor.stream(camera())]
    assert found == [[i % 4] for i in range(12)]


def test_results_stay_as_they_are_while_the_stream_goes_on(rig):
    with rig.open() as predictor:
        found = list(predictor.stream(flat(64 * (i % 4)) for i in range(12)))
    assert [levels(labels) for labels in found] == [[i % 4] for i in range(12)]


def test_nothing_in_gives_nothing_out(rig):
    with rig.open() as predictor:
        assert list(predictor.stream([])) == []
        assert levels(predictor.labels(flat(200))) == [3]


# Overlap


def test_the_next_input_is_on_its_way_before_a_result_is_waited_for(rig):
    with rig.open() as predictor:
        cuda = rig.cuda
        before = len(cuda.names("copy_in"))

        def wait_for_the_next_copy():
            cuda.before.clear()
            until(lambda: len(cuda.names("copy_in")) >= before + 2)

        cuda.before["event_synchronize"] = wait_for_the_next_copy
        assert [levels(x) for x in predictor.stream([flat(70), flat(130)])] == [[1], [2]]


def test_copies_in_and_out_and_runs_have_streams_of_their_own_joined_by_events(rig):
    with rig.open() as predictor:
        start = len(rig.cuda.calls)
        list(predictor.stream([flat(70)]))
        compute = next(call.about[0] for call in rig.cuda.calls if call.name == "execute")
        calls = [call for call in rig.cuda.calls[start:] if call.name != "device_buffer"]
    order = ("copy_in", "wait", "record", "launch", "copy_out", "event_synchronize")
    names = [call.name for call in calls if call.name in order]
    last = len(names) - 1 - names[::-1].index("copy_in")
    assert names[last:] == [
        "copy_in",
        "record",  # copied in
        "wait",  # the run waits for it
        "launch",
        "record",  # computed
        "wait",  # the copy out waits for it
        "copy_out",
        "record",  # done
        "event_synchronize",
    ]
    into = next(call.about[1] for call in calls if call.name == "copy_in")
    out = next(call.about[1] for call in calls if call.name == "copy_out")
    assert len({into, out, compute}) == 3


def test_the_source_runs_in_a_thread_of_its_own_and_a_run_follows_it_at_once(rig):
    threads = set()

    def source():
        for i in range(3):
            threads.add(threading.get_ident())
            yield flat(i)

    with rig.open() as predictor:
        start = len(rig.cuda.calls)
        list(predictor.stream(source()))
        calls = rig.cuda.calls[start:]
    assert threads == {call.thread for call in calls if call.name == "copy_in"}
    assert threads.isdisjoint({threading.get_ident()})
    waits = {call.thread for call in calls if call.name == "event_synchronize"}
    assert waits == {threading.get_ident()}


def test_a_slow_reader_holds_the_source_back(rig):
    pulled = []

    def source():
        for i in range(50):
            pulled.append(i)
            yield flat(64 * (i % 4))

    with rig.open() as predictor:
        results = predictor.stream(source())
        assert levels(next(results)) == [0]
        # 0 was read; 1 and 2 lie in the two slots, 3 waits for one.
        until(lambda: len(pulled) == 4)
        time.sleep(0.05)
        assert len(pulled) == 4
        assert [levels(labels) for labels in results] == [[i % 4] for i in range(1, 50)]


def test_both_slots_have_a_graph_of_their_own(rig):
    with rig.open() as predictor:
        list(predictor.stream(flat(0) for _ in range(6)))
        assert len(rig.cuda.names("capture")) == 3
        assert len(rig.cuda.names("launch")) == 6
        list(predictor.stream(flat(0) for _ in range(6)))
        assert len(rig.cuda.names("capture")) == 3


# Early ends


@pytest.mark.parametrize("how", ["close", "drop", "exception"])
@pytest.mark.parametrize("shuffle", [None, 5])
def test_a_stream_that_is_left_ends_its_thread_and_the_predictor_goes_on(tmp_path, how, shuffle):
    rig = Rig(tmp_path, shuffle=shuffle)
    with rig.open() as predictor:
        list(predictor.stream([flat(0)]))
        held = sorted(rig.cuda.leaks())
        for _ in range(3):
            copied = len(rig.cuda.names("copy_out"))
            results = predictor.stream(flat(64 * (i % 4)) for i in range(1000))
            assert [levels(next(results)) for _ in range(2)] == [[0], [1]]
            # Two were read, two are enqueued.
            until(lambda copied=copied: len(rig.cuda.names("copy_out")) == copied + 4)
            if how == "close":
                results.close()
            elif how == "exception":
                with pytest.raises(ZeroDivisionError):
                    results.throw(ZeroDivisionError)
            del results
            gc.collect()
            assert feeders() == []
            assert rig.cuda.pending() == []
            assert levels(predictor.labels(flat(200))) == [3]
            assert [levels(x) for x in predictor.stream([flat(130), flat(70)])] == [[2], [1]]
        assert sorted(rig.cuda.leaks()) == held
    assert rig.cuda.leaks() == []


def test_a_stream_that_was_never_started_takes_nothing(rig):
    with rig.open() as predictor:
        held = rig.cuda.leaks()
        results = predictor.stream(iter([flat(0)]))
        assert (rig.cuda.leaks(), feeders()) == (held, [])
        results.close()


def test_an_interrupt_while_waiting_ends_the_stream_alone(rig):
    def interrupted():
        rig.cuda.before.clear()
        raise KeyboardInterrupt

    with rig.open() as predictor:
        results = predictor.stream(flat(64 * (i % 4)) for i in range(100))
        assert levels(next(results)) == [0]
        rig.cuda.before["event_synchronize"] = interrupted
        with pytest.raises(KeyboardInterrupt):
            next(results)
        assert feeders() == []
        assert list(results) == []
        assert levels(predictor.labels(flat(200))) == [3]
        assert [levels(labels) for labels in predictor.stream([flat(130)])] == [[2]]


def test_a_source_that_blocks_does_not_block_who_leaves(rig, monkeypatch, caplog):
    monkeypatch.setattr("engines.background.STOP_S", 0.05)
    go_on, ended = threading.Event(), threading.Event()

    def camera():
        try:
            yield flat(70)
            assert go_on.wait(10)
            yield flat(130)
        finally:
            ended.set()

    with rig.open() as predictor:
        results = predictor.stream(camera())
        assert levels(next(results)) == [1]
        results.close()
        assert "still waiting for the next element" in caplog.text
        assert levels(predictor.labels(flat(200))) == [3]
        copies = rig.cuda.names("copy_in")
        go_on.set()
        assert ended.wait(10)
        until(lambda: feeders() == [])
        assert rig.cuda.names("copy_in") == copies


# Errors


def test_an_error_of_the_source_comes_after_the_results_before_it(rig):
    def source():
        yield flat(70)
        yield flat(130)
        raise OSError("the camera is gone")

    with rig.open() as predictor:
        results = predictor.stream(source())
        assert levels(next(results)) == [1]
        assert levels(next(results)) == [2]
        with pytest.raises(OSError, match="the camera is gone"):
            next(results)
        assert list(results) == []
        assert levels(predictor.labels(flat(200))) == [3]


def test_a_wrong_batch_comes_after_the_results_before_it(rig):
    with rig.open() as predictor:
        results = predictor.stream([flat(70), flat(0, hw=(9, 9)), flat(130)])
        assert levels(next(results)) == [1]
        with pytest.raises(InputError, match=r"shape \(1, 9, 9, 3\)"):
            next(results)


def test_something_that_cannot_be_iterated_is_the_callers_error(rig):
    with rig.open() as predictor, pytest.raises(TypeError, match="not iterable"):
        list(predictor.stream(5))


def test_a_run_that_fails_comes_in_its_place_and_the_predictor_goes_on(rig):
    with rig.open(batch=FREE) as predictor:
        plan = rig.plan()

        def source():
            yield flat(70)
            yield flat(130)
            plan["refuses"] = ["execute"]
            yield flat(200)

        results = predictor.stream(source())
        assert [levels(next(results)) for _ in range(2)] == [[1], [2]]
        with pytest.raises(EngineError, match=r"fails while running: .*illegal memory access"):
            next(results)
        plan["refuses"] = []
        assert [levels(labels) for labels in predictor.stream([flat(200)])] == [[3]]


@pytest.mark.parametrize("call", ["copy_in", "copy_out", "record", "wait", "event_synchronize"])
def test_a_gpu_that_fails_in_a_stream_is_told_in_the_readers_thread(rig, call):
    with rig.open() as predictor:
        list(predictor.stream([flat(0)]))
        rig.cuda.fail(call)
        with pytest.raises(DeviceError, match="a refusal of " + call):
            list(predictor.stream([flat(70)] * 5))
        assert [levels(labels) for labels in predictor.stream([flat(200)])] == [[3]]


# Close, and use beside a stream


def test_after_close_the_next_result_is_an_error(rig):
    predictor = rig.open()
    results = predictor.stream(flat(70) for _ in range(100))
    assert levels(next(results)) == [1]
    predictor.close()
    assert rig.cuda.leaks() == []
    with pytest.raises(InputError, match=r"'tiny\.engine' after close"):
        next(results)
    assert list(results) == []
    assert feeders() == []


def test_close_waits_for_a_reader_that_waits_for_the_gpu(rig):
    predictor = rig.open()
    results = predictor.stream(flat(70) for _ in range(100))
    assert levels(next(results)) == [1]
    inside, go_on = threading.Event(), threading.Event()

    def hold():
        inside.set()
        assert go_on.wait(10)

    rig.cuda.before["event_synchronize"] = hold
    with ThreadPoolExecutor(2) as pool:
        reading = pool.submit(next, results)
        assert inside.wait(10)
        closing = pool.submit(predictor.close)
        time.sleep(0.05)
        assert not closing.done()
        assert "free_device" not in rig.cuda.names()
        go_on.set()
        closing.result(10)
        with pytest.raises(InputError, match="after close"):
            reading.result(10)


def test_calls_and_streams_may_run_beside_each_other(tmp_path):
    for shuffle in (None, 7):
        rig = Rig(tmp_path, shuffle=shuffle)
        with rig.open(batch=FREE) as predictor, ThreadPoolExecutor(8) as pool:

            def streamed(first):
                batches = (flat(64 * ((first + i) % 4)) for i in range(40))
                return [levels(labels) for labels in predictor.stream(batches)]

            def called(first):
                return [levels(predictor.labels(flat(64 * ((first + i) % 4)))) for i in range(40)]

            jobs = [pool.submit((streamed, called)[i % 2], i) for i in range(8)]
            for first, job in enumerate(jobs):
                assert job.result(60) == [[(first + i) % 4] for i in range(40)]
        assert rig.cuda.leaks() == []
        assert feeders() == []


def test_a_call_between_two_results_does_not_disturb_the_stream(rig):
    with rig.open() as predictor:
        results = predictor.stream(flat(64 * (i % 4)) for i in range(8))
        for i, labels in enumerate(results):
            assert levels(labels) == [i % 4]
            assert levels(predictor.labels(flat(64 * ((i + 1) % 4)))) == [(i + 1) % 4]


def test_streams_beside_each_other_have_slots_of_their_own(rig):
    with rig.open() as predictor:
        first = predictor.stream(flat(64 * (i % 4)) for i in range(8))
        second = predictor.stream(flat(64 * (3 - i % 4)) for i in range(8))
        for i, (one, two) in enumerate(zip(first, second)):
            assert (levels(one), levels(two)) == ([i % 4], [3 - i % 4])
        first.close()
        second.close()
