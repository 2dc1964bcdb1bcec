"""Every layer of an exported SegFormer has a group with a name; other networks are told by kind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from calibration.groups import GROUPS_BY_KIND, LayerGroup, nodes_by_group
from calibration.layers import quantizable_nodes
from exporter.architectures.segformer import Segformer
from exporter.groups import groups_of
from exporter.onnx_graph import GraphSpec, onnx_from_model
from exporter.rewrites.rewritten import rewritten_for_export
from exporter.simplify import simplify_onnx
from tests.small_graphs import block_model, model_from_text
from tests.test_segformer import DEPTHS, shape_of
from tests.tiny_segformer import MEAN, STD, tiny_net

# Two blocks in each of four stages: attention in 8 blocks, of which the last 2 reduce nothing and
# the first 2, with one head, have their output projection in v.
B0 = {
    "patch_embed": 4,
    "q": 8,
    "k": 8,
    "v": 8,
    "attention_products": 16,
    "projection": 6,
    "spatial_reduction": 6,
    "ffn_fc1": 8,
    "ffn_depthwise": 8,
    "ffn_fc2": 8,
    "residual": 16,
    "head_stages": 4,
    "head_fusion": 4,
    "head_sums": 3,
    "classifier": 1,
}


def b0_net(head: str) -> Segformer:
    torch.manual_seed(0)
    dims, depths = DEPTHS["b0"]
    return Segformer(
        shape_of(embed_dims=dims, depths=depths, head_channels=256, head_kind=head)
    ).eval()


def exported(net: Segformer, folder: Path, **changes: object) -> onnx.ModelProto:
    spec = GraphSpec((64, 64), MEAN, STD, **changes)  # type: ignore[arg-type]
    outputs = net.shape.num_outputs
    onnx_from_model(rewritten_for_export(net), spec, folder / "traced.onnx", num_outputs=outputs)
    batch = np.zeros((spec.batch[1], 64, 64, 3), np.uint8)
    simplify_onnx(folder / "traced.onnx", folder / "model.onnx", batch=batch)
    return onnx.load(folder / "model.onnx")


def counts(model: onnx.ModelProto, groups: tuple[LayerGroup, ...]) -> dict[str, int]:
    return {name: len(items) for name, items in nodes_by_group(model, groups).items()}


@pytest.mark.parametrize("head", ["mmsegmentation", "linear"])
def test_every_layer_of_an_exported_b0_is_in_a_group_with_a_name(tmp_path: Path, head: str) -> None:
    expected = dict(B0)
    if head == "linear":
        del expected["head_stages"]  # multiplied into the fusion
    assert counts(exported(b0_net(head), tmp_path), groups_of("segformer")) == expected


@pytest.mark.parametrize(
    "changes", [{"opset": 16}, {"opset": 20, "output": "both"}, {"batch": (1, 2, 4)}]
)
def test_every_way_to_export_gives_the_same_groups(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    found = counts(exported(tiny_net(), tmp_path, **changes), groups_of("segformer"))
    assert "other" not in found
    assert found == {
        **dict.fromkeys(("q", "k", "v", "ffn_fc1", "ffn_depthwise", "ffn_fc2"), 4),
        **dict.fromkeys(("patch_embed", "head_stages", "head_fusion"), 4),
        **dict.fromkeys(("attention_products", "residual"), 8),
        **dict.fromkeys(("projection", "spatial_reduction", "head_sums"), 3),
        "classifier": 1,
    }


def test_the_kinds_of_a_groups_layers_are_those_of_its_title(tmp_path: Path) -> None:
    found = nodes_by_group(exported(tiny_net(), tmp_path), groups_of("segformer"))
    kinds = {name: {kind for item in items for kind in item.kinds} for name, items in found.items()}
    for name in ("q", "k", "v", "projection"):
        assert kinds[name] == {"linear"}
    for name in ("spatial_reduction", "ffn_fc1", "ffn_fc2", "head_stages", "head_fusion"):
        assert kinds[name] == {"conv"}
    assert kinds["patch_embed"] == {"conv", "first"}
    assert kinds["ffn_depthwise"] == {"conv", "depthwise"}
    assert kinds["attention_products"] == {"product"}
    assert kinds["residual"] == kinds["head_sums"] == {"residual"}
    assert kinds["classifier"] == {"conv", "classifier"}


def test_an_architecture_that_is_not_known_has_groups_by_kind() -> None:
    assert groups_of("unknown") == GROUPS_BY_KIND
    found = nodes_by_group(block_model(), groups_of("unknown"))
    assert {name: [item.node for item in items] for name, items in found.items()} == {
        "first": ["/patch/Conv"],
        "classifier": ["/seg/Conv"],
        "depthwise": ["/ffn/dw/Conv"],
        "conv": ["/attn/sr/Conv", "/head/Conv"],
        "linear": ["/attn/q/MatMul", "/attn/proj/MatMul", "/ffn/fc1/MatMul"],
        "product": ["/attn/QK", "/attn/AV"],
        "residual": ["/Add"],
    }


def test_a_layer_is_in_the_first_group_that_holds_it_and_else_in_other() -> None:
    groups = (
        LayerGroup("head", "Head", ("/head/*",)),
        LayerGroup("convolutions", "Convolutions", ("/attn/AV",), frozenset({"conv"})),
        LayerGroup("nothing", "Nothing", ("/missing/*",)),
    )
    found = nodes_by_group(block_model(), groups)
    assert [item.node for item in found["head"]] == ["/head/Conv"]
    assert [item.node for item in found["convolutions"]] == [
        "/patch/Conv",
        "/attn/sr/Conv",
        "/attn/AV",
        "/ffn/dw/Conv",
        "/seg/Conv",
    ]
    assert list(found) == ["head", "convolutions", "other"]
    everything = {item.output for item in quantizable_nodes(block_model())}
    assert everything == {item.output for items in found.values() for item in items}
    assert sum(map(len, found.values())) == len(everything)


def test_nodes_of_the_same_name_are_told_apart() -> None:
    model = model_from_text(
        """
        <ir_version: 8, opset_import: ["": 17]>
        twins (uint8[N, 2, 2, 1] image) => (float[N, 1, 2, 2] logits)
        {
          pixels = Cast <to = 1> (image)
          planes = Transpose <perm = [0, 3, 1, 2]> (pixels)
          ["twin"] inner = Conv <kernel_shape = [1, 1]> (planes, w)
          ["twin"] logits = Conv <kernel_shape = [1, 1]> (inner, w)
        }
        """,
        w=np.ones((1, 1, 1, 1)),
    )
    found = nodes_by_group(model, (LayerGroup("twins", "Twins", ("twin",)),))
    assert [item.output for item in found["twins"]] == ["inner", "logits"]


def test_groups_have_distinct_names_and_titles() -> None:
    for own in (groups_of("segformer"), GROUPS_BY_KIND):
        assert len({group.name for group in own}) == len(own)
        assert len({group.title for group in own}) == len(own)
        assert all(group.title for group in own)
