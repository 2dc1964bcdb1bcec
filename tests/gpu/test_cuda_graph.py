"""A CUDA graph gives what plain runs give."""

from __future__ import annotations

import numpy as np
import pytest

from engines.cuda import open_cuda
from engines.errors import DeviceError


def test_a_graph_gives_the_labels_of_plain_runs(opened, images, cuda):
    if not cuda.supports_graphs:
        pytest.skip(f"{cuda.binding} has no graphs")
    graph, plain = opened("fp16"), opened("fp16", cuda_graph=False)
    assert graph.notes == []
    np.testing.assert_array_equal(graph.labels(images), plain.labels(images))


def test_a_stream_with_graphs_gives_the_labels_of_plain_runs(opened, images):
    graph, plain = opened("fp16"), opened("fp16", cuda_graph=False)
    batches = [images[i : i + 1] for i in range(len(images))]
    streamed = list(graph.stream(batches))
    assert len(streamed) == len(batches)
    np.testing.assert_array_equal(np.concatenate(streamed), plain.labels(images))


def test_a_free_batch_runs_without_a_graph_and_says_so(opened, images):
    predictor = opened("fp16", "free")
    assert any("no CUDA graph" in note for note in predictor.notes)
    assert predictor.labels(images[:3]).shape == images[:3].shape[:3]


def test_pycuda_runs_without_a_graph_and_says_so(opened, images, tensorrt):
    try:
        cuda = open_cuda("pycuda")
    except DeviceError as error:
        pytest.skip(str(error))
    with cuda:
        predictor = opened("fp16", cuda=cuda)
        assert any("no CUDA graph" in note for note in predictor.notes)
        np.testing.assert_array_equal(predictor.labels(images[:2]), opened().labels(images[:2]))
        predictor.close()
