"""Mask2Former for semantic classes: mmsegmentation's `configs/mask2former`.

mmsegmentation printed no figures for several scales. The files are those of the 1.2 table: the same
trainings were published before under other hashes.
"""

from __future__ import annotations

from exporter.zoo.entry import CITYSCAPES_WHOLE, ZooEntry, hash_of, openmmlab, short_side

# model, recipe, the address' name of the backbone, crop, stamp, mIoU, fps, parameters
_ADE20K = (
    ("r50", "", "r50", 512, "20221204_000055-2d1f55f1", 47.87, 26.59, 44.0),
    ("r101", "", "r101", 512, "20221203_233905-b7135890", 48.6, 22.97, 63.0),
    ("swin-t", "", "swin-t", 512, "20221203_234230-7d64e5dd", 48.66, 23.82, 47.4),
    ("swin-s", "", "swin-s", 512, "20221204_143905-e715144e", 51.24, 19.69, 68.8),
    ("swin-b", "in1k", "swin-b-in1k", 640, "20221129_125118-a4a086d2", 52.44, 12.48, 106.9),
    ("swin-b", "in22k", "swin-b-in22k", 640, "20221203_235230-7ec0f569", 53.9, 12.43, 106.9),
    ("swin-l", "", "swin-l-in22k", 640, "20221203_235933-7120c214", 56.01, 8.81, 215.5),
)
# model, the address' name of the backbone, stamp, mIoU, fps, parameters
_CITYSCAPES = (
    ("r50", "r50", "20221202_140802-ffd9d750", 80.44, 9.17, 44.0),
    ("r101", "r101", "20221130_031628-43e68666", 80.8, 7.11, 63.0),
    ("swin-t", "swin-t", "20221127_144501-36c59341", 81.71, 7.18, 47.4),
    ("swin-s", "swin-s", "20221127_143802-9ab177f6", 82.57, 5.57, 68.7),
    ("swin-b", "swin-b-in22k", "20221203_045030-9a86a225", 83.52, 4.32, 106.9),
    ("swin-l", "swin-l-in22k", "20221202_141901-28ad20f1", 83.65, 2.86, 215.5),
)


def _folder(backbone: str, rest: str) -> str:
    pretrained = "-384x384-pre" if "-in" in backbone else ""
    return f"mask2former/mask2former_{backbone}{pretrained}_8xb2-{rest}"


ENTRIES: tuple[ZooEntry, ...] = (
    *(
        ZooEntry(
            model=f"mask2former-{model}",
            dataset="ade20k",
            recipe=recipe,
            crop_hw=(crop, crop),
            test_mode="whole",
            miou=miou,
            miou_ms_flip=None,
            fps=fps,
            fps_device="A100",
            parameters_m=parameters,
            url=openmmlab(_folder(backbone, f"160k_ade20k-{crop}x{crop}"), stamp),
            sha256_prefix=hash_of(stamp),
            note=short_side(crop),
        )
        for model, recipe, backbone, crop, stamp, miou, fps, parameters in _ADE20K
    ),
    *(
        ZooEntry(
            model=f"mask2former-{model}",
            dataset="cityscapes",
            crop_hw=(512, 1024),
            test_mode="whole",
            miou=miou,
            miou_ms_flip=None,
            fps=fps,
            fps_device="A100",
            parameters_m=parameters,
            url=openmmlab(_folder(backbone, "90k_cityscapes-512x1024"), stamp),
            sha256_prefix=hash_of(stamp),
            note=CITYSCAPES_WHOLE,
        )
        for model, backbone, stamp, miou, fps, parameters in _CITYSCAPES
    ),
)
