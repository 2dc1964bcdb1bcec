"""Sensors that another program or library reads: jetson-stats, tegrastats, NVML, nvidia-smi."""

from __future__ import annotations

import importlib
import re
import subprocess
import threading
import warnings
from typing import Any, Callable, Dict, FrozenSet, List, Optional, Sequence, Tuple

from engines.board import nvidia_smi
from engines.board.files import plain_environment, status_and_output
from engines.board.sensors import (
    CLOCK,
    CLOCK_RANGE_MHZ,
    FED_BY,
    INPUT_RAILS,
    POWER,
    POWER_RANGE_W,
    TEMPERATURE,
    TEMPERATURE_RANGE_C,
    THROTTLING,
    Note,
    Reading,
    within,
)

# Bits of NVML's clocks event reasons (its manual, NvmlClocksEventReasons) that mean that the GPU
# runs slower than it was asked to. Idle, application clocks, sync boost and display do not.
SLOWED_BY = {
    0x04: "power limit",
    0x08: "hardware slowdown",
    0x20: "temperature (software)",
    0x40: "temperature (hardware)",
    0x80: "power brake",
}


def reasons_of(bits: int) -> Tuple[str, ...]:
    """Names of the reasons among NVML's bits that slow the GPU down."""
    return tuple(title for bit, title in SLOWED_BY.items() if bits & bit)


class LineSource:
    """A program that prints a line of figures again and again; a thread keeps the latest one."""

    def __init__(
        self, name: str, command: Sequence[str], parse: Callable[[str], Optional[Reading]]
    ) -> None:
        self.name = name
        self.provides: FrozenSet[str] = frozenset()
        self.rails: Tuple[str, ...] = ()
        self._parse = parse
        self._lock = threading.Lock()
        self._latest: Optional[Reading] = None
        self._reasons: List[str] = []
        self._process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=plain_environment(),
        )
        self._thread = threading.Thread(target=self._follow, name=f"riceseg {name}", daemon=True)
        self._thread.start()

    def read(self) -> Reading:
        """The last line since the last call, with the reasons of all lines since then."""
        with self._lock:
            latest, self._latest = self._latest, None
            reasons, self._reasons = tuple(dict.fromkeys(self._reasons)), []
        if latest is None:
            return Reading()
        return Reading(
            latest.power_w,
            latest.gpu_clock_mhz,
            latest.temperature_c,
            None if latest.reasons is None else reasons,
        )

    def energy_j(self) -> Optional[float]:
        return None

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
        try:
            self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._thread.join(timeout=2)
        if self._process.stdout is not None and not self._thread.is_alive():
            self._process.stdout.close()

    def _follow(self) -> None:
        assert self._process.stdout is not None
        for raw in self._process.stdout:
            reading = self._parse(raw[:65536].decode("utf-8", "replace"))
            if reading is not None:
                with self._lock:
                    self._latest = reading
                    self._reasons += reading.reasons or ()


def tegrastats(interval_ms: int) -> LineSource:
    """NVIDIA's tegrastats. It says nothing about throttling."""
    command = ["tegrastats", "--interval", str(max(interval_ms, 100))]
    source = LineSource("tegrastats", command, reading_of_tegrastats)
    source.provides = frozenset({POWER, CLOCK, TEMPERATURE})
    source.rails = ("tegrastats",)
    return source


def reading_of_tegrastats(line: str) -> Optional[Reading]:
    """`VDD_IN 4940mW/4500mW` (now/mean), `GR3D_FREQ 99%@[1098,1098]`, `gpu@48.6C` of one line."""
    # JetPack 5.0 and before print "VDD_IN 4940/4500", and "RAM 6712/7620MB" is no rail.
    rails = {
        name: int(now) / 1e3
        for name, now in re.findall(
            r"\b([A-Z][A-Z0-9_]+) (\d{1,7})(?:mW)?/\d{1,7}(?:mW)?(?=\s|$)", line
        )
    }
    total = next((rails[name] for name in INPUT_RAILS if name in rails), None)
    if total is None and rails:
        total = sum(watts for name, watts in rails.items() if FED_BY.get(name) not in rails)
    clock = re.search(r"\bGR3D_FREQ (?:\d+%)?@\[?(\d+(?:,\d+)*)", line)
    heat = re.search(r"\bgpu@(-?\d+(?:\.\d+)?)C", line, re.IGNORECASE)
    if total is None and clock is None and heat is None:
        return None
    return Reading(
        power_w=within(total, POWER_RANGE_W),
        gpu_clock_mhz=within(
            max(float(part) for part in clock.group(1).split(",")) if clock else None,
            CLOCK_RANGE_MHZ,
        ),
        temperature_c=within(float(heat.group(1)) if heat else None, TEMPERATURE_RANGE_C),
    )


SMI_FIELDS = ("power.draw", "clocks.sm", "temperature.gpu")
# The second is the name before driver 535.
REASON_FIELDS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")


