"""Scales, mirror images and windows put together, in plain numpy."""

from __future__ import annotations

import numpy as np
import pytest

from engines.errors import ConfigError
from engines.evaluation.image_predictor import FlipPredictor, GraphWindows, ImagePredictor
from engines.evaluation.preparation import (
    RATIOS,
    Augmentation,
    ImageScale,
    Preparation,
    at_scale,
    augmentations,
    preparation_from_record,
    scale_text,
)
from engines.evaluation.resized_logits import ProbabilitySum
from engines.evaluation.sliding import Windows, windows_of_size
from engines.resize import ResizeRule, resize_bilinear


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits.astype(np.float64))
    return powers / powers.sum(axis=0)


class Leaning:
    """A graph whose logits lean to the left: mirroring its input is not mirroring its output."""

    name, has_logits, fixed_batch = "leaning", True, None

    def __init__(self) -> None:
        self.given: list = []

    def logits(self, batch: np.ndarray) -> np.ndarray:
        self.given.append(batch.copy())
        pixels = batch[..., 0].astype(np.float32) / 64
        place = np.linspace(0, 2, batch.shape[2], dtype=np.float32)
        return np.stack([pixels, pixels * 0 + 2, pixels * 0 + place + 1], axis=1)


# --- which predictions, and how large ---------------------------------------------------------


def test_the_augmentations_are_mmsegmentations() -> None:
    assert augmentations("none") == ((None, False),)
    assert augmentations("flip") == ((None, False), (None, True))
    assert [a.ratio for a in augmentations("ms")] == [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]
    both = augmentations("ms+flip")
    assert both == tuple(Augmentation(r, f) for r in RATIOS for f in (False, True))
    with pytest.raises(ConfigError, match=r"--tta flip\+ms; expected none, flip, ms, ms\+flip"):
        augmentations("flip+ms")


@pytest.mark.parametrize(
    ("scale", "image_hw", "ratio", "steps"),
    [
        # 2048 / 683 and 512 / 512: the shorter side decides, and 1 leaves it.
        (ImageScale((2048, 512)), (512, 683), 1.0, [(512, 683)]),
        # 512 / 375 = 1.36533: 375 * 1.36533 = 512, 500 * 1.36533 = 682.67.
        (ImageScale((2048, 512)), (375, 500), 1.0, [(512, 683)]),
        # A panorama of 100x1000: 2048 / 1000 is less than 512 / 100.
        (ImageScale((2048, 512)), (100, 1000), 1.0, [(205, 2048)]),
        # Of a ratio: int(2048 * 0.5) and int(512 * 0.5); 256 / 375 = 0.68267 -> 341.33.
        (ImageScale((2048, 512)), (375, 500), 0.5, [(256, 341)]),
        (ImageScale((512, 256), keep_ratio=False), (100, 90), 1.25, [(320, 640)]),
        # The image's own size, halves rounded up: 37.5 and 50.
        (ImageScale(), (75, 100), 0.5, [(38, 50)]),
        (ImageScale(), (75, 100), 1.0, [(75, 100)]),
        # 11.25 and 17.5 become 11 and 18; then mmcv keeps the ratio: 11 / 9 * 14 = 17.1.
        (ImageScale(), (9, 14), 1.25, [(11, 17)]),
        (ImageScale((2048, 512), multiple=32), (375, 500), 1.0, [(512, 683), (512, 704)]),
        (ImageScale((2048, 512), multiple=32), (512, 512), 1.0, [(512, 512)]),
        (ImageScale(), (1, 3), 0.5, [(1, 2)]),
        (ImageScale((64, 1)), (100, 1000), 0.5, [(1, 1)]),
    ],
)
def test_sizes_are_those_worked_out_by_hand(
    scale: ImageScale, image_hw: tuple, ratio: float, steps: list
) -> None:
    assert scale.steps(image_hw, ratio) == steps


def test_without_a_ratio_the_test_scale_counts_and_with_one_the_augmentations() -> None:
    preparation = Preparation(ImageScale((40, 20)), ImageScale())
    assert preparation.steps((10, 20), None) == [(20, 40)]
    assert preparation.steps((10, 20), 1.0) == [(10, 20)]
    given = at_scale((20, 40))
    assert given.steps((10, 20), None) == [(20, 40)]
    assert given.steps((10, 20), 0.5) == [(10, 20)]


def test_an_image_is_resized_step_by_step_and_then_mirrored() -> None:
    image = noise(10, 14)
    preparation = Preparation(ImageScale((30, 20), multiple=8))
    found = preparation.prepared(image, Augmentation(None, True))
    expected = resize_bilinear(resize_bilinear(image, (20, 28)), (24, 32))[:, ::-1]
    assert found.tolist() == expected.tolist()
    assert Preparation().prepared(image, Augmentation(None, False)) is image


