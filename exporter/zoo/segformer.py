"""SegFormer: mmsegmentation's `configs/segformer`, EasyCV's B0 and the rows of RiceSeg.

The crop of 640 has a network of its own for B5 alone.
"""

from __future__ import annotations

from exporter.zoo.entry import ZooEntry, hash_of, openmmlab, rice, short_side

# variant, crop, stamp, mIoU, several scales and mirrored, with AlignedResize, fps, device,
# parameters
_ADE20K = (
    ("b0", 512, "20210726_101530-8ffa8fda", 37.41, 38.34, 38.1, 51.32, "1080 Ti", 3.8),
    ("b1", 512, "20210726_112106-d70e859d", 40.97, 42.54, 41.64, 47.66, "TITAN Xp", 13.7),
    ("b2", 512, "20210726_112103-cbd414ac", 45.58, 47.03, 46.53, 30.88, "TITAN Xp", 24.8),
    ("b3", 512, "20210726_081410-962b98d2", 47.82, 48.81, 48.46, 22.11, "V100", 44.6),
    ("b4", 512, "20210728_183055-7f509d7d", 48.46, 49.76, 49.34, 15.45, "V100", 61.4),
    ("b5", 512, "20210726_145235-94cedf59", 49.13, 50.22, 50.08, 11.89, "V100", 82.0),
    ("b5", 640, "20210801_121243-41d2845b", 49.62, 50.36, 50.58, 11.3, "V100", 82.0),
)
# variant, stamp, mIoU, several scales and mirrored, fps, parameters
_CITYSCAPES = (
    ("b0", "20211208_101857-e7f88502", 76.54, 78.22, 4.74, 3.7),
    ("b1", "20211208_064213-655c7b3f", 78.56, 79.73, 4.3, 13.7),
    ("b2", "20211207_134205-6096669a", 81.08, 82.18, 3.36, 24.7),
    ("b3", "20211206_224823-a8f8a177", 81.94, 83.14, 2.53, 44.6),
    ("b4", "20211207_080709-07f6c333", 81.89, 83.38, 1.88, 61.4),
    ("b5", "20211206_072934-87a052ec", 82.25, 83.48, 1.39, 82.0),
)


ENTRIES: tuple[ZooEntry, ...] = (
    *(
        ZooEntry(
            model=f"segformer-{variant}",
            dataset="ade20k",
            recipe=str(crop) if variant == "b5" else "",
            crop_hw=(crop, crop),
            test_mode="whole",
            miou=miou,
            miou_ms_flip=ms_flip,
            fps=fps,
            fps_device=device,
            parameters_m=parameters,
            url=openmmlab(f"segformer/segformer_mit-{variant}_{crop}x{crop}_160k_ade20k", stamp),
            sha256_prefix=hash_of(stamp),
            note=f"{short_side(crop)}; mIoU {aligned} with sides rounded up to 32",
        )
        for variant, crop, stamp, miou, ms_flip, aligned, fps, device, parameters in _ADE20K
    ),
    *(
        ZooEntry(
            model=f"segformer-{variant}",
            dataset="cityscapes",
            crop_hw=(1024, 1024),
            test_mode="slide",
            miou=miou,
            miou_ms_flip=ms_flip,
            fps=fps,
            fps_device="V100",
            parameters_m=parameters,
            url=openmmlab(
                f"segformer/segformer_mit-{variant}_8x1_1024x1024_160k_cityscapes", stamp
            ),
            sha256_prefix=hash_of(stamp),
            note="2048x1024 photos, windows of 1024x1024 every 768 pixels; fps is per whole photo",
        )
        for variant, stamp, miou, ms_flip, fps, parameters in _CITYSCAPES
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
    rice("segformer-b0", miou=37.85, fps=38.17, parameters_m=3.7),
    rice("segformer-b4", miou=49.09, fps=14.54, parameters_m=61.4),
)
