"""Options that several commands share, and how their text is read."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from engines.bundle import MAX_BATCH
from engines.commands.parsing import is_count
from engines.errors import ConfigError
from exporter.request import DataOptions, LoadOptions

Command = Callable[..., Any]


class Size(click.ParamType):  # type: ignore[type-arg]  # generic in the newest click only
    """HEIGHTxWIDTH, for example 512x512."""

    name = "HxW"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        sides = str(value).lower().split("x")
        if len(sides) != 2 or not all(map(is_count, sides)):
            raise _refused(param, value, "HEIGHTxWIDTH in pixels", "512x512")
        return int(sides[0]), int(sides[1])


class BatchRange(click.ParamType):  # type: ignore[type-arg]
    """MIN:OPT:MAX, for example 1:4:8."""

    name = "MIN:OPT:MAX"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, int, int]:
        if isinstance(value, tuple):
            return value
        parts = str(value).split(":")
        sizes = [int(part) for part in parts if is_count(part)]
        if not len(parts) == len(sizes) == 3 or not 1 <= sizes[0] <= sizes[1] <= sizes[2]:
            raise _refused(param, value, "MIN:OPT:MAX with 1 <= MIN <= OPT <= MAX", "1:4:8")
        if sizes[2] > MAX_BATCH:
            raise _refused(param, value, f"at most {MAX_BATCH} images", "1:4:8")
        return sizes[0], sizes[1], sizes[2]


class Numbers(click.ParamType):  # type: ignore[type-arg]
    """Numbers separated by commas, one per channel."""

    name = "N,N,..."

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        numbers = tuple(map(_number, str(value).split(",")))
        if not all(map(math.isfinite, numbers)):
            example = getattr(param, "default", None)
            example = example if isinstance(example, str) else "123.675,116.28,103.53"
            raise _refused(param, value, "numbers separated by commas", example)
        return numbers


class Number(click.ParamType):  # type: ignore[type-arg]
    """A number from `low` to `high`; click's own FloatRange lets NaN pass."""

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high, self.example = low, high, high
        self.name = f"{low:g}..{high:g}"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        number = _number(str(value))
        if not self.low <= number <= self.high:
            # Without a default newer versions of click have an object of their own there.
            default = getattr(param, "default", None)
            example = default if isinstance(default, (int, float)) else self.example
            raise _refused(param, value, f"a number from {self.low:g} to {self.high:g}", example)
        return number


def _number(text: str) -> float:
    """NaN for what is no number."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _refused(param: Any, value: object, expected: str, example: object) -> ConfigError:
    option = param.opts[0] if param is not None else "a value"
    shown = str(value) if len(str(value)) <= 60 else f"{str(value)[:57]}..."
    return ConfigError(
        f"{option} {shown!r}", expected=expected, do=f"give, for example, {option} {example}"
    )


PATH = click.Path(path_type=Path)


def _add(options: list[Command], function: Command) -> Command:
    for option in reversed(options):
        function = option(function)
    return function


def load_options(function: Command) -> Command:
    """Adds what `load_options_from` reads."""
    return _add(
        [
            click.option("--classes", type=PATH,
                         help="File of class names (one a line, or JSON), with colours if wanted."),
            click.option("--keep-classes", type=int, metavar="N",
                         help="Keep only the first N outputs."),
            click.option("--mean", type=Numbers(), help="Per channel, 0..255 scale, RGB order."),
            click.option("--std", type=Numbers(), help="Per channel, 0..255 scale, RGB order."),
        ],
        function,
    )  # fmt: skip


def load_options_from(values: dict[str, Any], model: str | None = None) -> LoadOptions:
    return LoadOptions(
        model=model,
        classes=values["classes"],
        keep_classes=values["keep_classes"],
        mean=values["mean"],
        std=values["std"],
    )


def val_options(function: Command) -> Command:
    """Labelled images, as `data_options_from` takes them."""
    return _add(
        [
            click.option("--val", type=PATH, help="Labelled images to validate on."),
            click.option("--val-masks", type=PATH,
                         help="Their masks, where they do not lie beside them."),
        ],
        function,
    )  # fmt: skip


def image_options(function: Command) -> Command:
    """How odd images are treated."""
    return _add(
        [
            click.option("--skip-bad", is_flag=True,
                         help="Leave unreadable images out, and say which."),
            click.option("--convert-images", is_flag=True,
                         help="Convert grey, RGBA, 16-bit and CMYK images as mmsegmentation does."),
        ],
        function,
    )  # fmt: skip


def ray_option(function: Command) -> Command:
    """`ray`, the address of a cluster or None."""
    return _add(
        [
            click.option("--ray", metavar="ADDRESS",
                         help="Spread the work over this Ray cluster: auto, or HOST:PORT. Its"
                              " machines must have riceseg and see the same folders."),
        ],
        function,
    )  # fmt: skip


def data_options(function: Command) -> Command:
    """How odd images and masks are treated; the folders themselves differ between commands."""
    return _add(
        [
            image_options,
            click.option("--reduce-zero-label/--keep-zero-label", default=None,
                         help="Masks: 0 is ignored, others go down by one (ADE20K)."
                              " Default: as the checkpoint's configuration says."),
        ],
        function,
    )  # fmt: skip


def data_options_from(
    values: dict[str, Any], *, calib: Path | None, val: Path | None, val_masks: Path | None
) -> DataOptions:
    if val_masks is not None and val is None:
        raise ConfigError(
            "--val-masks without --val",
            expected="the images that the masks belong to",
            do="pass --val with the folder of images, or leave --val-masks out",
        )
    return DataOptions(
        calib=calib,
        val=val,
        val_masks=val_masks,
        skip_bad=values["skip_bad"],
        convert_images=values["convert_images"],
        reduce_zero_label=values["reduce_zero_label"],
    )
