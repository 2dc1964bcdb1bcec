"""The command group: exit codes, error texts and shell completion for every command."""

from __future__ import annotations

import logging
from typing import Any

import click
from click.shell_completion import get_completion_class

from engines.errors import GateError, MissingPackageError, UserError
from exporter.commands.evaluate import evaluate
from exporter.commands.export import export
from exporter.commands.inspect import inspect
from exporter.commands.models import models
from exporter.commands.segment import segment
from exporter.machine import package_versions


class ErrorsAsText(click.Group):
    """A user's mistake is one line and exit code 2; a failed gate is one line and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            _stop(error, 2)
        except GateError as error:
            _stop(error, 1)
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if package in ("engines", "calibration", "exporter", ""):
                raise  # a broken installation of ours, not a missing extra
            missing = MissingPackageError(package, needed_for="this command", extra="export")
            _stop(missing, 2)


def _stop(error: Exception, code: int) -> None:
    click.echo(f"error: {error}", err=True)
    raise SystemExit(code)


@click.group(cls=ErrorsAsText, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_versions()["riceseg"], prog_name="riceseg")
@click.option("-v", "--verbose", is_flag=True, help="Show what the library logs.")
def riceseg(verbose: bool) -> None:
    """Trained segmentation checkpoints to verified INT8/FP16 bundles that run without torch."""
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(message)s")


@riceseg.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a SHELL.

    \b
    bash: eval "$(riceseg completion bash)"     (in ~/.bashrc)
    zsh:  eval "$(riceseg completion zsh)"      (in ~/.zshrc)
    fish: riceseg completion fish | source      (in ~/.config/fish/config.fish)
    """
    kind = get_completion_class(shell)
    assert kind is not None  # the three shells that click knows
    click.echo(kind(riceseg, {}, "riceseg", "_RICESEG_COMPLETE").source())


for command in (export, evaluate, segment, inspect, models):
    riceseg.add_command(command)
