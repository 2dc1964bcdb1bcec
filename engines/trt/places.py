"""Files around a build: it replaces regular files alone, each in one step, and never its input.

A bundle comes from anywhere, so a name in it may be a link or a pipe. New files are made under
names that nobody knows before (open mode "x" follows no link), and then take their place.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from pathlib import Path
from typing import Iterable, Iterator, Optional

from engines.errors import BundleError, ConfigError, GraphError, OutputError, output_error
from engines.trt.log import MessageLog

SUFFIX = ".engine"

# Errors that name what to change by themselves: TensorRT's log would add nothing.
_WITHOUT_LOG = (BundleError, ConfigError, OutputError)


def beside(engine: Path, suffix: str) -> Path:
    """A file that goes with an engine: NAME.log beside NAME.engine, never the engine itself."""
    name = engine.stem if engine.suffix == SUFFIX else engine.name
    return engine.with_name(name + suffix)


def check_places(onnx_path: Path, out_path: Path, timing_cache: Optional[Path]) -> None:
    """OutputError unless a build of `onnx_path` may write `out_path` and what goes beside it.

    Refused are its own input, what exists and is not a regular file, and a name that the file
    system does not take. Of the timing cache, whose other troubles are warnings, only the first.
    """
    if out_path.name in ("", ".", ".."):
        raise _refused(out_path, "which names no file")
    beside_it = [beside(out_path, end) for end in (".log", ".failed.log", ".calibration.cache")]
    if timing_cache is not None and _same_file(timing_cache, onnx_path):
        raise ConfigError(
            f"--timing-cache {str(timing_cache)!r}, which is the ONNX file itself",
            expected="a file of its own, which is replaced",
            do="give another name, or leave it out",
        )
    for path in (out_path, *beside_it):
        try:
            check_replaceable(path)
            if _same_file(path, onnx_path):
                raise _refused(path, "which is the ONNX file itself")
        except OSError as error:
            raise not_written(path, error) from error
        except ValueError as error:
            raise _refused(path, f"which is no path ({error})") from error


def _same_file(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(str(one), str(other))
    except OSError:
        return False  # One of them is not there.


def check_replaceable(path: Path) -> None:
    """OSError for what is there and is not a regular file (links followed)."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        raise OSError(errno.EEXIST, "it exists and is not a regular file")


def replace_file(path: Path, parts: Iterable[bytes]) -> None:
    """Write `parts` to `path` in one step, replacing an older regular file; OSError if it cannot.

    A link of that name is replaced itself; where it leads is not written to.
    """
    check_replaceable(path)
    # Short, so that it fits wherever the name itself does.
    temporary = path.with_name(f".{secrets.token_hex(6)}.tmp")
    try:
        with open(temporary, "xb") as file:
            for part in parts:
                file.write(part)
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):  # It took its place, or was never made.
            temporary.unlink()


def not_written(path: Path, error: OSError) -> OutputError:
    """What the system said of a file that could not be written, and what to do about it."""
    return output_error(repr(str(path)), error, do="choose another place, whose folder exists")


def made_folder(folder: Path) -> Path:
    """`folder`, made if it is missing; OutputError for a link, which may lead anywhere."""
    try:
        if folder.is_symlink():
            raise OSError(errno.ELOOP, "it is a symbolic link")
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"{str(folder)!r}: {error.strerror}",
            expected="a bundle folder that can be written to",
            do="check its permissions and the free space, or copy the bundle",
        ) from error
    return folder


def name_for_header(onnx_path: Path) -> str:
    """The file's name as text; GraphError for one that an engine's header cannot hold."""
    try:
        name = os.fsencode(onnx_path.name).decode("utf-8")
    except UnicodeError:
        name = ""
    if not 1 <= len(name) <= 300 or any(ord(c) < 32 or 127 <= ord(c) < 160 for c in name):
        raise GraphError(
            f"an ONNX file of the name {onnx_path.name!r}",
            expected="a name in UTF-8 without control characters, for the engine's header",
            do="rename it",
        )
    return name


def bytes_of_onnx(path: Path) -> bytes:
    """What the file holds; GraphError where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise GraphError(
            f"{str(path)!r}: {error.strerror}",
            expected="a readable ONNX file",
            do="check the path and its permissions",
        ) from error


@contextlib.contextmanager
def build_log(out_path: Path) -> Iterator[MessageLog]:
    """The log of a build: building-*.log while it runs, then NAME.log beside the engine.

    NAME.failed.log after an error (its `kept_as`), so that an older engine keeps its own log;
    nothing after Ctrl-C or an error that TensorRT has no part in.
    """
    good, failed = beside(out_path, ".log"), beside(out_path, ".failed.log")
    temporary = out_path.with_name(f"building-{secrets.token_hex(6)}.log")
    try:
        log = MessageLog(temporary)
    except OSError as error:
        raise not_written(out_path, error) from error
    log.kept_as = failed
    try:
        with log:
            yield log
    except BaseException as error:
        if isinstance(error, Exception) and not isinstance(error, _WITHOUT_LOG):
            _renamed(log, failed)
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _renamed(log, good)
    with contextlib.suppress(OSError):
        failed.unlink()


def _renamed(log: MessageLog, path: Path) -> None:
    assert log.path is not None
    try:
        os.replace(log.path, path)
    except OSError as error:
        log.failure = f"TensorRT's log did not become {str(path)!r}: {error.strerror}"
    else:
        log.path = path


def _refused(path: Path, why: str) -> OutputError:
    return OutputError(
        f"{str(path)!r}, {why}", expected="a file name for the engine", do="give another --out"
    )
