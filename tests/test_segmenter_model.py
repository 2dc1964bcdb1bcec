"""Segmenter's network: what is found from the tensors, both key styles, and the exact rewrites."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engines.errors import CheckpointError
from exporter.architectures import segmenter_keys
from exporter.architectures.description import Hints, ModelDescription
from exporter.architectures.segmenter import (
    LinearHead,
    MaskDecoderShape,
    MaskTransformerHead,
    Segmenter,
    SegmenterShape,
)
from exporter.architectures.vit import (
    SelfAttention,
    VisionTransformer,
    VitShape,
    resized_positions,
)
from exporter.detect import model_from_state_dict
from exporter.load import load_model
from exporter.rewrites.pieces import ScaledQueries
from exporter.rewrites.rewritten import rewritten_for_export
from exporter.rewrites.segmenter import TokenClassifier, TokenEncoder, TokenMasks
from tests.architectures.example import lively

Tensors = dict[str, Tensor]

DIMS = {"t": (192, 12), "s": (384, 12), "b": (768, 12), "l": (1024, 24)}


def vit_of(**changes: object) -> VitShape:
    shape = VitShape(in_channels=3, dim=64, depth=1, num_heads=1, hidden=96, patch=16, grid=(4, 4))
    return replace(shape, **changes)  # type: ignore[arg-type]


def decoder_of(**changes: object) -> MaskDecoderShape:
    shape = MaskDecoderShape(dim=64, depth=1, num_heads=1, hidden=80, num_classes=4)
    return replace(shape, **changes)  # type: ignore[arg-type]


def tensors_of(vit: VitShape, decoder: MaskDecoderShape | None, outputs: int = 4) -> Tensors:
    torch.manual_seed(0)
    return dict(lively(Segmenter(SegmenterShape(vit, decoder, outputs))).state_dict())


def described(tensors: Tensors, hints: Hints | None = None) -> ModelDescription:
    return model_from_state_dict(tensors, hints=hints or Hints())[1]


def shape_of(tensors: Tensors, hints: Hints | None = None) -> SegmenterShape:
    net, _ = model_from_state_dict(tensors, hints=hints or Hints())
    assert isinstance(net, Segmenter)
    return net.shape


# --- what is found from the tensors --------------------------------------------------------------


@pytest.mark.parametrize("head", ["mask", "linear"])
@pytest.mark.parametrize("letter", DIMS)
def test_each_variant_is_found_from_its_shapes(letter: str, head: str) -> None:
    dim, depth = DIMS[letter]
    heads, side = dim // 64, 40 if letter == "l" else 32
    vit = VitShape(3, dim, depth, heads, 4 * dim, 16, (side, side))
    decoder = MaskDecoderShape(dim, 2, heads, 4 * dim, 150) if head == "mask" else None
    shape = SegmenterShape(vit, decoder, 150)
    with torch.device("meta"):
        tensors = dict(Segmenter(shape).state_dict())
    found = described(tensors)
    assert found.name == f"segmenter-{letter}-{head}"
    assert found.trained_hw == (16 * side, 16 * side)
    assert (found.head_channels, found.num_outputs) == (dim, 150)
    assert shape_of(tensors) == shape


@pytest.mark.parametrize(
    ("patch_bias", "qkv_bias", "final_norm", "decoder"),
    [
        *itertools.product([True, False], [True, False], [True, False], [decoder_of()]),
        (True, True, True, decoder_of(depth=0)),
        (True, True, True, decoder_of(depth=3, qkv_bias=False, num_classes=9)),
        (False, True, False, None),
    ],
)
def test_what_a_vit_may_lack_is_there_exactly_when_the_tensors_are(
    patch_bias: bool, qkv_bias: bool, final_norm: bool, decoder: MaskDecoderShape | None
) -> None:
    vit = vit_of(patch_bias=patch_bias, qkv_bias=qkv_bias, final_norm=final_norm, in_channels=5)
    outputs = 4 if decoder is None else decoder.num_classes
    found = shape_of(tensors_of(vit, decoder, outputs))
    assert found.encoder == vit
    assert found.num_outputs == outputs
    if decoder is not None and decoder.depth:
        assert found.decoder == decoder


def test_the_bias_of_the_patches_is_used() -> None:
    """mmsegmentation 1.2 builds ViTs without it and drops what the file has."""
    tensors = tensors_of(vit_of(), decoder_of())
    net, _ = model_from_state_dict(tensors)
    without, _ = model_from_state_dict(
        {k: t for k, t in tensors.items() if k != "backbone.patch_embed.projection.bias"}
    )
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert float((net(image) - without(image)).std()) > 1e-2


def test_a_patch_of_another_size_is_no_published_variant() -> None:
    vit = VitShape(3, 192, 12, 3, 64, 32, (2, 2))
    with torch.device("meta"):
        tensors = dict(Segmenter(SegmenterShape(vit, None, 2)).state_dict())
    found = described(tensors)
    assert found.variant == "custom-linear"
    assert found.trained_hw == (64, 64)


@pytest.mark.parametrize(
    ("patches", "hw"), [(32, (64, 128)), (35, (80, 112)), (6, (32, 48)), (4 * 16, (128, 128))]
)
def test_positions_that_are_no_square_are_taken_as_the_nearest_wide_grid(
    patches: int, hw: tuple[int, int]
) -> None:
    tensors = tensors_of(vit_of(), decoder_of())
    tensors["backbone.pos_embed"] = torch.randn(1, 1 + patches, 64)
    found = described(tensors)
    assert found.trained_hw == hw
    said = f"{hw[0] // 16} rows of {hw[1] // 16} patches assumed"
    assert any(said in line for line in found.assumed) == (hw[0] != hw[1])


@pytest.mark.parametrize("patches", [0, 13, 2 * 13, 10007])
def test_positions_that_fill_no_rectangle_are_refused(patches: int) -> None:
    tensors = tensors_of(vit_of(), decoder_of())
    tensors["backbone.pos_embed"] = torch.randn(1, 1 + patches, 64)
    with pytest.raises(CheckpointError, match=f"position embedding of {patches} patches"):
        model_from_state_dict(tensors)


CONFIG = """
norm_cfg = dict(type='SyncBN')
data_preprocessor = dict(type='SegDataPreProcessor', mean=[127.5, 127.5, 127.5],
                         std=[127.5, 127.5, 127.5], bgr_to_rgb=True)
