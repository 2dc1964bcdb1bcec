"""Mask2Former under Hugging Face's and detectron2's names.

Files are made from mmsegmentation's names with the way back of `mask2former_names`, which
tests/reference/test_mask2former_styles.py compares with what transformers itself writes.
"""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mask2former_names import detectron2_tensors, hugging_face_tensors
from torch import Tensor, nn

from engines.errors import CheckpointError, ConfigError
from exporter.architectures import mask2former_detectron2, mask2former_hf
from exporter.architectures.description import Hints, ModelDescription
from exporter.architectures.other_styles import renamed_tensors, with_merging_reordered
from exporter.detect import model_from_state_dict
from exporter.load import load_model
from tests.architectures.tiny_mask2former import RESNET, SWIN, network, tiny_shape

HW = (64, 96)
BACKBONES = {"resnet": RESNET, "swin": SWIN}
STYLES: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]] = {
    "Hugging Face": hugging_face_tensors,
    "detectron2": lambda named: detectron2_tensors(hugging_face_tensors(named)),
}
SOURCES = {"Hugging Face": mask2former_hf, "detectron2": mask2former_detectron2}


@pytest.fixture(scope="module", params=BACKBONES)
def net(request: pytest.FixtureRequest) -> nn.Module:
    """Swin's has projections between its decoders too, which published files do not have."""
    return network(tiny_shape(BACKBONES[request.param], projections=request.param == "swin"))


@pytest.fixture(params=STYLES)
def style(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def foreign(net: nn.Module, style: str) -> dict[str, Tensor]:
    return STYLES[style](dict(net.state_dict()))


def check_same(got: nn.Module, want: nn.Module) -> None:
    x = torch.randn(1, 3, *HW, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(got(x), want(x))


def test_another_styles_tensors_are_the_same_network(net: nn.Module, style: str) -> None:
    tensors = foreign(net, style)
    assert not {"backbone.conv1.weight", "decode_head.cls_embed.weight"} & tensors.keys()
    ours, description = model_from_state_dict(tensors)
    check_same(ours, net)
    assert (description.name, description.source) == ("mask2former-custom", style)
    assert description.num_outputs == 5
    assert description.parameters == sum(p.numel() for p in net.parameters())


def test_the_difference_of_hugging_faces_processor_is_said(net: nn.Module, style: str) -> None:
    _, description = model_from_state_dict(foreign(net, style))
    said = any("384x384" in sentence for sentence in description.assumed)
    assert said is (style == "Hugging Face")


def test_what_only_training_uses_is_left_out(net: nn.Module, style: str) -> None:
    junk = {
        "criterion.empty_weight": torch.ones(6),
        "pixel_mean": torch.ones(3, 1, 1),
        "pixel_std": torch.ones(3, 1, 1),
        "model.pixel_level_module.encoder.swin.layernorm.weight": torch.ones(7),
        "model.pixel_level_module.encoder.layernorm.bias": torch.ones(7),
        "backbone.layers.0.blocks.0.attn.relative_position_index": torch.ones(9, 9).long(),
    }
    ours = {
        "Hugging Face": ("criterion.", "model."),
        "detectron2": ("criterion.", "pixel_", "back"),
    }
    tensors = foreign(net, style)
    tensors |= {key: tensor for key, tensor in junk.items() if key.startswith(ours[style])}
    check_same(model_from_state_dict(tensors)[0], net)


def test_old_files_of_detectron2_call_the_queries_static(net: nn.Module) -> None:
    tensors = foreign(net, "detectron2")
    tensors["sem_seg_head.predictor.static_query.weight"] = tensors.pop(
        "sem_seg_head.predictor.query_feat.weight"
    )
    check_same(model_from_state_dict(tensors)[0], net)


def test_half_precision_is_loaded_as_float32(net: nn.Module, style: str) -> None:
    halves = {k: v.half() for k, v in foreign(net, style).items() if v.is_floating_point()}
    ours, _ = model_from_state_dict(halves)
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.float32}


def test_a_pickle_of_arrays_is_read(net: nn.Module, tmp_path: Path) -> None:
    arrays = {key: np.asarray(value) for key, value in foreign(net, "detectron2").items()}
    path = tmp_path / "model_final_3c8ec9.pkl"
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "third party"}))
    loaded = load_model(path)
    check_same(loaded.net, net)
    assert loaded.checkpoint.source == "detectron2"
    assert any("heads" in warning for warning in loaded.warnings)  # which no tensor tells


