from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PillowImage
from tiny_models import bands_model, write_onnx

from engines.bundle import InputSpec
from engines.dataset import Pair
from engines.errors import DatasetError, ImageError, InputError
from engines.evaluation.evaluate import Evaluation, Prediction, evaluate_predictors, pairs_sha256
from engines.onnx_predictor import OnnxPredictor
from engines.resize import ResizeRule

# Red values 0 63 64 | 127 128 255 make bands of 64: 0 0 1 | 1 2 3, and of 128: 0 0 0 | 0 1 1.
RED = [[0, 63, 64], [127, 128, 255]]
BANDS = [[0, 0, 1], [1, 2, 3]]


def spec(hw: tuple[int, int] = (2, 3), resize: Any = "stretch") -> InputSpec:
    return InputSpec(
        name="image",
        hw=hw,
        channels=3,
        channel_order="RGB",
        mean=(124.0, 124.0, 124.0),
        std=(58.0, 58.0, 58.0),
        resize=resize,
        batch=(1, 1, 1),
    )


def pair_of(folder: Path, name: str, red: Any, mask: Any) -> Pair:
    """Write an image whose red channel is `red`, and its mask, as PNG files."""
    red, mask = np.array(red, np.uint8), np.array(mask, np.uint8)
    image = np.stack([red, red * 0, red * 0], axis=2)
    paths = folder / f"{name}.png", folder / f"{name}_mask.png"
    PillowImage.fromarray(image).save(paths[0])
    PillowImage.fromarray(mask).save(paths[1])
    return Pair(*paths)


def bands(folder: Path, *, step: int = 64, hw: tuple[int, int] = (2, 3)) -> OnnxPredictor:
    path = write_onnx(bands_model(hw, step=step), folder / f"{step}.onnx")
    return OnnxPredictor(path, threads=1, name=f"bands of {step}")


def evaluated(predictors: Any, pairs: Any, **changes: Any) -> Evaluation:
    options: dict[str, Any] = {"input": spec(), "num_outputs": 4, "num_classes": 4, **changes}
    return evaluate_predictors(predictors, pairs, **options)


class Recorded:
    """A predictor that gives the same labels for every image and remembers what it was given."""

    def __init__(self, name: str, network: Any, image: Any) -> None:
        self.name = name
        self.labels = Prediction(np.array(network, np.uint8), np.array(image, np.uint8))
        self.given: list[np.ndarray] = []

    def predict(
        self, network_image: np.ndarray, image_hw: tuple[int, int], rule: ResizeRule
    ) -> Prediction:
        self.given.append(network_image)
        return self.labels


def test_scores_and_agreement_are_those_worked_out_by_hand(tmp_path: Path) -> None:
    # Truth against bands of 64: class 0 has 2 of 2, class 1 one hit, one false, one missed: 1/3,
    # class 2 has 1 of 1, class 3 was missed once and taken once falsely: 0 of 2.
    pairs = [pair_of(tmp_path, "a", RED, [[0, 0, 1], [3, 2, 1]])]
    found = evaluated([bands(tmp_path), bands(tmp_path, step=128)], pairs)
    assert [row.name for row in found.rows] == ["bands of 64", "bands of 128"]
    first, second = found.rows
    assert first.scores.iou == pytest.approx((100, 100 / 3, 100, 0))
    assert first.scores.miou == pytest.approx((100 + 100 / 3 + 100) / 4)
    assert first.scores.aacc == pytest.approx(100 * 4 / 6)
    assert first.agreement == 100.0
    # Bands of 128 are 0 0 0 | 0 1 1: class 0 hits 2 of 4, class 1 hits 1 of 3.
    assert second.scores.iou == pytest.approx((50, 100 / 3, 0, 0))
    assert second.agreement == pytest.approx(100 * 2 / 6)
    assert found.images == 1
    assert found.skipped == ()


def test_one_matrix_is_kept_over_all_images(tmp_path: Path) -> None:
    # Class 0: 6 hits in one image, none of 2 in the other: 6 of 8, not the mean of 100 and 0.
    pairs = [
        pair_of(tmp_path, "a", np.zeros((2, 3)), np.zeros((2, 3))),
        pair_of(tmp_path, "b", [[64] * 3] * 2, [[0, 0, 255], [1, 1, 255]]),
    ]
    found = evaluated([bands(tmp_path)], pairs)
    assert found.rows[0].scores.iou[:2] == pytest.approx((75, 50))
    assert found.images == 2


