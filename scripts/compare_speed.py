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

from engines.board.machine import machine_record, package_versions
from engines.errors import ConfigError, UserError
from engines.images import image_files_from, image_from_file, sha256_of_file
from engines.resize import ResizeRule, network_image_from_image
from exporter.checkpoint import state_dict_from_checkpoint
from exporter.load import LoadedModel, load_model
from exporter.onnx_graph import INPUT_NAME, GraphSpec, onnx_from_model
from exporter.request import LoadOptions
from exporter.rewrites.rewritten import rewritten_for_export
from exporter.simplify import simplify_onnx

ROOT = Path(__file__).resolve().parents[1]
MMSEG, TRANSFORMERS = "mmsegmentation", "transformers"
LABELS, LOGITS = "labels", "logits"
SHOWN = {LABELS: "uint8 image to uint8 labels", LOGITS: "normalised image to logits"}
# Share of the other's time that we may take at most.
LIMITS = {MMSEG: 0.75, TRANSFORMERS: 0.60}
MIN_AGREEMENT = 99.99  # percent of the pixels with the same label
SIDE, OPSET = 512, 17
WARMUP = 3  # runs per session that are left out
# A session is measured again, at most ATTEMPTS times in all, while other programs keep more than
# this many cores busy: on two cores they moved the ratios of single rounds from 0.2 to 1.2.
DISTURBED, ATTEMPTS, PAUSE_S = 0.1, 4, 1.0

Batch = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Pair:
    """Two ONNX files with the same weights and contract. `other` is MMSEG or TRANSFORMERS."""

    other: str
    contract: str
    ours: Path
    theirs: Path


@dataclass(frozen=True)
class Session:
    """Times in ms of one session's runs after the warm-up.

    `others_cores` is how many processor cores other programs kept busy meanwhile.
    """

    times_ms: list[float]
    others_cores: float


@dataclass(frozen=True)
class Timing:
    """What was measured of one graph; size in MB = 1e6 bytes.

    `disturbed_rounds` counts those with more than DISTURBED cores busy with other programs.
    """

    median_ms: float
    p95_ms: float
    disturbed_rounds: int
    nodes: int
    file_mb: float
    sha256: str


@dataclass(frozen=True)
class Comparison:
    """`ratio` is our median over theirs, its lowest and highest value that of single rounds.

    `agreement` is the percentage of pixels with the same label, None for logits.
    """

    other: str
    contract: str
    ours: Timing
    theirs: Timing
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
    parser.add_argument("--threads", type=int, default=0, help="0: ONNX Runtime's default (0)")
    parser.add_argument("--rounds", type=int, default=10, help="sessions per graph (10)")
    parser.add_argument("--runs", type=int, default=10, help="timed runs per session (10)")
    out = ROOT / "docs" / "results" / "speed.json"
    parser.add_argument("--out", type=Path, default=out)
    return parser.parse_args()


def compare(options: argparse.Namespace) -> int:
    files = image_files_from(options.images)
    images = network_images(files)
    with tempfile.TemporaryDirectory() as folder:
        print("exporting", file=sys.stderr)
        pairs = all_pairs(options.checkpoint, images, Path(folder))
        load_average = os.getloadavg()
        sessions = measured_sessions(pairs, images, options)
        comparisons = [
            comparison_from_sessions(pair, sessions, images, LIMITS[pair.other]) for pair in pairs
        ]
    record = {
        "format": "riceseg-speed",
        "format_version": 1,
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": machine_record(),
        "load_average_before": load_average,
        "versions": package_versions() | versions_of("mmsegmentation", "mmcv-lite", "transformers"),
        "runtime": "ONNX Runtime, CPUExecutionProvider",
        "threads": options.threads or "default",
        "checkpoint": file_record(options.checkpoint),
        "images": [file_record(file) for file in files],
        "input_hw": [SIDE, SIDE],
        "opset": OPSET,
        "batch": 1,
        "rounds": options.rounds,
        "runs_per_round": options.runs,
        "warmup_per_round": WARMUP,
        "comparisons": [asdict(comparison) for comparison in comparisons],
    }
    write_json(record, options.out)
    print(markdown(comparisons))
    return 0 if all(comparison.passed for comparison in comparisons) else 1


def network_images(files: Sequence[Path]) -> Batch:
    """(N, SIDE, SIDE, 3) uint8."""
    rule = ResizeRule("stretch")
    return np.stack(
        [
            network_image_from_image(image_from_file(file), (SIDE, SIDE), rule, (0, 0, 0))
            for file in files
        ]
    )


def all_pairs(checkpoint: Path, images: Batch, folder: Path) -> list[Pair]:
    """Each library's graph and ours with the same weights, by both contracts."""
    # The reference tests build these models too, and do without mmcv's compiled part.
    sys.path.insert(0, str(ROOT / "tests" / "reference"))
    models = importlib.import_module("random_models")
    models.stand_in_for_compiled_ops()
    ours = load_model(checkpoint)
    theirs = trained_mmsegmentation_net(models, ours, checkpoint)
    pairs = pairs_of(MMSEG, ours, theirs, images[:1], folder)
    ours, theirs = random_transformers_net(models, ours, images[:1], folder / "transformers")
    return pairs + pairs_of(TRANSFORMERS, ours, theirs, images[:1], folder)


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


