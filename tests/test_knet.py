"""K-Net: what its checkpoints tell, its stages written out, and its rewrites."""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engines.errors import CheckpointError, ConfigError
from engines.trt.layer_names import module_path
from exporter.architectures import knet_keys
from exporter.architectures.description import NO_HINTS, Hints
from exporter.architectures.kernel_update import (
    KernelUpdateHead,
    StageShape,
    gathered_features,
    masks_from_kernels,
)
from exporter.architectures.knet import Knet, KnetShape
from exporter.architectures.resnet import ResNetShape
from exporter.architectures.swin import SwinShape
from exporter.onnx_graph import GraphSpec, onnx_from_model
from exporter.rewrites import knet
from exporter.rewrites.rewritten import rewritten_for_export
from tests.architectures.example import lively
from tests.architectures.tiny_knet import RESNET_8, STAGE, SWIN, shape_of

SAID = Hints(
    align_corners=False,
    strides=(1, 2, 1, 1),
    dilations=(1, 1, 2, 4),
    contract_dilation=True,
    head_dilations=(1, 2, 3, 4),
    pool_scales=(1, 2, 3, 6),
    num_heads=4,
)
RESNET_32 = ResNetShape(depths=(1, 1, 1, 1), base_width=4, stem_width=8)
PUBLISHED_STAGE = StageShape(512, 256, 8, (2048,), 1, has_feature_transform=True)
SWIN_L = SwinShape(3, 192, (2, 2, 18, 2), (6, 12, 24, 48), 7)
PUBLISHED = {
    "r50-deeplabv3": ("deeplabv3", ResNetShape()),
    "r50-upernet": ("upernet", ResNetShape()),
    "swin-t-upernet": ("upernet", SwinShape(3, 96, (2, 2, 6, 2), (3, 6, 12, 24), 7)),
    "swin-l-upernet": ("upernet", SWIN_L),
}


def tensors_of(shape: KnetShape) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return dict(Knet(shape).state_dict())


def loaded(tensors: dict[str, Tensor], hints: Hints = SAID) -> Any:
    return knet_keys.model_from_tensors(tensors, hints)


# --- checkpoints ---------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", PUBLISHED)
def test_each_variant_is_found_from_its_shapes(variant: str) -> None:
    head_kind, backbone = PUBLISHED[variant]
    shape = shape_of(
        head_kind, backbone, channels=512, num_outputs=150, stages=(PUBLISHED_STAGE,) * 3
    )
    with torch.device("meta"):
        tensors = dict(Knet(shape).state_dict())
    model, description = loaded(tensors, NO_HINTS)
    assert description.name == f"knet-{variant}"
    assert description.head == head_kind
    assert (description.num_outputs, description.head_channels) == (150, 512)
    assert model.shape.stages == (PUBLISHED_STAGE,) * 3


@pytest.mark.parametrize(
    ("count", "hidden", "mask_layers", "transform", "width"),
    list(itertools.product([1, 3], [(), (24,), (24, 40)], [0, 2], [True, False], [4, 16])),
)
def test_stages_are_found_for_many_shapes(
    count: int, hidden: tuple[int, ...], mask_layers: int, transform: bool, width: int
) -> None:
    other = StageShape(16, width, 4, hidden, mask_layers, transform)
    shape = shape_of("upernet", SWIN, stages=(other,) + (STAGE,) * (count - 1))
    with torch.device("meta"):
        tensors = dict(Knet(shape).state_dict())
    model, _ = loaded(tensors)
    assert model.shape == shape


@pytest.mark.parametrize(("head_kind", "backbone"), [("deeplabv3", RESNET_8), ("upernet", SWIN)])
def test_nothing_is_assumed_where_the_configuration_says_all(head_kind: str, backbone: Any) -> None:
    _, description = loaded(tensors_of(shape_of(head_kind, backbone)))
    assert description.assumed == ()


@pytest.mark.parametrize(
    ("head_kind", "backbone", "subjects"),
    [
        ("deeplabv3", RESNET_8, ["strides", "dilations of the pyramid", "8 heads"]),
        ("upernet", RESNET_32, ["scales of pyramid", "align_corners", "strides", "8 heads"]),
        ("upernet", SWIN, ["scales of pyramid", "align_corners", "8 heads"]),
    ],
)
def test_what_no_tensor_tells_is_assumed_and_said(
    head_kind: str, backbone: Any, subjects: list[str]
) -> None:
    model, description = loaded(tensors_of(shape_of(head_kind, backbone)), NO_HINTS)
    assert len(description.assumed) == len(subjects)
    for sentence, subject in zip(description.assumed, subjects, strict=True):
        assert subject in sentence
    assert {stage.num_heads for stage in model.shape.stages} == {8}
    if head_kind == "deeplabv3":
        assert model.shape.head_dilations == (1, 12, 24, 36)
        assert model.shape.backbone.strides == (1, 2, 1, 1)
    else:
        assert model.shape.pool_scales == (1, 2, 3, 6)