def test_attention_heads_come_from_the_hints(net: nn.Module, style: str) -> None:
    ours, _ = model_from_state_dict(foreign(net, style), hints=Hints(num_heads=4))
    assert ours.shape.pixels.heads == ours.shape.masks.heads == 4
    with pytest.raises(ConfigError, match="7 attention heads"):
        model_from_state_dict(foreign(net, style), hints=Hints(num_heads=7))


# ResNet's stem


def test_deeplabs_stem_of_three_convolutions_is_that_of_mmsegmentation() -> None:
    """ResNet-101c of detectron2: widths 64, 64, 128 where mmsegmentation's V1c has 32, 32, 64."""
    names = {
        f"backbone.stem.conv{i}{end}": torch.ones(())
        for i in (1, 2, 3)
        for end in (".weight", ".norm.weight", ".norm.running_var")
    }
    assert set(mask2former_detectron2.canonical(names)) == {
        "backbone.stem.0.weight", "backbone.stem.1.weight", "backbone.stem.1.running_var",
        "backbone.stem.3.weight", "backbone.stem.4.weight", "backbone.stem.4.running_var",
        "backbone.stem.6.weight", "backbone.stem.7.weight", "backbone.stem.7.running_var",
    }  # fmt: skip


def test_a_plain_stem_is_that_of_torchvision() -> None:
    names = dict.fromkeys(("backbone.stem.conv1.weight", "backbone.stem.conv1.norm.bias"))
    tensors = {name: torch.ones(()) for name in names}
    found = mask2former_detectron2.canonical(tensors)
    assert set(found) == {"backbone.conv1.weight", "backbone.bn1.bias"}


# Patch merging


def test_merging_reordered_gives_what_the_original_order_gave() -> None:
    """The original: four slices of a map side by side; mmsegmentation: unfold, channel first."""
    generator = torch.Generator().manual_seed(0)
    channels, x = 5, torch.randn(2, 5, 6, 8, generator=generator)
    weight = torch.randn(7, 4 * channels, generator=generator)
    scale = torch.randn(4 * channels, generator=generator)
    nhwc = x.permute(0, 2, 3, 1)
    slices = [nhwc[:, i::2, j::2] for i, j in ((0, 0), (1, 0), (0, 1), (1, 1))]
    want = (torch.cat(slices, dim=3) * scale) @ weight.T
    ours = with_merging_reordered(
        {
            "backbone.stages.0.downsample.reduction.weight": weight,
            "backbone.stages.0.downsample.norm.weight": scale,
        }
    )
    new_weight, new_scale = ours.values()
    unfolded = F.unfold(x, 2, stride=2).transpose(1, 2).reshape(2, 3, 4, -1)
    torch.testing.assert_close((unfolded * new_scale) @ new_weight.T, want)


@pytest.mark.parametrize("shape", [(), (0,), (7, 6), (3, 0), (5,)])
def test_merging_of_an_impossible_width_stays_for_the_loading_to_refuse(
    shape: tuple[int, ...],
) -> None:
    name, tensor = "backbone.stages.0.downsample.norm.weight", torch.ones(shape)
    assert with_merging_reordered({name: tensor})[name] is tensor


# Paths of modules


@pytest.mark.parametrize(
    ("path", "ours"),
    [
        ("model.pixel_level_module.encoder.encoder.layers.1.blocks.11.intermediate.dense",
         "backbone.stages.1.blocks.11.ffn.layers.0.0"),
        ("model.pixel_level_module.encoder.swin.encoder.layers.0.blocks.1.attention.q_proj",
         "backbone.stages.0.blocks.1.attn.w_msa.q"),
        ("model.pixel_level_module.encoder.encoder.stages.0.layers.1.layer.2.convolution",
         "backbone.layer1.1.conv3"),
        ("model.pixel_level_module.decoder.encoder.layers.5.fc2",
         "decode_head.pixel_decoder.encoder.layers.5.ffn.layers.1"),
        ("model.transformer_module.decoder.layers.8.self_attn.k_proj",
         "decode_head.transformer_decoder.layers.8.self_attn.k"),
        ("model.transformer_module.decoder.mask_predictor.mask_embedder.2.0",
         "decode_head.mask_embed.4"),
        ("class_predictor", "decode_head.cls_embed"),
    ],
)  # fmt: skip
def test_paths_of_hugging_faces_modules(path: str, ours: str) -> None:
    assert mask2former_hf.module_path(path) == ours