def pairs_of(
    other: str, ours: LoadedModel, theirs: nn.Module, image: Batch, folder: Path
) -> list[Pair]:
    """Ours simplified by our settings, theirs by onnxsim's defaults; `image` is (1, H, W, C)."""
    labels, logits = (
        Pair(
            other,
            contract,
            folder / f"{other}-{contract}.onnx",
            folder / f"{contract}-{other}.onnx",
        )
        for contract in (LABELS, LOGITS)
    )
    hw, traced = (image.shape[1], image.shape[2]), folder / "traced.onnx"
    x = torch.randn(1, len(ours.mean), *hw, generator=torch.Generator().manual_seed(0))

    rewritten = rewritten_for_export(ours.net, hw)
    spec = GraphSpec(hw, ours.mean, ours.std, opset=OPSET)
    onnx_from_model(rewritten, spec, traced, num_outputs=ours.description.num_outputs)
    simplify_onnx(traced, labels.ours, batch=image)
    trace(rewritten, x, LOGITS, traced)
    simplify_onnx(traced, logits.ours, batch=x.numpy())

    trace(PlainContract(theirs, ours.mean, ours.std), torch.from_numpy(image), LABELS, traced)
    simplify_by_default(traced, labels.theirs)
    trace(theirs, x, LOGITS, traced)
    simplify_by_default(traced, logits.theirs)
    return [labels, logits]


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


Sessions = dict[Path, list[Session]]  # one per round


def measured_sessions(
    pairs: Sequence[Pair], images: Batch, options: argparse.Namespace
) -> Sessions:
    """Every graph in turn in each round, back and forth, so that drift meets all alike."""
    turns = [(path, pair.contract) for pair in pairs for path in (pair.ours, pair.theirs)]
    sessions: Sessions = {path: [] for path, _ in turns}
    for number in range(options.rounds):
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
        for path, contract in turns if number % 2 == 0 else reversed(turns):
            feeds = feeds_of(contract, images)
            for _ in range(ATTEMPTS):
                session = measured_session(path, feeds, options.runs, options.threads)
                if session.others_cores <= DISTURBED:
                    break
                time.sleep(PAUSE_S)
            sessions[path].append(session)
    return sessions


def measured_session(path: Path, feeds: Sequence[Batch], runs: int, threads: int) -> Session:
    """One fresh session, gone on return: the idle threads of a session that is still there spin
    for a while after each run and take the processor from the one being measured."""
    runtime = open_session(path, threads)
    times_ms = []
    for run in range(WARMUP + runs):
        if run == WARMUP:
            busy, own, begin = busy_seconds(), time.process_time(), time.perf_counter()
        start = time.perf_counter()
        runtime.run(None, {INPUT_NAME: feeds[run % len(feeds)]})
        times_ms.append((time.perf_counter() - start) * 1e3)
    others = (busy_seconds() - busy) - (time.process_time() - own)
    return Session(times_ms[WARMUP:], others / (time.perf_counter() - begin))


def open_session(path: Path, threads: int) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def busy_seconds() -> float:
    """Processor time of all programs since the start (Linux)."""
    fields = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()[1:]
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def feeds_of(contract: str, images: Batch) -> list[Batch]:
    """Single images as such a graph takes them; for logits normalised only roughly."""
    if contract == LABELS:
        return [image[None] for image in images]
    x = (images[:4].astype(np.float32) - 120.0) / 60.0
    return [np.ascontiguousarray(image.transpose(2, 0, 1))[None] for image in x]


def comparison_from_sessions(
    pair: Pair, sessions: Sessions, images: Batch, limit: float
) -> Comparison:
    ours, theirs = (timing_from_sessions(path, sessions[path]) for path in (pair.ours, pair.theirs))
    by_round = [
        float(np.median(a.times_ms) / np.median(b.times_ms))
        for a, b in zip(sessions[pair.ours], sessions[pair.theirs], strict=True)
    ]
    ratio = ours.median_ms / theirs.median_ms
    agreement = label_agreement(pair, images) if pair.contract == LABELS else None
    return Comparison(
        other=pair.other,
        contract=pair.contract,
        ours=ours,
        theirs=theirs,
        ratio=ratio,
        lowest_ratio=min(by_round),
        highest_ratio=max(by_round),
        limit=limit,
        agreement=agreement,
        passed=ratio <= limit and (agreement is None or agreement >= MIN_AGREEMENT),
    )


def timing_from_sessions(path: Path, sessions: Sequence[Session]) -> Timing:
    times_ms = np.concatenate([session.times_ms for session in sessions])
    median, p95 = np.percentile(times_ms, [50, 95])
    return Timing(
        median_ms=float(median),
        p95_ms=float(p95),
        disturbed_rounds=sum(session.others_cores > DISTURBED for session in sessions),
        nodes=len(onnx.load(path).graph.node),
        file_mb=path.stat().st_size / 1e6,
        sha256=sha256_of_file(path),
    )


def label_agreement(pair: Pair, images: Batch) -> float:
    """Percent of all pixels of all images with the same label."""
    labels = []
    for path in (pair.ours, pair.theirs):
        runtime = open_session(path, 0)
        labels.append([runtime.run(None, {INPUT_NAME: image[None]})[0] for image in images])
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


def markdown(comparisons: Sequence[Comparison]) -> str:
    lines = [
        "| from and to | other | riceseg ms (p95) | other ms (p95) | ratio (rounds) | at most "
        "| nodes | same labels | disturbed rounds | |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for c in comparisons:
        cells = [
            SHOWN[c.contract],
            c.other,
            *(f"{t.median_ms:.1f} ({t.p95_ms:.1f})" for t in (c.ours, c.theirs)),
            f"{c.ratio:.3f} ({c.lowest_ratio:.3f} to {c.highest_ratio:.3f})",
            f"{c.limit:.2f}",
            f"{c.ours.nodes} / {c.theirs.nodes}",
            "" if c.agreement is None else f"{c.agreement:.4f} %",
            f"{c.ours.disturbed_rounds} / {c.theirs.disturbed_rounds}",
            "passed" if c.passed else "FAILED",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
