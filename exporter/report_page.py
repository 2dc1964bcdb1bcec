"""report.html: one page without scripts or network, made from a checked report.

Everything a report holds is untrusted text: the template escapes it, and what goes into a style is
a number or a colour made here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.reports.fusion import fusion_line, fusion_notes
from engines.reports.report import ALWAYS_SHOWN, measured_columns
from exporter.int8_page import add_filters
from exporter.strips import Strip, uris_from_strips

if TYPE_CHECKING:
    import jinja2

TEMPLATE = "report.html.jinja"
IN_TEMPLATE = (*ALWAYS_SHOWN, "latency_p99_ms")  # the other columns are in a table of their own
MANY_CLASSES = 24  # beyond, the classes that lose most are shown and the others folded away
MOST_LOST = 12


def html_from_report(
    document: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], strips: Sequence[Strip]
) -> str:
    """The page for `document`; `rows` are its rows with `is_reference` and `change` (of mIoU)."""
    classes = _classes(document, rows)
    most_lost = sorted(classes, key=lambda item: -item["lost"])[:MOST_LOST]
    extra = [column for column in measured_columns(rows) if column[1] not in IN_TEMPLATE]
    shown = [(strip, uris) for strip, uris in zip(strips, uris_from_strips(strips), strict=False)]
    return (
        page_environment()
        .get_template(TEMPLATE)
        .render(
            report=document,
            rows=rows,
            has_p99=any(row["latency_p99_ms"] is not None for row in rows),
            extra=extra,
            on_device=[row for row in rows if any(row[key] is not None for _, key, _ in extra)],
            split=[row for row in rows if row["compute_ms"] is not None],
            reference=rows[0],
            latest=_latest(rows),
            tiles=list(_tiles(rows[0], _latest(rows))),
            slowest_ms=max((_slowest(row) for row in rows), default=0.0),
            longest_ms=max((sum(_parts(row)) for row in rows), default=0.0),
            classes=classes,
            most_lost=most_lost if len(classes) > MANY_CLASSES else [],
            strips=shown,
            hidden_strips=len(strips) - len(shown),
        )
    )


def page_environment() -> jinja2.Environment:
    """Jinja that escapes everything, with the filters of our templates."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure"] = figure_text
    environment.filters["facts"] = lambda record: list(_facts(record))
    environment.filters["fusion_facts"] = lambda fusion: list(_fusion_facts(fusion))
    environment.filters["slowest_layers"] = lambda fusion: list(_slowest_layers(fusion))
    add_filters(environment)
    return environment


def figure_text(value: float | None, digits: int, sign: bool = False) -> str | None:
    """A number or flag as text, None if not measured, for which the template has the words."""
    if value is None:
        return None
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{round(value, digits) + 0.0:{'+' if sign else ''}.{digits}f}".replace("-", "−")


def _slowest(row: Mapping[str, Any]) -> float:
    return max(row["latency_p50_ms"] or 0.0, row["latency_p95_ms"] or 0.0)


def _parts(row: Mapping[str, Any]) -> list[float]:
    return [row[key] or 0.0 for key in ("copy_in_ms", "compute_ms", "copy_out_ms")]


def _classes(
    document: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Per class its colour, the IoU of every form, and the most any form lost to the first."""
    classes = []
    for i, (name, rgb) in enumerate(zip(document["classes"], document["palette"], strict=True)):
        values = [None if row["iou"] is None else row["iou"][i] for row in rows]
        bars = [(row["form"], value) for row, value in zip(rows, values, strict=True)]
        first = values[0]
        lost = [first - v for v in values if v is not None] if first is not None else []
        colour = f"rgb({rgb[0]},{rgb[1]},{rgb[2]})"
        classes.append(
            {"name": name, "colour": colour, "bars": bars, "lost": max(lost, default=-1.0)}
        )
    return classes


def _latest(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The last form of which anything was measured."""
    measured = [row for row in rows if row["miou"] is not None or _slowest(row)]
    return measured[-1] if measured else rows[0]


def _tiles(first: Mapping[str, Any], last: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Title, figure and comparison of what was measured of `last`."""
    alone = last is first
    if last["miou"] is not None:
        compare = not alone and last["change"] is not None
        change = f" ({figure_text(last['change'], 2, True)})" if compare else ""
        note = f"{figure_text(first['miou'], 2)} before" if compare else ""
        yield "mIoU %", f"{figure_text(last['miou'], 2)}{change}", note
    if last["agreement"] is not None and not alone:
        yield "Equal pixels", f"{figure_text(last['agreement'], 2)} %", f"with {first['form']}"
    for title, key, unit, less, more in (
        ("Latency, median", "latency_p50_ms", "ms", "faster", "slower"),
        ("File", "file_mb", "MB", "smaller", "larger"),
    ):
        if last[key]:
            note = "" if alone or not first[key] else _ratio(first[key] / last[key], less, more)
            yield title, f"{figure_text(last[key], 1)} {unit}", note


def _ratio(ratio: float, less: str, more: str) -> str:
    if abs(ratio - 1) < 0.05:
        return "about the same"
    return f"{ratio:.1f}× {less}" if ratio > 1 else f"{1 / ratio:.1f}× {more}"


def _fusion_facts(fusion: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What fused, in a line, then everything but the layers' times."""
    line = fusion_line(fusion)
    if line is not None:
        yield "fused", line
    rest = {key: value for key, value in fusion.items() if key not in ("slowest", "notes")}
    yield from _facts(rest)
    yield from (("note", note) for note in fusion_notes(fusion))


def _slowest_layers(fusion: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Milliseconds, layer of the model and name of each; what does not fit is left out."""
    layers = fusion.get("slowest")
    for layer in layers if isinstance(layers, list) else []:
        if isinstance(layer, dict) and isinstance(layer.get("ms"), (int, float)):
            yield f"{layer['ms']:.3f}", str(layer.get("layer") or "–"), str(layer.get("name"))


def _facts(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Any record as pairs of label and text, nested ones flattened."""
    for key, value in record.items():
        label = f"{prefix}{key.replace('_', ' ')}"
        if isinstance(value, dict):
            yield from _facts(value, f"{label}: ")
        elif isinstance(value, list):
            yield label, ", ".join(str(item) for item in value) or "none"
        elif isinstance(value, bool):
            yield label, "yes" if value else "no"
        elif isinstance(value, float):
            yield label, f"{value:.6g}"
        else:
            yield label, "not recorded" if value is None else str(value)
