"""Command lines without a package: argparse whose mistakes are this project's errors."""

from __future__ import annotations

import argparse
from typing import Any, Callable, NamedTuple, NoReturn, Optional, Sequence, Tuple

from engines.errors import ConfigError
from engines.progress import Progress

MAX_DIGITS = 9  # longer numbers are no sizes, and Python refuses to read those of 4300 digits


class Command(NamedTuple):
    """One command: its name, a line on what it does, examples, its arguments, and its work.

    `run` returns the exit code: 0, or 1 for a result outside its limit. It raises UserError.
    """

    name: str
    summary: str
    examples: Sequence[str]
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, Progress], int]


class CommandParser(argparse.ArgumentParser):
    """A parser that raises ConfigError instead of printing and leaving."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(
            f"a command that cannot be run: {message}",
            expected=" ".join(self.format_usage().partition(":")[2].split()),
            do=f"see `{self.prog} --help`",
        )


def parser_of(command: Command, prog: str) -> CommandParser:
    """The parser of one command, called `prog` in its help."""
    examples = "\n".join(f"  {line}" for line in ("Examples:", *command.examples))
    parser = CommandParser(
        prog=prog,
        description=command.summary,
        epilog=examples[2:],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.add_arguments(parser)
    return parser


def is_count(text: str) -> bool:
    """Whether `text` is a whole number of a sensible length."""
    return text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS


def count(low: int, high: int) -> Callable[[str], int]:
    """The type of a whole number from `low` to `high`."""

    def convert(text: str) -> int:
        digits = text[1:] if text.startswith("-") else text
        if is_count(digits):
            number = int(text)
            if low <= number <= high:
                return number
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {low} to {high}")

    return convert


def batch_range(text: str) -> Tuple[int, int, int]:
    """MIN:OPT:MAX, for example 1:4:8."""
    parts = text.split(":")
    if len(parts) == 3 and all(p.isascii() and p.isdigit() and len(p) <= 4 for p in parts):
        low, usual, high = (int(part) for part in parts)
        if 1 <= low <= usual <= high:
            return low, usual, high
    raise argparse.ArgumentTypeError(f"{text!r} is no MIN:OPT:MAX with 1 <= MIN <= OPT <= MAX")


def actions_of(parser: argparse.ArgumentParser) -> Sequence[Any]:
    """Arguments and options of a parser, without --help."""
    return [action for action in parser._actions if action.dest != "help"]


def parsed(
    command: Command, prog: str, arguments: Optional[Sequence[str]] = None
) -> argparse.Namespace:
    """The arguments of a command; ConfigError for what it does not take."""
    return parser_of(command, prog).parse_args(arguments)
