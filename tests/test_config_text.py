from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.config_literals import UNKNOWN, ConfigSyntaxError, values_from_text
from exporter.config_text import ConfigSettings, settings_from_config_text
from exporter.preparation import preparation_from_config

ZERO_X = """
norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    type='EncoderDecoder',
    pretrained='pretrain/mit_b0.pth',
    backbone=dict(type='MixVisionTransformer', embed_dims=32, num_heads=[1, 2, 5, 8]),
    decode_head=dict(
        type='SegformerHead',
        channels=256,
        num_classes=19,
        norm_cfg=norm_cfg,
        align_corners=False),
    train_cfg=dict(),
    test_cfg=dict(mode='slide', crop_size=(1024, 512), stride=(768, 384)))
dataset_type = 'RiceDataset'
img_norm_cfg = dict(
    mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='MultiScaleFlipAug',
        img_scale=(2048, 512),
        flip=False,
        transforms=[
            dict(type='Resize', keep_ratio=True),
            dict(type='ResizeToMultiple', size_divisor=32),
            dict(type='RandomFlip'),
            dict(type='Normalize', **img_norm_cfg),
            dict(type='ImageToTensor', keys=['img']),
        ])
]
data = dict(
    samples_per_gpu=2,
    train=dict(type='RepeatDataset', times=4, dataset=dict(type='RiceDataset', pipeline=[
        dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')])),
    test=dict(type='RiceDataset', data_root='data/rice', pipeline=test_pipeline))
"""

ONE_X = """
crop_size = (
    512,
    512,
)
data_preprocessor = dict(
    bgr_to_rgb=True,
    mean=[
        127.5,
        127.5,
        127.5,
    ],
    std=[
        127.5,
        127.5,
        127.5,
    ],
    size=crop_size,
    test_cfg=dict(size_divisor=32),
    type='SegDataPreProcessor')
model = dict(
    backbone=dict(type='SwinTransformer', window_size=7),
    data_preprocessor=data_preprocessor,
    decode_head=dict(align_corners=False, num_classes=150, type='Mask2FormerHead'),
    test_cfg=dict(mode='whole'),
    type='EncoderDecoder')
test_cfg = dict(type='TestLoop')
test_dataloader = dict(
    batch_size=1,
    dataset=dict(
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(keep_ratio=True, scale=(
                2048,
                512,
            ), type='Resize'),
            dict(reduce_zero_label=True, type='LoadAnnotations'),
            dict(type='PackSegInputs'),
        ],
        type='ADE20KDataset'))
"""


def assert_nothing_known(found: ConfigSettings, note: str) -> None:
    assert found == ConfigSettings(notes=found.notes)
    assert len(found.notes) == 1
    assert note in found.notes[0]
    assert "\n" not in found.notes[0]


def test_a_configuration_of_mmcv() -> None:
    assert settings_from_config_text(ZERO_X) == ConfigSettings(
        model_type="EncoderDecoder",
        backbone_type="MixVisionTransformer",
        decode_head_type="SegformerHead",
        num_classes=19,
        align_corners=False,
        mean=(123.675, 116.28, 103.53),
        std=(58.395, 57.12, 57.375),
        to_rgb=True,
        test_mode="slide",
        crop_size=(1024, 512),
        stride=(768, 384),
        keep_ratio=True,
        test_scale=(2048, 512),
        reduce_zero_label=False,
        size_divisor=32,
        notes=("sides become multiples of 32 in ResizeToMultiple",),
    )


def test_a_configuration_of_mmengine() -> None:
    assert settings_from_config_text(ONE_X) == ConfigSettings(
        model_type="EncoderDecoder",
        backbone_type="SwinTransformer",
        decode_head_type="Mask2FormerHead",
        num_classes=150,
        align_corners=False,
        mean=(127.5, 127.5, 127.5),
        std=(127.5, 127.5, 127.5),
        to_rgb=True,
        test_mode="whole",
        crop_size=None,
        stride=None,
        keep_ratio=True,
        test_scale=(2048, 512),
        reduce_zero_label=True,
        size_divisor=32,
        notes=("sides are padded to multiples of 32 after normalisation",),
    )


