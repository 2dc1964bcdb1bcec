"""DeepLabV3+: what is found, what is assumed, where its convolutions reach, and its rewrite."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from engines.errors import CheckpointError, ConfigError
from engines.trt.layer_names import module_path
from exporter.architectures import deeplabv3plus_keys
from exporter.architectures.aspp import AsppHead, AsppShape, PyramidFusion
from exporter.architectures.deeplabv3plus import DeeplabV3Plus, DeeplabV3PlusShape
from exporter.architectures.description import NO_HINTS, Hints
from exporter.architectures.resnet import CeilAveragePool, ResNet, ResNetShape, resnet_shape
from exporter.detect import model_from_state_dict
from exporter.load import load_model
from exporter.onnx_graph import GraphSpec, onnx_from_model
from exporter.rewrites.aspp import PooledBias, taps_inside
from exporter.rewrites.rewritten import rewritten_for_export
from exporter.simplify import simplify_onnx
from tests.architectures.example import lively
from tests.architectures.tiny_deeplabv3plus import of_basic_blocks, of_bottlenecks
from tests.tiny_segformer import MEAN, STD, write_checkpoint

DEPTHS = {
    "r18": (False, (2, 2, 2, 2)),
    "r34": (False, (3, 4, 6, 3)),
    "r50": (True, (3, 4, 6, 3)),
    "r101": (True, (3, 4, 23, 3)),
    "r152": (True, (3, 8, 36, 3)),
}
STRIDE_8 = Hints(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4), contract_dilation=True)


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return dict(of_bottlenecks().state_dict())


def answer(net: nn.Module, hw: tuple[int, int] = (64, 64)) -> Tensor:
    torch.manual_seed(5)
    with torch.no_grad():
        logits: Tensor = net(torch.randn(1, 3, *hw))
    return logits


# --- the checkpoint ------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", DEPTHS)
@pytest.mark.parametrize("deep_stem", [True, False])
def test_each_variant_is_found_from_its_tensors(variant: str, deep_stem: bool) -> None:
    bottleneck, depths = DEPTHS[variant]
    backbone = ResNetShape(depths=depths, bottleneck=bottleneck, deep_stem=deep_stem)
    wide = 2048 if bottleneck else 512
    head = AsppShape(wide, 512, num_outputs=150, c1_channels=wide // 8, c1_width=48)
    with torch.device("meta"):
        tensors = dict(DeeplabV3Plus(DeeplabV3PlusShape(backbone, head)).state_dict())
    found = model_from_state_dict(tensors)[1]
    assert found.name == f"deeplabv3plus-{variant}"
    assert (found.num_outputs, found.head_channels, found.in_channels) == (150, 512, 3)


def test_the_published_r50_has_the_published_number_of_parameters() -> None:
    """41.2 million without the auxiliary head: 43.6 with it, which has 1024 x 256 x 9 + 2 048."""
    head = AsppShape(2048, 512, num_outputs=6, c1_channels=256, c1_width=48)
    with torch.device("meta"):
        tensors = dict(DeeplabV3Plus(DeeplabV3PlusShape(ResNetShape(), head)).state_dict())
    parameters = model_from_state_dict(tensors)[1].parameters
    assert round((parameters + 1024 * 256 * 9 + 256 * 8) / 1e6, 1) == 43.6


def test_without_a_configuration_output_stride_8_is_assumed_and_said(
    tensors: dict[str, Tensor],
) -> None:
    net, found = model_from_state_dict(tensors)
    assert net.shape.backbone.strides == (1, 2, 1, 1)
    assert net.shape.backbone.dilations == (1, 1, 2, 4)
    assert net.shape.backbone.contract_dilation
    assert net.shape.head.dilations == (1, 12, 24, 36)
    strides, dilations, corners = found.assumed
    assert "1, 2, 1, 1" in strides
    assert "1, 1, 2, 4" in strides
    assert "1, 12, 24, 36" in dilations
    assert "align_corners=False" in corners


@pytest.mark.parametrize("layer", ["c1_bottleneck", "image_pool.1", "all"])
def test_a_head_for_other_maps_than_the_backbones_is_refused(
    tensors: dict[str, Tensor], layer: str
) -> None:
    """Its own tensors fit each other."""
    tensors = dict(tensors)
    branches = ["image_pool.1", *(f"aspp_modules.{i}" for i in range(4))]
    for name in branches if layer == "all" else [layer]:
        for key in [k for k in tensors if k.startswith(f"decode_head.{name}.")]:
            if key.endswith("conv.weight") and "pointwise" not in key and tensors[key].shape[1] > 1:
                tensors[key] = torch.cat([tensors[key], tensors[key]], dim=1)
    with pytest.raises(CheckpointError, match="of another shape"):
        model_from_state_dict(tensors)


def test_with_a_configuration_nothing_is_assumed(tensors: dict[str, Tensor]) -> None:
    hints = Hints(
        align_corners=False,
        strides=(1, 2, 2, 1),
        dilations=(1, 1, 1, 2),
        head_dilations=(1, 6, 12, 18),
    )
    net, found = model_from_state_dict(tensors, hints=hints)
    assert found.assumed == ()
    assert net.shape.backbone.strides == (1, 2, 2, 1)
    assert net.shape.backbone.dilations == (1, 1, 1, 2)
    assert not net.shape.backbone.contract_dilation
    assert net.shape.head.dilations == (1, 6, 12, 18)


def test_a_configuration_that_names_strides_alone_means_no_dilation(
    tensors: dict[str, Tensor],
) -> None:
    net, _ = model_from_state_dict(tensors, hints=Hints(strides=(1, 2, 2, 2)))
    assert net.shape.backbone.dilations == (1, 1, 1, 1)


def test_the_configuration_in_the_file_decides(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    config = """
model = dict(type='EncoderDecoder',
    backbone=dict(type='ResNetV1c', depth=50, strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2)),
    decode_head=dict(type='DepthwiseSeparableASPPHead', dilations=(1, 6, 12, 18),
                     align_corners=True), test_cfg=dict(mode='whole'))
