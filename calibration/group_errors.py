"""What INT8 costs in each group of layers, by two quick measures that need no labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from calibration.groups import LayerGroup, nodes_by_group
from calibration.layer_fix import LayerFix
from calibration.macs import macs_from_model
from calibration.onnx_file import model_from_onnx_file
from calibration.output_error import answers_of, error_of
from calibration.placement import QuantizePolicy, placement_from_graph
from calibration.quantize import int8_model_from_ranges
from calibration.ranges import Image, Ranges
from engines.errors import DatasetError

# Calibrate with it, and every group can be quantized alone.
EVERYTHING = QuantizePolicy(exclude_kinds=frozenset())


@dataclass(frozen=True)
class GroupError:
    """One group in INT8 and the rest in FP32, against FP32.

    nodes: names of its layers; macs_percent: their share of all multiply-accumulates (additions
    have none). sqnr_db, agreement: see `error_of`.
    """

    name: str
    nodes: tuple[str, ...]
    macs_percent: float
    sqnr_db: float
    agreement: float


def group_errors(
    onnx_path: str | Path,
    images: Iterable[Image],
    ranges: Ranges,
    groups: Sequence[LayerGroup],
    *,
    policy: QuantizePolicy = EVERYTHING,
    fixes: Mapping[str, LayerFix] | None = None,
    on_group: Callable[[int, int], None] | None = None,
) -> tuple[GroupError, ...]:
    """Quantize each group alone and run a few images; in the order of `groups`, "other" last.

    images: (H, W, C) uint8 at the network's input size, at least one; kept in memory with the
        logits of FP32.
    policy: the one that `ranges` were taken with; its layers alone are quantized, and a group
        without one is left out.
    fixes: as `int8_onnx_from_ranges` takes them.
    on_group(done, total): called before the first group and after each.
    """
    images = list(images)
    if not images:
        raise DatasetError(
            "no images to compare INT8 with FP32 on", expected="a few", do="give a folder of images"
        )
    model = model_from_onnx_file(onnx_path)
    policies = policies_by_group(model, groups, policy=policy)
    macs = macs_from_model(model)
    total = max(sum(macs.values()), 1)
    answers = list(answers_of(model, images))
    found: list[GroupError] = []
    for name, alone in policies.items():
        if on_group is not None:
            on_group(len(found), len(policies))
        quantized, placed = int8_model_from_ranges(model, ranges, policy=alone, fixes=fixes)
        sqnr_db, agreement = error_of(answers, answers_of(quantized, images))
        percent = 100.0 * sum(macs.get(item.output, 0) for item in placed) / total
        nodes = tuple(item.node for item in placed)
        found.append(GroupError(name, nodes, percent, sqnr_db, agreement))
    if on_group is not None:
        on_group(len(found), len(policies))
    return tuple(found)


def policies_by_group(
    model: onnx.ModelProto, groups: Sequence[LayerGroup], *, policy: QuantizePolicy = EVERYTHING
) -> dict[str, QuantizePolicy]:
    """Group's name -> what quantizes its layers alone, of those that `policy` quantizes."""
    placed = {item.output: item.node for item in placement_from_graph(model, policy)}
    names = dict.fromkeys(placed.values())
    found = {}
    for group, items in nodes_by_group(model, groups).items():
        own = {item.node for item in items if item.output in placed}
        if own:
            others = tuple(name for name in names if name not in own)
            excluded = (*policy.exclude_nodes, *others)
            found[group] = QuantizePolicy(policy.exclude_kinds, excluded, policy.fold_weights)
    return found
