"""The record of one network: FP32, a row for each way of making INT8, and the rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto

from engines.errors import GraphError
from engines.evaluation.evaluate import pairs_sha256
from engines.images import sha256_of_file
from engines.progress import Progress
from ptq.counting import int8_count
from ptq.jobs import built, quantized
from ptq.networks import Network, Task, list_sha256
from ptq.rows import ROWS, Row
from ptq.rules import checks_from_rows
from ptq.scoring import Score, scored


def network_record(network: Network, task: Task, progress: Progress) -> dict[str, Any]:
    """Measures everything. Percent, points of mIoU, seconds, MB = 1e6 bytes."""
    with progress.stage("FP32"):
        score = scored(
            task.fp32, task.bundle, task.pairs, reference=None, on_image=progress.advance
        )
        fp32 = {"miou": score.miou, **graph_record(task.fp32, task.tensorrt)}
    rows = []
    for row in ROWS:
        with progress.stage(f"{row.tool}, {row.title}"):
            rows.append(row_record(row, task, score, progress))
        progress.advance(len(rows), len(ROWS))
    checks = checks_from_rows(rows, fp32, network.limits)
    return {
        "name": network.name,
        "free": network.free,
        "checkpoint": {"file": network.checkpoint, "sha256": task.bundle.checkpoint.sha256},
        "input_hw": list(task.bundle.input.hw),
        "resize": task.bundle.input.resize,
        "calibration": {
            "images": len(task.calibration),
            "sha256": list_sha256(task.calibration),
        },
        "validation": {"images": len(task.pairs), "sha256": pairs_sha256(task.pairs)},
        "limits": asdict(network.limits),
        "fp32": fp32,
        "rows": rows,
        "checks": [asdict(check) for check in checks],
    }


def row_record(row: Row, task: Task, fp32: Score, progress: Progress) -> dict[str, Any]:
    """One way; what failed is in `error`, and what came after it is not in the record."""
    record: dict[str, Any] = {
        "key": row.key,
        "tool": row.tool,
        "title": row.title,
        "ours": row.is_ours,
        "judged": row.is_judged,
        "options": dict(row.options),
        "error": None,
    }
    graph, done = quantized(row, task.fp32, task.images, task.bundle.input.name)
    if done.error is not None:
        progress.warn(f"{row.tool}, {row.title}: {done.error}")
        return {**record, "error": done.error}
    record["quantize_s"], record["peak_mb"] = done.result["seconds"], done.result["peak_mb"]
    try:
        record |= graph_record(graph, task.tensorrt)
        score = scored(
            graph, task.bundle, task.pairs, reference=fp32.labels, on_image=progress.advance
        )
    except GraphError as error:
        progress.warn(str(error))
        return {**record, "error": f"not scored: {error.got}"}
    progress.note(f"mIoU {score.miou:.2f}, agreement with FP32 {score.agreement:.3f} %")
    return {
        **record,
        "miou": score.miou,
        "drop": fp32.miou - score.miou,
        "agreement": score.agreement,
    }


def graph_record(path: Path, tensorrt: Path | None) -> dict[str, Any]:
    """What is counted in a graph, and whether TensorRT-RTX builds it (None: was not there)."""
    model = onnx.load(path)
    count = int8_count(model)
    return {
        "sha256": sha256_of_file(path),
        "file_mb": path.stat().st_size / 1e6,
        "inputs": [typed_name(value) for value in model.graph.input],
        "outputs": [typed_name(value) for value in model.graph.output],
        "int8_operators": count.operators,
        "macs": count.macs,
        "weighted_macs": count.weighted_macs,
        "int8_percent": count.percent,
        "int8_weighted_percent": count.weighted_percent,
        "build": None if tensorrt is None else build_record(path, tensorrt),
    }


def build_record(path: Path, tensorrt: Path) -> Mapping[str, Any]:
    """A build that ends the process counts as failed, with the last line it wrote."""
    done = built(path, tensorrt)
    if done.error is None:
        return done.result
    return {"built": False, "seconds": None, "errors": [done.error], "tensorrt": None}


def typed_name(value: onnx.ValueInfoProto) -> str:
    """ "image uint8", so that a changed contract shows."""
    kind = TensorProto.DataType.Name(value.type.tensor_type.elem_type)
    return f"{value.name} {kind.lower()}"