def test_ignored_pixels_count_for_agreement_and_not_for_scores(tmp_path: Path) -> None:
    pairs = [pair_of(tmp_path, "a", RED, [[0, 0, 255], [255, 255, 255]])]
    found = evaluated([bands(tmp_path), bands(tmp_path, step=128)], pairs)
    assert found.rows[1].scores.aacc == 100.0
    assert found.rows[1].agreement == pytest.approx(100 * 2 / 6)


def test_scores_are_taken_at_the_images_size_and_agreement_at_the_networks(tmp_path: Path) -> None:
    pairs = [pair_of(tmp_path, "a", [[0, 0]], [[0, 1]])]
    reference = Recorded("reference", BANDS, [[0, 1]])
    other = Recorded("other", [[0, 0, 1], [1, 2, 0]], [[1, 1]])
    found = evaluated([reference, other], pairs)
    assert found.rows[0].scores.aacc == 100.0
    assert found.rows[1].scores.aacc == 50.0
    assert found.rows[1].agreement == pytest.approx(100 * 5 / 6)


def test_every_predictor_gets_the_same_network_image(tmp_path: Path) -> None:
    pairs = [pair_of(tmp_path, "a", RED, BANDS)]
    predictors = [Recorded("one", BANDS, BANDS), Recorded("two", BANDS, BANDS)]
    evaluated(predictors, pairs)
    assert predictors[0].given[0] is predictors[1].given[0]
    assert predictors[0].given[0][..., 0].tolist() == RED


def test_letterbox_padding_does_not_count_as_agreement(tmp_path: Path) -> None:
    # A 2x4 image in a 4x4 network: rows 2 and 3 are padding and equal; of the 8 others 2 differ.
    pairs = [pair_of(tmp_path, "a", np.zeros((2, 4)), np.zeros((2, 4)))]
    network = np.zeros((4, 4))
    differing = network.copy()
    differing[0, :2] = 1
    predictors = [
        Recorded("one", network, np.zeros((2, 4))),
        Recorded("two", differing, np.zeros((2, 4))),
    ]
    found = evaluated(predictors, pairs, input=spec((4, 4), "letterbox"))
    assert found.rows[1].agreement == 75.0
    assert predictors[0].given[0][2:].tolist() == [[[124] * 3] * 4] * 2


def test_zero_labels_are_ignored_and_the_others_move_down(tmp_path: Path) -> None:
    # 0 -> ignored, 255 -> ignored, 1 -> 0, 2 -> 1, 4 -> 3: all four that count are right.
    pairs = [pair_of(tmp_path, "a", RED, [[1, 0, 2], [255, 0, 4]])]
    found = evaluated([bands(tmp_path)], pairs, reduce_zero_label=True)
    assert found.rows[0].scores.aacc == 100.0
    assert found.rows[0].scores.iou[0] == 100.0
    assert np.isnan(found.rows[0].scores.iou[2])


def test_outputs_without_a_name_count_as_misses(tmp_path: Path) -> None:
    pairs = [pair_of(tmp_path, "a", RED, [[0, 0, 1], [1, 0, 0]])]
    found = evaluated([bands(tmp_path)], pairs, num_classes=2)
    assert found.rows[0].scores.iou == pytest.approx((50, 100))


def test_the_six_images_on_which_the_last_predictor_agrees_least_are_kept(tmp_path: Path) -> None:
    # Bands of 64 and 128 agree below 64: image i has i of 6 pixels at 200, so 6 - i agree.
    order = [3, 0, 6, 1, 5, 2, 4, 6]
    pairs = [
        pair_of(tmp_path, f"{n}-{i}", np.reshape([200] * i + [0] * (6 - i), (2, 3)), [[0] * 3] * 2)
        for n, i in enumerate(order)
    ]
    found = evaluated([bands(tmp_path), bands(tmp_path, step=128)], pairs)
    assert [item.image.stem for item in found.worst] == ["2-6", "7-6", "4-5", "6-4", "0-3", "5-2"]
    assert [item.mask.stem for item in found.worst][:2] == ["2-6_mask", "7-6_mask"]
    assert [item.agreement for item in found.worst] == pytest.approx(
        [0, 0, 100 / 6, 200 / 6, 50, 400 / 6]
    )


