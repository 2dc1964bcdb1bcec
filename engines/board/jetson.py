"""What a Jetson says about itself: board, L4T, JetPack, power mode and clocks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from engines.board.files import entries, mega, number_of, output_of, text_of

# Releases of NVIDIA's archive, https://developer.nvidia.com/embedded/jetpack-archive and the
# downloads page of JetPack 7. 36.4.7 is a package update of 36.4.4.
JETPACK_OF_L4T = {
    "35.1": "5.0.2",
    "35.2.1": "5.1",
    "35.3.1": "5.1.1",
    "35.4.1": "5.1.2",
    "35.5": "5.1.3",
    "35.6": "5.1.4",
    "35.6.1": "5.1.5",
    "36.2": "6.0 DP",
    "36.3": "6.0",
    "36.4": "6.1",
    "36.4.3": "6.2",
    "36.4.4": "6.2.1",
    "36.4.7": "6.2.1",
    "36.5": "6.2.2",
    "38.2": "7.0",
    "38.2.1": "7.0",
    "38.4": "7.1",
    "39.2": "7.2",
    "39.2.1": "7.2.1",
}
JETPACK_SERIES = {"32": "4.x", "34": "5.0 DP", "35": "5.x", "36": "6.x", "38": "7.x", "39": "7.x"}

_RELEASE = re.compile(r"R(\d+)\s*\(release\),\s*REVISION:\s*(\d+(?:\.\d+)*)")
_GPU_NODE = re.compile(r"gpu|ga10b|gv11b|gp10b|gm20b")


def is_jetson(root: Path) -> bool:
    """Whether this is NVIDIA's own board or a board with its module."""
    compatible = text_of(root / "proc/device-tree/compatible") or ""
    return "nvidia,tegra" in compatible or (root / "etc/nv_tegra_release").exists()


def model_name(root: Path) -> Optional[str]:
    """For example "NVIDIA Jetson Orin Nano Developer Kit"; None without a device tree."""
    for place in ("proc/device-tree/model", "sys/firmware/devicetree/base/model"):
        name = text_of(root / place)
        if name:
            return name
    return None


def l4t_version(root: Path) -> Optional[str]:
    """For example "36.4.3", of /etc/nv_tegra_release, else of the package nvidia-l4t-core."""
    found = _RELEASE.search(text_of(root / "etc/nv_tegra_release") or "")
    if found:
        return f"{found.group(1)}.{found.group(2)}"
    package = package_version(root, "nvidia-l4t-core")
    return package.split("-")[0] if package else None


def jetpack_version(root: Path, l4t: Optional[str]) -> Optional[str]:
    """Version of the package nvidia-jetpack, else the release that the L4T version belongs to.

    "6.x" where the series alone is known.
    """
    package = package_version(root, "nvidia-jetpack")
    if package:
        return re.split(r"[-+~]", package)[0]
    if l4t is None:
        return None
    short = l4t[:-2] if re.fullmatch(r"\d+\.\d+\.0", l4t) else l4t
    return JETPACK_OF_L4T.get(short) or JETPACK_SERIES.get(short.split(".")[0])


def package_version(root: Path, name: str) -> Optional[str]:
    """Version of an installed Debian package, from dpkg's own list."""
    try:
        with (root / "var/lib/dpkg/status").open(encoding="utf-8", errors="replace") as lines:
            wanted = installed = False
            for line in lines:
                if line.startswith("Package: "):
                    wanted, installed = line[9:].strip() == name, False
                elif wanted and line.startswith("Status: "):
                    installed = line.split()[-1] == "installed"
                elif wanted and installed and line.startswith("Version: "):
                    return line[9:].strip()
    except OSError:
        return None
    return None


def power_mode(root: Path) -> Tuple[Optional[str], Optional[int]]:
    """Name and number of nvpmodel's mode, for example ("MAXN_SUPER", 2); (None, None) if unknown.

    `nvpmodel -q` needs root on some releases; the mode it wrote down and the names of its
    configuration are the second source.
    """
    said = output_of(["nvpmodel", "-q"]) or ""
    found = re.search(r"NV Power Mode:\s*(\S[^\n]*?)\s*\n\s*(\d+)", said)
    if found:
        return found.group(1), int(found.group(2))
    status = re.search(r"pmode:\s*(\d{1,4})", text_of(root / "var/lib/nvpmodel/status") or "")
    if status is None:
        return None, None
    number = int(status.group(1))
    names = re.findall(
        r"^<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>",
        text_of(root / "etc/nvpmodel.conf") or "",
        re.MULTILINE,
    )
    return next((name for mode, name in names if int(mode) == number), None), number


def gpu_clock_folder(root: Path) -> Optional[Path]:
    """The GPU's devfreq folder, which holds cur_freq, min_freq and max_freq in Hz."""
    # 17000000.gv11b on Xavier, 17000000.ga10b on Orin with JetPack 5, 17000000.gpu with 6,
    # gpu-gpc-0 beside gpu-nvd-0 (video) on Thor, 57000000.gpu on Nano.
    found = entries(root / "sys/class/devfreq") + entries(root / "sys/devices/gpu.0/devfreq")
    nodes = [f for f in found if _GPU_NODE.search(f.name)]
    return next((f for f in nodes if "gpc" in f.name), nodes[0] if nodes else None)


def clocks(root: Path) -> Dict[str, Any]:
    """Clocks in MHz, those that can be read, and `fixed`: whether jetson_clocks holds them.

    Fixed means that the lowest clock allowed is the highest, for the GPU and all running CPUs;
    None where neither can be read. `emc_mhz` (memory) needs root as a rule.
    """
    found: Dict[str, Any] = {}
    pairs: List[Tuple[Optional[float], Optional[float]]] = []
    gpu = gpu_clock_folder(root)
    if gpu is not None:
        low, high = (mega(gpu / f"{end}_freq", per=1e6) for end in ("min", "max"))
        found = {"gpu_mhz": mega(gpu / "cur_freq", per=1e6), "gpu_min_mhz": low}
        found["gpu_max_mhz"] = high
        pairs.append((low, high))
    highest: List[float] = []
    for policy in entries(root / "sys/devices/system/cpu/cpufreq", "policy*"):
        low, high = (mega(policy / f"scaling_{end}_freq", per=1e3) for end in ("min", "max"))
        pairs.append((low, high))
        highest += [] if high is None else [high]
    found["cpu_max_mhz"] = max(highest, default=None)
    emc = number_of(root / "sys/kernel/debug/bpmp/debug/clk/emc/rate")
    found["emc_mhz"] = None if emc is None else round(emc / 1e6, 1)
    known = [low == high for low, high in pairs if low is not None and high is not None]
    found["fixed"] = all(known) if known else None
    return {name: value for name, value in found.items() if value is not None}
