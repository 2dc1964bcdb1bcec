"""Mask2Former's parts against computations written out here, its checkpoints, and its rewrites.

Against mmsegmentation's own modules: tests/reference/test_mask2former.py.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType
from unittest import mock

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from calibration.fp16 import fp16_onnx_from_onnx
from engines.errors import CheckpointError, ConfigError
from engines.progress import SilentProgress
from engines.trt.layer_names import module_path
from exporter.architectures import mask2former_keys as keys
from exporter.architectures.deformable import (
    MultiScaleDeformableAttention,
    sampled_by_gather,
    sampled_by_grid,
    with_gather_sampling,
)
from exporter.architectures.description import Hints
from exporter.architectures.mask2former import Mask2Former, SemanticMasks
from exporter.architectures.mask_decoder import attention_bias, mask_products, shrunk
from exporter.architectures.pixel_decoder import sine_positions
from exporter.export import export_bundle
from exporter.onnx_graph import (
    GraphSpec,
    decomposed_layer_norms,
    multiplied_at,
    onnx_from_model,
)
from exporter.request import DataOptions, ExportRequest, GraphOptions
from exporter.rewrites.mask2former import ConstantPlaces, FoldedMaskHead
from exporter.rewrites.rewritten import rewritten_for_export
from exporter.simplify import simplify_onnx
from tests.architectures.tiny_mask2former import (
    EXAMPLES,
    RESNET,
    RESNET_SHAPE,
    SWIN_SHAPE,
    network,
    tiny_shape,
)
from tests.rtx.builder import outcome_of_build

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
SIZES = ((2, 3), (4, 6), (5, 4))
FORBIDDEN = {"Shape", "Loop", "If", "NonZero", "Where", "ScatterND", "Range", "ConstantOfShape",
             "Expand", "Einsum"}  # fmt: skip
# One layer of each kind, for what costs time for every layer.
SMALL_SHAPE = tiny_shape(RESNET, layers=(1, 1))


@cache
def resnet_model() -> Mask2Former:
    return network(RESNET_SHAPE, seed=7).eval()


def tensors() -> dict[str, Tensor]:
    return dict(resnet_model().state_dict())


def image(hw: tuple[int, int], count: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    coarse = torch.randn(count, 3, 6, 5, generator=generator)
    soft = F.interpolate(coarse, hw, mode="bilinear", align_corners=False)
    return soft + 0.3 * torch.randn(count, 3, *hw, generator=generator)


# --- sampling ------------------------------------------------------------------------------------


def written_out(
    value: NDArray[np.float64], grid: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Deformable attention's sums with loops; arguments as those of `sampled_by_grid`."""
    images, queries, heads, levels, points, _ = grid.shape
    dim = value.shape[2] // heads
    out = np.zeros((images, queries, heads, dim))
    for n, q, head, level, point in np.ndindex(images, queries, heads, levels, points):
        h, w = SIZES[level]
        start = sum(a * b for a, b in SIZES[:level])
        x, y = ((grid[n, q, head, level, point] + 1) * (w, h) - 1) / 2
        for row in range(h):
            for column in range(w):
                near = max(0.0, 1 - abs(x - column)) * max(0.0, 1 - abs(y - row))
                pixel = value[n, start + row * w + column, head * dim : (head + 1) * dim]
                out[n, q, head] += near * weights[n, q, head, level, point] * pixel
    return out.reshape(images, queries, heads * dim)


@pytest.mark.parametrize("sampled", [sampled_by_grid, sampled_by_gather])
def test_samples_are_bilinear_with_zeros_beyond_the_edges(sampled: object) -> None:
    rng = np.random.default_rng(0)
    value = rng.normal(size=(2, sum(h * w for h, w in SIZES), 6))
    grid = rng.uniform(-1.6, 1.6, size=(2, 5, 2, 3, 4, 2))
    grid[0, 0, 0, :, :3] = [[-1, 1], [0, 0], [1.001, -1.5]]  # edges, a middle, just outside
    weights = rng.normal(size=grid.shape[:5])
    arguments = (torch.from_numpy(a) for a in (value, grid, weights))
    got = sampled(*arguments, SIZES).numpy()  # type: ignore[operator]
    np.testing.assert_allclose(got, written_out(value, grid, weights), rtol=0, atol=1e-12)


