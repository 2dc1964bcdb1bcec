"""policy.json: a `PrecisionPolicy` as a small file, in the bundle or handed on by itself."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast, get_args

from calibration.layer_fixes import Rounding
from calibration.layers import Kind
from calibration.placement import QuantizePolicy
from calibration.policy import MAX_GLOB, MAX_GLOBS, FoundBy, Precision, PrecisionPolicy
from calibration.ranges import Method
from calibration.recipe import Int8Recipe
from engines.bundle import bundle_from_folder, verified_path
from engines.bundle_fields import Field, Source, field_from_json
from engines.errors import ConfigError

FORMAT, FORMAT_VERSION = "riceseg-policy", 1
FILES_KEY, FILE_NAME = "policy", "policy.json"  # in the bundle
MAX_BYTES = 1_000_000

_SOURCE = Source(
    FILE_NAME, ConfigError, "export again with --precision auto, which writes one", MAX_BYTES
)
_RECIPE = ("method", "percentile", "equalize", "rounding", "bias_correction", "policy")
_PLACEMENT = ("exclude_kinds", "exclude_nodes", "fold_weights")
_FOUND = ("max_drop", "drop", "images", "trials")
_TOP = ("format", "format_version", "precision", "recipe", "fp32_nodes", "float_groups", "found")


def policy_to_json(policy: PrecisionPolicy) -> str:
    """Text that `policy_from_json` reads back; ConfigError for a policy beyond its limits."""
    record: dict[str, Any] = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(policy)}
    if policy.recipe is not None:
        record["recipe"]["policy"]["exclude_kinds"] = sorted(policy.recipe.policy.exclude_kinds)
    text = json.dumps(record, ensure_ascii=False, allow_nan=False, indent=1) + "\n"
    policy_from_json(text.encode("utf-8"))
    return text


def policy_from_json(data: bytes) -> PrecisionPolicy:
    """Read what `policy_to_json` wrote; the bytes are not trusted, and no key may be unknown.

    Raises ConfigError that names the field.
    """
    root = field_from_json(data, _SOURCE)
    _exactly(root, _TOP)
    root["format"].one_of(FORMAT)
    if root["format_version"].integer(1, 1_000_000) != FORMAT_VERSION:
        raise root["format_version"].refused(f"{FORMAT_VERSION}; a newer riceseg reads others")
    return PrecisionPolicy(
        precision=cast(Precision, root["precision"].one_of(*get_args(Precision))),
        recipe=root["recipe"].or_none(_recipe_from_field),
        fp32_nodes=_globs(root["fp32_nodes"]),
        float_groups=tuple(name.text() for name in root["float_groups"].entries(0, 100)),
        found=root["found"].or_none(_found_from_field),
    )


def policy_from_path(path: Path) -> PrecisionPolicy:
    """The policy in a file, or in the bundle whose folder `path` is.

    Raises ConfigError for what is no policy, BundleError for a bundle that cannot be used.
    """
    if path.is_dir():
        info = bundle_from_folder(path).files.get(FILES_KEY)
        if info is None:
            raise ConfigError(
                f"{path}, a bundle without a policy",
                expected="one that was exported with --precision auto or --int8",
                do="give another bundle, or a policy file",
            )
        path = verified_path(path, info)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"--policy {path}, unreadable ({error.strerror})",
            expected="a policy file, or the folder of a bundle that has one",
            do="check the path",
        ) from error
    return policy_from_json(data)


def _exactly(field: Field, keys: tuple[str, ...]) -> None:
    unknown = sorted(set(field.record()) - set(keys))
    if unknown:
        raise field.source.error(
            f"the key {unknown[0][:60]!r} in {field.source.name}",
            expected=", ".join(keys),
            do=field.source.do,
        )


def _recipe_from_field(field: Field) -> Int8Recipe:
    _exactly(field, _RECIPE)
    placement = field["policy"]
    _exactly(placement, _PLACEMENT)
    kinds = placement["exclude_kinds"].entries(0, len(get_args(Kind)))
    policy = QuantizePolicy(
        exclude_kinds=frozenset(cast(Kind, kind.one_of(*get_args(Kind))) for kind in kinds),
        exclude_nodes=_globs(placement["exclude_nodes"]),
        fold_weights=placement["fold_weights"].flag(),
    )
    percentile = field["percentile"].number()
    if not 50.0 <= percentile <= 100.0:
        raise field["percentile"].refused("a number from 50 to 100")
    return Int8Recipe(
        policy=policy,
        method=cast(Method, field["method"].one_of(*get_args(Method))),
        percentile=percentile,
        equalize=field["equalize"].flag(),
        rounding=cast(Rounding, field["rounding"].one_of(*get_args(Rounding))),
        bias_correction=field["bias_correction"].flag(),
    )


def _found_from_field(field: Field) -> FoundBy:
    _exactly(field, _FOUND)
    return FoundBy(
        max_drop=field["max_drop"].number(),
        drop=field["drop"].number(),
        images=field["images"].integer(1, 10**9),
        trials=field["trials"].integer(1, 10**6),
    )


def _globs(field: Field) -> tuple[str, ...]:
    return tuple(glob.text(MAX_GLOB) for glob in field.entries(0, MAX_GLOBS))
