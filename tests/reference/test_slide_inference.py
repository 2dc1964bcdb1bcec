"""Sliding windows against mmsegmentation's own slide_inference and postprocessing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmseg.models import EncoderDecoder
from torch import Tensor

from engines.evaluation.resized_logits import labels_from_logits
from engines.evaluation.sliding import Windows, logit_bands

CLASSES = 7


def network(images: Tensor) -> Tensor:
    """Logits that depend on neighbours and on the window's edges, as a network's do."""
    weight = torch.randn(CLASSES, 3, 5, 5, generator=torch.Generator().manual_seed(3))
    return F.conv2d(images / 255 - 0.5, weight, padding=2)


def logits_of(batch: np.ndarray) -> np.ndarray:
    return network(torch.from_numpy(batch).permute(0, 3, 1, 2).float()).numpy()


def mmsegmentation_logits(image: np.ndarray, windows: Windows) -> Tensor:
    """What `EncoderDecoder.slide_inference` makes of the same windows."""
    test_cfg = SimpleNamespace(stride=windows.stride, crop_size=windows.size)
    model: Any = SimpleNamespace(
        test_cfg=test_cfg,
        out_channels=CLASSES,
        encode_decode=lambda images, _: network(images),
    )
    inputs = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    return EncoderDecoder.slide_inference(model, inputs, [{}])


@pytest.mark.parametrize(
    ("hw", "size", "stride"),
    [
        ((100, 141), (64, 64), (42, 42)),
        ((64, 200), (64, 96), (43, 64)),
        ((130, 97), (64, 96), (64, 96)),
        ((65, 64), (64, 64), (10, 10)),
    ],
)
def test_averaged_logits_and_labels_are_mmsegmentations(hw: Any, size: Any, stride: Any) -> None:
    image = np.random.default_rng(1).integers(0, 256, (*hw, 3), dtype=np.uint8)
    windows = Windows(size, stride)
    expected = mmsegmentation_logits(image, windows)
    found = np.concatenate(list(logit_bands(logits_of, image, windows, batch=3)), axis=1)
    # Convolutions round differently in batches of 3: 2e-6 was seen.
    np.testing.assert_allclose(found, expected[0].numpy(), atol=2e-5)


@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize("hw", [(301, 211), (31, 40), (1, 1), (64, 97)])
def test_labels_of_resized_logits_are_pytorchs(hw: Any, corners: bool) -> None:
    logits = torch.randn(1, CLASSES, 64, 97, generator=torch.Generator().manual_seed(1))
    # mmsegmentation's `resize`, which postprocess_result calls, is F.interpolate.
    resized = F.interpolate(logits, hw, mode="bilinear", align_corners=corners)
    labels = labels_from_logits(logits[0].numpy(), hw, align_corners=corners)
    assert np.mean(labels == resized[0].argmax(dim=0).numpy()) >= 0.9999
