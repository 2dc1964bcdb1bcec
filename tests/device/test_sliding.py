from __future__ import annotations

import math

import numpy as np
import pytest

from engines.errors import ConfigError, InputError
from engines.evaluation.evaluate import Prediction
from engines.evaluation.image_predictor import GraphWindows, ImagePredictor
from engines.evaluation.resized_logits import labels_from_logits
from engines.evaluation.sliding import Windows, logit_bands
from engines.resize import ResizeRule

CLASSES = 3


def position_logits(batch: np.ndarray) -> np.ndarray:
    """(N, 3, h, w) that depend on the pixel, its place in the window and the window's sum."""
    height, width = batch.shape[1:3]
    pixels = batch[..., 0].astype(np.float32)
    place = np.arange(height * width, dtype=np.float32).reshape(height, width)
    total = pixels.sum(axis=(1, 2), keepdims=True) / (height * width)
    return np.stack([pixels, total + place, pixels * 0 + 140.0], axis=1).astype(np.float32)


class Logits:
    """A predictor whose logits are `position_logits`."""

    name, has_logits, fixed_batch = "logits", True, None

    def logits(self, batch: np.ndarray) -> np.ndarray:
        return position_logits(batch)


def sliding(predictor: Logits, windows: Windows, *, batch: int = 1) -> ImagePredictor:
    return ImagePredictor(GraphWindows(predictor, windows, batch=batch))


def mmsegmentation_logits(image: np.ndarray, size: tuple, stride: tuple) -> np.ndarray:
    """slide_inference of mmsegmentation 1.2.2 in plain loops, float64, pixel by pixel."""
    height, width = image.shape[:2]
    rows = max(height - size[0] + stride[0] - 1, 0) // stride[0] + 1
    columns = max(width - size[1] + stride[1] - 1, 0) // stride[1] + 1
    sums = np.zeros((CLASSES, height, width))
    visits = np.zeros((height, width))
    for row in range(rows):
        for column in range(columns):
            bottom = min(row * stride[0] + size[0], height)
            right = min(column * stride[1] + size[1], width)
            top, left = max(bottom - size[0], 0), max(right - size[1], 0)
            window = position_logits(image[np.newaxis, top:bottom, left:right])[0]
            for y in range(top, bottom):
                for x in range(left, right):
                    sums[:, y, x] += window[:, y - top, x - left]
                    visits[y, x] += 1
    assert visits.min() > 0
    return sums / visits


def torch_bilinear(logits: np.ndarray, hw: tuple, *, corners: bool) -> np.ndarray:
    """F.interpolate(mode="bilinear") in plain loops."""
    found = np.zeros((len(logits), *hw))
    sizes = logits.shape[1:]
    for y in range(hw[0]):
        for x in range(hw[1]):
            taps = []
            for index, output, source in ((y, hw[0], sizes[0]), (x, hw[1], sizes[1])):
                if corners:
                    place = index * (source - 1) / (output - 1) if output > 1 else 0.0
                else:
                    place = max(0.0, (index + 0.5) * source / output - 0.5)
                first = math.floor(place)
                taps.append((first, min(first + 1, source - 1), place - first))
            (top, bottom, down), (left, right, across) = taps
            found[:, y, x] = (
                logits[:, top, left] * (1 - down) * (1 - across)
                + logits[:, top, right] * (1 - down) * across
                + logits[:, bottom, left] * down * (1 - across)
                + logits[:, bottom, right] * down * across
            )
    return found


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize(
    ("hw", "size", "stride"),
    [
        ((4, 6), (4, 6), (2, 3)),  # one window
        ((9, 14), (4, 6), (3, 4)),  # the last ones are shifted inside
        ((8, 12), (4, 6), (4, 6)),  # side by side
        ((5, 7), (4, 6), (1, 1)),
        ((4, 20), (4, 6), (2, 5)),  # one row of windows
        ((21, 6), (4, 6), (3, 2)),  # one column
    ],
)
def test_averaged_logits_are_mmsegmentations(
    hw: tuple, size: tuple, stride: tuple, batch: int
) -> None:
    image = noise(*hw)
    bands = list(logit_bands(position_logits, image, Windows(size, stride), batch=batch))
    found = np.concatenate(bands, axis=1)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, mmsegmentation_logits(image, size, stride), rtol=1e-6)


def test_labels_are_the_largest_of_the_averaged_logits() -> None:
    image = noise(9, 14)
    labels = sliding(Logits(), Windows((4, 6), (3, 4)), batch=3).labels(image)
    expected = mmsegmentation_logits(image, (4, 6), (3, 4)).argmax(axis=0)
    assert labels.dtype == np.uint8
    assert labels.tolist() == expected.tolist()
    assert set(labels.ravel()) == {0, 1, 2}


def test_windows_start_where_worked_out_by_hand() -> None:
    # 10 rows, windows of 4 every 3: 0, 3, 6. 11 rows: 0, 3, 6 and the last at 7 in place of 9.
    windows = Windows((4, 4), (3, 3))
    assert windows.starts((10, 11)) == ([0, 3, 6], [0, 3, 6, 7])
    assert windows.starts((4, 5)) == ([0], [0, 1])


