"""Time and memory of calibration, method by method, beside as many plain FP32 inferences.

    .venv/bin/python scripts/measure_calibration.py --out docs/results/calibration.json

Every method and the plain inference are processes of their own that take turns of a few images, so
that drift of the machine meets all alike; nothing else should run meanwhile. Reading the photos is
not timed. "auto" runs a few images once more at the end, which weighs less the more images there
are: the limits are meant for the 500 of the default, --quick only shows that the script works.
Needs the packages of riceseg[export,test]. Exit code 1 when a limit is exceeded.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from calibration.onnx_file import image_input, model_from_onnx_file, session_from_model
from calibration.ranges import CHOOSING_IMAGES, ranges_from_images
from engines.board.machine import machine_record, package_versions
from engines.images import image_files_from, image_from_file, sha256_of_file
from engines.resize import resize_bilinear
from engines.speed.benchmark import peak_memory_mb

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "demo"
RICESEG = [sys.executable, "-c", "from exporter.__main__ import main; main()"]
PLAIN = "plain"
# Times the seconds of as many plain inferences.
TIME_LIMITS = {"minmax": 1.3, "percentile": 2.5, "entropy": 2.5, "mse": 2.5, "auto": 2.5}
MEMORY_LIMIT = 1.10  # times the peak with FEW images
FEW, PHOTOS = 10, 64  # PHOTOS: how many different ones are repeated
TURN = 20  # images


def main() -> int:
    if sys.argv[1:2] == ["child"]:
        return child(*sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, help="FP32 graph; else the demo's, at 512x512")
    parser.add_argument("--photos", type=Path, default=DEMO / "images" / "calibration")
    parser.add_argument("--images", type=int, default=500, help="how many; photos repeat (500)")
    parser.add_argument("--quick", action="store_true", help="40 images")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    count = 40 if options.quick else options.images
    with tempfile.TemporaryDirectory() as name:
        model = options.model or exported_demo(Path(name))
        _, hwc = image_input(model_from_onnx_file(model))
        raw = Path(name) / "photos.raw"
        write_photos(options.photos, hwc, raw)
        load_average = os.getloadavg()
        many = measured(model, raw, count)
        few = measured(model, raw, FEW)
        methods = {method: row_of(method, many, few) for method in TIME_LIMITS}
        record = {
            "format": "riceseg-calibration-cost",
            "format_version": 1,
            "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "machine": machine_record(),
            "load_average_before": load_average,
            "versions": package_versions(),
            "model": {"name": model.name, "sha256": sha256_of_file(model)},
            "input_hwc": hwc,
            "images": count,
            "few_images": FEW,
            "choosing_images": CHOOSING_IMAGES,
            "memory_limit": MEMORY_LIMIT,
            PLAIN: many[PLAIN],
            "methods": methods,
        }
    text = json.dumps(record, indent=2)
    print(text)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n", encoding="utf-8")
    over = [method for method, row in methods.items() if not row["passed"]]
    if over:
        print(f"over a limit: {', '.join(over)}", file=sys.stderr)
    return 1 if over else 0


def exported_demo(folder: Path) -> Path:
    print("exporting the demo's checkpoint", file=sys.stderr)
    out = folder / "bundle"
    subprocess.run(
        [*RICESEG, "export", "--checkpoint", str(DEMO / "segformer_b0_crop_weed.pth"),
         "--size", "512x512", "--out", str(out)],
        check=True, stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    return out / "model.onnx"


def write_photos(folder: Path, hwc: tuple[int, int, int], raw: Path) -> None:
    """The first PHOTOS photos at the network's size, one after the other as bytes."""
    with raw.open("wb") as file:
        for path in image_files_from(folder)[:PHOTOS]:
            photo = resize_bilinear(image_from_file(path, channels=hwc[2]), hwc[:2])
            file.write(np.ascontiguousarray(photo, dtype=np.uint8).tobytes())


