"""Resizing: OpenCV is the independent expectation, small cases are computed by hand."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from engines.errors import ConfigError, InputError
from engines.resize import (
    ResizeRule,
    labels_at_image_size,
    network_image_from_image,
    resize_bilinear,
    resize_nearest,
)

STRETCH, LETTERBOX = ResizeRule("stretch"), ResizeRule("letterbox")
SIDE = st.integers(1, 150)


def noise(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def opencv(image: NDArray[np.uint8], hw: tuple[int, int]) -> NDArray[np.int64]:
    resized = cv2.resize(image, (hw[1], hw[0]), interpolation=cv2.INTER_LINEAR)
    return resized.reshape(*hw, image.shape[2]).astype(np.int64)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ((480, 640), (512, 512)),
        ((480, 640), (384, 512)),
        ((228, 435), (268, 512)),
        ((1500, 2000), (512, 512)),
        ((1080, 1920), (288, 512)),
        ((1024, 1024), (512, 512)),
        ((64, 64), (512, 512)),
        ((1, 300), (512, 1)),
    ],
)
def test_bilinear_is_opencv_on_most_pixels_and_nowhere_further_than_one_level(
    source: tuple[int, int], target: tuple[int, int]
) -> None:
    image = noise(*source, 3)
    difference = np.abs(resize_bilinear(image, target) - opencv(image, target))
    assert difference.max() <= 1
    # All of them with OpenCV 5.0 on x86; other builds round the last bit in another way.
    assert (difference == 0).mean() > 0.85


@settings(max_examples=150, deadline=None)
@given(SIDE, SIDE, SIDE, SIDE, st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_bilinear_is_within_one_level_of_opencv_for_any_size_and_number_of_channels(
    height: int, width: int, to_height: int, to_width: int, channels: int, seed: int
) -> None:
    image = noise(height, width, channels, seed=seed)
    resized = resize_bilinear(image, (to_height, to_width))
    assert resized.shape == (to_height, to_width, channels)
    assert resized.dtype == np.uint8
    assert resized.flags.c_contiguous
    assert np.abs(resized - opencv(image, (to_height, to_width))).max() <= 1


def test_bilinear_halving_is_the_mean_of_four() -> None:
    image = np.array([[10, 20, 0, 0], [30, 44, 0, 255]], np.uint8)[:, :, np.newaxis]
    # (10 + 20 + 30 + 44) / 4 = 26, 255 / 4 = 63.75
    assert resize_bilinear(image, (1, 2))[:, :, 0].tolist() == [[26, 64]]


def test_bilinear_doubling_mixes_three_to_one_and_repeats_the_edges() -> None:
    image = np.array([[0, 100]], np.uint8)[:, :, np.newaxis]
    assert resize_bilinear(image, (1, 4))[:, :, 0].tolist() == [[0, 25, 75, 100]]
    assert resize_bilinear(image.transpose(1, 0, 2), (4, 1))[:, 0, 0].tolist() == [0, 25, 75, 100]


def test_bilinear_shrinks_by_picking_the_two_middle_pixels_without_antialiasing() -> None:
    image = np.array([[255, 255, 255, 0, 100, 255, 255, 255]], np.uint8)[:, :, np.newaxis]
    assert resize_bilinear(image, (1, 1)).item() == 50


def test_bilinear_keeps_a_constant_image_at_every_level() -> None:
    levels = np.arange(256, dtype=np.uint8)
    image = np.broadcast_to(levels, (7, 9, 256))
    assert (resize_bilinear(image, (13, 5)) == levels).all()


@pytest.mark.parametrize("hw", [(512, 512), (90, 120), (31, 33)])
def test_bilinear_takes_any_memory_layout_and_leaves_the_image_alone(hw: tuple[int, int]) -> None:
    image = noise(90, 120, 3)
    kept = image.copy()
    expected = resize_bilinear(image, hw)
    assert (image == kept).all()
    image.flags.writeable = False
    assert not np.shares_memory(expected, image)

    backwards = np.ascontiguousarray(image[:, :, ::-1])[:, :, ::-1]
    upside_down = np.ascontiguousarray(image[::-1, ::-1])[::-1, ::-1]
    for same in (backwards, upside_down, np.asfortranarray(image)):
        resized = resize_bilinear(same, hw)
        assert (resized == expected).all()
        assert resized.flags.c_contiguous
        assert resized.flags.writeable
        assert not np.shares_memory(resized, same)


def test_nearest_takes_the_label_under_the_pixel_centre() -> None:
    labels = np.array([[0, 1, 2, 3, 4]], np.uint8)
    # Centres at 0.833, 2.5 and 4.167 of 5.
    assert resize_nearest(labels, (1, 3)).tolist() == [[0, 2, 4]]
    # Centres at 0.31, 0.94, 1.56, 2.19, 2.81, 3.44, 4.06 and 4.69.
    assert resize_nearest(labels, (2, 8)).tolist() == [[0, 0, 1, 2, 2, 3, 4, 4]] * 2
    assert resize_nearest(labels.T, (3, 1)).ravel().tolist() == [0, 2, 4]


@settings(max_examples=50, deadline=None)
@given(SIDE, SIDE, SIDE, SIDE)
def test_nearest_is_opencv_nearest_exact(h: int, w: int, to_h: int, to_w: int) -> None:
    labels = noise(h, w)
    expected = cv2.resize(labels, (to_w, to_h), interpolation=cv2.INTER_NEAREST_EXACT)
    differing = np.count_nonzero(
        resize_nearest(labels, (to_h, to_w)) != expected.reshape(to_h, to_w)
    )
    # OpenCV rounds the step to 16 bits, so that a centre on a border of pixels can fall either way.
    assert differing == 0 or any(
        (2 * i + 1) * size % (2 * output) == 0
        for size, output in ((h, to_h), (w, to_w))
        for i in range(output)
    )


def test_nearest_returns_new_memory_even_at_the_same_size() -> None:
    labels = noise(5, 6)
    same = resize_nearest(labels, (5, 6))
    assert (same == labels).all()
    assert not np.shares_memory(same, labels)


@pytest.mark.parametrize(
    ("image_hw", "input_hw", "fitted"),
    [
        ((480, 640), (512, 512), (384, 512)),
        ((640, 480), (512, 512), (512, 384)),
        ((228, 435), (512, 512), (268, 512)),  # 228 * 512 / 435 = 268.4
        ((3, 4), (6, 6), (5, 6)),  # 4.5 is rounded up
        ((10, 10), (4, 8), (4, 4)),
        ((1, 3000), (512, 512), (1, 512)),  # 0.17 would vanish
        ((512, 512), (512, 512), (512, 512)),
    ],
)
def test_letterbox_fits_inside_and_keeps_the_ratio(
    image_hw: tuple[int, int], input_hw: tuple[int, int], fitted: tuple[int, int]
) -> None:
    assert LETTERBOX.fitted_hw(image_hw, input_hw) == fitted
    assert STRETCH.fitted_hw(image_hw, input_hw) == input_hw


@given(SIDE, SIDE, SIDE, SIDE)
def test_letterbox_fills_one_side_and_never_exceeds_the_other(
    height: int, width: int, to_height: int, to_width: int
) -> None:
    fitted = LETTERBOX.fitted_hw((height, width), (to_height, to_width))
    assert 1 <= fitted[0] <= to_height
    assert 1 <= fitted[1] <= to_width
    assert fitted[0] == to_height or fitted[1] == to_width


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(ConfigError, match="resize rule 'crop'; expected stretch or letterbox"):
        ResizeRule("crop")  # type: ignore[arg-type]


def test_letterbox_pads_right_and_bottom_with_one_value_for_each_channel() -> None:
    image = np.full((2, 4, 3), 200, np.uint8)
    wide = network_image_from_image(image, (4, 4), LETTERBOX, (1, 2, 3))
    assert (wide[:2] == 200).all()
    assert (wide[2:] == (1, 2, 3)).all()
    tall = network_image_from_image(image.transpose(1, 0, 2), (4, 4), LETTERBOX, (1, 2, 3))
    assert (tall[:, :2] == 200).all()
    assert (tall[:, 2:] == (1, 2, 3)).all()


def test_stretch_is_plain_resizing() -> None:
    image = noise(20, 30, 3)
    stretched = network_image_from_image(image, (16, 16), STRETCH, (0, 0, 0))
    assert np.abs(stretched - opencv(image, (16, 16))).max() <= 1


def test_network_image_never_shares_memory_with_the_image() -> None:
    image = noise(16, 16, 3)
    for rule in (STRETCH, LETTERBOX):
        assert not np.shares_memory(
            network_image_from_image(image, (16, 16), rule, (0, 0, 0)), image
        )


def test_labels_come_back_to_the_image_without_the_padding() -> None:
    labels = np.full((4, 4), 9, np.uint8)
    labels[:2] = [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert labels_at_image_size(labels, (2, 4), LETTERBOX).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert labels_at_image_size(labels, (1, 2), LETTERBOX).tolist() == [[5, 7]]
    assert 9 in labels_at_image_size(labels, (2, 4), STRETCH)


@pytest.mark.parametrize("rule", [STRETCH, LETTERBOX])
@pytest.mark.parametrize("image_hw", [(48, 64), (64, 48), (200, 37), (16, 16), (1, 90)])
def test_an_image_of_two_halves_comes_back_with_its_border_in_place(
    rule: ResizeRule, image_hw: tuple[int, int]
) -> None:
    image = np.zeros((*image_hw, 1), np.uint8)
    image[:, image_hw[1] // 2 :] = 1
    seen = network_image_from_image(image * 255, (32, 32), rule, (0,))[:, :, 0]
    back = labels_at_image_size((seen > 127).astype(np.uint8), image_hw, rule)
    wrong_columns = np.count_nonzero((back != image[:, :, 0]).any(axis=0))
    assert wrong_columns <= image_hw[1] / 32 + 1


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (
            np.zeros((4, 4, 3), np.float32),
            r"array of float32 with shape \(4, 4, 3\); expected an im",
        ),
        (np.zeros((4, 4), np.uint8), r"shape \(4, 4\); expected an image \(H, W, C\) of uint8"),
        (np.zeros((0, 4, 3), np.uint8), "expected at least one pixel"),
        ([[1]], "object of type list"),
    ],
)
def test_what_is_no_image_is_refused(image: NDArray[np.uint8], message: str) -> None:
    with pytest.raises(InputError, match=message):
        resize_bilinear(image, (8, 8))
    with pytest.raises(InputError, match=message):
        network_image_from_image(image, (8, 8), STRETCH, (0, 0, 0))


@pytest.mark.parametrize("labels", [np.zeros((4, 4), np.int64), np.zeros((1, 4, 4), np.uint8)])
def test_what_is_no_labels_is_refused(labels: NDArray[np.uint8]) -> None:
    with pytest.raises(InputError, match=r"expected labels \(H, W\) of uint8"):
        resize_nearest(labels, (8, 8))
    with pytest.raises(InputError, match=r"expected labels \(H, W\) of uint8"):
        labels_at_image_size(labels, (8, 8), STRETCH)


def test_labels_without_a_pixel_are_refused() -> None:
    with pytest.raises(InputError, match="expected at least one pixel"):
        resize_nearest(np.zeros((0, 4), np.uint8), (8, 8))


def test_a_size_of_zero_is_refused() -> None:
    with pytest.raises(InputError, match=r"size \(0, 8\); expected \(height, width\)"):
        resize_bilinear(noise(4, 4, 3), (0, 8))
    with pytest.raises(InputError, match=r"size \(8, 0\); expected"):
        LETTERBOX.fitted_hw((4, 4), (8, 0))


def test_padding_values_must_match_the_channels() -> None:
    with pytest.raises(InputError, match="4 channels and 3 padding values"):
        network_image_from_image(noise(4, 4, 4), (8, 8), STRETCH, (0, 0, 0))
