"""UPerNet on ResNet and Swin: mmsegmentation's `configs/upernet` and `configs/swin`.

The weights on Swin-L are in the metafile of mmsegmentation 0.x alone; 1.2.2 has just their
configurations. R-18 and Pascal VOC are left out.
"""

from __future__ import annotations

from exporter.zoo.entry import ZooEntry, hash_of, openmmlab, short_side
from exporter.zoo.resnet_rows import (
    Ade20kRow,
    CityscapesRow,
    ade20k_entries,
    cityscapes_entries,
)

_ADE20K: tuple[Ade20kRow, ...] = (
    ("r50", "80k", "20200614_144127-ecc8377b", 40.7, 41.81, 23.4, 64.1),
    ("r50", "160k", "20200615_184328-8534de8d", 42.05, 42.78, None, 64.1),
    ("r101", "80k", "20200614_185117-32e4db94", 42.91, 43.96, 20.34, 83.1),
    ("r101", "160k", "20200615_161951-91b32684", 43.82, 44.85, None, 83.1),
)
_CITYSCAPES: tuple[CityscapesRow, ...] = (
    ("r50", "40k", (512, 1024), "20200605_094827-aa54cb54", 77.1, 78.37, 4.25, 64.1),
    ("r50", "80k", (512, 1024), "20200607_052207-848beca8", 78.19, 79.19, None, 64.1),
    ("r50", "40k", (769, 769), "20200530_033048-92d21539", 77.98, 79.7, 1.76, 64.1),
    ("r50", "80k", (769, 769), "20200607_005107-82ae7d15", 79.39, 80.92, None, 64.1),
    ("r101", "40k", (512, 1024), "20200605_094933-ebce3b10", 78.69, 80.11, 3.79, 83.0),
    ("r101", "80k", (512, 1024), "20200607_002403-f05f2345", 79.4, 80.46, None, 83.0),
    ("r101", "40k", (769, 769), "20200530_040819-83c95d01", 79.03, 80.77, 1.56, 83.0),
    ("r101", "80k", (769, 769), "20200607_001014-082fc334", 80.1, 81.49, None, 83.0),
)
# size, window, side and set of the pre-training, stamp, mIoU, several scales and mirrored, fps,
# parameters
_SWIN = (
    ("tiny", 7, "224x224_1K", "20210531_112542-e380ad3e", 44.41, 45.79, 21.06, 59.0),
    ("small", 7, "224x224_1K", "20210526_192015-ee2fff1c", 47.72, 49.24, 14.72, 80.3),
    ("base", 7, "224x224_1K", "20210526_192340-593b0e13", 47.99, 49.57, 12.65, 120.1),
    ("base", 7, "224x224_22K", "20210526_211650-762e2178", 50.13, 51.9, None, 120.1),
    ("base", 12, "384x384_1K", "20210531_132020-05b22ea4", 48.35, 49.65, 12.1, 120.2),
    ("base", 12, "384x384_22K", "20210531_125459-429057bf", 50.76, 52.4, None, 120.2),
    ("large", 7, "224x224_22K", "20220318_015320-48d180dd", 51.17, 52.99, 8.23, 232.0),
    ("large", 12, "384x384_22K", "20220318_091743-9ba68901", 52.25, 54.12, 7.57, 232.2),
)


def _swin_folder(size: str, window: int, pretrained: str) -> str:
    name = f"swin/upernet_swin_{size}_patch4_window{window}_512x512"
    if size == "large":
        return f"{name}_pretrain_{pretrained}_160k_ade20k"
    return f"{name}_160k_ade20k_pretrain_{pretrained}"


def _swin_recipe(size: str, window: int, pretrained: str) -> str:
    if size == "large":
        return f"w{window}"
    return f"in{pretrained.rpartition('_')[2].lower()}-w{window}" if size == "base" else ""


def _swin_note(size: str, pretrained: str) -> str:
    note = short_side(512)
    if (size, pretrained) == ("base", "224x224_22K"):
        return f"{note}; mIoU 50.31 in mmsegmentation 0.x"
    return f"{note}; from mmsegmentation 0.x" if size == "large" else note


def _folder(backbone: str, crop: str, schedule: str, dataset: str) -> str:
    return f"upernet/upernet_{backbone}_{crop}_{schedule}_{dataset}"


ENTRIES: tuple[ZooEntry, ...] = (
    *ade20k_entries("upernet", _ADE20K, _folder),
    *(
        ZooEntry(
            model=f"upernet-swin-{size[0]}",
            dataset="ade20k",
            recipe=_swin_recipe(size, window, pretrained),
            crop_hw=(512, 512),
            test_mode="whole",
            miou=miou,
            miou_ms_flip=ms_flip,
            fps=fps,
            fps_device="V100" if fps else None,
            parameters_m=parameters,
            url=openmmlab(_swin_folder(size, window, pretrained), stamp),
            sha256_prefix=hash_of(stamp),
            note=_swin_note(size, pretrained),
        )
        for size, window, pretrained, stamp, miou, ms_flip, fps, parameters in _SWIN
    ),
    *cityscapes_entries("upernet", _CITYSCAPES, _folder),
)
