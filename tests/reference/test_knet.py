"""K-Net beside mmsegmentation's own."""

from __future__ import annotations

from typing import Any

from against_mmsegmentation import AgainstMmsegmentation, Variant

# A 1e-6 relative jitter of the image alone moves the logits by 3e-4 and 7e-5 (Swin) of their
# standard deviation. Random kernels are often near each other, so that more would make too many of
# the labels near ties.
RESNET_TOLERANCE, SWIN_TOLERANCE = 1.3e-3, 2.5e-4


def _nothing_usual(config: Any) -> None:
    """Whatever a configuration may say of the heads and the stages, each otherwise."""
    config.model.backbone.update(strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2))
    head = config.model.decode_head
    head.kernel_generate_head.update(channels=96, dilations=(1, 6, 12, 18))
    head.num_stages = 2
    for stage in head.kernel_update_head:
        stage.update(in_channels=96, out_channels=96, num_heads=6)
        stage.kernel_updator_cfg.update(in_channels=32, feat_channels=32, out_channels=32)
    first, second = head.kernel_update_head[:2]
    first.update(feat_transform_cfg=None, num_ffn_fcs=3, feedforward_channels=64, num_mask_fcs=2)
    second.update(with_ffn=False)
    head.kernel_update_head = [first, second]


class TestKnet(AgainstMmsegmentation):
    VARIANTS = (
        Variant(
            config="knet/knet-s3_r50-d8_deeplabv3_8xb2-adamw-80k_ade20k-512x512.py",
            description={
                "architecture": "knet",
                "variant": "r50-deeplabv3",
                "head_channels": 512,
                "assumed": (),
            },
            hw=(512, 512),
            other_hw=(250, 190),
            tolerance=RESNET_TOLERANCE,
        ),
        Variant(
            config="knet/knet-s3_r50-d8_deeplabv3_8xb2-adamw-80k_ade20k-512x512.py",
            description={"architecture": "knet", "variant": "r50-deeplabv3", "head_channels": 96},
            hw=(192, 256),
            other_hw=(161, 97),
            tolerance=RESNET_TOLERANCE,
            change=_nothing_usual,
        ),
        Variant(
            config="knet/knet-s3_r50-d8_upernet_8xb2-adamw-80k_ade20k-512x512.py",
            description={"architecture": "knet", "variant": "r50-upernet", "assumed": ()},
            hw=(512, 512),
            other_hw=(161, 97),
            tolerance=RESNET_TOLERANCE,
            graph=False,
        ),
        Variant(
            config="knet/knet-s3_swin-t_upernet_8xb2-adamw-80k_ade20k-512x512.py",
            description={"architecture": "knet", "variant": "swin-t-upernet", "assumed": ()},
            hw=(512, 512),
            other_hw=(250, 190),
            tolerance=SWIN_TOLERANCE,
        ),
        Variant(
            config="knet/knet-s3_swin-l_upernet_8xb2-adamw-80k_ade20k-640x640.py",
            description={"architecture": "knet", "variant": "swin-l-upernet"},
            hw=(640, 640),
            other_hw=(224, 320),
            tolerance=SWIN_TOLERANCE,
            graph=False,  # tracing and simplifying it takes 8 GB of memory and more
            slow=True,
        ),
    )
