"""Pinned wheels from PyPI, unpacked once into a folder of the user's cache.

The folder is ~/.cache/riceseg-tests, or $RICESEG_TEST_CACHE. pip checks every SHA-256.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

PINS = Path(__file__).resolve().parent / "wheels"
PIP_TIMEOUT_S = 900


class FixtureUnavailable(Exception):
    """What a fixture needs cannot be had on this machine; the message says what and why."""


def cache_root() -> Path:
    chosen = os.environ.get("RICESEG_TEST_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "riceseg-tests"


def folder_of_wheels(pins: str, *sources: Path, finish: Callable[[Path], None]) -> Path:
    """Folder with the wheels of wheels/`pins`.txt, as `finish` left it; for sys.path.

    `finish` gets the folder with the unpacked wheels and adds to it. A change of the pins, of
    `sources` (the files that `finish` depends on) or of Python's version makes another folder.
    Two processes may ask at once. Raises FixtureUnavailable.
    """
    _check_platform()
    requirements = PINS / f"{pins}.txt"
    version = hashlib.sha256()
    for path in (requirements, *sources):
        version.update(path.read_bytes())
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    target = cache_root() / f"{pins}-{tag}-{version.hexdigest()[:12]}"
    if target.is_dir():
        return target
    with _locked(target.with_name(f"{target.name}.lock")):
        if not target.is_dir():
            _fill(requirements, target, finish)
    return target


def _check_platform() -> None:
    here = (platform.system(), platform.machine())
    if here != ("Linux", "x86_64"):
        raise FixtureUnavailable(f"the wheels are for Linux x86_64, this is {' '.join(here)}")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
    except OSError as error:
        raise FixtureUnavailable(f"the cache folder {path.parent}: {error}") from error


def _fill(requirements: Path, target: Path, finish: Callable[[Path], None]) -> None:
    """Into a temporary folder first, so that `target` is complete or not there."""
    temporary = Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=target.parent))
    try:
        _pip_install(requirements, temporary)
        finish(temporary)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _pip_install(requirements: Path, target: Path) -> None:
    options = ["--quiet", "--no-cache-dir", "--disable-pip-version-check", "--no-input"]
    pins = ["--no-deps", "--require-hashes", "--only-binary", ":all:", "-r", str(requirements)]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(target), *pins]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=PIP_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise FixtureUnavailable(f"pip took more than {PIP_TIMEOUT_S} s") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        said = " ".join(lines) or done.stderr[-500:] or f"exit status {done.returncode}"
        raise FixtureUnavailable(f"pip could not install {requirements.name}: {said}")
