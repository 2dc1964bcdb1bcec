from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from made_boards import (
    DPKG,
    agx_orin,
    cpu_policy,
    gpu_clock,
    orin_nano,
    plain,
    program,
    programs_fixture,
    rtx_desktop,
    thor,
    write,
    xavier_nx,
)

from engines.board import comparable, machine_record, package_versions
from engines.board.jetson import clocks, jetpack_version, l4t_version

__all__ = ["programs_fixture"]
ALWAYS = {"cpu", "cores", "memory_gb", "os", "python"}


def beyond(record: dict[str, Any]) -> dict[str, Any]:
    """The record without the keys that every machine has."""
    assert set(record) >= ALWAYS
    json.dumps(record)
    return {key: value for key, value in record.items() if key not in ALWAYS}


def test_an_orin_nano_with_jetpack_6_tells_its_mode_and_clocks(
    tmp_path: Path, programs: Path
) -> None:
    assert beyond(machine_record(orin_nano(tmp_path))) == {
        "device": "NVIDIA Jetson Orin Nano Developer Kit Super",
        "l4t": "36.4.3",
        "jetpack": "6.2",
        "power_mode": "MAXN_SUPER",
        "power_mode_id": 2,
        "clocks": {
            "gpu_mhz": 612.0,
            "gpu_min_mhz": 306.0,
            "gpu_max_mhz": 1020.0,
            "cpu_max_mhz": 1728.0,
            "fixed": False,
        },
    }


def test_a_xavier_nx_with_jetson_clocks_has_fixed_clocks_and_the_packages_jetpack(
    tmp_path: Path, programs: Path
) -> None:
    program(
        programs,
        "nvpmodel",
        'echo "NV Fan Mode:quiet"; echo "NV Power Mode: MODE_20W_6CORE"; echo 8',
    )
    assert beyond(machine_record(xavier_nx(tmp_path))) == {
        "device": "NVIDIA Jetson Xavier NX Developer Kit",
        "l4t": "35.4.1",
        "jetpack": "5.1.2",
        "power_mode": "MODE_20W_6CORE",
        "power_mode_id": 8,
        "clocks": {
            "gpu_mhz": 1109.2,
            "gpu_min_mhz": 1109.2,
            "gpu_max_mhz": 1109.2,
            "cpu_max_mhz": 1907.2,
            "emc_mhz": 1866.0,
            "fixed": True,
        },
    }


def test_a_thor_with_jetpack_7_uses_the_clock_of_its_processors_not_of_video(
    tmp_path: Path, programs: Path
) -> None:
    program(programs, "nvpmodel", "echo 'NVPM ERROR: no permission' >&2; exit 1")
    assert beyond(machine_record(thor(tmp_path))) == {
        "device": "NVIDIA Jetson AGX Thor Developer Kit",
        "l4t": "38.2.0",
        "jetpack": "7.0",
        "power_mode": "mode 1",  # no nvpmodel.conf to look its name up in
        "power_mode_id": 1,
        "clocks": {"gpu_mhz": 1575.0, "gpu_min_mhz": 318.0, "gpu_max_mhz": 1575.0, "fixed": False},
    }


def test_clocks_are_fixed_only_if_those_of_gpu_and_processors_are(
    tmp_path: Path, programs: Path
) -> None:
    root = write(xavier_nx(tmp_path), cpu_policy(1_000_000, 1_907_200, 4))
    assert machine_record(root)["clocks"]["fixed"] is False


def test_the_clock_of_the_graphics_clusters_comes_before_another_of_the_gpu(
    tmp_path: Path,
) -> None:
    root = write(tmp_path, gpu_clock("1.gpu-nvd", now_mhz=1, low_mhz=1, high_mhz=1))
    write(root, gpu_clock("gpu-gpc-0", now_mhz=1575, low_mhz=318, high_mhz=1575))
    assert clocks(root)["gpu_mhz"] == 1575.0


def test_a_desktop_tells_what_nvidia_smi_says(tmp_path: Path, programs: Path) -> None:
    rtx_desktop(programs)
    assert beyond(machine_record(plain(tmp_path))) == {
        "device": "NVIDIA GeForce RTX 4090",
        "driver": "575.64.03",
        "gpu_memory_mb": 24564.0,
        "compute_capability": "8.9",
        "power_limit_w": 450.0,
        "clocks": {"gpu_max_mhz": 3105.0},
    }


def test_an_old_driver_that_knows_no_compute_capability_is_asked_again(
    tmp_path: Path, programs: Path
) -> None:
    answer = "GRID T4, 470.82, 16384, [N/A], [Not Supported]"
    program(
        programs, "nvidia-smi", f'case "$*" in *compute_cap*) exit 2;; *) echo "{answer}";; esac'
    )
    assert beyond(machine_record(plain(tmp_path))) == {
        "device": "GRID T4",
        "driver": "470.82",
        "gpu_memory_mb": 16384.0,
    }


