"""UPerNet's checkpoints and the rewrites of its head."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engines.errors import CheckpointError, ConfigError
from engines.trt.layer_names import module_path
from exporter.architectures import upernet_keys
from exporter.architectures.backbones import BackboneShape
from exporter.architectures.description import Hints
from exporter.architectures.resnet import ResNetShape
from exporter.architectures.swin import SwinShape
from exporter.architectures.uper import UperHead
from exporter.architectures.upernet import Upernet, UpernetShape
from exporter.detect import model_from_state_dict
from exporter.onnx_graph import GraphSpec, onnx_from_model
from exporter.rewrites.rewritten import rewritten_for_export
from exporter.rewrites.uper import EarlyTapsHead, enlarging, enlarging_taps
from exporter.simplify import simplify_onnx
from tests.architectures.example import lively
from tests.architectures.tiny_upernet import bare_swin, swin
from tests.test_swin import PUBLISHED

BACKBONES: dict[str, BackboneShape] = {
    name: SwinShape(3, dim, depths, heads, 7) for name, (dim, depths, heads) in PUBLISHED.items()
} | {
    "r18": ResNetShape(depths=(2, 2, 2, 2), bottleneck=False),
    "r50": ResNetShape(),
    "r101": ResNetShape(depths=(3, 4, 23, 3)),
}


# --- from tensors ---------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", BACKBONES)
def test_each_variant_is_found_from_its_shapes(variant: str) -> None:
    with torch.device("meta"):
        tensors = dict(Upernet(UpernetShape(BACKBONES[variant], 512, 150)).state_dict())
    _, description = model_from_state_dict(tensors, model=f"upernet-{variant}")
    assert description.name == f"upernet-{variant}"
    assert (description.num_outputs, description.head_channels) == (150, 512)


def test_the_index_tables_that_files_hold_are_not_missed_and_not_left_over() -> None:
    tensors = dict(swin().state_dict())
    for key in list(tensors):
        if key.endswith(".relative_position_bias_table"):
            index = key.replace("bias_table", "index")
            tensors[index] = torch.zeros(49, 49, dtype=torch.int64)
    assert model_from_state_dict(tensors)[1].num_outputs == 5


def test_the_configuration_says_how_maps_are_resized_and_pooled() -> None:
    """Neither is in the tensors."""
    net = bare_swin()
    hints = Hints(align_corners=True, pool_scales=(2, 5))
    loaded, description = model_from_state_dict(net.state_dict(), hints=hints)
    assert description.assumed == ()
    x = torch.randn(1, 5, 50, 70)
    with torch.no_grad():
        want = net(x)
        assert torch.equal(loaded(x), want)
        unaligned = Hints(align_corners=False, pool_scales=(2, 5))
        other = model_from_state_dict(net.state_dict(), hints=unaligned)[0](x)
    assert float((other - want).abs().max()) > 0.01


def test_corners_that_nobody_speaks_of_are_told_to_be_assumed() -> None:
    _, description = model_from_state_dict(swin().state_dict())
    scales, corners = description.assumed
    assert "1, 2, 3, 6" in scales
    assert "align_corners=False" in corners


@pytest.mark.parametrize("scales", [None, (1, 2, 3), (1, 65)])
def test_pooling_scales_that_do_not_fit_are_refused(scales: tuple[int, ...] | None) -> None:
    with pytest.raises(ConfigError, match="2 pooling branches"):
        model_from_state_dict(bare_swin().state_dict(), hints=Hints(pool_scales=scales))


def test_a_swin_of_more_stages_than_anybody_trains_is_refused() -> None:
    """Each doubles the width: a few small tensors could ask for any amount of memory."""
    with torch.device("meta"):
        many = Upernet(UpernetShape(SwinShape(3, 2, (1,) * 9, (1,) * 9, window=2), 8, 3))
    with pytest.raises(CheckpointError, match="in 9 stages"):
        model_from_state_dict(many.state_dict())


def test_upernet_on_another_backbone_is_refused_by_its_tensors() -> None:
    tensors = {
        key: tensor for key, tensor in swin().state_dict().items() if not key.startswith("backbone")
    }
    tensors["backbone.downsample_layers.0.0.weight"] = torch.ones(1)
    with pytest.raises(CheckpointError, match=r"a ResNet or a Swin.*") as caught:
        model_from_state_dict(tensors)
    assert "downsample_layers" in str(caught.value)


def test_each_layer_of_a_checkpoint_is_found_in_the_graph(tmp_path: Path) -> None:
    """But for the two that the rewrites take apart, and for norms that are folded."""
    net = swin()
    spec = GraphSpec((64, 64), (127.5,) * 3, (60.0,) * 3)
    images = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    traced = tmp_path / "traced.onnx"
    onnx_from_model(rewritten_for_export(net, (64, 64)), spec, traced, num_outputs=5)
    simplify_onnx(traced, tmp_path / "graph.onnx", batch=images)
    paths = {module_path(node.name) for node in onnx.load(tmp_path / "graph.onnx").graph.node}
    weights = upernet_keys.layer_weights(net)
    absent = {path for path in weights if f"net.{path}" not in paths}
    assert {path for path in absent if not path.endswith(".bn")} == {
        "decode_head.bottleneck.conv",
        "decode_head.fpn_bottleneck.conv",
    }
    qkv = net.state_dict()["backbone.stages.1.blocks.1.attn.w_msa.qkv.weight"]
    assert torch.equal(weights["backbone.stages.1.blocks.1.attn.w_msa.k"], qkv[32:64])


@pytest.mark.parametrize(
    ("module", "paths", "same"),
    [
        ("backbone.stages.0.blocks.1.ffn.layers.1", ["backbone.stages.0.blocks.1.ffn.layers.1"], 1),
        (
            "decode_head.psp_modules.2.1.conv",
            ["decode_head.pooled.branches.2.0.conv"],
            0,
        ),
        ("decode_head.conv_seg", ["decode_head.conv_seg"], 1),
        ("backbone.stages.0.blocks.1.attn.w_msa.proj", 0, 1),
        ("backbone.stages.0.downsample.reduction", 0, 1),
        ("backbone.layer1.0.downsample.0", 0, 0),
        ("backbone.layer1.0.conv2", 0, 0),
    ],
)
def test_layers_that_write_the_same_are_those_without_a_folded_norm(
    module: str, paths: list[str] | None, same: int
) -> None:
    assert upernet_keys.layer_paths(module, "mmsegmentation") == tuple(paths or [module])
    assert upernet_keys.writes_the_same(module, "mmsegmentation") == bool(same)


# --- rewrites -------------------------------------------------------------------------------------


def head(align_corners: bool = False) -> nn.Module:
    made = UperHead((4, 6, 8, 10), 12, 3, align_corners=align_corners)
    torch.manual_seed(6)
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.2, 3.0)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return made.double().eval()


def maps_of(*sizes: tuple[int, int]) -> list[Tensor]:
    generator = torch.manual_seed(7)
    return [
        torch.randn(2, channels, *hw, generator=generator, dtype=torch.float64)
        for channels, hw in zip((4, 6, 8, 10), sizes, strict=True)
    ]


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(
    "sizes",
    [
        ((32, 24), (16, 12), (8, 6), (4, 3)),
        ((33, 17), (17, 9), (9, 5), (5, 3)),
        ((8, 9), (4, 5), (2, 3), (1, 2)),
        ((12, 12), (12, 12), (6, 6), (6, 6)),  # a backbone whose stages keep their size
    ],
)
def test_taps_before_enlarging_are_the_same_head(
    sizes: tuple[tuple[int, int], ...], align_corners: bool
) -> None:
    original: Any = head(align_corners)
    parent = rewritten_for_export(nn.Sequential(original))
    rewritten: Any = parent.get_submodule("0")
    assert isinstance(rewritten, EarlyTapsHead)
    maps = maps_of(*sizes)
    with torch.no_grad():
        want, got = original.features(maps), rewritten.features(maps)
        assert float(want.std()) > 0.01
        torch.testing.assert_close(got, want, rtol=0, atol=1e-11)
        torch.testing.assert_close(rewritten(maps), original(maps), rtol=0, atol=1e-11)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("size", "output"), [(4, 16), (5, 13), (1, 7), (6, 6), (6, 4), (3, 1)])
def test_a_matrix_enlarges_as_torch_does(size: int, output: int, align_corners: bool) -> None:
    line = torch.randn(1, 1, size, 1, dtype=torch.float64, generator=torch.manual_seed(1))
    want = F.interpolate(line, (output, 1), mode="bilinear", align_corners=align_corners)
    matrix = torch.from_numpy(enlarging(size, output, align_corners))
    torch.testing.assert_close(matrix @ line[0, 0], want[0, 0], rtol=0, atol=1e-14)


def test_one_dimension_of_taps_is_a_convolution_of_the_enlarged_line() -> None:
    line = torch.randn(1, 1, 5, dtype=torch.float64, generator=torch.manual_seed(2))
    taps = torch.tensor([[[2.0, -1.0, 3.0]]], dtype=torch.float64)
    large = F.interpolate(line, 13, mode="linear", align_corners=False)
    want = F.conv1d(large, taps, padding=1)[0, 0]
    products = torch.cat([tap * line[0, 0] for tap in taps[0, 0]])
    got = torch.from_numpy(enlarging_taps(5, 13, False)) @ products
    torch.testing.assert_close(got, want, rtol=0, atol=1e-14)


def test_only_the_finest_map_is_convolved_at_its_size() -> None:
    """Multiplications of the pyramid's convolution: 1 + 1/4 + 1/16 + 1/64 instead of 4 times one
    map's."""
    original: Any = head()
    rewritten: Any = rewritten_for_export(nn.Sequential(copy.deepcopy(original))).get_submodule("0")
    counted = {"before": 0, "after": 0}

    def count(name: str) -> Any:
        def hook(module: nn.Conv2d, _inputs: object, output: Tensor) -> None:
            counted[name] += output.shape[2] * output.shape[3] * module.weight.numel()

        return hook

    original.fpn_bottleneck.conv.register_forward_hook(count("before"))
    for conv in (rewritten.fusion.finest, *rewritten.fusion.taps):
        conv.register_forward_hook(count("after"))
    maps = maps_of((32, 32), (16, 16), (8, 8), (4, 4))
    with torch.no_grad():
        original(maps), rewritten(maps)
    assert counted["before"] == 9 * 12 * 12 * 4 * 32 * 32
    assert counted["after"] == 9 * 12 * 12 * (32**2 + 16**2 + 8**2 + 4**2)


def test_the_example_without_anything_optional_is_the_same_function_after_rewriting() -> None:
    net = lively(bare_swin()).double()
    x = torch.randn(1, 5, 61, 45, dtype=torch.float64)
    with torch.no_grad():
        want = net(x)
        torch.testing.assert_close(rewritten_for_export(net)(x), want, rtol=0, atol=1e-9)
    assert float(want.std()) > 0.01
