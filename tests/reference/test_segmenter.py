"""Segmenter beside mmsegmentation's own, and ViT-AugReg files beside its converter."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import mmseg
import numpy as np
import pytest
import torch
from against_mmsegmentation import AgainstMmsegmentation, Variant
from mmseg.models.backbones.vit import VisionTransformer

from exporter.architectures.vit import resized_positions
from exporter.checkpoint import state_dict_from_checkpoint

# 2e-4 at logits of deviation 0.5: a 1e-6 relative jitter of the image moves them by 1e-5 to 3e-5.
TOLERANCE = 4e-4


def contrast(config: Any) -> None:
    """Random biases outweigh an image divided by 127.5: its logits would vary by 0.06, not 0.4."""
    for preprocessor in (config.data_preprocessor, config.model.data_preprocessor):
        preprocessor.std = [20.0, 20.0, 20.0]


def patch_bias(config: Any) -> None:
    """As every published file has it; mmsegmentation 1.2 builds ViTs without it and drops it."""
    contrast(config)
    config.model.backbone.patch_bias = True


def segmenter(name: str, description: dict[str, Any], **changes: Any) -> Variant:
    letter = name[0]
    side = 640 if letter == "l" else 512
    kind = name.split("-")[1]
    file = {"mask": "mask", "linear": "fcn"}[kind]
    offsets = {"mask": "mask_norm.bias", "linear": "conv_seg.bias"}[kind]
    values: dict[str, Any] = {
        "config": f"segmenter/segmenter_vit-{letter}_{file}_8xb1-160k_ade20k-512x512.py",
        "description": {
            "architecture": "segmenter",
            "variant": name,
            "head": kind,
            "trained_hw": (side, side),
            "in_channels": 3,
            **description,
        },
        "hw": (side, side),
        "other_hw": (250, 190),
        "tolerance": TOLERANCE,
        "class_offsets": f"decode_head.{offsets}",
        "change": patch_bias,
    }
    return Variant(**(values | changes))


class TestSegmenter(AgainstMmsegmentation):
    VARIANTS = (
        segmenter("t-mask", {"head_channels": 192}),
        segmenter("s-mask", {"head_channels": 384}, other_hw=(224, 320), change=contrast),
        segmenter("s-linear", {"head_channels": 384}, other_hw=(161, 97)),
        segmenter("b-mask", {"head_channels": 768}, other_hw=(480, 640), slow=True),
        # Its graph is B's with twice the layers, and takes 8 GB of memory to make.
        segmenter("l-mask", {"head_channels": 1024}, graph=False, slow=True),
    )


@pytest.mark.parametrize("hw", [(24, 24), (16, 12), (32, 40), (7, 61), (64, 16), (32, 32)])
def test_positions_are_resized_as_mmsegmentation_does(hw: tuple[int, int]) -> None:
    theirs = VisionTransformer(
        img_size=(512, 512), embed_dims=32, num_layers=0, num_heads=1, out_indices=()
    )
    pos_embed = torch.randn(1, 1 + 32 * 32, 32, generator=torch.Generator().manual_seed(4))
    zeros = torch.zeros(1, 1 + hw[0] * hw[1], 32)
    want = theirs._pos_embeding(zeros, hw, pos_embed)
    assert torch.equal(resized_positions(pos_embed, (32, 32), hw, "bicubic"), want)


@pytest.fixture(scope="module")
def converter() -> ModuleType:
    file = Path(mmseg.__file__).parent / ".mim/tools/model_converters/vitjax2mmseg.py"
    spec = importlib.util.spec_from_file_location("vitjax2mmseg", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def augreg_arrays(dim: int, heads: int, hidden: int, depth: int) -> dict[str, Any]:
    """Random arrays by the names and shapes of Google's files."""
    rng = np.random.default_rng(5)
    width = dim // heads
    shapes: dict[str, tuple[int, ...]] = {
        "cls": (1, 1, dim),
        "embedding/kernel": (16, 16, 3, dim),
        "embedding/bias": (dim,),
        "Transformer/posembed_input/pos_embedding": (1, 1 + 24 * 24, dim),
        "Transformer/encoder_norm/scale": (dim,),
        "Transformer/encoder_norm/bias": (dim,),
        "head/kernel": (dim, 10),
        "head/bias": (10,),
    }
    for i in range(depth):
        block = f"Transformer/encoderblock_{i}"
        attention = f"{block}/MultiHeadDotProductAttention_1"
        for part in ("query", "key", "value"):
            shapes[f"{attention}/{part}/kernel"] = (dim, heads, width)
            shapes[f"{attention}/{part}/bias"] = (heads, width)
        shapes[f"{attention}/out/kernel"] = (heads, width, dim)
        shapes[f"{attention}/out/bias"] = (dim,)
        for norm in ("LayerNorm_0", "LayerNorm_2"):
            shapes[f"{block}/{norm}/scale"] = shapes[f"{block}/{norm}/bias"] = (dim,)
        shapes[f"{block}/MlpBlock_3/Dense_0/kernel"] = (dim, hidden)
        shapes[f"{block}/MlpBlock_3/Dense_0/bias"] = (hidden,)
        shapes[f"{block}/MlpBlock_3/Dense_1/kernel"] = (hidden, dim)
        shapes[f"{block}/MlpBlock_3/Dense_1/bias"] = (dim,)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def test_augreg_files_become_what_mmsegmentations_converter_makes_of_them(
    converter: ModuleType, tmp_path: Path
) -> None:
    arrays = augreg_arrays(dim=128, heads=2, hidden=96, depth=12)
    np.savez(tmp_path / "vit.npz", **arrays)
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    want = converter.vit_jax_to_torch(tensors, num_layer=12)
    got = state_dict_from_checkpoint(tmp_path / "vit.npz").tensors
    assert got.keys() == want.keys()
    for name, tensor in want.items():
        assert torch.equal(got[name], tensor), name


def test_augreg_weights_load_into_mmsegmentations_vit(tmp_path: Path) -> None:
    np.savez(tmp_path / "vit.npz", **augreg_arrays(dim=128, heads=2, hidden=512, depth=2))
    backbone = VisionTransformer(
        img_size=(384, 384),
        embed_dims=128,
        num_layers=2,
        num_heads=2,
        patch_bias=True,
        final_norm=True,
    )
    backbone.load_state_dict(state_dict_from_checkpoint(tmp_path / "vit.npz").tensors, strict=True)
