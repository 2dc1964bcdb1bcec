"""The layer groups of each architecture, by the names that its modules give to graph nodes."""

from __future__ import annotations

from calibration.groups import GROUPS_BY_KIND, LayerGroup

# Module paths of `exporter.architectures.segformer` after `exporter.rewrites`. With one attention
# head the output projection lies in v, and the linear head's stage layers in the fusion.
_SEGFORMER = (
    LayerGroup("patch_embed", "Patch embeddings", ("*/backbone/layers.?.0/projection/*",)),
    LayerGroup("q", "Attention: q", ("*/attn/q/*",)),
    LayerGroup("k", "Attention: k", ("*/attn/k/*",)),
    LayerGroup("v", "Attention: v", ("*/attn/v/*",)),
    LayerGroup("attention_products", "Attention: both products", ("*/attn/MatMul*",)),
    LayerGroup("projection", "Attention: output projection", ("*/attn/out_proj/*",)),
    LayerGroup("spatial_reduction", "Attention: spatial reduction", ("*/attn/sr/*",)),
    LayerGroup("ffn_fc1", "MixFFN: fc1", ("*/ffn/layers/layers.0/*",)),
    LayerGroup("ffn_depthwise", "MixFFN: depthwise", ("*/ffn/layers/layers.1/*",)),
    LayerGroup("ffn_fc2", "MixFFN: fc2", ("*/ffn/layers/layers.4/*",)),
    LayerGroup("residual", "Residual additions", ("*/backbone/layers.?.1.*/Add*",)),
    LayerGroup("head_stages", "Head: convolution per stage", ("*/decode_head/convs.*",)),
    LayerGroup("head_fusion", "Head: fusion", ("*/decode_head/fusion.*",)),
    LayerGroup("head_sums", "Head: sum of the stages", ("*/decode_head/Add*",)),
    LayerGroup("classifier", "Classifier", ("*/decode_head/conv_seg/*",)),
)
_GROUPS = {"segformer": _SEGFORMER}


def groups_of(architecture: str) -> tuple[LayerGroup, ...]:
    """The groups of a bundle's `model.architecture`; by kind of layer for one not known here."""
    return _GROUPS.get(architecture, GROUPS_BY_KIND)