@pytest.mark.parametrize("sampled", [sampled_by_grid, sampled_by_gather])
def test_places_far_away_count_nothing(sampled: object) -> None:
    value = torch.randn(1, sum(h * w for h, w in SIZES), 4)
    grid = torch.full((1, 2, 2, 3, 2, 2), 3e4)
    grid[:, 1] = -1e30
    got = sampled(value, grid, torch.ones(grid.shape[:5]), SIZES)  # type: ignore[operator]
    assert torch.equal(got, torch.zeros(1, 2, 4))


def test_the_attention_is_written_out_as_in_the_paper() -> None:
    """MSDeformAttn's formula: sum over heads of W (sum over samples of A * W' x(p + offset))."""
    torch.manual_seed(1)
    attention = MultiScaleDeformableAttention(8, 2, 3, 2).double()
    tokens = sum(h * w for h, w in SIZES)
    x, positions = torch.randn(2, tokens, 8).double(), torch.randn(tokens, 8).double()
    with torch.no_grad():
        got = attention(x, positions, SIZES)
        offsets = attention.sampling_offsets(x + positions).reshape(2, tokens, 2, 3, 2, 2).numpy()
        scores = attention.attention_weights(x + positions).reshape(2, tokens, 2, 6)
        weights = scores.softmax(3).reshape(2, tokens, 2, 3, 2).numpy()
        grid, token = np.zeros_like(offsets), 0
        for h, w in SIZES:
            for row, column in np.ndindex(h, w):
                for level, (high, wide) in enumerate(SIZES):
                    own = np.array([(column + 0.5) / w, (row + 0.5) / h])
                    place = own + offsets[:, token, :, level] / (wide, high)
                    grid[:, token, :, level] = 2 * place - 1
                token += 1
        value = attention.value_proj(x).numpy()
        want = attention.output_proj(torch.from_numpy(written_out(value, grid, weights)))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


# --- parts of the decoders -----------------------------------------------------------------------


def test_attention_stays_inside_a_mask_and_goes_everywhere_where_there_is_none() -> None:
    masks = torch.tensor([[[[-2.0, 0.5], [0.0, -0.1]], [[-1.0, -2.0], [-3.0, -1e-6]]]])
    bias = attention_bias(masks)
    assert bias.shape == (1, 1, 2, 4)
    assert bias.flatten().tolist() == [-1e4, 0, 0, -1e4, 0, 0, 0, 0]
    weights = (torch.randn(1, 3, 2, 4) * 50 + bias).softmax(dim=3)
    assert (weights[:, :, 0, [0, 3]] == 0).all()
    assert (weights[:, :, 1].sum(dim=2) - 1).abs().max() < 1e-6


def test_positions_are_sines_of_y_then_of_x() -> None:
    table = sine_positions((3, 5), torch.empty(1, 12, dtype=torch.float64)).reshape(3, 5, 12)
    y, x = 2 / (3 + 1e-6) * 2 * math.pi, 4 / (5 + 1e-6) * 2 * math.pi  # row 1, column 3
    waves = [10000 ** (i / 6) for i in (0, 2, 4)]
    want = [f(place / wave) for place in (y, x) for wave in waves for f in (math.sin, math.cos)]
    torch.testing.assert_close(table[1, 3], torch.tensor(want, dtype=torch.float64))


@pytest.mark.parametrize("hw", [(8, 12), (4, 6), (2, 3), (16, 24), (5, 7), (8, 7)])
def test_shrinking_is_torchs_resize_to_that_size(hw: tuple[int, int]) -> None:
    x = torch.randn(2, 3, 16, 24)
    want = F.interpolate(x, hw, mode="bilinear", align_corners=False)
    torch.testing.assert_close(shrunk(x, hw), want)


def test_an_image_is_filled_up_with_zeros_below_and_to_the_right() -> None:
    model, x = resnet_model(), image((70, 90))
    filled = torch.zeros(1, 3, 96, 96)
    filled[:, :, :70, :90] = x
    with torch.no_grad():
        torch.testing.assert_close(model(x), model(filled)[:, :, :70, :90])


