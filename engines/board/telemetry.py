"""What a board draws, how fast and how hot its GPU is, sampled while something runs on it."""

from __future__ import annotations

import math
import os
import shutil
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Callable, Dict, List, Optional, Set, Tuple, Type, Union

from engines.board import jetson, programs
from engines.board.sensors import (
    CLOCK,
    POWER,
    TEMPERATURE,
    THROTTLING,
    JetsonSensors,
    Reading,
    Source,
)
from engines.errors import ConfigError

MOST_NOTES = 10
FAILURES = 5  # a source that raises this often in a row is not asked again
COUNTER_S = 1.0  # the energy counter moves every 20 to 100 ms, so a shorter time is too coarse


class Telemetry:
    """Samples in a thread of its own from entering to leaving; `record` tells what was seen.

    Sources in this order, each for what those before it cannot tell: on a Jetson the kernel's
    files, jetson-stats, tegrastats; everywhere NVML (nvidia-ml-py), nvidia-smi. No sensor that
    fails disturbs the run: it becomes a line of `notes`. Can be entered once.

        with Telemetry() as telemetry:
            run()
        telemetry.record()["power_w"]
    """

    def __init__(
        self,
        root: Union[str, os.PathLike[str]] = "/",
        *,
        hz: float = 10.0,
        device: int = 0,
        sources: Optional[Callable[[], List[Source]]] = None,
    ) -> None:
        """`device` is CUDA's number of the GPU; `sources` replaces the search for sensors."""
        if not 0.1 <= hz <= 1000:
            raise ConfigError(f"{hz} samples a second", expected="0.1 to 1000", do="leave it at 10")
        self._interval_s = 1.0 / hz
        self._find = sources or (lambda: self._sources_found(Path(root), device))
        self._sources: List[Source] = []
        self._failures: Dict[str, int] = {}
        self._owner: Dict[str, Source] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: Optional[threading.Thread] = None
        self._notes: Dict[str, None] = {}
        self._power: List[float] = []
        self._clock: List[float] = []
        self._heat: List[float] = []
        self._reasons: Dict[str, None] = {}
        self._throttling_seen = False
        self._samples = 0
        self._began = self._ended = 0.0
        self._energy: Tuple[Optional[float], Optional[float]] = (None, None)

    def __enter__(self) -> Telemetry:
        if self._thread is not None:
            raise ConfigError(
                "a Telemetry that was used before",
                expected="a new one for each run",
                do="write `with Telemetry() as telemetry:` around each run",
            )
        self._sources = self._find()
        for source in self._sources:
            for what in source.provides:
                self._owner.setdefault(what, source)
        self._began, self._energy = time.perf_counter(), (self._counter(), None)
        self._thread = threading.Thread(target=self._run, name="riceseg telemetry", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self._stop.set()
        self._energy = (self._energy[0], self._counter())
        self._ended = time.perf_counter()
        if self._thread is not None:
            self._thread.join(timeout=10)
        # Counters of throttling are looked at once more; the load has ended, so the other values
        # count only for a run that was over before its first sample.
        if self._thread is not None and not self._thread.is_alive():
            self._sample(last=True)
        for source in self._sources:
            try:
                source.close()
            except Exception as problem:
                self.note(f"{source.name}: {problem}")

    def record(self) -> Dict[str, Any]:
        """What was seen so far; None where nothing was.

        power_w (mean), gpu_clock_mhz (mean), gpu_clock_min_mhz, temperature_c (highest), throttled,
        throttle_reasons, source, power_rails (what the power is the sum of: a module's input and a
        graphics card are not the same), samples, seconds, notes.
        """
        with self._lock:
            ended = self._ended or time.perf_counter()
            seconds = ended - self._began if self._began else 0.0
            return {
                "power_w": _rounded(self._mean_power(seconds), 3),
                "gpu_clock_mhz": _rounded(_mean(self._clock), 1),
                "gpu_clock_min_mhz": _rounded(min(self._clock, default=None), 1),
                "temperature_c": _rounded(max(self._heat, default=None), 1),
                "throttled": bool(self._reasons) if self._throttling_seen else None,
                "throttle_reasons": list(self._reasons),
                "source": self._source_names(),
                "power_rails": list(self._owner[POWER].rails) if POWER in self._owner else [],
                "samples": self._samples,
                "seconds": round(seconds, 3),
                "notes": list(self._notes),
            }

    def note(self, text: str) -> None:
        """Keep a line for the record, once, up to ten of them."""
        with self._lock:
            if len(self._notes) < MOST_NOTES:
                self._notes.setdefault(" ".join(text.split())[:200])

    def _run(self) -> None:
        due = time.perf_counter()
        while True:
            # From due time to due time, so that slow sensors do not lower the rate; never in a rush
            # after a long pause of the machine.
            due = max(due + self._interval_s, time.perf_counter())
            if self._stop.wait(max(0.0, due - time.perf_counter())):
                return
            self._sample()

    def _sample(self, *, last: bool = False) -> None:
        readings = {id(source): self._asked(source) for source in self._sources}
        with self._lock:
            got = {what: readings[id(source)] for what, source in self._owner.items()}
            if not last or self._samples == 0:
                self._samples += 1
                for what, kept in (
                    (POWER, self._power),
                    (CLOCK, self._clock),
                    (TEMPERATURE, self._heat),
                ):
                    value = _value(got.get(what), what)
                    if value is not None and math.isfinite(value):
                        kept.append(value)
            reasons = got[THROTTLING].reasons if THROTTLING in got else None
            if reasons is not None:
                self._throttling_seen = True
                self._reasons.update(dict.fromkeys(reasons))

    def _asked(self, source: Source) -> Reading:
        if self._failures.get(source.name, 0) >= FAILURES:
            return Reading()
        try:
            reading = source.read()
        except Exception as problem:  # a library's error of any class must not end the run
            self._failures[source.name] = self._failures.get(source.name, 0) + 1
            self.note(f"{source.name}: {type(problem).__name__}: {problem}")
            return Reading()
        self._failures[source.name] = 0
        return reading

    def _counter(self) -> Optional[float]:
        owner = self._owner.get(POWER)
        try:
            return None if owner is None else owner.energy_j()
        except Exception as problem:
            self.note(f"energy counter: {type(problem).__name__}: {problem}")
            return None

    def _mean_power(self, seconds: float) -> Optional[float]:
        # NVML's power is the mean of the last second on most GPUs since Ampere, so samples of a
        # short run also hold what came before it; the counter does not.
        first, last = self._energy
        if first is not None and last is not None and last > first and seconds >= COUNTER_S:
            return (last - first) / seconds
        return _mean(self._power)

    def _source_names(self) -> Optional[str]:
        used = [source.name for source in self._sources if source in self._owner.values()]
        return ", ".join(used) or None

    def _sources_found(self, root: Path, device: int) -> List[Source]:
        found: List[Source] = []
        missing: Set[str] = {POWER, CLOCK, TEMPERATURE}
        interval_ms = round(self._interval_s * 1000)
        board: List[Callable[[], Optional[Source]]] = [
            lambda: JetsonSensors(root, self.note),
            lambda: programs.JetsonStats(self._interval_s),
            lambda: programs.tegrastats(interval_ms) if shutil.which("tegrastats") else None,
        ]
        driver: List[Callable[[], Optional[Source]]] = [
            lambda: programs.Nvml(device, self.note),
            lambda: programs.smi(device, interval_ms) if shutil.which("nvidia-smi") else None,
        ]
        for opened in [*(board if jetson.is_jetson(root) else []), *driver]:
            if not missing:
                break
            source = self._opened(opened)
            if source is not None and source.provides & missing:
                found.append(source)
                missing -= source.provides
            elif source is not None:
                source.close()
        if POWER in missing:
            self.note("no power sensor was found")
        return found

    def _opened(self, open_source: Callable[[], Optional[Source]]) -> Optional[Source]:
        try:
            return open_source()
        except ImportError:
            return None  # not installed is no problem worth a note
        except Exception as problem:
            self.note(f"{type(problem).__name__}: {problem}")
            return None


def _value(reading: Optional[Reading], what: str) -> Optional[float]:
    if reading is None:
        return None
    values = {
        POWER: reading.power_w,
        CLOCK: reading.gpu_clock_mhz,
        TEMPERATURE: reading.temperature_c,
    }
    return values[what]


def _mean(values: List[float]) -> Optional[float]:
    return sum(values) / len(values) if values else None


def _rounded(value: Optional[float], digits: int) -> Optional[float]:
    return None if value is None else round(value, digits)
