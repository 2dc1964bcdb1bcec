"""Mask2Former's tensors from mmsegmentation's names to those of transformers, and to detectron2's.

The way back from what `exporter.architectures.mask2former_hf` and `mask2former_detectron2` do, each
step written on its own. tests/reference/test_mask2former_styles.py shows that the first one gives
what transformers itself saves. The second is the correspondence that transformers' own converters
state: convert_mask2former_original_pytorch_checkpoint_to_pytorch.py (Swin and everything behind the
backbone) and convert_maskformer_resnet_to_pytorch.py (ResNet).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def hugging_face_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """mmsegmentation's as transformers saves them."""
    found: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        owner, _, kind = key.rpartition(".")
        if owner.endswith(".w_msa.qkv"):
            owner = _hugging_face_name(owner.removesuffix(".qkv"))
            names = [f"{owner}.{part}.{kind}" for part in ("query", "key", "value")]
            found |= dict(zip(names, tensor.chunk(3), strict=True))
        elif ".self_attn.attn.in_proj_" in key:
            owner, _, kind = key.partition(".attn.in_proj_")
            names = [f"{_hugging_face_name(owner)}.{part}_proj.{kind}" for part in "qkv"]
            found |= dict(zip(names, tensor.chunk(3), strict=True))
        else:
            merging = re.match(r"backbone\.stages\.\d\.downsample\.", key)
            found[_hugging_face_name(key)] = pixel_by_pixel(tensor) if merging else tensor
    return found


def pixel_by_pixel(tensor: Tensor) -> Tensor:
    """Patch merging's inputs, C x (upper left, upper right, lower left, lower right), as the
    original Swin Transformer takes them: (upper left, lower left, upper right, lower right) x C."""
    columns = tensor.unflatten(-1, (-1, 2, 2))  # channel, row, column
    return columns.movedim(-3, -1).transpose(-3, -2).flatten(-3)


def _hugging_face_name(key: str) -> str:
    for ours, theirs in TRANSFORMERS_OF_MMSEGMENTATION:
        key, count = re.subn(f"^{ours}", theirs, key)
        if count:
            return key
    raise AssertionError(key)


ENCODER, PIXELS = "model.pixel_level_module.encoder.", "model.pixel_level_module.decoder."
MASKS = "model.transformer_module."
SWIN_BLOCK = rf"{ENCODER}encoder.layers.\1.blocks.\2."
BLOCK = r"backbone\.stages\.(\d)\.blocks\.(\d+)\."
RESIDUAL = r"backbone\.layer(\d)\.(\d+)\."
HEAD_PIXELS, HEAD_MASKS = r"decode_head\.pixel_decoder\.", r"decode_head\.transformer_decoder\."


def _stage(match: re.Match[str]) -> str:
    return f"{ENCODER}encoder.stages.{int(match[1]) - 1}.layers.{match[2]}."


