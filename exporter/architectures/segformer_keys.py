"""SegFormer checkpoints: three key styles brought to mmsegmentation's names, shapes inferred.

Styles: mmsegmentation (also EasyCV and ModelScope), NVlabs/SegFormer, Hugging Face transformers.
The decode heads differ in kind, not in names, so the head kind follows the style.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from engines.errors import CheckpointError
from exporter.architectures.description import NO_HINTS, Hints, ModelDescription
from exporter.architectures.loading import (
    Rules,
    count_children,
    load_strictly,
    paths_after,
    renamed,
    tensors_of,
    usable_tensors,
    with_first_outputs,
)
from exporter.architectures.segformer import Segformer, SegformerShape

NAME = "segformer"

# (embed_dims, depths) of the paper's table 6, also mmsegmentation's configs.
_WIDE = (64, 128, 320, 512)
VARIANTS: dict[tuple[tuple[int, ...], tuple[int, ...]], str] = {
    ((32, 64, 160, 256), (2, 2, 2, 2)): "b0",
    (_WIDE, (2, 2, 2, 2)): "b1",
    (_WIDE, (3, 4, 6, 3)): "b2",
    (_WIDE, (3, 4, 18, 3)): "b3",
    (_WIDE, (3, 8, 27, 3)): "b4",
    (_WIDE, (3, 6, 40, 3)): "b5",
}

_STYLES = {
    "mmsegmentation": "backbone.layers.0.0.projection.weight",
    "NVlabs": "backbone.patch_embed1.proj.weight",
    "Hugging Face": "segformer.encoder.patch_embeddings.0.proj.weight",
}
_HEADS = {
    "mmsegmentation": "decode_head.convs.0.conv.weight",
    "NVlabs": "decode_head.linear_c1.proj.weight",
    "Hugging Face": "decode_head.linear_c.0.proj.weight",
}
# LayerNorm epsilons: (transformer blocks and stage outputs, patch embedding and reduced keys).
_EPSILONS = {
    "mmsegmentation": (1e-6, 1e-6),
    "NVlabs": (1e-6, 1e-5),
    "Hugging Face": (1e-5, 1e-5),  # its configuration's layer_norm_eps is not used by the model
}

_NVLABS_RULES = (
    (r"^backbone\.patch_embed(\d)\.proj\.", lambda m: f"backbone.layers.{_i(m)}.0.projection."),
    (r"^backbone\.patch_embed(\d)\.norm\.", lambda m: f"backbone.layers.{_i(m)}.0.norm."),
    (r"^backbone\.norm(\d)\.", lambda m: f"backbone.layers.{_i(m)}.2."),
    (r"^backbone\.block(\d)\.(\d+)\.", lambda m: f"backbone.layers.{_i(m)}.1.{m[2]}."),
    (r"\.attn\.proj\.", lambda m: ".attn.attn.out_proj."),
    (r"\.mlp\.fc1\.", lambda m: ".ffn.layers.0."),
    (r"\.mlp\.dwconv\.dwconv\.", lambda m: ".ffn.layers.1."),
    (r"\.mlp\.fc2\.", lambda m: ".ffn.layers.4."),
    (r"^decode_head\.linear_c(\d)\.proj\.", lambda m: f"decode_head.linear_c.{_i(m)}."),
    (r"^decode_head\.linear_pred\.", lambda m: "decode_head.conv_seg."),
)
_HF_RULES = (
    (r"^segformer\.encoder\.patch_embeddings\.(\d)\.proj\.", r"backbone.layers.\1.0.projection."),
    (r"^segformer\.encoder\.patch_embeddings\.(\d)\.layer_norm\.", r"backbone.layers.\1.0.norm."),
    (r"^segformer\.encoder\.layer_norm\.(\d)\.", r"backbone.layers.\1.2."),
    (r"^segformer\.encoder\.block\.(\d)\.(\d+)\.", r"backbone.layers.\1.1.\2."),
    (r"\.layer_norm_([12])\.", r".norm\1."),
    (r"\.attention\.self\.(query|key|value)\.", r".attn.\1."),
    (r"\.attention\.self\.sr\.", ".attn.sr."),
    (r"\.attention\.self\.layer_norm\.", ".attn.norm."),
    (r"\.attention\.output\.dense\.", ".attn.attn.out_proj."),
    (r"\.mlp\.dense1\.", ".ffn.layers.0."),
    (r"\.mlp\.dwconv\.dwconv\.", ".ffn.layers.1."),
    (r"\.mlp\.dense2\.", ".ffn.layers.4."),
    (r"^decode_head\.linear_c\.(\d)\.proj\.", r"decode_head.linear_c.\1."),
    (r"^decode_head\.linear_fuse\.weight$", "decode_head.linear_fuse.conv.weight"),
    (r"^decode_head\.batch_norm\.", "decode_head.linear_fuse.bn."),
    (r"^decode_head\.classifier\.", "decode_head.conv_seg."),
)
_RULES: dict[str, Rules] = {"NVlabs": _NVLABS_RULES, "Hugging Face": _HF_RULES}
# mmsegmentation's module path -> path(s) after `exporter.rewrites`.
_LAYER_RULES = (
    (r"\.attn\.kv$", (".attn.k", ".attn.v")),
    (r"\.attn\.query$", (".attn.q",)),
    (r"\.attn\.key$", (".attn.k",)),
    (r"\.attn\.value$", (".attn.v",)),
    (r"\.attn\.attn\.out_proj$", (".attn.out_proj",)),
    (r"\.convs\.(\d)\.conv$", (r".convs.\1.0",)),
    (r"\.convs\.(\d)\.activate$", (r".convs.\1.1",)),
    (r"\.linear_c\.(\d)$", (r".fusion.\1",)),
)


def recognises(keys: frozenset[str]) -> bool:
    return _style(keys) is not None


def model_from_tensors(
    tensors: Mapping[str, Tensor], hints: Hints = NO_HINTS
) -> tuple[nn.Module, ModelDescription]:
    """See `Architecture.model_from_tensors`."""
    style = _style(frozenset(tensors))
    if style is None or _HEADS[style] not in tensors:
        raise CheckpointError(
            "an encoder (MiT) without SegFormer's decode head",
            expected=f"a trained segmentation model with {_HEADS[style or 'mmsegmentation']!r}",
            do="give the checkpoint of the whole model, not the pretrained backbone",
        )
    named = _canonical(tensors, style)
    with tensors_of("SegFormer", style):
        if hints.keep_outputs is not None:
            named = with_first_outputs(named, hints.keep_outputs)
        shape = _shape_from_tensors(named, style, bool(hints.align_corners))
    with torch.device("meta"):
        model = Segformer(shape)
    load_strictly(model, named, "SegFormer")
    description = ModelDescription(
        architecture=NAME,
        variant=VARIANTS.get((shape.embed_dims, shape.depths), "custom"),
        head=shape.head_kind,
        head_channels=shape.head_channels,
        in_channels=shape.in_channels,
        num_outputs=shape.num_outputs,
        parameters=sum(p.numel() for p in model.parameters()),
        source=style,
    )
    return model.eval(), description


def layer_paths(module: str, style: str) -> tuple[str, ...]:
    """Where the exported graph has the layers that read what a checkpoint's module reads.

    `module` is a dotted path in the names of `style`; so are the results in those of the graph's
    nodes, without the leading "net". Several for a module whose weights were split; a path that
    the graph does not have for one that the rewrites took apart.
    """
    path = _renamed(f"{module}.weight", style).removesuffix(".weight")
    return paths_after(path, _LAYER_RULES)


def layer_weights(model: nn.Module) -> dict[str, Tensor]:
    """Weight of each layer as the checkpoint has it, by the path of `layer_paths`."""
    weights: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if name.endswith(".attn.attn.in_proj_weight"):
            prefix = name.removesuffix("attn.in_proj_weight")
            parts = zip("qkv", tensor.chunk(3), strict=True)
            weights |= {f"{prefix}{part}": weight for part, weight in parts}
        elif name.endswith(".weight"):
            weights[layer_paths(name.removesuffix(".weight"), "mmsegmentation")[0]] = tensor
    return weights


def writes_the_same(module: str, style: str) -> bool:
    """Whether those layers also write what that module wrote: no rewrite scales or folds it."""
    path = _renamed(f"{module}.weight", style)
    return re.search(r"\.attn\.(q|kv|v|query|value)\.|\.convs\.\d\.conv\.|linear_c\.", path) is None


def _style(keys: frozenset[str]) -> str | None:
    for style, probe in _STYLES.items():
        # Swin's backbone has layers too, but no projection inside layers.0.0.
        if probe in keys:
            return style
    return None


def _i(match: re.Match[str]) -> int:
    """NVlabs counts stages from 1."""
    return int(match[1]) - 1


def _canonical(tensors: Mapping[str, Tensor], style: str) -> dict[str, Tensor]:
    """mmsegmentation's names, float32; training-only tensors left out."""
    # Left over in NVlabs' files, where the live classifier is linear_pred.
    dropped = ("decode_head.conv_seg.",) if style == "NVlabs" else ()
    named = {_renamed(k, style): t for k, t in usable_tensors(tensors, dropped=dropped).items()}
    for key in [k for k in named if k.endswith((".attn.q.weight", ".attn.q.bias"))]:
        _join_projections(named, key, ".attn.q.", (".attn.q.", ".attn.kv."))
    for key in [k for k in named if k.endswith((".attn.query.weight", ".attn.query.bias"))]:
        _join_projections(
            named, key, ".attn.query.", (".attn.query.", ".attn.key.", ".attn.value.")
        )
    return named


