"""What is measured of an image, which are copies, and which are chosen: by hand and by OpenCV."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from picture_files import picture
from PIL import Image

from calibration.image_set.choice import chosen_indices
from calibration.image_set.copies import without_copies
from calibration.image_set.coverage import Choice, coverage_rows, stratum_counts, stratum_title
from calibration.image_set.facts import (
    ImageFacts,
    Reading,
    facts_from_file,
    light_of_grey,
    working_grey,
)
from calibration.image_set.perceptual_hash import different_bits, perceptual_hash
from calibration.image_set.strata import Strata, Stratum, strata_of_images
from engines.errors import DatasetError
from engines.resize import resize_bilinear

Grey = NDArray[np.uint8]


def facts(
    name: str,
    *,
    look: int = 0,
    sha256: str | None = None,
    light: tuple[float, float, float] = (0, 0, 0),
    classes: tuple[int, ...] | None = None,
) -> ImageFacts:
    return ImageFacts(Path(name), sha256 or f"sha of {name}", look, *light, classes)


def scene(seed: int, hw: tuple[int, int] = (192, 256)) -> NDArray[np.uint8]:
    """Blobs of colour with fine grain, (H, W, 3)."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    soft = np.asarray(cv2.resize(coarse, hw[::-1], interpolation=cv2.INTER_CUBIC), np.int16)
    return np.clip(soft + rng.integers(-9, 10, (*hw, 3)), 0, 255).astype(np.uint8)


def grey_noise(seed: int, hw: tuple[int, int]) -> Grey:
    return np.random.default_rng(seed).integers(0, 256, hw, dtype=np.uint8)


# --- the perceptual hash ----------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_the_hash_has_a_bit_for_each_low_frequency_above_their_median(seed: int) -> None:
    grey = grey_noise(seed, (32, 32))
    low = cv2.dct(grey.astype(np.float64))[:8, :8]
    low[0] /= np.sqrt(0.5)  # OpenCV's transform is orthonormal: its first row and column are
    low[:, 0] /= np.sqrt(0.5)  # smaller than those of the plain sum of cosines
    median = np.median(low.ravel()[1:])
    expected = int("".join("1" if value > median else "0" for value in low.ravel()), 2)
    assert perceptual_hash(grey) == expected


def test_a_plain_picture_has_the_hash_of_its_brightness_alone() -> None:
    for level in (1, 77, 255):
        assert perceptual_hash(np.full((40, 50), level, np.uint8)) == 1 << 63


@given(st.integers(0, 2**64 - 1), st.lists(st.integers(0, 2**64 - 1), max_size=5))
def test_different_bits_are_those_of_the_exclusive_or(one: int, others: list[int]) -> None:
    counted = different_bits(one, np.array(others, np.uint64))
    assert counted.tolist() == [(one ^ other).bit_count() for other in others]


def test_the_same_photo_stays_within_ten_bits_and_others_do_not() -> None:
    photos = [scene(seed) for seed in range(12)]
    looks = [perceptual_hash(working_grey(photo)) for photo in photos]
    for photo, look in zip(photos, looks, strict=True):
        file = io.BytesIO()
        Image.fromarray(photo).save(file, "jpeg", quality=40)
        changed = {
            "compressed": np.asarray(Image.open(file)),
            "half": resize_bilinear(photo, (96, 128)),
            "twice": resize_bilinear(photo, (384, 512)),
            "darker": (photo * 0.7).astype(np.uint8),
        }
        for name, picture_now in changed.items():
            bits = (perceptual_hash(working_grey(picture_now)) ^ look).bit_count()
            assert bits <= 10, name
    apart = [(a ^ b).bit_count() for i, a in enumerate(looks) for b in looks[:i]]
    assert min(apart) > 10


# --- light, sharpness, classes ------------------------------------------------------------------


