"""What is read from the texts of mmsegmentation's own configurations, against its own reader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from exporter.config_text import ConfigSettings, settings_from_config_text

FOLDERS = (
    "deeplabv3",
    "deeplabv3plus",
    "knet",
    "mask2former",
    "pspnet",
    "segformer",
    "segmenter",
    "swin",
    "upernet",
)


def _folder() -> Path:
    import mmseg

    return Path(mmseg.__file__).parent / ".mim" / "configs"


@pytest.mark.parametrize("family", FOLDERS)
def test_every_configuration_of_a_family_is_read_as_mmengine_reads_it(family: str) -> None:
    from mmengine.config import Config

    # ADE20K's, and those of 769x769, which align corners: one takes mmengine half a second.
    every = sorted((_folder() / family).glob("*.py"))
    files = [file for file in every if "ade20k" in file.name or "769x769" in file.name]
    assert files
    for file in files:
        config = Config.fromfile(file)
        found = settings_from_config_text(config.pretty_text)
        _check_backbone(found, config.model.backbone, file.name)
        _check_head(found, config.model.decode_head, file.name)
        assert found.mean == tuple(config.model.data_preprocessor.mean), file.name
        assert found.unusual == (), file.name


def _check_backbone(found: ConfigSettings, backbone: Any, name: str) -> None:
    assert found.backbone_type == backbone.type, name
    if backbone.type in ("ResNet", "ResNetV1c", "ResNetV1d"):
        assert found.strides == tuple(backbone.get("strides", (1, 2, 2, 2))), name
        assert found.dilations == tuple(backbone.get("dilations", (1, 1, 1, 1))), name
        assert found.contract_dilation is backbone.get("contract_dilation", False), name
    else:
        assert found.strides is found.dilations is found.contract_dilation is None, name


def _check_head(found: ConfigSettings, head: Any, name: str) -> None:
    assert found.decode_head_type == head.type, name
    first = head.get("kernel_generate_head", head)
    assert found.num_classes == first.num_classes, name
    assert found.align_corners == head.get("align_corners", first.get("align_corners")), name
    dilations, scales = first.get("dilations"), first.get("pool_scales")
    assert found.head_dilations == (None if dilations is None else tuple(dilations)), name
    assert found.pool_scales == (None if scales is None else tuple(scales)), name
    if head.type == "IterativeDecodeHead":
        assert found.num_heads == head.kernel_update_head[0].num_heads, name
    elif head.type == "Mask2FormerHead":
        attention = head.transformer_decoder.layer_cfg.self_attn_cfg
        assert found.num_heads == attention.num_heads, name
    else:
        assert found.num_heads == head.get("num_heads"), name
