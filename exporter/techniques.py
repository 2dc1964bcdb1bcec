"""What each switch of the INT8 recipe brings on this model, measured on a few images."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from calibration.onnx_file import model_from_onnx_file
from calibration.output_error import Answer, answers_of, error_of
from calibration.quantize import int8_model_from_ranges
from calibration.ranges import Image
from calibration.recipe import Calibrated, Images, Int8Recipe, calibrated_from_images
from engines.progress import Progress
from exporter.request import Int8Options

# A switch pays when it takes this much noise from the logits and changes the labels of at most a
# tenth more pixels: so few change at all that a few images tell their number no better.
LEAST_GAIN_DB = 0.1
MOST_CHANGED = 1.1


@dataclass(frozen=True)
class Switch:
    """One switch: its name for people, its field in Int8Recipe, and the value that turns it on."""

    name: str
    field: str
    on: Any


# Each is measured on what those before it left. Rounding comes before the biases, for it moves the
# means that these correct: on SegFormer-B0 for rice panicles it brought 1.1 dB alone, and 0.7 dB
# together with bias correction.
SWITCHES = (
    Switch("equalization", "equalize", True),
    Switch("range per tensor", "method", "auto"),
    Switch("compensated rounding", "rounding", "compensated"),
    Switch("bias correction", "bias_correction", True),
)


@dataclass(frozen=True)
class Technique:
    """A row of the report's "techniques": logits and labels against FP32, with and without it."""

    name: str
    used: bool
    sqnr_db: float
    sqnr_db_without: float
    agreement: float
    agreement_without: float
    seconds: float


@dataclass(frozen=True)
class Probes:
    """What every recipe is tried on.

    graph: the FP32 one. images: to calibrate on. shown: to compare the answers on, few and of
    those that nothing is fitted to, if there are any. folder: for graphs that are not kept.
    """

    graph: Path
    images: Images
    shown: Sequence[Image]
    folder: Path


def switches_to_measure(options: Int8Options, *, auto: bool) -> tuple[Switch, ...]:
    """Those that were asked for, and with `auto` those that nothing was said about."""
    said = {switch: getattr(options, switch.field) for switch in SWITCHES}
    return tuple(s for s, value in said.items() if value == s.on or (auto and value is None))


def recipe_that_pays(
    probes: Probes, base: Int8Recipe, switches: Sequence[Switch], *, progress: Progress
) -> tuple[Int8Recipe, Calibrated, dict[str, Any]]:
    """`base` with those switches on that pay, what it was calibrated to, and the report's section.

    A switch that `base` has on was asked for: it is measured too, and stays.
    """
    asked = {switch for switch in switches if getattr(base, switch.field) == switch.on}
    off = Int8Recipe()
    recipe = replace(base, **{s.field: getattr(off, s.field) for s in asked})
    expected = list(answers_of(model_from_onnx_file(probes.graph), probes.shown))
    progress.advance(0, len(switches) + 1)
    calibrated, before = _tried(probes, recipe, None, expected)
    rows = []
    for done, switch in enumerate(switches, start=1):
        progress.advance(done, len(switches) + 1)
        started = time.monotonic()
        candidate, after = _tried(
            probes, replace(recipe, **{switch.field: switch.on}), calibrated, expected
        )
        pays = after[0] >= before[0] + LEAST_GAIN_DB and 100.0 - after[1] <= MOST_CHANGED * (
            100.0 - before[1]
        )
        on = getattr(candidate.recipe, switch.field) == switch.on
        used = on and (pays or switch in asked)
        seconds = time.monotonic() - started
        row = Technique(switch.name, used, after[0], before[0], after[1], before[1], seconds)
        rows.append(row)
        progress.note(_line(row, pays=pays))
        if used:
            recipe, calibrated, before = candidate.recipe, candidate, after
    progress.advance(len(switches) + 1, len(switches) + 1)
    section = {"images": len(probes.shown), "rows": [asdict(row) for row in rows]}
    return recipe, calibrated, section


def _tried(
    probes: Probes, recipe: Int8Recipe, known: Calibrated | None, expected: Sequence[Answer]
) -> tuple[Calibrated, tuple[float, float]]:
    """What the recipe was calibrated to, and its SQNR in dB and agreement in percent."""
    calibrated = without_empty_equalization(
        calibrated_from_images(
            probes.graph,
            probes.images,
            recipe,
            equalized_path=probes.folder / "equalized.onnx",
            known=known,
        ),
        probes.graph,
    )
    recipe = calibrated.recipe
    graph = model_from_onnx_file(calibrated.onnx_path)
    model, _ = int8_model_from_ranges(
        graph, calibrated.ranges, policy=recipe.policy, fixes=calibrated.fixes
    )
    return calibrated, error_of(expected, answers_of(model, probes.shown))


def without_empty_equalization(calibrated: Calibrated, graph: Path) -> Calibrated:
    """As if equalization had not been asked for, where it found nothing to scale in `graph`.

    So it is before opset 17, which has no LayerNormalization, unless depthwise layers are in INT8.
    """
    if calibrated.equalized is None or calibrated.equalized.sources:
        return calibrated
    recipe = replace(calibrated.recipe, equalize=False)
    return replace(calibrated, onnx_path=graph, recipe=recipe, equalized=None)


def _line(row: Technique, *, pays: bool) -> str:
    verdict = (
        "used" if pays else "used as asked, though it does not pay" if row.used else "left out"
    )
    return (
        f"{row.name}: logits {row.sqnr_db_without:.1f} -> {row.sqnr_db:.1f} dB, "
        f"labels {row.agreement_without:.2f} -> {row.agreement:.2f} %: {verdict}"
    )
