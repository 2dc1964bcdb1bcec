"""The desktop driver's own program, asked once."""

from __future__ import annotations

import os
import re
import shutil
from typing import Any, Dict, Optional

from engines.board.files import status_and_output

# nvidia-smi refuses the whole question for one name that it does not know: compute_cap came with
# driver 510, and cuda_version never existed.
FIELDS = ("name", "driver_version", "memory.total", "power.limit", "clocks.max.sm", "compute_cap")
OLD_FIELDS = FIELDS[:-1]
TIMEOUT_S = 5.0


def gpu_choice(device: int) -> str:
    """What nvidia-smi and NVML call CUDA's device: its number or UUID by CUDA_VISIBLE_DEVICES.

    Without that variable the numbers are taken to be the same, which holds with one GPU, and with
    several of one kind or CUDA_DEVICE_ORDER=PCI_BUS_ID.
    """
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    chosen = visible[device] if device < len(visible) else ""
    return chosen if re.fullmatch(r"\d+|(GPU|MIG)-[0-9A-Za-z/-]+", chosen) else str(device)


def gpu_record(device: int = 0) -> Dict[str, Any]:
    """name, driver, memory_mb (2**20 bytes), power_limit_w, max_clock_mhz, compute_capability.

    Only what is known; empty without nvidia-smi or without a GPU.
    """
    choice = gpu_choice(device)
    for fields in (FIELDS, OLD_FIELDS):
        status, output = status_and_output(
            ["nvidia-smi", f"--id={choice}", f"--query-gpu={','.join(fields)}", *CSV],
            timeout_s=TIMEOUT_S,
        )
        if status == 0:
            return _record(dict(zip(fields, _cells(output))))
        if status is None:
            return {}
    return {}


def driver_cuda_version(*, timeout_s: float = TIMEOUT_S) -> Optional[str]:
    """The CUDA version that the driver supports, for example "12.6"; None if it is not known.

    Raises TimeoutError if nvidia-smi had to be stopped.
    """
    if shutil.which("nvidia-smi") is None:
        return None
    status, output = status_and_output(["nvidia-smi"], timeout_s=timeout_s)
    if status is None:
        raise TimeoutError(f"nvidia-smi gives no answer within {timeout_s:g} s")
    found = re.search(r"CUDA Version:\s*(\d+\.\d+)", output) if status == 0 else None
    return found.group(1) if found else None


CSV = ("--format=csv,noheader,nounits",)


def _cells(output: str) -> Any:
    lines = output.strip().splitlines()
    return [cell.strip() for cell in lines[0].split(",")] if lines else []


def _record(cells: Dict[str, str]) -> Dict[str, Any]:
    known = {name: cell for name, cell in cells.items() if cell and "N/A" not in cell}
    found: Dict[str, Any] = {
        "name": known.get("name"),
        "driver": known.get("driver_version"),
        "memory_mb": figure(known.get("memory.total")),
        "power_limit_w": figure(known.get("power.limit")),
        "max_clock_mhz": figure(known.get("clocks.max.sm")),
        "compute_capability": known.get("compute_cap"),
    }
    return {name: value for name, value in found.items() if value is not None}


def figure(cell: Optional[str]) -> Optional[float]:
    """The number in a cell; None for "[N/A]", "[Not Supported]" and anything else."""
    if cell is None or not re.fullmatch(r"-?\d{1,12}(\.\d{1,6})?", cell.strip()):
        return None
    return float(cell)
