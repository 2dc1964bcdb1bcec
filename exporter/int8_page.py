"""The parts of a page about INT8: filters of `int8.html.jinja`, and the sensitivity by itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from engines.progress import duration_text
from engines.reports.differences import NOT_RECORDED

if TYPE_CHECKING:
    import jinja2

TEMPLATE = "int8.html.jinja"
# A bar as long as the page for a loss that nobody would notice would mislead.
LEAST_SCALE_POINTS = 0.1

Group = Mapping[str, Any]


def add_filters(environment: jinja2.Environment) -> None:
    environment.filters["cost_bars"] = lambda section: list(_cost_bars(section))
    environment.filters["measured_on"] = measured_on_text
    environment.filters["duration"] = duration_text
    environment.filters["short"] = short_text


def short_text(value: float) -> str:
    """A number of unknown magnitude in three digits."""
    return f"{value + 0.0:.3g}".replace("-", "−")


def measured_on_text(section: Mapping[str, Any]) -> str:
    """What the figures of a "sensitivity" section were measured on."""
    parts = []
    if section["file"]:
        parts.append(f"Of {section['file']}, SHA-256 {(section['sha256'] or NOT_RECORDED)[:12]}.")
    if section["reference_miou"] is not None:
        miou = f"{section['reference_miou']:.2f} in FP32"
        parts.append(f"mIoU on {_images(section, 'val_images', 'validation')}, {miou}.")
    else:
        parts.append("mIoU was not measured.")
    part = "calibration" if section["reference_miou"] is None else "validation"
    parts.append(f"SQNR and equal pixels on {_images(section, 'error_images', part)}.")
    method = section["method"] or NOT_RECORDED
    parts.append(f"Ranges ({method}) from {_images(section, 'images', 'calibration')}.")
    return " ".join(parts)


def _images(section: Mapping[str, Any], key: str, part: str) -> str:
    count = section[key]
    number = "a number not recorded of" if count is None else count
    return f"{number} {part} image{'' if count == 1 else 's'}"


def _cost_bars(
    section: Mapping[str, Any],
) -> Iterator[tuple[Group, float | None, float | None, float | None]]:
    """Each group, the worst first, and the lengths of its three bars in percent."""
    groups = section["groups"]
    drops = [max(group["miou_drop"] or 0.0, 0.0) for group in groups]
    errors = [_relative_error(group["sqnr_db"]) for group in groups]
    longest_drop = max([*drops, LEAST_SCALE_POINTS])
    longest_error = max(errors, default=0.0) or 1.0
    order = sorted(range(len(groups)), key=lambda i: (-drops[i], -errors[i]))
    for i in order:
        group = groups[i]
        yield (
            group,
            None if group["miou_drop"] is None else 100.0 * drops[i] / longest_drop,
            None if group["sqnr_db"] is None else 100.0 * errors[i] / longest_error,
            None if group["macs_percent"] is None else min(max(group["macs_percent"], 0.0), 100.0),
        )


def _relative_error(sqnr_db: float | None) -> float:
    """Amplitude of the error beside that of the logits; 0 where it was not measured."""
    # A file from elsewhere may say anything; beyond 150 dB a bar has no length to show.
    return 0.0 if sqnr_db is None else float(10.0 ** (-min(max(sqnr_db, -150.0), 150.0) / 20.0))
