"""The engine of a bundle for this machine: found beside it, or built once and kept."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Iterator, List, NamedTuple, Optional, Tuple

from engines.bundle import Bundle, bundle_path
from engines.cache_folder import cache_folder
from engines.errors import EngineError, OutputError
from engines.fused_graphs import graph_key
from engines.trt.build import FOLDER, BuildOptions, engine_from_bundle, onnx_key
from engines.trt.engine_file import SUFFIX, header_from_engine
from engines.trt.engine_header import misfits
from engines.trt.places import made_folder
from engines.trt.predictor import TrtPredictor, here_from

if TYPE_CHECKING:
    from engines.cuda import Cuda
    from engines.progress import Progress
    from engines.trt.api import TensorRt
    from engines.trt.engine_header import EngineHeader

LOCK = ".building.lock"

# Graphs that an engine of each precision may have been built from.
SOURCES = {"fp32": ("fp32",), "fp16": ("fp16", "fp32"), "int8": ("int8_fp16", "int8", "fp32")}

logger = logging.getLogger(__name__)


class Shelf(NamedTuple):
    """Where engines of a bundle are looked for on this machine, and what they must be.

    `fused`: those of the graphs that take bands.
    """

    folder: Path
    bundle: Bundle
    precision: str
    tensorrt: TensorRt
    cuda: Cuda
    fused: bool = False

    def places(self) -> List[Path]:
        """The bundle's own folder, and the user's for a bundle that cannot be written to."""
        key, _ = onnx_key(self.bundle, self.tensorrt, self.options())
        places = [self.folder / FOLDER]
        with contextlib.suppress(OutputError):  # A user without a home folder has no cache folder.
            places.append(cache_folder() / FOLDER / self.bundle.files[key].sha256)
        return places

    def options(self) -> BuildOptions:
        return BuildOptions(precision=self.precision, rtx=self.tensorrt.is_rtx, fused=self.fused)

    def sources(self) -> List[str]:
        """Keys of the graphs that an engine may have been built from, the best first."""
        return [graph_key(key, fused=self.fused) for key in SOURCES[self.precision]]

    def fitting(self) -> Tuple[List[Tuple[Path, Path]], List[str]]:
        """(engine, its ONNX file) of all that fit, the best first, and why others do not."""
        found: List[Tuple[int, int, Path, Path]] = []
        others: List[str] = []
        for place in self.places():
            for path in sorted(place.glob(f"*{SUFFIX}")):
                try:
                    header = header_from_engine(path)
                except EngineError as error:
                    others.append(error.got)
                    continue
                if header.precision != self.precision or header.takes_bands != self.fused:
                    continue
                key, why = self._source_or_misfit(header)
                if why:
                    others.append(f"{path.name!r} {why}")
                else:
                    rank = self.sources().index(key)
                    onnx = bundle_path(self.folder, self.bundle.files[key].file)
                    found.append((rank, len(found), path, onnx))
        return [(path, onnx) for _, _, path, onnx in sorted(found)], others

    def _source_or_misfit(self, header: EngineHeader) -> Tuple[str, str]:
        """(Key of the ONNX file it was built from, "") or ("", why it is not taken)."""
        files = self.bundle.files
        keys = [key for key in self.sources() if key in files]
        built_from = [key for key in keys if files[key].sha256 == header.onnx_sha256]
        lines = list(misfits(header, here_from(self.tensorrt, self.cuda)))
        if not built_from:
            lines = ["built from an ONNX file that is not this bundle's"]
        elif header.dla is not None:
            # It leaves the GPU to others and is slower: whoever wants that opens it by name.
            lines = [f"for DLA core {header.dla}"]
        return ("", "; ".join(lines)) if lines else (built_from[0], "")


def engine_on(
    shelf: Shelf, *, build: bool, progress: Optional[Progress] = None
) -> Tuple[TrtPredictor, str]:
    """The predictor and a note: of an engine that is there, else of one that is built now."""
    predictor, others = _opened_engine(shelf)
    if predictor is not None:
        return predictor, ""
    if not build:
        raise EngineError(
            f"no {shelf.precision} engine for this machine in {str(shelf.folder / FOLDER)!r}"
            + (f" ({'; '.join(others)})" if others else ""),
            expected=f"one built by {shelf.tensorrt} for {shelf.cuda.info.name}",
            do=f"riceseg build {shelf.folder} --precision {shelf.precision}"
            + (" --fused" if shelf.fused else "")
            + ", or let it be built (without --no-build and build=False)",
        )
    with _building_place(shelf) as place:
        # Another process may have built it while this one waited for its turn.
        predictor, others = _opened_engine(shelf)
        if predictor is not None:
            return predictor, ""
        why = f" ({'; '.join(others)})" if others else ""
        logger.warning(
            "%s: no %s engine for this machine%s; building one with %s into %r, once: this can "
            "take minutes",
            shelf.bundle.name,
            shelf.precision,
            why,
            shelf.tensorrt,
            str(place),
        )
        record = engine_from_bundle(
            shelf.folder,
            shelf.options(),
            cuda=shelf.cuda,
            tensorrt=shelf.tensorrt,
            into=place,
            progress=progress,
        )
    predictor = TrtPredictor(
        record.path, name=_name(shelf), cuda=shelf.cuda, tensorrt=shelf.tensorrt
    )
    return predictor, f"engine built when it was opened: {record.path}"


def _opened_engine(shelf: Shelf) -> Tuple[Optional[TrtPredictor], List[str]]:
    found, others = shelf.fitting()
    for path, onnx in found:
        try:
            predictor = TrtPredictor(
                path,
                name=_name(shelf),
                cuda=shelf.cuda,
                tensorrt=shelf.tensorrt,
                refit_from=onnx,
            )
        except EngineError as error:
            others.append(error.got)
        else:
            return predictor, others
    return None, others


def _name(shelf: Shelf) -> str:
    return f"{shelf.bundle.name} {shelf.precision}"


@contextlib.contextmanager
def _building_place(shelf: Shelf) -> Iterator[Path]:
    """The first place that can be written to, which one process at a time builds in."""
    problems: List[str] = []
    for place in shelf.places():
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            lock = _opened_lock(made_folder(place) / LOCK)
        except OutputError as error:
            problems.append(error.got)
            continue
        except OSError as error:
            problems.append(f"{str(place)!r}: {error.strerror}")
            continue
        if problems:
            logger.warning(
                "%s: %s; its engine is kept in %r", shelf.bundle.name, problems[0], str(place)
            )
        with lock:
            _wait_for_turn(lock.fileno(), place)
            yield place
        return
    raise OutputError(
        f"no place for an engine: {'; '.join(problems)}",
        expected="a bundle or a cache folder that can be written to",
        do="set RICESEG_CACHE to a folder that can be written to, or pass build=False",
    )


def _opened_lock(path: Path) -> BinaryIO:
    """A file that follows no link and waits for no pipe: a bundle may bring either along."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    return os.fdopen(os.open(str(path), flags, 0o666), "r+b", buffering=0)


def _wait_for_turn(file: int, place: Path) -> None:
    """Hold the lock until the file is closed, at the latest by the end of the process."""
    try:
        import fcntl
    except ImportError:
        return  # Not on this system: two processes may both build, and the last file stays.
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        logger.warning("another process is building an engine in %r; waiting for it", str(place))
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:  # A network file system without locks.
        logger.info("no lock in %r: %s", str(place), error.strerror)
