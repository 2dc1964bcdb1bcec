"""The command group: exit codes, error texts and shell completion for every command."""

from __future__ import annotations

import contextlib
import errno
import importlib
import logging
from collections.abc import Iterator
from typing import Any

import click
from click.shell_completion import get_completion_class

from engines.board.machine import package_versions
from engines.commands.mistakes import (
    GATE,
    INTERRUPTED,
    MISTAKE,
    let_every_text_pass,
    mistake_of,
    told,
)
from engines.errors import ConfigError, GateError, MissingPackageError

# By name, the module and what it calls the command; loaded when it is asked for.
COMMANDS = {
    "prepare": ("exporter.commands.prepare", "prepare"),
    "export": ("exporter.commands.export", "export"),
    "calibrate-set": ("exporter.commands.calibrate_set", "calibrate_set"),
    "evaluate": ("exporter.commands.evaluate", "evaluate"),
    "sensitivity": ("exporter.commands.sensitivity", "sensitivity"),
    "segment": ("exporter.commands.segment", "segment"),
    "inspect": ("exporter.commands.inspect", "inspect"),
    "models": ("exporter.commands.models", "models"),
    "report": ("exporter.commands.report", "report"),
    "build": ("engines.commands.build", "COMMAND"),
    "bench": ("exporter.commands.bench", "COMMAND"),
    "trt-eval": ("engines.commands.trt_eval", "COMMAND"),
    "doctor": ("engines.commands.doctor", "COMMAND"),
}


class ErrorsAsText(click.Group):
    """A user's mistake is one line and exit code 2; a failed gate is one line and exit code 1."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*self.commands, *COMMANDS})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.commands and cmd_name in COMMANDS:
            self.add_command(_loaded(cmd_name), cmd_name)
        return super().get_command(ctx, cmd_name)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        let_every_text_pass()
        return super().main(*args, **kwargs)

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with _errors_as_text():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        with _errors_as_text():
            return super().invoke(ctx)


@contextlib.contextmanager
def _errors_as_text() -> Iterator[None]:
    try:
        yield
    except click.UsageError as error:
        # `riceseg` alone shows its help, which click 8.2 and newer raise as an error.
        if isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):
            raise
        _stop(_usage_error(error), MISTAKE)
    except (KeyboardInterrupt, click.Abort):
        click.echo("\ninterrupted", err=True)
        raise SystemExit(INTERRUPTED) from None
    except GateError as error:
        _stop(error, GATE)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("engines", "calibration", "exporter", ""):
            raise  # a broken installation of ours, not a missing extra
        _stop(MissingPackageError(package, needed_for="this command", extra="export"), MISTAKE)
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.EPIPE:
            raise  # whoever read our output is gone, for which click knows what to do
        mistake = mistake_of(error)
        if mistake is None:
            raise
        _stop(mistake, MISTAKE)


def _loaded(name: str) -> click.Command:
    module, attribute = COMMANDS[name]
    command = getattr(importlib.import_module(module), attribute)
    if isinstance(command, click.Command):
        return command
    from exporter.commands.board import BoardCommand

    return BoardCommand(command)


def _usage_error(error: click.UsageError) -> ConfigError:
    usage = error.ctx.get_usage().partition(":")[2].strip() if error.ctx else "riceseg COMMAND"
    command = error.ctx.command_path if error.ctx else "riceseg"
    message = error.format_message().strip().rstrip(".")
    return ConfigError(
        f"a command that cannot be run: {message}", expected=usage, do=f"see `{command} --help`"
    )


def _stop(error: Exception, code: int) -> None:
    raise SystemExit(told(error, code))


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
