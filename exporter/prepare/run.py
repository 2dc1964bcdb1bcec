"""From the raw data to a data set: every scene prepared, divided, counted and shown."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.errors import DatasetError, OutputError, output_error
from engines.progress import Progress
from exporter.prepare.balance import absent_classes, balance_rows, empty_parts
from exporter.prepare.journal import Journal
from exporter.prepare.places import (
    Places,
    check_place,
    clear_staging,
    make_parts,
    place_scene,
    placed_scenes,
    remove_stale,
    work_folder,
)
from exporter.prepare.png import opencv
from exporter.prepare.pool import Spread, cores, outcomes_here
from exporter.prepare.raw_layout import RawSource, sources_from
from exporter.prepare.request import LeftOut, PreparedRecord, PrepareRequest, settings_record
from exporter.prepare.scene import (
    GO_ON,
    FailedScene,
    FinishedScene,
    SceneSettings,
    SceneTask,
)
from exporter.prepare.sheet import write_sheets
from exporter.prepare.split import split_scenes
from exporter.prepare.written import write_tables

MAX_NAMED = 10  # left out scenes told of; prepare.json names all
SCENES_PER_JOB = 8  # fewer are done before another process has started

Scenes = Mapping[str, FinishedScene]  # by name, sorted


@dataclass(frozen=True)
class _Making:
    """One run: what it was asked for, where it writes, and what earlier runs left."""

    request: PrepareRequest
    places: Places
    settings: SceneSettings
    journal: Journal
    progress: Progress


def prepare(
    request: PrepareRequest, progress: Progress, *, spread: Spread = outcomes_here
) -> PreparedRecord:
    """Make the data set; what an earlier run of the same request finished is not done again.

    A finished scene counts when its sources have the size and time that they had (in a zip: size
    and CRC) and its files the bytes. Files appear under their names when all scenes are done;
    until then, and after Ctrl-C or a full disk, they wait in a hidden folder of `out`. Scenes that
    are no longer in the source, or are spoilt, go. A scene that cannot be used is left out, unless
    `strict`. `spread` does the scenes, in any order; each once.

    Raises DatasetError when no scene can be used, or with `strict` for the first one that cannot;
    OutputError when the data set cannot be written; ConfigError and MissingPackageError.
    """
    opencv()  # before anything else is done: nothing goes without it
    letters = tuple(recipe.letters for recipe in request.recipes)
    places = Places(Path(os.path.abspath(request.out)), letters)
    check_place(places, request.source)
    with progress.stage("look for scenes"):
        source = sources_from(request.source)
    progress.note(f"{len(source.scenes)} scenes")
    settings = SceneSettings(request.recipes, request.suffix, places.out, places.staging)
    with work_folder(places, settings), contextlib.ExitStack() as stack:
        journal = Journal(places.work)
        stack.callback(journal.end)
        _check_same(journal.header, request)
        making = _Making(request, places, settings, journal, progress)
        known = journal.known
        journal.begin(_header(request, journal.header.get("split")))
        finished, left_out = _scenes(making, source, spread)
        if not finished:
            raise _nothing(request, left_out)
        placed, foreign = _divided(making, finished, known)
        return _told(making, placed, left_out, foreign)


def _scenes(
    making: _Making, source: RawSource, spread: Spread
) -> tuple[Scenes, tuple[LeftOut, ...]]:
    """Those that were finished, and what was left out."""
    known = making.journal.known
    tasks = [SceneTask(scene, known.get(scene.name)) for scene in source.scenes]
    jobs = making.request.jobs or max(1, min(cores(), len(tasks) // SCENES_PER_JOB))
    finished: dict[str, FinishedScene] = {}
    told = tuple(LeftOut(item.where, item.reason) for item in source.left_out)
    left_out: list[LeftOut] = []
    with making.progress.stage("prepare scenes"), _kept(making):
        outcomes = spread(tasks, making.settings, jobs)
        with contextlib.closing(outcomes):  # type: ignore[type-var]
            for done, outcome in enumerate(outcomes, start=1):
                if isinstance(outcome, FinishedScene):
                    finished[outcome.name] = outcome
                    if not outcome.reused:
                        making.journal.add(outcome)
                else:
                    left_out.append(_left_out(outcome, making.request))
                making.progress.advance(done, len(tasks))
    left_out.sort(key=lambda item: item.name)  # They came in the order of the processes.
    return {name: finished[name] for name in sorted(finished)}, (*told, *left_out)


@contextlib.contextmanager
def _kept(making: _Making) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        making.progress.note("finished scenes are kept: the same command goes on from here")
        raise


def _left_out(failed: FailedScene, request: PrepareRequest) -> LeftOut:
    if failed.stop or request.strict:
        raise failed.error
    return LeftOut(failed.name, str(failed.error))


def _divided(
    making: _Making, finished: Scenes, known: Scenes
) -> tuple[tuple[FinishedScene, ...], tuple[str, ...]]:
    """The scenes in their parts, and files of others that lie there."""
    request, places, journal = making.request, making.places, making.journal
    wanted = _split_record(request)
    same = journal.header.get("split") == wanted
    parts = split_scenes(
        {name: scene.classes for name, scene in finished.items()},
        request.shares,
        seed=request.seed,
        known={name: scene.part for name, scene in finished.items()} if same else None,
    )
    with making.progress.stage("divide"):
        try:
            make_parts(places, set(parts.values()))
            # Before the files are there: a run that goes on finds them in either place.
            planned = placed_scenes(finished.values(), parts, places)
            journal.write(_header(request, wanted), planned)
            placed = tuple(place_scene(finished[scene.name], scene, places) for scene in planned)
            foreign = remove_stale(places, placed, known)
        except OSError as error:
            raise output_error(str(places.out), error, do=GO_ON) from error
        clear_staging(places)
    return placed, foreign


def _told(
    making: _Making,
    scenes: Sequence[FinishedScene],
    left_out: tuple[LeftOut, ...],
    foreign: Sequence[str],
) -> PreparedRecord:
    """Write tables and sheets, and tell what the user must not miss."""
    parts = {scene.name: scene.part for scene in scenes}
    rows = balance_rows({scene.name: scene.pixels for scene in scenes}, parts)
    warnings = [f"{scene.name}: {text}" for scene in scenes for text in scene.warnings]
    warnings += empty_parts(rows, making.request.shares)
    warnings += absent_classes(rows)
    warnings += [f"{place} is no file of this data set" for place in foreign]
    reused = sum(scene.reused for scene in scenes)
    roots = making.places.roots
    record = PreparedRecord(roots, len(scenes), reused, rows, left_out, tuple(warnings))
    with making.progress.stage("draw the contact sheet"):
        write_sheets(scenes, making.request, making.places, making.progress)
    write_tables(record, parts, making.request, making.places)
    _tell(making.progress, [f"left out {item.name}: {item.why}" for item in left_out])
    _tell(making.progress, warnings)
    return record


def _tell(progress: Progress, lines: Sequence[str]) -> None:
    for line in lines[:MAX_NAMED]:
        progress.warn(line)
    if len(lines) > MAX_NAMED:
        progress.warn(f"{len(lines) - MAX_NAMED} more of these are in prepare.json")


def _header(request: PrepareRequest, split: Any) -> dict[str, Any]:
    """Of the journal; `split` is that by which the scenes of earlier runs were divided."""
    source = os.path.realpath(request.source)
    return {"source": source, "settings": settings_record(request), "split": split}


def _split_record(request: PrepareRequest) -> dict[str, Any]:
    return {"shares": list(request.shares), "seed": request.seed}


def _check_same(header: Mapping[str, Any], request: PrepareRequest) -> None:
    """OutputError where the folder holds another data set."""
    wanted = _header(request, None)
    for key, what in (("source", "raw data"), ("settings", "settings")):
        if header and header.get(key) != wanted[key]:
            raise OutputError(
                f"--out {os.fspath(request.out)!r}, which holds a data set of other {what}: "
                f"{header.get(key)}",
                expected=f"the same {what}, to go on with it, or another folder",
                do="choose another --out, or remove that folder",
            )


def _nothing(request: PrepareRequest, left_out: Sequence[LeftOut]) -> DatasetError:
    first = f"; the first: {left_out[0].name}: {left_out[0].why}" if left_out else ""
    return DatasetError(
        f"{os.fspath(request.source)!r} without a scene that can be used, "
        f"{len(left_out)} left out{first}",
        expected="scenes with bands and labels",
        do="correct what is wrong with them",
    )
