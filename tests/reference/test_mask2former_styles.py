"""Mask2Former under Hugging Face's and detectron2's names, against transformers' own model.

Truth for Hugging Face: transformers' Mask2FormerForUniversalSegmentation with random weights, saved
by itself. Truth for detectron2's names: see tests/mask2former_names.py.
"""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mask2former_names import detectron2_tensors, hugging_face_tensors
from random_models import check_logits, class_shares, mmsegmentation_model
from torch import Tensor, nn

from exporter.architectures import mask2former_detectron2, mask2former_hf
from exporter.detect import model_from_state_dict
from exporter.load import LoadedModel, load_model

CLASSES = 5
WINDOW = 4
HW = (192, 160)
# Per standard deviation; the sum over queries has been through 4 softmaxes and 4 masks by then.
TOLERANCE = 1e-3


def swin_backbone() -> Any:
    from transformers import SwinConfig

    return SwinConfig(
        embed_dim=16, depths=[2, 2, 4, 2], num_heads=[1, 2, 4, 8], window_size=WINDOW,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip


def resnet_backbone() -> Any:
    from transformers import ResNetConfig

    return ResNetConfig(
        embedding_size=16, hidden_sizes=[32, 64, 128, 256], depths=[1, 2, 1, 2],
        layer_type="bottleneck", out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip


SWIN_NORM = "model.pixel_level_module.encoder.swin.layernorm."
# With which several classes win.
SEEDS = {"swin": 3, "resnet": 5}
BACKBONES: dict[str, Callable[[], Any]] = {"swin": swin_backbone, "resnet": resnet_backbone}


def their_model(backbone: str, heads: int = 8) -> Any:
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

    names = {i: f"class {i}" for i in range(CLASSES)}
    config = Mask2FormerConfig(
        backbone_config=BACKBONES[backbone](), id2label=names, num_queries=12,
        label2id={name: i for i, name in names.items()}, num_attention_heads=heads,
        hidden_dim=64, feature_size=64, mask_feature_size=64,
        encoder_layers=2, decoder_layers=5, encoder_feedforward_dim=96, dim_feedforward=80,
    )  # fmt: skip
    model = Mask2FormerForUniversalSegmentation(config).eval()
    randomise(model, seed=SEEDS[backbone])
    keep_queries_apart(model)
    return model


def randomise(model: nn.Module, *, seed: int) -> None:
    """Weights of the size that keeps the size of what goes through them; nothing 0, nothing 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            owner = model.get_submodule(name.rpartition(".")[0])
            noise = torch.randn(parameter.shape, generator=generator)
            if isinstance(owner, nn.LayerNorm | nn.GroupNorm | nn.BatchNorm2d):
                noise = 0.2 * noise + (1.0 if name.endswith("weight") else 0.0)
            elif parameter.dim() == 1:
                noise = 0.3 * noise
            elif not isinstance(owner, nn.Embedding):
                noise = noise / math.sqrt(parameter[0].numel())
            parameter.copy_(noise)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                shape, mean, var = (
                    module.running_mean.shape,
                    module.running_mean,
                    module.running_var,
                )
                mean.copy_(0.2 * torch.randn(shape, generator=generator))
                var.copy_(0.7 + torch.rand(shape, generator=generator))


def keep_queries_apart(model: Any) -> None:
    """Random layers make all queries alike, and one class wins everywhere."""
    with torch.no_grad():
        for layer in model.model.transformer_module.decoder.layers:
            for linear in (layer.cross_attn.out_proj, layer.self_attn.out_proj, layer.fc2):
                linear.weight *= 0.3
                linear.bias *= 0.3
            for name in ("cross_attn_layer_norm", "self_attn_layer_norm", "final_layer_norm"):
                layer.get_submodule(name).bias *= 0.3
        model.class_predictor.weight *= 4
        model.class_predictor.bias.zero_()


@pytest.fixture(scope="module", params=BACKBONES)
def theirs(request: pytest.FixtureRequest) -> Any:
    return their_model(request.param)


@pytest.fixture
def folder(theirs: Any, tmp_path: Path) -> Path:
    theirs.save_pretrained(tmp_path)
    record = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.25, 0.3],
              "size": {"height": HW[0], "width": HW[1]}}  # fmt: skip
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(record))
    return tmp_path


def image(hw: tuple[int, int] = HW) -> Tensor:
    return torch.randn(1, 3, *hw, generator=torch.Generator().manual_seed(5))


def queries_of(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What our network gives, and the scores of classes and of masks that it is made of."""
    seen: list[tuple[Tensor, Tensor]] = []
    hook = net.get_submodule("decode_head").register_forward_hook(
        lambda module, inputs, outputs: seen.append(outputs)
    )
    with torch.no_grad():
        logits = net(x)
    hook.remove()
    return logits, *seen[0]


def assert_close(got: Tensor, want: Tensor) -> None:
    assert got.shape == want.shape
    assert float((got - want).abs().max() / want.std()) < TOLERANCE


def check(theirs: Any, ours: LoadedModel, hw: tuple[int, int] = HW) -> None:
    x = image(hw)
    logits, classes, masks = queries_of(ours.net, x)
    with torch.no_grad():
        want = theirs(x)
    assert_close(classes, want.class_queries_logits)
    assert_close(masks, want.masks_queries_logits)
    upright = F.interpolate(want.masks_queries_logits, hw, mode="bilinear", align_corners=False)
    shares = want.class_queries_logits.softmax(2)[..., :-1]
    summed = torch.einsum("nqc,nqhw->nchw", shares, upright.sigmoid())
    shares_of_labels = class_shares(summed.argmax(1), CLASSES)
    assert (shares_of_labels > 0.05).sum() > 1, "one class wins nearly everywhere"
    check_logits(logits, summed)


def check_description(theirs: Any, ours: LoadedModel, source: str) -> None:
    trained = theirs.state_dict()
    unused = ("criterion.", "model.pixel_level_module.encoder.swin.layernorm.")
    buffers = (".running_mean", ".running_var", ".num_batches_tracked")
    counted = [v.numel() for k, v in trained.items() if not k.startswith(unused)
               and not k.endswith(buffers)]  # fmt: skip
    assert ours.description.parameters == sum(counted)
    assert ours.description.name == "mask2former-custom"
    assert ours.description.source == source
    assert ours.description.num_outputs == CLASSES


def test_a_folder_of_hugging_face_gives_transformers_results(theirs: Any, folder: Path) -> None:
    ours = load_model(folder)
    check(theirs, ours)
    check_description(theirs, ours, "Hugging Face")
    assert ours.classes == tuple(f"class {i}" for i in range(CLASSES))
    assert ours.mean == pytest.approx((127.5, 102.0, 76.5))
    assert any("384x384" in warning for warning in ours.warnings)
    assert not any("heads" in warning for warning in ours.warnings)  # config.json says them


@pytest.mark.parametrize("hw", [(224, 256), (96, 128)])
def test_other_sizes_give_the_same_too(theirs: Any, folder: Path, hw: tuple[int, int]) -> None:
    """In the smaller one the coarsest map is smaller than a window."""
    check(theirs, load_model(folder), hw)


def test_config_json_says_how_many_heads_the_attention_has(tmp_path: Path) -> None:
    theirs = their_model("swin", heads=4)
    theirs.save_pretrained(tmp_path)
    check(theirs, load_model(tmp_path))


def test_a_state_dict_under_transformers_inner_names_gives_the_same(
    theirs: Any, tmp_path: Path
) -> None:
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps(theirs.config.to_dict()))
    check(theirs, load_model(tmp_path))


def test_a_file_of_older_transformers_with_index_tables_gives_the_same(
    theirs: Any, folder: Path
) -> None:
    """Before 5.0 files had relative_position_index, and no norm of Swin's own classifier."""
    tensors = {k: v for k, v in saved(folder).items() if ".swin.layernorm." not in k}
    for key in list(tensors):
        if key.endswith(".relative_position_bias_table"):
            index = key.replace("_bias_table", "_index")
            tensors[index] = torch.zeros(WINDOW**2, WINDOW**2, dtype=torch.long)
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    check(theirs, load_model(folder))


def test_the_way_back_gives_the_saved_tensors_again(folder: Path) -> None:
    """What tests/test_mask2former_styles.py, which has no transformers, stands on."""
    tensors = saved(folder)
    back = hugging_face_tensors(mask2former_hf.canonical(tensors))
    left = {key for key in tensors if key not in back}
    unused = {"criterion.empty_weight", f"{SWIN_NORM}weight", f"{SWIN_NORM}bias"}
    assert left <= unused
    assert all(torch.equal(tensors[key], tensor) for key, tensor in back.items())


def saved(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


# detectron2


@pytest.fixture
def original(folder: Path) -> dict[str, Tensor]:
    """detectron2's tensors of the same model, with nothing of transformers' left."""
    tensors = detectron2_tensors(
        {k: v for k, v in saved(folder).items() if ".swin.layernorm." not in k}
    )
    left = [key for key in tensors if not key.startswith(("backbone.", "sem_seg_head."))]
    assert left == ["criterion.empty_weight"]
    return tensors


def test_a_pickle_of_detectron2_gives_transformers_results(
    theirs: Any, original: dict[str, Tensor], tmp_path: Path
) -> None:
    arrays = {key: np.asarray(tensor) for key, tensor in original.items()}
    path = tmp_path / "d2" / "model_final.pkl"
    path.parent.mkdir()
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "third party"}))
    ours = load_model(path)
    check(theirs, ours)
    check_description(theirs, ours, "detectron2")


