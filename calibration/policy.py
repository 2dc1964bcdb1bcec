"""Which precision a model runs in: what `--precision auto` finds and `--policy` takes up again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, get_args

from calibration.recipe import Int8Recipe
from engines.errors import ConfigError

Precision = Literal["int8", "fp16", "fp32"]

# A SegFormer-B5 has 300 layers; a longer list or name is no policy. Each glob is tried on each
# node, so the limits also bound the time that a file from elsewhere can cost.
MAX_GLOBS, MAX_GLOB = 2_000, 300


@dataclass(frozen=True)
class FoundBy:
    """How a search came to its policy: limit and loss in mIoU points, validation images, trials."""

    max_drop: float
    drop: float
    images: int
    trials: int


@dataclass(frozen=True)
class PrecisionPolicy:
    """A precision and how its graph is made.

    recipe: of the INT8 graph; None for the other precisions.
    fp32_nodes: globs over node names that stay FP32 in graphs with FP16, beside those that the
        checkpoint itself asks for (see `calibration.float16_risk`).
    float_groups: names of the layer groups that `recipe` leaves in floating point, for people.
    found: None for a policy that nobody searched for.
    """

    precision: Precision
    recipe: Int8Recipe | None = None
    fp32_nodes: tuple[str, ...] = ()
    float_groups: tuple[str, ...] = ()
    found: FoundBy | None = None

    def __post_init__(self) -> None:
        if self.precision not in get_args(Precision):
            raise ConfigError(
                f"the precision {self.precision!r}",
                expected=" or ".join(get_args(Precision)),
                do="correct the name",
            )
        if (self.precision == "int8") != (self.recipe is not None):
            raise ConfigError(
                f"a policy of {self.precision} {'with' if self.recipe else 'without'} a recipe",
                expected="a recipe for INT8, and for INT8 only",
                do="correct the policy",
            )


def globs_for(
    names: Sequence[str], others: Sequence[str], patterns: Sequence[str]
) -> tuple[str, ...]:
    """`patterns` where they tell `names` from `others` exactly, else `names` themselves.

    A glob such as "*/attn/q/MatMul" also fits a deeper network of the same architecture.
    """
    used = tuple(p for p in patterns if any(fnmatchcase(name, p) for name in names))
    exact = all(any(fnmatchcase(name, p) for p in used) for name in names) and not any(
        fnmatchcase(other, p) for other in others for p in used
    )
    return used if exact and used else tuple(names)