def test_light_by_hand() -> None:
    halves = np.repeat(np.array([[10, 30]], np.uint8), 2, axis=1).repeat(4, axis=0)  # 10 10 30 30
    # Inside the border 4 - 2 columns: the Laplacian is +20 left of the step and -20 right of it.
    assert light_of_grey(halves) == (20.0, 10.0, 400.0 / 100.0)
    assert light_of_grey(np.full((5, 5), 9, np.uint8)) == (9.0, 0.0, 0.0)


@pytest.mark.parametrize("seed", range(3))
def test_sharpness_is_opencvs_variance_of_the_laplacian_over_the_pictures_own(seed: int) -> None:
    grey = grey_noise(seed, (60, 80))
    expected = cv2.Laplacian(grey, cv2.CV_64F)[1:-1, 1:-1].var() / grey.var()
    brightness, contrast, sharpness = light_of_grey(grey)
    assert sharpness == pytest.approx(expected)
    assert (brightness, contrast) == pytest.approx((grey.mean(), grey.std()))


def test_sharpness_hardly_depends_on_the_size_or_the_light_but_on_blur() -> None:
    photo = scene(1, (768, 1024))
    sharp = light_of_grey(working_grey(photo))[2]
    halved = light_of_grey(working_grey(resize_bilinear(photo, (384, 512))))[2]
    darker = light_of_grey(working_grey((photo * 0.5).astype(np.uint8)))[2]
    blurred = light_of_grey(working_grey(np.asarray(cv2.GaussianBlur(photo, (0, 0), 12))))[2]
    assert halved == pytest.approx(sharp, rel=0.15)
    assert darker == pytest.approx(sharp, rel=0.15)
    assert blurred < 0.7 * sharp


@pytest.mark.parametrize(
    ("hw", "expected"),
    [
        ((480, 640), (222, 296)),
        ((16, 16), (256, 256)),
        ((1, 1), (256, 256)),
        ((1, 9000), (3, 24286)),
    ],
)
def test_the_working_picture_has_some_65536_pixels_and_its_ratio(
    hw: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert working_grey(np.zeros((*hw, 3), np.uint8)).shape == expected


def test_grey_is_luma_of_three_channels_and_the_mean_of_others() -> None:
    red = np.zeros((256, 256, 3), np.uint8)
    red[..., 0] = 200
    assert (working_grey(red) == 60).all()  # 0.299 * 200, whole
    bands = np.stack([np.full((256, 256), level, np.uint8) for level in (10, 20, 30, 40, 55)], 2)
    assert (working_grey(bands) == 31).all()


def saved_mask(path: Path, rows: list[list[int]]) -> Path:
    Image.fromarray(np.array(rows, np.uint8)).save(path)
    return path


def test_classes_are_the_indices_anywhere_in_the_mask_without_255(tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    Image.fromarray(picture(2, 3)).save(image)
    mask = saved_mask(tmp_path / "mask.png", [[0, 2, 255], [2, 254, 0]])
    assert facts_from_file(image, mask, reading=Reading()).classes == (0, 2, 254)
    zero = Reading(reduce_zero_label=True)
    assert facts_from_file(image, mask, reading=zero).classes == (1, 253)
    assert facts_from_file(image, reading=zero).classes is None


def test_a_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    Image.fromarray(picture(2, 3)).save(image)
    mask = saved_mask(tmp_path / "mask.png", [[0, 1], [0, 1]])
    with pytest.raises(DatasetError, match=r"mask '.*' of 2x2 pixels for an image of 3x2;"):
        facts_from_file(image, mask, reading=Reading())


# --- copies -----------------------------------------------------------------------------------


def test_copies_and_near_copies_are_left_out_and_name_the_image_they_are_like() -> None:
    images = [
        facts("a", look=0b0000),
        facts("b", look=0b0011),  # 2 bits from a
        facts("c", look=0b1111),  # 4 from a, 2 from b, which is not kept
        facts("d", look=1 << 40, sha256="sha of a"),
        facts("e", look=0b1111 << 30),
        facts("f", look=1 << 63, sha256="sha of v"),
    ]
    validation = [facts("v", look=0b11111 << 30), facts("w", look=0b11111 << 50)]
    kept, left_out = without_copies(images, validation, near_bits=2)
    assert [image.path.name for image in kept] == ["a", "c"]
    assert [(item.path.name, item.reason, item.text) for item in left_out] == [
        ("b", "near duplicate", "looks like a (2 of 64 bits differ)"),
        ("d", "duplicate", "the same file as a"),
        ("e", "near validation", "looks like validation image v (1 of 64 bits differ)"),
        ("f", "validation", "the same file as validation image v"),
    ]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 2**8 - 1), max_size=80),
    st.lists(st.integers(0, 2**8 - 1), max_size=3),
    st.integers(0, 4),
)
def test_each_two_kept_are_apart_and_each_left_out_is_near_one(
    looks: list[int], of_validation: list[int], near: int
) -> None:
    images = [facts(f"{i}", look=look) for i, look in enumerate(looks)]
    validation = [facts(f"v{i}", look=look) for i, look in enumerate(of_validation)]
    kept, left_out = without_copies(images, validation, near_bits=near)
    assert sorted([i.path for i in kept] + [i.path for i in left_out]) == sorted(
        i.path for i in images
    )
    known = [image.look for image in kept] + of_validation
    for place, image in enumerate(kept):
        others = known[:place] + known[place + 1 :]
        assert all((image.look ^ other).bit_count() > near for other in others)
    for item in left_out:
        look = looks[int(item.path.name)]
        assert any((look ^ other).bit_count() <= near for other in known)


