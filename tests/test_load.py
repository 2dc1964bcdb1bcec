"""What a checkpoint file becomes: weights, normalisation, classes, size."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from engines.errors import ConfigError
from exporter.architectures.description import Hints
from exporter.architectures.segformer import Segformer
from exporter.detect import model_from_state_dict
from exporter.load import load_model, network_size
from exporter.request import LoadOptions
from tests.architectures.tiny_segmenter import EXAMPLES as SEGMENTERS
from tests.test_segformer import shape_of
from tests.tiny_segformer import write_checkpoint

CONFIG_1X = """
data_preprocessor = dict(type='SegDataPreProcessor', mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0],
                         bgr_to_rgb={rgb})
model = dict(type='EncoderDecoder', data_preprocessor=data_preprocessor,
             decode_head=dict(type='SegformerHead', num_classes=4, align_corners=False),
             test_cfg=dict({test_cfg}))
test_pipeline = [dict(type='LoadImageFromFile'),
                 dict(type='Resize', scale={scale}, keep_ratio={keep})]
"""


def config(
    rgb: bool = True, test_cfg: str = "mode='whole'", scale: object = (96, 64), keep: bool = True
) -> str:
    return CONFIG_1X.format(rgb=rgb, test_cfg=test_cfg, scale=scale, keep=keep)


def checkpoint(tmp_path: Path, *, meta: dict[str, Any] | None = None, **shape: object) -> Path:
    torch.manual_seed(0)
    tensors = Segformer(shape_of(**shape)).state_dict()
    path = tmp_path / "best.pth"
    torch.save({"meta": meta or {}, "state_dict": tensors}, path)
    return path


def test_mean_and_std_come_from_the_configuration_text(tmp_path: Path) -> None:
    loaded = load_model(checkpoint(tmp_path, meta={"cfg": config()}))
    assert loaded.mean == (1.0, 2.0, 3.0)
    assert loaded.std == (4.0, 5.0, 6.0)
    assert not any("ImageNet" in warning for warning in loaded.warnings)


def test_without_a_configuration_imagenets_are_taken_and_said(tmp_path: Path) -> None:
    loaded = load_model(checkpoint(tmp_path))
    assert loaded.mean == (123.675, 116.28, 103.53)
    assert loaded.std == (58.395, 57.12, 57.375)
    assert any("ImageNet mean and std assumed" in warning for warning in loaded.warnings)


def test_options_overrule_the_configuration(tmp_path: Path) -> None:
    options = LoadOptions(mean=(7.0, 8.0, 9.0), std=(1.0, 1.0, 2.0))
    loaded = load_model(checkpoint(tmp_path, meta={"cfg": config()}), options)
    assert (loaded.mean, loaded.std) == ((7.0, 8.0, 9.0), (1.0, 1.0, 2.0))


@pytest.mark.parametrize(
    "options",
    [
        LoadOptions(),
        LoadOptions(mean=(1.0, 2.0, 3.0), std=(1.0, 1.0, 1.0)),
        LoadOptions(mean=(1.0,) * 5),
    ],
)
def test_five_channels_need_five_means_and_stds(tmp_path: Path, options: LoadOptions) -> None:
    with pytest.raises(ConfigError, match="expected 5 numbers each"):
        load_model(checkpoint(tmp_path, in_channels=5), options)


def test_a_std_of_zero_is_refused(tmp_path: Path) -> None:
    options = LoadOptions(mean=(1.0, 1.0, 1.0), std=(1.0, 0.0, 1.0))
    with pytest.raises(ConfigError, match="numbers above 0"):
        load_model(checkpoint(tmp_path), options)


def test_a_model_trained_on_bgr_gives_the_same_answer_for_rgb(tmp_path: Path) -> None:
    """bgr_to_rgb=False: the network saw (B, G, R), mean and std in that order too."""
    plain = Segformer(shape_of()).eval()
    path = checkpoint(tmp_path, meta={"cfg": config(rgb=False)})
    plain.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
    loaded = load_model(path)
    rgb = torch.rand(1, 3, 64, 64) * 255
    bgr_mean, bgr_std = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0, 5.0, 6.0])
    with torch.no_grad():
        want = plain((rgb.flip(1) - bgr_mean[:, None, None]) / bgr_std[:, None, None])
        mean, std = torch.tensor(loaded.mean), torch.tensor(loaded.std)
        got = loaded.net((rgb - mean[:, None, None]) / std[:, None, None])
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)
    assert any("BGR" in warning for warning in loaded.warnings)


def test_nineteen_outputs_with_six_korean_names_are_kept_with_a_warning(tmp_path: Path) -> None:
    names = ("배경", "정상", "도열병", "도복", "결주", "생육부진")
    palette = [[0, 0, 0], [8, 39, 245], [0, 229, 245], [225, 0, 26], [250, 0, 204], [245, 123, 0]]
    meta = {"CLASSES": names, "PALETTE": palette}
    loaded = load_model(checkpoint(tmp_path, meta=meta, num_outputs=19))
    assert loaded.description.num_outputs == 19
    assert loaded.classes[:6] == names
    assert loaded.palette[5] == (245, 123, 0)
    assert (loaded.named, len(loaded.classes)) == (6, 19)
    assert any("19" in warning and "6" in warning for warning in loaded.warnings)


def test_keeping_six_of_nineteen_outputs_leaves_no_unnamed_one(tmp_path: Path) -> None:
    meta = {"CLASSES": tuple("abcdef"), "PALETTE": [[i, i, i] for i in range(6)]}
    loaded = load_model(
        checkpoint(tmp_path, meta=meta, num_outputs=19), LoadOptions(keep_classes=6)
    )
    assert loaded.description.num_outputs == loaded.named == 6
    assert not any("19" in warning for warning in loaded.warnings)


def test_a_class_file_replaces_the_names_in_the_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("하나\n둘\n셋\n넷\n", encoding="utf-8")
    loaded = load_model(
        checkpoint(tmp_path, meta={"CLASSES": tuple("abcd")}),
        LoadOptions(classes=tmp_path / "names.txt"),
    )
    assert loaded.classes == ("하나", "둘", "셋", "넷")


@pytest.mark.parametrize(
    ("text", "image_hw", "expected"),
    [
        # keep ratio within (2048, 512): 480x640 -> 512x683, rounded up to multiples of 32
        (config(scale=(2048, 512)), (480, 640), ((512, 704), "letterbox")),
        # keep ratio within (512, 512): 480x640 -> 384x512
        (config(scale=(512, 512)), (480, 640), ((384, 512), "letterbox")),
        # mmcv writes (width, height)
        (config(scale=(320, 256), keep=False), (480, 640), ((256, 320), "stretch")),
        (config(scale=(512, 512)), None, ((512, 512), "letterbox")),
        (
            config(test_cfg="mode='slide', crop_size=(96, 96), stride=(64, 64)"),
            (480, 640),
            ((96, 96), "stretch"),
        ),
        ("", (480, 640), ((512, 512), "stretch")),
    ],
)
def test_the_size_is_the_one_that_the_checkpoint_was_tested_with(
    tmp_path: Path, text: str, image_hw: tuple[int, int] | None, expected: object
) -> None:
    loaded = load_model(checkpoint(tmp_path, meta={"cfg": text} if text else {}))
    assert network_size(loaded, image_hw) == expected


def test_sliding_windows_are_warned_about(tmp_path: Path) -> None:
    text = config(test_cfg="mode='slide', crop_size=(96, 96), stride=(64, 64)")
    loaded = load_model(checkpoint(tmp_path, meta={"cfg": text}))
    assert any("sliding windows" in warning for warning in loaded.warnings)


def as_if_described(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> list[Hints]:
    """Changes what is found about the tensors; returns the hints that were given."""
    given: list[Hints] = []

    def found(tensors: Any, *, model: str | None, hints: Hints) -> Any:
        given.append(hints)
        net, description = model_from_state_dict(tensors, model=model, hints=hints)
        return net, replace(description, **changes)

    monkeypatch.setattr("exporter.load.model_from_state_dict", found)
    return given


def test_what_the_architecture_assumed_becomes_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_if_described(monkeypatch, assumed=("dilations 1, 12, 24, 36 assumed",))
    loaded = load_model(checkpoint(tmp_path, meta={"cfg": config()}))
    assert "dilations 1, 12, 24, 36 assumed" in loaded.warnings


def test_without_a_configuration_the_trained_size_is_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_if_described(monkeypatch, trained_hw=(640, 320))
    assert network_size(load_model(checkpoint(tmp_path)), (480, 640)) == ((640, 320), "stretch")


def test_a_configuration_comes_before_the_trained_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_if_described(monkeypatch, trained_hw=(640, 640))
    text = config(test_cfg="mode='slide', crop_size=(96, 64), stride=(64, 64)")
    loaded = load_model(checkpoint(tmp_path, meta={"cfg": text}))
    assert network_size(loaded, None) == ((96, 64), "stretch")


def test_the_architecture_is_told_what_the_configuration_and_the_user_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = as_if_described(monkeypatch)
    text = (
        "model = dict(backbone=dict(type='ResNetV1c', strides=(1, 2, 1, 1), contract_dilation=True,"
        " dilations=(1, 1, 2, 4)), decode_head=dict(type='ASPPHead', dilations=(1, 3)))"
    )
    load_model(checkpoint(tmp_path, meta={"cfg": text}), LoadOptions(keep_classes=2))
    assert given == [
        Hints(
            strides=(1, 2, 1, 1),
            dilations=(1, 1, 2, 4),
            contract_dilation=True,
            head_dilations=(1, 3),
            keep_outputs=2,
        )
    ]


@pytest.mark.parametrize(
    ("record", "mean", "size"),
    [
        ({"image_mean": [0.5, 0.25, 0.75], "image_std": [0.2] * 3}, (127.5, 63.75, 191.25), None),
        ({"image_mean": ["a", "b", "c"], "image_std": [0.2] * 3}, None, None),
        ({"image_mean": 0.5, "image_std": 0.2}, None, None),
        ({"image_mean": {"r": 1}, "image_std": [[1]]}, None, None),
        ({"size": {"height": 384, "width": 256}}, None, (384, 256)),
        ({"size": {"height": True, "width": -3}}, None, None),
        ({"size": {"shortest_edge": 384}}, None, None),
        ({"size": 384}, None, None),
    ],
)
def test_a_preprocessor_of_hugging_face_says_normalisation_and_size_or_is_left_aside(
    tmp_path: Path,
    record: dict[str, Any],
    mean: tuple[float, ...] | None,
    size: tuple[int, int] | None,
) -> None:
    torch.manual_seed(0)
    torch.save(Segformer(shape_of()).state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text('{"model_type": "segformer"}')
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(record))
    loaded = load_model(tmp_path)
    assert loaded.mean == (mean or (123.675, 116.28, 103.53))
    assert network_size(loaded, None)[0] == (size or (512, 512))


def test_a_segmenter_without_a_configuration_is_told_its_familys_other_normalisation(
    tmp_path: Path,
) -> None:
    net = next(e for e in SEGMENTERS if e.id == "segmenter").make()
    path = write_checkpoint(
        tmp_path / "a.pth", tensors=dict(net.state_dict()), classes=None, config=None
    )
    said = "published Segmenters are trained with 127.5"
    assert any(said in line for line in load_model(path).warnings)
    told = LoadOptions(mean=(127.5,) * 3, std=(127.5,) * 3)
    assert not any(said in line for line in load_model(path, told).warnings)
