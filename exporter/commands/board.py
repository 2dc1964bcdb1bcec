"""The board's commands within `riceseg`: the same arguments and help, with shell completion."""

from __future__ import annotations

import sys
from typing import Any

import click

from engines.__main__ import run_command
from engines.commands.parsing import Command, actions_of, parser_of
from exporter.live import progress_for


class BoardCommand(click.Command):
    """One command of `python -m engines`.

    Its argparse parser reads the arguments and writes the help, so that both programs behave alike;
    click is told the parameters for completion.
    """

    def __init__(self, command: Command) -> None:
        self._command = command
        self._parser = parser_of(command, f"riceseg {command.name}")
        super().__init__(
            command.name,
            params=[_parameter(action) for action in actions_of(self._parser)],
            callback=self._run,
            short_help=command.summary,
        )

    def get_help(self, ctx: click.Context) -> str:
        return self._parser.format_help().rstrip()

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if ctx.resilient_parsing:  # completion
            return super().parse_args(ctx, args)
        if any(argument in ("-h", "--help") for argument in args):
            click.echo(self.get_help(ctx))
            ctx.exit()
        ctx.params = {"arguments": tuple(args)}
        return []

    def _run(self, arguments: tuple[str, ...]) -> None:
        sys.exit(run_command(self._command, arguments, progress_for(sys.stderr)))


def _parameter(action: Any) -> click.Parameter:
    kind = click.Choice([str(choice) for choice in action.choices]) if action.choices else None
    if not action.option_strings:
        many = action.nargs in ("+", "*")
        return click.Argument([action.dest], type=kind or click.Path(), nargs=-1 if many else 1)
    return click.Option(
        [*action.option_strings, action.dest],
        type=kind,
        is_flag=action.nargs == 0,
        help=action.help,
    )
