from __future__ import annotations

import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_boards import (
    agx_orin,
    ina3221,
    orin_nano,
    over_current,
    plain,
    program,
    programs_fixture,
    rtx_desktop,
    thor,
    write,
    xavier_nx,
)

from engines.board import Telemetry
from engines.board.programs import reading_of_smi, reading_of_tegrastats, reasons_of
from engines.board.sensors import CLOCK, POWER, TEMPERATURE, THROTTLING, JetsonSensors, Reading
from engines.errors import ConfigError

__all__ = ["programs_fixture"]
INA = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1"


@pytest.fixture(autouse=True)
def _no_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pynvml", "jtop"):
        monkeypatch.setitem(sys.modules, name, None)


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


def seen(telemetry: Telemetry, samples: int = 3) -> dict[str, Any]:
    """Its record after that many samples."""
    with telemetry:
        until(lambda: telemetry.record()["samples"] >= samples)
    return telemetry.record()


class Scripted:
    """A source that gives one reading after the other, then nothing; exceptions are raised."""

    name = "script"
    rails: tuple[str, ...] = ("rail",)

    def __init__(self, *readings: Any, energy: tuple[float | None, ...] = ()) -> None:
        self.provides: frozenset[str] = frozenset({POWER, CLOCK, TEMPERATURE, THROTTLING})
        self.readings: list[Any] = list(readings)
        self.energy = list(energy)
        self.asked = self.closed = 0

    def read(self) -> Reading:
        self.asked += 1
        reading = self.readings.pop(0) if self.readings else Reading()
        if isinstance(reading, BaseException):
            raise reading
        return reading

    def energy_j(self) -> float | None:
        return self.energy.pop(0) if self.energy else None

    def close(self) -> None:
        self.closed += 1


def run_script(source: Scripted) -> dict[str, Any]:
    telemetry = Telemetry(hz=500, sources=lambda: [source])
    with telemetry:
        until(lambda: not source.readings)
    assert source.closed == 1
    return telemetry.record()


def test_power_and_clock_are_means_and_temperature_is_the_highest() -> None:
    source = Scripted(
        Reading(4.0, 1000.0, 50.0, ()),
        Reading(6.0, 600.0, 61.5, ("power limit",)),
        Reading(8.0, 800.0, 55.0, ()),
    )
    record = run_script(source)
    assert record["power_w"] == 6.0
    assert record["gpu_clock_mhz"] == 800.0
    assert record["gpu_clock_min_mhz"] == 600.0
    assert record["temperature_c"] == 61.5
    assert record["throttled"] is True
    assert record["throttle_reasons"] == ["power limit"]
    assert (record["source"], record["power_rails"]) == ("script", ["rail"])
    assert record["samples"] >= 3
    assert record["notes"] == []


def test_nothing_seen_is_none_and_not_zero() -> None:
    record = run_script(Scripted(Reading()))
    for key in ("power_w", "gpu_clock_mhz", "gpu_clock_min_mhz", "temperature_c", "throttled"):
        assert record[key] is None, key


def test_a_run_without_throttling_says_so_only_where_it_can_be_seen() -> None:
    assert run_script(Scripted(Reading(1.0, reasons=())))["throttled"] is False
    assert run_script(Scripted(Reading(1.0, reasons=None)))["throttled"] is None


def test_the_energy_counter_gives_the_mean_power_of_a_run_of_a_second_or_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter([10.0, 14.0])
    telemetry = Telemetry(sources=lambda: [Scripted(Reading(100.0), energy=(500.0, 900.0))])
    monkeypatch.setattr(telemetry, "_run", lambda: None)
    monkeypatch.setattr("engines.board.telemetry.time.perf_counter", lambda: next(clock))
    with telemetry:
        pass
    record = telemetry.record()
    assert record["power_w"] == 100.0  # 400 J in 4 s, and so said the only sample
    assert record["seconds"] == 4.0