def test_the_gpu_that_is_asked_for_is_that_of_cuda_visible_devices(
    tmp_path: Path, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(programs, "nvidia-smi", 'echo "GPU $1, 1.0, 1, 1, 1, 1"')
    for visible, device, asked in (
        ("2,1", 1, "--id=1"),
        ("3", 0, "--id=3"),
        ("2,1", 2, "--id=2"),
        ("GPU-ab12-cd", 0, "--id=GPU-ab12-cd"),
        ("$(reboot)", 0, "--id=0"),
        ("", 4, "--id=4"),
    ):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert machine_record(tmp_path, device=device)["device"] == f"GPU {asked}"


def test_a_plain_machine_has_only_what_every_machine_has(tmp_path: Path, programs: Path) -> None:
    record = machine_record(plain(tmp_path))
    assert set(record) == ALWAYS
    assert record["cpu"] == "AMD EPYC 한글"


def test_the_name_that_cuda_told_is_kept_where_there_is_no_nvidia_smi(
    tmp_path: Path, programs: Path
) -> None:
    assert machine_record(plain(tmp_path), gpu_name="NVIDIA H200")["device"] == "NVIDIA H200"
    on_a_board = machine_record(agx_orin(tmp_path / "board"), gpu_name="Orin")
    assert on_a_board["device"] == "NVIDIA Jetson AGX Orin Developer Kit"


def test_an_empty_or_unreadable_tree_gives_a_record_without_an_error(
    tmp_path: Path, programs: Path
) -> None:
    assert set(machine_record(tmp_path / "nothing")) == ALWAYS
    broken = write(
        tmp_path,
        {
            "etc/nv_tegra_release": "",
            "proc/device-tree/model/is_a_folder": "",
            "var/lib/nvpmodel/status": "pmode:",
            "sys/class/devfreq/17000000.gpu/max_freq": "fast\n",
            "sys/class/devfreq/17000000.gpu/min_freq": "",
            "sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq": "-1\n",
        },
    )
    assert beyond(machine_record(broken)) == {}


@pytest.mark.parametrize(
    ("l4t", "jetpack"),
    [
        ("35.1.0", "5.0.2"),
        ("35.2.1", "5.1"),
        ("35.5.0", "5.1.3"),
        ("35.6.0", "5.1.4"),
        ("36.3.0", "6.0"),
        ("36.4.0", "6.1"),
        ("36.4.7", "6.2.1"),
        ("36.9.9", "6.x"),
        ("38.4.0", "7.1"),
        ("39.2.0", "7.2"),
        ("32.7.1", "4.x"),
        ("40.1.0", None),
        (None, None),
    ],
)
def test_jetpack_follows_from_l4t_and_an_unknown_release_gives_the_series(
    tmp_path: Path, l4t: Any, jetpack: Any
) -> None:
    assert jetpack_version(tmp_path, l4t) == jetpack


def test_a_jetpack_package_that_was_removed_does_not_count(tmp_path: Path) -> None:
    status = DPKG.format(state="deinstall ok config-files", version="4.0")
    write(tmp_path, {"var/lib/dpkg/status": status})
    assert l4t_version(tmp_path) == "35.4.1"  # of nvidia-l4t-core
    assert jetpack_version(tmp_path, "35.4.1") == "5.1.2"


def test_a_program_that_hangs_or_prints_nonsense_is_left_out(
    tmp_path: Path, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(programs, "nvpmodel", "printf '\\377\\376 NV Power Mode: \\n x'")
    assert machine_record(orin_nano(tmp_path))["power_mode"] == "MAXN_SUPER"


def test_versions_name_packages_that_are_not_installed() -> None:
    versions = package_versions()
    assert set(versions) == {
        "python",
        "riceseg",
        "torch",
        "onnx",
        "onnxruntime",
        "onnxsim",
        "numpy",
    }
    assert all(isinstance(version, str) and version for version in versions.values())


NANO = {"cpu": "a", "device": "Orin Nano", "power_mode": "15W", "clocks": {"fixed": True}}


def test_two_equal_records_are_comparable() -> None:
    assert comparable(NANO, dict(NANO)) == ()
    assert comparable({}, {}) == ()


@pytest.mark.parametrize(
    ("other", "lines"),
    [
        ({**NANO, "power_mode": "MAXN"}, ("power mode: 15W against MAXN",)),
        ({**NANO, "power_mode": None}, ("power mode: 15W against not recorded",)),
        (
            {**NANO, "clocks": {"fixed": False}},
            ("clocks: held (jetson_clocks) against free",),
        ),
        ({**NANO, "clocks": "?"}, ("clocks: held (jetson_clocks) against not recorded",)),
        ({**NANO, "cpu": "b"}, ("processor: a against b",)),
        ({**NANO, "python": "3.8"}, ()),
        (
            {"cpu": "c", "device": "RTX 4090", "power_limit_w": 450.0},
            ("device: Orin Nano against RTX 4090",),
        ),
        (
            {**NANO, "device": "AGX Orin", "power_mode": "MAXN"},
            ("device: Orin Nano against AGX Orin", "power mode: 15W against MAXN"),
        ),
        ({"cpu": "AMD EPYC"}, ("device: Orin Nano against AMD EPYC",)),
    ],
)
def test_what_differs_is_named_with_both_values(other: dict[str, Any], lines: Any) -> None:
    assert comparable(NANO, other) == lines


def test_a_power_limit_and_the_highest_clock_of_one_gpu_are_compared() -> None:
    one = {"device": "RTX", "power_limit_w": 450.0, "clocks": {"gpu_max_mhz": 3105.0}}
    two = {"device": "RTX", "power_limit_w": 300.0, "clocks": {"gpu_max_mhz": 2520.0}}
    assert comparable(one, two) == (
        "power limit: 450 W against 300 W",
        "highest GPU clock: 3105 MHz against 2520 MHz",
    )
