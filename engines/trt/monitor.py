"""A build's progress on our display, and Ctrl-C that stops it."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from typing import Any, Dict, Iterator, List, Optional

from engines.progress import Progress
from engines.trt.api import TensorRt

_log = logging.getLogger(__name__)

STEPS = 100  # what a whole build counts as


class Interruption:
    """Whether Ctrl-C was pressed since `watched` began."""

    def __init__(self) -> None:
        self.requested = False

    @contextlib.contextmanager
    def watched(self, *, can_cancel: bool) -> Iterator[None]:
        """Note Ctrl-C instead of raising, for TensorRT's callbacks may not raise.

        KeyboardInterrupt is raised at the end. Where a build cannot be cancelled, a second Ctrl-C
        ends the process at once. In another thread than the main one nothing is changed.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = signal.getsignal(signal.SIGINT)

        def note(number: int, frame: Any) -> None:
            self.requested = True
            if can_cancel:
                _log.warning("stopping at the next step of TensorRT")
                return
            _log.warning(
                "this TensorRT cannot stop a build that runs: it will stop after it, or press "
                "Ctrl-C again to end the program"
            )
            signal.signal(signal.SIGINT, signal.SIG_DFL)

        signal.signal(signal.SIGINT, note)
        try:
            yield
        finally:
            # None stands for a handler that was not installed from Python.
            signal.signal(signal.SIGINT, signal.SIG_DFL if previous is None else previous)
        if self.requested:
            raise KeyboardInterrupt


class Fraction:
    """How far a tree of phases is, 0..1, never going back. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._phases: Dict[str, _Phase] = {}
        self._roots: List[str] = []
        self._reached = 0.0

    def start(self, name: str, parent: Optional[str], steps: int) -> None:
        with self._lock:
            self._phases[name] = _Phase(parent, max(1, steps))
            if parent is None:
                self._roots.append(name)

    def step(self, name: str, number: int) -> float:
        """`number` counts from 0; a phase that was not started counts for nothing."""
        with self._lock:
            if name in self._phases:
                phase = self._phases[name]
                phase.done = min(phase.steps, max(phase.done, number + 1))
            return self._now()

    def finish(self, name: str) -> float:
        with self._lock:
            phase = self._phases.get(name)
            if phase is not None:
                phase.done = phase.steps
                if phase.parent is not None:
                    # Its parent counts it as a step of its own, which comes with step().
                    del self._phases[name]
            return self._now()

    def _now(self) -> float:
        if self._roots:
            self._reached = max(self._reached, self._fraction(self._roots[-1]))
        return self._reached

    def _fraction(self, name: str) -> float:
        phase = self._phases[name]
        running = sum(
            self._fraction(child) for child, other in self._phases.items() if other.parent == name
        )
        return min(1.0, (phase.done + min(1.0, running)) / phase.steps)


class _Phase:
    def __init__(self, parent: Optional[str], steps: int) -> None:
        self.parent, self.steps, self.done = parent, steps, 0


def build_monitor(tensorrt: TensorRt, progress: Progress, interruption: Interruption) -> Any:
    """An IProgressMonitor that advances `progress` and stops the build after Ctrl-C."""
    base: Any = tensorrt.module.IProgressMonitor

    class BuildMonitor(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)  # pybind11 needs it called by this name.
            self._fraction = Fraction()
            self._failed = False

        def phase_start(self, phase_name: str, parent_phase: Any, num_steps: int) -> None:
            self._fraction.start(phase_name, parent_phase or None, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._show(self._fraction.step(phase_name, step))
            return not interruption.requested

        def phase_finish(self, phase_name: str) -> None:
            self._show(self._fraction.finish(phase_name))

        def _show(self, fraction: float) -> None:
            """C++ calls this and takes no exception: a display that fails is told once."""
            if self._failed:
                return
            try:
                progress.advance(int(STEPS * fraction), STEPS)
            except Exception:
                self._failed = True
                _log.exception("the progress display failed; the build goes on")

    return BuildMonitor()