def test_windows_line_ends_change_nothing() -> None:
    assert settings_from_config_text(ONE_X.replace("\n", "\r\n")) == settings_from_config_text(
        ONE_X
    )


def test_an_iterative_head_has_the_classes_of_its_first_prediction() -> None:
    found = settings_from_config_text(
        "model = dict(type='EncoderDecoder', decode_head=dict(type='IterativeDecodeHead',"
        " kernel_update_head=[dict(num_classes=150)],"
        " kernel_generate_head=dict(type='ASPPHead', num_classes=7, align_corners=True)))"
    )
    assert (found.decode_head_type, found.num_classes) == ("IterativeDecodeHead", 7)
    assert found.align_corners is True


def test_of_a_cascade_the_last_head_counts() -> None:
    found = settings_from_config_text(
        "model = dict(decode_head=[dict(type='FCNHead', num_classes=3),"
        " dict(type='OCRHead', num_classes=4, align_corners=False)])"
    )
    assert (found.decode_head_type, found.num_classes) == ("OCRHead", 4)


# What the layers' shapes do not tell. The lines are those of mmsegmentation's own configurations.

DEEPLAB = """
norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    type='EncoderDecoder',
    backbone=dict(
        type='ResNetV1c',
        depth=50,
        num_stages=4,
        out_indices=(0, 1, 2, 3),
        dilations=(1, 1, 2, 4),  # output stride 8
        strides=[1, 2, 1, 1],
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        norm_eval=False,
        style='pytorch',
        contract_dilation=True),
    decode_head=dict(
        type='DepthwiseSeparableASPPHead',
        dilations=(1, 12, 24, 36),
        c1_in_channels=256,
        num_classes=19,
        norm_cfg=norm_cfg,
        align_corners=True))
"""

KNET = """
model = dict(
    backbone=dict(type='ResNetV1c', strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4)),
    decode_head=dict(
        type='IterativeDecodeHead',
        num_stages=3,
        kernel_update_head=[
            dict(type='KernelUpdateHead', num_classes=150, num_ffn_fcs=2, {heads}),
            dict(type='KernelUpdateHead', num_classes=150, num_heads=3)],
        kernel_generate_head=dict({kind}, num_classes=7, align_corners=False)))
"""

MASK2FORMER_1X = """
model = dict(
    backbone=dict(depth=50, deep_stem=False, style='pytorch', type='ResNet'),
    decode_head=dict(
        strides=[4, 8, 16, 32],
        pixel_decoder=dict(encoder=dict(layer_cfg=dict(self_attn_cfg=dict(num_heads=4)))),
        transformer_decoder=dict(
            layer_cfg=dict(cross_attn_cfg=dict(num_heads=2), self_attn_cfg=dict(num_heads=2)),
            num_layers=9),
        type='Mask2FormerHead'))
"""

MASK2FORMER_0X = """
model = dict(
    decode_head=dict(
        type='Mask2FormerHead',
        transformer_decoder=dict(
            type='DetrTransformerDecoder',
            transformerlayers=dict(
                type='DetrTransformerDecoderLayer',
                attn_cfgs=dict(type='MultiheadAttention', embed_dims=256, num_heads=16)))))
"""


def test_dilations_of_backbone_and_head_are_read() -> None:
    found = settings_from_config_text(DEEPLAB)
    assert (found.strides, found.dilations) == ((1, 2, 1, 1), (1, 1, 2, 4))
    assert found.contract_dilation is True
    assert found.unusual == ()
    assert found.head_dilations == (1, 12, 24, 36)
    assert (found.pool_scales, found.num_heads) == (None, None)
    assert found.align_corners is True
    assert found.notes == ()


