"""policy.json: what is read back is what was written, and nothing else is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.layer_fixes import Rounding
from calibration.layers import Kind
from calibration.placement import QuantizePolicy
from calibration.policy import FoundBy, PrecisionPolicy, globs_for
from calibration.policy_json import policy_from_json, policy_from_path, policy_to_json
from calibration.ranges import Method
from calibration.recipe import Int8Recipe
from engines.errors import ConfigError

NAMES = st.text(st.characters(min_codepoint=33, exclude_categories=("Cs", "Cc")), max_size=40)
GLOBS = st.lists(NAMES, max_size=5).map(tuple)
NUMBERS = st.floats(-100, 100)
FOUND = st.builds(
    FoundBy,
    max_drop=NUMBERS,
    drop=NUMBERS,
    images=st.integers(1, 10**9),
    trials=st.integers(1, 10**6),
)
RECIPES = st.builds(
    Int8Recipe,
    policy=st.builds(
        QuantizePolicy,
        exclude_kinds=st.frozensets(st.sampled_from(get_args(Kind))),
        exclude_nodes=GLOBS,
        fold_weights=st.booleans(),
    ),
    method=st.sampled_from(get_args(Method)),
    percentile=st.floats(50, 100),
    equalize=st.booleans(),
    rounding=st.sampled_from(get_args(Rounding)),
    bias_correction=st.booleans(),
)
REST = {"fp32_nodes": GLOBS, "float_groups": GLOBS, "found": st.none() | FOUND}
POLICIES = st.one_of(
    st.builds(PrecisionPolicy, precision=st.just("int8"), recipe=RECIPES, **REST),
    st.builds(
        PrecisionPolicy, precision=st.sampled_from(["fp16", "fp32"]), recipe=st.none(), **REST
    ),
)


@given(POLICIES)
def test_a_policy_is_read_back_as_it_was(policy: PrecisionPolicy) -> None:
    assert policy_from_json(policy_to_json(policy).encode()) == policy


def document(**changes: Any) -> dict[str, Any]:
    """A valid file as a dictionary, with these fields changed; one that is None is taken out."""
    full = {
        "format": "riceseg-policy",
        "format_version": 1,
        "precision": "int8",
        "recipe": {
            "method": "mse",
            "percentile": 99.999,
            "equalize": False,
            "rounding": "nearest",
            "bias_correction": False,
            "policy": {
                "exclude_kinds": ["product", "residual"],
                "exclude_nodes": ["*/fusion/*"],
                "fold_weights": False,
            },
        },
        "fp32_nodes": [],
        "float_groups": ["head_fusion"],
        "found": {"max_drop": 0.5, "drop": 0.25, "images": 84, "trials": 3},
    }
    for key, value in changes.items():
        place, *path = reversed(key.split("__"))
        inner: dict[str, Any] = full
        for step in reversed(path):
            inner = inner[step]
        inner[place] = value
    return full


def read(value: object) -> PrecisionPolicy:
    return policy_from_json(json.dumps(value).encode())


def test_a_file_is_read_as_the_policy_that_it_spells_out() -> None:
    placement = QuantizePolicy(frozenset({"product", "residual"}), ("*/fusion/*",))
    assert read(document()) == PrecisionPolicy(
        "int8",
        Int8Recipe(placement),
        float_groups=("head_fusion",),
        found=FoundBy(max_drop=0.5, drop=0.25, images=84, trials=3),
    )


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"format": "riceseg-bundle"}, "as format in policy.json"),
        ({"format_version": 2}, "a newer riceseg"),
        ({"precision": "int4"}, "as precision in policy.json; expected 'int8' or 'fp16'"),
        ({"precision": "fp16"}, "a policy of fp16 with a recipe"),
        ({"recipe": None}, "a policy of int8 without a recipe"),
        ({"surprise": 1}, "the key 'surprise' in policy.json; expected format, format_version"),
        ({"recipe__surprise": 1}, "the key 'surprise'"),
        ({"recipe__policy__surprise": 1}, "the key 'surprise'"),
        ({"found__surprise": 1}, "the key 'surprise'"),
        ({"recipe__method": "best"}, "recipe.method"),
        ({"recipe__percentile": 49}, "as recipe.percentile in policy.json; expected a number from"),
        ({"recipe__rounding": "up"}, "recipe.rounding"),
        ({"recipe__equalize": 1}, "recipe.equalize in policy.json; expected true or false"),
        ({"recipe__policy__exclude_kinds": ["gelu"]}, r"exclude_kinds\[0\]"),
        ({"recipe__policy__exclude_nodes": ["*"] * 2001}, "a list of 0 to 2000 values"),
        ({"recipe__policy__exclude_nodes": ["*" * 301]}, "at most 300 characters"),
        ({"fp32_nodes": "*"}, "fp32_nodes in policy.json; expected a list"),
        ({"fp32_nodes": ["\x1b[2J"]}, "control characters"),
        ({"found__images": 0}, "found.images"),
        ({"found__drop": True}, "found.drop in policy.json; expected a finite number"),
    ],
)
def test_a_file_that_is_not_quite_a_policy_is_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        read(document(**changes))


@pytest.mark.parametrize("key", sorted(document()))
def test_every_key_is_needed(key: str) -> None:
    full = document()
    del full[key]
    with pytest.raises(ConfigError, match=f"policy.json without '{key}'"):
        read(full)


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"NaN", b"\xff", b"[" * 100_000, b'{"a":' * 5000, b" " * 1_000_001]
)
def test_bytes_that_are_no_policy_are_refused(data: bytes) -> None:
    with pytest.raises(ConfigError, match=r"policy\.json"):
        policy_from_json(data)


def test_a_policy_too_long_to_be_read_is_not_written() -> None:
    placement = QuantizePolicy(exclude_nodes=tuple(f"node{i}" for i in range(2001)))
    with pytest.raises(ConfigError, match="0 to 2000 values"):
        policy_to_json(PrecisionPolicy("int8", Int8Recipe(placement)))


def test_a_path_without_a_policy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"정책\.json, unreadable \(No such file"):
        policy_from_path(tmp_path / "정책.json")


def test_patterns_stand_for_names_only_where_they_tell_them_from_the_others() -> None:
    names, others = ["/b0/q/MatMul", "/b1/q/MatMul"], ["/b0/k/MatMul"]
    assert globs_for(names, others, ["*/q/*", "*/v/*"]) == ("*/q/*",)
    assert globs_for(names, others, ["*/MatMul"]) == tuple(names)
    assert globs_for(names, others, ["/b0/q/*"]) == tuple(names)
    assert globs_for(names, others, []) == tuple(names)