model = dict(type='EncoderDecoder', data_preprocessor=data_preprocessor,
             backbone=dict(type='VisionTransformer', num_heads=1),
             decode_head=dict(type='SegmenterMaskTransformerHead', num_heads=1),
             test_cfg=dict(mode='whole'))
"""


def test_with_a_configuration_it_decides_and_nothing_is_assumed(tmp_path: Path) -> None:
    state = {"meta": {"cfg": CONFIG}, "state_dict": tensors_of(vit_of(), decoder_of())}
    torch.save(state, tmp_path / "model.pth")
    loaded = load_model(tmp_path / "model.pth")
    assert (loaded.mean, loaded.std) == ((127.5,) * 3, (127.5,) * 3)
    assert not any("127.5" in line for line in loaded.warnings)


def test_the_decoders_heads_are_as_told() -> None:
    tensors = tensors_of(vit_of(), decoder_of())
    told = shape_of(tensors, Hints(num_heads=4))
    assert told.decoder is not None
    assert (told.encoder.num_heads, told.decoder.num_heads) == (1, 4)


def test_a_width_that_is_no_multiple_of_64_needs_to_be_told_its_heads() -> None:
    tensors = tensors_of(vit_of(dim=48, num_heads=3), None)
    with pytest.raises(CheckpointError, match="width 48"):
        model_from_state_dict(tensors)
    assert shape_of(tensors, Hints(num_heads=3)).encoder.num_heads == 3
    with pytest.raises(CheckpointError, match="width 48 with 5 heads"):
        model_from_state_dict(tensors, hints=Hints(num_heads=5))


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("backbone.patch_embed.projection.weight", (64, 0, 16, 16)),
        ("backbone.patch_embed.projection.weight", (64, 3, 0, 2**40)),
        ("backbone.patch_embed.projection.weight", (64, 3, 2**40, 0)),
        ("backbone.patch_embed.projection.weight", (64, 3, 16, 8)),
        ("backbone.layers.0.ffn.layers.0.0.weight", (2**40, 0)),
        ("backbone.cls_token", (1, 0, 64)),
        ("backbone.cls_token", (1, 40, 64)),
        ("decode_head.cls_emb", (0, 2**40, 64)),
        ("decode_head.cls_emb", (1, 4, 0)),
        ("decode_head.layers.0.ffn.layers.0.0.weight", (0, 64)),
        ("backbone.pos_embed", (1, 0, 64)),
    ],
)
def test_axes_that_no_network_can_have_are_refused(key: str, shape: tuple[int, ...]) -> None:
    tensors = tensors_of(vit_of(), decoder_of())
    with torch.device("meta"):
        tensors[key] = torch.empty(shape)
    with pytest.raises(CheckpointError):
        model_from_state_dict(tensors)


@pytest.mark.parametrize(
    "other",
    [
        {"decode_head.convs.0.conv.weight": torch.ones(4, 64, 3, 3)},
        {"decode_head.lateral_convs.0.bn.bias": torch.ones(4)},
        {"neck.lateral_convs.0.conv.weight": torch.ones(4)},
    ],
)
def test_another_decode_head_on_a_vit_is_no_segmenter(other: Tensors) -> None:
    tensors = tensors_of(vit_of(), None) | other
    assert not segmenter_keys.recognises(frozenset(tensors))


@pytest.mark.parametrize("prefix", ["backbone.", ""])
def test_a_backbone_alone_is_named_and_refused(prefix: str) -> None:
    vit = VitShape(3, 384, 12, 6, 64, 16, (24, 24))
    with torch.device("meta"):
        whole = Segmenter(SegmenterShape(vit, None, 2)).backbone.state_dict()
    tensors = {f"{prefix}{key}": tensor for key, tensor in whole.items()}
    with pytest.raises(CheckpointError, match=r"ViT-S/16.*384x384.*without decode head") as caught:
        model_from_state_dict(tensors)
    assert "decode_head" in str(caught.value)


# --- what the network computes -------------------------------------------------------------------


def cubic(t: float) -> float:
    """Keys' kernel with a = -0.75, as torch and OpenCV have it."""
    t, a = abs(t), -0.75
    if t <= 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0


