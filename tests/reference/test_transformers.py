"""SegFormer against Hugging Face transformers, in its own file formats and under NVlabs' names."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from random_models import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    check_logits,
    class_shares,
    normalised,
    quarter_in_float64,
    random_images,
    randomise,
    transformers_logits,
    transformers_model,
)
from safetensors.torch import load_file
from torch import Tensor, nn

from exporter.load import LoadedModel, load_model
from exporter.request import LoadOptions
from exporter.rewrites.rewritten import rewritten_for_export

# Means and deviations for five channels, since nothing but ImageNet's has a default.
MEAN_5, STD_5 = (100.0, 107.0, 114.0, 121.0, 128.0), (50.0, 53.0, 56.0, 59.0, 62.0)


@dataclass(frozen=True)
class Spec:
    variant: str
    hw: tuple[int, int]
    channels: int
    classes: int
    head_channels: int

    def __str__(self) -> str:
        h, w = self.hw
        return f"{self.variant}-{h}x{w}-{self.channels}ch-{self.classes}cls-{self.head_channels}"


SPECS = [
    Spec("b0", (256, 256), 3, 150, 256),
    Spec("b0", (250, 190), 5, 6, 256),
    Spec("b2", (224, 320), 3, 19, 768),
]


@dataclass(frozen=True)
class Original:
    """`x` is one normalised image, `model` transformers' own, `folder` what it saved."""

    spec: Spec
    x: Tensor
    model: Any
    folder: Path

    def load(self, path: Path) -> LoadedModel:
        if self.spec.channels == 3:
            return load_model(path)
        return load_model(path, LoadOptions(mean=MEAN_5, std=STD_5))