@pytest.mark.parametrize(
    ("energy", "seconds", "watts"),
    [
        ((500.0, 620.0), 4.0, 30.0),
        ((500.0, 620.0), 0.5, 7.0),  # too short for the counter
        ((500.0, None), 4.0, 7.0),
        ((500.0, 500.0), 4.0, 7.0),
    ],
)
def test_samples_count_where_the_counter_cannot(
    monkeypatch: pytest.MonkeyPatch, energy: Any, seconds: float, watts: float
) -> None:
    clock = iter([10.0, 10.0 + seconds])
    telemetry = Telemetry(sources=lambda: [Scripted(Reading(7.0), energy=energy)])
    monkeypatch.setattr(telemetry, "_run", lambda: None)
    monkeypatch.setattr("engines.board.telemetry.time.perf_counter", lambda: next(clock))
    with telemetry:
        pass
    assert telemetry.record()["power_w"] == watts


def test_a_run_shorter_than_one_interval_has_one_sample() -> None:
    source = Scripted(Reading(5.0, 900.0, 40.0, ()))
    telemetry = Telemetry(hz=0.1, sources=lambda: [source])
    with telemetry:
        pass
    record = telemetry.record()
    assert (record["samples"], record["power_w"], record["gpu_clock_mhz"]) == (1, 5.0, 900.0)


def test_the_thread_ends_with_the_block_also_when_the_run_fails() -> None:
    before = set(threading.enumerate())
    source = Scripted()
    with pytest.raises(ZeroDivisionError, match="division"), Telemetry(sources=lambda: [source]):
        print(1 / 0)
    assert set(threading.enumerate()) <= before
    assert source.closed == 1


def test_a_source_that_raises_becomes_a_note_and_is_given_up_after_five_times() -> None:
    source = Scripted(*[RuntimeError("bus error")] * 5, Reading(9.0))
    telemetry = Telemetry(hz=500, sources=lambda: [source])
    record = seen(telemetry, 20)
    assert record["notes"] == ["script: RuntimeError: bus error"]
    assert source.asked == 5
    assert record["power_w"] is None


def test_a_source_that_recovers_goes_on() -> None:
    wobbly = [RuntimeError("busy"), RuntimeError("busy"), Reading(3.0)] * 3
    record = run_script(Scripted(*wobbly))
    assert record["power_w"] == 3.0
    assert record["notes"] == ["script: RuntimeError: busy"]


def test_a_telemetry_is_used_once_and_its_rate_is_sensible() -> None:
    telemetry = Telemetry(sources=list)
    with telemetry:
        pass
    with pytest.raises(ConfigError, match="a new one for each run"), telemetry:
        pass
    for hz in (0.0, -1.0, 1e6, float("nan")):
        with pytest.raises(ConfigError, match=r"0\.1 to 1000"):
            Telemetry(hz=hz)


def test_orin_nanos_module_power_is_its_input_rail(tmp_path: Path, programs: Path) -> None:
    record = seen(Telemetry(orin_nano(tmp_path), hz=500))
    assert record["power_w"] == 6.0  # 5000 mV x 1200 mA
    assert record["power_rails"] == ["VDD_IN"]
    assert record["gpu_clock_mhz"] == record["gpu_clock_min_mhz"] == 612.0
    assert record["temperature_c"] == 49.5
    assert record["throttled"] is False  # seven events before the run are not of the run
    assert record["source"] == "INA3221 sysfs"
    assert record["notes"] == []


@pytest.mark.parametrize(
    ("board", "watts", "rails", "celsius"),
    [
        (xavier_nx, 9.6, ["VDD_IN"], 41.2),
        (thor, 23.5, ["VIN"], 55.0),
        (agx_orin, 17.0, ["VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"], None),
    ],
)
def test_each_boards_power_is_that_of_the_whole_board(
    tmp_path: Path, programs: Path, board: Any, watts: float, rails: Any, celsius: Any
) -> None:
    record = seen(Telemetry(board(tmp_path), hz=500))
    assert record["power_w"] == watts
    assert record["power_rails"] == rails
    assert record["temperature_c"] == celsius


def test_the_old_driver_of_jetpack_4_gives_milliwatts(tmp_path: Path) -> None:
    folder = "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
    root = write(
        tmp_path,
        {
            f"{folder}/rail_name_0": "POM_5V_IN\n",
            f"{folder}/in_power0_input": "2540\n",
            f"{folder}/rail_name_1": "POM_5V_GPU\n",
            f"{folder}/in_power1_input": "120\n",
        },
    )
    sensors = JetsonSensors(root, pytest.fail)
    assert sensors.rails == ("POM_5V_IN",)
    assert sensors.read().power_w == 2.54


