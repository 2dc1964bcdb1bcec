"""Published SegFormer weights and the figures their authors printed for them.

Addresses, dates, hashes, mIoU and fps: mmsegmentation, `configs/segformer` (README and metafile of
1.2; the device of the fps column is named in the metafile of 0.x only). mmsegmentation measures
fps with batch 1 on one GPU, resizing and normalisation left out. Parameters: the network as
mmsegmentation builds it for that data set, in millions. Nothing here was measured by this project.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from engines.errors import ConfigError

_OPENMMLAB = "https://download.openmmlab.com/mmsegmentation/v0.5/segformer"


@dataclass(frozen=True)
class ZooEntry:
    """One published checkpoint.

    `miou` and `miou_ms_flip` (several scales and mirrored) are percent, on the data set's
    validation part. `test_mode` is "whole" or "slide": how the published figure was obtained.
    `url` and `sha256_prefix` are None where no address that can be checked is known.
    """

    model: str
    dataset: str
    crop_hw: tuple[int, int]
    test_mode: str
    miou: float
    miou_ms_flip: float | None
    fps: float | None
    fps_device: str | None
    parameters_m: float
    url: str | None
    sha256_prefix: str | None
    note: str


# variant, date, first 8 of the SHA-256, mIoU, mIoU at several scales and mirrored, mIoU with
# AlignedResize, fps, parameters
_ADE20K = (
    ("b0", "20210726_101530", "8ffa8fda", 37.41, 38.34, 38.1, 51.32, 3.8),
    ("b1", "20210726_112106", "d70e859d", 40.97, 42.54, 41.64, 47.66, 13.7),
    ("b2", "20210726_112103", "cbd414ac", 45.58, 47.03, 46.53, 30.88, 24.8),
    ("b3", "20210726_081410", "962b98d2", 47.82, 48.81, 48.46, 22.11, 44.6),
    ("b4", "20210728_183055", "7f509d7d", 48.46, 49.76, 49.34, 15.45, 61.4),
    ("b5", "20210726_145235", "94cedf59", 49.13, 50.22, 50.08, 11.89, 82.0),
)
# variant, date, first 8 of the SHA-256, mIoU, mIoU at several scales and mirrored, fps, parameters
_CITYSCAPES = (
    ("b0", "20211208_101857", "e7f88502", 76.54, 78.22, 4.74, 3.7),
    ("b1", "20211208_064213", "655c7b3f", 78.56, 79.73, 4.3, 13.7),
    ("b2", "20211207_134205", "6096669a", 81.08, 82.18, 3.36, 24.7),
    ("b3", "20211206_224823", "a8f8a177", 81.94, 83.14, 2.53, 44.6),
    ("b4", "20211207_080709", "07f6c333", 81.89, 83.38, 1.88, 61.4),
    ("b5", "20211206_072934", "87a052ec", 82.25, 83.48, 1.39, 82.0),
)


def _url(folder: str, date: str, sha256_prefix: str) -> str:
    return f"{_OPENMMLAB}/{folder}/{folder}_{date}-{sha256_prefix}.pth"


def _rice(variant: str, *, miou: float, fps: float, parameters_m: float) -> ZooEntry:
    return ZooEntry(
        model=f"segformer-{variant}",
        dataset="rice",
        crop_hw=(512, 512),
        test_mode="whole",
        miou=miou,
        miou_ms_flip=None,
        fps=fps,
        fps_device=None,
        parameters_m=parameters_m,
        url=None,
        sha256_prefix=None,
        # The table's rows, their fps and download links equal mmsegmentation 0.26's for ADE20K.
        note="as printed in RiceSeg's table, whose figures and links are those of ADE20K weights",
    )


ZOO: tuple[ZooEntry, ...] = (
    *(
        ZooEntry(
            model=f"segformer-{variant}",
            dataset="ade20k",
            crop_hw=(512, 512),
            test_mode="whole",
            miou=miou,
            miou_ms_flip=miou_ms_flip,
            fps=fps,
            fps_device="V100",
            parameters_m=parameters_m,
            url=_url(f"segformer_mit-{variant}_512x512_160k_ade20k", date, sha256_prefix),
            sha256_prefix=sha256_prefix,
            note=f"short side 512, ratio kept; mIoU {aligned} with sides rounded up to 32",
        )
        for variant, date, sha256_prefix, miou, miou_ms_flip, aligned, fps, parameters_m in _ADE20K
    ),
    *(
        ZooEntry(
            model=f"segformer-{variant}",
            dataset="cityscapes",
            crop_hw=(1024, 1024),
            test_mode="slide",
            miou=miou,
            miou_ms_flip=miou_ms_flip,
            fps=fps,
            fps_device="V100",
            parameters_m=parameters_m,
            url=_url(f"segformer_mit-{variant}_8x1_1024x1024_160k_cityscapes", date, sha256_prefix),
            sha256_prefix=sha256_prefix,
            note="2048x1024 photos, windows of 1024x1024 every 768 pixels; fps is per whole photo",
        )
        for variant, date, sha256_prefix, miou, miou_ms_flip, fps, parameters_m in _CITYSCAPES
    ),
    ZooEntry(
        model="segformer-b0",
        dataset="coco-stuff",
        crop_hw=(512, 512),
        test_mode="whole",
        miou=35.91,
        miou_ms_flip=None,
        fps=21.2,
        fps_device="V100",
        parameters_m=3.8,
        url=None,
        sha256_prefix=None,
        note="EasyCV and ModelScope, COCO-Stuff 164k, 172 classes; fps from the printed 47.2 ms",
    ),
    _rice("b0", miou=37.85, fps=38.17, parameters_m=3.7),
    _rice("b4", miou=49.09, fps=14.54, parameters_m=61.4),
)


def _key(name: str) -> str:
    """The spellings of configurations and papers are one name: "SegFormer_MiT-B0"."""
    return name.strip().lower().replace("_", "-").replace(" ", "-").replace("-mit-", "-")


def zoo_entry(model: str, dataset: str) -> ZooEntry:
    """The entry of `model` trained on `dataset`; case, "_" and "mit-" do not matter.

    Raises ConfigError with the close matches and what the zoo has.
    """
    models = sorted({entry.model for entry in ZOO})
    of_model = [entry for entry in ZOO if entry.model == _key(model)]
    if not of_model:
        raise ConfigError(
            f"model {model!r}",
            expected=f"one of {', '.join(models)}",
            do=_did_you_mean(_key(model), models) or "choose one, or pass --checkpoint FILE",
        )
    for entry in of_model:
        if entry.dataset == _key(dataset):
            return entry
    datasets = [entry.dataset for entry in of_model]
    raise ConfigError(
        f"data set {dataset!r} for {of_model[0].model}",
        expected=f"one of {', '.join(datasets)}",
        do=_did_you_mean(_key(dataset), datasets) or "choose one, or pass --checkpoint FILE",
    )


def _did_you_mean(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(close)}?" if close else ""
