"""Made-up /proc, /sys, /etc and programs of the machines that riceseg runs on.

File names and forms are those of the boards; the values are round, to be checked by hand.
"""

from __future__ import annotations

from pathlib import Path

import pytest

NVPMODEL_CONF = """
# comment with < POWER_MODEL ID=2 NAME=NOT_THIS >
< PARAM TYPE=FILE NAME=CPU_ONLINE >
CORE_0 /sys/devices/system/cpu/cpu0/online
< POWER_MODEL ID=0 NAME=15W >
GPU MAX_FREQ 612000000
< POWER_MODEL ID=1 NAME=25W >
< POWER_MODEL ID=2 NAME=MAXN_SUPER >
< PM_CONFIG DEFAULT=1 >
"""

DPKG = """Package: nvidia-jetpack-dev
Status: install ok installed
Version: 9.9-b1

Package: nvidia-jetpack
Status: {state}
Priority: standard
Version: {version}

Package: nvidia-l4t-core
Status: install ok installed
Version: 35.4.1-20230801124926
"""


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def program(folder: Path, name: str, script: str) -> None:
    """An executable of that name: `script` is run by sh."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)


@pytest.fixture(name="programs")
def programs_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is all of PATH, so that no program of the real machine is asked."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    return folder


def cpu_policy(low_khz: int, high_khz: int, number: int = 0) -> dict[str, str]:
    folder = f"sys/devices/system/cpu/cpufreq/policy{number}"
    return {
        f"{folder}/scaling_min_freq": f"{low_khz}\n",
        f"{folder}/scaling_max_freq": f"{high_khz}\n",
    }


def gpu_clock(name: str, *, now_mhz: int, low_mhz: int, high_mhz: int) -> dict[str, str]:
    folder = f"sys/class/devfreq/{name}"
    values = {"cur_freq": now_mhz, "min_freq": low_mhz, "max_freq": high_mhz}
    return {f"{folder}/{file}": f"{mhz * 1_000_000}\n" for file, mhz in values.items()}


def ina3221(rails: dict[str, object], *, address: str = "1-0040", hwmon: int = 1) -> dict[str, str]:
    """Rails as label -> (mV, mA), in channels from 1 on, and the chip's channel of sums."""
    folder = f"sys/bus/i2c/drivers/ina3221/{address}/hwmon/hwmon{hwmon}"
    files = {f"{folder}/in7_label": "sum of shunt voltages\n", f"{folder}/in7_input": "99999\n"}
    for channel, (label, pair) in enumerate(rails.items(), 1):
        millivolts, milliamperes = pair  # type: ignore[misc]
        files[f"{folder}/in{channel}_label"] = f"{label}\n"
        files[f"{folder}/in{channel}_input"] = f"{millivolts}\n"
        files[f"{folder}/curr{channel}_input"] = f"{milliamperes}\n"
    return files


def zones(**millidegrees: int) -> dict[str, str]:
    files: dict[str, str] = {}
    for number, (kind, value) in enumerate(millidegrees.items()):
        folder = f"sys/class/thermal/thermal_zone{number}"
        files[f"{folder}/type"] = f"{kind.replace('_', '-')}\n"
        files[f"{folder}/temp"] = f"{value}\n"
    return files


def over_current(*counts: int) -> dict[str, str]:
    files = {"sys/class/hwmon/hwmon3/name": "soctherm_oc\n"}
    for number, count in enumerate(counts, 1):
        files[f"sys/class/hwmon/hwmon3/oc{number}_event_cnt"] = f"{count}\n"
        files[f"sys/class/hwmon/hwmon3/oc{number}_throt_en"] = "1\n"
    return files


def orin_nano(root: Path) -> Path:
    """JetPack 6.2 in MAXN_SUPER, clocks free: 5000 mV x 1200 mA = 6.0 W, 612 MHz, 49.5 °C."""
    return write(
        root,
        {
            "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit Super\0",
            "proc/device-tree/compatible": "nvidia,p3767-0005\0nvidia,tegra234\0",
            "proc/cpuinfo": "processor\t: 0\nBogoMIPS\t: 62.50\n",
            "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 1, BOARD: generic\n",
            "etc/nvpmodel.conf": NVPMODEL_CONF,
            "var/lib/nvpmodel/status": "pmode:0002\nfmode:quiet\n",
            "usr/local/cuda/version.json": '{"cuda" : {"name" : "SDK",\n"version" : "12.6.11"}}',
            **gpu_clock("17000000.gpu", now_mhz=612, low_mhz=306, high_mhz=1020),
            **gpu_clock("15340000.vic", now_mhz=115, low_mhz=115, high_mhz=729),
            **cpu_policy(729_600, 1_728_000),
            **cpu_policy(729_600, 1_497_600, 4),
            **ina3221(
                {"VDD_IN": (5000, 1200), "VDD_CPU_GPU_CV": (5000, 400), "VDD_SOC": (5000, 300)}
            ),
            **zones(cpu_thermal=48_000, gpu_thermal=49_500, tj_thermal=50_000),
            **over_current(0, 0, 7),
            "sys/class/thermal/cooling_device0/type": "pwm-fan\n",
            "sys/class/thermal/cooling_device0/cur_state": "3\n",
            "sys/class/thermal/cooling_device1/type": "gpu-throttle-alert\n",
            "sys/class/thermal/cooling_device1/cur_state": "0\n",
        },
    )


