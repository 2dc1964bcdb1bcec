"""Label JSON, in any encoding and however hostile, and the masks painted from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from five_band_scenes import labels_record, write_scene
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from engines.errors import DatasetError
from exporter.prepare import labels_json
from exporter.prepare.labels_json import scene_labels_from_json
from exporter.prepare.masks import mask_from_polygons

HW = (40, 60)
SQUARE = [[2, 3], [5, 3], [5, 6], [2, 6]]


def polygon(code: object = "01", points: list[list[Any]] | None = None) -> dict[str, Any]:
    points = SQUARE if points is None else points
    return {
        "OBJECT_CLASS_CODE": code,
        "PYN_XCRDNT": [x for x, _ in points],
        "PYN_YCRDNT": [y for _, y in points],
    }


def data_of(*polygons: object, shape: object = HW, encoding: str = "utf-8") -> bytes:
    record = {"IMAGES": {"PHOTO_FILE_MG": shape, "PLACE": "나주시"}, "ANNOTATIONS": polygons}
    return json.dumps(record, ensure_ascii=False).encode(encoding)


def mask_of(*polygons: object, hw: tuple[int, int] = HW) -> NDArray[np.uint8]:
    return mask_from_polygons(scene_labels_from_json(data_of(*polygons), "s.json"), hw)


def test_shape_codes_and_corners_are_read() -> None:
    labels = scene_labels_from_json(data_of(polygon("03"), polygon("01")), "s.json")
    assert labels.hw == HW
    assert [polygon.code for polygon in labels.polygons] == ["03", "01"]
    assert labels.polygons[0].points.tolist() == SQUARE
    assert labels.warnings == ()


def test_a_third_number_of_the_shape_is_channels() -> None:
    assert scene_labels_from_json(data_of(shape=[7, 9, 1]), "s.json").hw == (7, 9)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp949"])
def test_korean_text_in_any_usual_encoding_is_read(encoding: str) -> None:
    data = data_of(polygon("02"), encoding=encoding)
    assert "나주시".encode(encoding if encoding != "utf-8-sig" else "utf-8")[-4:] in data
    assert scene_labels_from_json(data, "s.json").polygons[0].code == "02"


def test_a_polygon_includes_its_outline() -> None:
    expected = np.zeros(HW, np.uint8)
    expected[3:7, 2:6] = 4
    np.testing.assert_array_equal(mask_of(polygon("04")), expected)


def test_a_higher_class_code_covers_a_lower_one_whatever_their_order_in_the_file() -> None:
    low, high = polygon("02"), polygon("05", [[4, 5], [9, 5], [9, 9], [4, 9]])
    for order in ((low, high), (high, low)):
        mask = mask_of(*order)
        assert mask[5, 4] == 5
        assert mask[3, 2] == 2
    # Of one class the union is painted.
    assert (mask_of(low, polygon("02", [[4, 5], [9, 5], [9, 9], [4, 9]])) == 2).sum() == 16 + 26


def test_corners_between_pixels_are_rounded_halves_to_the_even_one() -> None:
    mask = mask_of(polygon("01", [[2.5, 3.4], [5.5, 3.4], [5.5, 6.6], [2.5, 6.6]]))
    expected = np.zeros(HW, np.uint8)
    expected[3:8, 2:7] = 1
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("number", range(6))
def test_a_scene_s_mask_is_that_of_the_recipe(tmp_path: Path, number: int) -> None:
    scene = write_scene(tmp_path, number, codes=("01", "02", "03", "05"), hw=(96, 128))
    expected = np.zeros((96, 128), np.uint8)
    for code, points in sorted(scene.polygons, key=lambda polygon: polygon[0]):
        cv2.fillPoly(expected, [points], int(code))
    labels = scene_labels_from_json(scene.json.read_bytes(), scene.name)
    mask = mask_from_polygons(labels, (96, 128))
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, expected)
    assert {0, 1, 5} <= set(np.unique(mask).tolist())


def test_a_mask_is_not_painted_for_bands_of_another_size() -> None:
    with pytest.raises(DatasetError, match="image of 40x60 and bands of 60x40"):
        mask_of(polygon(), hw=(60, 40))


def test_a_scene_without_polygons_is_all_background() -> None:
    assert not mask_of().any()


@pytest.mark.parametrize("code", ["06", "00", "1", "", "정상", 1, None, ["01"], {"01": 1}, True])
def test_an_unknown_class_code_is_background_and_told(code: object) -> None:
    labels = scene_labels_from_json(data_of(polygon(code), polygon("01")), "s.json")
    assert [polygon.code for polygon in labels.polygons] == ["01"]
    assert len(labels.warnings) == 1
    assert "polygon 1 of class code" in labels.warnings[0]
    assert "none of 01, 02, 03, 04, 05" in labels.warnings[0]


@pytest.mark.parametrize("corners", [0, 1, 2])
def test_fewer_than_three_corners_are_no_polygon_and_told(corners: int) -> None:
    labels = scene_labels_from_json(data_of(polygon("01", SQUARE[:corners])), "s.json")
    assert labels.polygons == ()
    assert labels.warnings == ("polygon 1 of fewer than 3 corners: left out",)


@pytest.mark.parametrize(
    "points",
    [
        [[60, 0], [70, 0], [70, 9]],
        [[-9, 0], [-1, 0], [-1, 9]],
        [[0, 40], [9, 40], [9, 50]],
        [[0, -9], [9, -1], [9, -2]],
    ],
)
def test_a_polygon_outside_the_image_is_left_out_and_told(points: list[list[Any]]) -> None:
    labels = scene_labels_from_json(data_of(polygon("01", points)), "s.json")
    assert labels.polygons == ()
    assert labels.warnings == ("polygon 1 wholly outside the image of 40x60: left out",)


def test_a_polygon_partly_outside_is_cut_and_told() -> None:
    data = data_of(polygon("02", [[50, 30], [90, 30], [90, 80], [50, 80]]))
    labels = scene_labels_from_json(data, "s.json")
    assert labels.warnings == ("polygon 1 partly outside the image of 40x60: cut at its border",)
    expected = np.zeros(HW, np.uint8)
    expected[30:, 50:] = 2
    np.testing.assert_array_equal(mask_from_polygons(labels, HW), expected)


def test_the_outer_edge_of_the_last_pixel_is_not_outside() -> None:
    data = data_of(polygon("02", [[0, 0], [60, 0], [60, 40], [0, 40]]))
    labels = scene_labels_from_json(data, "s.json")
    assert labels.warnings == ()
    assert (mask_from_polygons(labels, HW) == 2).all()


def test_corners_that_are_no_pixels_of_any_image_are_not_painted() -> None:
    # OpenCV takes seconds for them.
    far = 2_000_000_000
    data = data_of(polygon("02", [[-far, -far], [far, -far], [far, far], [-far, far]]))
    labels = scene_labels_from_json(data, "s.json")
    assert labels.polygons == ()
    assert "more than 100000 pixels outside" in labels.warnings[0]


def test_many_polygons_of_one_fault_are_told_in_one_line() -> None:
    labels = scene_labels_from_json(data_of(*[polygon("09")] * 700, polygon("08")), "s.json")
    assert len(labels.warnings) == 2
    assert labels.warnings[0].startswith("700 polygons, number 1 the first, of class code '09'")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ('"12"', "'12' for a number"),
        ("null", "None for a number"),
        ("true", "True for a number"),
        ("[1, 2]", "for a number"),
        ("{}", "object of 0 for a number"),
        ("NaN", "NaN is not JSON"),
        ("Infinity", "Infinity is not JSON"),
        ("-Infinity", "-Infinity is not JSON"),
        ("1e999", "beyond all limits"),
        ("9" * 30, "a number of 30 digits"),
        ("9" * 100_000, "a number of 100000 digits"),
    ],
)
def test_a_coordinate_that_is_no_number_is_refused(value: str, message: str) -> None:
    data = data_of(polygon()).replace(b'"PYN_XCRDNT": [2', f'"PYN_XCRDNT": [{value}'.encode())
    with pytest.raises(DatasetError, match=message):
        scene_labels_from_json(data, "s.json")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "null or missing"),
        ("1,2,3", "got.*text"),
        ({"0": 1}, "object"),
        (3, "number"),
        ([1, 2, 3], "3 x for 4 y"),
        ([0] * (labels_json.MAX_CORNERS + 1), "10001 corners"),
    ],
)
def test_coordinates_that_are_not_as_many_numbers_are_refused(value: object, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        scene_labels_from_json(data_of({**polygon(), "PYN_XCRDNT": value}), "s.json")


@pytest.mark.parametrize("key", ["OBJECT_CLASS_CODE", "PYN_XCRDNT", "PYN_YCRDNT"])
def test_a_polygon_without_one_of_its_fields_is_refused(key: str) -> None:
    item = polygon()
    del item[key]
    with pytest.raises(DatasetError, match=f"s.json, polygon 2.*no {key}"):
        scene_labels_from_json(data_of(polygon(), item), "s.json")


@pytest.mark.parametrize(
    "shape",
    [
        None,
        "40x60",
        [40],
        [40, 60, 3, 1],
        [0, 60],
        [-40, -60],
        [40.0, 60.0],
        ["40", "60"],
        [True, True],
        [20_000, 20_000],
        [[[40]], 60],
        {"0": 40, "1": 60},
    ],
)
def test_a_shape_that_is_none_is_refused(shape: object) -> None:
    with pytest.raises(DatasetError, match=r"IMAGES.PHOTO_FILE_MG .*expected \[height, width\]"):
        scene_labels_from_json(data_of(shape=shape), "s.json")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no JSON"),
        (data_of(polygon())[:-7], "no JSON"),
        (b"[]", "list at the top"),
        (b"null", "null or missing at the top"),
        (b'{"IMAGES": {"PHOTO_FILE_MG": [4, 4]}}', "ANNOTATIONS, which is null or missing"),
        (b'{"IMAGES": [], "ANNOTATIONS": []}', "PHOTO_FILE_MG None"),
        (data_of(7), "polygon 1.*number"),
        (b"\xff\xff\xff\xff", "none of UTF-8, UTF-16 and CP949"),
        (b"[" * 200_000, "lists inside lists"),
        (b'{"a":' * 200_000, "lists inside lists"),
        (data_of(shape="@").replace(b'"@"', b"[" * 900 + b"]" * 900), "PHOTO_FILE_MG list of 1"),
        (b" " * ((8 << 20) + 1), "expected at most 8388608"),
        (data_of(*[{}] * 10_001), "10001 polygons"),
        (data_of(*[polygon("01", [[0, 0]] * 9_000)] * 12), "polygons of too many corners"),
    ],
)
def test_what_is_not_the_data_set_s_json_is_one_clear_error(data: bytes, message: str) -> None:
    with pytest.raises(DatasetError, match=message) as caught:
        scene_labels_from_json(data, "s.json")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_ten_million_points_are_refused_before_they_are_read() -> None:
    data = data_of(polygon()).replace(b'"PYN_XCRDNT": [2', b'"PYN_XCRDNT": [' + b"2," * 10_000_000)
    with pytest.raises(DatasetError, match="at most 8388608"):
        scene_labels_from_json(data, "s.json")


def test_a_file_name_that_would_draw_on_the_terminal_is_made_harmless() -> None:
    with pytest.raises(DatasetError) as caught:
        scene_labels_from_json(b"", "evil\x1b[2J.json")
    assert "\x1b" not in str(caught.value)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_json_in_place_of_a_part_gives_labels_or_a_user_s_error(data: st.DataObject) -> None:
    record = labels_record("R20220726A25R0001", HW, (("01", np.array(SQUARE, np.int32)),))
    places: list[tuple[Any, Any]] = [(record, key) for key in record]
    places += [(record["IMAGES"], "PHOTO_FILE_MG"), (record["ANNOTATIONS"], 0)]
    places += [(record["ANNOTATIONS"][0], key) for key in record["ANNOTATIONS"][0]]
    inside, key = data.draw(st.sampled_from(places))
    inside[key] = data.draw(_JSON)
    try:
        labels = scene_labels_from_json(json.dumps(record).encode(), "s.json")
    except DatasetError:
        return
    if labels.hw[0] * labels.hw[1] < 10_000:
        assert mask_from_polygons(labels, labels.hw).max() <= 5


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=200))
def test_any_bytes_are_refused_as_a_user_s_error(data: bytes) -> None:
    with pytest.raises(DatasetError):
        scene_labels_from_json(data, "s.json")
