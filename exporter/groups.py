"""The layer groups of each architecture, by the names that its modules give to graph nodes.

What is marked `floating` rests on docs/results/families.json (scripts/measure_families.py): dB are
the signal-to-noise ratio of the logits with that group alone in INT8, at 256x256.
"""

from __future__ import annotations

import onnx

from calibration.groups import GROUPS_BY_KIND, LayerGroup, nodes_by_group

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
# Pieces that several families are made of. Two blocks of a family never have the same path.
_RESNET = (
    LayerGroup("stem", "Stem", ("*/backbone/stem/*", "*/backbone/conv1/*")),
    LayerGroup("conv1", "Blocks: conv1", ("*/backbone/layer?/*/conv1/*",)),
    LayerGroup("conv2", "Blocks: conv2", ("*/backbone/layer?/*/conv2/*",)),
    LayerGroup("conv3", "Blocks: conv3", ("*/backbone/layer?/*/conv3/*",)),
    LayerGroup("downsample", "Blocks: shortcut", ("*/backbone/layer?/*/downsample/*",)),
)
_SWIN = (
    LayerGroup("patch_embed", "Patch embedding", ("*/backbone/patch_embed/*",)),
    LayerGroup("q", "Attention: q", ("*/w_msa/q/*",)),
    LayerGroup("k", "Attention: k", ("*/w_msa/k/*",)),
    LayerGroup("v", "Attention: v", ("*/w_msa/v/*",)),
    LayerGroup("attention_products", "Attention: both products", ("*/w_msa/MatMul*",)),
    LayerGroup("projection", "Attention: output projection", ("*/w_msa/proj/*",)),
    LayerGroup("ffn_fc1", "FFN: fc1", ("*/backbone/*/ffn/layers/layers.0/*",)),
    LayerGroup("ffn_fc2", "FFN: fc2", ("*/backbone/*/ffn/layers/layers.1/*",)),
    LayerGroup("merging", "Patch merging", ("*/backbone/stages.?/downsample/*",)),
)
_RESIDUAL = LayerGroup(
    "residual",
    "Residual additions",
    ("*/backbone/layer?/*/Add*", "*/backbone/stages.?/blocks.*/Add*"),
)
# No path is in both, so both can stand side by side; they share the group of the additions.
_BACKBONES = (*_RESNET, *_SWIN, _RESIDUAL)
_ASPP = (
    # One value a channel, which reaches every pixel, and next to no multiply-accumulates. With
    # random weights 7 to 10 times the noise of any other group (R-50, 192x192), after a short
    # training little (65 dB).
    LayerGroup(
        "image_pool",
        "ASPP: mean of the image",
        ("*/image_pool/*", "*/bottleneck/taps/*"),
        floating=True,
    ),
    LayerGroup("aspp_depthwise", "ASPP: depthwise", ("*/aspp_modules.?/depthwise_conv/*",)),
    LayerGroup("aspp", "ASPP: branches", ("*/aspp_modules.*",)),
    LayerGroup("aspp_fusion", "ASPP: fusion", ("*/bottleneck/conv/*",)),
    # Products with constant 0/1 matrices and additions of maps: nothing that INT8 makes faster, and
    # 50 dB after a short training.
    LayerGroup(
        "aspp_sums", "ASPP: sums", ("*/bottleneck/MatMul*", "*/bottleneck/Add*"), floating=True
    ),
)
_UPER = (
    LayerGroup("lateral", "FPN: lateral", ("*/lateral_convs.*",)),
    # Interpolation and pooling as products with constant matrices, and sums of maps: the noisiest
    # group of UPerNet Swin-T after a short training (47 dB), with 1 % of the multiply-accumulates.
    LayerGroup(
        "head_resizing",
        "Head: resizing and sums",
        (
            "*/pooled/MatMul*",
            "*/pooled/Add*",
            "*/fusion/MatMul*",
            "*/fusion/Add*",
            "*/decode_head/Add*",
            "*/kernel_generate_head/Add*",
        ),
        floating=True,
    ),
    LayerGroup("pooling", "Pyramid pooling", ("*/pooled/*",)),
    LayerGroup("fpn", "FPN: convolutions", ("*/fpn_convs.*",)),
    LayerGroup("fusion", "Head: fusion", ("*/fusion/*",)),
)
_CLASSIFIER = (LayerGroup("classifier", "Classifier", ("*/decode_head/conv_seg/*",)),)