def smi(device: int, interval_ms: int) -> Optional[LineSource]:
    """`nvidia-smi` printing a line per interval; None where it has no such figures.

    Its power is the mean of the last second on most GPUs since Ampere.
    """
    for reason_field in (*REASON_FIELDS, None):
        fields = [*SMI_FIELDS, *([reason_field] if reason_field else [])]
        question = [f"--id={nvidia_smi.gpu_choice(device)}", f"--query-gpu={','.join(fields)}"]
        command = ["nvidia-smi", *question, *nvidia_smi.CSV]
        status, first = status_and_output(command, timeout_s=nvidia_smi.TIMEOUT_S)
        if status is None:
            return None  # it hangs, and would again
        if status != 0:
            continue
        reading = reading_of_smi(first)
        if reading is None:
            return None
        source = LineSource(
            "nvidia-smi", [*command, f"-lms={max(interval_ms, 20)}"], reading_of_smi
        )
        source.provides, source.rails = provided(reading), ("GPU board",)
        return source
    return None


def reading_of_smi(line: str) -> Optional[Reading]:
    """`71.20, 1980, 54, 0x0000000000000004`: W, MHz, °C, bits of the reasons; N/A where unknown."""
    cells = [cell.strip() for cell in line.strip().split(",")]
    if len(cells) < len(SMI_FIELDS):
        return None
    power, clock, heat = (nvidia_smi.figure(cell) for cell in cells[:3])
    bits = cells[3] if len(cells) > 3 else ""
    known = re.fullmatch(r"0x[0-9a-fA-F]{1,16}", bits) is not None
    return Reading(
        within(power, POWER_RANGE_W),
        within(clock, CLOCK_RANGE_MHZ),
        within(heat, TEMPERATURE_RANGE_C),
        reasons_of(int(bits, 16)) if known else None,
    )


def provided(reading: Reading) -> FrozenSet[str]:
    """What a first reading shows that the source can tell."""
    there = {
        POWER: reading.power_w,
        CLOCK: reading.gpu_clock_mhz,
        TEMPERATURE: reading.temperature_c,
        THROTTLING: reading.reasons,
    }
    return frozenset(what for what, value in there.items() if value is not None)


class Nvml:
    """NVIDIA's management library through nvidia-ml-py. Raises what that raises when opened."""

    name = "NVML"
    provides: FrozenSet[str] = frozenset()
    rails: Tuple[str, ...] = ("GPU board",)

    def __init__(self, device: int, note: Note) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the old package `pynvml` warns that it is old
            self._nvml: Any = importlib.import_module("pynvml")
        self._note = note
        self._nvml.nvmlInit()
        self._open = True
        try:
            self._gpu = self._handle(nvidia_smi.gpu_choice(device))
            first = self.read()
        except BaseException:
            self.close()
            raise
        self.provides = provided(first)

    def read(self) -> Reading:
        nvml, gpu = self._nvml, self._gpu
        milliwatts = self._asked("power", lambda: nvml.nvmlDeviceGetPowerUsage(gpu))
        clock = self._asked(
            "GPU clock", lambda: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM)
        )
        heat = self._asked(
            "temperature", lambda: nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU)
        )
        # Renamed with driver 535; the old function is kept.
        asked = getattr(nvml, "nvmlDeviceGetCurrentClocksEventReasons", None)
        asked = asked or nvml.nvmlDeviceGetCurrentClocksThrottleReasons
        bits = self._asked("throttling", lambda: asked(gpu))
        return Reading(
            within(None if milliwatts is None else milliwatts / 1e3, POWER_RANGE_W),
            within(clock, CLOCK_RANGE_MHZ),
            within(heat, TEMPERATURE_RANGE_C),
            None if bits is None else reasons_of(int(bits)),
        )

    def energy_j(self) -> Optional[float]:
        """Joules since the driver was loaded, from Volta on."""
        try:
            return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._gpu)) / 1e3
        except Exception:
            return None

    def close(self) -> None:
        if self._open:
            self._open = False
            self._nvml.nvmlShutdown()

    def _handle(self, choice: str) -> Any:
        if choice.isdigit():
            return self._nvml.nvmlDeviceGetHandleByIndex(int(choice))
        return self._nvml.nvmlDeviceGetHandleByUUID(choice)

    def _asked(self, title: str, question: Callable[[], Any]) -> Optional[float]:
        try:
            return float(question())
        except Exception as error:  # NVMLError is of a class that stubs and old versions differ in
            self._note(f"{title}: {error}")
            return None


class JetsonStats:
    """jetson-stats' service through its `jtop` client. Raises what that raises when opened."""

    name = "jetson-stats"
    provides: FrozenSet[str] = frozenset({POWER, CLOCK, TEMPERATURE})
    rails: Tuple[str, ...] = ("jetson-stats total",)

    def __init__(self, interval_s: float) -> None:
        self._client: Any = importlib.import_module("jtop").jtop(interval=max(interval_s, 0.1))
        self._client.start()
        self._client.ok()  # waits for the first figures

    def read(self) -> Reading:
        total = self._client.power.get("tot", {}).get("power")  # mW
        clocks = [gpu.get("freq", {}).get("cur") for gpu in self._client.gpu.values()]  # kHz
        heat: Dict[str, Any] = {k.lower(): v for k, v in self._client.temperature.items()}
        celsius = heat.get("gpu", {}).get("temp")
        clock = max((c for c in clocks if isinstance(c, (int, float))), default=None)
        return Reading(
            within(None if total is None else total / 1e3, POWER_RANGE_W),
            within(None if clock is None else clock / 1e3, CLOCK_RANGE_MHZ),
            within(celsius, TEMPERATURE_RANGE_C),
        )

    def energy_j(self) -> Optional[float]:
        return None

    def close(self) -> None:
        self._client.close()