# --- strata and choice --------------------------------------------------------------------------


def test_images_are_divided_into_thirds_and_halves_and_equal_ones_stay_together() -> None:
    images = [facts(str(i), light=(10 * i, 5, -i)) for i in range(6)]
    strata = strata_of_images(images)
    assert [stratum.parts for stratum in strata.of_image] == [
        (0, 0, 2), (0, 0, 2), (1, 0, 1), (1, 0, 1), (2, 0, 0), (2, 0, 0),
    ]  # fmt: skip
    assert strata.limits["brightness"] == pytest.approx((50 / 3, 100 / 3))
    assert strata.limits["contrast"] == (5.0,)


A, B, C = (Stratum((0, 1), (0, 0, 0)), Stratum((0,), (1, 0, 0)), Stratum((0, 2), (2, 1, 2)))


def test_each_stratum_gives_one_and_then_the_one_with_most_images_per_chosen() -> None:
    strata = [A] * 7 + [B] * 3 + [C]
    images = [facts(f"{i}") for i in range(len(strata))]
    order = [strata[i] for i in chosen_indices(images, strata, count=11, seed=0)]
    # C has the rarest class, then A the next, B has none of its own. Then A 7/1, A 7/2, B 3/1,
    # A 7/3, A 7/4, B 3/2, A 7/5, A 7/6.
    assert order == [C, A, B, A, A, B, A, A, B, A, A]


def test_a_rare_class_is_chosen_before_a_large_stratum() -> None:
    strata = [B] * 50 + [A] * 30 + [C]
    images = [facts(f"{i}") for i in range(len(strata))]
    assert chosen_indices(images, strata, count=1, seed=0) == [80]
    assert {strata[i] for i in chosen_indices(images, strata, count=2, seed=0)} == {A, C}


def strata_strategy() -> st.SearchStrategy[list[Stratum]]:
    classes = st.none() | st.sets(st.integers(0, 4), max_size=3).map(lambda s: tuple(sorted(s)))
    parts = st.tuples(st.integers(0, 1), st.integers(0, 1), st.just(0))
    return st.lists(st.builds(Stratum, classes, parts), min_size=1, max_size=60)


