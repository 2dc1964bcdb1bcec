"""Implicit INT8 of TensorRT 8 to 10: ranges from a calibration cache, or from images run live.

Written against NVIDIA's documentation and tested with a fake: no TensorRT with calibrators could
be run here.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Callable, Iterator, List, Optional, Sequence, Tuple

import numpy as np

from engines.cuda.interface import Cuda
from engines.errors import ConfigError, DeviceError, UserError
from engines.images import image_from_file
from engines.resize import Image, network_image_from_image
from engines.trt.api import TensorRt
from engines.trt.options import Calibration

MAX_CACHE_BYTES = 100_000_000

# The cache that trtexec, DeepStream and this project write; TensorRT refuses one whose first line
# bears another version, although its scales do not depend on it.
_FIRST_LINE = re.compile(rb"TRT-\d{3,6}-EntropyCalibration2\r?\n")


class CalibrationRun:
    """What TensorRT's calibrator asks for; its exceptions are kept, for C++ takes none.

    `written` is the cache that TensorRT made of the images, None where one was read.
    """

    def __init__(
        self,
        cache: Optional[bytes],
        batches: Iterator[Image],
        *,
        batch_size: int,
        on_device: Callable[[Image], int],
    ) -> None:
        self.batch_size = batch_size
        self.written: Optional[bytes] = None
        self.error: Optional[Exception] = None
        self._cache, self._batches, self._on_device = cache, batches, on_device

    def next_addresses(self, names: Sequence[str]) -> Optional[List[int]]:
        """Device address of the next batch for the one input; None at the end or after an error."""
        try:
            batch = next(self._batches, None)
            return None if batch is None else [self._on_device(batch)]
        except Exception as error:
            self.error = error
            return None

    def cache(self) -> Optional[bytes]:
        return self._cache

    def keep(self, cache: Any) -> None:
        self.written = bytes(cache)


def calibrator(tensorrt: TensorRt, run: CalibrationRun) -> Any:
    """An IInt8EntropyCalibrator2 that asks `run`; both must live until the build ends."""
    base: Any = tensorrt.module.IInt8EntropyCalibrator2

    class Calibrator(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)  # pybind11 needs it called by this name.

        def get_batch_size(self) -> int:
            return run.batch_size

        def get_batch(self, names: Sequence[str]) -> Optional[List[int]]:
            return run.next_addresses(names)

        def read_calibration_cache(self) -> Optional[bytes]:
            return run.cache()

        def write_calibration_cache(self, cache: Any) -> None:
            run.keep(cache)

    return Calibrator()


def cache_for(tensorrt: TensorRt, path: Path) -> bytes:
    """The cache at `path` with its first line made this version's; ConfigError for another file."""
    try:
        size = path.stat().st_size
        data = path.read_bytes() if path.is_file() and size <= MAX_CACHE_BYTES else b""
    except OSError as error:
        raise ConfigError(
            f"calibration cache {str(path)!r}: {error.strerror}",
            expected="a readable file",
            do="export with --int8, or give images with --calib",
        ) from error
    first = _FIRST_LINE.match(data)
    if first is None:
        raise ConfigError(
            f"calibration cache {str(path)!r} that begins with {data[:40]!r}",
            expected="a first line such as TRT-8601-EntropyCalibration2",
            do="give the calibration.cache of a bundle",
        )
    line = f"TRT-{tensorrt.calibration_version()}-EntropyCalibration2\n"
    return line.encode("ascii") + data[first.end() :]


def run_from_cache(cache: bytes) -> CalibrationRun:
    """Nothing is run: the scales are in the cache."""

    def nothing(batch: Image) -> int:
        raise DeviceError(
            "a calibration cache that TensorRT does not take",
            expected="one with a scale for every tensor of this graph",
            do="give images with --calib instead",
        )

    return CalibrationRun(cache, iter(()), batch_size=1, on_device=nothing)


class DeviceBatch:
    """Room for one batch on the GPU. A context manager that frees it."""

    def __init__(self, cuda: Cuda, nbytes: int) -> None:
        self._stream = cuda.stream()
        self._host = cuda.host_buffer(nbytes)
        self._device = cuda.device_buffer(nbytes)
        self._cuda = cuda

    def fill(self, batch: Image) -> int:
        """Copy a batch there and wait; returns its device address."""
        data = np.ascontiguousarray(batch).reshape(-1)
        self._host.array[: data.size] = data
        self._cuda.copy_in(self._device, self._host, data.size, self._stream)
        self._stream.synchronize()
        return self._device.address

    def close(self) -> None:
        self._device.free()
        self._host.free()
        self._stream.destroy()

    def __enter__(self) -> DeviceBatch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def calibration_batches(
    calibration: Calibration,
    hwc: Tuple[int, int, int],
    batch: int,
    on_image: Callable[[int, int], None],
) -> Iterator[Image]:
    """The images as batches (batch, H, W, C) uint8, read one batch at a time.

    The last batch is filled up with the first images of all, so that each image counts.
    """
    if not calibration.images:
        raise ConfigError(
            "implicit INT8 without a calibration cache and without images",
            expected="a bundle that was exported with --int8, or images from the field",
            do="give a folder of training images with --calib",
        )
    waiting: List[Image] = []
    filling: List[Image] = []
    for done, path in enumerate(calibration.images, start=1):
        waiting.append(_network_image(path, calibration, hwc))
        filling = (filling + waiting[-1:])[:batch]
        on_image(done, len(calibration.images))
        if len(waiting) == batch:
            yield np.stack(waiting)
            waiting = []
    if waiting:
        missing = batch - len(waiting)
        waiting += [filling[i % len(filling)] for i in range(missing)]
        yield np.stack(waiting)


def _network_image(path: Path, calibration: Calibration, hwc: Tuple[int, int, int]) -> Image:
    height, width, channels = hwc
    image = image_from_file(path, channels=channels, convert=calibration.convert)
    pad = calibration.pad_value or (0,) * channels
    return network_image_from_image(image, (height, width), calibration.rule, pad)


def raise_kept(run: Optional[CalibrationRun]) -> None:
    """Raise what went wrong in TensorRT's callbacks."""
    if run is None or run.error is None:
        return
    if isinstance(run.error, UserError):
        raise run.error
    raise DeviceError(
        f"calibration images that could not be brought to the GPU ({run.error})",
        expected="images of the network's channels and free GPU memory",
        do="see the log, or give fewer other programs the GPU",
    ) from run.error