@pytest.mark.parametrize(
    ("kind", "dilations", "scales"),
    [
        ("type='ASPPHead', dilations=(1, 12, 24, 36)", (1, 12, 24, 36), None),
        ("type='UPerHead', pool_scales=[1, 3]", None, (1, 3)),
        ("type='ASPPHead'", (1, 6, 12, 18), None),
        ("type='UPerHead'", None, (1, 2, 3, 6)),
    ],
)
def test_knets_first_head_says_its_dilations_or_pool_scales(
    kind: str, dilations: object, scales: object
) -> None:
    found = settings_from_config_text(KNET.format(kind=kind, heads="num_heads=4"))
    assert (found.head_dilations, found.pool_scales) == (dilations, scales)
    assert (found.num_classes, found.num_heads) == (7, 4)
    assert found.contract_dilation is False  # ResNet's default


def test_knets_update_head_has_eight_heads_when_none_are_said() -> None:
    text = KNET.format(kind="type='UPerHead'", heads="dropout=0.0")
    assert settings_from_config_text(text).num_heads == 8


@pytest.mark.parametrize(
    ("text", "heads"),
    [
        (MASK2FORMER_1X, 2),
        (MASK2FORMER_0X, 16),
        ("model = dict(decode_head=dict(type='SegmenterMaskTransformerHead', num_heads=3))", 3),
        ("model = dict(decode_head=dict(type='FCNHead'))", None),
    ],
)
def test_the_heads_of_the_decoders_attention_are_read(text: str, heads: int | None) -> None:
    assert settings_from_config_text(text).num_heads == heads


def test_a_resnet_without_strides_has_mmsegmentations_defaults() -> None:
    found = settings_from_config_text(MASK2FORMER_1X)
    assert (found.strides, found.dilations) == ((1, 2, 2, 2), (1, 1, 1, 1))
    assert found.contract_dilation is False


@pytest.mark.parametrize("kind", ["SwinTransformer", "MixVisionTransformer"])
def test_strides_of_other_backbones_are_not_a_resnets(kind: str) -> None:
    found = settings_from_config_text(
        f"model = dict(backbone=dict(type='{kind}', strides=(4, 2, 2, 2)))"
    )
    assert (found.strides, found.dilations, found.contract_dilation) == (None, None, None)


def test_defaults_are_not_assumed_when_a_base_file_may_say_otherwise() -> None:
    found = settings_from_config_text(
        "_base_ = './deeplabv3plus_r50-d8.py'\n"
        "model = dict(backbone=dict(type='ResNetV1c', depth=101),"
        " decode_head=dict(type='ASPPHead', num_classes=6))"
    )
    assert (found.strides, found.dilations, found.head_dilations) == (None, None, None)
    assert found.num_classes == 6


@pytest.mark.parametrize(
    "value",
    ["(1, -2, 1, 1)", "(1, 0)", "()", "(10 * 9, 1)", "'1234'", "(1, 2.0)", "(True, 1)", "5",
     "[1] + [9223372036854775807]", "(1, 1, 1, 1, 1, 1, 1, 1, 1)", "unknown_name", "dict(a=1)",
     "(1, (2, 3))"],
)  # fmt: skip
def test_strides_that_no_network_has_are_ignored_and_noted(value: str) -> None:
    found = settings_from_config_text(
        f"model = dict(backbone=dict(type='ResNet', strides={value}))"
    )
    assert (found.strides, found.dilations, found.contract_dilation) == (None, None, None)
    assert [note for note in found.notes if note.startswith("strides of the configuration are")]


@pytest.mark.parametrize(
    "backbone",
    ["strides=(1, 2, 1, 1), dilations=(1, 1, 2, 'x')", "strides=(1, 2, 1, 1), contract_dilation=1"],
)
def test_of_strides_and_dilations_all_are_used_or_none(backbone: str) -> None:
    found = settings_from_config_text(f"model = dict(backbone=dict(type='ResNetV1c', {backbone}))")
    assert (found.strides, found.dilations, found.contract_dilation) == (None, None, None)
    assert "strides and dilations of the configuration's backbone were not used" in found.notes


