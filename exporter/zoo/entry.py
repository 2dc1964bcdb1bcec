"""What is said of one published checkpoint, and where mmsegmentation's lie.

Names, addresses, hashes, mIoU and training crops are those of mmsegmentation 1.2.2's metafiles and
configurations; fps and its device those of the tables in its README files. It measures fps with
batch 1 on one GPU, resizing and normalisation left out. Nothing here was measured by this project.
"""

from __future__ import annotations

from dataclasses import dataclass

_OPENMMLAB = "https://download.openmmlab.com/mmsegmentation/v0.5"

CITYSCAPES_WHOLE = "whole photos of 2048x1024; fps is per photo"
CITYSCAPES_769 = (
    "photos of 2049x1025, windows of 769x769 every 513 pixels, align_corners; fps is per photo"
)
# The rows of RiceSeg's tables and their fps equal mmsegmentation's for ADE20K, digit by digit;
# those of SegFormer, with their download links, equal version 0.26's.
AS_IN_RICESEG = "as printed in RiceSeg's table, whose figures are those of ADE20K weights"


@dataclass(frozen=True)
class ZooEntry:
    """One published checkpoint.

    `crop_hw` is the training crop. `test_mode` is "whole" or "slide": how the published figures
    were obtained. `miou` and `miou_ms_flip` (several scales and mirrored) are percent, on the data
    set's validation part. `parameters_m`: the network as mmsegmentation builds it for that data
    set, without its auxiliary head, in millions. `url` and `sha256_prefix` are None where no
    address that can be checked is known. `recipe` tells several of one model and data set apart:
    schedule, pre-training, window or crop; "" where there is one.
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
    recipe: str = ""

    @property
    def family(self) -> str:
        """The architecture, for example "mask2former"."""
        return self.model.split("-")[0]

    @property
    def weights(self) -> str:
        """What `--dataset` takes to mean this entry and no other: "ade20k", "ade20k/160k"."""
        return f"{self.dataset}/{self.recipe}" if self.recipe else self.dataset


def openmmlab(folder: str, stamp: str) -> str:
    """Address of `folder`'s weights; `stamp` is DATE_TIME-HASH, HASH the first 8 of the SHA-256.

    `folder` is FAMILY/NAME, and the file's name begins with NAME.
    """
    return f"{_OPENMMLAB}/{folder}/{folder.rpartition('/')[2]}_{stamp}.pth"


def hash_of(stamp: str) -> str:
    """The hash in DATE_TIME-HASH."""
    return stamp.rpartition("-")[2]


def short_side(pixels: int) -> str:
    """The note on how whole photos of ADE20K are tested."""
    return f"short side {pixels}, ratio kept"


def rice(
    model: str,
    *,
    miou: float,
    miou_ms_flip: float | None = None,
    fps: float,
    parameters_m: float,
    test_mode: str = "whole",
) -> ZooEntry:
    """A row of RiceSeg's tables: six names, crops of 512, and weights that have no address."""
    return ZooEntry(
        model=model,
        dataset="rice",
        crop_hw=(512, 512),
        test_mode=test_mode,
        miou=miou,
        miou_ms_flip=miou_ms_flip,
        fps=fps,
        fps_device=None,
        parameters_m=parameters_m,
        url=None,
        sha256_prefix=None,
        note=AS_IN_RICESEG,
    )