def bicubic_matrix(size: int, output: int) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """(output, size): four taps around the centre of each, the border repeated, no antialias."""
    matrix = np.zeros((output, size))
    for i in range(output):
        centre = (i + 0.5) * size / output - 0.5
        start = int(np.floor(centre))
        for tap in range(start - 1, start + 3):
            matrix[i, min(max(tap, 0), size - 1)] += cubic(centre - tap)
    return matrix


@pytest.mark.parametrize("hw", [(8, 8), (3, 2), (5, 9), (2, 9)])
def test_positions_are_resized_bicubically_without_antialias(hw: tuple[int, int]) -> None:
    positions = torch.randn(1, 1 + 24, 5, dtype=torch.float64)
    got = resized_positions(positions, (4, 6), hw, "bicubic")
    grid = positions[0, 1:].numpy().reshape(4, 6, 5)
    rows, columns = bicubic_matrix(4, hw[0]), bicubic_matrix(6, hw[1])
    want = np.einsum("ih,hwc,jw->ijc", rows, grid, columns).reshape(hw[0] * hw[1], 5)
    np.testing.assert_allclose(got[0, 1:].numpy(), want, rtol=0, atol=1e-12)
    assert torch.equal(got[:, 0], positions[:, 0])


def test_as_many_patches_in_another_shape_take_the_positions_in_their_order() -> None:
    """So does mmsegmentation, which compares numbers of patches and not sides."""
    positions = torch.randn(1, 17, 5)
    assert torch.equal(resized_positions(positions, (4, 4), (2, 8), "bicubic"), positions)