def test_a_batch_holds_no_more_windows_than_asked_for() -> None:
    given: list = []

    def logits_of(batch: np.ndarray) -> np.ndarray:
        given.append(len(batch))
        return position_logits(batch)

    # 5 windows in each of 2 rows.
    list(logit_bands(logits_of, noise(6, 14), Windows((4, 6), (2, 2)), batch=2))
    assert given == [2, 2, 1, 2, 2, 1]


def test_bands_do_not_change_after_they_were_given() -> None:
    image = noise(9, 14)
    bands = logit_bands(position_logits, image, Windows((4, 6), (3, 4)))
    first = next(bands)
    before = first.copy()
    list(bands)
    assert first.tolist() == before.tolist()
    assert first.shape == (CLASSES, 3, 14)


def test_an_image_smaller_than_a_window_is_enlarged_with_its_ratio_kept() -> None:
    windows = Windows((4, 6), (2, 3))
    assert windows.image_hw((2, 6)) == (4, 12)
    assert windows.image_hw((8, 3)) == (16, 6)
    assert windows.image_hw((3, 4)) == (5, 6)  # 1.5 times: 4.5 is rounded up
    assert windows.image_hw((5, 9)) == (5, 9)
    assert windows.image_hw((1, 1)) == (6, 6)


def test_the_logits_of_an_enlarged_image_are_resized_back_before_the_labels_are_chosen() -> None:
    # Enlarged from 2x6 to 4x12. Nothing but constant rows, so every window is the same.
    image = np.repeat(np.array([[[0]], [[200]]], np.uint8), 6, axis=1).repeat(3, axis=2)
    seen: list = []

    class Seen(Logits):
        def logits(self, batch: np.ndarray) -> np.ndarray:
            seen.append(batch[0, :, 0, 0].tolist())
            pixels = batch[..., 0].astype(np.float32)
            return np.stack([pixels * 0 + 75.0, pixels], axis=1)

    labels = sliding(Seen(), Windows((4, 6), (2, 3))).labels(image)
    # OpenCV's rows at quarters: 0, 50, 150, 200. Back: means of two, 25 and 175, against 75.
    assert seen[0] == [0, 50, 150, 200]
    assert labels.tolist() == [[0] * 6, [1] * 6]


@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize("hw", [(3, 4), (7, 9), (150, 2), (1, 1), (5, 6)])
def test_logits_are_resized_as_pytorch_does_it(hw: tuple, corners: bool) -> None:
    logits = np.random.default_rng(2).normal(size=(CLASSES, 5, 6)).astype(np.float32)
    expected = torch_bilinear(logits, hw, corners=corners)
    best = np.sort(expected, axis=0)
    assert (best[-1] - best[-2]).min() > 1e-5  # no tie that rounding could decide
    labels = labels_from_logits(logits, hw, align_corners=corners)
    assert labels.tolist() == expected.argmax(axis=0).tolist()


def test_a_size_of_nothing_is_refused() -> None:
    with pytest.raises(InputError, match=r"size \(0, 4\)"):
        labels_from_logits(np.zeros((2, 3, 3), np.float32), (0, 4))


@pytest.mark.parametrize("stride", [(0, 3), (5, 3), (4, 7)])
def test_a_stride_that_leaves_gaps_or_stands_still_is_refused(stride: tuple) -> None:
    with pytest.raises(ConfigError, match="windows of 4x6 every"):
        Windows((4, 6), stride)


def test_an_image_smaller_than_a_window_has_no_bands() -> None:
    with pytest.raises(InputError, match="an image of 3x6 pixels for windows of 4x6"):
        list(logit_bands(position_logits, noise(3, 6), Windows((4, 6), (2, 3))))


def test_logits_that_are_not_as_large_as_the_window_are_refused() -> None:
    with pytest.raises(InputError, match=r"logits of shape \(1, 3, 2, 6\) for 1 windows"):
        list(
            logit_bands(
                lambda batch: position_logits(batch)[:, :, ::2],
                noise(4, 6),
                Windows((4, 6), (2, 3)),
            )
        )


def test_the_predictor_gives_the_same_labels_for_the_network_and_the_image() -> None:
    predictor = sliding(Logits(), Windows((4, 6), (3, 4)), batch=2)
    image = noise(9, 14)
    found = predictor.predict(image, (9, 14), ResizeRule("stretch"))
    assert isinstance(found, Prediction)
    expected = mmsegmentation_logits(image, (4, 6), (3, 4)).argmax(axis=0)
    assert found.image.tolist() == found.network.tolist() == expected.tolist()
    # Rows at 0, 3 and 5 (6 shifted back), columns at 0, 4 and 8.
    assert (predictor.name, predictor.call_count, predictor.image_count) == ("logits", 9, 1)


def test_the_predictor_refuses_an_image_that_was_resized() -> None:
    predictor = sliding(Logits(), Windows((4, 6), (3, 4)))
    with pytest.raises(InputError, match="an image of 9x14 that stands for one of 18x28"):
        predictor.predict(noise(9, 14), (18, 28), ResizeRule("stretch"))


def test_a_predictor_of_labels_alone_cannot_slide() -> None:
    predictor = Logits()
    predictor.has_logits = False
    with pytest.raises(ConfigError, match=r"logits, which gives labels only.*--output both"):
        sliding(predictor, Windows((4, 6), (3, 4)))
