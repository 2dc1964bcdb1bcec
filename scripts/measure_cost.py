"""What an export costs: import time, time of B0, memory of B5.

    .venv/bin/python scripts/measure_cost.py --out docs/results/cost.json

Calibration alone: scripts/measure_calibration.py.
Needs the packages of riceseg[export,test] and the data in demo/. Exit code 1 when a limit is
exceeded. The limits are for two cores; nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from engines.board.machine import machine_record, package_versions

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "demo"
RICESEG = [sys.executable, "-c", "from exporter.__main__ import main; main()"]
LIMITS = {
    "import_engines_s": 0.15,
    "export_b0_s": 90.0,
    "export_b5_peak_gib": 6.0,
}


def child(code: str, *arguments: str) -> str:
    """Standard output of a fresh Python that sees this project."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ).stdout


def import_engines_s() -> float:
    """Median over 7 processes of the time `import engines` takes once numpy is there."""
    code = (
        "import time, numpy; t = time.perf_counter(); import engines; "
        "from engines import Segmenter; print(time.perf_counter() - t)"
    )
    return statistics.median(float(child(code)) for _ in range(7))


def watched(command: list[str]) -> tuple[float, float]:
    """Seconds, and the largest sum of resident memory over the process and its children (GiB)."""
    started, peak = time.perf_counter(), 0
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    root = psutil.Process(process.pid)
    while process.poll() is None:
        total = 0
        try:
            for member in (root, *root.children(recursive=True)):
                total += member.memory_info().rss
        except psutil.NoSuchProcess:
            continue  # it ended between listing and reading
        peak = max(peak, total)
        time.sleep(0.02)
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return time.perf_counter() - started, peak / 2**30


def random_b5(path: Path) -> None:
    import torch

    from exporter.architectures.segformer import Segformer, SegformerShape

    torch.manual_seed(0)
    shape = SegformerShape(
        (64, 128, 320, 512), (3, 6, 40, 3), (1, 2, 5, 8), (8, 4, 2, 1), (4, 4, 4, 4),
        in_channels=3, num_outputs=150, head_channels=256, head_kind="mmsegmentation",
    )  # fmt: skip
    torch.save({"state_dict": Segformer(shape).state_dict()}, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        result: dict[str, Any] = {"import_engines_s": import_engines_s()}
        b0 = folder / "b0"
        seconds, gib = watched(
            [*RICESEG, "export", "--checkpoint", str(DEMO / "segformer_b0_crop_weed.pth"),
             "--int8", "--calib", str(DEMO), "--val", str(DEMO), "--out", str(b0)]
        )  # fmt: skip
        result |= {"export_b0_s": seconds, "export_b0_peak_gib": gib}
        random_b5(folder / "b5.pth")
        seconds, gib = watched(
            [*RICESEG, "export", "--checkpoint", str(folder / "b5.pth"), "--size", "512x512",
             "--int8", "--calib", str(DEMO), "--runs", "3", "--out", str(folder / "b5")]
        )  # fmt: skip
        result |= {"export_b5_s": seconds, "export_b5_peak_gib": gib}
    result |= {"limits": LIMITS, "machine": machine_record(), "versions": package_versions()}
    text = json.dumps(result, indent=2)
    print(text)
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text + "\n", encoding="utf-8")
    over = [key for key, limit in LIMITS.items() if result[key] > limit]
    if over:
        raise SystemExit(f"over the limit: {', '.join(over)}")


if __name__ == "__main__":
    main()