def test_a_training_file_of_detectron2_gives_the_same(
    theirs: Any, original: dict[str, Tensor], tmp_path: Path
) -> None:
    original = {k.replace("query_feat", "static_query"): v for k, v in original.items()}
    path = tmp_path / "d2" / "model_0001999.pth"
    path.parent.mkdir()
    torch.save({"model": original, "optimizer": {"state": {}}, "iteration": 1999}, path)
    ours = load_model(path)
    check(theirs, ours)
    check_description(theirs, ours, "detectron2")


# The published sizes


PUBLISHED_SWINS = {
    "swin-t": (96, [2, 2, 6, 2], [3, 6, 12, 24], 7),
    "swin-s": (96, [2, 2, 18, 2], [3, 6, 12, 24], 7),
    "swin-b": (128, [2, 2, 18, 2], [4, 8, 16, 32], 12),
    "swin-l": (192, [2, 2, 18, 2], [6, 12, 24, 48], 12),
}
PUBLISHED_RESNETS = {"r50": [3, 4, 6, 3], "r101": [3, 4, 23, 3]}
VARIANTS = (*PUBLISHED_SWINS, *PUBLISHED_RESNETS)


def published_tensors(variant: str) -> dict[str, Tensor]:
    """transformers' own names and shapes for 150 classes, without memory."""
    from transformers import (
        Mask2FormerConfig,
        Mask2FormerForUniversalSegmentation,
        ResNetConfig,
        SwinConfig,
    )

    stages = ["stage1", "stage2", "stage3", "stage4"]
    if variant in PUBLISHED_SWINS:
        dim, depths, heads, window = PUBLISHED_SWINS[variant]
        backbone: Any = SwinConfig(
            embed_dim=dim, depths=depths, num_heads=heads, window_size=window, out_features=stages
        )
    else:
        backbone = ResNetConfig(depths=PUBLISHED_RESNETS[variant], out_features=stages)
    config = Mask2FormerConfig(backbone_config=backbone, num_labels=150)
    with torch.device("meta"):
        return dict(Mask2FormerForUniversalSegmentation(config).state_dict())


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_published_size_is_found_from_the_tensors_alone(variant: str) -> None:
    tensors = published_tensors(variant)
    _, description = model_from_state_dict(tensors)
    assert description.name == f"mask2former-{variant}"
    assert (description.num_outputs, description.in_channels) == (150, 3)
    assert description.source == "Hugging Face"