def test_a_model_that_is_told_not_to_fill_up_images_is_rewritten_all_the_same() -> None:
    """Maps whose sizes are no whole multiples of each other, as in ADE20K's Swin-B and Swin-L."""
    net, _ = keys.model_from_tensors(tensors(), Hints(size_divisor=1))
    x = image((70, 90)).double()
    with torch.no_grad():
        want = net.double()(x)
        torch.testing.assert_close(rewritten(net)(x), want, rtol=0, atol=1e-10)
        assert (resnet_model()(x.float()) - want).abs().max() > 1e-3


@pytest.mark.parametrize("divisor", [0, -32, 10**9])
def test_impossible_divisors_are_refused(divisor: int) -> None:
    with pytest.raises(ConfigError, match="size_divisor"):
        keys.model_from_tensors(tensors(), Hints(size_divisor=divisor))


@pytest.mark.parametrize("kept", [5, 2])
def test_the_sum_over_queries_is_taken_at_the_size_of_the_input(kept: int) -> None:
    classes, masks = torch.randn(2, 7, 6).double(), 3 * torch.randn(2, 7, 16, 24).double()
    got = SemanticMasks(kept)(classes, masks, (64, 96), (60, 90))
    large = F.interpolate(masks, (64, 96), mode="bilinear", align_corners=False).sigmoid()
    want = torch.einsum("nqc,nqhw->nchw", classes.softmax(2)[..., :-1], large)
    torch.testing.assert_close(got, want[:, :kept, :60, :90], rtol=0, atol=1e-12)


def test_the_sum_at_a_quarter_of_the_size_is_another_function_and_has_to_be_asked_for() -> None:
    classes, masks = torch.randn(2, 7, 6).double(), 3 * torch.randn(2, 7, 16, 24).double()
    exact = SemanticMasks(5)(classes, masks, (64, 96), (60, 90))
    got = SemanticMasks(5, "quarter")(classes, masks, (64, 96), (60, 90))
    small = torch.einsum("nqc,nqhw->nchw", classes.softmax(2)[..., :-1], masks.sigmoid())
    want = F.interpolate(small, (64, 96), mode="bilinear", align_corners=False)
    torch.testing.assert_close(got, want[:, :, :60, :90], rtol=0, atol=1e-12)
    assert (got.argmax(1) != exact.argmax(1)).any()


def test_quarter_products_are_another_model_on_the_same_weights() -> None:
    net = EXAMPLES[0].make()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = net(x)
        other = multiplied_at(net, "quarter")
        assert not torch.equal(other(x), before)
        torch.testing.assert_close(net(x), before, rtol=0, atol=0)
        torch.testing.assert_close(multiplied_at(net, "input")(x), before, rtol=0, atol=0)
    assert multiplied_at(net, None) is net
    assert all(a is b for a, b in zip(net.parameters(), other.parameters(), strict=True))


def test_a_network_without_masks_has_no_quarter_products() -> None:
    with pytest.raises(ConfigError, match="--mask-products quarter; expected a Mask2Former"):
        multiplied_at(nn.Identity(), "quarter")


def test_an_export_with_quarter_products_is_verified_and_compared_with_what_was_trained(
    tmp_path: Path,
) -> None:
    path = tmp_path / "tiny.pth"
    net = EXAMPLES[0].make()
    torch.save({"state_dict": net.state_dict()}, path)
    for part in ("images", "masks"):
        (tmp_path / "data" / part / "val").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(2):
        image = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(image).save(tmp_path / f"data/images/val/{number}.png")
        mask = rng.integers(0, 3, (64, 64), dtype=np.uint8)
        Image.fromarray(mask).save(tmp_path / f"data/masks/val/{number}.png")
    result = export_bundle(
        ExportRequest(
            path,
            tmp_path / "bundle",
            graph=GraphOptions(size=(64, 64), mask_products="quarter"),
            data=DataOptions(val=tmp_path / "data"),
            max_drop=100.0,
            runs=1,
        ),
        SilentProgress(),
    )
    pytorch, fp32 = result.report["rows"]
    assert pytorch["agreement"] == 100.0
    assert 50.0 < fp32["agreement"] < 100.0
    assert any("a quarter of the size" in warning for warning in result.report["warnings"])


# --- checkpoints ---------------------------------------------------------------------------------


