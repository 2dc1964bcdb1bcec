"""Power, GPU clock, temperature and throttling of a Jetson, straight from the kernel's files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Dict, FrozenSet, List, Optional, Protocol, Sequence, Tuple

from engines.board.files import entries, number_now, number_of, text_of
from engines.board.jetson import gpu_clock_folder

POWER, CLOCK, TEMPERATURE, THROTTLING = "power", "clock", "temperature", "throttling"
Note = Callable[[str], None]

# The rail at the input of the module or the board, where there is one: VIN on Thor (INA238),
# VDD_IN on Orin Nano and NX and on Xavier NX, POM_5V_IN on Nano.
INPUT_RAILS = ("VIN", "VDD_IN", "POM_5V_IN")
# AGX Orin has no such rail. Its memory is fed from VIN_SYS_5V0, so adding both counts it twice.
FED_BY = {"VDDQ_VDD2_1V8AO": "VIN_SYS_5V0"}

# What is believed; anything else is a broken sensor. A rail's offset may be a little below zero.
POWER_RANGE_W = (-5.0, 2000.0)
CLOCK_RANGE_MHZ = (1.0, 10000.0)  # 0 is a GPU that is switched off between two runs
TEMPERATURE_RANGE_C = (-40.0, 150.0)  # a thermal zone that is switched off says -256

OVER_CURRENT = {1: "under-voltage", 2: "average over-current", 3: "instantaneous over-current"}


@dataclass(frozen=True)
class Reading:
    """One look at the sensors; None where not known. `reasons`: why the clock was held down."""

    power_w: Optional[float] = None
    gpu_clock_mhz: Optional[float] = None
    temperature_c: Optional[float] = None
    reasons: Optional[Tuple[str, ...]] = None


class Source(Protocol):
    """Sensors of one kind. `read` and `close` do not raise for a sensor that fails."""

    name: str
    provides: FrozenSet[str]
    rails: Tuple[str, ...]  # what the power is the sum of

    def read(self) -> Reading:
        """What the sensors say now."""

    def energy_j(self) -> Optional[float]:
        """A counter of energy since some fixed time, where there is one."""

    def close(self) -> None:
        """Let go of what it holds; may be called twice."""


def within(value: Optional[float], low_high: Tuple[float, float]) -> Optional[float]:
    """`value`, or None outside the range; also for NaN."""
    return value if value is not None and low_high[0] <= value <= low_high[1] else None


class Rail:
    """One supply: its power in W is voltage times current, or the chip's own product."""

    def __init__(self, name: str, paths: Sequence[Path], *, per_w: float) -> None:
        self.name, self._paths, self._per_w = name, tuple(paths), per_w

    def watts(self) -> float:
        """OSError or ValueError where the sensor does not answer."""
        product = 1
        for path in self._paths:
            product *= number_now(path)
        return product / self._per_w


def rails_of(root: Path) -> List[Rail]:
    """The rails whose sum is the power of the board, or as near to it as it measures."""
    found = {rail.name: rail for rail in _all_rails(root)}
    for name in INPUT_RAILS:
        if name in found:
            return [found[name]]
    return [rail for name, rail in found.items() if FED_BY.get(name) not in found]


def _all_rails(root: Path) -> List[Rail]:
    rails: List[Rail] = []
    for hwmon in _power_monitors(root):
        for label in entries(hwmon, "in[0-9]_label"):
            name, channel = text_of(label), label.name[2]
            if not name or name == "NC":  # not connected
                continue
            power = hwmon / f"power{channel}_input"  # µW, on INA238
            # mV and mA. Channel 7, the sum of the shunt voltages, has no current and is left out.
            pair = [hwmon / f"in{channel}_input", hwmon / f"curr{channel}_input"]
            if number_of(power) is not None:
                rails.append(Rail(name, [power], per_w=1e6))
            elif all(number_of(path) is not None for path in pair):
                rails.append(Rail(name, pair, per_w=1e6))
    # JetPack 4's driver, without hwmon: mW.
    for label in entries(root / "sys/bus/i2c/drivers/ina3221x", "*/iio:device*/rail_name_*"):
        name, power = text_of(label), label.parent / f"in_power{label.name[10:]}_input"
        if name and name != "NC" and number_of(power) is not None:
            rails.append(Rail(name, [power], per_w=1e3))
    return rails


def _power_monitors(root: Path) -> List[Path]:
    drivers = root / "sys/bus/i2c/drivers"
    found = entries(drivers, "ina3221/*/hwmon/hwmon*") + entries(drivers, "ina238/*/hwmon/hwmon*")
    known = {folder.name for folder in found}
    for hwmon in entries(root / "sys/class/hwmon", "hwmon*"):
        if hwmon.name not in known and text_of(hwmon / "name") in ("ina3221", "ina238"):
            found.append(hwmon)
    return found