@pytest.mark.parametrize(
    ("variant", "config"),
    [
        ("swin-t", "mask2former_swin-t_8xb2-160k_ade20k-512x512.py"),
        ("r50", "mask2former_r50_8xb2-160k_ade20k-512x512.py"),
    ],
)
def test_names_and_shapes_become_exactly_mmsegmentations(variant: str, config: str) -> None:
    """From Hugging Face's names and, through them, from detectron2's."""
    import mmseg
    from mmengine.config import Config

    path = Path(mmseg.__file__).parent / ".mim" / "configs" / "mask2former" / config
    settings = Config.fromfile(path)
    settings.model.backbone.init_cfg = None
    wanted = shapes_of(mmsegmentation_model(settings).state_dict())
    tensors = published_tensors(variant)
    assert shapes_of(mask2former_hf.canonical(tensors)) == wanted
    original = detectron2_tensors(in_files(tensors))
    assert shapes_of(mask2former_detectron2.canonical(original)) == wanted


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Without the tables and counters that nothing is computed with."""
    unused = ("relative_position_index", "num_batches_tracked")
    return {k: tuple(v.shape) for k, v in tensors.items() if not k.endswith(unused)}


def in_files(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers 5's inner names as its own files have them, without the unused norm."""
    renamed = {}
    for key, tensor in tensors.items():
        if ".swin." in key:
            for inner, saved in (
                ("q_proj", "self.query"), ("k_proj", "self.key"), ("v_proj", "self.value"),
                ("o_proj", "output.dense"), ("mlp.fc1", "intermediate.dense"),
                ("mlp.fc2", "output.dense"), ("relative_position_bias.", "self."),
                (".swin.", "."),
            ):  # fmt: skip
                key = key.replace(inner, saved)
        if ".encoder.layernorm." not in key:
            renamed[key] = tensor
    return renamed