def old_name(key: str) -> str:
    """mmdetection 2 numbered a layer's attentions (in the decoder, cross comes first) and FFNs."""
    if not key.startswith("decode_head."):
        return key
    own = ".attentions.1." if "transformer_decoder" in key else ".attentions.0."
    key = key.replace(".cross_attn.", ".attentions.0.").replace(".self_attn.", own)
    return key.replace(".ffn.", ".ffns.0.")


def panoptic_name(key: str) -> str:
    return key.replace("decode_head.", "panoptic_head.", 1)


@pytest.mark.parametrize(
    ("rename", "source"),
    [
        (lambda key: key, "mmsegmentation"),
        (old_name, "mmsegmentation 0.x"),
        (panoptic_name, "mmdetection"),
        (lambda key: panoptic_name(old_name(key)), "mmdetection 2.x"),
    ],
)
def test_each_openmmlab_style_gives_the_same_model(rename: object, source: str) -> None:
    renamed = {rename(key): tensor for key, tensor in tensors().items()}  # type: ignore[operator]
    assert keys.recognises(frozenset(renamed))
    net, description = keys.model_from_tensors(renamed)
    assert description.source == source
    got = net.state_dict()
    assert got.keys() == tensors().keys()
    assert all(torch.equal(got[key], tensor) for key, tensor in tensors().items())


def test_a_deeper_wider_decoder_is_found_from_its_tensors() -> None:
    shape = replace(
        RESNET_SHAPE,
        pixels=replace(RESNET_SHAPE.pixels, channels=64, layers=3, levels=2, points=3, heads=4),
        masks=replace(
            RESNET_SHAPE.masks, channels=64, queries=11, layers=2, heads=4, classes=3, hidden=24
        ),
    )
    model = Mask2Former(shape).eval()
    found, description = keys.model_from_tensors(model.state_dict(), Hints(num_heads=4))
    assert isinstance(found, Mask2Former)
    assert found.shape == shape
    assert description.assumed == ()
    assert (description.head_channels, description.num_outputs) == (64, 3)


def test_the_number_of_heads_that_nobody_says_is_said_to_be_assumed() -> None:
    _, description = keys.model_from_tensors(tensors())
    assert len(description.assumed) == 1
    assert "8 heads" in description.assumed[0]
    assert "2 points" in description.assumed[0]