TRANSFORMERS_OF_MMSEGMENTATION: tuple[tuple[str, Any], ...] = (
    (r"backbone\.patch_embed\.projection", f"{ENCODER}embeddings.patch_embeddings.projection"),
    (r"backbone\.patch_embed\.norm", f"{ENCODER}embeddings.norm"),
    (r"backbone\.norm(\d)", lambda m: f"{ENCODER}hidden_states_norms.stage{int(m[1]) + 1}"),
    (r"backbone\.stages\.(\d)\.downsample", rf"{ENCODER}encoder.layers.\1.downsample"),
    (rf"{BLOCK}norm1", f"{SWIN_BLOCK}layernorm_before"),
    (rf"{BLOCK}norm2", f"{SWIN_BLOCK}layernorm_after"),
    (rf"{BLOCK}attn\.w_msa\.proj", f"{SWIN_BLOCK}attention.output.dense"),
    (rf"{BLOCK}attn\.w_msa", f"{SWIN_BLOCK}attention.self"),
    (rf"{BLOCK}ffn\.layers\.0\.0", f"{SWIN_BLOCK}intermediate.dense"),
    (rf"{BLOCK}ffn\.layers\.1", f"{SWIN_BLOCK}output.dense"),
    (r"backbone\.conv1", f"{ENCODER}embedder.embedder.convolution"),
    (r"backbone\.bn1", f"{ENCODER}embedder.embedder.normalization"),
    (rf"{RESIDUAL}conv(\d)", lambda m: f"{_stage(m)}layer.{int(m[3]) - 1}.convolution"),
    (rf"{RESIDUAL}bn(\d)", lambda m: f"{_stage(m)}layer.{int(m[3]) - 1}.normalization"),
    (rf"{RESIDUAL}downsample\.0", lambda m: f"{_stage(m)}shortcut.convolution"),
    (rf"{RESIDUAL}downsample\.1", lambda m: f"{_stage(m)}shortcut.normalization"),
    (rf"{HEAD_PIXELS}input_convs\.(\d)\.conv", rf"{PIXELS}input_projections.\1.0"),
    (rf"{HEAD_PIXELS}input_convs\.(\d)\.gn", rf"{PIXELS}input_projections.\1.1"),
    (rf"{HEAD_PIXELS}lateral_convs\.0\.conv", f"{PIXELS}adapter_1.0"),
    (rf"{HEAD_PIXELS}lateral_convs\.0\.gn", f"{PIXELS}adapter_1.1"),
    (rf"{HEAD_PIXELS}output_convs\.0\.conv", f"{PIXELS}layer_1.0"),
    (rf"{HEAD_PIXELS}output_convs\.0\.gn", f"{PIXELS}layer_1.1"),
    (rf"{HEAD_PIXELS}mask_feature", f"{PIXELS}mask_projection"),
    (rf"{HEAD_PIXELS}level_encoding\.weight", f"{PIXELS}level_embed"),
    *(
        (rf"{HEAD_PIXELS}encoder\.layers\.(\d)\.{ours}", rf"{PIXELS}encoder.layers.\1.{theirs}")
        for ours, theirs in (
            (r"norms\.0", "self_attn_layer_norm"), (r"norms\.1", "final_layer_norm"),
            (r"ffn\.layers\.0\.0", "fc1"), (r"ffn\.layers\.1", "fc2"), ("self_attn", "self_attn"),
        )
    ),
    *(
        (rf"{HEAD_MASKS}layers\.(\d)\.{ours}", rf"{MASKS}decoder.layers.\1.{theirs}")
        for ours, theirs in (
            (r"norms\.0", "cross_attn_layer_norm"), (r"norms\.1", "self_attn_layer_norm"),
            (r"norms\.2", "final_layer_norm"), (r"ffn\.layers\.0\.0", "fc1"),
            (r"ffn\.layers\.1", "fc2"), (r"cross_attn\.attn", "cross_attn"),
            (r"self_attn\.attn", "self_attn"), ("self_attn", "self_attn"),
        )
    ),
    (rf"{HEAD_MASKS}post_norm", f"{MASKS}decoder.layernorm"),
    (
        r"decode_head\.mask_embed\.(\d)",
        lambda m: f"{MASKS}decoder.mask_predictor.mask_embedder.{int(m[1]) // 2}.0",
    ),
    (r"decode_head\.decoder_input_projs", f"{MASKS}input_projections"),
    (r"decode_head\.query_embed", f"{MASKS}queries_embedder"),
    (r"decode_head\.query_feat", f"{MASKS}queries_features"),
    (r"decode_head\.level_embed", f"{MASKS}level_embed"),
    (r"decode_head\.cls_embed", "class_predictor"),
)  # fmt: skip


