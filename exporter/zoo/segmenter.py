"""Segmenter with the mask and the linear head: mmsegmentation's `configs/segmenter`.

Parameters include the bias of the patch embedding, which the published files have and
mmsegmentation 1.2.2 leaves out.
"""

from __future__ import annotations

from exporter.zoo.entry import ZooEntry, hash_of, openmmlab, rice

# variant, window and its step, stamp, mIoU, several scales and mirrored, fps, parameters
_ADE20K = (
    ("t-mask", 512, 480, "20220105_151706-ffcf7509", 39.99, 40.83, 27.98, 6.7),
    ("s-linear", 512, 480, "20220105_151713-39658c46", 45.75, 46.82, 28.07, 22.0),
    ("s-mask", 512, 480, "20220105_151706-511bb103", 46.19, 47.85, 24.8, 26.0),
    ("b-mask", 512, 480, "20220105_151706-bc533b08", 49.6, 51.07, 13.2, 102.5),
    # The name of its folder says 512x512, its configuration and the table 640x640.
    ("l-mask", 640, 608, "20220105_162750-7ef345be", 52.16, 53.65, 2.62, 333.2),
)


def _folder(variant: str) -> str:
    size, head = variant.split("-")
    return f"segmenter/segmenter_vit-{size}_{head}_8x1_512x512_160k_ade20k"


ENTRIES: tuple[ZooEntry, ...] = (
    *(
        ZooEntry(
            model=f"segmenter-{variant}",
            dataset="ade20k",
            crop_hw=(crop, crop),
            test_mode="slide",
            miou=miou,
            miou_ms_flip=ms_flip,
            fps=fps,
            fps_device="V100",
            parameters_m=parameters,
            url=openmmlab(_folder(variant), stamp),
            sha256_prefix=hash_of(stamp),
            note=f"short side {crop}, windows of {crop}x{crop} every {step} pixels; "
            "normalised with mean and std 127.5",
        )
        for variant, crop, step, stamp, miou, ms_flip, fps, parameters in _ADE20K
    ),
    rice(
        "segmenter-b-mask",
        miou=49.6,
        miou_ms_flip=51.07,
        fps=13.2,
        parameters_m=102.4,
        test_mode="slide",
    ),
)