@pytest.mark.parametrize("heads", [0, -1, 3, 33, 64])
def test_heads_that_do_not_divide_the_channels_are_refused(heads: int) -> None:
    with pytest.raises((ConfigError, CheckpointError), match=f"{heads} (attention )?heads"):
        keys.model_from_tensors(tensors(), Hints(num_heads=heads))


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("pixel_decoder.level_encoding.weight", (0, 32)),
        ("pixel_decoder.level_encoding.weight", (5, 32)),
        ("pixel_decoder.level_encoding.weight", ()),
        ("pixel_decoder.mask_feature.weight", (24, 40, 1, 1)),
        ("pixel_decoder.mask_feature.weight", (24, 0, 1, 1)),
        ("pixel_decoder.encoder.layers.0.self_attn.sampling_offsets.weight", (97, 32)),
        ("pixel_decoder.encoder.layers.0.self_attn.sampling_offsets.weight", (0, 32)),
        ("cls_embed.weight", (1, 32)),
        ("cls_embed.weight", ()),
        ("query_feat.weight", (7,)),
        ("query_feat.weight", (7, 36)),
        ("query_feat.weight", (7, 0)),
    ],
)
def test_shapes_that_no_mask2former_has_are_refused(key: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(CheckpointError):
        keys.model_from_tensors(tensors() | {f"decode_head.{key}": torch.zeros(shape)})


def test_strides_that_maps_of_a_quarter_to_a_32nd_cannot_come_from_are_refused() -> None:
    with pytest.raises(ConfigError, match="strides of 1 and 2"):
        keys.model_from_tensors(tensors(), Hints(strides=(1, 3, 2, 2)))


# --- rewrites ------------------------------------------------------------------------------------


def doubles(shape: object = RESNET_SHAPE, seed: int = 7) -> Mask2Former:
    return network(shape, seed=seed).double().eval()  # type: ignore[arg-type]


@pytest.mark.parametrize("sampling", ["grid_sample", "gather"])
def test_constant_places_are_the_same_attention(sampling: str) -> None:
    torch.manual_seed(2)
    attention = MultiScaleDeformableAttention(16, 2, 3, 4).double().eval()
    x = torch.randn(2, sum(h * w for h, w in SIZES), 16).double()
    positions = torch.randn(x.shape[1], 16).double()
    with torch.no_grad():
        want = attention(x, positions, SIZES)
        attention.sampling = sampling  # type: ignore[assignment]
        got = ConstantPlaces(attention)(x, positions, SIZES)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("projections", [False, True])
def test_a_folded_head_is_the_same_function_and_thresholds_the_same_numbers(
    projections: bool,
) -> None:
    model = doubles(SWIN_SHAPE, 3) if projections else doubles()
    seen: list[list[Tensor]] = [[], []]
    maps = model.backbone(image((96, 64), 2).double())
    with torch.no_grad():
        heads = (model.decode_head, FoldedMaskHead(copy.deepcopy(model.decode_head)))
        for i, head in enumerate(heads):
            with thresholded(seen[i]):
                classes, masks = head([m.clone() for m in maps])
            seen[i] += [classes, masks]
    assert len(seen[0]) == len(seen[1]) == 2 + len(model.decode_head.transformer_decoder.layers)
    for got, want in zip(seen[1], seen[0], strict=True):
        got, want = torch.broadcast_tensors(got, want)
        torch.testing.assert_close(got, want, rtol=0, atol=1e-10)
    outside = torch.cat([masks.expand(2, -1, -1, -1).flatten() for masks in seen[0][:-2]]) < 0
    assert 0.1 < outside.double().mean() < 0.9, "masks that hide nothing or everything"


def test_it_is_the_same_function_with_an_image_filled_up_and_queries_without_a_mask() -> None:
    """Masks so low that many queries have none: they look everywhere, folded or not."""
    model = doubles()
    seen: list[Tensor] = []
    with torch.no_grad():
        direction = model.decode_head.mask_embed[4].bias
        model.decode_head.pixel_decoder.mask_feature.bias -= direction / direction.norm()
        with thresholded(seen):
            want = model(image((70, 90)).double())
        got = rewritten(model)(image((70, 90)).double())
    empty = torch.cat([(masks < 0).all(dim=3).all(dim=2).flatten() for masks in seen])
    assert 0.05 < empty.double().mean() < 0.95
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


@contextmanager
def thresholded(seen: list[Tensor]) -> Iterator[None]:
    """Appends all masks that attention masks are made of."""

    def noted(masks: Tensor) -> Tensor:
        seen.append(masks)
        return attention_bias(masks)

    with (
        mock.patch("exporter.architectures.mask_decoder.attention_bias", noted),
        mock.patch("exporter.rewrites.mask2former.attention_bias", noted),
    ):
        yield


@pytest.mark.parametrize("sampling", ["before", "after"])
@pytest.mark.parametrize("hw", [(64, 96), (90, 70)])
def test_the_gather_form_is_the_same_function(hw: tuple[int, int], sampling: str) -> None:
    model, x = doubles(), image(hw, 2).double()
    with torch.no_grad():
        want = model(x)
        if sampling == "before":
            got = rewritten_for_export(with_gather_sampling(model))(x)
        else:
            got = with_gather_sampling(rewritten_for_export(model))(x)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


def test_the_rewrites_save_multiplications() -> None:
    """What the heads' convolutions and products multiply, counted in the graphs' shapes."""
    model = resnet_model()
    before, after = (multiplications(net, (128, 128)) for net in (model, rewritten(model)))
    shape = model.shape
    queries, layers = shape.masks.queries, shape.masks.layers
    finest, width = 32 * 32, shape.pixels.channels
    assert before["masks"] == (layers + 1) * queries * finest * shape.pixels.out_channels
    # Two layers look at 4x4, one at 8x8, one at 16x16; the last masks have the finest size.
    cells = 2 * 4 * 4 + 8 * 8 + 16 * 16 + finest
    assert after["masks"] == queries * cells * width
    assert before["mask_feature"] == finest * width * shape.pixels.out_channels
    assert after["mask_feature"] == 0


def rewritten(model: nn.Module) -> nn.Module:
    return rewritten_for_export(model)


def multiplications(net: nn.Module, hw: tuple[int, int]) -> Counter[str]:
    counted: Counter[str] = Counter()

    def products(embedded: Tensor, features: Tensor) -> Tensor:
        counted["masks"] += embedded[0].numel() * features[0, 0].numel()
        return mask_products(embedded, features)

    def convolution(module: nn.Module, _inputs: object, output: Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            counted["mask_feature"] += output[0].numel() * module.in_channels

    conv = net.decode_head.pixel_decoder.mask_feature  # type: ignore[union-attr]
    hook = conv.register_forward_hook(convolution)  # type: ignore[operator, union-attr]
    with (
        torch.no_grad(),
        mock.patch("exporter.architectures.mask_decoder.mask_products", products),
        mock.patch("exporter.rewrites.mask2former.mask_products", products),
    ):
        net(image(hw))
    hook.remove()
    return counted


# --- graphs --------------------------------------------------------------------------------------


def traced(net: nn.Module, path: Path, hw: tuple[int, int], **options: object) -> onnx.ModelProto:
    spec = GraphSpec(hw, MEAN, STD, output="logits", **options)  # type: ignore[arg-type]
    onnx_from_model(net, spec, path.with_name("traced.onnx"), num_outputs=5)
    batch = np.zeros((spec.batch[1], *hw, 3), dtype=np.uint8)
    simplify_onnx(path.with_name("traced.onnx"), path, batch=batch)
    return onnx.load(path)


def pictures(count: int, hw: tuple[int, int]) -> NDArray[np.uint8]:
    x = image(hw, count).permute(0, 2, 3, 1).numpy() * STD + MEAN
    return np.clip(x, 0, 255).astype(np.uint8)


def check_answers(path: Path, model: nn.Module, images: NDArray[np.uint8]) -> None:
    x = (torch.from_numpy(images).float() - torch.tensor(MEAN)) / torch.tensor(STD)
    with torch.no_grad():
        want = model(x.permute(0, 3, 1, 2)).numpy()
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"image": images})
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-3 * want.std())


