from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from engines.errors import ConfigError
from exporter.classes import ClassList, checked_classes, classes_from_file, palette_for

RICE = ("배경", "정상", "도열병")


def written(folder: Path, content: str | bytes) -> Path:
    path = folder / "classes.txt"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    ("content", "names", "palette"),
    [
        ("background\ncrop\nweed\n", ("background", "crop", "weed"), None),
        ("\ufeffbackground\r\n\r\n poor growth \r\n", ("background", "poor growth"), None),
        ("# the classes\ncrop\n#\nweed", ("crop", "weed"), None),
        ("crop #00ff7F\nweed#010203", ("crop", "weed"), ((0, 255, 127), (1, 2, 3))),
        ("a b 0,255,7\nc,1, 2,3\nd: 4,5,6", ("a b", "c", "d"), ((0, 255, 7), (1, 2, 3), (4, 5, 6))),
        ("class 1\nclass 2", ("class 1", "class 2"), None),
        ('["crop", "weed"]', ("crop", "weed"), None),
        ('{"classes": ["crop"], "palette": [[1, 2, 3]]}', ("crop",), ((1, 2, 3),)),
        ('\n{"classes": ["crop"]}', ("crop",), None),
        ('{"classes": ["crop"], "palette": null}', ("crop",), None),
        ("\n".join(RICE), RICE, None),
    ],
)
def test_the_formats_of_a_class_file(
    tmp_path: Path, content: str, names: tuple[str, ...], palette: object
) -> None:
    found = classes_from_file(written(tmp_path, content))
    assert (found.names, found.palette, found.notes) == (names, palette, ())


def test_korean_in_cp949_is_read_with_a_note(tmp_path: Path) -> None:
    found = classes_from_file(written(tmp_path, "\n".join(RICE).encode("cp949")))
    assert found == ClassList(
        RICE, None, ("classes.txt is not UTF-8 and was read as CP949 (Korean)",)
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "names no class"),
        ("\n \n# only a comment\n", "names no class"),
        ("[]", "names no class"),
        ("crop\nweed\ncrop\n", "'crop' is named more than once"),
        ('["a", "b", "b", "a"]', "'a', 'b' is named more than once"),
        ("crop #00ff00\nweed\n", "2 names and 1 colours"),
        ('{"classes": ["a"], "palette": []}', "1 names and 0 colours"),
        ("#00ff00\n", "empty or unprintable class name"),
        ("1,2,3\n", "empty or unprintable class name"),
        ("a\x1b[31m\n", "empty or unprintable class name"),
        ('["a", ""]', "empty or unprintable class name"),
        ("crop 256,0,0\n", r"colour \[256, 0, 0\]"),
        ('{"classes": ["a"], "palette": [[1, 2]]}', r"colour \[1, 2\]"),
        ('{"classes": ["a"], "palette": [[1, 2, true]]}', "not three numbers"),
        ('{"classes": ["a"], "palette": "red"}', "palette is not a list"),
        ('{"classes": "crop"}', "not a list of names"),
        ("[1, 2]", "not a list of names"),
        ('{"names": ["a"]}', "a JSON object with 'names'"),
        ('{"classes": ["a"], "colors": []}', "'classes', 'colors'"),
        ('["a"', "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        (b"a\x00b\n", "unprintable"),
        (b"\xff\xfea\x00", "neither UTF-8 nor CP949"),
        (b"a" * 1_000_001, "more than 1000000 bytes"),
    ],
)
def test_a_class_file_that_cannot_be_used(
    tmp_path: Path, content: str | bytes, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        classes_from_file(written(tmp_path, content))


def test_a_class_file_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        classes_from_file(tmp_path / "missing.txt")
    with pytest.raises(ConfigError, match="Is a directory"):
        classes_from_file(tmp_path)


@pytest.mark.parametrize("count", [0, 1, 7, 8, 150, 1000])
def test_a_palette_has_distinct_colours_and_grows_at_its_end(count: int) -> None:
    palette = palette_for(count)
    assert len(palette) == len(set(palette)) == count
    assert palette_for(count + 5)[:count] == palette
    assert all(0 <= part <= 255 for color in palette for part in color)
    assert (0, 0, 0) not in palette


def test_thirty_colours_are_far_apart() -> None:
    palette = palette_for(30)
    nearest = min(
        sum((a - b) ** 2 for a, b in zip(first, second, strict=True))
        for i, first in enumerate(palette)
        for second in palette[:i]
    )
    assert nearest >= 20**2
    assert all(first != second for first, second in pairwise(palette))


def test_names_as_many_as_outputs_stay_as_they_are() -> None:
    names, palette, warnings = checked_classes(["a", "b"], [(1, 2, 3), (4, 5, 6)], 2)
    assert (names, palette, warnings) == (("a", "b"), ((1, 2, 3), (4, 5, 6)), ())


def test_names_without_a_palette_get_the_default_colours() -> None:
    assert checked_classes(["a", "b"], None, 2) == (("a", "b"), palette_for(2), ())


def test_outputs_without_names_are_numbered_with_a_warning() -> None:
    names, palette, warnings = checked_classes(RICE, [(0, 0, 0), (8, 39, 245), (0, 229, 245)], 5)
    assert names == (*RICE, "class 3", "class 4")
    assert palette[:3] == ((0, 0, 0), (8, 39, 245), (0, 229, 245))
    assert len(set(palette)) == 5
    assert warnings == ("3 class names for 5 outputs: the others are called class 3, ...",)


@pytest.mark.parametrize("nothing", [None, ()])
def test_no_names_at_all_are_made_up_with_a_warning(nothing: tuple[str, ...] | None) -> None:
    names, palette, warnings = checked_classes(nothing, None, 3)
    assert names == ("class 0", "class 1", "class 2")
    assert palette == palette_for(3)
    assert warnings == ("no class names: the 3 outputs are called class 0, class 1, ...",)


def test_a_single_output_without_a_name_is_told_of_in_the_singular() -> None:
    _, _, warnings = checked_classes(None, None, 1)
    assert warnings == ("no class name: the only output is called class 0",)


def test_more_names_than_outputs_are_an_error() -> None:
    with pytest.raises(ConfigError, match="3 class names for a network with 2 outputs"):
        checked_classes(RICE, None, 2)


def test_a_palette_of_another_length_is_an_error() -> None:
    with pytest.raises(ConfigError, match="1 colours for 3 class names"):
        checked_classes(RICE, [(0, 0, 0)], 3)


def test_names_that_come_again_are_numbered_until_they_differ() -> None:
    names, _, warnings = checked_classes(["a", "a", "a (1)", "class 4"], None, 5)
    assert names == ("a", "a (2)", "a (1)", "class 4", "class 4 (4)")
    assert warnings[-1] == "class names that come again were numbered: a"


def test_the_colours_made_up_are_not_among_those_given() -> None:
    given = palette_for(2)
    palette = checked_classes(["a", "b"], given, 6)[1]
    assert palette[:2] == given
    assert len(set(palette)) == 6
