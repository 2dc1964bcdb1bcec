"""`riceseg prepare --ray` and `riceseg segment --ray`: scenes on the machines of a Ray cluster."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from engines.bundle import bundle_from_folder
from engines.errors import ClusterError, ImageError
from engines.progress import PlainProgress, Progress
from exporter.cluster.address import check_address
from exporter.cluster.answers import Spread
from exporter.cluster.work import results_on_ray
from exporter.cluster.worker import MAX_DEATHS, Lost
from exporter.prepare.scene import (
    Outcome,
    SceneSettings,
    SceneTask,
    prepare_scene,
    scene_that_kills,
)
from exporter.segment_inputs import SegmentItem
from exporter.segmentation import (
    SegmentOptions,
    folders_in,
    items_to_segment,
    opened_segmenter,
    segment_one,
)


def outcomes_on_ray(
    tasks: Sequence[SceneTask],
    settings: SceneSettings,
    jobs: int,
    *,
    address: str,
    workers: int | None = None,
) -> Iterator[Outcome]:
    """`prepare_scene` of each task, in any order, by the cluster at `address`, each once.

    A scene that its workers died of becomes a `FailedScene`. `jobs` is the number of processes for
    this machine and is not used. Raises what `results_on_ray` does.
    """
    scenes = [task.scene for task in tasks]
    files = [ref.path for scene in scenes for ref in (*scene.bands.values(), scene.labels) if ref]
    begin = functools.partial(_preparer, settings, _folder_for(files))
    results = results_on_ray(
        address, tasks, Spread(begin, settings.staging.parent, workers=workers)
    )
    with contextlib.closing(results):
        for index, outcome in results:
            died = f"of which {MAX_DEATHS} workers died"
            name = scenes[index].name
            yield scene_that_kills(name, died) if isinstance(outcome, Lost) else outcome


def _preparer(settings: SceneSettings, folder: str | None) -> Callable[[SceneTask], Outcome]:
    _enter(folder)
    with contextlib.suppress(ImportError):
        import cv2

        cv2.setNumThreads(1)  # there is a worker for each core
    return functools.partial(prepare_scene, settings=settings)


def _folder_for(paths: Iterable[str | Path]) -> str | None:
    """The working folder, if paths depend on it.

    They stay as they are, so that messages name them as those of one process do.
    """
    return None if all(map(os.path.isabs, paths)) else os.getcwd()


def _enter(folder: str | None) -> None:
    if folder is None:
        return
    try:
        os.chdir(folder)
    except OSError as error:
        raise ClusterError(
            f"machine {socket.gethostname()!r}, which does not see {folder!r} ({error.strerror})",
            expected="data in folders that every machine of the cluster sees",
            do="give absolute paths of such folders",
        ) from error


# --- segment --------------------------------------------------------------------------------------


def segment_on_ray(
    address: str,
    bundle: Path,
    images: Path,
    out: Path,
    options: SegmentOptions,
    progress: Progress,
) -> tuple[int, list[str]]:
    """`segment_images` by the cluster at `address`: the same files and result.

    Each worker opens the bundle once, with one thread for each core it has. Raises what
    `segment_images` and `results_on_ray` do; without `skip_bad` images after a bad one may have
    been written.
    """
    check_address(address)
    found = bundle_from_folder(bundle)
    items, left_out = items_to_segment(images, found, options)
    files = [file for item in items for file in _files(item)]
    begin = functools.partial(_segmenting, bundle, out, options, _folder_for([bundle, out, *files]))
    results = results_on_ray(address, items, Spread(begin, out, gpus=options.runtime != "onnx"))
    skipped: dict[int, str] = {}
    with (
        folders_in(out, options),
        progress.stage("segment"),
        contextlib.closing(results),
    ):
        for done, (index, answer) in enumerate(results, start=1):
            if answer is not None:
                error = _died(items[index]) if isinstance(answer, Lost) else answer
                if not options.skip_bad:
                    raise error
                skipped[index] = f"{items[index].title}: {error}"
            progress.advance(done, len(items))
    return len(items) - len(skipped), [*left_out, *(skipped[index] for index in sorted(skipped))]


def _files(item: SegmentItem) -> Iterable[Path]:
    return [item.source] if isinstance(item.source, Path) else item.source.values()


def _segmenting(
    bundle: Path, out: Path, options: SegmentOptions, folder: str | None
) -> Callable[[SegmentItem], ImageError | None]:
    _enter(folder)
    quiet = PlainProgress(io.StringIO())
    found = bundle_from_folder(bundle)
    segmenter = opened_segmenter(bundle, found, replace(options, threads=1), quiet)

    def segment(item: SegmentItem) -> ImageError | None:
        try:
            segment_one(segmenter, item, out, options)
        except ImageError as error:
            return error
        return None

    return segment


def _died(item: SegmentItem) -> ImageError:
    return ImageError(
        f"{item.title}, of which {MAX_DEATHS} workers died",
        expected="an image that memory suffices for",
        do="look at its size, or leave it out",
    )
