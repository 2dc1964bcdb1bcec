"""`--precision auto`: the fastest precision whose loss of mIoU stays within a limit.

A ladder from fast to exact, of which the first rung within the limit is taken:

1. every Conv and Linear in INT8;
2. groups of layers back to floating point, one more on each rung, the worst first;
3. FP16;
4. FP16 with the layers in FP32 that add up most: LayerNormalization and Softmax, then the head too;
5. FP32.

The loss is the gate's: mIoU on all validation images by mmsegmentation's metric against PyTorch, of
the worst file that the bundle would hold. FP32 is in every bundle, so it is measured first, the
equalized graph that INT8 would bring with it too: where it is beyond the limit itself, no rung can
pass the gate, and none is tried.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

import onnx

from calibration.group_errors import GroupError, group_errors, policies_by_group
from calibration.groups import LayerGroup
from calibration.onnx_file import model_from_onnx_file, node_label
from calibration.policy import FoundBy, PrecisionPolicy, globs_for
from calibration.ranges import Image
from calibration.recipe import Calibrated
from engines.errors import GraphError
from engines.evaluation.evaluate import Predictor
from engines.progress import Progress
from exporter.groups import groups_of
from exporter.quantization import Written, graphs_written
from exporter.request import ExportRequest
from exporter.trials import Scorer, scorer_of
from exporter.work import Work

# Sums over a whole row and exponentials: where FP16's 11 bits lose most. The head adds the features
# of all stages.
REDUCTIONS = ("*LayerNormalization*", "*Softmax*")
HEAD = ("*/decode_head/*",)


@dataclass(frozen=True)
class Rung:
    """One step of the ladder; `title` is for people."""

    title: str
    policy: PrecisionPolicy


@dataclass(frozen=True)
class Trial:
    """A rung as it was measured: scores in percent, loss in mIoU points; None where it failed.

    int8_percent: share of the multiply-accumulates in INT8.
    """

    rung: str
    precision: str
    float_groups: tuple[str, ...]
    miou: float | None
    drop: float | None
    agreement: float | None
    int8_percent: float
    passed: bool
    seconds: float
    error: str | None = None


def first_within(
    rungs: Iterable[Rung], measure: Callable[[Rung], Trial]
) -> tuple[Rung | None, list[Trial]]:
    """The first rung that passed, and every trial up to it; a rung is asked for only when due."""
    trials = []
    for rung in rungs:
        trials.append(measure(rung))
        if trials[-1].passed:
            return rung, trials
    return None, trials


def policy_within(
    request: ExportRequest,
    work: Work,
    folder: Path,
    reference: Predictor,
    shown: Sequence[Image],
    *,
    progress: Progress,
) -> PrecisionPolicy:
    """Search the ladder; `work.search` becomes the report's section. FP32 when nothing else passes.

    work.calibrated: with every layer that INT8 may take. shown: a few images at network size, to
    order the groups by. Graphs of the trials lie in `folder` until they are scored.
    """
    started = time.monotonic()
    assert work.calibrated is not None  # calibrated before the search
    fp32 = Rung("FP32", PrecisionPolicy("fp32"))
    order: list[GroupError] = []
    chosen: Rung | None = None
    trials: list[Trial] = []
    with (
        progress.stage("find the precision"),
        scorer_of(request, work, folder, reference, progress) as scorer,
    ):
        search = _Search(
            request, work, folder, scorer, progress, _most_rungs(work.calibrated, work)
        )
        floor = search.measure(fp32)
        if floor.passed:
            ladder = _ladder(work, work.calibrated, shown, order, progress)
            chosen, trials = first_within(ladder, search.measure)
    if not floor.passed:
        work.warnings.append(
            f"FP32 itself loses {floor.drop:.2f} mIoU points against PyTorch, more than --max-drop "
            f"{request.max_drop:g}: no other precision was tried"
        )
    trials = [floor, *trials]
    rung, best = (fp32, floor) if chosen is None else (chosen, trials[-1])
    work.search = {
        "max_drop": request.max_drop,
        "reference_miou": scorer.reference_miou,
        "chosen": rung.title,
        "seconds": time.monotonic() - started,
        "trials": [asdict(trial) for trial in trials],
        "order": [asdict(error) for error in order],
    }
    assert best.drop is not None  # a rung that failed is never chosen
    found = FoundBy(request.max_drop, best.drop, scorer.images, len(trials))
    return replace(rung.policy, found=found)


@dataclass
class _Search:
    """Where the graphs of a rung are written, what scores them, and how many rungs there may be."""

    request: ExportRequest
    work: Work
    folder: Path
    scorer: Scorer
    progress: Progress
    most: int
    done: int = 0

    def measure(self, rung: Rung) -> Trial:
        started = time.monotonic()
        miou = agreement = error = None
        written = Written()
        with self.progress.stage(f"try {rung.title}"):
            try:
                written = graphs_written(self.work, self.folder, rung.policy, stem="trial")
            except GraphError as refused:  # FP16 that cannot hold the network, above all
                error = str(refused)
            else:
                paths = [self.folder / name for name in written.files.values()] or self._floats()
                miou, agreement = self.scorer.scores(paths, self.progress)
            finally:
                for path in self.folder.glob("trial.*"):
                    path.unlink()
        drop = None if miou is None else self.scorer.reference_miou - miou
        trial = Trial(
            rung=rung.title,
            precision=rung.policy.precision,
            float_groups=rung.policy.float_groups,
            miou=miou,
            drop=drop,
            agreement=agreement,
            int8_percent=0.0 if written.quantized is None else written.quantized.int8_macs_percent,
            passed=drop is not None and drop <= self.request.max_drop,
            seconds=time.monotonic() - started,
            error=error,
        )
        self.done += 1
        self.progress.note(_line(trial))
        self.progress.advance(self.done, self.most)
        return trial

    def _floats(self) -> list[Path]:
        assert self.work.calibrated is not None  # calibrated before the search
        return list(dict.fromkeys([self.folder / "model.onnx", self.work.calibrated.onnx_path]))


def _line(trial: Trial) -> str:
    if trial.drop is None or trial.miou is None or trial.agreement is None:
        return f"{trial.rung}: failed ({trial.error})"
    verdict = "within the limit" if trial.passed else "too much"
    return (
        f"{trial.rung}: mIoU {trial.miou:.2f}, loss {trial.drop:.2f} points ({verdict}), "
        f"{trial.agreement:.2f} % of the labels as PyTorch's"
    )


def _most_rungs(calibrated: Calibrated, work: Work) -> int:
    """FP32, all in INT8, each group but the last back to float, and three with FP16."""
    groups = groups_of(work.loaded.description.architecture)
    model = model_from_onnx_file(calibrated.onnx_path)
    return 4 + len(policies_by_group(model, groups, policy=calibrated.recipe.policy))


def _ladder(
    work: Work,
    calibrated: Calibrated,
    shown: Sequence[Image],
    order: list[GroupError],
    progress: Progress,
) -> Iterator[Rung]:
    """The rungs in their order, each made when it is due; `order` takes the groups then.

    Groups are ordered by the noise that each, alone in INT8, puts into the logits: noise of
    several groups adds up nearly as its powers do, so that the noisiest relieves the sum most. Per
    multiply-accumulate instead, groups too small to matter would come first.
    """
    yield Rung("INT8", PrecisionPolicy("int8", calibrated.recipe))
    groups = groups_of(work.loaded.description.architecture)
    with progress.stage("order the groups of layers"):
        errors = group_errors(
            calibrated.onnx_path,
            shown,
            calibrated.ranges,
            groups,
            policy=calibrated.recipe.policy,
            fixes=calibrated.fixes,
            on_group=progress.advance,
        )
    order += sorted(errors, key=lambda error: (error.sqnr_db, error.agreement))
    model = model_from_onnx_file(calibrated.onnx_path)
    for count in range(1, len(order)):
        yield _without_groups(calibrated, order[:count], order[count:], groups)
    yield from _fp16_rungs(model)


def _without_groups(
    calibrated: Calibrated,
    floating: Sequence[GroupError],
    others: Sequence[GroupError],
    groups: Sequence[LayerGroup],
) -> Rung:
    """INT8 but for the groups `floating`."""
    patterns = [glob for group in groups for glob in group.patterns]
    names = [node for error in floating for node in error.nodes]
    excluded = globs_for(names, [node for error in others for node in error.nodes], patterns)
    placement = calibrated.recipe.policy
    placement = replace(placement, exclude_nodes=(*placement.exclude_nodes, *excluded))
    titles = {group.name: group.title for group in groups}
    policy = PrecisionPolicy(
        "int8",
        replace(calibrated.recipe, policy=placement),
        float_groups=tuple(error.name for error in floating),
    )
    last = titles.get(floating[-1].name, floating[-1].name)
    more = f" and {len(floating) - 1} more" if len(floating) > 1 else ""
    return Rung(f"INT8 without {last}{more}", policy)


def _fp16_rungs(model: onnx.ModelProto) -> Iterator[Rung]:
    yield Rung("FP16", PrecisionPolicy("fp16"))
    labels = [node_label(node) for node in model.graph.node]
    kept: tuple[str, ...] = ()
    for title, globs in (("LayerNorm and Softmax", REDUCTIONS), ("the head as well", HEAD)):
        found = [glob for glob in globs if any(fnmatchcase(label, glob) for label in labels)]
        if found:
            kept = (*kept, *found)
            yield Rung(f"FP16, in FP32 {title}", PrecisionPolicy("fp16", fp32_nodes=kept))
