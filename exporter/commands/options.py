"""Options that several commands share, and how their text is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from exporter.load import LoadOptions
from exporter.request import DataOptions

Command = Callable[..., Any]


class Size(click.ParamType[tuple[int, int]]):
    """HEIGHTxWIDTH, for example 512x512."""

    name = "HxW"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        sides = str(value).lower().split("x")
        if len(sides) != 2 or not all(side.isascii() and side.isdigit() for side in sides):
            self.fail(f"got {value!r}; expected HEIGHTxWIDTH, for example 512x512", param, ctx)
        return int(sides[0]), int(sides[1])


class BatchRange(click.ParamType[tuple[int, int, int]]):
    """MIN:OPT:MAX, for example 1:4:8."""

    name = "MIN:OPT:MAX"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, int, int]:
        if isinstance(value, tuple):
            return value
        parts = str(value).split(":")
        if len(parts) != 3 or not all(part.isascii() and part.isdigit() for part in parts):
            self.fail(f"got {value!r}; expected MIN:OPT:MAX, for example 1:4:8", param, ctx)
        return int(parts[0]), int(parts[1]), int(parts[2])


class Numbers(click.ParamType[tuple[float, ...]]):
    """Numbers separated by commas, one per channel."""

    name = "N,N,..."

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"got {value!r}; expected numbers separated by commas", param, ctx)


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


def data_options(function: Command) -> Command:
    """How odd images are treated; the folders themselves differ between commands."""
    return _add(
        [
            click.option("--skip-bad", is_flag=True,
                         help="Leave unreadable images out, and say which."),
            click.option("--convert-images", is_flag=True,
                         help="Convert grey, RGBA, 16-bit and CMYK images as mmsegmentation does."),
            click.option("--reduce-zero-label/--keep-zero-label", default=None,
                         help="Masks: 0 is ignored, others go down by one (ADE20K)."
                              " Default: as the checkpoint's configuration says."),
        ],
        function,
    )  # fmt: skip


def data_options_from(
    values: dict[str, Any], *, calib: Path | None, val: Path | None, val_masks: Path | None
) -> DataOptions:
    return DataOptions(
        calib=calib,
        val=val,
        val_masks=val_masks,
        skip_bad=values["skip_bad"],
        convert_images=values["convert_images"],
        reduce_zero_label=values["reduce_zero_label"],
    )
