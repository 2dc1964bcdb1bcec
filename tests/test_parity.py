"""The limits of the comparison with PyTorch where PyTorch itself is not that sure of its answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from engines.errors import GateError
from exporter.onnx_graph import GraphSpec, ImageToLabels, onnx_from_model
from exporter.parity import check_parity

SPEC = GraphSpec((32, 32), (120.0, 110.0, 100.0), (60.0, 50.0, 40.0))


class Waves(nn.Module):
    """Logits that turn over when the input changes in its last digits."""

    def __init__(self, frequency: float) -> None:
        super().__init__()
        self.frequency = nn.Parameter(torch.tensor(frequency))

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.frequency).sin()


def parity_of(folder: Path, pytorch: float, graph: float) -> object:
    """Of a graph of another frequency than PyTorch's network."""
    onnx_from_model(Waves(graph).eval(), SPEC, folder / "graph.onnx", num_outputs=3)
    batch = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    reference = ImageToLabels(Waves(pytorch).eval(), SPEC).eval()
    return check_parity(reference, onnx.load(folder / "graph.onnx"), batch, on="noise")


def test_rounding_that_moves_pytorch_as_much_is_no_difference(tmp_path: Path) -> None:
    # 5e-7 of 1e4 turns the waves by up to 0.02, jitter of 1e-6 by up to 0.04.
    record = parity_of(tmp_path, 1e4, 1e4 * (1 + 5e-7))
    assert record.max_difference > 1e-3
    assert record.max_difference <= record.limit < 0.1
    assert 98.0 < record.min_agreement < 99.99


def test_what_moves_the_graph_more_is_one(tmp_path: Path) -> None:
    with pytest.raises(GateError, match=r"does not reproduce PyTorch.*limit \d"):
        parity_of(tmp_path, 1e4, 1e4 * (1 + 1e-5))


def test_a_network_that_is_sure_keeps_the_usual_limits(tmp_path: Path) -> None:
    with pytest.raises(GateError, match=r"limit 1\.00e-03"):
        parity_of(tmp_path, 1.0, 1.002)
