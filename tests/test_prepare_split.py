"""The split of scenes into train, val and test."""

from __future__ import annotations

import subprocess
import sys
import unicodedata
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.errors import ConfigError
from exporter.prepare.balance import absent_classes, balance_rows, csv_from_balance, empty_parts
from exporter.prepare.split import PARTS, check_shares, part_sizes, split_scenes

SHARES = (0.8, 0.1, 0.1)
ROOT = Path(__file__).parents[1]

Classes = Mapping[str, frozenset[int]]


def rice_scenes(count: int, seed: int = 0) -> dict[str, frozenset[int]]:
    """As rare as disorders are: classes 2 to 5 in 30, 12, 6 and 3 percent of the scenes."""
    random = np.random.default_rng(seed)
    rare = random.random((count, 4)) < (0.3, 0.12, 0.06, 0.03)
    return {
        f"R20220726A{index:02d}R{index:04d}": frozenset([0, 1, *(2 + np.flatnonzero(row)).tolist()])
        for index, row in enumerate(rare)
    }


def test_the_parts_have_their_shares_of_scenes() -> None:
    assert Counter(split_scenes(rice_scenes(1000)).values()) == {
        "train": 800,
        "val": 100,
        "test": 100,
    }
    assert Counter(split_scenes(rice_scenes(8)).values()) == {"train": 6, "val": 1, "test": 1}
    assert Counter(split_scenes(rice_scenes(1)).values()) == {"train": 1}


@pytest.mark.parametrize("seed", range(5))
def test_every_class_is_divided_by_the_shares(seed: int) -> None:
    scenes = rice_scenes(600, seed)
    parts = split_scenes(scenes, SHARES, seed=seed)
    for index in range(6):
        having = [name for name, classes in scenes.items() if index in classes]
        counts = Counter(parts[name] for name in having)
        for part, share in zip(PARTS, SHARES, strict=True):
            # Each class within two scenes, where a draw at random has up to ten and more.
            assert abs(counts[part] - share * len(having)) <= 2, (index, part)


def test_a_class_of_ten_scenes_is_in_every_part() -> None:
    scenes = {f"s{index:03d}": frozenset({0, 1}) for index in range(200)}
    scenes |= {f"rare{index}": frozenset({0, 1, 5}) for index in range(10)}
    counts = Counter(part for name, part in split_scenes(scenes).items() if "rare" in name)
    assert counts == {"train": 8, "val": 1, "test": 1}


def test_another_seed_gives_another_split_and_the_same_the_same() -> None:
    scenes = rice_scenes(100)
    first = split_scenes(scenes, seed=1)
    assert split_scenes(dict(reversed(scenes.items())), seed=1) == first
    assert split_scenes(scenes, seed=2) != first