def row_of(method: str, many: dict[str, Any], few: dict[str, Any]) -> dict[str, Any]:
    time_ratio = many[method]["seconds"] / many[PLAIN]["seconds"]
    memory_ratio = many[method]["peak_mb"] / few[method]["peak_mb"]
    return {
        **many[method],
        "time_ratio": time_ratio,
        "cpu_ratio": many[method]["cpu_seconds"] / many[PLAIN]["cpu_seconds"],
        "time_limit": TIME_LIMITS[method],
        "few_peak_mb": few[method]["peak_mb"],
        "memory_ratio": memory_ratio,
        "passed": time_ratio <= TIME_LIMITS[method] and memory_ratio <= MEMORY_LIMIT,
    }


def measured(model: Path, raw: Path, count: int) -> dict[str, Any]:
    """By method, what its process says at the end, see `child`."""
    kinds = (PLAIN, *TIME_LIMITS)
    command = [sys.executable, __file__, "child"]
    children = {
        kind: subprocess.Popen(
            [*command, kind, str(model), str(raw), str(count)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        for kind in kinds
    }  # fmt: skip
    found: dict[str, Any] = {}
    turns = -(-count // TURN)
    try:
        for process in children.values():
            answer(process)  # imports are done
        for turn in range(turns):
            print(f"{count} images: turn {turn + 1} of {turns}", file=sys.stderr)
            for kind in kinds if turn % 2 == 0 else reversed(kinds):
                found[kind] = taken_turn(children[kind])
    finally:
        for process in children.values():
            process.kill()
            process.communicate()
    return found


def taken_turn(process: subprocess.Popen[str]) -> Any:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    return answer(process)


def answer(process: subprocess.Popen[str]) -> Any:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit("a process of the measurement ended early; its error stands above")
    return json.loads(line)


def child(kind: str, model: str, raw: str, count: str) -> int:
    """One method, or plain inference, in turns; its last line is the result.

    seconds, cpu_seconds: of its turns; last_seconds: of these, the ones after the last image.
    peak_mb: the most memory (1e6 bytes) it had resident.
    """
    turns = Turns(int(count))
    turns.wait()
    started, cpu, waited = time.perf_counter(), time.process_time(), turns.waited_s
    hwc = image_input(model_from_onnx_file(model))[1]
    images = turns.images(Path(raw), hwc)
    if kind == PLAIN:
        run_plainly(model, images)
    else:
        ranges_from_images(model, images, method=kind)  # type: ignore[arg-type]
    ended = time.perf_counter()
    result = {
        "seconds": ended - started - (turns.waited_s - waited),
        "cpu_seconds": time.process_time() - cpu,
        "last_seconds": ended - turns.last_image_at,
        "peak_mb": peak_memory_mb(),
    }
    print(json.dumps(result), flush=True)
    return 0


def run_plainly(path: str, images: Iterator[np.ndarray[Any, Any]]) -> None:
    model = model_from_onnx_file(path)
    session, (name, _) = session_from_model(model), image_input(model)
    for image in images:
        session.run(None, {name: image[None]})


class Turns:
    """Images that come only while it is this process's turn."""

    def __init__(self, count: int) -> None:
        self._count, self.waited_s, self.last_image_at = count, 0.0, 0.0

    def wait(self) -> None:
        began = time.perf_counter()
        print("null", flush=True)
        sys.stdin.readline()
        self.waited_s += time.perf_counter() - began

    def images(self, raw: Path, hwc: Sequence[int]) -> Iterator[np.ndarray[Any, Any]]:
        """(H, W, C) uint8, read from the file one at a time, from its start again at its end."""
        size = int(np.prod(hwc))
        photos = raw.stat().st_size // size
        for index in range(self._count):
            if index and index % TURN == 0:
                self.wait()
            photo = np.fromfile(raw, np.uint8, count=size, offset=index % photos * size)
            yield photo.reshape(hwc)
        self.last_image_at = time.perf_counter()


if __name__ == "__main__":
    sys.exit(main())