@pytest.mark.parametrize("value", ["-8", "0", "10 * 1000", "'8'", "8.0", "True", "[8]", "2 ** 3"])
def test_heads_that_no_network_has_are_ignored_and_noted(value: str) -> None:
    found = settings_from_config_text(f"model = dict(decode_head=dict(num_heads={value}))")
    assert found.num_heads is None
    assert [note for note in found.notes if note.startswith("num_heads")]


@pytest.mark.parametrize("value", ["(1, 12, -24)", "'x'", "[]"])
def test_head_dilations_that_no_network_has_are_not_replaced_by_defaults(value: str) -> None:
    found = settings_from_config_text(
        f"model = dict(decode_head=dict(type='ASPPHead', dilations={value}))"
    )
    assert found.head_dilations is None
    assert [note for note in found.notes if note.startswith("dilations")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("img_norm_cfg = dict(mean=[1, 2], std=[3, 4], to_rgb=False)", ((1, 2), (3, 4), False)),
        ("img_norm_cfg = dict(mean=[1, 2], std=[3, 4])", ((1, 2), (3, 4), True)),
        ("data_preprocessor = dict(mean=[1], std=[3])", ((1,), (3,), False)),
        ("data_preprocessor = dict(mean=[1], std=[3], bgr_to_rgb=True)", ((1,), (3,), True)),
        ("img_norm_cfg = dict(mean=[1, 2], std=[3])", (None, None, None)),
        ("img_norm_cfg = dict(mean=[1, 2], std=[3, 0])", (None, None, None)),
        ("img_norm_cfg = dict(mean=['a'], std=[3])", (None, None, None)),
        ("img_norm_cfg = dict(mean=[1e999], std=[3])", (None, None, None)),
    ],
)
def test_normalisation_and_its_defaults(text: str, expected: object) -> None:
    found = settings_from_config_text(text)
    assert (found.mean, found.std, found.to_rgb) == expected


@pytest.mark.parametrize(
    ("text", "scale", "keep_ratio"),
    [
        ("test_pipeline = [dict(type='Resize', scale=(640, 480))]", (640, 480), False),
        ("test_pipeline = [dict(type='Resize', scale=512, keep_ratio=True)]", (512, 512), True),
        ("data = dict()\ntest_pipeline = [dict(type='Resize', img_scale=(9, 8))]", (9, 8), True),
        (
            "test_pipeline = [dict(type='MultiScaleFlipAug', img_scale=[(9, 8), (7, 6)],"
            " transforms=[dict(type='AlignedResize')])]",
            (9, 8),
            True,
        ),
        ("test_pipeline = [dict(type='Resize', scale='x')]", None, False),
        ("test_pipeline = [dict(type='PackSegInputs')]", None, None),
        ("test_pipeline = 5", None, None),
    ],
)
def test_the_scale_of_the_test_pipeline(
    text: str, scale: tuple[int, int] | None, keep_ratio: bool | None
) -> None:
    found = settings_from_config_text(text)
    assert (found.test_scale, found.keep_ratio) == (scale, keep_ratio)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("dataset_type = 'ADE20KDataset'", True),
        ("dataset_type = 'RiceDataset'", False),
        ("data = dict(test=dict(type='RiceDataset', reduce_zero_label=True))", True),
        ("data = dict(test=[dict(type='PotsdamDataset'), dict(type='x')])", True),
        ("train_pipeline = [dict(type='LoadAnnotations', reduce_zero_label=True)]", True),
        ("x = 1", None),
    ],
)
def test_where_zero_is_no_class(text: str, expected: bool | None) -> None:
    assert settings_from_config_text(text).reduce_zero_label is expected