def test_the_number_of_heads_that_the_configuration_says_is_used() -> None:
    tensors = tensors_of(shape_of("upernet", SWIN))
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        two, four = (loaded(tensors, replace(SAID, num_heads=n))[0](images) for n in (2, 4))
    assert float((two - four).abs().max()) > 1e-3 * float(four.std())


@pytest.mark.parametrize("heads", [0, -1, 3])
def test_heads_that_do_not_divide_the_kernels_are_refused(heads: int) -> None:
    with pytest.raises(ConfigError, match=f"{heads} heads of attention for kernels of 16"):
        loaded(tensors_of(shape_of("upernet", SWIN)), replace(SAID, num_heads=heads))


def test_a_first_head_of_another_kind_is_refused_with_its_names() -> None:
    tensors = {k: t for k, t in tensors_of(shape_of("upernet", SWIN)).items() if "fpn" not in k}
    with pytest.raises(CheckpointError, match=r"kernel_generate_head.*expected the head of Deep"):
        loaded(tensors)


def test_a_feature_transform_with_a_larger_kernel_is_refused() -> None:
    tensors = tensors_of(shape_of("upernet", SWIN))
    key = "decode_head.kernel_update_head.1.feat_transform.conv.weight"
    tensors[key] = torch.ones(16, 16, 3, 3)
    with pytest.raises(CheckpointError, match=r"\(16, 16, 3, 3\) instead of \(16, 16, 1, 1\)"):
        loaded(tensors)


def test_larger_kernels_than_one_pixel_are_refused() -> None:
    tensors = tensors_of(shape_of("upernet", SWIN))
    key = "decode_head.kernel_update_head.0.attention.attn.in_proj_weight"
    tensors[key] = torch.ones(3 * 144, 144)
    with pytest.raises(CheckpointError, match=r"\(432, 144\) instead of \(48, 16\)"):
        loaded(tensors)


@pytest.mark.parametrize(
    "name", ["kernel_update_conv.gate_norm.weight", "feat_transform.bn.weight", "ffn.gamma2.weight"]
)
def test_layers_that_only_other_configurations_have_are_refused(name: str) -> None:
    key = f"decode_head.kernel_update_head.0.{name}"
    with pytest.raises(CheckpointError, match=f"1 left over.*{name}"):
        loaded(tensors_of(shape_of("upernet", SWIN)) | {key: torch.ones(8)})


def test_a_kernel_update_that_does_not_divide_the_kernels_is_refused() -> None:
    tensors = tensors_of(shape_of("upernet", SWIN))
    key = "decode_head.kernel_update_head.2.kernel_update_conv.dynamic_layer.weight"
    tensors[key] = torch.ones(14, 7)
    with pytest.raises(CheckpointError, match="updates 7 of its kernels' 16 numbers"):
        loaded(tensors)


# --- stages --------------------------------------------------------------------------------------


def test_features_are_gathered_under_each_classes_share_of_the_pixels() -> None:
    masks, features = torch.randn(2, 3, 4, 5).double(), torch.randn(2, 7, 4, 5).double()
    want = torch.zeros(2, 3, 7).double()
    for image, y, x in itertools.product(range(2), range(4), range(5)):
        logits = masks[image, :, y, x]
        share = logits.exp() / logits.exp().sum()
        want[image] += share[:, None] * features[image, :, y, x]
    torch.testing.assert_close(gathered_features(masks, features), want)


def test_masks_are_each_images_convolution_with_its_own_kernels() -> None:
    kernels, features = torch.randn(2, 3, 7).double(), torch.randn(2, 7, 4, 5).double()
    want = [F.conv2d(x[None], k[:, :, None, None]) for x, k in zip(features, kernels, strict=True)]
    torch.testing.assert_close(masks_from_kernels(kernels, features), torch.cat(want))


def test_each_piece_of_a_kernel_goes_through_the_same_update() -> None:
    stage = random_stage(STAGE)
    gathered, kernels = torch.randn(2, 5, 16).double(), torch.randn(2, 5, 16).double()
    update = stage.kernel_update_conv
    with torch.no_grad():
        whole = update(gathered, kernels)
        halves = [update(gathered[..., i : i + 8], kernels[..., i : i + 8]) for i in (0, 8)]
    torch.testing.assert_close(whole, torch.cat(halves, dim=2))


# --- rewrites ------------------------------------------------------------------------------------


