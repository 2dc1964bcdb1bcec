"""UPerNet, and Swin as a part, beside mmsegmentation's own of the same weights."""

from __future__ import annotations

from typing import Any

import mmseg.models  # noqa: F401  # registers the model types
import pytest
import torch
from against_mmsegmentation import AgainstMmsegmentation, Variant
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from random_models import randomise_weights
from torch import Tensor

from exporter.architectures.loading import load_strictly
from exporter.architectures.swin import Swin, swin_shape, without_index_tables
from exporter.architectures.uper import UperHead

SWIN = "swin/swin-{}_upernet_8xb2-160k_ade20k-512x512.py"
OFFSETS = "decode_head.conv_seg.bias"
# Of SegFormer and of DeepLabV3+. A 1e-6 relative jitter of the image alone moves the logits on this
# ResNet by 5e-4; on Swin the measured difference is 1.7e-5.
TOLERANCE, RESNET_TOLERANCE = 4e-4, 1.6e-3


def described(variant: str) -> dict[str, Any]:
    return {
        "architecture": "upernet",
        "variant": variant,
        "head": "upernet",
        "head_channels": 512,
        "in_channels": 3,
    }


class TestUpernet(AgainstMmsegmentation):
    VARIANTS = (
        Variant(
            SWIN.format("tiny-patch4-window7-in1k-pre"),
            described("swin-t"),
            hw=(512, 512),
            other_hw=(250, 190),
            tolerance=TOLERANCE,
            class_offsets=OFFSETS,
        ),
        Variant(
            "upernet/upernet_r50_4xb4-160k_ade20k-512x512.py",
            described("r50"),
            hw=(512, 512),
            other_hw=(225, 161),
            tolerance=RESNET_TOLERANCE,
            class_offsets=OFFSETS,
        ),
        Variant(
            SWIN.format("base-patch4-window12-in1k-384x384-pre"),
            described("swin-b"),
            hw=(512, 512),
            other_hw=(250, 190),
            tolerance=TOLERANCE,
            class_offsets=OFFSETS,
            graph=False,
            slow=True,
        ),
    )


# --- parts ---------------------------------------------------------------------------------------


def built(config: dict[str, Any], logits: Any) -> Any:
    """mmsegmentation's module of this configuration in eval mode, with weights that hide nothing.

    `logits` runs it, for the statistics of its BatchNorms.
    """
    init_default_scope("mmseg")
    module = MODELS.build(config)
    module.eval()  # SwinTransformer's gives back None
    with torch.no_grad():
        randomise_weights(module, lambda: logits(module), seed=5)
    return module


@pytest.mark.parametrize(
    ("window", "changes"),
    [
        (7, {"depths": [2, 2, 3, 1]}),
        (12, {"depths": [1, 2, 1, 2], "mlp_ratio": 3, "in_channels": 5}),
        (4, {"qkv_bias": False, "patch_norm": False}),
    ],
)
@pytest.mark.parametrize(
    "hw",
    # In the third, the last map is smaller than every window; the fourth is odd at each stage.
    [(128, 160), (250, 190), (64, 64), (99, 133)],
)
def test_swin_gives_mmsegmentations_maps(
    window: int, changes: dict[str, Any], hw: tuple[int, int]
) -> None:
    sizes = {"embed_dims": 16, "depths": [2, 2, 2, 2], "num_heads": [1, 2, 4, 8]}
    config = {"type": "SwinTransformer", "window_size": window, **sizes, **changes}
    x = torch.randn(2, config.get("in_channels", 3), *hw, generator=torch.manual_seed(1))
    theirs = built(config, lambda module: module(x))
    named = without_index_tables(theirs.state_dict())
    ours = Swin(swin_shape(named, "")).eval()
    load_strictly(ours, named, "Swin")
    with torch.no_grad():
        check_equal(ours(x), theirs(x))


@pytest.mark.filterwarnings("ignore:When align_corners=True:UserWarning")
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("scales", [(1, 2, 3, 6), (2, 5)])
def test_the_head_gives_mmsegmentations_logits(
    align_corners: bool, scales: tuple[int, ...]
) -> None:
    channels = [8, 16, 24, 32]
    maps = [
        torch.randn(2, count, size, size + 3, generator=torch.manual_seed(count))
        for count, size in zip(channels, (33, 17, 9, 5), strict=True)
    ]
    config = {
        "type": "UPerHead",
        "in_channels": channels,
        "in_index": [0, 1, 2, 3],
        "pool_scales": scales,
        "channels": 12,
        "num_classes": 4,
        "norm_cfg": {"type": "BN"},
        "align_corners": align_corners,
    }
    theirs = built(config, lambda module: module(maps))
    ours = UperHead(channels, 12, 4, scales, align_corners).eval()
    load_strictly(ours, dict(theirs.state_dict()), "UPerNet")
    with torch.no_grad():
        check_equal([ours(maps)], [theirs(maps)])


def check_equal(got: list[Tensor], want: list[Tensor]) -> None:
    assert len(got) == len(want)
    for ours, theirs in zip(got, want, strict=True):
        assert float(theirs.std()) > 0.1
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.std()))