def temperature_file(root: Path) -> Optional[Path]:
    """The GPU's thermal zone (m°C), else that of the hottest junction."""
    zones: Dict[str, Path] = {}
    for zone in entries(root / "sys/class/thermal", "thermal_zone*"):
        zones.setdefault((text_of(zone / "type") or "").lower(), zone / "temp")
    # gpu-thermal with JetPack 6 and 7, GPU-therm with 5 and before.
    wanted = ("gpu-thermal", "gpu-therm", "tj-thermal", "tj-therm")
    return next((zones[name] for name in wanted if name in zones), None)


class Throttling:
    """Whether the firmware slowed the board down since the last question.

    Two kinds of sign: the counters of under-voltage and over-current (hwmon soctherm_oc, Orin and
    Thor) that grew, and the cooling devices *-throttle-alert and hot-surface-alert that are active.
    """

    def __init__(self, root: Path) -> None:
        self._counters: Dict[Path, str] = {}
        for hwmon in entries(root / "sys/class/hwmon", "hwmon*"):
            for path in entries(hwmon, "oc[0-9]_event_cnt"):
                number = int(path.name[2])
                if number_of(hwmon / f"oc{number}_throt_en") != 0:
                    self._counters[path] = OVER_CURRENT.get(number, f"over-current {number}")
        self._alerts: Dict[Path, str] = {}
        for device in entries(root / "sys/class/thermal", "cooling_device*"):
            kind = text_of(device / "type") or ""
            if kind.endswith(("throttle-alert", "hot-surface-alert")):
                self._alerts[device / "cur_state"] = kind
        self._counts = {path: number_of(path) for path in self._counters}

    @property
    def known(self) -> bool:
        return bool(self._counters or self._alerts)

    def reasons(self) -> Tuple[str, ...]:
        """OSError or ValueError where a file does not answer."""
        found = [kind for path, kind in self._alerts.items() if number_now(path) > 0]
        for path, title in self._counters.items():
            count, before = number_now(path), self._counts[path]
            if before is not None and count > before:
                found.append(title)
            self._counts[path] = count
        return tuple(found)


class JetsonSensors:
    """A Source of the kernel's files: INA3221 or INA238, devfreq, thermal zones, soctherm."""

    def __init__(self, root: Path, note: Note) -> None:
        self._note = note
        self._rails = rails_of(root)
        gpu = gpu_clock_folder(root)
        self._clock = gpu / "cur_freq" if gpu and number_of(gpu / "cur_freq") is not None else None
        self._heat = temperature_file(root)
        self._throttling = Throttling(root)
        self.rails = tuple(rail.name for rail in self._rails)
        found = {
            POWER: bool(self._rails),
            CLOCK: self._clock is not None,
            TEMPERATURE: self._heat is not None,
            THROTTLING: self._throttling.known,
        }
        self.provides = frozenset(what for what, there in found.items() if there)
        self.name = "INA3221 sysfs" if self._rails else "sysfs"

    def read(self) -> Reading:
        return Reading(
            power_w=self._asked("power", self._power, POWER_RANGE_W),
            gpu_clock_mhz=self._asked("GPU clock", self._gpu_clock, CLOCK_RANGE_MHZ),
            temperature_c=self._asked("temperature", self._temperature, TEMPERATURE_RANGE_C),
            reasons=self._reasons(),
        )

    def energy_j(self) -> Optional[float]:
        return None

    def close(self) -> None:
        pass

    def _asked(
        self, title: str, read: Callable[[], Optional[float]], low_high: Tuple[float, float]
    ) -> Optional[float]:
        try:
            value = read()
        except (OSError, ValueError) as error:
            self._note(f"{title}: {_why(error)}")
            return None
        if value is not None and value != 0 and within(value, low_high) is None:
            self._note(f"{title}: values that cannot be, for example {value:g}")
        return within(value, low_high)

    def _power(self) -> Optional[float]:
        return sum(rail.watts() for rail in self._rails) if self._rails else None

    def _gpu_clock(self) -> Optional[float]:
        return None if self._clock is None else number_now(self._clock) / 1e6

    def _temperature(self) -> Optional[float]:
        return None if self._heat is None else number_now(self._heat) / 1e3

    def _reasons(self) -> Optional[Tuple[str, ...]]:
        if not self._throttling.known:
            return None
        try:
            return self._throttling.reasons()
        except (OSError, ValueError) as error:
            self._note(f"throttling: {_why(error)}")
            return None


def _why(error: Exception) -> str:
    if isinstance(error, PermissionError):
        return "no permission to read the sensor"
    if isinstance(error, FileNotFoundError):
        return "the sensor has disappeared"
    if isinstance(error, OSError):
        return f"the sensor does not answer ({error.strerror})"
    return "the sensor says no number"