def random_stage(shape: StageShape, seed: int = 3) -> KernelUpdateHead:
    generator = torch.Generator().manual_seed(seed)
    stage = KernelUpdateHead(shape).double().eval()
    with torch.no_grad():
        for parameter in stage.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(noise / math.sqrt(parameter[0].numel()))
    return stage


def inputs(hw: tuple[int, int] = (9, 11)) -> tuple[Tensor, Tensor, Tensor]:
    """Features and masks of two images, and the kernels of both, (1, classes, C)."""
    generator = torch.Generator().manual_seed(4)
    shapes = ((2, 16, *hw), (1, 5, 16), (2, 5, *hw))
    features, kernels, masks = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes
    )
    return features, kernels, 2 * masks


STAGES = [
    STAGE,
    StageShape(16, 16, 2, (24, 8), 2, has_feature_transform=True),
    StageShape(16, 4, 1, (), 0, has_feature_transform=False),
]


@pytest.mark.parametrize("shape", STAGES)
@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("hw", [(9, 11), (40, 30)])
def test_a_rewritten_stage_is_the_same_function(
    shape: StageShape, is_first: bool, hw: tuple[int, int]
) -> None:
    stage, (features, kernels, masks) = random_stage(shape), inputs(hw)
    with torch.no_grad():
        rewritten = knet.UntransformedStage(
            copy.deepcopy(stage), kernels[0] if is_first else None, None
        )
        want = stage(features, kernels, masks)
        got = rewritten(features, kernels, masks)
    for one, other in zip(got, want, strict=True):
        assert float(other.std()) > 1e-3
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12 * float(other.abs().max()))


def test_a_rewritten_stage_keeps_the_first_outputs() -> None:
    stage, (features, kernels, masks) = random_stage(STAGE), inputs()
    with torch.no_grad():
        want, _ = stage(features, kernels, masks)
        got, rows = knet.UntransformedStage(stage, None, 2)(features, kernels, masks)
    assert rows.shape[1] == 2
    torch.testing.assert_close(got, want[:, :2])


def test_no_layer_of_a_rewritten_stage_reads_the_pixels() -> None:
    """The feature transform, which did, is in layers that read one row a class."""
    stage, (features, kernels, masks) = random_stage(STAGE), inputs()
    rewritten = knet.UntransformedStage(stage, None, None)
    rows = []
    for module in rewritten.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda _m, x, _y: rows.append(x[0][0, ..., 0].numel()))
    with torch.no_grad():
        rewritten(features, kernels, masks)
    assert not [m for m in rewritten.modules() if isinstance(m, nn.Conv2d)]
    assert len(rows) == 14
    assert max(rows) == 10  # 5 kernels of two pieces, at 99 pixels


