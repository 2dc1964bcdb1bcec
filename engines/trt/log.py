"""TensorRT's log: everything into a file, the last errors into our own message."""

from __future__ import annotations

import contextlib
import logging
import re
import threading
import time
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Any, Deque, Dict, Iterator, List, Optional, Sequence, TextIO, Tuple, Type

from engines.trt.api import TensorRt
from engines.trt.layer_names import layers_named_in

# Values of ILogger.Severity.
INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)
_LETTERS = "XEWIV"

KEPT_ERRORS = 20
SHOWN_ERRORS = 3
MAX_NAME, MAX_ERROR = 200, 1_000  # characters of one message that are shown
# TensorRT-RTX 1.7 writes 0.6 MB for SegFormer-B0. Timing tactics on a GPU writes more; beyond this
# only messages that are not verbose go into the file.
MAX_VERBOSE_BYTES = 32_000_000

# Of a layer that the builder takes for a part of attention, and of all layers of a built engine
# (TensorRT-RTX 1.7; the second also of TensorRT 10.10, NVIDIA/TensorRT issue 4397).
_RECOGNISED = re.compile(r"Found (\S+) to be part of self-attention pattern")
_LISTING = "Layers:\nName: "

_log = logging.getLogger(__name__)


class MessageLog:
    """Keeps the last errors and warnings, and writes every message to `path` if there is one.

    A context manager that closes the file. `path` must be new (OSError where it cannot be made),
    `kept_as` is where the file will lie after a failure. `message` never raises, because TensorRT
    calls it from C++ that takes no exception; a file that cannot be written any more is told in
    `failure`.
    `recognised` are the layers that a builder took for parts of attention, `listing` its list of
    the engine's layers, "" if it wrote none.
    """

    def __init__(self, path: Optional[Path] = None) -> None:
        self.path = path
        self.kept_as: Optional[Path] = path
        self.errors: Deque[str] = deque(maxlen=KEPT_ERRORS)
        self.warnings: Deque[str] = deque(maxlen=KEPT_ERRORS)
        self.failure: Optional[str] = None
        self.recognised: List[str] = []
        self.listing = ""
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._written = 0
        self._file: Optional[TextIO] = None
        if path is not None:
            self._file = open(path, "x", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115

    def message(self, severity: int, text: str) -> None:
        """One message of TensorRT, of any thread."""
        with self._lock:
            if severity <= ERROR:
                self.errors.append(text)
            elif severity == WARNING:
                self.warnings.append(text)
            elif severity >= VERBOSE:
                self._keep(text)
            if self._file is None or (severity >= VERBOSE and self._written > MAX_VERBOSE_BYTES):
                return
            letter = _LETTERS[min(severity, VERBOSE)]
            line = f"{time.monotonic() - self._started:9.3f} {letter} {text}\n"
            try:
                self._file.write(line)
            except (OSError, ValueError) as error:
                self.failure = f"TensorRT's log is incomplete: {error}"
                return
            self._written += len(line)

    def _keep(self, text: str) -> None:
        """What `engines.trt.fusion` reads, of a hundred thousand verbose messages."""
        if text.startswith(_LISTING):
            self.listing += text + "\n"
        elif text.startswith("Found "):
            found = _RECOGNISED.match(text)
            if found is not None:
                self.recognised.append(found[1])

    def close(self) -> None:
        with self._lock:
            file, self._file = self._file, None
            if file is None:
                return
            try:
                file.close()
            except OSError as error:
                self.failure = f"TensorRT's log is incomplete: {error}"

    def __enter__(self) -> MessageLog:
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self.close()


class _Forwarder:
    """What every message of one library is given to: the logs that listen, else Python's log."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listening: Tuple[MessageLog, ...] = ()

    def add(self, log: MessageLog) -> None:
        with self._lock:
            self._listening += (log,)

    def remove(self, log: MessageLog) -> None:
        with self._lock:
            self._listening = tuple(other for other in self._listening if other is not log)

    def message(self, severity: int, text: str) -> None:
        for log in self._listening:
            log.message(severity, text)
        if not self._listening and severity <= WARNING:
            _log.warning("TensorRT: %s", " ".join(text.split()))


# TensorRT registers the first logger of a process and ignores a second one with a warning, so each
# library gets one for good. The module is kept so that its id stays its own.
_loggers: Dict[int, Tuple[Any, Any, _Forwarder]] = {}
_loggers_lock = threading.Lock()


def process_logger(tensorrt: TensorRt) -> Any:
    """The ILogger to give to a Builder or Runtime, the same one each time."""
    return _logger_and_forwarder(tensorrt)[0]


@contextlib.contextmanager
def listening(tensorrt: TensorRt, log: MessageLog) -> Iterator[Any]:
    """Give TensorRT's messages, of all threads, to `log` until the block ends; yields the logger.

    Where nobody listens, errors and warnings go to Python's log.
    """
    logger, forwarder = _logger_and_forwarder(tensorrt)
    forwarder.add(log)
    try:
        yield logger
    finally:
        forwarder.remove(log)


def _logger_and_forwarder(tensorrt: TensorRt) -> Tuple[Any, _Forwarder]:
    with _loggers_lock:
        key = id(tensorrt.module)
        if key not in _loggers:
            forwarder = _Forwarder()
            logger = _logger_class(tensorrt.module)(forwarder)
            _loggers[key] = (tensorrt.module, logger, forwarder)
        return _loggers[key][1:]


def _logger_class(module: Any) -> Any:
    base: Any = module.ILogger

    class ForwardingLogger(base):  # type: ignore[misc]
        def __init__(self, forwarder: _Forwarder) -> None:
            base.__init__(self)  # pybind11 needs it called by this name.
            self._forwarder = forwarder

        def log(self, severity: Any, msg: str) -> None:
            self._forwarder.message(int(severity), msg)

    return ForwardingLogger


def shortened(text: str, limit: int = MAX_NAME) -> str:
    """At most `limit` characters of `text`: names in an ONNX file may have megabytes."""
    return text if len(text) <= limit else text[: limit - 3] + "..."


def errors_text(errors: Sequence[str]) -> str:
    """The last errors on one line, each once, with the layers of the model that they name."""
    unique: List[str] = list(dict.fromkeys(" ".join(error.split()) for error in errors))
    shown = []
    for error in unique[-SHOWN_ERRORS:]:
        layers = [shortened(layer) for layer in layers_named_in(error)]
        named = f" [{'layer' if len(layers) == 1 else 'layers'} {', '.join(layers)}]"
        shown.append(shortened(error, MAX_ERROR) + (named if layers else ""))
    return "; ".join(shown) or "no error in its log"
