"""docs/results/ptq.json as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

HEAD = (
    "| | mIoU | drop | same labels as FP32 | INT8 Conv, MatMul, others "
    "| FLOPs in INT8: all / Conv and Linear | TensorRT-RTX | quantize | peak memory |\n"
    "|---|---:|---:|---:|---:|---:|---|---:|---:|"
)
MATRIX = ("MatMul", "Gemm")


def ptq_markdown(record: Mapping[str, Any]) -> str:
    """A table for each network, under a line that says on what it was measured."""
    tables = [network_markdown(network) for network in record["networks"]]
    return "\n\n".join([*tables, *(f"{name}: not measured." for name in record["skipped"])])


def network_markdown(network: Mapping[str, Any]) -> str:
    height, width = network["input_hw"]
    data = ", ".join(
        f"{network[part]['images']} {part} images" for part in ("calibration", "validation")
    )
    lines = [
        f"{network['checkpoint']['file']}, {height}x{width}, {data}:",
        "",
        HEAD,
        line("FP32", f"{network['fp32']['miou']:.2f}", build=network["fp32"]["build"]),
    ]
    return "\n".join([*lines, *(row_line(row) for row in network["rows"])])


def row_line(row: Mapping[str, Any]) -> str:
    title = f"{row['tool']}, {row['title']}"
    if row["error"] is not None:
        return line(title, f"failed: {row['error']}", build=None)
    return line(
        title,
        figure(row["miou"], 2),
        figure(row["drop"], 2),
        f"{figure(row['agreement'], 3)} %",
        operators(row["int8_operators"]),
        f"{row['int8_percent']:.1f} % / {row['int8_weighted_percent']:.1f} %",
        build=row["build"],
        cost=(f"{row['quantize_s']:.0f} s", f"{row['peak_mb']:.0f} MB"),
    )


def line(*cells: str, build: Mapping[str, Any] | None, cost: tuple[str, str] = ("", "")) -> str:
    measured = [*cells, *[""] * (6 - len(cells))]
    shown = [cell.replace("|", "\\|") for cell in (*measured, build_text(build), *cost)]
    return f"| {' | '.join(shown)} |"


def figure(value: float | None, digits: int) -> str:
    """A record read back has null for what was not a number."""
    return "nan" if value is None else f"{value:.{digits}f}"


def operators(counts: Mapping[str, int]) -> str:
    """Numbers of convolutions, matrix products (Gemm among them) and all others."""
    matrix = sum(counts.get(name, 0) for name in MATRIX)
    convolutions = counts.get("Conv", 0)
    return f"{convolutions}, {matrix}, {sum(counts.values()) - convolutions - matrix}"


def build_text(build: Mapping[str, Any] | None) -> str:
    if build is None:
        return "not tried"
    return f"{build['seconds']:.1f} s" if build["built"] else "refused"
