"""The two bundles that the GPU tests run: SegFormer-B0 of demo/ with a fixed and a free batch.

As a program on a workstation, for a board that has no torch (the folder is then copied there):
`python tests/gpu/gpu_bundles.py FOLDER`, and on the board RICESEG_GPU_BUNDLES=FOLDER.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
DEMO = ROOT / "demo"
BATCHES = {"fixed": "1:1:1", "free": "1:2:4"}


def make_bundles(folder: Path) -> Path:
    """Export what is missing of folder/fixed and folder/free; minutes on a CPU."""
    for name, batch in BATCHES.items():
        if not (folder / name / "bundle.json").is_file():
            _export(folder / name, batch)
    return folder


def _export(out: Path, batch: str) -> None:
    checkpoint = str(DEMO / "segformer_b0_crop_weed.pth")
    given = ["--checkpoint", checkpoint, "--calib", str(DEMO), "--out", str(out)]
    wanted = ["--int8", "--fp16", "--output", "both", "--dynamic-batch", batch]
    # The photos are no bands; a network of three channels takes what is made of any three.
    wanted += ["--bands", "GNE", "--fuse-bands"]
    done = subprocess.run(
        [sys.executable, "-m", "exporter", *given, *wanted],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the export failed:\n{done.stdout[-2000:]}")


if __name__ == "__main__":
    make_bundles(Path(sys.argv[1]))