def test_an_over_current_event_during_the_run_is_throttling(tmp_path: Path, programs: Path) -> None:
    root = orin_nano(tmp_path)
    telemetry = Telemetry(root, hz=500)
    with telemetry:
        until(lambda: telemetry.record()["samples"] >= 2)
        assert telemetry.record()["throttled"] is False
        write(root, over_current(0, 2, 9))
    record = telemetry.record()
    assert record["throttled"] is True
    assert record["throttle_reasons"] == ["average over-current", "instantaneous over-current"]


def test_each_reading_tells_the_events_since_the_one_before(tmp_path: Path) -> None:
    root = orin_nano(tmp_path)
    sensors = JetsonSensors(root, pytest.fail)
    assert sensors.read().reasons == ()
    write(root, over_current(1, 0, 7))
    assert sensors.read().reasons == ("under-voltage",)
    assert sensors.read().reasons == ()


def test_what_is_read_after_the_run_counts_for_throttling_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = Scripted(Reading(4.0, 600.0, 50.0, ()), Reading(99.0, 1.0, 99.0, ("power limit",)))
    telemetry = Telemetry(sources=lambda: [source])
    monkeypatch.setattr(telemetry, "_run", telemetry._sample)
    with telemetry:
        until(lambda: len(source.readings) == 1)
    record = telemetry.record()
    assert (record["samples"], record["power_w"], record["gpu_clock_mhz"]) == (1, 4.0, 600.0)
    assert record["temperature_c"] == 50.0
    assert record["throttled"] is True


