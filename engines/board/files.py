"""Small files of the kernel and short commands, read without ever raising."""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

MOST_OUTPUT = 1_000_000  # bytes of a command
MOST_BYTES = 65536  # of one file of the kernel; /var/lib/dpkg/status is read line by line instead


def text_of(path: Path) -> Optional[str]:
    """The file's text without white space and NUL at its ends; None if it cannot be read."""
    try:
        return text_now(path)
    except OSError:
        return None


def text_now(path: Path) -> str:
    """The same, but raises OSError. Reads at most 64 KiB, bytes that are no UTF-8 as "\\ufffd"."""
    # Three system calls instead of a buffered file: 4 against 9 µs (tried), for the sampling.
    descriptor = os.open(str(path), os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, MOST_BYTES).decode("utf-8", "replace").strip(" \t\r\n\0")
    finally:
        os.close(descriptor)


def number_of(path: Path) -> Optional[int]:
    """The whole number that is the file's first word; None if there is none."""
    try:
        return number_now(path)
    except (OSError, ValueError):
        return None


def number_now(path: Path) -> int:
    """The same, but raises OSError, or ValueError where the file does not start with a number."""
    words = text_now(path).split(None, 1)
    if not words or len(words[0]) > 20:
        raise ValueError(f"{path.name} holds no number")
    return int(words[0])


def mega(path: Path, *, per: float) -> Optional[float]:
    """A clock in MHz, of a file in 1/`per` MHz (Hz: 1e6, kHz: 1e3); None if it is not known."""
    value = number_of(path)
    return None if value is None or value < 0 else round(value / per, 1)


def entries(folder: Path, pattern: str = "*") -> List[Path]:
    """Sorted paths in a folder that fit the pattern; empty if it cannot be read."""
    try:
        return sorted(folder.glob(pattern))
    except OSError:
        return []


def output_of(command: Sequence[str], *, timeout_s: float = 10.0) -> Optional[str]:
    """What a command that exits with 0 prints; None if it is not there, fails or hangs."""
    status, output = status_and_output(command, timeout_s=timeout_s)
    return output if status == 0 else None


def status_and_output(command: Sequence[str], *, timeout_s: float) -> Tuple[Optional[int], str]:
    """Exit status and standard output; status None if it could not be started or was stopped.

    It is stopped, with all that it started, after the time or 1 MB of output.
    """
    found = shutil.which(command[0])
    if found is None:
        return None, ""
    try:
        child = subprocess.Popen(
            [found, *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=plain_environment(),
            start_new_session=True,
        )
    except OSError:
        return None, ""
    deadline = time.monotonic() + timeout_s
    try:
        output = _output(child, deadline)
        status = child.wait(timeout=max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return None, ""
    finally:
        stop_group(child)
    return status, output.decode("utf-8", "replace")


def _output(child: subprocess.Popen[bytes], deadline: float) -> bytes:
    """All of it; TimeoutExpired at the deadline, or where it is too much to be what was asked."""
    assert child.stdout is not None
    output = b""
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        while len(output) <= MOST_OUTPUT and selector.select(max(0.0, deadline - time.monotonic())):
            part = os.read(child.stdout.fileno(), 65536)
            if not part:
                return output
            output += part
    raise subprocess.TimeoutExpired(child.args, 0.0)


def stop_group(child: subprocess.Popen[bytes]) -> None:
    """End a child that leads its own process group, with what it started; harmless afterwards."""
    if child.returncode is None:  # not waited for, so its number is no other process's yet
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except OSError:
            child.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=1.0)  # one that waits inside a broken driver cannot be ended
    if child.stdout is not None:
        child.stdout.close()


def plain_environment() -> Dict[str, str]:
    """This process's environment with English messages and a decimal point."""
    return {**os.environ, "LC_ALL": "C"}