@pytest.fixture(scope="module")
def gather_graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gather") / "graph.onnx"
    traced(with_gather_sampling(rewritten(network(SMALL_SHAPE))), path, (64, 96), batch=(1, 2, 3))
    return path


def test_the_gather_form_has_no_grid_sample_and_plain_operators(gather_graph: Path) -> None:
    operators = {node.op_type for node in onnx.load(gather_graph).graph.node}
    assert "GridSample" not in operators
    assert not FORBIDDEN & operators


@pytest.mark.parametrize("count", [1, 3])
def test_the_gather_forms_graph_takes_any_batch(gather_graph: Path, count: int) -> None:
    check_answers(gather_graph, network(SMALL_SHAPE), pictures(count, (64, 96)))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_tensorrt_takes_the_gather_form(
    tensorrt_rtx: ModuleType, gather_graph: Path, tmp_path: Path, precision: str
) -> None:
    path = gather_graph
    if precision == "fp16":
        path = tmp_path / "fp16.onnx"
        fp16_onnx_from_onnx(gather_graph, path)
    outcome = outcome_of_build(tensorrt_rtx, path, batch=(1, 2, 3))
    assert outcome.errors == []
    assert outcome.plan_bytes > 0


@pytest.mark.parametrize("opset", [16, 19])
def test_grid_sample_is_written_as_tensorrt_reads_it(tmp_path: Path, opset: int) -> None:
    """Three a layer, mode "bilinear": the "linear" of operator set 20 is read as "nearest"."""
    model = traced(rewritten(network(SMALL_SHAPE)), tmp_path / "a.onnx", (64, 64), opset=opset)
    nodes = [node for node in model.graph.node if node.op_type == "GridSample"]
    assert len(nodes) == 3 * SMALL_SHAPE.pixels.layers
    for node in nodes:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        assert attributes["mode"] == b"bilinear"
        assert attributes["padding_mode"] == b"zeros"
        assert attributes["align_corners"] == 0
    check_answers(tmp_path / "a.onnx", network(SMALL_SHAPE), pictures(1, (64, 64)))


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> onnx.GraphProto:
    path = tmp_path_factory.mktemp("graph") / "graph.onnx"
    return traced(rewritten(resnet_model()), path, (64, 96)).graph


