"""`riceseg models`, and the completion of the names it lists."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator
from typing import Any

import click

from exporter.zoo import ZOO, ZooEntry, alternatives, matching

_HEADINGS = ("model", "data set", "crop", "test", "mIoU", "ms+flip", "fps", "M par")
_WORDS = 4  # so many columns of words, then figures

EXAMPLES = """
\b
Examples:
  riceseg models --dataset ade20k
  riceseg models --model mask2former
  riceseg models --model upernet-swin-b --json


\b
mIoU and ms+flip (several scales, mirrored) are percent on the validation
part, fps is batch 1 on the GPU named, resizing left out: as the authors
report them. Parameters are millions. The crop is that of the training.
Where a model has several for a data set, export --dataset NAME takes the
first listed, NAME/RECIPE another. Tested on whole photos comes before sliding
windows, then the highest mIoU.
"""


def complete_model(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Names that `--model` takes and that begin with what was typed."""
    names = dict.fromkeys(entry.model for entry in ZOO)
    return [name for name in names if name.startswith(incomplete.lower())]


def complete_dataset(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Data sets, and recipes, of the model that was typed before or of any."""
    model = ctx.params.get("model")
    entries = [entry for entry in ZOO if model in (None, entry.model, entry.family)]
    names = dict.fromkeys(name for entry in entries for name in (entry.dataset, entry.weights))
    return [name for name in names if name.startswith(incomplete.lower())]


@click.command(epilog=EXAMPLES)
@click.option("--model", help="Of this model or family alone.", shell_complete=complete_model)
@click.option("--dataset", help="Of this data set alone.", shell_complete=complete_dataset)
@click.option("--json", "as_json", is_flag=True, help="For programs: with addresses and notes.")
def models(model: str | None, dataset: str | None, as_json: bool) -> None:
    """List the architectures and the published weights (mIoU as their authors report it)."""
    entries = matching(model, dataset)
    if as_json:
        click.echo(json.dumps(list(map(_record, entries)), ensure_ascii=False, indent=2))
        return
    for line in (*_table(entries), *_remarks(entries)):
        click.echo(line)


def _record(entry: ZooEntry) -> dict[str, Any]:
    first = alternatives(entry)[0] is entry
    return {"family": entry.family, **dataclasses.asdict(entry), "taken_without_recipe": first}


def _table(entries: list[ZooEntry]) -> Iterator[str]:
    """A line for each, below a line for its family with the GPUs that fps was measured on.

    rich's tables have no line across the columns, and cut where 80 columns just suffice.
    """
    rows = [_cells(entry) for entry in entries]
    widths = [max(map(len, column)) for column in zip(_HEADINGS, *rows, strict=True)]
    yield click.style(_line(_HEADINGS, widths), bold=True)
    cells = iter(rows)
    for family, members in itertools.groupby(entries, lambda entry: entry.family):
        of_family = list(members)
        yield ""
        yield click.style(family, bold=True) + _gpus(of_family)
        yield from (_line(next(cells), widths) for _ in of_family)


def _cells(entry: ZooEntry) -> tuple[str, ...]:
    return (
        entry.model,
        entry.weights,
        f"{entry.crop_hw[0]}x{entry.crop_hw[1]}",
        entry.test_mode,
        _figure(entry.miou),
        _figure(entry.miou_ms_flip),
        _figure(entry.fps),
        _figure(entry.parameters_m, 1),
    )


def _figure(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _line(cells: tuple[str, ...], widths: list[int]) -> str:
    padded = [
        cell.ljust(width) if column < _WORDS else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return " ".join(padded).rstrip()


def _gpus(entries: list[ZooEntry]) -> str:
    gpus = list(dict.fromkeys(entry.fps_device for entry in entries if entry.fps_device))
    if not gpus:
        return ""
    return f" (fps on {', '.join(gpus)}{': --json says which' if len(gpus) > 1 else ''})"


def _remarks(entries: list[ZooEntry]) -> Iterator[str]:
    """The notes, of one model alone or else of what cannot be downloaded."""
    alone = len({entry.model for entry in entries}) == 1
    unknown = [entry for entry in entries if entry.url is None]
    noted = dict.fromkeys((entry.weights, entry.note) for entry in (entries if alone else unknown))
    if noted:
        yield ""
    for weights, note in noted:
        yield click.wrap_text(f"{weights}: {note}", 80, subsequent_indent="  ")
    if unknown:
        names = ", ".join(dict.fromkeys(entry.dataset for entry in unknown))
        yield f"No public address, pass the file with --checkpoint: {names}"