@pytest.mark.parametrize("hw", [(64, 64), (70, 97)])
def test_kernels_of_upernet_on_a_resnet_are_the_same_rewritten(hw: tuple[int, int]) -> None:
    net = lively(Knet(shape_of("upernet", RESNET_32, keep_outputs=3))).double()
    images = torch.randn(2, 3, *hw, dtype=torch.float64)
    with torch.no_grad():
        want, got = net(images), rewritten_for_export(net, hw)(images)
    assert want.shape == (2, 3, -(-hw[0] // 4), -(-hw[1] // 4))
    assert float(want.std()) > 1e-3
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


def test_what_depends_on_the_first_kernels_alone_is_computed_once() -> None:
    net = rewritten_for_export(lively(Knet(shape_of("upernet", SWIN))))
    first, second, third = net.decode_head.kernel_update_head  # type: ignore[union-attr,misc]
    assert first.kernel_update_conv.input_layer is None
    assert isinstance(second.kernel_update_conv.input_layer, nn.Linear)
    assert isinstance(third.kernel_update_conv.input_layer, nn.Linear)


@pytest.mark.parametrize("pixels", [1, 2, 49, 1024, 4096, 16384, 25600, 131072])
def test_sums_are_scaled_by_powers_of_two(pixels: int) -> None:
    """So that features of mean 64 fit into FP16; what follows has the middle of its range."""
    scales = knet.Scales.of(pixels)
    assert math.frexp(scales.sums)[0] == math.frexp(scales.layers)[0] == 0.5
    assert pixels * 63.9 * scales.sums < 65504
    assert scales.sums == 1 or pixels * 128 * scales.sums > 65504
    assert 0.7 < scales.layers * math.sqrt(pixels) < 1.42


@pytest.mark.parametrize("logit", [-30.0, -12.0, -9.0])
def test_a_class_that_fills_the_image_does_not_overflow_fp16(logit: float) -> None:
    """16 384 pixels of 8 in the channels are a sum of 131 072, twice FP16's largest number.

    Nor do the others vanish, whose shares are of 1e-13, 6e-6 and 1e-4.
    """
    stage = random_stage(STAGE)
    features = 8 + torch.rand(1, 16, 128, 128, dtype=torch.float64)
    _, kernels, _ = inputs()
    masks = torch.full((1, 5, 128, 128), logit, dtype=torch.float64)
    masks[:, 0] = 0.0
    with torch.no_grad():
        want, _ = stage(features, kernels, masks)
        rewritten = knet.UntransformedStage(copy.deepcopy(stage), None, None)
        halves = [x.half() for x in (features, kernels, masks)]
        overflown, _ = stage.half()(*halves)
        got, _ = rewritten.half()(*halves)
    assert not torch.isfinite(overflown).all()
    assert float((got - want).abs().max()) < 0.02 * float(want.abs().max())


@pytest.mark.parametrize(("head_kind", "backbone"), [("deeplabv3", RESNET_8), ("upernet", SWIN)])
def test_layers_said_to_write_the_same_do(head_kind: str, backbone: Any) -> None:
    """And every layer of the checkpoint is at its path, but for those that went into others."""
    net = lively(Knet(shape_of(head_kind, backbone))).double()
    rewritten = rewritten_for_export(net, (64, 64))
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    before, after = outputs_by_path(net, images), outputs_by_path(rewritten, images)
    compared = 0
    for module in before:
        if not knet_keys.writes_the_same(module, "mmsegmentation"):
            continue
        (path,) = knet_keys.layer_paths(module, "mmsegmentation")
        if path in after:
            scale = float(before[module].abs().max())
            torch.testing.assert_close(after[path], before[module], rtol=0, atol=1e-9 * scale)
            compared += 1
    assert compared > 40
    gone = {
        path for path in knet_keys.layer_weights(net) if path not in dict(rewritten.named_modules())
    }
    stages = [path for path in gone if "kernel_update_head" in path]
    first = "decode_head.kernel_update_head.0.kernel_update_conv"
    transforms = {f"decode_head.kernel_update_head.{i}.feat_transform.conv" for i in range(3)}
    assert set(stages) == transforms | {f"{first}.input_layer", f"{first}.input_norm_out"}


def outputs_by_path(net: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """What each layer with weights wrote."""
    outputs: dict[str, Tensor] = {}
    for name, module in net.named_modules():
        if isinstance(getattr(module, "weight", None), nn.Parameter):
            module.register_forward_hook(
                lambda _m, _x, y, name=name: outputs.__setitem__(name, y)  # type: ignore[misc]
            )
    with torch.no_grad():
        net(images)
    return outputs


def test_each_weight_of_the_attention_is_given_by_its_own_path() -> None:
    net = lively(Knet(shape_of("upernet", SWIN)))
    weights = knet_keys.layer_weights(net)
    joined = net.state_dict()["decode_head.kernel_update_head.1.attention.attn.in_proj_weight"]
    for i, part in enumerate("qkv"):
        path = f"decode_head.kernel_update_head.1.attention.{part}"
        assert torch.equal(weights[path], joined[16 * i : 16 * i + 16])


@pytest.mark.parametrize(("head_kind", "backbone"), [("deeplabv3", RESNET_8), ("upernet", SWIN)])
def test_nodes_have_the_names_of_their_modules(
    head_kind: str, backbone: Any, tmp_path: Path
) -> None:
    """Policies and messages refer to them."""
    net = rewritten_for_export(lively(Knet(shape_of(head_kind, backbone))), (64, 64))
    spec = GraphSpec((64, 64), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    onnx_from_model(net, spec, tmp_path / "traced.onnx", num_outputs=5)
    paths = {module_path(n.name) for n in onnx.load(tmp_path / "traced.onnx").graph.node}
    layers = [
        name
        for name, module in net.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d | nn.LayerNorm)
    ]
    assert len(layers) > 50
    assert not {f"net.{name}" for name in layers} - paths


def test_no_convolution_of_the_graph_has_weights_that_depend_on_the_image(tmp_path: Path) -> None:
    net = rewritten_for_export(lively(Knet(shape_of("deeplabv3", RESNET_8))), (64, 64))
    spec = GraphSpec((64, 64), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), batch=(2, 2, 2))
    onnx_from_model(net, spec, tmp_path / "traced.onnx", num_outputs=5)
    graph = onnx.load(tmp_path / "traced.onnx").graph
    constants = {tensor.name for tensor in graph.initializer}
    constants |= {node.output[0] for node in graph.node if node.op_type == "Constant"}
    constants |= {node.output[0] for node in graph.node if set(node.input) <= constants}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert len(convolutions) > 10
    assert all(node.input[1] in constants for node in convolutions)