@pytest.fixture(scope="module", params=SPECS, ids=str)
def original(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Original:
    spec: Spec = request.param
    images = random_images(1, spec.hw, channels=spec.channels, seed=5)
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if spec.channels == 3 else (MEAN_5, STD_5)
    x = normalised(images, mean, std)
    model = transformers_model(
        spec.variant,
        channels=spec.channels,
        classes=spec.classes,
        head_channels=spec.head_channels,
    )
    randomise(model, model.decode_head.classifier, lambda: transformers_logits(model, x), seed=6)
    folder = tmp_path_factory.mktemp("transformers") / "saved"
    model.save_pretrained(folder)
    return Original(spec, x, model, folder)


def our_logits(net: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = net(x)
    return logits


def max_abs(difference: Tensor) -> float:
    return float(difference.abs().max())


def check_against(original: Original, ours: LoadedModel) -> None:
    """Float32 within the tolerance; float64, where an epsilon shows, to the last digits."""
    spec = original.spec
    worst, agreement = check_logits(
        our_logits(ours.net, original.x), transformers_logits(original.model, original.x)
    )
    x, net = quarter_in_float64(original.x), ours.net.double()
    want = transformers_logits(original.model.double(), x)
    original.model.float()  # exact, since the numbers came from float32
    plain = our_logits(net, x)
    rewritten = our_logits(rewritten_for_export(net), x)
    difference, of_rewriting = max_abs(plain - want), max_abs(rewritten - plain)
    print(
        f"\n{spec}: {worst:.1e} sigma, {agreement:.4f} %, float64 {difference:.1e}, "
        f"rewriting {of_rewriting:.1e}"
    )
    assert difference <= 1e-10
    assert of_rewriting <= 1e-10


def check_description(spec: Spec, ours: LoadedModel, source: str) -> None:
    found = ours.description
    assert found.name == f"segformer-{spec.variant}"
    assert found.head == "linear"
    assert found.head_channels == spec.head_channels
    assert found.in_channels == spec.channels
    assert found.num_outputs == spec.classes
    assert found.source == source


def test_random_weights_give_every_class_a_share_of_the_pixels(original: Original) -> None:
    labels = transformers_logits(original.model, original.x).argmax(1)
    shares = class_shares(labels, original.spec.classes) * original.spec.classes
    assert shares.min() > 0.2
    assert shares.max() < 5.0


def test_folder_with_safetensors_gives_transformers_logits(original: Original) -> None:
    names = load_file(original.folder / "model.safetensors").keys()
    assert "segformer.encoder.block.0.0.attention.self.query.weight" in names
    ours = original.load(original.folder)
    check_description(original.spec, ours, "Hugging Face")
    assert ours.description.parameters == original.model.num_parameters()
    check_against(original, ours)


def test_folder_with_pytorch_model_bin_gives_transformers_logits(
    original: Original, tmp_path: Path
) -> None:
    shutil.copy(original.folder / "config.json", tmp_path)
    tensors = load_file(original.folder / "model.safetensors")
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    ours = original.load(tmp_path)
    check_description(original.spec, ours, "Hugging Face")
    check_against(original, ours)


def test_nvlabs_names_give_the_logits_of_transformers_with_nvlabs_epsilons(
    original: Original, tmp_path: Path
) -> None:
    tensors = nvlabs_from_transformers(load_file(original.folder / "model.safetensors"))
    classes, width = original.spec.classes, original.spec.head_channels
    # NVlabs' head never runs the classifier that it inherits; its files have it all the same.
    tensors["decode_head.conv_seg.weight"] = torch.randn(classes, 128, 1, 1)
    tensors["decode_head.conv_seg.bias"] = torch.randn(classes)
    torch.save({"meta": {}, "state_dict": tensors}, tmp_path / "nvlabs.pth")
    ours = original.load(tmp_path / "nvlabs.pth")
    check_description(original.spec, ours, "NVlabs")
    assert ours.description.head_channels == width

    x = quarter_in_float64(original.x)
    unpatched = transformers_logits(original.model.double(), x)
    assert max_abs(our_logits(ours.net.double(), x) - unpatched) > 1e-7
    original.model.float()
    ours.net.float()

    epsilons = {m: m.eps for m in original.model.modules() if isinstance(m, nn.LayerNorm)}
    try:
        set_nvlabs_epsilons(original.model)
        check_against(original, ours)
    finally:
        for norm, eps in epsilons.items():
            norm.eps = eps


def set_nvlabs_epsilons(model: nn.Module) -> None:
    """1e-6 in the blocks and after each stage; 1e-5 in patch embeddings and reduced keys."""
    counts = {1e-5: 0, 1e-6: 0}
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm):
            early = "patch_embeddings" in name or "sequence_reduction" in name
            module.eps = 1e-5 if early else 1e-6
            counts[module.eps] += 1
    assert counts[1e-5] > 4
    assert counts[1e-6] > 4


# Written from NVlabs' module definitions: stages and blocks are counted from 1 and 0, the keys and
# values come from one linear layer, the head's layers are named after the stages.
NVLABS_BLOCK_NAMES = {
    "layer_norm_1": "norm1",
    "layer_norm_2": "norm2",
    "attention.self.sr": "attn.sr",
    "attention.self.layer_norm": "attn.norm",
    "attention.self.query": "attn.q",
    "attention.output.dense": "attn.proj",
    "mlp.dense1": "mlp.fc1",
    "mlp.dense2": "mlp.fc2",
    "mlp.dwconv.dwconv": "mlp.dwconv.dwconv",
}
NVLABS_HEAD_NAMES = {
    "linear_fuse": "linear_fuse.conv",
    "batch_norm": "linear_fuse.bn",
    "classifier": "linear_pred",
}


def nvlabs_from_transformers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict that NVlabs' code would have saved for these weights."""
    renamed: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        name, kind = key.rsplit(".", 1)
        if name.endswith("attention.self.value"):
            continue  # joined below, where its key is met
        if name.endswith("attention.self.key"):
            value = tensors[f"{name.removesuffix('key')}value.{kind}"]
            name = f"{name.removesuffix('attention.self.key')}attn.kv"
            tensor = torch.cat([tensor, value])
        renamed[f"{_nvlabs_name(name)}.{kind}"] = tensor
    return renamed


def _nvlabs_name(name: str) -> str:
    if block := re.fullmatch(r"segformer\.encoder\.block\.(\d)\.(\d+)\.(.+)", name):
        stage, index, rest = block.groups()
        return f"backbone.block{int(stage) + 1}.{index}.{NVLABS_BLOCK_NAMES.get(rest, rest)}"
    if embed := re.fullmatch(r"segformer\.encoder\.patch_embeddings\.(\d)\.(.+)", name):
        rest = {"proj": "proj", "layer_norm": "norm"}[embed[2]]
        return f"backbone.patch_embed{int(embed[1]) + 1}.{rest}"
    if norm := re.fullmatch(r"segformer\.encoder\.layer_norm\.(\d)", name):
        return f"backbone.norm{int(norm[1]) + 1}"
    if linear := re.fullmatch(r"decode_head\.linear_c\.(\d)\.proj", name):
        return f"decode_head.linear_c{int(linear[1]) + 1}.proj"
    return f"decode_head.{NVLABS_HEAD_NAMES[name.removeprefix('decode_head.')]}"