def test_what_does_not_depend_on_the_image_is_a_constant(graph: onnx.GraphProto) -> None:
    """No sine, no floor of a position, no norm of the learned queries is left."""
    count = Counter(node.op_type for node in graph.node)
    assert not {"Sin", "Cos", "Div", "Clip", "Gather"} & count.keys()
    layers = RESNET_SHAPE.pixels.layers, RESNET_SHAPE.masks.layers
    # Two a pixel decoder's layer, three a mask decoder's, and one before each prediction: the
    # first of these is of the learned queries.
    assert count["LayerNormalization"] == 2 * layers[0] + 3 * layers[1] + layers[1]


def test_every_layer_of_a_checkpoint_is_found_in_the_graph_by_its_path(
    graph: onnx.GraphProto,
) -> None:
    model = resnet_model()
    found = {
        module_path(node.name).removeprefix("net.")
        for node in graph.node
        if node.op_type in ("MatMul", "Gemm", "Conv")
    }
    expected = {p for p, w in keys.layer_weights(model).items() if w.dim() > 1}
    # Learned queries and levels, what only they go through, and what is folded into `mask_embed`.
    assert expected - found == {
        "decode_head.query_embed",
        "decode_head.query_feat",
        "decode_head.level_embed",
        "decode_head.pixel_decoder.level_encoding",
        "decode_head.pixel_decoder.mask_feature",
        "decode_head.transformer_decoder.layers.0.cross_attn.q",
    }


def test_norms_that_fall_apart_are_found_though_one_is_used_many_times(tmp_path: Path) -> None:
    """Below operator set 17; the norm before each prediction has numbered names."""
    net = network(tiny_shape(RESNET, layers=(1, 2)))
    model = traced(rewritten(net), tmp_path / "a.onnx", (64, 64), opset=16)
    held = decomposed_layer_norms(net, model)
    roots = {node.name for node in model.graph.node if node.op_type == "Sqrt"}
    assert len(roots) == 2 * 1 + 3 * 2 + 2
    assert roots <= set(held)


def test_paths_of_the_styles_lead_to_the_same_layers() -> None:
    first = "decode_head.transformer_decoder.layers.1"
    want = tuple(f"{first}.cross_attn.{part}" for part in "qkv")
    assert keys.layer_paths(f"{first}.cross_attn.attn", "mmsegmentation") == want
    assert keys.layer_paths(f"{first}.attentions.0.attn", "mmsegmentation 0.x") == want
    assert keys.layer_paths(f"{first}.attentions.1.attn.out_proj", "mmsegmentation 0.x") == (
        f"{first}.self_attn.out_proj",
    )
    assert keys.layer_paths(f"{first}.ffns.0.layers.0.0", "mmsegmentation 0.x") == (
        f"{first}.ffn.layers.0.0",
    )
    encoder = "decode_head.pixel_decoder.encoder.layers.0"
    assert keys.layer_paths(f"{encoder}.attentions.0.value_proj", "mmsegmentation 0.x") == (
        f"{encoder}.self_attn.value_proj",
    )


@pytest.mark.parametrize(
    ("module", "same"),
    [
        ("decode_head.pixel_decoder.encoder.layers.0.self_attn.sampling_offsets", True),
        ("decode_head.pixel_decoder.encoder.layers.0.self_attn.value_proj", True),
        ("decode_head.pixel_decoder.encoder.layers.0.ffn.layers.1", True),
        ("decode_head.pixel_decoder.lateral_convs.0.conv", True),
        ("decode_head.mask_embed.2", True),
        ("decode_head.cls_embed", True),
        ("decode_head.mask_embed.4", False),
        ("decode_head.transformer_decoder.layers.0.cross_attn.attn", False),
        ("decode_head.transformer_decoder.layers.0.self_attn.attn.out_proj", False),
        ("backbone.layer1.0.conv2", False),
    ],
)
def test_layers_that_the_rewrites_change_are_told_apart(module: str, same: bool) -> None:
    assert keys.writes_the_same(module, "mmsegmentation") is same