def test_one_predictor_alone_has_no_worst_images(tmp_path: Path) -> None:
    assert evaluated([bands(tmp_path)], [pair_of(tmp_path, "a", RED, BANDS)]).worst == ()


def test_a_mask_of_another_size_is_an_error_that_names_both_sizes(tmp_path: Path) -> None:
    pairs = [pair_of(tmp_path, "a", RED, np.zeros((5, 4)))]
    message = r"image 'a\.png' of 3x2 pixels \(width x height\) and mask 'a_mask\.png' of 4x5"
    for skip_bad in False, True:
        with pytest.raises(DatasetError, match=message):
            evaluated([bands(tmp_path)], pairs, skip_bad=skip_bad)


def test_a_mask_with_a_class_beyond_the_network_is_an_error_that_names_it(tmp_path: Path) -> None:
    pairs = [pair_of(tmp_path, "a", RED, [[0, 0, 1], [1, 2, 4]])]
    with pytest.raises(DatasetError, match=r"in 'a_mask\.png': "):
        evaluated([bands(tmp_path)], pairs)


def test_a_broken_image_stops_the_evaluation(tmp_path: Path) -> None:
    pairs = [pair_of(tmp_path, "a", RED, BANDS)]
    pairs[0].image.write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"a\.png"):
        evaluated([bands(tmp_path)], pairs)


def test_a_broken_image_or_mask_can_be_skipped_and_is_then_named(tmp_path: Path) -> None:
    pairs = [pair_of(tmp_path, name, RED, BANDS) for name in ("a", "b", "c")]
    pairs[0].image.write_bytes(b"no image")
    pairs[2].mask.write_bytes(b"no mask")
    found = evaluated([bands(tmp_path)], pairs, skip_bad=True)
    assert found.images == 1
    assert found.rows[0].scores.aacc == 100.0
    assert len(found.skipped) == 2
    assert re.match(r"a\.png: got .*a\.png", found.skipped[0])
    assert re.match(r"c\.png: got .*c_mask\.png", found.skipped[1])


def test_nothing_left_to_score_is_an_error(tmp_path: Path) -> None:
    pairs = [pair_of(tmp_path, "a", RED, BANDS)]
    pairs[0].image.write_bytes(b"no image")
    with pytest.raises(DatasetError, match="got 1 images, 1 of them skipped"):
        evaluated([bands(tmp_path)], pairs, skip_bad=True)
    with pytest.raises(DatasetError, match="got 0 images"):
        evaluated([bands(tmp_path)], [])


def test_no_predictor_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no predictor"):
        evaluated([], [pair_of(tmp_path, "a", RED, BANDS)])


def test_progress_counts_skipped_images_too(tmp_path: Path) -> None:
    pairs = [pair_of(tmp_path, name, RED, BANDS) for name in ("a", "b", "c")]
    pairs[1].image.write_bytes(b"no image")
    steps: list[tuple[int, int]] = []
    evaluated(
        [bands(tmp_path)], pairs, skip_bad=True, on_image=lambda done, of: steps.append((done, of))
    )
    assert steps == [(1, 3), (2, 3), (3, 3)]


def references_of(pairs: Any, labels: Any) -> Any:
    """Recorded labels of images by the hash of their file, as hashlib gives it."""
    found = {
        hashlib.sha256(pair.image.read_bytes()).hexdigest(): np.array(one, np.uint8)
        for pair, one in zip(pairs, labels, strict=False)
    }
    return found.get


def test_agreement_is_taken_with_recorded_labels_where_they_are_given(tmp_path: Path) -> None:
    pairs = [pair_of(tmp_path, "a", RED, BANDS)]
    recorded = references_of(pairs, [[[0, 0, 1], [1, 2, 0]]])
    found = evaluated([bands(tmp_path), bands(tmp_path, step=128)], pairs, references=recorded)
    # BANDS differ in one pixel of six; bands of 128, 0 0 0 | 0 1 1, are right in the first two.
    assert [row.agreement for row in found.rows] == pytest.approx([500 / 6, 200 / 6])
    assert found.compared == 1


