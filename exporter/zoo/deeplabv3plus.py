"""DeepLabV3+ on ResNet V1c of output stride 8: mmsegmentation's `configs/deeplabv3plus`.

Photos of streets and of the ground alone: Pascal VOC, Pascal Context, iSAID and Mapillary are left
out, and so are R-18, the ResNets of torchvision (R-50b, R-101b) and output stride 16.
"""

from __future__ import annotations

from exporter.zoo.entry import ZooEntry, hash_of, openmmlab
from exporter.zoo.resnet_rows import (
    Ade20kRow,
    CityscapesRow,
    ade20k_entries,
    cityscapes_entries,
)

_ADE20K: tuple[Ade20kRow, ...] = (
    ("r50", "80k", "20200614_185028-bf1400d8", 42.72, 43.75, 21.01, 41.3),
    ("r50", "160k", "20200615_124504-6135c7e0", 43.95, 44.93, None, 41.3),
    ("r101", "80k", "20200615_014139-d5730af7", 44.6, 46.06, 14.16, 60.3),
    ("r101", "160k", "20200615_123232-38ed86bb", 45.47, 46.35, None, 60.3),
)
_CITYSCAPES: tuple[CityscapesRow, ...] = (
    ("r50", "40k", (512, 1024), "20200605_094610-d222ffcd", 79.61, 81.01, 3.94, 41.2),
    ("r50", "80k", (512, 1024), "20200606_114049-f9fb496d", 80.09, 81.13, None, 41.2),
    ("r50", "40k", (769, 769), "20200606_114143-1dcb0e3c", 78.97, 80.46, 1.72, 41.2),
    ("r50", "80k", (769, 769), "20200606_210233-0e9dfdc4", 79.83, 81.48, None, 41.2),
    ("r101", "40k", (512, 1024), "20200605_094614-3769eecf", 80.21, 81.82, 2.6, 60.2),
    ("r101", "80k", (512, 1024), "20200606_114143-068fcfe9", 80.97, 82.03, None, 60.2),
    # Trained in mixed precision.
    ("r101", "80k-amp", (512, 1024), "20200717_230920-f1104f4b", 80.46, None, 7.87, 60.2),
    ("r101", "40k", (769, 769), "20200606_114304-ff414b9e", 79.46, 80.5, 1.15, 60.2),
    ("r101", "80k", (769, 769), "20220406_154720-dfcc0b68", 80.65, 81.47, None, 60.2),
)
# data set, backbone, stamp, mIoU, several scales and mirrored, fps, parameters
_AERIAL = (
    ("loveda", "r50", "20211105_080442-f0720392", 50.99, 50.65, 6.0, 41.2),
    ("loveda", "r101", "20211105_110759-4c1f297e", 51.47, 51.32, 4.33, 60.2),
    ("potsdam", "r50", "20211219_031508-7e7a2b24", 78.33, 79.27, 26.44, 41.2),
    ("potsdam", "r101", "20211219_031508-8b112708", 78.7, 79.47, 17.56, 60.2),
    ("vaihingen", "r50", "20211231_230816-5040938d", 73.97, 75.05, 26.91, 41.2),
    ("vaihingen", "r101", "20211231_230816-8a095afa", 73.06, 74.14, 18.59, 60.2),
)
_AERIAL_NOTES = {
    "loveda": "rural and urban land from above; whole tiles of 1024x1024",
    "potsdam": "a town from above; whole tiles of 512x512",
    "vaihingen": "a village from above in infrared, red and green; whole tiles of 512x512",
}


def _folder(backbone: str, crop: str, schedule: str, dataset: str) -> str:
    if schedule.endswith("-amp"):
        crop, schedule = f"fp16_{crop}", schedule[: -len("-amp")]
    if dataset == "vaihingen":
        crop = f"4x4_{crop}"
    return f"deeplabv3plus/deeplabv3plus_{backbone}-d8_{crop}_{schedule}_{dataset}"


ENTRIES: tuple[ZooEntry, ...] = (
    *ade20k_entries("deeplabv3plus", _ADE20K, _folder),
    *cityscapes_entries("deeplabv3plus", _CITYSCAPES, _folder),
    *(
        ZooEntry(
            model=f"deeplabv3plus-{backbone}",
            dataset=dataset,
            crop_hw=(512, 512),
            test_mode="whole",
            miou=miou,
            miou_ms_flip=ms_flip,
            fps=fps,
            fps_device="V100",
            parameters_m=parameters,
            url=openmmlab(_folder(backbone, "512x512", "80k", dataset), stamp),
            sha256_prefix=hash_of(stamp),
            note=_AERIAL_NOTES[dataset],
        )
        for dataset, backbone, stamp, miou, ms_flip, fps, parameters in _AERIAL
    ),
)
