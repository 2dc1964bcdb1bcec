"""`riceseg prepare` beside the straightforward recipe in one process, on the same scenes.

    .venv/bin/python scripts/compare_prepare.py --out docs/results/prepare.json

The recipe is that of the published models: bands are read with Pillow, computed with numpy in
float32 and written with OpenCV, polygons painted with OpenCV, one scene after the other. Masks are
written with Pillow, which knows palettes, and their classes counted.
`riceseg prepare` also divides the scenes, draws the contact sheet and keeps a journal. Both are
processes of their own whose start counts, and take turns; the files come from the page cache.
Scenes are generated: 512x512, five bands of float32, uncompressed, as Pillow writes them.

Exit code 1 when a file differs in any byte or the recipe takes less than 3 times as long.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BANDS = "GNE"
LIMIT = 3.0
PLAIN, OURS = "the recipe in one process", "riceseg prepare"
DIFFERENT = 25  # scenes that are generated; the others are these under other names
BYTES_WRITTEN = 1 << 20  # at most, of a scene
PALETTE = (0, 0, 0, 8, 39, 245, 0, 229, 245, 225, 0, 26, 250, 0, 204, 245, 123, 0)


def main() -> int:
    options = arguments()
    if options.recipe is not None:
        plain_recipe(*options.recipe)
        return 0
    seconds: dict[str, list[float]] = {PLAIN: [], OURS: []}
    differing: list[str] = []
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        raw = Path(folder) / "raw"
        make_scenes(raw, options.scenes, options.side)
        for number in range(options.rounds):
            plain, ours = Path(folder) / f"plain{number}", Path(folder) / f"ours{number}"
            seconds[PLAIN].append(timed([__file__, "--recipe", raw, plain], options.scenes))
            command = "from exporter.__main__ import main; main()"
            arguments_of_ours = ["prepare", raw, "--out", ours, "--bands", BANDS]
            seconds[OURS].append(timed(["-c", command, *arguments_of_ours], options.scenes))
            differing += differing_files(plain, ours)
    record = record_of(seconds, differing, options)
    print(table(record))
    for place in differing[:5]:
        print(f"differs: {place}", file=sys.stderr)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return 0 if record["passed"] else 1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--scenes", type=int, default=3000, help="(3000)")
    parser.add_argument("--side", type=int, default=512, help="pixels (512)")
    parser.add_argument("--rounds", type=int, default=3, help="of each, in turn (3)")
    parser.add_argument("--work", type=Path, help="folder for the files (the system's)")
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--recipe", type=Path, nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


def plain_recipe(raw: Path, out: Path) -> None:
    """What one writes down when reading the recipe."""
    import cv2
    import numpy as np
    from PIL import Image

    (out / "images").mkdir(parents=True)
    (out / "masks").mkdir()
    pixels: dict[str, Any] = {}
    for labels in sorted(raw.glob("*.json")):
        name = labels.stem
        planes = []
        for letter in BANDS:
            band = np.array(Image.open(raw / f"{name[:-5]}{letter}{name[-4:]}.tif"))
            band[band < 0] = band[band != -10000].min()
            planes.append((band - band.min()) / (band.max() - band.min()))
        composite = np.stack(planes, axis=2) * 255
        cv2.imwrite(str(out / "images" / f"{name}.png"), composite)

        record = json.loads(labels.read_text(encoding="utf-8"))
        mask = np.zeros(record["IMAGES"]["PHOTO_FILE_MG"], np.uint8)
        for item in sorted(record["ANNOTATIONS"], key=lambda item: item["OBJECT_CLASS_CODE"]):
            points = np.stack([item["PYN_XCRDNT"], item["PYN_YCRDNT"]], axis=1)
            cv2.fillPoly(mask, [points.astype(np.int32)], int(item["OBJECT_CLASS_CODE"]))
        picture = Image.fromarray(mask)
        picture.putpalette([*PALETTE, *[0] * (768 - len(PALETTE))])
        picture.save(out / "masks" / f"{name}.png", compress_level=1)
        pixels[name] = np.bincount(mask.ravel(), minlength=6)
    (out / "balance.txt").write_text(str(sum(pixels.values())), encoding="utf-8")


def make_scenes(raw: Path, count: int, side: int) -> None:
    """All files in one folder."""
    sys.path.insert(0, str(ROOT))
    scenes = importlib.import_module("tests.five_band_scenes")
    count_of_own = min(count, DIFFERENT)
    written = [scenes.write_scene(raw, number, hw=(side, side)) for number in range(count_of_own)]
    for number in range(len(written), count):
        scene = written[number % DIFFERENT]
        for letter, path in scene.files.items():
            os.link(path, raw / f"{scenes.scene_name(number, letter)}.tif")
        os.link(scene.json, raw / f"{scenes.scene_name(number)}.json")


def timed(command: Sequence[object], scenes: int) -> float:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    os.sync()  # or what the run before left to be written is written during this one
    touch_memory(scenes * BYTES_WRITTEN)
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, *map(str, command)],
        check=True,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return time.perf_counter() - started


def touch_memory(count: int) -> None:
    """A virtual machine may have given free memory back to its host, at each of whose pages a run
    would wait longer than it takes to fill them: 12 s for 4 GiB that then took 0.3 s."""
    code = f"import numpy; numpy.ones({count}, numpy.uint8)"
    subprocess.run([sys.executable, "-c", code], check=True)


def differing_files(plain: Path, ours: Path) -> list[str]:
    """Names, below images/ and masks/, of files that are not in both with the same bytes."""
    differing = []
    for kind in ("images", "masks"):
        expected = {path.name: path for path in (plain / kind).glob("*.png")}
        found = {path.name: path for path in (ours / kind).glob("*/*.png")}
        differing += [
            f"{kind}/{name}"
            for name in sorted({*expected, *found})
            if name not in expected
            or name not in found
            or expected[name].read_bytes() != found[name].read_bytes()
        ]
    return differing


def record_of(
    seconds: Mapping[str, Sequence[float]], differing: Sequence[str], options: argparse.Namespace
) -> dict[str, Any]:
    sys.path.insert(0, str(ROOT))
    import cv2
    import numpy as np
    import PIL

    from engines.board.machine import machine_record
    from exporter.prepare.png import fast_encoder
    from exporter.prepare.pool import cores

    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratio = medians[PLAIN] / medians[OURS]
    return {
        "format": "riceseg-prepare-speed",
        "format_version": 1,
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": machine_record(),
        "load_average": os.getloadavg(),
        "versions": {"opencv": cv2.__version__, "numpy": np.__version__, "Pillow": PIL.__version__},
        "encoder": fast_encoder() or "OpenCV",
        "cores": cores(),
        "scenes": options.scenes,
        "side": options.side,
        "bands": BANDS,
        "seconds": {name: list(values) for name, values in seconds.items()},
        "scenes_per_second": {name: options.scenes / value for name, value in medians.items()},
        "ratio": ratio,
        "limit": LIMIT,
        "differing_files": len(differing),
        "passed": not differing and ratio >= LIMIT,
    }


def table(record: Mapping[str, Any]) -> str:
    lines = [
        f"{record['scenes']} scenes of {record['side']}x{record['side']}, {record['cores']} cores, "
        f"PNG by {record['encoder']}",
        "",
        "| | scenes / s | seconds (each round) |",
        "|---|---:|---:|",
    ]
    for name, values in record["seconds"].items():
        each = ", ".join(f"{value:.2f}" for value in values)
        lines.append(f"| {name} | {record['scenes_per_second'][name]:.0f} | {each} |")
    equal = "all files identical"
    if record["differing_files"]:
        equal = f"{record['differing_files']} files differ"
    return "\n".join([*lines, "", f"ratio {record['ratio']:.2f} (at least {LIMIT:g}), {equal}"])


if __name__ == "__main__":
    raise SystemExit(main())