def test_images_without_recorded_labels_count_for_scores_alone(tmp_path: Path) -> None:
    pairs = [
        pair_of(tmp_path, "a", RED, BANDS),
        pair_of(tmp_path, "b", np.zeros((2, 3)), np.ones((2, 3))),
        pair_of(tmp_path, "c", RED[::-1], BANDS),
    ]
    recorded = references_of(pairs[:2], [BANDS, np.ones((2, 3))])
    found = evaluated([bands(tmp_path)], pairs, references=recorded)
    assert found.rows[0].agreement == 50.0
    assert (found.images, found.compared) == (3, 2)
    assert [(item.image.stem, item.agreement) for item in found.worst] == [("b", 0), ("a", 100)]


def test_without_any_recorded_label_there_is_no_agreement(tmp_path: Path) -> None:
    pairs = [pair_of(tmp_path, "a", RED, BANDS)]
    found = evaluated([bands(tmp_path)], pairs, references=lambda _: None)
    assert np.isnan(found.rows[0].agreement)
    assert found.rows[0].scores.miou == 100.0
    assert (found.compared, found.worst) == (0, ())


def test_letterbox_padding_of_recorded_labels_does_not_count(tmp_path: Path) -> None:
    pairs = [pair_of(tmp_path, "a", np.zeros((2, 4)), np.zeros((2, 4)))]
    recorded = np.full((4, 4), 9)
    recorded[:2] = 0
    recorded[1, :2] = 1
    predictor = Recorded("one", np.zeros((4, 4)), np.zeros((2, 4)))
    options = {"input": spec((4, 4), "letterbox"), "references": references_of(pairs, [recorded])}
    assert evaluated([predictor], pairs, **options).rows[0].agreement == 75.0


def test_predictors_that_cut_images_get_the_whole_ones(tmp_path: Path) -> None:
    pairs = [pair_of(tmp_path, "a", [[0, 64, 128, 255]] * 3, [[0, 1, 2, 3]] * 3)]
    found_labels = [[0, 1, 2, 3]] * 3
    one = Recorded("one", found_labels, found_labels)
    two = Recorded("two", [[0, 1, 2, 0]] * 3, [[0, 1, 2, 0]] * 3)
    found = evaluated([one, two], pairs, whole_images=True)  # the network's size is 2x3
    assert one.given[0].shape == (3, 4, 3)
    assert one.given[0][..., 0].tolist() == [[0, 64, 128, 255]] * 3
    assert found.rows[0].scores.aacc == 100.0
    assert found.rows[1].agreement == 75.0


def test_the_hash_of_a_set_depends_on_bytes_and_pairs_and_not_on_names_or_order(
    tmp_path: Path,
) -> None:
    pairs = [pair_of(tmp_path, "a", RED, BANDS), pair_of(tmp_path, "b", RED[::-1], BANDS)]
    found = evaluated([bands(tmp_path)], pairs).images_sha256
    lines = sorted(
        f"{hashlib.sha256(pair.image.read_bytes()).hexdigest()} "
        f"{hashlib.sha256(pair.mask.read_bytes()).hexdigest()}\n"
        for pair in pairs
    )
    assert found == hashlib.sha256("".join(lines).encode("ascii")).hexdigest()
    assert pairs_sha256(pairs[::-1]) == found
    renamed = pairs[0].image.rename(tmp_path / "그림.png")
    assert pairs_sha256([Pair(renamed, pairs[0].mask), pairs[1]]) == found
    pairs[1].mask.write_bytes(pairs[1].mask.read_bytes() + b" ")
    assert pairs_sha256([Pair(renamed, pairs[0].mask), pairs[1]]) != found


def test_the_hash_of_a_set_is_that_of_the_images_that_were_scored(tmp_path: Path) -> None:
    pairs = [pair_of(tmp_path, name, RED, BANDS) for name in ("a", "b")]
    pairs[0].image.write_bytes(b"no image")
    found = evaluated([bands(tmp_path)], pairs, skip_bad=True)
    assert found.images_sha256 == pairs_sha256(pairs[1:])
