"""K-Net on three pairs of backbone and kernel-generating head: mmsegmentation's `configs/knet`.

Those on FCN and PSPNet heads are left out: they are not among the architectures here.
"""

from __future__ import annotations

from exporter.zoo.entry import ZooEntry, hash_of, openmmlab, rice, short_side

# backbone, head, recipe, crop, stamp, mIoU, several scales and mirrored, fps, parameters
_ADE20K = (
    ("r50", "deeplabv3", "", 512, "20220228_041642-00c8fbeb", 45.06, 46.11, 12.1, 79.0),
    ("r50", "upernet", "", 512, "20220304_125657-215753b0", 43.45, 44.07, 17.11, 77.3),
    ("swin-t", "upernet", "", 512, "20220303_133059-7545e1dc", 45.84, 46.27, 15.56, 72.2),
    ("swin-l", "upernet", "512", 512, "20220303_154559-d8da9a90", 52.05, 53.24, 8.29, 245.2),
    ("swin-l", "upernet", "640", 640, "20220301_220747-8787fc71", 52.21, 53.34, 8.29, 245.2),
)


def _folder(backbone: str, head: str, crop: int) -> str:
    name = "r50-d8" if backbone == "r50" else backbone
    return f"knet/knet_s3_{head}_{name}_8x2_{crop}x{crop}_adamw_80k_ade20k"


ENTRIES: tuple[ZooEntry, ...] = (
    *(
        ZooEntry(
            model=f"knet-{backbone}-{head}",
            dataset="ade20k",
            recipe=recipe,
            crop_hw=(crop, crop),
            test_mode="whole",
            miou=miou,
            miou_ms_flip=ms_flip,
            fps=fps,
            fps_device="V100",
            parameters_m=parameters,
            url=openmmlab(_folder(backbone, head, crop), stamp),
            sha256_prefix=hash_of(stamp),
            note=short_side(crop),
        )
        for backbone, head, recipe, crop, stamp, miou, ms_flip, fps, parameters in _ADE20K
    ),
    rice("knet-r50-deeplabv3", miou=45.06, miou_ms_flip=46.11, fps=12.1, parameters_m=79.0),
    rice("knet-swin-t-upernet", miou=45.84, miou_ms_flip=46.27, fps=15.56, parameters_m=72.2),
    rice("knet-swin-l-upernet", miou=52.05, miou_ms_flip=53.24, fps=8.29, parameters_m=245.1),
)