def test_sources_that_nothing_is_missing_from_are_not_opened(
    tmp_path: Path, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jtop", types.SimpleNamespace())  # would be a note
    assert seen(Telemetry(orin_nano(tmp_path), hz=500))["notes"] == []


def test_an_active_throttle_alert_is_throttling_and_a_fan_is_not(
    tmp_path: Path, programs: Path
) -> None:
    root = orin_nano(tmp_path)
    write(root, {"sys/class/thermal/cooling_device1/cur_state": "1\n"})
    record = seen(Telemetry(root, hz=500))
    assert record["throttle_reasons"] == ["gpu-throttle-alert"]


def test_a_counter_whose_throttling_is_off_does_not_count(tmp_path: Path) -> None:
    root = write(tmp_path, over_current(0))
    write(root, {"sys/class/hwmon/hwmon3/oc1_throt_en": "0\n"})
    assert THROTTLING not in JetsonSensors(root, pytest.fail).provides


def test_a_sensor_that_disappears_keeps_what_was_seen_and_leaves_a_note(
    tmp_path: Path, programs: Path
) -> None:
    root = orin_nano(tmp_path)
    telemetry = Telemetry(root, hz=500)
    with telemetry:
        until(lambda: telemetry.record()["samples"] >= 2)
        (root / INA / "curr1_input").unlink()
        until(lambda: bool(telemetry.record()["notes"]))
    record = telemetry.record()
    assert record["notes"] == ["power: the sensor has disappeared"]
    assert (record["power_w"], record["gpu_clock_mhz"]) == (6.0, 612.0)


@pytest.mark.parametrize(
    ("file", "text", "note"),
    [
        (f"{INA}/curr1_input", "garbage\n", "power: the sensor says no number"),
        (f"{INA}/curr1_input", "", "power: the sensor says no number"),
        (f"{INA}/curr1_input", "9" * 4000, "power: the sensor says no number"),
        (f"{INA}/curr1_input", "999999999\n", "power: values that cannot be, for example 5e+06"),
        (
            "sys/class/thermal/thermal_zone1/temp",
            "-256000\n",
            "temperature: values that cannot be, for example -256",
        ),
        (
            "sys/class/devfreq/17000000.gpu/cur_freq",
            "-5000000\n",
            "GPU clock: values that cannot be, for example -5",
        ),
        (
            "sys/class/hwmon/hwmon3/oc1_event_cnt",
            "\x00\ufffd",
            "throttling: the sensor says no number",
        ),
    ],
)
def test_garbage_in_a_sensor_is_a_note_and_never_a_figure(
    tmp_path: Path, programs: Path, file: str, text: str, note: str
) -> None:
    root = orin_nano(tmp_path)
    notes: list[str] = []
    sensors = JetsonSensors(root, notes.append)
    write(root, {file: text})
    reading = sensors.read()
    assert notes == [note]
    shown = (reading.power_w, reading.gpu_clock_mhz, reading.temperature_c, reading.reasons)
    assert sum(value is None for value in shown) == 1


def test_a_gpu_that_is_switched_off_has_no_clock_and_that_is_no_fault(tmp_path: Path) -> None:
    root = orin_nano(tmp_path)
    sensors = JetsonSensors(root, pytest.fail)
    write(root, {"sys/class/devfreq/17000000.gpu/cur_freq": "0\n"})
    assert sensors.read().gpu_clock_mhz is None


def test_a_refused_permission_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> int:
        raise PermissionError(13, "Permission denied")

    notes: list[str] = []
    sensors = JetsonSensors(orin_nano(tmp_path), notes.append)
    monkeypatch.setattr("engines.board.sensors.number_now", refuse)
    assert sensors.read() == Reading()
    assert len(notes) == 4
    assert notes[0] == "power: no permission to read the sensor"


ORIN_LINE = (
    "10-08-2026 04:35:02 RAM 6712/7620MB (lfb 12x4MB) SWAP 369/3810MB (cached 8MB) CPU [38%@1497] "
    "EMC_FREQ 61%@2133 GR3D_FREQ 99%@[612] NVDEC off APE 200 cpu@57.125C gpu@58.625C tj@58.312C "
    "VDD_IN 16321mW/11204mW VDD_CPU_GPU_CV 7104mW/4944mW VDD_SOC 3120mW/3659mW"
)
AGX_LINE = (
    "RAM 3000/30536MB GR3D_FREQ 14%@[407,409] VIC_FREQ 115 Tboard@62C GPU@69.125C VDD_GPU_SOC "
    "3150mW/2971mW VDD_CPU_CV 14312mW/12415mW VIN_SYS_5V0 4968mW/5048mW VDDQ_VDD2_1V8AO "
    "1091mW/1091mW"
)


@pytest.mark.parametrize(
    ("line", "reading"),
    [
        (ORIN_LINE, Reading(16.321, 612.0, 58.625)),
        (AGX_LINE, Reading(22.43, 409.0, 69.125)),  # 3.150 + 14.312 + 4.968
        (
            "RAM 1/2MB GR3D_FREQ 0%@1109 GPU@41C VDD_IN 4940/4500 VDD_SOC 1/1",
            Reading(4.94, 1109.0, 41.0),
        ),
        (
            "RAM 9/9MB GR3D_FREQ @[314,314,314] gpu@-256C VIN 23000mW/1mW",
            Reading(23.0, 314.0, None),
        ),
        ("GR3D_FREQ 12%", None),
        ("", None),
        ("VDD_IN lots/mW GR3D_FREQ 9%@[] 한글", None),
    ],
)
def test_a_line_of_tegrastats_is_read(line: str, reading: Any) -> None:
    found = reading_of_tegrastats(line)
    if reading is None:
        assert found is None
        return
    assert found is not None
    assert found.power_w == pytest.approx(reading.power_w)
    assert (found.gpu_clock_mhz, found.temperature_c) == (
        reading.gpu_clock_mhz,
        reading.temperature_c,
    )


def test_tegrastats_serves_where_the_kernels_files_have_no_power(
    tmp_path: Path, programs: Path
) -> None:
    root = write(tmp_path, {"proc/device-tree/compatible": "nvidia,tegra234"})
    program(programs, "tegrastats", f'while :; do echo "{ORIN_LINE}"; /bin/sleep 0.01; done')
    telemetry = Telemetry(root, hz=100)
    with telemetry:
        until(lambda: telemetry.record()["power_w"] is not None)
        children = telemetry._sources[0]._process  # type: ignore[attr-defined]
    record = telemetry.record()
    assert children.poll() is not None  # it was stopped with the block
    assert (record["power_w"], record["gpu_clock_mhz"]) == (16.321, 612.0)
    assert record["temperature_c"] == 58.6
    assert record["throttled"] is None
    assert record["source"] == "tegrastats"


def test_jetson_stats_is_asked_before_tegrastats(
    tmp_path: Path, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    class Client:
        power: dict[str, Any] = {"tot": {"power": 7500}, "rail": {}}  # noqa: RUF012
        gpu: dict[str, Any] = {"gpu": {"freq": {"cur": 918000}}}  # noqa: RUF012
        temperature: dict[str, Any] = {"gpu": {"temp": 45.5}, "tj": {"temp": 50.0}}  # noqa: RUF012

        def __init__(self, interval: float) -> None:
            calls.append(f"opened {interval}")

        def start(self) -> None:
            calls.append("start")

        def ok(self) -> bool:
            calls.append("ok")
            return True

        def close(self) -> None:
            calls.append("close")

    monkeypatch.setitem(sys.modules, "jtop", types.SimpleNamespace(jtop=Client))
    program(programs, "tegrastats", "exit 1")
    root = write(tmp_path, {"etc/nv_tegra_release": "# R36 (release), REVISION: 4.0"})
    record = seen(Telemetry(root, hz=100))
    assert (record["power_w"], record["gpu_clock_mhz"], record["temperature_c"]) == (
        7.5,
        918.0,
        45.5,
    )
    assert record["source"] == "jetson-stats"
    assert calls == ["opened 0.1", "start", "ok", "close"]


def test_jetson_stats_without_its_service_is_a_note_and_the_next_source_serves(
    tmp_path: Path, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(interval: float) -> Any:
        raise RuntimeError("The jtop.service is not active")

    monkeypatch.setitem(sys.modules, "jtop", types.SimpleNamespace(jtop=refuse))
    program(programs, "tegrastats", f'while :; do echo "{ORIN_LINE}"; /bin/sleep 0.01; done')
    root = write(tmp_path, {"etc/nv_tegra_release": "# R36 (release), REVISION: 4.0"})
    telemetry = Telemetry(root, hz=100)
    with telemetry:
        until(lambda: telemetry.record()["power_w"] is not None)
    assert telemetry.record()["notes"] == ["RuntimeError: The jtop.service is not active"]


def test_a_desktop_without_nvml_is_sampled_by_nvidia_smi(tmp_path: Path, programs: Path) -> None:
    rtx_desktop(programs)
    telemetry = Telemetry(plain(tmp_path), hz=50)
    with telemetry:
        until(lambda: telemetry.record()["throttled"] is True)
        process = telemetry._sources[0]._process  # type: ignore[attr-defined]
    record = telemetry.record()
    assert process.poll() is not None
    assert record["source"] == "nvidia-smi"
    assert record["power_rails"] == ["GPU board"]
    assert 71.2 <= record["power_w"] <= 310.5
    assert record["gpu_clock_min_mhz"] == 2400.0
    assert record["temperature_c"] == 61.0
    assert record["throttle_reasons"] == ["power limit"]


def test_an_old_nvidia_smi_is_asked_for_the_old_name_of_the_reasons(
    tmp_path: Path, programs: Path
) -> None:
    program(
        programs,
        "nvidia-smi",
        """case "$*" in *event_reasons*) exit 2;; *-lms*) while :; do
echo "35.0, [N/A], 41, 0x0000000000000040"; /bin/sleep 0.01; done;; *)
echo "35.0, [N/A], 41, 0x0000000000000040";; esac""",
    )
    telemetry = Telemetry(plain(tmp_path), hz=100)
    with telemetry:
        until(lambda: telemetry.record()["throttled"] is True)
    record = telemetry.record()
    assert record["throttle_reasons"] == ["temperature (hardware)"]
    assert (record["power_w"], record["gpu_clock_mhz"]) == (35.0, None)


@pytest.mark.parametrize(
    ("line", "reading"),
    [
        ("71.20, 1980, 54, 0x0000000000000001", Reading(71.2, 1980.0, 54.0, ())),
        ("[N/A], 1980, 54, [Not Supported]", Reading(None, 1980.0, 54.0, None)),
        ("nan, 99999999, 400, 0x", Reading(None, None, None, None)),
        ("Unable to determine the device handle", None),
        ("", None),
    ],
)
def test_a_line_of_nvidia_smi_is_read(line: str, reading: Any) -> None:
    assert reading_of_smi(line) == reading


def test_only_reasons_that_slow_the_gpu_down_count() -> None:
    assert reasons_of(0x0) == ()
    assert reasons_of(0x1 | 0x2 | 0x10 | 0x100) == ()  # idle, application clocks, sync, display
    assert reasons_of(0x4 | 0x20) == ("power limit", "temperature (software)")


class FakeNvml(types.ModuleType):
    NVML_CLOCK_SM, NVML_TEMPERATURE_GPU = 1, 0

    def __init__(self, **answers: Any) -> None:
        super().__init__("pynvml")
        self.calls: list[str] = []
        self.answers = {"PowerUsage": 250_000, "ClockInfo": 1980, "Temperature": 63, **answers}

    def nvmlInit(self) -> None:
        self.calls.append("init")

    def nvmlShutdown(self) -> None:
        self.calls.append("shutdown")

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        self.calls.append(f"gpu {index}")
        return "handle"

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, gpu: str) -> int:
        return 0x8

    def __getattr__(self, name: str) -> Any:
        key = name.replace("nvmlDeviceGet", "")
        if key not in self.answers:
            raise AttributeError(name)
        answer = self.answers[key]

        def ask(*arguments: Any) -> Any:
            if isinstance(answer, Exception):
                raise answer
            return answer

        return ask


def test_nvml_serves_a_desktop_before_nvidia_smi(
    tmp_path: Path, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml = FakeNvml(CurrentClocksEventReasons=0x4)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    record = seen(Telemetry(plain(tmp_path), hz=500))
    assert record["source"] == "NVML"
    assert (record["power_w"], record["gpu_clock_mhz"], record["temperature_c"]) == (
        250.0,
        1980.0,
        63.0,
    )
    assert record["throttle_reasons"] == ["power limit"]
    assert nvml.calls == ["init", "gpu 0", "shutdown"]
    assert record["notes"] == []


def test_an_old_nvml_has_the_old_name_and_what_a_gpu_lacks_is_a_note(
    tmp_path: Path, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml = FakeNvml(PowerUsage=RuntimeError("Not Supported"))
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    record = seen(Telemetry(plain(tmp_path), hz=500))
    assert record["throttle_reasons"] == ["hardware slowdown"]
    assert record["power_w"] is None
    assert record["notes"] == ["power: Not Supported", "no power sensor was found"]


def test_a_machine_without_any_sensor_gives_an_empty_record_with_its_reason(
    tmp_path: Path, programs: Path
) -> None:
    record = seen(Telemetry(plain(tmp_path), hz=500))
    assert record["source"] is None
    assert record["power_w"] is None
    assert record["notes"] == ["no power sensor was found"]


def test_a_desktops_other_sensors_are_not_taken_for_a_gpus(tmp_path: Path, programs: Path) -> None:
    root = write(tmp_path, {"sys/class/thermal/thermal_zone0/type": "gpu-thermal\n"})
    write(root, {"sys/class/thermal/thermal_zone0/temp": "50000\n", **ina3221({"VDD_IN": (1, 1)})})
    assert seen(Telemetry(root, hz=500))["source"] is None


def test_notes_are_kept_once_and_at_most_ten() -> None:
    telemetry = Telemetry(sources=list)
    for number in [*range(20), 0, 1]:
        telemetry.note(f"note\n {number} " + "x" * 500)
    notes = telemetry.record()["notes"]
    assert len(notes) == 10
    assert notes[0].startswith("note 0 x")
    assert all(len(note) <= 200 for note in notes)


def test_telemetry_needs_no_package_but_this_one(tmp_path: Path) -> None:
    code = (
        "import sys; from engines.board import Telemetry\n"
        "with Telemetry() as t: pass\n"
        "print(t.record()['samples'], 'numpy' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=Path(__file__).parent.parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "1 False\n", done.stderr