@pytest.mark.parametrize(
    ("text", "mode", "note"),
    [
        ("test_cfg = dict(mode='whole')", "whole", False),
        ("model = dict(test_cfg=dict(mode='slide', crop_size=5))", "slide", False),
        ("model = dict(test_cfg=dict(mode='other'))", None, True),
        ("test_cfg = dict(type='TestLoop')", None, False),
    ],
)
def test_the_test_mode(text: str, mode: str | None, note: bool) -> None:
    found = settings_from_config_text(text)
    assert found.test_mode == mode
    assert any("test mode" in text for text in found.notes) is note


def test_a_text_with_a_syntax_error_gives_nothing_but_a_note() -> None:
    broken = ZERO_X + "lr_config = dict(policy='poly', power=1.0,a)\n"
    assert_nothing_known(settings_from_config_text(broken), "cannot be read")


@pytest.mark.parametrize("text", ["", "\n\n# comment\n", "import os\n", "def f():\n    x = 1\n"])
def test_a_text_without_assignments_gives_a_note(text: str) -> None:
    assert_nothing_known(settings_from_config_text(text), "no assignment")


def test_base_files_are_not_read_and_that_is_noted() -> None:
    found = settings_from_config_text("_base_ = ['../x.py']\nmodel = dict(type='EncoderDecoder')")
    assert found.model_type == "EncoderDecoder"
    assert any("_base_" in note for note in found.notes)


def test_nothing_of_the_text_is_executed(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    found = settings_from_config_text(
        f"import os\nos.system('touch {marker}')\nopen({str(marker)!r}, 'w')\n"
        f"x = open({str(marker)!r}, 'w')\nmodel = dict(type='A', backbone=dict(type=open('x')))\n"
        f"y = [c for c in ().__class__.__base__.__subclasses__()]\nz = f'{{os.getcwd()}}'\n"
    )
    assert not marker.exists()
    assert (found.model_type, found.backbone_type) == ("A", None)
    assert "x, y, z" in found.notes[0]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("-3", -3),
        ("-(2 + 3) * 4 / 8", -2.5),
        ("[1] + [2, (3,)]", [1, 2, (3,)]),
        ("(1,) + (2,)", (1, 2)),
        ("dict(a=1, **dict(b=2))", {"a": 1, "b": 2}),
        ("dict({'a.b': 1}, c=2)", {"a.b": 1, "c": 2}),
        ("{'a': None, **{'b': True}}", {"a": None, "b": True}),
        ("'one ' 'two'", "one two"),
        ("before", 7),
        ("(\n  1,\n  '''a\nb''',  # comment\n)", (1, "a\nb")),
        ("1 \\\n + 1", 2),
        ("dict()", {}),
    ],
)
def test_the_expressions_that_are_worked_out(expression: str, expected: object) -> None:
    assert values_from_text(f"before = 7\nx = {expression}")["x"] == expected


@pytest.mark.parametrize(
    "expression",
    [
        "later",
        "f(1)",
        "list()",
        "dict([('a', 1)])",
        "dict(**later)",
        "a.b",
        "a[0]",
        "1 if True else 2",
        "[i for i in (1, 2)]",
        "2 ** 9999999",
        "'a' * 9999999",
        "[1] * 9999999",
        "1 / 0",
        "1e308 * 10 + later",
        "9223372036854775807 + 1",
        "99999999999999999999",
        "lambda: 1",
        "f'{1}'",
        "b'x'",
        "1j",
        "...",
        "1; y = 2",
    ],
)
def test_the_expressions_that_are_not_worked_out(expression: str) -> None:
    assert values_from_text(f"x = {expression}\nlater = 1")["x"] is UNKNOWN


def test_values_that_double_on_every_line_stay_small() -> None:
    lists = values_from_text("a = [1, 2]\n" + "a = a + a\n" * 100)
    numbers = values_from_text("a = 10\n" + "a = a * a\n" * 100)
    assert lists["a"] is UNKNOWN
    assert numbers["a"] is UNKNOWN