_DEEPLABV3PLUS = (
    *_BACKBONES,
    *_ASPP,
    LayerGroup("low_level", "Head: low-level features", ("*/c1_bottleneck/*",)),
    LayerGroup("head_depthwise", "Head: depthwise", ("*/sep_bottleneck.?/depthwise_conv/*",)),
    LayerGroup("head_pointwise", "Head: pointwise", ("*/sep_bottleneck.?/pointwise_conv/*",)),
    *_CLASSIFIER,
)
_UPERNET = (*_BACKBONES, *_UPER, *_CLASSIFIER)
_KNET = (
    *_BACKBONES,
    *_ASPP,
    *_UPER,
    LayerGroup("first_masks", "First masks", ("*/kernel_generate_head/conv_seg/*",)),
    LayerGroup("mask_products", "Kernels times features", ("*/kernel_update_head.?/MatMul*",)),
    # Rows are classes, some hundred times fewer than pixels: 0.1 % of the multiply-accumulates, and
    # 13 dB after a short training (Swin-T), where the next trained weights have 46.
    LayerGroup("kernel_update", "Kernel updates", ("*/kernel_update_head.*",), floating=True),
)
_SEGMENTER = (
    LayerGroup("patch_embed", "Patch embedding", ("*/backbone/patch_embed/*",)),
    LayerGroup("q", "Attention: q", ("*/backbone/layers.*/attn/q/*",)),
    LayerGroup("k", "Attention: k", ("*/backbone/layers.*/attn/k/*",)),
    LayerGroup("v", "Attention: v", ("*/backbone/layers.*/attn/v/*",)),
    LayerGroup(
        "attention_products", "Attention: both products", ("*/backbone/layers.*/attn/MatMul*",)
    ),
    LayerGroup("projection", "Attention: output projection", ("*/backbone/*/attn/out_proj/*",)),
    LayerGroup("ffn_fc1", "FFN: fc1", ("*/backbone/layers.*/ffn/layers/layers.0/*",)),
    LayerGroup("ffn_fc2", "FFN: fc2", ("*/backbone/layers.*/ffn/layers/layers.1/*",)),
    LayerGroup("residual", "Residual additions", ("*/backbone/layers.*/Add*",)),
    LayerGroup("decoder_input", "Decoder: input", ("*/decode_head/dec_proj/*",)),
    # 27 dB after a short training (ViT-T), where the encoder's linear layers have 50 and more; 14 %
    # of the multiply-accumulates.
    LayerGroup("decoder", "Decoder: layers", ("*/decode_head/layers.*",), floating=True),
    LayerGroup(
        "classifier",
        "Classifier",
        ("*/patch_proj/*", "*/classes_proj/*", "*/conv_seg/*", "*/decode_head/MatMul*"),
    ),
)
_MASK2FORMER = (
    *_BACKBONES,
    LayerGroup("input_convs", "Pixel decoder: input", ("*/pixel_decoder/input_convs.*",)),
    # Where to look and how much of it: a rounding step moves the point. A short training says
    # little (78 dB), since offsets begin as constants, with weights of zero.
    LayerGroup(
        "sampling",
        "Pixel decoder: sampling",
        ("*/self_attn/sampling_offsets/*", "*/self_attn/attention_weights/*"),
        floating=True,
    ),
    LayerGroup("deformable_value", "Pixel decoder: values", ("*/encoder/*/value_proj/*",)),
    LayerGroup("deformable_output", "Pixel decoder: output", ("*/encoder/*/output_proj/*",)),
    LayerGroup("encoder_fc1", "Pixel decoder: fc1", ("*/encoder/*/ffn/layers/layers.0/*",)),
    LayerGroup("encoder_fc2", "Pixel decoder: fc2", ("*/encoder/*/ffn/layers/layers.1/*",)),
    LayerGroup("encoder_sums", "Pixel decoder: sums", ("*/pixel_decoder/*Add*",)),
    LayerGroup("fpn", "Pixel decoder: FPN", ("*/lateral_convs.*", "*/output_convs.*")),
    LayerGroup("decoder_input", "Decoder: input", ("*/decoder_input_projs.*",)),
    LayerGroup("cross_k", "Cross-attention: k", ("*/cross_attn/k/*",)),
    LayerGroup("cross_v", "Cross-attention: v", ("*/cross_attn/v/*",)),
    # Rows are the 100 queries, not pixels; and a mask's sign decides what the next layer sees. The
    # noisiest weighted group of R-50 after a short training (48 dB).
    LayerGroup(
        "queries",
        "Decoder: queries",
        ("*/transformer_decoder/*", "*/mask_embed.*", "*/mask_offset*", "*/cls_embed/*"),
        floating=True,
    ),
    LayerGroup("masks", "Masks", ("*/decode_head/MatMul*", "*/decode_head/Add*", "*/semantic/*")),
)
_GROUPS = {
    "segformer": _SEGFORMER,
    "segmenter": _SEGMENTER,
    "deeplabv3plus": _DEEPLABV3PLUS,
    "upernet": _UPERNET,
    "knet": _KNET,
    "mask2former": _MASK2FORMER,
}


def groups_of(architecture: str) -> tuple[LayerGroup, ...]:
    """The groups of a bundle's `model.architecture`; by kind of layer for one not known here."""
    return _GROUPS.get(architecture, GROUPS_BY_KIND)


def floating_layers(architecture: str, model: onnx.ModelProto) -> tuple[str, ...]:
    """Names of the nodes of the groups that plain INT8 leaves in floating point."""
    groups = groups_of(architecture)
    floating = {group.name for group in groups if group.floating}
    return tuple(
        item.node
        for name, items in nodes_by_group(model, groups).items()
        if name in floating
        for item in items
    )
