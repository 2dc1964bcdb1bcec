from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from small_graphs import block_model, random_images

from calibration.watch import watch_images


def test_at_most_so_many_different_images_are_kept_the_same_ones_every_time() -> None:
    images = random_images(40)
    kept = [watch_images(block_model(), images, counted=(), reduced=("q",), keep=4).kept] * 2
    places = [
        [i for i, image in enumerate(images) if image is not k and (image == k).all()]
        for k in kept[0]
    ]
    assert [len(found) for found in places] == [1, 1, 1, 1]
    assert len({found[0] for found in places}) == 4
    assert max(found[0] for found in places) >= 20  # not merely the first ones


def test_all_images_are_kept_where_there_are_no_more() -> None:
    images = random_images(3)
    kept = watch_images(block_model(), images, counted=(), reduced=("q",), keep=4).kept
    assert len(kept) == 3
    assert all(map(np.array_equal, kept, images))


def test_what_is_kept_does_not_change_with_the_callers_buffer() -> None:
    def reused() -> Iterator[np.ndarray]:
        buffer = np.empty((8, 8, 3), np.uint8)
        for value in (1, 2, 3):
            buffer[...] = value
            yield buffer

    kept = watch_images(block_model(), reused(), counted=(), reduced=("q",), keep=3).kept
    assert [int(image[0, 0, 0]) for image in kept] == [1, 2, 3]


def test_tensors_are_counted_or_only_reduced() -> None:
    watched = watch_images(block_model(), random_images(2), counted=("q",), reduced=("sum",))
    assert set(watched.histograms) == {"q"}
    assert watched.histograms["q"].counts.sum() == 2 * 16 * 8
    assert set(watched.extremes) == {"sum"}
    low, high = watched.extremes["sum"]
    assert low < high
    assert watched.kept == ()
