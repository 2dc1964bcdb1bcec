"""Rows that mmsegmentation's tables of families on ResNet have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from exporter.zoo.entry import (
    CITYSCAPES_769,
    CITYSCAPES_WHOLE,
    ZooEntry,
    hash_of,
    openmmlab,
    short_side,
)

# backbone, schedule, stamp, mIoU, several scales and mirrored, fps, parameters
Ade20kRow = tuple[str, str, str, float, float | None, float | None, float]
# backbone, schedule, crop, stamp, mIoU, several scales and mirrored, fps, parameters
CityscapesRow = tuple[str, str, tuple[int, int], str, float, float | None, float | None, float]
# (backbone, crop as "512x512", schedule, data set) -> what `openmmlab` takes
Folder = Callable[[str, str, str, str], str]


def ade20k_entries(family: str, rows: Iterable[Ade20kRow], folder: Folder) -> tuple[ZooEntry, ...]:
    return tuple(
        ZooEntry(
            model=f"{family}-{backbone}",
            dataset="ade20k",
            recipe=schedule,
            crop_hw=(512, 512),
            test_mode="whole",
            miou=miou,
            miou_ms_flip=ms_flip,
            fps=fps,
            fps_device="V100" if fps else None,
            parameters_m=parameters,
            url=openmmlab(folder(backbone, "512x512", schedule, "ade20k"), stamp),
            sha256_prefix=hash_of(stamp),
            note=short_side(512),
        )
        for backbone, schedule, stamp, miou, ms_flip, fps, parameters in rows
    )


def cityscapes_entries(
    family: str, rows: Iterable[CityscapesRow], folder: Folder
) -> tuple[ZooEntry, ...]:
    """Crops of 512x1024 are tested on whole photos, those of 769x769 in windows."""
    return tuple(
        ZooEntry(
            model=f"{family}-{backbone}",
            dataset="cityscapes",
            recipe=schedule if h == 512 else f"769-{schedule}",
            crop_hw=(h, w),
            test_mode="whole" if h == 512 else "slide",
            miou=miou,
            miou_ms_flip=ms_flip,
            fps=fps,
            fps_device="V100" if fps else None,
            parameters_m=parameters,
            url=openmmlab(folder(backbone, f"{h}x{w}", schedule, "cityscapes"), stamp),
            sha256_prefix=hash_of(stamp),
            note=CITYSCAPES_WHOLE if h == 512 else CITYSCAPES_769,
        )
        for backbone, schedule, (h, w), stamp, miou, ms_flip, fps, parameters in rows
    )
