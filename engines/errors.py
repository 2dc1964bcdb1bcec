"""Every error that this project raises on purpose.

RicesegError
├── UserError                 what the user gave cannot be used (exit code 2)
│   ├── CheckpointError       the weights file
│   ├── ConfigError           an option, a class file, a configuration
│   ├── ImageError            an image file
│   ├── DatasetError          a folder of images and masks, a calibration list
│   ├── BundleError           a bundle folder
│   ├── GraphError            an ONNX file
│   ├── EngineError           an engine file, or a build that failed
│   ├── DeviceError           the GPU, its driver, its memory or the CUDA binding
│   ├── InputError            an array given to a predictor
│   ├── OutputError           the place to write to
│   ├── DownloadError         the network or the server
│   ├── ClusterError          a Ray cluster cannot be reached, or failed
│   └── MissingPackageError   an optional package is not installed
└── GateError                 the result is worse than its limit (exit code 1)
"""

from __future__ import annotations

import copyreg
import errno
from typing import Any, Dict, Tuple


class RicesegError(Exception):
    """Root of the tree; its text is one line, ready to be shown."""


class UserError(RicesegError):
    """Says what was got, what was expected and what to do about it, on one line."""

    def __init__(self, got: str, *, expected: str, do: str) -> None:
        self.got, self.expected, self.do = got, expected, do
        text = f"got {got}; expected {expected}; do this: {do}"
        super().__init__(" ".join(text.split()))

    def __reduce__(self) -> Tuple[Any, ...]:
        """So that it travels between processes; as it is, pickle calls the class with the text."""
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]


class CheckpointError(UserError):
    """The weights file cannot be read, or is not of a known architecture."""


class ConfigError(UserError):
    """An option or a configuration file contradicts what was found."""


class ImageError(UserError):
    """An image file cannot be read as the network needs it."""


class DatasetError(UserError):
    """Images, masks and classes do not fit together."""


class BundleError(UserError):
    """A bundle folder is incomplete, altered or of an unknown format."""


class GraphError(UserError):
    """An ONNX file cannot be used for what was asked."""


class EngineError(UserError):
    """An engine file is damaged or made for another machine, or could not be built."""


class DeviceError(UserError):
    """The GPU, its driver, its memory or the binding to it cannot do what was asked."""


class InputError(UserError):
    """An array has the wrong dtype or shape."""


class OutputError(UserError):
    """The output cannot be written."""


# What was expected, and what helps, by the system's reason: most advice fits one of them alone.
_NOT_ALLOWED = ("a place that may be written to", "change its permissions, or {do}")
_FULL = ("room for it", "free some space, or {do}")
_BY_REASON: Dict[int, Tuple[str, str]] = {
    errno.ENAMETOOLONG: (
        "names that the file system takes, as a rule of up to 255 bytes, which are 85 letters of "
        "Korean",
        "choose a shorter name",
    ),
    errno.EACCES: _NOT_ALLOWED,
    errno.EPERM: _NOT_ALLOWED,
    errno.EROFS: ("a file system that can be written to", "{do}"),
    errno.EEXIST: ("a new name, or an older file to replace", "{do}"),
    errno.EFBIG: (
        "a file system and a limit (ulimit -f) that allow files of this size",
        "raise that limit and check the free space, or {do}",
    ),
    errno.ENOSPC: _FULL,
    getattr(errno, "EDQUOT", errno.ENOSPC): _FULL,  # not on every system
}


def output_error(
    place: str,
    error: OSError,
    *,
    expected: str = "a folder that can be written to",
    do: str = "choose another --out",
) -> OutputError:
    """Why `place` could not be written, with the advice that fits the system's reason.

    `expected` is for other reasons; `do` is what also helps: to go elsewhere, or to do without.
    """
    wanted, advice = _BY_REASON.get(error.errno or 0, (expected, "{do}"))
    said = error.strerror or str(error)
    return OutputError(f"{place}: {said}", expected=wanted, do=advice.format(do=do))


class DownloadError(UserError):
    """Published weights could not be fetched or do not have the expected hash."""


class ClusterError(UserError):
    """A Ray cluster cannot be reached, does not see the files, or lost its workers."""


class MissingPackageError(UserError):
    """An optional package is needed and not installed."""

    def __init__(self, package: str, *, needed_for: str, extra: str) -> None:
        super().__init__(
            f"no package {package!r} in this Python",
            expected=f"{package}, needed for {needed_for}",
            do=f"pip install 'riceseg[{extra}]'",
        )


class GateError(RicesegError):
    """A result was measured and is outside its limit: parity or loss of accuracy."""