@pytest.mark.parametrize(
    ("path", "ours"),
    [
        ("backbone.layers.2.blocks.17.attn.qkv", "backbone.stages.2.blocks.17.attn.w_msa.qkv"),
        ("backbone.layers.2.downsample.reduction", "backbone.stages.2.downsample.reduction"),
        ("backbone.res5.2.conv3", "backbone.layer4.2.conv3"),
        ("backbone.res5.0.shortcut", "backbone.layer4.0.downsample.0"),
        ("backbone.stem.conv1", "backbone.conv1"),
        ("sem_seg_head.pixel_decoder.transformer.encoder.layers.0.self_attn.value_proj",
         "decode_head.pixel_decoder.encoder.layers.0.self_attn.value_proj"),
        ("sem_seg_head.pixel_decoder.layer_1", "decode_head.pixel_decoder.output_convs.0.conv"),
        ("sem_seg_head.predictor.transformer_cross_attention_layers.3.multihead_attn",
         "decode_head.transformer_decoder.layers.3.cross_attn.attn"),
        ("sem_seg_head.predictor.transformer_ffn_layers.0.linear1",
         "decode_head.transformer_decoder.layers.0.ffn.layers.0.0"),
    ],
)  # fmt: skip
def test_paths_of_detectron2s_modules(path: str, ours: str) -> None:
    assert mask2former_detectron2.module_path(path) == ours


# What does not fit


def test_each_missing_tensor_is_an_error(net: nn.Module, style: str) -> None:
    tensors = foreign(net, style)
    for key in list(tensors)[::31]:
        rest = {k: v for k, v in tensors.items() if k != key}
        with pytest.raises(CheckpointError):
            model_from_state_dict(rest)


@pytest.mark.parametrize("shape", [(), (3,), (1, 1), (2, 2, 2, 2)])
def test_tensors_of_any_shape_are_renamed_and_none_is_lost(
    net: nn.Module, style: str, shape: tuple[int, ...]
) -> None:
    """Where q, k and v no longer have the same shape, they stay apart."""
    tensors = foreign(net, style)
    for start in (0, 1):
        odd = dict.fromkeys(list(tensors)[start::2], torch.ones(shape))
        found = SOURCES[style].canonical({**tensors, **odd})
        assert found.keys() >= {"decode_head.cls_embed.weight", "decode_head.query_feat.weight"}
        counters = sum(key.endswith("num_batches_tracked") for key in net.state_dict())
        assert len(found) >= len(net.state_dict()) - counters


@pytest.mark.parametrize("shape", [(), (0,), (3,), (1, 1), (2, 2, 2, 2), (0, 5, 5, 5)])
def test_a_tensor_of_any_shape_is_an_error_or_a_network(
    net: nn.Module, shape: tuple[int, ...]
) -> None:
    tensors = foreign(net, "detectron2")
    for key in list(tensors)[::43]:
        with contextlib.suppress(CheckpointError, ConfigError):
            found = model_from_state_dict({**tensors, key: torch.ones(shape)})
            assert isinstance(found[1], ModelDescription)


def test_of_two_tensors_for_one_place_the_second_is_left_over(net: nn.Module) -> None:
    tensors = foreign(net, "detectron2")
    query = tensors["sem_seg_head.predictor.query_feat.weight"]
    tensors["sem_seg_head.predictor.static_query.weight"] = query
    with pytest.raises(CheckpointError, match=r"1 left over.*predictor\.static_query\.weight"):
        model_from_state_dict(tensors)


def test_renaming_keeps_both_of_two_with_the_same_name() -> None:
    first, second = torch.zeros(1), torch.ones(1)
    found = renamed_tensors({"a": first, "b": second}, lambda key: "c")
    assert found == {"c": first, "b": second}


def test_a_name_without_a_rule_is_left_over_by_that_name(net: nn.Module, style: str) -> None:
    tensors = foreign(net, style) | {"something.else.weight": torch.ones(1)}
    with pytest.raises(CheckpointError, match=r"1 left over.*something\.else\.weight"):
        model_from_state_dict(tensors)


def test_pem_which_has_the_same_predictor_is_not_taken_for_mask2former() -> None:
    keys = frozenset({"sem_seg_head.predictor.class_embed.weight",
                      "sem_seg_head.pixel_decoder.csm.0.mlp.0.mlp.0.weight"})  # fmt: skip
    assert not mask2former_detectron2.recognises(keys)