def test_a_record_is_read_back_and_an_altered_one_means_the_images_own_size() -> None:
    preparation = Preparation(ImageScale((2048, 512), True, 32), ImageScale((9, 8), False))
    assert preparation_from_record({"mode": "slide", **preparation.record()}) == preparation
    assert preparation_from_record({"mode": "slide"}) == Preparation()
    for limits in ([0, 5], [5], "ab", [5, 5.0], [True, 5], [8193, 5], 7, None):
        record = {"tested": {"limits": limits, "keep_ratio": "x", "multiple": -3}}
        assert preparation_from_record(record) == Preparation()
    assert preparation_from_record({"tested": [], "augmented": 5}) == Preparation()


def test_scales_are_told_in_words() -> None:
    assert scale_text(ImageScale()) == "their own size"
    text = "2048x512 (width x height) with their ratio kept, sides rounded up to 32"
    assert scale_text(ImageScale((2048, 512), True, 32)) == text
    assert scale_text(ImageScale((8, 4), False)) == "8x4 (width x height)"


# --- sums ---------------------------------------------------------------------------------------


def test_probabilities_are_added_and_not_logits() -> None:
    # One prediction is sure of class 0, two lean to class 1: their logits' sum would be class 0.
    total = ProbabilitySum((1, 1))
    for logits in ([9.0, 0.0], [0.0, 2.0], [0.0, 2.0]):
        total.add(np.array(logits, np.float32).reshape(2, 1, 1))
    sure, leaning = 1 / (1 + np.exp(-9)), 1 / (1 + np.exp(-2))
    expected = [sure + 2 * (1 - leaning), 1 - sure + 2 * leaning]
    np.testing.assert_allclose(total.values.ravel(), expected, rtol=1e-6)
    assert total.labels().tolist() == [[1]]


def test_large_logits_do_not_overflow() -> None:
    total = ProbabilitySum((1, 1))
    total.add(np.array([1e4, -1e4, 1e4], np.float32).reshape(3, 1, 1))
    assert total.values.ravel().tolist() == [0.5, 0.0, 0.5]


def test_a_mirrored_prediction_is_turned_back_before_it_is_resized() -> None:
    logits = np.random.default_rng(0).normal(size=(3, 2, 5)).astype(np.float32)
    mirrored, plain = ProbabilitySum((7, 11)), ProbabilitySum((7, 11))
    mirrored.add(logits, flip=True)
    plain.add(np.ascontiguousarray(logits[:, :, ::-1]))
    assert mirrored.values.tolist() == plain.values.tolist()


def test_many_classes_are_added_a_few_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = np.random.default_rng(0).normal(size=(5, 9, 8)).astype(np.float32)
    whole = ProbabilitySum((13, 17), align_corners=True)
    whole.add(logits)
    monkeypatch.setattr("engines.evaluation.resized_logits._BLOCK_VALUES", 100)
    strips = ProbabilitySum((13, 17), align_corners=True)
    strips.add(logits)
    np.testing.assert_array_equal(strips.values, whole.values)
    np.testing.assert_allclose(whole.values.sum(axis=0), 1, rtol=1e-6)


# --- a graph of fixed size ---------------------------------------------------------------------


def test_windows_over_scales_and_mirror_images_are_averaged() -> None:
    image, windows = noise(8, 12), Windows((4, 6), (3, 4))
    predictor = ImagePredictor(GraphWindows(Leaning(), windows, pad_value=(7, 7, 7)), tta="ms+flip")
    expected = np.zeros((3, 8, 12))
    calls = 0
    for ratio in RATIOS:
        hw = int(8 * ratio), int(12 * ratio)  # no rounding, and none smaller than a window
        for flip in (False, True):
            scaled = resize_bilinear(image, hw)
            scaled = scaled[:, ::-1] if flip else scaled
            sums, visits = np.zeros((3, *hw)), np.zeros(hw)
            for top in {min(t, hw[0] - 4) for t in range(0, hw[0] - 1, 3)}:
                for left in {min(x, hw[1] - 6) for x in range(0, hw[1] - 2, 4)}:
                    part = np.ascontiguousarray(scaled[top : top + 4, left : left + 6])
                    sums[:, top : top + 4, left : left + 6] += Leaning().logits(part[None])[0]
                    visits[top : top + 4, left : left + 6] += 1
                    calls += 1
            logits = sums / visits
            expected += softmax(resized(logits[:, :, ::-1] if flip else logits, (8, 12)))
    found = predictor.summed(image)
    np.testing.assert_allclose(found.values, expected, rtol=1e-5)
    assert predictor.labels(image).tolist() == expected.argmax(axis=0).tolist()
    assert predictor.call_count == 2 * calls
    # The sum at the image's size, and the logits at the largest scale, 14x21.
    assert predictor.cost((8, 12)) == (12, calls, 8 * 12 + 14 * 21)


