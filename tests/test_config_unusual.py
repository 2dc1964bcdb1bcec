"""Settings with which the same tensors give another answer: each must be found."""

from __future__ import annotations

import pytest

from exporter.config_text import settings_from_config_text

# As in the configurations of K-Net and Mask2Former, with what decides the answer.
UPDATE = (
    "dict(type='KernelUpdateHead', num_heads=8, act_cfg=dict(type='ReLU', inplace=True),"
    " ffn_act_cfg=dict(type='ReLU'), conv_kernel_size=1, feat_gather_stride=1,"
    " mask_transform_stride=1,"
    " feat_transform_cfg=dict(conv_cfg=dict(type='Conv2d'), act_cfg=None),"
    " kernel_updator_cfg=dict(type='KernelUpdator', act_cfg=dict(type='ReLU'),"
    " norm_cfg=dict(type='LN')))"
)
KNET = (
    "model = dict(decode_head=dict(type='IterativeDecodeHead', kernel_update_head=["
    f"{UPDATE}, {UPDATE}], kernel_generate_head=dict(type='ASPPHead', num_classes=6,"
    " norm_cfg=dict(type='SyncBN'), align_corners=False)))"
)
SINES = "positional_encoding=dict(num_feats=128, normalize=True)"
MASK2FORMER = (
    f"model = dict(decode_head=dict(type='Mask2FormerHead', num_classes=1, {SINES},"
    " pixel_decoder=dict(norm_cfg=dict(type='GN', num_groups=32), act_cfg=dict(type='ReLU'),"
    f" encoder=dict(layer_cfg=dict(self_attn_cfg=dict(num_heads=8, norm_cfg=None),"
    f" ffn_cfg=dict(act_cfg=dict(type='ReLU')))), {SINES}),"
    " transformer_decoder=dict(layer_cfg=dict(self_attn_cfg=dict(num_heads=8),"
    " cross_attn_cfg=dict(num_heads=8), ffn_cfg=dict(act_cfg=dict(type='ReLU'))))))"
)
ORDER = "operation_order=('cross_attn', 'norm', 'self_attn', 'norm', 'ffn', 'norm')"
MASK2FORMER_0X = (
    "model = dict(panoptic_head=dict(type='Mask2FormerHead', pixel_decoder=dict(encoder=dict("
    "transformerlayers=dict(attn_cfgs=dict(num_heads=4), ffn_cfgs=dict(act_cfg=dict(type='ReLU')),"
    " operation_order=('self_attn', 'norm', 'ffn', 'norm')))), transformer_decoder=dict("
    f"transformerlayers=dict(attn_cfgs=dict(num_heads=4), {ORDER}))))"
)
SEGMENTER = (
    "model = dict(backbone=dict(type='VisionTransformer', embed_dims=192, num_heads=3,"
    " norm_cfg=dict(type='LN', eps=1e-6), with_cls_token=True, interpolate_mode='bicubic'),"
    " decode_head=dict(type='SegmenterMaskTransformerHead', num_heads=3))"
)


def unusual(text: str) -> tuple[str, ...]:
    return settings_from_config_text(text).unusual


@pytest.mark.parametrize("text", [KNET, MASK2FORMER, MASK2FORMER_0X, SEGMENTER])
def test_the_published_settings_are_computed(text: str) -> None:
    assert unusual(text) == ()


def test_the_heads_of_mmdetections_own_models_are_read() -> None:
    assert settings_from_config_text(MASK2FORMER_0X).num_heads == 4


@pytest.mark.parametrize(
    ("stated", "found"),
    [
        ("type='ResNetV1c', style='caffe'", "style='caffe'"),
        ("type='mmdet.ResNet', style='caffe'", "style='caffe'"),
        ("type='ResNet', multi_grid=(1, 2, 4)", "multi_grid=(1, 2, 4)"),
        ("type='ResNet', multi_grid=[[1], 1]", "multi_grid=([1], 1)"),
        ("type='ResNet', norm_cfg=dict(type='BN', eps=0.001)", "norm_cfg.eps=0.001"),
        ("type='ResNet', conv_cfg=dict(type='ConvWS')", "conv_cfg.type='ConvWS'"),
        ("type='SwinTransformer', qk_scale=0.5", "qk_scale=0.5"),
        ("type='SwinTransformer', strides=(4, 2, 1, 2)", "strides=(4, 2, 1, 2)"),
        ("type='SwinTransformer', act_cfg=dict(type='ReLU')", "act_cfg.type='ReLU'"),
        ("type='SwinTransformer', norm_cfg=dict(type='LN', eps=1e-6)", "norm_cfg.eps=1e-06"),
        ("type='MixVisionTransformer', num_heads=[2, 4, 8, 16]", "num_heads=(2, 4, 8, 16)"),
        ("type='MixVisionTransformer', strides=[2, 2, 2, 2]", "strides=(2, 2, 2, 2)"),
    ],
)
def test_backbones_that_compute_something_else_are_found(stated: str, found: str) -> None:
    assert unusual(f"model = dict(backbone=dict({stated}))") == (f"backbone.{found}",)


