"""DeepLabV3+, its backbones and its heads beside mmsegmentation's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from against_mmsegmentation import FLOAT64, AgainstMmsegmentation, Variant
from torch import Tensor, nn

from exporter.architectures.aspp import AsppHead, SeparableAsppHead, aspp_dilations, aspp_shape
from exporter.architectures.description import NO_HINTS, Hints
from exporter.architectures.resnet import ResNet, resnet_shape

# 5e-3 at logits of deviation 3.1: a relative jitter of 1e-6 in the image alone moves those of R-50
# by 1.2e-3 deviations and those of R-101, whose deviation is 2.1, by 3.1e-3.
TOLERANCE = 1.6e-3
TOLERANCE_OF_R101 = 2.3e-3


def _pooled_shortcuts(config: Any) -> None:
    """V1d, output stride 16, another pyramid: nothing as it is assumed."""
    config.model.backbone.update(
        type="ResNetV1d", strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2), contract_dilation=False
    )
    config.model.decode_head.update(dilations=(1, 6, 12, 18))


class TestDeeplabV3Plus(AgainstMmsegmentation):
    VARIANTS = (
        Variant(
            config="deeplabv3plus/deeplabv3plus_r50-d8_4xb4-80k_ade20k-512x512.py",
            description={
                "architecture": "deeplabv3plus",
                "variant": "r50",
                "head_channels": 512,
                "assumed": (),
            },
            hw=(512, 512),
            other_hw=(250, 190),
            tolerance=TOLERANCE,
            class_offsets="decode_head.conv_seg.bias",
        ),
        Variant(
            config="deeplabv3plus/deeplabv3plus_r101-d8_4xb4-80k_ade20k-512x512.py",
            description={"architecture": "deeplabv3plus", "variant": "r101"},
            hw=(512, 512),
            other_hw=(224, 320),
            tolerance=TOLERANCE_OF_R101,
            class_offsets="decode_head.conv_seg.bias",
            slow=True,
        ),
        Variant(
            config="deeplabv3plus/deeplabv3plus_r18b-d8_4xb2-80k_cityscapes-512x1024.py",
            description={"architecture": "deeplabv3plus", "variant": "r18", "head_channels": 128},
            hw=(192, 384),
            other_hw=(161, 97),
            tolerance=TOLERANCE,
            class_offsets="decode_head.conv_seg.bias",
            change=_pooled_shortcuts,
        ),
    )


STRIDE_8 = {"strides": (1, 2, 1, 1), "dilations": (1, 1, 2, 4), "contract_dilation": True}
STRIDE_16 = {"strides": (1, 2, 2, 1), "dilations": (1, 1, 1, 2)}


def built(config: dict[str, Any]) -> Any:
    """mmsegmentation's module in float64, with BatchNorm statistics that are not 0 and 1."""
    import mmseg.models  # noqa: F401  # registers the model types
    from mmseg.registry import MODELS

    torch.manual_seed(0)
    module = MODELS.build(config | {"norm_cfg": {"type": "BN"}})
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        for norm in module.modules():
            if isinstance(norm, nn.BatchNorm2d):
                nn.init.normal_(norm.running_mean, std=0.3)
                nn.init.uniform_(norm.running_var, 0.5, 1.5)
    module.eval()
    return module.double()


def check_same(got: Tensor, want: Tensor) -> None:
    assert got.shape == want.shape
    assert float(want.std()) > 0
    assert float((got - want).abs().max()) <= FLOAT64 * float(want.std())


@pytest.mark.parametrize(
    ("kind", "depth", "layout"),
    [
        ("ResNet", 50, {}),
        ("ResNetV1c", 50, STRIDE_8),
        ("ResNetV1d", 50, STRIDE_16),
        ("ResNetV1c", 34, {"in_channels": 4}),
        ("ResNet", 18, STRIDE_8),
        ("ResNetV1d", 18, {}),
    ],
)
def test_every_kind_of_resnet_gives_mmsegmentations_maps(
    kind: str, depth: int, layout: dict[str, Any]
) -> None:
    thin = {"base_channels": 12, "stem_channels": 10}
    theirs = built({"type": kind, "depth": depth} | thin | layout)
    hints = Hints(**{key: layout[key] for key in STRIDE_8 if key in layout})
    shape = resnet_shape(theirs.state_dict(), "", hints)
    ours = ResNet(shape).double().eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    for hw in ((64, 96), (75, 101)):
        x = torch.randn(2, shape.in_channels, *hw, dtype=torch.float64)
        with torch.no_grad():
            maps, want = ours(x), theirs(x)
        assert shape.channels == tuple(x.shape[1] for x in want)
        for got, wanted in zip(maps, want, strict=True):
            check_same(got, wanted)


# What mmsegmentation says of sizes that do not become multiples plus one.
@pytest.mark.filterwarnings("ignore:When align_corners=True")
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("kind", ["ASPPHead", "DepthwiseSeparableASPPHead"])
def test_both_heads_give_mmsegmentations_logits(kind: str, align_corners: bool) -> None:
    separable = kind != "ASPPHead"
    config = {
        "type": kind,
        "in_channels": 32,
        "in_index": 3,
        "channels": 16,
        "dilations": (1, 12, 24, 36),
        "num_classes": 7,
        "align_corners": align_corners,
    }
    theirs = built(config | ({"c1_in_channels": 24, "c1_channels": 5} if separable else {}))
    tensors = theirs.state_dict()
    dilations, _ = aspp_dilations(tensors, "", NO_HINTS)
    shape = aspp_shape(tensors, "", dilations, align_corners)
    ours: nn.Module = SeparableAsppHead(shape) if separable else AsppHead(shape)
    ours.double().eval().load_state_dict(tensors, strict=True)
    fine = torch.randn(2, 24, 37, 41, dtype=torch.float64)
    coarse = torch.randn(2, 32, 19, 21, dtype=torch.float64)
    with torch.no_grad():
        got = ours([fine, coarse]) if separable else ours(coarse)[0]
        check_same(got, theirs([fine, None, None, coarse]))
