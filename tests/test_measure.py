"""PyTorch as a predictor, and the gate."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from engines.evaluation.scored_rows import gate_from_rows
from engines.resize import ResizeRule
from exporter.onnx_graph import GraphSpec, ImageToLabels
from exporter.torch_predictor import TorchPredictor


class Waves(nn.Module):
    """Smooth logits of three classes that depend on the image and on the position."""

    def forward(self, x: Tensor) -> Tensor:
        small = nn.functional.avg_pool2d(x, 4)
        mixing = torch.tensor([[1.0, -1.0, 0.3], [-0.5, 1.2, 0.1], [0.2, 0.1, -1.0]])
        return torch.einsum("kc,nchw->nkhw", mixing, small)


def predictor(hw: tuple[int, int] = (64, 96)) -> TorchPredictor:
    spec = GraphSpec(hw, mean=(127.0, 127.0, 127.0), std=(50.0, 50.0, 50.0))
    return TorchPredictor(ImageToLabels(Waves(), spec).eval())


def image(hw: tuple[int, int] = (64, 96)) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, (*hw, 3), dtype=np.uint8)


def resized_logits(network_image: np.ndarray[Any, Any]) -> Tensor:
    x = torch.from_numpy(network_image).float().permute(2, 0, 1)[None]
    logits = Waves()((x - 127.0) / 50.0)
    return nn.functional.interpolate(
        logits, network_image.shape[:2], mode="bilinear", align_corners=False
    )


@pytest.mark.parametrize("image_hw", [(64, 96), (480, 640), (31, 200), (1, 1), (129, 7)])
def test_logits_are_resized_to_the_image_before_the_argmax(image_hw: tuple[int, int]) -> None:
    network_image = image()
    got = predictor().predict(network_image, image_hw, ResizeRule("stretch"))
    logits = resized_logits(network_image)
    want = nn.functional.interpolate(logits, image_hw, mode="bilinear", align_corners=False)
    assert got.image.shape == image_hw
    assert np.mean(got.image == want.argmax(1)[0].numpy()) >= 0.999
    np.testing.assert_array_equal(got.network, logits.argmax(1)[0].numpy())


def test_letterbox_padding_is_cut_off_before_resizing() -> None:
    network_image = image((96, 96))  # a 480x640 image lies in its upper 72 rows
    got = predictor((96, 96)).predict(network_image, (480, 640), ResizeRule("letterbox"))
    logits = resized_logits(network_image)[:, :, :72]
    want = nn.functional.interpolate(logits, (480, 640), mode="bilinear", align_corners=False)
    assert np.mean(got.image == want.argmax(1)[0].numpy()) >= 0.999


def row(miou: float, *iou: float | None) -> dict[str, Any]:
    return {"miou": miou, "iou": list(iou)}


def test_the_gate_takes_the_form_that_lost_most() -> None:
    rows = [row(80.0, 90.0, 70.0), row(79.9, 90.0, 69.8), row(78.5, 91.0, 66.0)]
    gate, lost = gate_from_rows(rows, ("rice", "weed"), max_drop=1.0)
    assert gate.drop == pytest.approx(1.5)
    assert not gate.passed
    assert lost == [{"class": "weed", "drop": pytest.approx(4.0)}]


def test_a_loss_of_exactly_the_limit_passes() -> None:
    gate, _ = gate_from_rows([row(80.0, 80.0), row(79.0, 79.0)], ("rice",), max_drop=1.0)
    assert gate.passed


def test_a_gain_passes_and_is_a_negative_drop() -> None:
    gate, lost = gate_from_rows([row(80.0, 80.0), row(80.5, 80.5)], ("rice",), max_drop=0.0)
    assert (gate.passed, gate.drop) == (True, pytest.approx(-0.5))
    assert lost == []


def test_a_score_that_is_not_a_number_fails_the_gate() -> None:
    gate, _ = gate_from_rows([row(80.0, 80.0), row(math.nan, None)], ("rice",), max_drop=1.0)
    assert not gate.passed
    assert math.isfinite(gate.drop)
