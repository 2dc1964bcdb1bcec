"""What precision an export is asked for, checked before anything long starts."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any, cast

from calibration.layer_fixes import Rounding
from calibration.placement import DEFAULT_POLICY, QuantizePolicy
from calibration.policy import PrecisionPolicy
from calibration.policy_json import policy_from_path
from calibration.ranges import Method
from calibration.recipe import Int8Recipe
from engines.errors import ConfigError
from exporter.request import ExportRequest, Int8Options, calibration_source

OPTIONS = {
    "method": "--calibrator",
    "percentile": "--percentile",
    "equalize": "--equalize",
    "rounding": "--rounding",
    "bias_correction": "--bias-correction",
}


def told_policy(request: ExportRequest) -> PrecisionPolicy | None:
    """What the request says; None with `auto`, where only measuring can tell.

    Raises ConfigError for options that contradict each other or lack their data.
    """
    if request.auto:
        _check_auto(request)
        _check_percentile(request)
        return None
    policy = _policy_from_file(request) if request.policy is not None else _asked(request)
    if policy.precision == "int8":
        calibration_source(request.data.calib)
        _check_percentile(request)
    else:
        _refuse_options(given_options(request), f"an export of {policy.precision.upper()}")
    return policy


def given_options(request: ExportRequest) -> dict[str, Any]:
    """Command line's name -> value of what was said about INT8."""
    values = asdict(request.int8_options)
    return {OPTIONS[key]: value for key, value in values.items() if value is not None}


def recipe_from(options: Int8Options, policy: QuantizePolicy = DEFAULT_POLICY) -> Int8Recipe:
    """What was said, and Int8Recipe's default for the rest."""
    default = Int8Recipe(policy=policy)
    return Int8Recipe(
        policy=policy,
        method=cast(Method, options.method or default.method),
        percentile=default.percentile if options.percentile is None else options.percentile,
        equalize=bool(options.equalize),
        rounding=cast(Rounding, options.rounding or default.rounding),
        bias_correction=bool(options.bias_correction),
    )


def _asked(request: ExportRequest) -> PrecisionPolicy:
    if request.int8:
        return PrecisionPolicy("int8", recipe_from(request.int8_options))
    return PrecisionPolicy("fp16" if request.fp16 else "fp32")


def _check_auto(request: ExportRequest) -> None:
    both = {"--int8": request.int8, "--fp16": request.fp16, "--policy": request.policy is not None}
    for name, given in both.items():
        if given:
            raise ConfigError(
                f"--precision auto with {name}",
                expected="one of them: auto finds the precision itself",
                do=f"leave {name} out, or leave --precision auto out",
            )
    if request.target == "cpu":
        raise ConfigError(
            "--precision auto with --target cpu",
            expected="a target with a GPU: on a CPU FP32 is the fastest, so there is no choice",
            do="leave --precision out, or choose another target",
        )
    for name, value, what in (
        ("--calib", request.data.calib, "images to calibrate INT8 on"),
        ("--val", request.data.val, "labelled images, on which every precision is tried"),
    ):
        if value is None:
            raise ConfigError(
                f"--precision auto without {name}",
                expected=what,
                do=f"pass {name}, or choose a precision yourself",
            )


def _check_percentile(request: ExportRequest) -> None:
    options = request.int8_options
    tried = request.auto and options.method is None  # the search measures the range per tensor
    if (
        options.percentile is not None
        and options.method not in ("percentile", "auto")
        and not tried
    ):
        method = options.method or Int8Recipe().method
        raise ConfigError(
            f"--percentile with --calibrator {method}, which takes none",
            expected="--percentile with --calibrator percentile or auto",
            do="leave --percentile out, or choose one of these",
        )


def _policy_from_file(request: ExportRequest) -> PrecisionPolicy:
    """Without `found`: what was measured then is not true of this checkpoint and these images."""
    assert request.policy is not None  # told_policy asks before it calls
    policy = policy_from_path(request.policy)
    _refuse_options(given_options(request), "--policy, which says it")
    allowed = {"int8": ("int8", "fp16"), "fp16": ("fp16",), "fp32": ()}[policy.precision]
    for name, given in (("int8", request.int8), ("fp16", request.fp16)):
        if given and name not in allowed:
            raise ConfigError(
                f"--{name} with --policy {request.policy}, a policy of {policy.precision.upper()}",
                expected="the precision that the policy says",
                do="leave one of them out",
            )
    return replace(policy, found=None)


def _refuse_options(given: dict[str, Any], beside: str) -> None:
    for name in given:
        raise ConfigError(
            f"{name} with {beside}",
            expected=f"{name} with --precision int8 or auto",
            do=f"leave {name} out",
        )