@pytest.mark.parametrize(
    "stated",
    [
        "type='ResNet', style='pytorch', multi_grid=None, conv_cfg=None",
        "type='ResNet', multi_grid=(1, 1, 1), norm_cfg=dict(type='SyncBN', requires_grad=True)",
        "type='SwinTransformer', strides=(2, 2, 2, 2), qk_scale=None, act_cfg=dict(type='GELU')",
        "type='MixVisionTransformer', num_heads=[1, 2, 5, 8], norm_cfg=dict(eps=1e-6)",
        "type='BEiT', qk_scale=2.0",
        "type='VisionTransformer', out_indices=(2, 5)",
    ],
)
def test_backbones_that_are_computed_or_not_read_are_left_alone(stated: str) -> None:
    assert unusual(f"model = dict(backbone=dict({stated}))") == ()


@pytest.mark.parametrize(
    ("stated", "found"),
    [
        ("type='UPerHead', act_cfg=dict(type='GELU')", "act_cfg.type='GELU'"),
        ("type='UPerHead', act_cfg=None", "act_cfg.type=None"),
        ("type='DepthwiseSeparableASPPHead', norm_cfg=dict(eps=1e-3)", "norm_cfg.eps=0.001"),
        ("type='SegformerHead', interpolate_mode='nearest'", "interpolate_mode='nearest'"),
        ("type='ASPPHead', num_classes=1", "num_classes=1"),
        ("type='ASPPHead', num_classes=2, out_channels=1", "out_channels=1"),
    ],
)
def test_decode_heads_that_compute_something_else_are_found(stated: str, found: str) -> None:
    assert unusual(f"model = dict(decode_head=dict({stated}))") == (f"decode_head.{found}",)


@pytest.mark.parametrize(
    ("text", "old", "new", "found"),
    [
        (KNET, "mask_transform_stride=1", "mask_transform_stride=2", "mask_transform_stride=2"),
        (KNET, "feat_gather_stride=1", "feat_gather_stride=2", "feat_gather_stride=2"),
        # mmcv's ConvModule has ReLU where nothing is said.
        (KNET, ", act_cfg=None)", ")", "feat_transform_cfg.act_cfg='ReLU'"),
        (KNET, "type='KernelUpdator',", "gate_sigmoid=False,", "gate_sigmoid=False"),
        (KNET, "type='KernelUpdator',", "activate_out=True,", "activate_out=True"),
        (KNET, "ffn_act_cfg=dict(type='ReLU')", "ffn_act_cfg=dict(type='GELU')", "ffn_act_cfg"),
        (KNET, "'ReLU', inplace=True", "'GELU'", "0.act_cfg.type='GELU'"),
        (KNET, "num_heads=8", "num_heads=4", "attentions with num_heads [4, 8]"),
        (KNET, "type='SyncBN'", "eps=1e-3", "kernel_generate_head.norm_cfg.eps=0.001"),
        (KNET, "num_classes=6", "num_classes=1", "num_classes=1"),
        (MASK2FORMER, "num_groups=32", "num_groups=16", "num_groups=16"),
        (MASK2FORMER, ", normalize=True", "", "decode_head.positional_encoding.normalize=False"),
        (MASK2FORMER, "=True", "=True, temperature=20", "temperature=20"),
        (MASK2FORMER, "num_heads=8", "num_heads=4", "attentions with num_heads [8, 8, 4]"),
        (MASK2FORMER, "act_cfg=dict(type='ReLU')", "act_cfg=dict(type='GELU')", "pixel_decoder"),
        (MASK2FORMER_0X, "'ffn', 'norm')", "'norm', 'ffn')", "operation_order=('self_attn'"),
        (MASK2FORMER_0X, ORDER, ORDER.replace("cross", "self"), "operation_order="),
        (SEGMENTER, "num_heads=3", "num_heads=4", "backbone.num_heads=4 for 192 channels"),
        (SEGMENTER, "with_cls_token=True", "with_cls_token=False", "with_cls_token=False"),
        (SEGMENTER, "bicubic", "bilinear", "interpolate_mode='bilinear'"),
        (SEGMENTER, "'bicubic'", "unknown", "interpolate_mode="),
    ],
)
def test_one_changed_setting_is_found(text: str, old: str, new: str, found: str) -> None:
    assert old in text
    (stated,) = unusual(text.replace(old, new, 1))
    assert found in stated