def resized(logits: np.ndarray, hw: tuple) -> np.ndarray:
    """F.interpolate(mode="bilinear", align_corners=False) by two matrices."""

    def weights(source: int, output: int) -> np.ndarray:
        matrix = np.zeros((output, source))
        for i in range(output):
            place = max((i + 0.5) * source / output - 0.5, 0.0)
            low = min(int(place), source - 1)
            matrix[i, low] += 1 - (place - low)
            matrix[i, min(low + 1, source - 1)] += place - low
        return matrix

    return weights(logits.shape[1], hw[0]) @ logits @ weights(logits.shape[2], hw[1]).T


def test_what_does_not_fill_a_window_is_padded_at_several_scales_and_enlarged_at_one() -> None:
    image = noise(4, 6)
    graph = Leaning()
    windows = Windows((4, 6), (4, 6))
    padded = ImagePredictor(GraphWindows(graph, windows, pad_value=(1, 2, 3)), tta="ms")
    padded.labels(image)
    small = graph.given[0][0]  # ratio 0.5: 2x3 in the upper left corner
    assert small[:2, :3].tolist() == resize_bilinear(image, (2, 3)).tolist()
    assert small[2:].tolist() == [[[1, 2, 3]] * 6] * 2
    assert small[:2, 3:].tolist() == [[[1, 2, 3]] * 3] * 2
    graph = Leaning()
    ImagePredictor(GraphWindows(graph, windows)).labels(noise(2, 3))
    assert graph.given[0][0].tolist() == resize_bilinear(noise(2, 3), (4, 6)).tolist()


def test_padding_has_no_part_in_the_logits() -> None:
    graph = GraphWindows(Leaning(), Windows((4, 6), (2, 3)), pad_value=(9, 9, 9))
    for hw in ((2, 3), (9, 3), (2, 14), (4, 6)):
        found = np.concatenate(list(graph.bands(noise(*hw))), axis=1)
        assert found.shape == (3, *hw)
        np.testing.assert_array_equal(found[0], noise(*hw)[..., 0].astype(np.float32) / 64)


def test_every_prediction_is_reported() -> None:
    steps: list = []
    graph = GraphWindows(Leaning(), Windows((4, 6), (4, 6)))
    predictor = ImagePredictor(graph, tta="flip", on_step=lambda: steps.append(1))
    predictor.labels(noise(4, 6))
    predictor.labels(noise(8, 6))
    assert len(steps) == 4
    assert (predictor.image_count, predictor.call_count) == (2, 6)


@pytest.mark.parametrize("rule", ["stretch", "letterbox"])
def test_the_mirror_image_fills_the_network_as_the_image_does(rule: str) -> None:
    # 6x9 letterboxed into 8x8: 5 rows and 8 columns; padding stays below.
    graph, network_image = Leaning(), noise(8, 8)
    fitted = (8, 8) if rule == "stretch" else (5, 8)
    found = FlipPredictor(graph).predict(network_image, (6, 9), ResizeRule(rule))
    plain, mirrored = graph.given[0][0], graph.given[1][0]
    assert plain.tolist() == network_image.tolist()
    inside = network_image[: fitted[0], : fitted[1]]
    assert mirrored[: fitted[0], : fitted[1]].tolist() == inside[:, ::-1].tolist()
    assert mirrored[fitted[0] :].tolist() == network_image[fitted[0] :].tolist()
    one = Leaning().logits(inside[None])[0]
    other = Leaning().logits(np.ascontiguousarray(inside[:, ::-1])[None])[0][:, :, ::-1]
    network = (softmax(one) + softmax(other)).argmax(axis=0)
    assert found.network[: fitted[0], : fitted[1]].tolist() == network.tolist()
    image = softmax(resized(one, (6, 9))) + softmax(resized(other, (6, 9)))
    assert found.image.tolist() == image.argmax(axis=0).tolist()
    assert found.image.dtype == found.network.dtype == np.uint8


def test_a_graph_of_labels_alone_is_refused() -> None:
    graph = Leaning()
    graph.has_logits = False
    with pytest.raises(ConfigError, match=r"leaning, which gives labels only.*--output both"):
        FlipPredictor(graph)
    with pytest.raises(ConfigError, match=r"leaning, which gives labels only.*--output both"):
        GraphWindows(graph, Windows((4, 6), (2, 3)))


def test_windows_are_made_smaller_for_a_small_image() -> None:
    windows = Windows((4, 6), (3, 5))
    assert windows.within((9, 9)) == windows
    assert windows.within((2, 9)) == Windows((2, 6), (2, 5))
    assert windows.within((2, 3)) == Windows((2, 3), (2, 3))
    assert windows.count((9, 14)) == 3 * 3  # rows at 0, 3, 5; columns at 0, 5, 8
    assert windows_of_size((9, 12)) == Windows((9, 12), (6, 8))