def test_the_split_is_the_same_in_another_process_with_other_hashes() -> None:
    scenes = rice_scenes(60)
    code = (
        "from tests.test_prepare_split import *\n"
        "print(''.join(part[1] for part in split_scenes(rice_scenes(60)).values()))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={"PYTHONHASHSEED": "7", "PATH": "", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    assert found == "".join(part[1] for part in split_scenes(scenes).values())


def test_a_name_in_pieces_as_macos_stores_it_gets_the_same_part() -> None:
    names = [f"논{index:04d}" for index in range(50)]
    whole = split_scenes({name: {0} for name in names})
    pieces = split_scenes({unicodedata.normalize("NFD", name): {0} for name in names})
    assert list(whole.values()) == list(pieces.values())


def test_scenes_that_came_later_leave_the_others_where_they_are() -> None:
    scenes = rice_scenes(200)
    before = split_scenes(dict(list(scenes.items())[:120]))
    after = split_scenes(scenes, known=before)
    assert {name: after[name] for name in before} == before
    assert Counter(after.values()) == {"train": 160, "val": 20, "test": 20}


def test_what_is_known_of_scenes_that_are_gone_or_of_other_parts_is_not_used() -> None:
    scenes = rice_scenes(20)
    assert split_scenes(scenes, known={"gone": "val", next(iter(scenes)): ""}) == split_scenes(
        scenes
    )


@settings(max_examples=60, deadline=None)
@given(
    scenes=st.dictionaries(
        st.text(min_size=1, max_size=6), st.frozensets(st.integers(0, 5)), max_size=40
    ),
    train=st.integers(1, 10),
    val=st.integers(0, 10),
    test=st.integers(0, 10),
    seed=st.integers(-5, 5),
)
def test_every_scene_is_in_one_part_of_the_right_size(
    scenes: Classes, train: int, val: int, test: int, seed: int
) -> None:
    total = train + val + test
    shares = (train / total, val / total, test / total)
    parts = split_scenes(scenes, shares, seed=seed)
    assert list(parts) == list(scenes)
    counts = Counter(parts.values())
    assert set(counts) <= set(PARTS)
    for part, share in zip(PARTS, shares, strict=True):
        assert abs(counts[part] - share * len(scenes)) < 1 + 1e-6
    assert tuple(counts[part] for part in PARTS) == part_sizes(len(scenes), shares)


@pytest.mark.parametrize(
    "shares",
    [(0.8, 0.2), (0.8, 0.1, 0.2), (0.0, 0.5, 0.5), (1.2, -0.1, -0.1), (float("nan"), 0.5, 0.5)],
)
def test_shares_that_are_none_are_refused(shares: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="expected three numbers from 0 to 1 that sum to 1"):
        check_shares(shares)


# --- balance --------------------------------------------------------------------------------------


def test_the_balance_counts_scenes_and_pixels_of_each_part() -> None:
    pixels = {"a": (60, 40, 0, 0, 0, 0), "b": (100, 0, 0, 0, 0, 0), "c": (10, 60, 30, 0, 0, 0)}
    rows = balance_rows(pixels, {"a": "train", "b": "train", "c": "val"})
    lines = csv_from_balance(rows).splitlines()
    assert lines[0] == "part,class,name,name_ko,scenes,scenes_percent,pixels,pixels_percent"
    assert "train,1,normal,정상,1,50.000,40,20.000" in lines
    assert "val,2,doyeol,도열,1,100.000,30,30.000" in lines
    assert "test,0,background,배경,0,0.000,0,0.000" in lines
    assert "all,1,normal,정상,2,66.667,100,33.333" in lines
    assert len(lines) == 1 + 4 * 6


def test_what_a_part_lacks_is_told_in_one_line_unless_the_part_is_empty() -> None:
    pixels = {"a": (60, 40, 0, 0, 0, 0), "b": (100, 0, 0, 0, 0, 0)}
    rows = balance_rows(pixels, {"a": "train", "b": "val"})
    assert absent_classes(rows) == ("no scene of val has normal 정상: too few scenes have it",)


def test_a_line_names_all_classes_that_the_part_lacks() -> None:
    pixels = {"a": (50, 40, 0, 9, 0, 1), "b": (90, 0, 0, 10, 0, 0), "c": (0, 100, 0, 0, 0, 0)}
    assert absent_classes(balance_rows(pixels, {"a": "train", "b": "val", "c": "test"})) == (
        "no scene of val has normal 정상, bujin 부진: too few scenes have them",
        "no scene of test has background 배경, dobok 도복, bujin 부진: too few scenes have them",
    )
    whole = {"a": (1, 1, 1, 1, 1, 1), "b": (1, 1, 1, 1, 1, 1)}
    assert absent_classes(balance_rows(whole, {"a": "train", "b": "val"})) == ()


def test_a_part_without_a_scene_is_told_if_it_was_to_have_some() -> None:
    rows = balance_rows({"a": (60, 40, 0, 0, 0, 0)}, {"a": "train"})
    assert empty_parts(rows, (0.9, 0.1, 0.0)) == (
        "no scene in val: too few scenes for a share of 0.1",
    )  # fmt: skip
    assert empty_parts(rows, (1.0, 0.0, 0.0)) == ()