@settings(max_examples=150, deadline=None)
@given(strata_strategy(), st.integers(1, 70), st.integers(0, 3))
def test_a_choice_covers_what_it_can_and_is_shared_out_by_adams_rule(
    strata: list[Stratum], count: int, seed: int
) -> None:
    images = [facts(f"{i}") for i in range(len(strata))]
    chosen = chosen_indices(images, strata, count=count, seed=seed)
    assert len(chosen) == len(set(chosen)) == min(count, len(strata))
    sizes, taken = Counter(strata), Counter(strata[i] for i in chosen)
    if count >= len(sizes):
        assert set(taken) == set(sizes)
        # No image could go to a stratum that is worse off than the one that gave it.
        for one in sizes:
            for other in sizes:
                if taken[one] < sizes[one] and taken[other] > 1:
                    assert sizes[one] / taken[one] <= sizes[other] / (taken[other] - 1)
    else:
        assert set(taken.values()) == {1}
    classes = {c for stratum in strata for c in stratum.classes or ()}
    if count >= len(classes):
        assert {c for stratum in taken for c in stratum.classes or ()} == classes


@settings(max_examples=60, deadline=None)
@given(strata_strategy(), st.integers(1, 70), st.randoms(use_true_random=False))
def test_a_smaller_choice_begins_a_larger_one_and_the_order_of_the_files_says_nothing(
    strata: list[Stratum], count: int, random: st.DataObject
) -> None:
    images = [facts(f"{i}") for i in range(len(strata))]
    everything = chosen_indices(images, strata, count=len(images), seed=7)
    assert chosen_indices(images, strata, count=count, seed=7) == everything[:count]
    places = list(range(len(images)))
    random.shuffle(places)  # type: ignore[attr-defined]
    shuffled = chosen_indices(
        [images[p] for p in places], [strata[p] for p in places], count=count, seed=7
    )
    assert [places[i] for i in shuffled] == everything[:count]


def test_with_fewer_images_than_strata_none_is_preferred_for_its_place() -> None:
    strata = [Stratum(None, (part, other, 0)) for part in range(3) for other in range(2)]
    images = [facts(f"{i}") for i in range(len(strata))]
    firsts = Counter(chosen_indices(images, strata, count=1, seed=s)[0] for s in range(600))
    assert set(firsts) == set(range(6))
    assert max(firsts.values()) < 150  # 100 each on average, with a standard deviation of 9


def test_the_seed_decides_within_a_stratum() -> None:
    images, strata = [facts(f"{i}") for i in range(40)], [B] * 40
    orders = {tuple(chosen_indices(images, strata, count=5, seed=seed)) for seed in range(4)}
    assert len(orders) == 4


# --- coverage ---------------------------------------------------------------------------------


def test_coverage_counts_classes_of_images_with_masks_and_parts_of_all() -> None:
    bare = Stratum(None, (0, 0, 1))
    of_image = (A, A, C, bare)
    images = [facts(f"{i}") for i in range(4)]
    choice = Choice(images, Strata(of_image, {}), [2, 3], ("흙", "벼"))
    rows = {(row.kind, row.name): row for row in coverage_rows(choice)}
    counts = {key: (row.candidates, row.chosen) for key, row in rows.items()}
    assert counts == {
        ("class", "0 흙"): (3, 1),
        ("class", "1 벼"): (2, 0),
        ("class", "2"): (1, 1),
        ("mask", "without a mask"): (1, 1),
        ("brightness", "dark"): (3, 1),
        ("brightness", "medium"): (0, 0),
        ("brightness", "bright"): (1, 1),
        ("contrast", "flat"): (3, 1),
        ("contrast", "harsh"): (1, 1),
        ("sharpness", "soft"): (2, 0),
        ("sharpness", "fair"): (1, 1),
        ("sharpness", "sharp"): (1, 1),
    }
    percents = rows["class", "1 벼"]
    assert (percents.candidates_percent, percents.chosen_percent) == (pytest.approx(200 / 3), 0.0)
    assert rows["mask", "without a mask"].chosen_percent == 50.0
    assert stratum_counts(choice) == {A: (2, 0), C: (1, 1), bare: (1, 1)}


def test_strata_are_called_by_their_classes_light_and_sharpness() -> None:
    assert stratum_title(C) == "0+2 bright harsh sharp"
    assert stratum_title(Stratum((), (1, 0, 1))) == "no class medium flat fair"
    assert stratum_title(Stratum(None, (0, 0, 0))) == "no mask dark flat soft"
