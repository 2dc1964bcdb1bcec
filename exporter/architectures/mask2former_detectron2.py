"""Mask2Former under the names of its authors' code on detectron2, brought to mmsegmentation's 1.x.

Backbones: Swin, and ResNet with a plain stem or DeepLab's of three convolutions. Beside names, only
Swin's patch merging has another order. BatchNorm is frozen there and has no counter. Source: the
structure of facebookresearch/Mask2Former (MIT) and of detectron2's ResNet (Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from exporter.architectures.loading import Rules, renamed, usable_tensors
from exporter.architectures.other_styles import renamed_tensors, with_merging_reordered
from exporter.architectures.swin import without_index_tables

NAME = "detectron2"

_PROBES = (
    "sem_seg_head.pixel_decoder.transformer.level_embed",
    "sem_seg_head.predictor.class_embed.weight",
)
# The loss's class weights, and the normalisation, which old versions stored.
_UNUSED = ("criterion.", "pixel_mean", "pixel_std")

_SWIN_RULES: Rules = (
    (r"^backbone\.patch_embed\.proj\b", "backbone.patch_embed.projection"),
    (r"^backbone\.layers\.", "backbone.stages."),
    (r"^(backbone\.stages\..*)\.attn\.", r"\1.attn.w_msa."),
    (r"^(backbone\.stages\..*)\.mlp\.fc1\b", r"\1.ffn.layers.0.0"),
    (r"^(backbone\.stages\..*)\.mlp\.fc2\b", r"\1.ffn.layers.1"),
)
_RESNET_RULES: Rules = (
    (r"^backbone\.res(\d+)\.", lambda m: f"backbone.layer{int(m[1]) - 1}."),
    (r"^(backbone\.layer\d+\.\d+)\.conv(\d)\.norm\b", r"\1.bn\2"),
    (r"^(backbone\.layer\d+\.\d+)\.shortcut\.norm\b", r"\1.downsample.1"),
    (r"^(backbone\.layer\d+\.\d+)\.shortcut\b", r"\1.downsample.0"),
)
_PLAIN_STEM_RULES: Rules = (
    (r"^backbone\.stem\.conv1\.norm\b", "backbone.bn1"),
    (r"^backbone\.stem\.conv1\b", "backbone.conv1"),
)
# Convolution, norm and ReLU three times in a row.
_DEEP_STEM_RULES: Rules = (
    (r"^backbone\.stem\.conv(\d)\.norm\b", lambda m: f"backbone.stem.{3 * int(m[1]) - 2}"),
    (r"^backbone\.stem\.conv(\d)\b", lambda m: f"backbone.stem.{3 * int(m[1]) - 3}"),
)
_PIXEL_DECODER_RULES: Rules = (
    (r"^sem_seg_head\.pixel_decoder\.transformer\.level_embed$",
     "decode_head.pixel_decoder.level_encoding.weight"),
    (r"^sem_seg_head\.pixel_decoder\.(transformer\.)?", "decode_head.pixel_decoder."),
    (r"\.input_proj\.(\d+)\.0\b", r".input_convs.\1.conv"),
    (r"\.input_proj\.(\d+)\.1\b", r".input_convs.\1.gn"),
    (r"\.adapter_1\.norm\b", ".lateral_convs.0.gn"),
    (r"\.adapter_1\b", ".lateral_convs.0.conv"),
    (r"\.layer_1\.norm\b", ".output_convs.0.gn"),
    (r"\.layer_1\b", ".output_convs.0.conv"),
    (r"\.mask_features\b", ".mask_feature"),
    (r"^(decode_head\.pixel_decoder\.encoder\..*)\.norm1\b", r"\1.norms.0"),
    (r"^(decode_head\.pixel_decoder\.encoder\..*)\.norm2\b", r"\1.norms.1"),
)  # fmt: skip
_LAYERS = "decode_head.transformer_decoder.layers."
_DECODER_RULES: Rules = (
    (r"^sem_seg_head\.predictor\.(class_embed)\b", "decode_head.cls_embed"),
    (r"^sem_seg_head\.predictor\.static_query\b", "decode_head.query_feat"),  # in older files
    (r"^sem_seg_head\.predictor\.input_proj\b", "decode_head.decoder_input_projs"),
    (r"^sem_seg_head\.predictor\.decoder_norm\b", "decode_head.transformer_decoder.post_norm"),
    (
        r"^sem_seg_head\.predictor\.mask_embed\.layers\.(\d)\b",
        lambda m: f"decode_head.mask_embed.{2 * int(m[1])}",
    ),
    (
        r"^sem_seg_head\.predictor\.transformer_cross_attention_layers\.(\d+)\.multihead_attn\b",
        rf"{_LAYERS}\1.cross_attn.attn",
    ),
    (
        r"^sem_seg_head\.predictor\.transformer_self_attention_layers\.(\d+)\.self_attn\b",
        rf"{_LAYERS}\1.self_attn.attn",
    ),
    (
        r"^sem_seg_head\.predictor\.transformer_cross_attention_layers\.(\d+)\.norm\b",
        rf"{_LAYERS}\1.norms.0",
    ),
    (
        r"^sem_seg_head\.predictor\.transformer_self_attention_layers\.(\d+)\.norm\b",
        rf"{_LAYERS}\1.norms.1",
    ),
    (
        r"^sem_seg_head\.predictor\.transformer_ffn_layers\.(\d+)\.norm\b",
        rf"{_LAYERS}\1.norms.2",
    ),
    (r"^sem_seg_head\.predictor\.transformer_ffn_layers\.(\d+)\.", rf"{_LAYERS}\1."),
    (r"^sem_seg_head\.predictor\.", "decode_head."),
    (r"^(decode_head\..*)\.linear1\b", r"\1.ffn.layers.0.0"),
    (r"^(decode_head\..*)\.linear2\b", r"\1.ffn.layers.1"),
)
_RULES: Rules = (*_SWIN_RULES, *_RESNET_RULES, *_PIXEL_DECODER_RULES, *_DECODER_RULES)


def recognises(keys: frozenset[str]) -> bool:
    return all(probe in keys for probe in _PROBES)


def notes(_named: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Nothing: detectron2 and mmsegmentation compute the same."""
    return ()


def module_path(path: str) -> str:
    """mmsegmentation's path of a module; a stem is taken to be the plain one."""
    return renamed(path, (*_PLAIN_STEM_RULES, *_RULES))


def canonical(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """mmsegmentation's names and layouts, float32; only what the model has.

    What does not fit keeps a name that is not mmsegmentation's, so that strict loading names it.
    """
    used = without_index_tables(usable_tensors(tensors, dropped=_UNUSED))
    deep_stem = "backbone.stem.conv2.weight" in used
    rules = (*(_DEEP_STEM_RULES if deep_stem else _PLAIN_STEM_RULES), *_RULES)
    return with_merging_reordered(renamed_tensors(used, lambda key: renamed(key, rules)))