def xavier_nx(root: Path) -> Path:
    """JetPack 5.1.2 by its package, jetson_clocks on: 1109.2 MHz, 12000 mV x 800 mA = 9.6 W."""
    return write(
        root,
        {
            "proc/device-tree/model": "NVIDIA Jetson Xavier NX Developer Kit\0",
            "proc/device-tree/compatible": "nvidia,p3668\0nvidia,tegra194\0",
            "etc/nv_tegra_release": "# R35 (release), REVISION: 4.1, GCID: 1, BOARD: t186ref\n",
            "var/lib/dpkg/status": DPKG.format(state="install ok installed", version="5.1.2-b104"),
            "sys/class/devfreq/17000000.gv11b/cur_freq": "1109250000\n",
            "sys/class/devfreq/17000000.gv11b/min_freq": "1109250000\n",
            "sys/class/devfreq/17000000.gv11b/max_freq": "1109250000\n",
            **cpu_policy(1_907_200, 1_907_200),
            **cpu_policy(1_907_200, 1_907_200, 2),
            "sys/kernel/debug/bpmp/debug/clk/emc/rate": "1866000000\n",
            **ina3221({"VDD_IN": (12000, 800), "NC": (0, 0)}),
            **zones(CPU_therm=40_000),
            "sys/class/thermal/thermal_zone1/type": "GPU-therm\n",
            "sys/class/thermal/thermal_zone1/temp": "41250\n",
        },
    )


def thor(root: Path) -> Path:
    """JetPack 7.0: VIN of the INA238 is 23.5 W; the INA3221's rails are parts of it."""
    vin = "sys/bus/i2c/drivers/ina238/2-0044/hwmon/hwmon2"
    return write(
        root,
        {
            "proc/device-tree/model": "NVIDIA Jetson AGX Thor Developer Kit\0",
            "proc/device-tree/compatible": "nvidia,p3971-0080\0nvidia,tegra264\0",
            "etc/nv_tegra_release": "# R38 (release), REVISION: 2.0, GCID: 1, BOARD: generic\n",
            "var/lib/nvpmodel/status": "pmode:0001\n",
            **gpu_clock("gpu-nvd-0", now_mhz=100, low_mhz=100, high_mhz=1692),
            **gpu_clock("gpu-gpc-0", now_mhz=1575, low_mhz=318, high_mhz=1575),
            **ina3221(
                {
                    "VDD_GPU": (800, 1000),
                    "VDD_CPU_SOC_MSS": (800, 5000),
                    "VIN_SYS_5V0": (5000, 1000),
                }
            ),
            f"{vin}/in1_label": "VIN\n",
            f"{vin}/in1_input": "20000\n",
            f"{vin}/curr1_input": "1175\n",
            f"{vin}/power1_input": "23500000\n",
            **zones(tj_thermal=55_000, cpu_thermal=53_000),
            **over_current(0, 0, 813),
        },
    )


def agx_orin(root: Path) -> Path:
    """No input rail: 8 + 4 + 5 W of three rails; the fourth is fed from VIN_SYS_5V0."""
    return write(
        root,
        {
            "proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0",
            "proc/device-tree/compatible": "nvidia,p3701-0005\0nvidia,tegra234\0",
            **ina3221(
                {
                    "VDD_GPU_SOC": (800, 10000),
                    "VDD_CPU_CV": (800, 5000),
                    "VIN_SYS_5V0": (5000, 1000),
                }
            ),
            **ina3221({"NC": (0, 0), "VDDQ_VDD2_1V8AO": (5000, 200)}, address="1-0041", hwmon=2),
        },
    )


def rtx_desktop(programs: Path) -> None:
    """nvidia-smi of an RTX 4090 that draws 71.2, then 310.5 W, held by its power limit."""
    program(
        programs,
        "nvidia-smi",
        """case "$*" in
*compute_cap*) echo "NVIDIA GeForce RTX 4090, 575.64.03, 24564, 450.00, 3105, 8.9" ;;
*throttle_reasons*) echo 'Field "clocks_throttle_reasons.active" is not a valid field to query.'
  exit 2 ;;
*-lms*) echo "71.20, 2520, 54, 0x0000000000000001"
  while :; do echo "310.50, 2400, 61, 0x0000000000000004"; /bin/sleep 0.02; done ;;
*power.draw*) echo "71.20, 2520, 54, 0x0000000000000001" ;;
*) echo "| NVIDIA-SMI 575.64.03   Driver Version: 575.64.03   CUDA Version: 12.9  |" ;;
esac""",
    )


def plain(root: Path) -> Path:
    """A machine without a GPU."""
    return write(root, {"proc/cpuinfo": "model name\t: AMD EPYC 한글\nmodel name\t: other\n"})
