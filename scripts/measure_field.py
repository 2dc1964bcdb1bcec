"""What a large field costs beside plain inference of its windows, and how much memory it takes.

    .venv/bin/python scripts/measure_field.py --out docs/results/field.json

Time: a GeoTIFF of --side pixels is segmented with BUNDLE (default: the demo checkpoint, exported at
512x512 with logits), and by turns the same windows, already in memory, are given to the same
predictor one call at a time. Memory: the largest resident memory of a process that segments
--wide x --high pixels with a network of 150 classes and next to no weights, and with 6.
Needs the packages of riceseg[export,scenes,test]; nothing else should run meanwhile. Exit code 1
when a limit is exceeded. The memory part takes some minutes: --skip-memory leaves it out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from PIL import Image

from engines.board.machine import machine_record, package_versions
from engines.bundle import bundle_from_folder
from engines.bundle_runtime import Wish, open_bundle
from engines.field.grid import axis_of_windows
from engines.field.label_raster import opened_labels
from engines.field.network import FieldNetwork, network_from_bundle
from engines.field.run import FieldOptions, segment_field
from engines.field.vectorize import write_polygons
from engines.onnx_predictor import OnnxPredictor
from engines.progress import SilentProgress
from engines.speed.timing import peak_memory_mb

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "demo"
LIMITS = {"time_ratio": 1.15, "peak_gib": 1.5}
WINDOW = 512

# 1x1 convolution at 1/16 of the size, logits at the full size: as large as a real network's.
CHEAP = """
<ir_version: 8, opset_import: ["" : 17]>
cheap (uint8[N, 512, 512, 3] image) => (float[N, {outputs}, 512, 512] logits)
<float[1] any_roi = {{0}}, float[4] scales = {{1, 1, 16, 16}}>
{{
  pixels = Cast <to = 1> (image)
  planes = Transpose <perm = [0, 3, 1, 2]> (pixels)
  small = AveragePool <kernel_shape = [16, 16], strides = [16, 16]> (planes)
  few = Conv (small, weight)
  logits = Resize <mode = "linear"> (few, any_roi, scales)
}}
"""


def profile(width: int, height: int, *, block: int) -> dict[str, Any]:
    """Of an RGB GeoTIFF in tiles of `block` pixels."""
    return {
        "driver": "GTiff", "width": width, "height": height, "count": 3, "dtype": "uint8",
        "tiled": True, "blockxsize": block, "blockysize": block, "compress": "deflate",
        "photometric": "rgb", "crs": "EPSG:5186",
        "transform": rasterio.Affine(0.05, 0, 200_000, 0, -0.05, 550_000),
    }  # fmt: skip


def write_field(path: Path, side: int) -> Path:
    """Patches with noise, as hard to unpack as a photo."""
    rng = np.random.default_rng(0)
    with rasterio.open(path, "w", **profile(side, side, block=256)) as file:
        for top in range(0, side, 256):
            height = min(256, side - top)
            colours = rng.integers(30, 220, (3, 4, side // 64 + 1))
            rows = colours.repeat(64, axis=1).repeat(64, axis=2)[:, :height, :side]
            rows = rows + rng.integers(-20, 21, rows.shape)
            file.write(rows.astype(np.uint8), window=((top, top + height), (0, side)))
    return path


def write_constant(path: Path, width: int, height: int) -> Path:
    """Large, and small on disk; every pixel is data."""
    row = np.full((3, 512, width), 100, np.uint8)
    with rasterio.open(path, "w", **profile(width, height, block=512)) as file:
        for top in range(0, height, 512):
            rows = min(512, height - top)
            file.write(row[:, :rows], window=((top, top + rows), (0, width)))
    return path


def cheap_network(path: Path, outputs: int) -> Path:
    import onnx
    import onnx.parser
    from onnx import numpy_helper

    model = onnx.parser.parse_model(CHEAP.format(outputs=outputs))
    weight = np.random.default_rng(0).normal(0, 1, (outputs, 3, 1, 1)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "weight"))
    onnx.save_model(model, str(path))
    return path


def plain_s(network: FieldNetwork, image: np.ndarray[Any, Any], options: FieldOptions) -> float:
    """Seconds of the network alone, on every window of the field, a window at a time."""
    size = network.predictor.input_hw
    rows, columns = (
        axis_of_windows(image.shape[axis], size[axis], options.overlap, blended=True).starts
        for axis in (0, 1)
    )
    started = time.perf_counter()
    for top in rows:
        for left in columns:
            window = image[top : top + size[0], left : left + size[1]]
            network.predictor.labels(np.ascontiguousarray(window)[np.newaxis])
    return time.perf_counter() - started


def measured_time(folder: Path, bundle: Path | None, side: int, runs: int) -> dict[str, Any]:
    if bundle is None:
        bundle = folder / "bundle"
        command = [
            sys.executable, "-c", "from exporter.__main__ import main; main()", "export",
            "--checkpoint", str(DEMO / "segformer_b0_crop_weed.pth"),
            "--size", f"{WINDOW}x{WINDOW}", "--output", "both", "--out", str(bundle),
        ]  # fmt: skip
        subprocess.run(command, check=True, cwd=ROOT, stdout=sys.stderr)
    record, options = bundle_from_folder(bundle), FieldOptions()
    opened = open_bundle(bundle, record, Wish())
    network = network_from_bundle(record, opened)
    source = write_field(folder / "field.tif", side)
    with rasterio.open(source) as file:
        image = np.ascontiguousarray(file.read().transpose(1, 2, 0))
    fields: list[float] = []
    plains: list[float] = []
    with opened.resources:
        network.predictor.labels(np.zeros((1, *network.predictor.input_hw, 3), np.uint8))
        for _ in range(runs):
            started = time.perf_counter()
            result = segment_field(
                network, source, folder / "labels.tif", options, SilentProgress()
            )
            fields.append(time.perf_counter() - started)
            plains.append(plain_s(network, image, options))
    ratios = [field / plain for field, plain in zip(fields, plains, strict=True)]
    return {
        "bundle": record.name,
        "runtime": opened.predictor.runtime,
        "outputs": record.num_outputs,
        "side_px": side,
        "windows": result.windows,
        "field_s": fields,
        "plain_s": plains,
        "time_ratio": statistics.median(ratios),
    }


def in_a_process(*arguments: object) -> tuple[list[str], float]:
    """What this script, run with `arguments`, prints, and the seconds that it took."""
    command = [sys.executable, __file__, *map(str, arguments)]
    started = time.perf_counter()
    done = subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    return done.stdout.split(), time.perf_counter() - started


def measured_memory(folder: Path, width: int, height: int, outputs: int) -> dict[str, Any]:
    """The largest resident memory of a process of its own."""
    source = write_constant(folder / "wide.tif", width, height)
    graph = cheap_network(folder / "cheap.onnx", outputs)
    (peak_mb,), seconds = in_a_process("--run", source, graph, outputs)
    return {
        "outputs": outputs,
        "hw": [height, width],
        "seconds": seconds,
        "peak_gib": float(peak_mb) * 1e6 / 2**30,
    }


def write_labels(path: Path, width: int, height: int) -> Path:
    """Ragged patches of 6 classes: the largest of six smooth noises at each pixel."""
    rng = np.random.default_rng(0)
    kept = profile(width, height, block=512) | {"count": 1, "photometric": "minisblack"}
    with rasterio.open(path, "w", **kept) as file:
        for top in range(0, height, 256):
            rows = min(256, height - top)
            largest = np.full((rows, width), -1.0, np.float32)
            labels = np.zeros((rows, width), np.uint8)
            for index in range(6):
                noise = Image.fromarray(rng.random((9, width // 32 + 1), np.float32))
                smooth = np.asarray(noise.resize((width, 256), Image.Resampling.BILINEAR))[:rows]
                labels[smooth > largest] = index
                np.maximum(largest, smooth, out=largest)
            file.write(labels, 1, window=((top, top + rows), (0, width)))
    return path


def measured_polygons(folder: Path, width: int, height: int) -> dict[str, Any]:
    """Seconds and the largest resident memory of a process of its own."""
    labels = write_labels(folder / "patches.tif", width, height)
    (polygons, cuts, peak_mb), seconds = in_a_process("--polygons", labels)
    return {
        "hw": [height, width],
        "polygons": int(polygons),
        "cuts": int(cuts),
        "geojson_mb": labels.with_suffix(".geojson").stat().st_size / 1e6,
        "seconds": seconds,
        "peak_gib": float(peak_mb) * 1e6 / 2**30,
    }


def write_polygons_in_this_process(labels: Path) -> None:
    """What `measured_polygons` runs; prints polygons, cuts and its peak in MB."""
    with opened_labels(labels) as raster:
        names = [f"class {index}" for index in range(6)]
        done = write_polygons(raster, names, labels.with_suffix(".geojson"), SilentProgress())
    print(done.written, len(done.cuts), peak_memory_mb())


def run_in_this_process(source: Path, graph: Path, outputs: int) -> None:
    """What `measured_memory` runs; prints its peak in MB."""
    with OnnxPredictor(graph) as predictor:
        network = FieldNetwork(predictor, outputs, ())
        out = source.with_name("wide_labels.tif")
        segment_field(network, source, out, FieldOptions(resume=False), SilentProgress())
    print(peak_memory_mb())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--side", type=int, default=4096)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--wide", type=int, default=20_000)
    parser.add_argument("--high", type=int, default=20_000)
    parser.add_argument("--skip-memory", action="store_true")
    parser.add_argument("--skip-time", action="store_true")
    parser.add_argument("--skip-polygons", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--polygons", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.polygons is not None:
        write_polygons_in_this_process(args.polygons)
        return
    if args.run is not None:
        run_in_this_process(Path(args.run[0]), Path(args.run[1]), int(args.run[2]))
        return
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if not args.skip_time:
            result["time"] = measured_time(folder, args.bundle, args.side, args.runs)
        if not args.skip_memory:
            result["memory"] = [
                measured_memory(folder, args.wide, args.high, outputs) for outputs in (150, 6)
            ]
        if not args.skip_polygons:
            result["polygons"] = measured_polygons(folder, args.wide, args.high)
    result |= {"limits": LIMITS, "machine": machine_record(), "versions": package_versions()}
    text = json.dumps(result, indent=2)
    print(text)
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text + "\n", encoding="utf-8")
    over = [f"peak_gib of {row['outputs']} classes" for row in result.get("memory", ())
            if row["peak_gib"] > LIMITS["peak_gib"]]  # fmt: skip
    if result.get("polygons", {}).get("peak_gib", 0.0) > LIMITS["peak_gib"]:
        over.append("peak_gib of polygons")
    if result.get("time", {}).get("time_ratio", 0.0) > LIMITS["time_ratio"]:
        over.append("time_ratio")
    if over:
        raise SystemExit(f"over the limit: {', '.join(over)}")


if __name__ == "__main__":
    main()