@pytest.mark.parametrize(
    "text",
    [
        "x = " + "[" * 90 + "]" * 90,
        "x = " + "(" * 19_000,
        "x = " + "-" * 19_000 + "1",
        "x = " + "not " * 4_000 + "1",
        "x = a" + ".b" * 9_000,
        "x = a" + "()" * 9_000,
        "x = 1" + " + 1" * 4_000,
        "x = " + "\\\n-" * 100_000 + "1",
        "x = " + ("(" + "-" * 50) * 50 + "1" + ")" * 50,
    ],
    ids=range(9),
)
def test_deeply_nested_texts_never_reach_the_parser(text: str) -> None:
    assert_nothing_known(settings_from_config_text(text), "nested too deeply")


@pytest.mark.parametrize(
    "text",
    [
        "x = " + "(" * 100_000,
        "x = [" + "(-\n" * 10_000 + "1",
        "x = '" + "a" * 30_000 + "'",
        "x = 1\n" * 200_000,
        "x = '\0'",
        "x = '\udc80'",
        "x = $",
        "x = (1",
        "x = 'abc",
        "x = '''abc",
        "x = 1)",
        "  x = 1\n y = 2",
        "x =",
        "".join(" " * i + "if 1:\n" for i in range(1, 1200)),
    ],
    ids=range(14),
)
def test_texts_that_would_hurt_a_parser_give_nothing_but_a_note(text: str) -> None:
    start = time.perf_counter()
    found = settings_from_config_text(text)
    assert time.perf_counter() - start < 10
    assert found == ConfigSettings(notes=found.notes)
    assert len(found.notes) == 1


def test_shared_values_are_not_walked_again_and_again() -> None:
    text = (
        "a = [dict(type='Resize')]\n"
        + "a = [dict(type='X', transforms=a), dict(transforms=a)]\n" * 500
        + "test_pipeline = a\nmodel = dict(type=a, backbone=dict(type='B'))\n"
    )
    start = time.perf_counter()
    assert settings_from_config_text(text).backbone_type == "B"
    assert time.perf_counter() - start < 10


@pytest.mark.parametrize("innermost", ["dict(type='Resize')", "1"])
def test_lists_that_are_nested_and_shared_are_not_walked_to_their_end(innermost: str) -> None:
    lists = f"a = [{', '.join([innermost] * 100)}]\n"
    for _ in range(5):
        lists += f"a = [dict(transforms=a), {', '.join(['a'] * 100)}]\n"
    text = f"{lists}test_pipeline = a\ntta_pipeline = a\n"
    start = time.perf_counter()
    preparation_from_config(text, settings_from_config_text(text))
    assert time.perf_counter() - start < 10


def test_mmdetection_says_elsewhere_what_sides_are_padded_to() -> None:
    found = settings_from_config_text("model = dict(data_preprocessor=dict(pad_size_divisor=32))")
    assert found.size_divisor == 32


def test_the_depth_of_python_calls_is_left_as_it_was() -> None:
    limit = sys.getrecursionlimit()
    assert values_from_text("x = " + "[" * 50 + "]" * 50)["x"] is not UNKNOWN
    assert sys.getrecursionlimit() == limit


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="x=()[]{},:'\"\n\\ 1.+-*/#\tdict_;λ\r\0f", max_size=80))
def test_any_text_gives_settings(text: str) -> None:
    assert isinstance(settings_from_config_text(text), ConfigSettings)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, len(ZERO_X) - 1), st.characters())
def test_a_changed_character_gives_settings(position: int, character: str) -> None:
    changed = ZERO_X[:position] + character + ZERO_X[position + 1 :]
    assert isinstance(settings_from_config_text(changed), ConfigSettings)


def test_the_error_of_the_reader_is_its_own() -> None:
    with pytest.raises(ConfigSyntaxError, match="more than 1000000 characters"):
        values_from_text(" " * 1_000_001)
