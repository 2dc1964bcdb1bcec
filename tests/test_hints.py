"""What a configuration beside the weights tells the architectures."""

from __future__ import annotations

import pytest

from engines.errors import ConfigError
from exporter.architectures.description import NO_HINTS, Hints
from exporter.config_text import ConfigSettings, settings_from_config_text
from exporter.hints import hints_from_settings, with_hugging_face


def test_no_configuration_gives_no_hints() -> None:
    assert hints_from_settings(settings_from_config_text("")) == NO_HINTS


def test_every_hint_is_the_setting_of_its_name() -> None:
    settings = ConfigSettings(
        align_corners=False,
        strides=(1, 2, 1, 1),
        dilations=(1, 1, 2, 4),
        contract_dilation=True,
        head_dilations=(1, 12, 24, 36),
        pool_scales=(1, 2, 3, 6),
        num_heads=8,
    )
    assert hints_from_settings(settings, 6) == Hints(
        align_corners=False,
        strides=(1, 2, 1, 1),
        dilations=(1, 1, 2, 4),
        contract_dilation=True,
        head_dilations=(1, 12, 24, 36),
        pool_scales=(1, 2, 3, 6),
        num_heads=8,
        keep_outputs=6,
    )


def test_a_configuration_of_something_that_is_not_computed_is_refused() -> None:
    settings = ConfigSettings(unusual=("backbone.style='caffe'", "decode_head.num_classes=1"))
    with pytest.raises(ConfigError, match=r"backbone\.style='caffe', decode_head\.num_classes=1;"):
        hints_from_settings(settings)


def test_hugging_faces_mask2former_says_its_attention_heads() -> None:
    config = {"model_type": "mask2former", "num_attention_heads": 4, "pre_norm": False}
    assert with_hugging_face(NO_HINTS, config) == Hints(num_heads=4)


@pytest.mark.parametrize("config", [None, {}, {"model_type": "segformer", "pre_norm": True}])
def test_other_configurations_of_hugging_face_change_nothing(config: dict[str, object]) -> None:
    assert with_hugging_face(Hints(num_heads=3), config) == Hints(num_heads=3)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("pre_norm", True),
        ("activation_function", "gelu"),
        ("num_attention_heads", -8),
        ("num_attention_heads", "8"),
        ("num_attention_heads", 10**9),
    ],
)
def test_a_mask2former_that_computes_something_else_is_refused(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"another {name}"):
        with_hugging_face(NO_HINTS, {"model_type": "mask2former", name: value})


@pytest.mark.parametrize(
    ("backbone", "name", "value"),
    [
        ("swin", "hidden_act", "relu"),
        ("swin", "layer_norm_eps", 1e-6),
        ("resnet", "hidden_act", "gelu"),
        ("resnet", "downsample_in_bottleneck", True),
        ("resnet", "downsample_in_first_stage", True),
        ("resnet", "downsample_in_first_stage", {"nested": []}),
    ],
)
def test_a_backbone_that_computes_something_else_is_refused(
    backbone: str, name: str, value: object
) -> None:
    config = {"model_type": "mask2former", "backbone_config": {"model_type": backbone, name: value}}
    with pytest.raises(ConfigError, match=f"another {name}"):
        with_hugging_face(NO_HINTS, config)


@pytest.mark.parametrize(
    "backbone",
    [None, 5, {}, {"model_type": "swin", "layer_norm_eps": 1e-5, "hidden_act": "gelu"},
     {"model_type": "convnext", "hidden_act": "relu"}, {"model_type": ["swin"]}],
)  # fmt: skip
def test_other_backbones_are_left_to_the_tensors(backbone: object) -> None:
    config = {"model_type": "mask2former", "backbone_config": backbone}
    assert with_hugging_face(NO_HINTS, config) == NO_HINTS


@pytest.mark.parametrize(
    ("text", "divisor"),
    [
        ("model = dict(decode_head=dict(type='Mask2FormerHead'))", 1),
        ("_base_ = './m.py'\nmodel = dict(decode_head=dict(type='Mask2FormerHead'))", None),
        (
            "_base_ = './m.py'\nmodel = dict(data_preprocessor=dict(pad_size_divisor=64),"
            " decode_head=dict(type='Mask2FormerHead'))",
            64,
        ),
        ("model = dict(decode_head=dict(type='UPerHead'))", None),
    ],
)
def test_a_mask2former_is_padded_as_usual_where_the_rest_of_its_text_was_not_read(
    text: str, divisor: int | None
) -> None:
    assert hints_from_settings(settings_from_config_text(text)).size_divisor == divisor
