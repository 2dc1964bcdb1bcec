"""The command group: exit codes, error texts and shell completion for every command."""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any

import click
from click.shell_completion import get_completion_class

from engines.board.machine import package_versions
from engines.commands.build import COMMAND as BUILD
from engines.commands.doctor import COMMAND as DOCTOR
from engines.commands.trt_eval import COMMAND as TRT_EVAL
from engines.errors import (
    ConfigError,
    GateError,
    MissingPackageError,
    OutputError,
    UserError,
)
from engines.progress import printable
from exporter.commands.bench import COMMAND as BENCH
from exporter.commands.board import BoardCommand
from exporter.commands.evaluate import evaluate
from exporter.commands.export import export
from exporter.commands.inspect import inspect
from exporter.commands.models import models
from exporter.commands.report import report
from exporter.commands.segment import segment


class ErrorsAsText(click.Group):
    """A user's mistake is one line and exit code 2; a failed gate is one line and exit code 1."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        _let_every_text_pass()
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
        _stop(_usage_error(error), 2)
    except UserError as error:
        _stop(error, 2)
    except GateError as error:
        _stop(error, 1)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("engines", "calibration", "exporter", ""):
            raise  # a broken installation of ours, not a missing extra
        _stop(MissingPackageError(package, needed_for="this command", extra="export"), 2)
    except OSError as error:  # a file that no stage expected to be in the way
        if error.errno == errno.EPIPE:
            raise  # whoever read our output is gone, for which click knows what to do
        _stop(_unusable_file(error), 2)
    except Exception as error:
        # numpy raises MemoryError, torch RuntimeError, ONNX Runtime a class of its own.
        if not isinstance(error, MemoryError) and "allocate memory" not in str(error):
            raise
        _stop(_out_of_memory(error), 2)


def _unusable_file(error: OSError) -> OutputError:
    return OutputError(
        f"{error.filename or 'a file'}: {error.strerror or error}",
        expected="files and folders that can be read and written",
        do="check the path, its permissions and the disk",
    )


def _out_of_memory(error: Exception) -> ConfigError:
    return ConfigError(
        f"too little memory ({str(error)[:200]})",
        expected="free memory for this --size and batch",
        do="choose a smaller --size or batch, or close other programs",
    )


def _usage_error(error: click.UsageError) -> ConfigError:
    usage = error.ctx.get_usage().partition(":")[2].strip() if error.ctx else "riceseg COMMAND"
    command = error.ctx.command_path if error.ctx else "riceseg"
    message = error.format_message().strip().rstrip(".")
    return ConfigError(
        f"a command that cannot be run: {message}", expected=usage, do=f"see `{command} --help`"
    )


def _stop(error: Exception, code: int) -> None:
    click.echo(f"error: {printable(str(error))}", err=True)
    raise SystemExit(code)


def _let_every_text_pass() -> None:
    """Class and file names are of any script: what the terminal's encoding lacks is escaped.

    A stream that was closed before the start (2>&-) is replaced by one that swallows all.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


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


for command in (export, evaluate, segment, inspect, models, report):
    riceseg.add_command(command)
for board_command in (BUILD, BENCH, TRT_EVAL, DOCTOR):
    riceseg.add_command(BoardCommand(board_command))