def detectron2_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of a transformers file under the names that its converters read."""
    joined: dict[str, dict[str, Tensor]] = {}
    found: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        split = re.match(r"(.*?)\.(self\.)?(query|key|value|[qkv]_proj)\.(weight|bias)$", key)
        if key.startswith("criterion.") or split is None:
            found[_detectron2_name(key)] = tensor
        else:
            name = _detectron2_name(f"{split[1]}.in.{split[4]}")
            joined.setdefault(name, {})[split[3][0]] = tensor
    found |= {name: torch.cat([parts[p] for p in "qkv"]) for name, parts in joined.items()}
    return {k: v for k, v in found.items() if not k.endswith("num_batches_tracked")}


def _detectron2_name(key: str) -> str:
    for theirs, original in DETECTRON2_OF_TRANSFORMERS:
        key, count = re.subn(f"^{theirs}", original, key)
        if count:
            return key
    return key


OF_ENCODER, OF_PIXELS, OF_MASKS = (re.escape(name) for name in (ENCODER, PIXELS, MASKS))
OF_SWIN_BLOCK = rf"{OF_ENCODER}encoder\.layers\.(\d)\.blocks\.(\d+)\."
OF_RESNET_BLOCK = rf"{OF_ENCODER}encoder\.stages\.(\d)\.layers\.(\d+)\."
PREDICTOR = "sem_seg_head.predictor."


def _res(match: re.Match[str]) -> str:
    return f"backbone.res{int(match[1]) + 2}.{match[2]}."


# transformers -> detectron2
DETECTRON2_OF_TRANSFORMERS: tuple[tuple[str, Any], ...] = (
    (rf"{OF_ENCODER}embeddings\.patch_embeddings\.projection", "backbone.patch_embed.proj"),
    (rf"{OF_ENCODER}embeddings\.norm", "backbone.patch_embed.norm"),
    (rf"{OF_SWIN_BLOCK}layernorm_before", r"backbone.layers.\1.blocks.\2.norm1"),
    (rf"{OF_SWIN_BLOCK}layernorm_after", r"backbone.layers.\1.blocks.\2.norm2"),
    (rf"{OF_SWIN_BLOCK}attention\.in", r"backbone.layers.\1.blocks.\2.attn.qkv"),
    (rf"{OF_SWIN_BLOCK}attention\.self\.rel", r"backbone.layers.\1.blocks.\2.attn.rel"),
    (rf"{OF_SWIN_BLOCK}attention\.output\.dense", r"backbone.layers.\1.blocks.\2.attn.proj"),
    (rf"{OF_SWIN_BLOCK}intermediate\.dense", r"backbone.layers.\1.blocks.\2.mlp.fc1"),
    (rf"{OF_SWIN_BLOCK}output\.dense", r"backbone.layers.\1.blocks.\2.mlp.fc2"),
    (rf"{OF_ENCODER}encoder\.layers\.(\d)\.downsample", r"backbone.layers.\1.downsample"),
    (
        rf"{OF_ENCODER}hidden_states_norms\.stage(\d)",
        lambda match: f"backbone.norm{int(match[1]) - 1}",
    ),
    (rf"{OF_ENCODER}embedder\.embedder\.convolution", "backbone.stem.conv1"),
    (rf"{OF_ENCODER}embedder\.embedder\.normalization", "backbone.stem.conv1.norm"),
    (
        rf"{OF_RESNET_BLOCK}layer\.(\d)\.convolution",
        lambda match: f"{_res(match)}conv{int(match[3]) + 1}",
    ),
    (
        rf"{OF_RESNET_BLOCK}layer\.(\d)\.normalization",
        lambda match: f"{_res(match)}conv{int(match[3]) + 1}.norm",
    ),
    (rf"{OF_RESNET_BLOCK}shortcut\.convolution", lambda match: f"{_res(match)}shortcut"),
    (rf"{OF_RESNET_BLOCK}shortcut\.normalization", lambda match: f"{_res(match)}shortcut.norm"),
    (rf"{OF_PIXELS}(adapter|layer)_1\.0", r"sem_seg_head.pixel_decoder.\1_1"),
    (rf"{OF_PIXELS}(adapter|layer)_1\.1", r"sem_seg_head.pixel_decoder.\1_1.norm"),
    (rf"{OF_PIXELS}input_projections", "sem_seg_head.pixel_decoder.input_proj"),
    (rf"{OF_PIXELS}level_embed", "sem_seg_head.pixel_decoder.transformer.level_embed"),
    (rf"{OF_PIXELS}mask_projection", "sem_seg_head.pixel_decoder.mask_features"),
    *(
        (
            rf"{OF_PIXELS}encoder\.layers\.(\d)\.{new}",
            rf"sem_seg_head.pixel_decoder.transformer.encoder.layers.\1.{old}",
        )
        for new, old in (
            ("fc1", "linear1"), ("fc2", "linear2"), ("self_attn_layer_norm", "norm1"),
            ("final_layer_norm", "norm2"), (r"self_attn\.", "self_attn."),
        )
    ),
    *(
        (rf"{OF_MASKS}decoder\.layers\.(\d)\.{new}", rf"{PREDICTOR}transformer_{old}")
        for new, old in (
            (r"self_attn\.in\.", r"self_attention_layers.\1.self_attn.in_proj_"),
            (r"self_attn\.out_proj", r"self_attention_layers.\1.self_attn.out_proj"),
            ("self_attn_layer_norm", r"self_attention_layers.\1.norm"),
            (r"cross_attn\.", r"cross_attention_layers.\1.multihead_attn."),
            ("cross_attn_layer_norm", r"cross_attention_layers.\1.norm"),
            ("fc1", r"ffn_layers.\1.linear1"),
            ("fc2", r"ffn_layers.\1.linear2"),
            ("final_layer_norm", r"ffn_layers.\1.norm"),
        )
    ),
    (rf"{OF_MASKS}decoder\.layernorm", f"{PREDICTOR}decoder_norm"),
    (
        rf"{OF_MASKS}decoder\.mask_predictor\.mask_embedder\.(\d)\.0",
        rf"{PREDICTOR}mask_embed.layers.\1",
    ),
    (rf"{OF_MASKS}input_projections", f"{PREDICTOR}input_proj"),
    (rf"{OF_MASKS}queries_embedder", f"{PREDICTOR}query_embed"),
    (rf"{OF_MASKS}queries_features", f"{PREDICTOR}query_feat"),
    (rf"{OF_MASKS}level_embed", f"{PREDICTOR}level_embed"),
    ("class_predictor", f"{PREDICTOR}class_embed"),
)  # fmt: skip
