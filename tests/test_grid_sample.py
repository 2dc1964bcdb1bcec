"""Deformable attention in the form that the opset, or somebody, asks for."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from torch import nn

from engines.errors import ConfigError
from exporter.onnx_graph import GraphSpec, onnx_from_model, sampled_for
from exporter.rewrites.rewritten import rewritten_for_export
from tests.architectures.tiny_mask2former import EXAMPLES
from tests.tiny_segformer import MEAN, STD, tiny_net


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return EXAMPLES[0].make()


def operators(net: nn.Module, folder: Path, opset: int, wanted: bool | None) -> set[str]:
    hw = EXAMPLES[0].hw
    outputs = EXAMPLES[0].description["num_outputs"]
    sampled = sampled_for(rewritten_for_export(net, hw), opset, wanted)
    spec = GraphSpec(hw, MEAN, STD, opset=opset)
    onnx_from_model(sampled, spec, folder / "graph.onnx", num_outputs=outputs)
    return {node.op_type for node in onnx.load(folder / "graph.onnx").graph.node}


@pytest.mark.parametrize(
    ("opset", "wanted", "there"),
    [
        (16, None, True),
        (17, None, True),
        (19, True, True),
        (17, False, False),
        (15, None, False),
        (20, None, False),
    ],
)
def test_grid_sample_is_written_where_every_tensorrt_reads_it_rightly(
    net: nn.Module, tmp_path: Path, opset: int, wanted: bool | None, there: bool
) -> None:
    assert ("GridSample" in operators(net, tmp_path, opset, wanted)) == there


@pytest.mark.parametrize("opset", [15, 20])
def test_grid_sample_at_another_opset_is_refused(net: nn.Module, opset: int) -> None:
    with pytest.raises(ConfigError, match=f"--grid-sample with opset {opset}; expected opset 16"):
        sampled_for(net, opset, True)


@pytest.mark.parametrize("wanted", [True, False])
def test_a_network_without_deformable_attention_has_no_such_choice(wanted: bool) -> None:
    with pytest.raises(ConfigError, match="a network with deformable attention"):
        sampled_for(tiny_net(), 17, wanted)
    net = tiny_net()
    assert sampled_for(net, 17, None) is net