"""
    path = write_checkpoint(
        tmp_path / "file.pth", tensors=tensors, config=config, classes=None, palette=None
    )
    loaded = load_model(path)
    shape = loaded.net.shape
    assert isinstance(shape, DeeplabV3PlusShape)
    assert (shape.backbone.strides, shape.backbone.dilations) == ((1, 2, 2, 1), (1, 1, 1, 2))
    assert (shape.head.dilations, shape.head.align_corners) == ((1, 6, 12, 18), True)
    assert loaded.description.assumed == ()


@pytest.mark.parametrize(
    "hints",
    [
        Hints(strides=(1, 2, 2, 2)),
        Hints(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4)),
        Hints(head_dilations=(1, 2, 3, 4)),
        Hints(align_corners=True),
    ],
    ids=["strides", "contract_dilation", "head_dilations", "align_corners"],
)
def test_what_no_tensor_tells_changes_the_answer(tensors: dict[str, Tensor], hints: Hints) -> None:
    usual = answer(model_from_state_dict(tensors)[0])
    other = answer(model_from_state_dict(tensors, hints=hints)[0])
    assert float((usual - other).abs().max()) > 0.05 * float(usual.std())


@pytest.mark.parametrize(
    ("hints", "message"),
    [
        (Hints(strides=(1, 2, 1)), r"strides \(1, 2, 1\).*expected 4 numbers from 1 to 4"),
        (Hints(strides=(1, 2, 1, 0)), r"strides \(1, 2, 1, 0\)"),
        (Hints(dilations=(1, 1, 2, 10**9)), r"dilations .*expected 4 numbers from 1 to 64"),
        (Hints(head_dilations=(1, 2, 3)), r"dilations \(1, 2, 3\).*pyramid .* of 4 branches"),
        (Hints(head_dilations=(1, 2, 3, 10**9)), r"one number from 1 to 256 for each branch"),
    ],
)
def test_hints_that_do_not_fit_are_refused(
    tensors: dict[str, Tensor], hints: Hints, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        model_from_state_dict(tensors, hints=hints)


def test_dilations_that_nobody_says_are_asked_for_where_the_pyramid_is_unusual() -> None:
    tensors = dict(of_basic_blocks().state_dict())
    with pytest.raises(ConfigError, match=r"dilations None.*pyramid .* of 3 branches"):
        model_from_state_dict(tensors)


def test_a_dilation_of_one_does_not_fit_a_3x3_branch(tensors: dict[str, Tensor]) -> None:
    with pytest.raises(CheckpointError, match=r"aspp_modules\.1\."):
        model_from_state_dict(tensors, hints=Hints(head_dilations=(1, 1, 24, 36)))


def test_a_resnet_without_a_head_is_named() -> None:
    tensors = dict(ResNet(ResNetShape(base_width=4, stem_width=8)).state_dict())
    with pytest.raises(CheckpointError, match="closest match is a ResNet"):
        model_from_state_dict({f"backbone.{key}": tensor for key, tensor in tensors.items()})


def test_an_empty_weight_is_refused(tensors: dict[str, Tensor]) -> None:
    empty = {"backbone.layer1.0.conv1.weight": torch.ones(2**40, 0, 1, 1)}
    with pytest.raises(CheckpointError, match="holds no number"):
        model_from_state_dict(tensors | empty)


# --- the backbone --------------------------------------------------------------------------------


def test_the_first_block_of_a_dilated_stage_has_half_the_dilation() -> None:
    shape = ResNetShape(
        depths=(2, 2, 2, 2), base_width=4, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4),
        contract_dilation=True,
    )  # fmt: skip
    net = ResNet(shape)
    got = [
        [block.conv2.dilation[0] for block in net.get_submodule(f"layer{stage}")]  # type: ignore
        for stage in (1, 2, 3, 4)
    ]
    assert got == [[1, 1], [1, 1], [1, 2], [2, 4]]
    assert net.layer2[0].conv2.stride == (2, 2)
    assert net.layer2[0].conv1.stride == (1, 1)


@pytest.mark.parametrize(
    ("strides", "sizes"),
    [
        ((1, 2, 2, 2), [(19, 26), (10, 13), (5, 7), (3, 4)]),
        ((1, 2, 1, 1), [(19, 26), (10, 13), (10, 13), (10, 13)]),
    ],
)
def test_every_stride_of_two_halves_and_rounds_up(
    strides: tuple[int, ...], sizes: list[tuple[int, int]]
) -> None:
    shape = ResNetShape(depths=(1, 1, 1, 1), base_width=4, stem_width=8, strides=strides)
    with torch.no_grad():
        maps = ResNet(shape).eval()(torch.randn(1, 3, 75, 101))
    assert [tuple(x.shape[2:]) for x in maps] == sizes
    assert tuple(x.shape[1] for x in maps) == shape.channels == (16, 32, 64, 128)


def test_squares_over_the_edge_average_what_is_inside() -> None:
    x = torch.tensor([[1.0, 3.0, 10.0], [5.0, 7.0, 20.0], [100.0, 300.0, 1000.0]])
    want = torch.tensor([[4.0, 15.0], [200.0, 1000.0]])
    assert torch.equal(CeilAveragePool(2)(x[None, None])[0, 0], want)


@pytest.mark.parametrize("deep_stem", [True, False])
@pytest.mark.parametrize("bottleneck", [True, False])
@pytest.mark.parametrize("avg_down", [True, False])
@pytest.mark.parametrize("in_channels", [3, 5])
def test_a_resnets_shape_is_found_from_its_tensors(
    deep_stem: bool, bottleneck: bool, avg_down: bool, in_channels: int
) -> None:
    shape = ResNetShape(
        in_channels=in_channels,
        depths=(1, 3, 2, 1),
        deep_stem=deep_stem,
        base_width=6,
        bottleneck=bottleneck,
        avg_down=avg_down,
        stem_width=10,
    )
    with torch.device("meta"):
        named = {f"backbone.{key}": t for key, t in ResNet(shape).state_dict().items()}
    assert resnet_shape(named, "backbone.", NO_HINTS) == shape
    assert resnet_shape(named, "backbone.", STRIDE_8).strides == (1, 2, 1, 1)
    assert shape.name == "custom"


# --- the pyramid and its rewrite -----------------------------------------------------------------


def test_aspp_head_gives_logits_and_the_features_they_come_from() -> None:
    head = lively(AsppHead(AsppShape(6, 4, num_outputs=3)), hw=(16, 16))
    with torch.no_grad():
        logits, features = head(torch.randn(2, 6, 9, 11))
        assert features.shape == (2, 4, 9, 11)
        assert torch.equal(logits, head.conv_seg(features))  # type: ignore[operator]


@pytest.mark.parametrize("hw", [(1, 1), (1, 5), (2, 2), (3, 4)])
def test_taps_inside_are_what_a_convolution_with_one_tap_makes_of_ones(hw: tuple[int, int]) -> None:
    kernels = torch.eye(9).reshape(9, 1, 3, 3)
    want = nn.functional.conv2d(torch.ones(1, 1, *hw), kernels, padding=1)
    assert torch.equal(torch.from_numpy(taps_inside(hw)), want.reshape(9, -1))


@pytest.mark.parametrize("hw", [(1, 1), (1, 5), (2, 2), (3, 3), (7, 9)])
def test_the_mean_added_as_a_bias_is_the_mean_concatenated(hw: tuple[int, int]) -> None:
    fusion = PyramidFusion(4, 3)
    nn.init.uniform_(fusion.bn.running_mean)  # type: ignore[arg-type]
    nn.init.uniform_(fusion.bn.running_var, 0.5, 2.0)  # type: ignore[arg-type]
    nn.init.normal_(fusion.bn.weight)
    nn.init.normal_(fusion.bn.bias)
    fusion.double().eval()
    pooled = torch.randn(2, 4, 1, 1, dtype=torch.float64)
    maps = [torch.randn(2, 4, *hw, dtype=torch.float64) for _ in range(3)]
    with torch.no_grad():
        want, got = fusion(pooled, maps), PooledBias(fusion)(pooled, maps)
    assert float(want.std()) > 1e-3
    assert float((want - got).abs().max()) < 1e-13


def test_the_rewrite_saves_a_fifth_of_the_pyramids_convolution(tensors: dict[str, Tensor]) -> None:
    net = model_from_state_dict(tensors)[0]
    rewritten = rewritten_for_export(net)
    assert net.decode_head.bottleneck.conv.weight.shape == (16, 5 * 16, 3, 3)
    assert rewritten.decode_head.bottleneck.conv.weight.shape == (16, 4 * 16, 3, 3)


def test_no_batch_norm_is_left_and_only_two_maps_are_resized(
    tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    graph = exported(tensors, tmp_path)
    kinds = [node.op_type for node in graph.node]
    assert "BatchNormalization" not in kinds
    assert kinds.count("Resize") == 2  # the pyramid's answer, and the logits
    assert kinds.count("Concat") == 2


def test_every_weight_of_the_checkpoint_has_its_layer_in_the_graph(
    tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    net = model_from_state_dict(tensors)[0]
    convolutions = {
        module_path(node.name)
        for node in exported(tensors, tmp_path).node
        if node.op_type == "Conv"
    }
    weights = deeplabv3plus_keys.layer_weights(net)
    kernels = {f"net.{path}" for path, weight in weights.items() if weight.dim() == 4}
    assert kernels <= convolutions
    assert convolutions - kernels == {"net.decode_head.bottleneck.taps"}
    for path in weights:
        assert deeplabv3plus_keys.layer_paths(path, "mmsegmentation") == (path,)


@pytest.mark.parametrize(
    ("module", "same"),
    [
        ("decode_head.conv_seg", True),
        ("decode_head.bottleneck.conv", False),
        ("decode_head.aspp_modules.1.depthwise_conv.conv", False),
        ("backbone.stem.3", False),
        ("backbone.layer1.0.conv3", False),
        ("backbone.layer1.0.downsample.0", False),
    ],
)
def test_layers_that_take_over_batch_norm_write_something_else(module: str, same: bool) -> None:
    assert deeplabv3plus_keys.writes_the_same(module, "mmsegmentation") is same


def exported(tensors: dict[str, Tensor], folder: Path) -> onnx.GraphProto:
    net, found = model_from_state_dict(tensors)
    spec = GraphSpec((64, 64), MEAN, STD)
    traced = folder / "traced.onnx"
    onnx_from_model(rewritten_for_export(net), spec, traced, num_outputs=found.num_outputs)
    batch = np.zeros((1, 64, 64, 3), np.uint8)
    simplify_onnx(traced, folder / "model.onnx", batch=batch)
    return onnx.load(folder / "model.onnx").graph