def _renamed(key: str, style: str) -> str:
    """A tensor's name of `style` as mmsegmentation's; q, k and v may still be apart."""
    return renamed(key, _RULES.get(style, ()))


def _join_projections(
    named: dict[str, Tensor], key: str, part: str, parts: tuple[str, ...]
) -> None:
    kind = key.rsplit(".", 1)[1]
    target = key.replace(f"{part}{kind}", f".attn.attn.in_proj_{kind}")
    pieces = [key.replace(part, other) for other in parts]
    if all(piece in named for piece in pieces):
        named[target] = torch.cat([named.pop(piece) for piece in pieces])


def _shape_from_tensors(
    named: Mapping[str, Tensor], style: str, align_corners: bool
) -> SegformerShape:
    stages = range(4)
    dims = tuple(named[f"backbone.layers.{i}.0.projection.weight"].shape[0] for i in stages)
    depths = tuple(count_children(named, f"backbone.layers.{i}.1.") for i in stages)
    sr_ratios, mlp_ratios = [], []
    for i, dim in zip(stages, dims, strict=True):
        block = f"backbone.layers.{i}.1.0"
        sr = named.get(f"{block}.attn.sr.weight")
        sr_ratios.append(1 if sr is None else sr.shape[-1])
        mlp_ratios.append(named[f"{block}.ffn.layers.0.weight"].shape[0] // dim)
    num_heads = tuple(dim // dims[0] for dim in dims)
    heads_fit = all(n and dim % n == 0 for dim, n in zip(dims, num_heads, strict=True))
    if not heads_fit or min(mlp_ratios) < 1:
        raise CheckpointError(
            f"a SegFormer with stages of {', '.join(map(str, dims))} channels, and "
            f"{', '.join(map(str, mlp_ratios))} times as many inside their layers",
            expected="attention heads as wide as the first stage, and layers at least as wide as "
            "their stage",
            do="check that the checkpoint is an unmodified SegFormer",
        )
    block_eps, patch_eps = _EPSILONS[style]
    classifier = named["decode_head.conv_seg.weight"]
    return SegformerShape(
        embed_dims=dims,
        depths=depths,
        num_heads=num_heads,
        sr_ratios=tuple(sr_ratios),
        mlp_ratios=tuple(mlp_ratios),
        in_channels=named["backbone.layers.0.0.projection.weight"].shape[1],
        num_outputs=classifier.shape[0],
        head_channels=classifier.shape[1],
        head_kind="mmsegmentation" if style == "mmsegmentation" else "linear",
        qkv_bias="backbone.layers.0.1.0.attn.attn.in_proj_bias" in named,
        block_eps=block_eps,
        patch_eps=patch_eps,
        align_corners=align_corners,
    )
