"""Our graph of SegFormer beside those of mmsegmentation and transformers, on ONNX Runtime's CPU.

All sides have the same weights, the same input size and the same contract, either uint8 image to
uint8 labels or normalised image to logits of a quarter of its size. mmsegmentation's and
transformers' own modules are traced by torch.onnx.export and simplified by onnxsim with its
defaults. Runs in the environment of the `reference` extra:

    PYTHONPATH=. python scripts/compare_speed.py --checkpoint trained.pth

Exit code 1 when we take more than LIMITS of the other's time or the labels differ.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import importlib.metadata
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import onnxsim
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engines.errors import ConfigError, DatasetError, UserError
from engines.images import image_files_from, image_from_file, sha256_of_file
from engines.resize import ResizeRule, network_image_from_image
from exporter.checkpoint import state_dict_from_checkpoint
from exporter.load import LoadedModel, LoadOptions, load_model
from exporter.machine import machine_record, package_versions
from exporter.onnx_graph import INPUT_NAME, GraphSpec, onnx_from_model
from exporter.rewrites import rewritten_for_export
from exporter.simplify import simplify_onnx

ROOT = Path(__file__).resolve().parents[1]
OURS, MMSEG, TRANSFORMERS = "riceseg", "mmsegmentation", "transformers"
LABELS, LOGITS = "labels", "logits"
SHOWN = {LABELS: "uint8 image to uint8 labels", LOGITS: "normalised image to logits"}
# Share of the other's time that we may take at most.
LIMITS = {MMSEG: 0.75, TRANSFORMERS: 0.60}
MIN_AGREEMENT = 99.99  # percent of the pixels with the same label
OPSET = 17
WARMUP = 3  # runs per session that are left out

Batch = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Graph:
    """One ONNX file. `weights` says whose model it is a graph of: MMSEG or TRANSFORMERS."""

    weights: str
    contract: str
    maker: str
    path: Path


@dataclass(frozen=True)
class Row:
    """What was measured of one graph; times in ms, size in MB = 1e6 bytes."""

    weights: str
    contract: str
    maker: str
    median_ms: float
    p95_ms: float
    nodes: int
    file_mb: float
    sha256: str


@dataclass(frozen=True)
class Comparison:
    """Our median over the other's, its range over the rounds; agreement in percent of pixels.

    `agreement` is None for logits. `passed` is about the limits.
    """

    other: str
    contract: str
    ratio: float
    lowest_ratio: float
    highest_ratio: float
    limit: float
    agreement: float | None
    passed: bool


class QuarterLogits(nn.Module):
    """Normalised (N, C, H, W) float -> logits (N, K, H/4, W/4), by the library's own module."""

    def __init__(self, model: nn.Module, forward: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self._forward = model, forward

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(self.model, x)


class PlainContract(nn.Module):
    """uint8 (N, H, W, C) -> uint8 labels (N, H, W), in the plainest way."""

    def __init__(self, net: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        x = (image.float().permute(0, 3, 1, 2) - self.mean) / self.std  # type: ignore[operator]
        logits = F.interpolate(self.net(x), image.shape[1:3], mode="bilinear")
        return logits.argmax(dim=1).to(torch.uint8)


def main() -> int:
    try:
        return compare(arguments())
    except UserError as error:
        print(f"compare_speed: {error}", file=sys.stderr)
        return 2


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--checkpoint", type=Path, required=True, help="mmsegmentation's format")
    images = ROOT / "demo" / "images" / "validation"
    parser.add_argument("--images", type=Path, default=images, help="for the agreement of labels")
    parser.add_argument("--size", type=int, default=512, help="height and width (512)")
    parser.add_argument("--rounds", type=int, default=12, help="sessions per graph (12)")
    parser.add_argument("--runs", type=int, default=10, help="timed runs per session (10)")
    out = ROOT / "docs" / "results" / "speed.json"
    parser.add_argument("--out", type=Path, default=out)
    return parser.parse_args()


def compare(options: argparse.Namespace) -> int:
    files = image_files_from(options.images)
    images = network_images(files, options.size)
    with tempfile.TemporaryDirectory() as folder:
        print("exporting", file=sys.stderr)
        graphs = all_graphs(options.checkpoint, images, Path(folder))
        load_before = os.getloadavg()
        times = round_times_ms(graphs, images, rounds=options.rounds, runs=options.runs)
        rows = [row_from_times(graph, times[graph]) for graph in graphs]
        comparisons = all_comparisons(graphs, times, images)
    record = {
        "format": "riceseg-speed",
        "format_version": 1,
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": machine_record(),
        "load_average": {"before": load_before, "after": os.getloadavg()},
        "versions": package_versions() | versions_of("mmsegmentation", "mmcv-lite", "transformers"),
        "runtime": "ONNX Runtime, CPUExecutionProvider, default session options",
        "checkpoint": file_record(options.checkpoint),
        "images": [file_record(file) for file in files],
        "input_hw": [options.size, options.size],
        "opset": OPSET,
        "batch": 1,
        "rounds": options.rounds,
        "runs_per_round": options.runs,
        "warmup_per_round": WARMUP,
        "rows": [asdict(row) for row in rows],
        "comparisons": [asdict(comparison) for comparison in comparisons],
    }
    write_json(record, options.out)
    print(markdown(rows, comparisons))
    return 0 if all(comparison.passed for comparison in comparisons) else 1


def network_images(files: Sequence[Path], side: int) -> Batch:
    """(N, side, side, 3) uint8."""
    rule = ResizeRule("stretch")
    if not files:
        raise DatasetError("no image", expected="one image or more", do="give --images FOLDER")
    return np.stack(
        [
            network_image_from_image(image_from_file(file), (side, side), rule, (0, 0, 0))
            for file in files
        ]
    )


def all_graphs(checkpoint: Path, images: Batch, folder: Path) -> list[Graph]:
    """Both contracts of each library's graph, and of ours with the same weights."""
    # The reference tests build these models too, and do without mmcv's compiled part.
    sys.path.insert(0, str(ROOT / "tests" / "reference"))
    models = importlib.import_module("random_models")
    models.stand_in_for_compiled_ops()
    ours = load_model(checkpoint)
    theirs = trained_mmsegmentation_net(models, ours, checkpoint)
    graphs = graphs_of(MMSEG, ours, theirs, images, folder)
    ours, theirs = random_transformers_net(models, ours, images[:1], folder / "transformers")
    return graphs + graphs_of(TRANSFORMERS, ours, theirs, images, folder)


def trained_mmsegmentation_net(models: Any, ours: LoadedModel, checkpoint: Path) -> QuarterLogits:
    """mmsegmentation's own model with the weights of `checkpoint`."""
    found = ours.description
    if found.head != "mmsegmentation" or found.in_channels != 3 or found.variant == "custom":
        raise ConfigError(
            f"{found.name} with the {found.head} head and {found.in_channels} channels",
            expected="SegFormer B0 to B5 of mmsegmentation for 3 channels",
            do="give --checkpoint a file of mmsegmentation's segformer configurations",
        )
    config = models.mmsegmentation_config(
        found.variant, classes=found.num_outputs, head_channels=found.head_channels
    )
    model = models.mmsegmentation_model(config)
    model.load_state_dict(state_dict_from_checkpoint(checkpoint).tensors)
    return QuarterLogits(model, models.mmsegmentation_logits)


def random_transformers_net(
    models: Any, like: LoadedModel, image: Batch, folder: Path
) -> tuple[LoadedModel, QuarterLogits]:
    """transformers' own model of the same variant, random, and ours read from what it saved."""
    found = like.description
    model = models.transformers_model(
        found.variant,
        classes=found.num_outputs,
        head_channels=256 if found.variant in ("b0", "b1") else 768,
    )
    x = models.normalised(image, like.mean, like.std)
    models.randomise(
        model,
        model.decode_head.classifier,
        lambda: models.transformers_logits(model, x),
        seed=0,
    )
    model.save_pretrained(folder)
    ours = load_model(folder, LoadOptions(mean=like.mean, std=like.std))
    return ours, QuarterLogits(model, models.transformers_logits)


def graphs_of(
    weights: str, ours: LoadedModel, theirs: nn.Module, images: Batch, folder: Path
) -> list[Graph]:
    """Ours and theirs in both contracts; simplified by our settings and by onnxsim's defaults."""
    made = {
        (contract, maker): Graph(
            weights, contract, maker, folder / f"{weights}-{contract}-{maker}.onnx"
        )
        for contract in (LABELS, LOGITS)
        for maker in (OURS, weights)
    }
    image, hw = images[:1], (images.shape[1], images.shape[2])
    x = torch.randn(1, len(ours.mean), *hw, generator=torch.Generator().manual_seed(0))
    traced = folder / "traced.onnx"

    rewritten = rewritten_for_export(ours.net)
    spec = GraphSpec(hw, ours.mean, ours.std, opset=OPSET)
    onnx_from_model(rewritten, spec, traced, num_outputs=ours.description.num_outputs)
    simplify_onnx(traced, made[LABELS, OURS].path, batch=image)
    trace(rewritten, x, LOGITS, traced)
    simplify_onnx(traced, made[LOGITS, OURS].path, batch=x.numpy())

    contract = PlainContract(theirs, ours.mean, ours.std)
    trace(contract, torch.from_numpy(image), LABELS, traced)
    simplify_by_default(traced, made[LABELS, weights].path)
    trace(theirs, x, LOGITS, traced)
    simplify_by_default(traced, made[LOGITS, weights].path)
    return list(made.values())


def trace(net: nn.Module, example: Tensor, output: str, path: Path) -> None:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sizes become constants, which is wanted
        torch.onnx.export(
            net.eval(),
            (example,),
            str(path),
            input_names=[INPUT_NAME],
            output_names=[output],
            opset_version=OPSET,
            dynamo=False,
        )


def simplify_by_default(source: Path, target: Path) -> None:
    simplified, _ = onnxsim.simplify(onnx.load(source))
    onnx.save(simplified, target)


RoundTimes = list[list[float]]  # one list of ms per round


def round_times_ms(
    graphs: Sequence[Graph], images: Batch, *, rounds: int, runs: int
) -> dict[Graph, RoundTimes]:
    """Times of single images, all graphs in turn in each round, back and forth.

    A session lives for one round only: the idle threads of other sessions spin for a while and
    take the processor from the one being measured.
    """
    times: dict[Graph, RoundTimes] = {graph: [] for graph in graphs}
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
        for graph in graphs if number % 2 == 0 else reversed(graphs):
            session = open_session(graph)
            feeds = [{INPUT_NAME: batch} for batch in batches_of_one(graph, images)]
            measured = []
            for run in range(WARMUP + runs):
                feed = feeds[run % len(feeds)]
                start = time.perf_counter()
                session.run(None, feed)
                measured.append((time.perf_counter() - start) * 1e3)
            times[graph].append(measured[WARMUP:])
            del session
    return times


def open_session(graph: Graph) -> Any:
    return ort.InferenceSession(graph.path, providers=["CPUExecutionProvider"])


def batches_of_one(graph: Graph, images: Batch) -> list[Batch]:
    """The images as this graph takes them; for logits only roughly normalised, as time needs."""
    if graph.contract == LABELS:
        return [image[None] for image in images]
    x = (images[:4].astype(np.float32) - 120.0) / 60.0
    return [np.ascontiguousarray(image.transpose(2, 0, 1))[None] for image in x]


def row_from_times(graph: Graph, times: RoundTimes) -> Row:
    median, p95 = np.percentile(np.concatenate(times), [50, 95])
    return Row(
        weights=graph.weights,
        contract=graph.contract,
        maker=graph.maker,
        median_ms=float(median),
        p95_ms=float(p95),
        nodes=len(onnx.load(graph.path).graph.node),
        file_mb=graph.path.stat().st_size / 1e6,
        sha256=sha256_of_file(graph.path),
    )


def all_comparisons(
    graphs: Sequence[Graph], times: dict[Graph, RoundTimes], images: Batch
) -> list[Comparison]:
    """Each graph of ours with the other one of the same weights and contract."""
    comparisons = []
    for ours in (graph for graph in graphs if graph.maker == OURS):
        theirs = next(
            graph
            for graph in graphs
            if (graph.weights, graph.contract, graph.maker)
            == (ours.weights, ours.contract, ours.weights)
        )
        ratio = float(np.median(times[ours]) / np.median(times[theirs]))
        by_round = np.median(times[ours], axis=1) / np.median(times[theirs], axis=1)
        agreement = label_agreement(ours, theirs, images) if ours.contract == LABELS else None
        limit = LIMITS[ours.weights]
        # A NaN fails both comparisons, so the limits are stated positively.
        passed = ratio <= limit and (agreement is None or agreement >= MIN_AGREEMENT)
        comparisons.append(
            Comparison(
                other=ours.weights,
                contract=ours.contract,
                ratio=ratio,
                lowest_ratio=float(by_round.min()),
                highest_ratio=float(by_round.max()),
                limit=limit,
                agreement=agreement,
                passed=passed,
            )
        )
    return comparisons


def label_agreement(ours: Graph, theirs: Graph, images: Batch) -> float:
    """Percent of all pixels of all images with the same label."""
    labels = []
    for graph in (ours, theirs):
        session = open_session(graph)
        labels.append([session.run(None, {INPUT_NAME: image[None]})[0] for image in images])
        del session
    return 100.0 * float(np.mean(np.array(labels[0]) == np.array(labels[1])))


def versions_of(*packages: str) -> dict[str, str]:
    return {package: importlib.metadata.version(package) for package in packages}


def file_record(path: Path) -> dict[str, str]:
    return {"file": path.name, "sha256": sha256_of_file(path)}


def write_json(record: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.part")
    temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def markdown(rows: Sequence[Row], comparisons: Sequence[Comparison]) -> str:
    lines = [
        "| in and out | weights | graph made by | median ms | p95 ms | nodes | MB |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {SHOWN[r.contract]} | {r.weights} | {r.maker} | {r.median_ms:.1f} | {r.p95_ms:.1f} | "
        f"{r.nodes} | {r.file_mb:.1f} |"
        for r in rows
    ]
    lines += [
        "",
        "| in and out | riceseg's time over that of | ratio | by round | at most | same labels | |",
        "|---|---|---:|---:|---:|---:|---|",
    ]
    for c in comparisons:
        same = "" if c.agreement is None else f"{c.agreement:.4f} %"
        lines.append(
            f"| {SHOWN[c.contract]} | {c.other} | {c.ratio:.3f} | {c.lowest_ratio:.3f} to "
            f"{c.highest_ratio:.3f} | {c.limit:.2f} | {same} | "
            f"{'passed' if c.passed else 'FAILED'} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
