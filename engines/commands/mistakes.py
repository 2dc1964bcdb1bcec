"""What ends a command: one line on stderr and an exit code instead of a traceback."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from typing import Callable, Optional

from engines.errors import ConfigError, GateError, UserError, output_error
from engines.progress import printable

GATE, MISTAKE, INTERRUPTED = 1, 2, 130  # exit codes; 128 + SIGINT is what shells expect


def exit_code_of(work: Callable[[], int]) -> int:
    """Run `work` as a program: its exit code, or that of what it raised, which stderr then tells.

    A mistake of this project's own is raised on.
    """
    let_every_text_pass()
    try:
        code = work()
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return INTERRUPTED
    except GateError as error:
        return told(error, GATE)
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.EPIPE:
            discard_output()  # whoever read it, `head` say, has left
            return 1
        mistake = mistake_of(error)
        if mistake is None:
            raise
        return told(mistake, MISTAKE)


def mistake_of(error: BaseException) -> Optional[UserError]:
    """What to tell the user: a file in the way and too little memory are no bugs. None for a bug.

    For errors that no stage expected; a UserError is returned as it is.
    """
    if isinstance(error, UserError):
        return error
    if isinstance(error, OSError):
        return output_error(
            _short(error.filename or "a file"),
            error,
            expected="files and folders that can be read and written",
            do="check the path and the disk",
        )
    # numpy raises MemoryError, torch RuntimeError, ONNX Runtime a class of its own.
    if isinstance(error, MemoryError) or "allocate memory" in str(error):
        said = f" ({str(error)[:200]})" if str(error) else ""
        return ConfigError(
            f"too little memory{said}",
            expected="free memory for this network's size and batch",
            do="choose a smaller size or batch, or close other programs",
        )
    return None


def told(error: Exception, code: int) -> int:
    """`code`, after the error's line on stderr; output that cannot be written is given up."""
    try:
        sys.stdout.flush()
    except OSError:
        discard_output()  # else Python tries again at its end, says so and exits with 120
    print(f"error: {printable(str(error))}", file=sys.stderr)
    return code


def discard_output() -> None:
    """What stdout still holds goes nowhere."""
    with contextlib.suppress(io.UnsupportedOperation):  # of a stream in memory
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def let_every_text_pass() -> None:
    """Class and file names are of any script: what the terminal's encoding lacks is escaped.

    A stream that was closed before the start (2>&-) is replaced by one that swallows all.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _short(name: object) -> str:
    shown = str(name)
    return shown if len(shown) <= 200 else f"{shown[:100]}...{shown[-60:]}"
