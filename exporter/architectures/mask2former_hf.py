"""Mask2Former under the names of Hugging Face transformers, brought to mmsegmentation's 1.x.

Both the names in files (of every version; transformers 5 saves the old ones too) and those of
transformers 5's own modules. Backbones: Swin and ResNet. What differs beside names: q, k and v are
apart in Swin and in the decoder's self-attention, and Swin's patch merging has another order.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from exporter.architectures.loading import Rules, renamed, usable_tensors
from exporter.architectures.other_styles import renamed_tensors, with_merging_reordered
from exporter.architectures.swin import without_index_tables

NAME = "Hugging Face"
_POST_PROCESSING = (
    "Hugging Face's image processor resizes each query's mask to 384x384 before it adds them up. "
    "Here they are resized to the input's size, as in mmsegmentation and detectron2, so that some "
    "labels along edges are not those of post_process_semantic_segmentation."
)
_PROBE = "model.transformer_module.queries_features.weight"
_ENCODER = "model.pixel_level_module.encoder."
# The loss's class weights, and the norm of Swin's classifier, which a backbone does not use.
_UNUSED = ("criterion.", f"{_ENCODER}layernorm.", f"{_ENCODER}swin.layernorm.")


_SWIN_RULES: Rules = (
    (r"^backbone\.embeddings\.patch_embeddings\.projection\b", "backbone.patch_embed.projection"),
    (r"^backbone\.embeddings\.norm\b", "backbone.patch_embed.norm"),
    (r"^backbone\.encoder\.layers\.", "backbone.stages."),
    (r"^backbone\.hidden_states_norms\.stage(\d+)\b", lambda m: f"backbone.norm{int(m[1]) - 1}"),
    (r"\.layernorm_before\b", ".norm1"),
    (r"\.layernorm_after\b", ".norm2"),
    (r"\.attention\.self\.([qkv])(uery|ey|alue)\b", r".attn.w_msa.\1"),
    (r"\.attention\.([qkv])_proj\b", r".attn.w_msa.\1"),
    (r"\.attention\.(self|relative_position_bias)\.relative_", ".attn.w_msa.relative_"),
    (r"\.attention\.(output\.dense|o_proj)\b", ".attn.w_msa.proj"),
    (r"^(backbone\..*)\.(intermediate\.dense|mlp\.fc1)\b", r"\1.ffn.layers.0.0"),
    (r"^(backbone\..*)\.(output\.dense|mlp\.fc2)\b", r"\1.ffn.layers.1"),
)
_RESNET_RULES: Rules = (
    (r"^backbone\.embedder\.embedder\.convolution\b", "backbone.conv1"),
    (r"^backbone\.embedder\.embedder\.normalization\b", "backbone.bn1"),
    (
        r"^backbone\.encoder\.stages\.(\d+)\.layers\.",
        lambda m: f"backbone.layer{int(m[1]) + 1}.",
    ),
    (r"\.layer\.(\d)\.convolution\b", lambda m: f".conv{int(m[1]) + 1}"),
    (r"\.layer\.(\d)\.normalization\b", lambda m: f".bn{int(m[1]) + 1}"),
    (r"\.shortcut\.convolution\b", ".downsample.0"),
    (r"\.shortcut\.normalization\b", ".downsample.1"),
)
_PIXEL_DECODER_RULES: Rules = (
    (r"^model\.pixel_level_module\.decoder\.", "decode_head.pixel_decoder."),
    (r"\.input_projections\.(\d+)\.0\b", r".input_convs.\1.conv"),
    (r"\.input_projections\.(\d+)\.1\b", r".input_convs.\1.gn"),
    (r"\.adapter_1\.0\b", ".lateral_convs.0.conv"),
    (r"\.adapter_1\.1\b", ".lateral_convs.0.gn"),
    (r"\.layer_1\.0\b", ".output_convs.0.conv"),
    (r"\.layer_1\.1\b", ".output_convs.0.gn"),
    (r"\.mask_projection\b", ".mask_feature"),
    (
        r"^decode_head\.pixel_decoder\.level_embed$",
        "decode_head.pixel_decoder.level_encoding.weight",
    ),
    (r"^(decode_head\.pixel_decoder\..*)\.self_attn_layer_norm\b", r"\1.norms.0"),
    (r"^(decode_head\.pixel_decoder\..*)\.final_layer_norm\b", r"\1.norms.1"),
)
_DECODER_RULES: Rules = (
    (r"^class_predictor\b", "decode_head.cls_embed"),
    (r"^model\.transformer_module\.queries_embedder\b", "decode_head.query_embed"),
    (r"^model\.transformer_module\.queries_features\b", "decode_head.query_feat"),
    (r"^model\.transformer_module\.input_projections\b", "decode_head.decoder_input_projs"),
    (r"^model\.transformer_module\.level_embed\b", "decode_head.level_embed"),
    (
        r"^model\.transformer_module\.decoder\.mask_predictor\.mask_embedder\.(\d)\.0\b",
        lambda m: f"decode_head.mask_embed.{2 * int(m[1])}",
    ),
    (r"^model\.transformer_module\.decoder\.", "decode_head.transformer_decoder."),
    (
        r"^decode_head\.transformer_decoder\.layernorm\b",
        "decode_head.transformer_decoder.post_norm",
    ),
    (r"\.cross_attn_layer_norm\b", ".norms.0"),
    (r"\.self_attn_layer_norm\b", ".norms.1"),
    (r"\.final_layer_norm\b", ".norms.2"),
    (r"\.cross_attn\.", ".cross_attn.attn."),
    (r"\.self_attn\.([qkv])_proj\b", r".self_attn.\1"),
    (r"\.self_attn\.out_proj\b", ".self_attn.attn.out_proj"),
    (r"^(decode_head\..*)\.fc1\b", r"\1.ffn.layers.0.0"),
    (r"^(decode_head\..*)\.fc2\b", r"\1.ffn.layers.1"),
)
_RULES: Rules = (
    (r"^model\.pixel_level_module\.encoder\.(swin\.)?", "backbone."),
    *_SWIN_RULES,
    *_RESNET_RULES,
    *_PIXEL_DECODER_RULES,
    *_DECODER_RULES,
)
# Three projections that mmsegmentation keeps in one tensor: where they are, what that is called.
_JOINED = (
    (re.compile(r"^(.*\.w_msa)\.q\.(weight|bias)$"), "{0}.qkv.{1}"),
    (re.compile(r"^(.*\.self_attn)\.q\.(weight|bias)$"), "{0}.attn.in_proj_{1}"),
)


def recognises(keys: frozenset[str]) -> bool:
    return _PROBE in keys


def notes(_named: Mapping[str, Tensor]) -> tuple[str, ...]:
    """For people who compare with transformers."""
    return (_POST_PROCESSING,)


def module_path(path: str) -> str:
    """mmsegmentation's path of a module, or name of a tensor.

    Where mmsegmentation has one module for q, k and v, theirs are those of the exported graph, in
    which they are apart again: .w_msa.q and .self_attn.q.
    """
    return renamed(path, _RULES)


def canonical(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """mmsegmentation's names and layouts, float32; only what the model has.

    What does not fit keeps a name that is not mmsegmentation's, so that strict loading names it.
    """
    used = without_index_tables(usable_tensors(tensors, dropped=_UNUSED))
    named = renamed_tensors(used, module_path)
    for key in list(named):
        for pattern, target in _JOINED:
            match = pattern.match(key)
            if match is not None:
                _join(named, key, match[1], match[2], target.format(match[1], match[2]))
    return with_merging_reordered(named)


def _join(named: dict[str, Tensor], key: str, owner: str, kind: str, target: str) -> None:
    keys = [f"{owner}.{part}.{kind}" for part in "qkv"]
    if all(part in named and named[part].shape == named[key].shape for part in keys):
        named[target] = torch.cat([named.pop(part) for part in keys])
