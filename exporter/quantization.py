"""The graphs of an export in INT8 and FP16, written as a policy says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from calibration.fp16 import fp16_onnx_from_onnx
from calibration.onnx_file import model_from_onnx_file, node_label
from calibration.placement import placement_from_graph
from calibration.policy import PrecisionPolicy
from calibration.policy_json import FILE_NAME, FILES_KEY, policy_to_json
from calibration.quantize import QuantizeRecord
from calibration.ranges_json import ranges_to_json
from calibration.recipe import Calibrated, int8_onnx_from_calibrated, narrowed
from calibration.trt_cache import write_calibration_cache
from engines.errors import ConfigError, GraphError
from engines.progress import Progress, printable
from exporter.work import Work

Stage = Callable[[str], AbstractContextManager[None]]


def quietly(title: str) -> AbstractContextManager[None]:
    """A stage that nobody is told of."""
    return nullcontext()


@dataclass
class Written:
    """Graphs beside FP32: key in the bundle -> file name; and what is to be said about them.

    fp32_nodes: names of the nodes that stay in FP32 where others are in FP16.
    """

    fp32_nodes: tuple[str, ...] = ()
    files: dict[str, str] = field(default_factory=dict)
    quantized: QuantizeRecord | None = None
    warnings: list[str] = field(default_factory=list)


def write_files(work: Work, folder: Path, *, fp16: bool, progress: Progress) -> None:
    """Everything of the bundle that `work.policy` asks for, and an FP16 graph too with `fp16`."""
    policy = work.policy
    assert policy is not None  # decided before anything is written
    if policy.recipe is not None and work.calibrated is not None:
        work.calibrated = narrowed(work.calibrated, policy.recipe.policy)
        _write_ranges(work, work.calibrated, folder)
    written = graphs_written(work, folder, policy, fp16=fp16, stage=progress.stage)
    work.quantized = written.quantized
    work.warnings += written.warnings
    for key, name in written.files.items():
        work.add(folder, key, name)
    work.fp32_nodes = written.fp32_nodes
    if policy.recipe is not None or policy.found is not None or policy.fp32_nodes:
        (folder / FILE_NAME).write_text(policy_to_json(policy), encoding="utf-8")
        work.add(folder, FILES_KEY, FILE_NAME)


def _write_ranges(work: Work, calibrated: Calibrated, folder: Path) -> None:
    (folder / "ranges.json").write_text(ranges_to_json(calibrated.ranges), encoding="utf-8")
    write_calibration_cache(calibrated.ranges, folder / "calibration.cache")
    work.add(folder, "ranges", "ranges.json")
    work.add(folder, "calibration_cache", "calibration.cache")


def graphs_written(
    work: Work,
    folder: Path,
    policy: PrecisionPolicy,
    *,
    fp16: bool = False,
    stem: str = "model",
    stage: Stage = quietly,
) -> Written:
    """Write what `policy` makes of `folder`/model.onnx, and FP16 too with `fp16`.

    Raises GraphError for a graph that cannot be quantized or that FP16 cannot hold.
    """
    named = nodes_matching(folder / "model.onnx", policy.fp32_nodes)
    kept = tuple(dict.fromkeys((*work.fp32_nodes, *named)))
    written = Written(kept)

    def half(source: str, key: str) -> None:
        name = f"{stem}.{key.replace('_', '.')}.onnx"
        record = fp16_onnx_from_onnx(folder / source, folder / name, fp32_nodes=kept)
        written.files[key] = name
        written.warnings += [
            f"{count} values of {printable(tensor)} are beyond FP16's range and were clamped in "
            f"{name}"
            for tensor, count in record.clamped.items()
        ]

    if policy.recipe is not None:
        assert work.calibrated is not None  # calibrated before INT8 is written
        with stage("quantize to INT8"):
            written.files["int8"] = f"{stem}.int8.onnx"
            written.quantized = int8_onnx_from_calibrated(
                work.calibrated, folder / written.files["int8"], policy=policy.recipe.policy
            )
    if fp16 or policy.precision == "fp16":
        with stage("write FP16"):
            half("model.onnx", "fp16")
    if policy.recipe is not None and work.target.int8_fp16:
        with stage("write INT8 with FP16"):
            try:
                half(written.files["int8"], "int8_fp16")
            except GraphError as error:
                # Nobody asked for FP16 by name, so a network that it cannot hold goes without.
                written.warnings.append(
                    f"no INT8 graph with its rest in FP16 ({printable(error.got)}): a strongly "
                    "typed TensorRT runs that rest in FP32"
                )
    return written


def check_policy(graph: Path, policy: PrecisionPolicy) -> None:
    """Raise now what `graphs_written` would raise, hours later, for patterns that match nothing."""
    nodes_matching(graph, policy.fp32_nodes)
    if policy.recipe is not None:
        placement_from_graph(model_from_onnx_file(graph), policy.recipe.policy)


def nodes_matching(graph: Path, globs: Sequence[str]) -> tuple[str, ...]:
    """Names of the nodes that the globs name, in graph order; ConfigError for one that names none.

    Names, because a builder on a device takes no globs. A glob that is a node's name is no pattern.
    """
    if not globs:
        return ()
    labels = [node_label(node) for node in model_from_onnx_file(graph).graph.node]
    names, found = frozenset(labels), set[str]()
    for glob in globs:  # each on all nodes: fnmatch keeps few compiled patterns, a file has 2,000
        matching = {glob} if glob in names else {n for n in names if fnmatchcase(n, glob)}
        if not matching:
            raise ConfigError(
                f"the pattern {glob!r} of the policy, which matches no node of this graph",
                expected=f"a pattern over node names such as {', '.join(labels[:3])}",
                do="take a policy that was found for this architecture",
            )
        found |= matching
    return tuple(dict.fromkeys(label for label in labels if label in found))
