"""Memory stays what it is, and its end is an error that can be lived with."""

from __future__ import annotations

import numpy as np
import pytest

from engines.errors import DeviceError, EngineError

MB = 2**20
RUNS = 10_000


def resident_bytes():
    """Of this process, from the kernel."""
    with open("/proc/self/status", encoding="ascii") as file:
        for line in file:
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    raise AssertionError("no VmRSS in /proc/self/status")


@pytest.mark.parametrize("cuda_graph", [True, False])
def test_ten_thousand_runs_take_no_more_memory(opened, images, cuda, cuda_graph):
    predictor = opened("fp16", cuda_graph=cuda_graph)
    wanted = predictor.labels(images[:1])
    for _ in range(200):
        predictor.labels(images[:1])
    host, device = resident_bytes(), cuda.free_bytes()[0]
    for _ in range(RUNS):
        labels = predictor.labels(images[:1])
    np.testing.assert_array_equal(labels, wanted)
    assert resident_bytes() - host < 16 * MB
    if not cuda.info.integrated:  # there the whole system takes from it
        assert device - cuda.free_bytes()[0] < 16 * MB


def test_ten_thousand_streamed_runs_take_no_more_memory(opened, images, cuda):
    predictor = opened("fp16")
    for _ in predictor.stream(images[:1] for _ in range(200)):
        pass
    host, device = resident_bytes(), cuda.free_bytes()[0]
    count = sum(1 for _ in predictor.stream(images[:1] for _ in range(RUNS)))
    assert count == RUNS
    assert resident_bytes() - host < 16 * MB
    if not cuda.info.integrated:
        assert device - cuda.free_bytes()[0] < 16 * MB


def test_opening_and_closing_gives_everything_back(opened, images, cuda):
    for _ in range(3):  # what libraries keep for good
        with opened("fp16") as predictor:
            predictor.labels(images[:1])
    host, device = resident_bytes(), cuda.free_bytes()[0]
    for _ in range(20):
        with opened("fp16") as predictor:
            predictor.labels(images[:1])
            list(predictor.stream([images[:1], images[1:2]]))
    assert resident_bytes() - host < 32 * MB
    if not cuda.info.integrated:
        assert device - cuda.free_bytes()[0] < 16 * MB


def test_a_full_gpu_is_an_error_and_afterwards_everything_works(opened, images, cuda):
    if cuda.info.integrated:
        pytest.skip("filling memory that the host shares would end other programs")
    wanted = opened("fp16").labels(images[:1])
    hogs = filled(cuda)
    try:
        with pytest.raises((DeviceError, EngineError), match=r"(?i)memory"):
            open_many(opened)
    finally:
        for hog in hogs:
            hog.free()
    np.testing.assert_array_equal(opened("fp16").labels(images[:1]), wanted)


def filled(cuda):
    """Buffers that leave less than 4 MB of the GPU (and no more, where a driver would swap)."""
    hogs, step = [], 1024 * MB
    while step >= 4 * MB and sum(hog.nbytes for hog in hogs) < cuda.info.total_bytes:
        try:
            hogs.append(cuda.device_buffer(step))
        except DeviceError:
            step //= 2
    return hogs


def open_many(opened):
    """One small engine may find room in what TensorRT holds already."""
    for _ in range(50):
        opened("fp16")