@pytest.mark.parametrize("hw", [(50, 64), (64, 33), (49, 17)])
def test_sides_that_are_no_multiples_of_the_patch_are_filled_up_with_zeros(
    hw: tuple[int, int],
) -> None:
    net, _ = model_from_state_dict(tensors_of(vit_of(), decoder_of()))
    image = torch.randn(1, 3, *hw)
    full = torch.zeros(1, 3, 64, -(-hw[1] // 16) * 16)
    full[:, :, : hw[0], : hw[1]] = image
    with torch.no_grad():
        torch.testing.assert_close(net(image), net(full), rtol=0, atol=0)


def test_classes_that_are_left_out_still_take_part() -> None:
    """They share the decoder's attention and the normalisation over classes."""
    tensors = tensors_of(vit_of(), decoder_of(num_classes=6))
    whole, _ = model_from_state_dict(tensors)
    kept, _ = model_from_state_dict(tensors, hints=Hints(keep_outputs=2))
    changed = dict(tensors)
    changed["decode_head.cls_emb"] = tensors["decode_head.cls_emb"].clone()
    changed["decode_head.cls_emb"][:, 5] += torch.randn(64)
    other, _ = model_from_state_dict(changed, hints=Hints(keep_outputs=2))
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(kept(image), whole(image)[:, :2])
        assert float((kept(image) - other(image)).abs().max()) > 1e-3


# --- the original program's names ----------------------------------------------------------------


def original_block(t: Tensors, prefix: str, x: Tensor, heads: int, eps: float = 1e-5) -> Tensor:
    """Written from segm/model/blocks.py: fused qkv, scaled products, exact GELU."""

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(
            x, x.shape[-1:], t[f"{prefix}{name}.weight"], t[f"{prefix}{name}.bias"], eps
        )

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ t[f"{prefix}{name}.weight"].T + t[f"{prefix}{name}.bias"]

    n, length, width = x.shape
    qkv = linear("attn.qkv", norm("norm1", x)).reshape(n, length, 3, heads, width // heads)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    weights = torch.softmax(q @ k.transpose(-1, -2) / (width // heads) ** 0.5, dim=-1)
    x = x + linear("attn.proj", (weights @ v).transpose(1, 2).reshape(n, length, width))
    return x + linear("mlp.fc2", F.gelu(linear("mlp.fc1", norm("norm2", x))))


def original_logits(t: Tensors, image: Tensor, grid: tuple[int, int]) -> Tensor:
    """Written from segm/model/{vit,decoder,segmenter}.py, in whatever dtype `t` has."""
    h, w = image.shape[2:]
    projection = t["encoder.patch_embed.proj.weight"]
    padded = F.pad(image, (0, -w % 16, 0, -h % 16))
    x = F.conv2d(padded, projection, t["encoder.patch_embed.proj.bias"], stride=16)
    rows, columns = x.shape[2:]
    extra = [t[k] for k in ("encoder.cls_token", "encoder.dist_token") if k in t]
    x = torch.cat([*(e.expand(len(x), -1, -1) for e in extra), x.flatten(2).mT], dim=1)
    positions = t["encoder.pos_embed"]
    if positions.shape[1] != x.shape[1]:
        table = positions[:, len(extra) :].reshape(1, *grid, -1).permute(0, 3, 1, 2)
        table = F.interpolate(table, (rows, columns), mode="bilinear", align_corners=False)
        positions = torch.cat([positions[:, : len(extra)], table.flatten(2).mT], dim=1)
    x = x + positions
    for i in range(2):
        x = original_block(t, f"encoder.blocks.{i}.", x, heads=2)
    x = F.layer_norm(x, x.shape[-1:], t["encoder.norm.weight"], t["encoder.norm.bias"])
    x = x[:, len(extra) :]
    masks = original_masks(t, x) if "decoder.cls_emb" in t else original_classes(t, x)
    masks = masks.mT.reshape(len(x), -1, rows, columns)
    return F.interpolate(masks, padded.shape[2:], mode="bilinear")[:, :, :h, :w]


def original_classes(t: Tensors, x: Tensor) -> Tensor:
    return x @ t["decoder.head.weight"].T + t["decoder.head.bias"]


def original_masks(t: Tensors, x: Tensor) -> Tensor:
    classes = t["decoder.cls_emb"]
    x = x @ t["decoder.proj_dec.weight"].T + t["decoder.proj_dec.bias"]
    x = torch.cat([x, classes.expand(len(x), -1, -1)], dim=1)
    x = original_block(t, "decoder.blocks.0.", x, heads=2)
    norm = (t["decoder.decoder_norm.weight"], t["decoder.decoder_norm.bias"])
    x = F.layer_norm(x, x.shape[-1:], *norm)
    patches = x[:, : -classes.shape[1]] @ t["decoder.proj_patch"]
    names = x[:, -classes.shape[1] :] @ t["decoder.proj_classes"]
    patches, names = (v / (v * v).sum(-1, keepdim=True).sqrt() for v in (patches, names))
    masks = patches @ names.mT
    norm = (t["decoder.mask_norm.weight"], t["decoder.mask_norm.bias"])
    return F.layer_norm(masks, masks.shape[-1:], *norm)


def original_tensors(*, mask: bool, distilled: bool = False) -> Tensors:
    """Random tensors by the original's names: width 128, two layers, 4 x 4 patches."""
    dim, hidden, classes = 128, 96, 5
    shapes: dict[str, tuple[int, ...]] = {
        "encoder.cls_token": (1, 1, dim),
        "encoder.pos_embed": (1, 16 + (2 if distilled else 1), dim),
        "encoder.patch_embed.proj.weight": (dim, 3, 16, 16),
        "encoder.patch_embed.proj.bias": (dim,),
        "encoder.norm.weight": (dim,),
        "encoder.norm.bias": (dim,),
        "encoder.head.weight": (1000, dim),
        "encoder.head.bias": (1000,),
    }
    if distilled:
        shapes |= {
            "encoder.dist_token": (1, 1, dim),
            "encoder.head_dist.weight": (1000, dim),
            "encoder.head_dist.bias": (1000,),
        }
    blocks = ["encoder.blocks.0", "encoder.blocks.1"]
    if mask:
        blocks.append("decoder.blocks.0")
        shapes |= {
            "decoder.cls_emb": (1, classes, dim),
            "decoder.proj_patch": (dim, dim),
            "decoder.proj_classes": (dim, dim),
            "decoder.proj_dec.weight": (dim, dim),
            "decoder.proj_dec.bias": (dim,),
        }
        for name, size in (("decoder_norm", dim), ("mask_norm", classes)):
            shapes[f"decoder.{name}.weight"] = shapes[f"decoder.{name}.bias"] = (size,)
    else:
        shapes |= {"decoder.head.weight": (classes, dim), "decoder.head.bias": (classes,)}
    for block in blocks:
        for name, out, into in (
            ("attn.qkv", 3 * dim, dim),
            ("attn.proj", dim, dim),
            ("mlp.fc1", hidden, dim),
            ("mlp.fc2", dim, hidden),
        ):
            shapes |= {f"{block}.{name}.weight": (out, into), f"{block}.{name}.bias": (out,)}
        for name in ("norm1", "norm2"):
            shapes |= {f"{block}.{name}.weight": (dim,), f"{block}.{name}.bias": (dim,)}
    generator = torch.Generator().manual_seed(6)
    return {
        name: torch.randn(shape, generator=generator) / max(shape[-1], 4) ** 0.5
        for name, shape in shapes.items()
    }


@pytest.mark.parametrize(
    ("mask", "distilled"), [(True, False), (False, False), (True, True), (False, True)]
)
@pytest.mark.parametrize("hw", [(64, 64), (96, 32), (70, 101)])
def test_the_originals_checkpoints_give_the_originals_answer(
    mask: bool, distilled: bool, hw: tuple[int, int]
) -> None:
    tensors = original_tensors(mask=mask, distilled=distilled)
    net, found = model_from_state_dict(tensors)
    assert (found.source, found.head) == ("rstrudel", "mask" if mask else "linear")
    assert (found.num_outputs, found.trained_hw) == (5, (64, 64))
    image = torch.randn(2, 3, *hw, dtype=torch.float64)
    want = original_logits({k: t.double() for k, t in tensors.items()}, image, (4, 4))
    assert float(want.std()) > 0.05
    with torch.no_grad():
        for ours in (net.double(), rewritten_for_export(net.double(), hw)):
            got = F.interpolate(ours(image), hw, mode="bilinear", align_corners=False)
            torch.testing.assert_close(got, want, rtol=0, atol=1e-11)


def test_the_originals_projections_are_transposed() -> None:
    tensors = original_tensors(mask=True)
    net, _ = model_from_state_dict(tensors)
    assert torch.equal(
        net.state_dict()["decode_head.patch_proj.weight"], tensors["decoder.proj_patch"].T
    )


def test_a_projection_of_another_rank_is_refused() -> None:
    tensors = original_tensors(mask=True) | {"decoder.proj_patch": torch.ones(3)}
    with pytest.raises(CheckpointError, match=r"patch_proj\.weight \(3,\)"):
        model_from_state_dict(tensors)


# --- layers of quantization-aware training -------------------------------------------------------


@pytest.mark.parametrize(
    ("style", "module", "paths", "same"),
    [
        ("mmsegmentation", "backbone.layers.3.attn.attn", ["q", "k", "v"], False),
        ("rstrudel", "encoder.blocks.3.attn.qkv", ["q", "k", "v"], False),
        ("mmsegmentation", "backbone.layers.3.attn.attn.out_proj", ["out_proj"], True),
        ("rstrudel", "encoder.blocks.3.attn.proj", ["out_proj"], True),
    ],
)
def test_attention_is_found_after_the_rewrites(
    style: str, module: str, paths: list[str], same: bool
) -> None:
    expected = tuple(f"backbone.layers.3.attn.{path}" for path in paths)
    assert segmenter_keys.layer_paths(module, style) == expected
    assert segmenter_keys.writes_the_same(module, style) == same


def test_every_weight_is_listed_under_a_layer_of_the_rewritten_network() -> None:
    net, _ = model_from_state_dict(tensors_of(vit_of(depth=2), decoder_of()))
    weights = segmenter_keys.layer_weights(net)
    rewritten = dict(rewritten_for_export(net, (64, 64)).named_modules())
    assert weights.keys() <= rewritten.keys()
    layers = (nn.Linear, nn.Conv2d, nn.LayerNorm)
    assert {path for path, m in rewritten.items() if isinstance(m, layers)} == weights.keys()
    for path, weight in weights.items():
        assert rewritten[path].weight.shape == weight.shape  # type: ignore[union-attr]


# --- exact rewrites ------------------------------------------------------------------------------

HW = (64, 64)


def double(module: nn.Module) -> nn.Module:
    torch.manual_seed(2)
    for name, parameter in module.named_parameters():
        scale = parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.3
        nn.init.normal_(parameter, std=scale)
        if name.endswith("weight") and parameter.dim() == 1:
            parameter.data += 1.0
    return module.double().eval()


def assert_same(want: Tensor, got: Tensor) -> None:
    assert float(want.std()) > 1e-2, "a constant answer would prove nothing"
    torch.testing.assert_close(got, want, rtol=0, atol=1e-11)


@torch.no_grad()
@pytest.mark.parametrize(("heads", "bias"), [(1, True), (4, True), (4, False)])
def test_the_scale_inside_the_queries_changes_nothing(heads: int, bias: bool) -> None:
    attention = double(SelfAttention(32, heads, bias))
    assert isinstance(attention, SelfAttention)
    x = torch.randn(2, 9, 32, dtype=torch.float64)
    assert_same(attention(x), ScaledQueries(attention.num_heads, attention.attn)(x))


@torch.no_grad()
@pytest.mark.parametrize("changes", [{}, {"patch_bias": False}, {"class_tokens": 2},
                                     {"positions": "bilinear"}, {"final_norm": False}])  # fmt: skip
@pytest.mark.parametrize("hw", [HW, (96, 40), (50, 70)])
@pytest.mark.parametrize("known", [True, False])
def test_positions_class_token_and_bias_as_one_constant_change_nothing(
    changes: dict[str, object], hw: tuple[int, int], known: bool
) -> None:
    vit = double(VisionTransformer(vit_of(**changes)))
    assert isinstance(vit, VisionTransformer)
    image = torch.randn(2, 3, *hw, dtype=torch.float64)
    want = vit(image)
    tokens, grid = TokenEncoder(vit, hw if known else None)(image)
    assert grid == want.shape[2:]
    assert_same(want, tokens.mT.reshape(want.shape))


@torch.no_grad()
@pytest.mark.parametrize("outputs", [1, 4])
def test_the_mask_head_on_tokens_changes_nothing(outputs: int) -> None:
    head = double(MaskTransformerHead(48, decoder_of(num_heads=2), outputs))
    assert isinstance(head, MaskTransformerHead)
    x = torch.randn(2, 48, 3, 5, dtype=torch.float64)
    want = head(x)
    assert want.shape == (2, outputs, 3, 5)
    assert_same(want, TokenMasks(head)((x.flatten(2).mT, (3, 5))))


@torch.no_grad()
def test_patches_of_no_length_stay_finite_as_in_the_original() -> None:
    head = double(MaskTransformerHead(48, decoder_of(), 4))
    assert isinstance(head, MaskTransformerHead)
    head.patch_proj.weight.zero_()
    x = torch.randn(1, 48, 2, 2, dtype=torch.float64)
    want, got = head(x), TokenMasks(head)((x.flatten(2).mT, (2, 2)))
    assert torch.isfinite(got).all()
    torch.testing.assert_close(got, want, rtol=0, atol=0)


@torch.no_grad()
def test_the_linear_head_on_tokens_changes_nothing() -> None:
    head = double(LinearHead(48, 3))
    assert isinstance(head, LinearHead)
    x = torch.randn(2, 48, 3, 5, dtype=torch.float64)
    assert_same(head(x), TokenClassifier(head)((x.flatten(2).mT, (3, 5))))


@pytest.mark.parametrize("decoder", [decoder_of(), None])
def test_rewriting_leaves_the_original_as_it_was(decoder: MaskDecoderShape | None) -> None:
    net, _ = model_from_state_dict(tensors_of(vit_of(), decoder))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    rewritten = rewritten_for_export(net, HW)
    with torch.no_grad():
        for parameter in rewritten.parameters():
            parameter.zero_()
    after = net.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def counted(net: nn.Module, kind: Callable[..., Tensor], image: Tensor) -> int:
    """Calls of an operation of torch while `net` runs."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Counter(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            self.count += func.overloadpacket is kind
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), Counter() as mode:
        net(image)
    return mode.count


def test_the_positions_are_resized_once_at_export_and_never_again() -> None:
    net, _ = model_from_state_dict(tensors_of(vit_of(), decoder_of()))
    image = torch.randn(1, 3, 96, 80)
    kind = torch.ops.aten.upsample_bicubic2d
    assert counted(net, kind, image) == 1
    assert counted(rewritten_for_export(net, (96, 80)), kind, image) == 0
