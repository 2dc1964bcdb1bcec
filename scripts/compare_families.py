"""Our graph of every family beside mmsegmentation's own module, on ONNX Runtime's CPU.

Both have the same random weights, on which speed does not depend, and the same contract: uint8
image to uint8 labels. mmsegmentation's module is traced by torch.onnx.export and simplified by
onnxsim with its defaults; where the exporter refuses its adaptive pooling, ours replaces that.
Runs in the environment of the `reference` extra:

    PYTHONPATH=. python scripts/compare_families.py --out docs/results/families_speed.json

Exit code 1 when one of ours is slower or its labels differ.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from compare_speed import (
    LABELS,
    MMSEG,
    OPSET,
    ROOT,
    Batch,
    Comparison,
    Pair,
    comparison_from_sessions,
    markdown,
    measured_sessions,
    simplify_by_default,
    trace,
    versions_of,
    write_json,
)
from torch import Tensor, nn

from engines.board.machine import machine_record, package_versions
from exporter.architectures.layers import pool_to
from exporter.load import LoadedModel
from exporter.onnx_graph import GraphSpec, onnx_from_model
from exporter.rewrites.rewritten import rewritten_for_export
from exporter.simplify import simplify_onnx

LIMIT = 1.0  # never slower


class TheirLabels(nn.Module):
    """uint8 (N, H, W, C) -> uint8 labels (N, H, W), by mmsegmentation's own test of one image."""

    def __init__(self, model: nn.Module, ours: LoadedModel) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(ours.mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(ours.std).view(1, -1, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        x = (image.float().permute(0, 3, 1, 2) - self.mean) / self.std  # type: ignore[operator]
        hw = (int(x.shape[2]), int(x.shape[3]))
        meta = {"img_shape": hw, "ori_shape": hw, "pad_shape": hw, "batch_input_shape": hw}
        logits = self.model.encode_decode(x, [meta])  # type: ignore[operator]
        return logits.argmax(dim=1).to(torch.uint8)  # type: ignore[no-any-return]


def main() -> int:
    options = arguments()
    comparisons, exporters = [], {}
    load_average = os.getloadavg()
    for against, variant in variants(options.family, slow=options.slow):
        print(variant, file=sys.stderr)
        with tempfile.TemporaryDirectory() as folder:
            pair, exporters[str(variant)], images = pair_of(against, variant, Path(folder))
            sessions = measured_sessions([pair], images, options)
            comparisons.append(
                (str(variant), comparison_from_sessions(pair, sessions, images, LIMIT))
            )
        print(markdown([comparisons[-1][1]]).splitlines()[-1], file=sys.stderr)
    record = {
        "format": "riceseg-families-speed",
        "format_version": 1,
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": machine_record(),
        "load_average_before": load_average,
        "versions": package_versions() | versions_of("mmsegmentation", "mmcv-lite", "mmdet"),
        "runtime": "ONNX Runtime, CPUExecutionProvider",
        "threads": options.threads or "default",
        "opset": OPSET,
        "rounds": options.rounds,
        "runs_per_round": options.runs,
        "comparisons": {
            name: asdict(comparison) | {"theirs_traced": exporters[name]}
            for name, comparison in comparisons
        },
    }
    if options.out is not None:
        write_json(record, options.out)
    print(table(comparisons, exporters))
    return 0 if all(comparison.passed for _, comparison in comparisons) else 1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--family", action="append", help="knet, segmenter, … (all)")
    parser.add_argument("--slow", action="store_true", help="the largest variants too")
    parser.add_argument("--threads", type=int, default=0, help="0: ONNX Runtime's default (0)")
    parser.add_argument("--rounds", type=int, default=5, help="sessions per graph (5)")
    parser.add_argument("--runs", type=int, default=5, help="timed runs per session (5)")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def variants(families: Sequence[str] | None, *, slow: bool) -> Iterator[tuple[Any, Any]]:
    """(module with the comparison's tools, variant) of all reference tests."""
    sys.path.insert(0, str(ROOT / "tests" / "reference"))
    importlib.import_module("random_models").stand_in_for_compiled_ops()
    against = importlib.import_module("against_mmsegmentation")
    for path in sorted((ROOT / "tests" / "reference").glob("test_*.py")):
        family = path.stem.removeprefix("test_")
        if (families and family not in families) or "AgainstMmsegmentation" not in path.read_text(
            encoding="utf-8"
        ):
            continue
        for value in vars(importlib.import_module(path.stem)).values():
            if isinstance(value, type) and issubclass(value, against.AgainstMmsegmentation):
                for variant in value.VARIANTS:  # type: ignore[attr-defined]
                    if slow or not variant.slow:
                        yield against, variant


def pair_of(against: Any, variant: Any, folder: Path) -> tuple[Pair, str, Batch]:
    """Both graphs of one variant, how theirs was traced, and the image they ran on."""
    case = against.made_case(variant, folder)
    images = against.random_images(2, variant.hw, seed=3)
    pair = Pair(MMSEG, LABELS, folder / "ours.onnx", folder / "theirs.onnx")
    traced = folder / "traced.onnx"
    spec = GraphSpec(variant.hw, case.ours.mean, case.ours.std, opset=OPSET)
    net = rewritten_for_export(case.ours.net, variant.hw)
    onnx_from_model(net, spec, traced, num_outputs=variant.classes)
    simplify_onnx(traced, pair.ours, batch=images[:1])
    exporter = trace_theirs(
        TheirLabels(case.theirs, case.ours).eval(), torch.from_numpy(images[:1]), traced
    )
    simplify_by_default(traced, pair.theirs)
    return pair, exporter, images


class PlainPooling(nn.Module):
    """Adaptive average pooling in operators that ONNX has."""

    def __init__(self, output: int) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: Tensor) -> Tensor:
        return pool_to(x, self.output)


def trace_theirs(net: nn.Module, image: Tensor, path: Path) -> str:
    """As it is, or else with plain pooling; which of both it was."""
    try:
        trace(net, image, LABELS, path)
    except torch.onnx.errors.SymbolicValueError as refused:
        if "adaptive" not in str(refused):
            raise
    else:
        return "as it is"
    for parent in list(net.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.AdaptiveAvgPool2d):
                setattr(parent, name, PlainPooling(int(child.output_size)))  # type: ignore[arg-type]
    trace(net, image, LABELS, path)
    return "with our adaptive pooling, which torch.onnx.export refuses"


def table(comparisons: Sequence[tuple[str, Comparison]], exporters: dict[str, str]) -> str:
    lines = [
        "| network | riceseg ms (p95) | mmsegmentation ms (p95) | ratio (rounds) | nodes | theirs "
        "traced | same labels |",
        "|---|---:|---:|---:|---:|---|---:|",
    ]
    for name, c in comparisons:
        cells = [
            name,
            *(f"{t.median_ms:.0f} ({t.p95_ms:.0f})" for t in (c.ours, c.theirs)),
            f"{c.ratio:.3f} ({c.lowest_ratio:.3f} to {c.highest_ratio:.3f})",
            f"{c.ours.nodes} / {c.theirs.nodes}",
            exporters[name],
            f"{c.agreement:.3f} %",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
