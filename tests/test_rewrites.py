"""Rewritten modules give the answer of the unrewritten ones, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from exporter.architectures.segformer import Segformer
from exporter.rewrites.rewritten import rewritten_for_export
from tests.test_segformer import shape_of


def random_model(head_kind: str, *, bias: bool = True, align_corners: bool = False) -> Segformer:
    torch.manual_seed(3)
    shape = shape_of(
        head_kind=head_kind, qkv_bias=bias, align_corners=align_corners, num_heads=(1, 2, 5, 8)
    )
    model = Segformer(shape).double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.2, 3.0)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
        if isinstance(module, nn.LayerNorm):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    for name, parameter in model.named_parameters():
        if name.endswith("bias") and "bn" not in name and "norm" not in name:
            nn.init.normal_(parameter)
    return model


def difference(model: nn.Module, other: nn.Module, image: Tensor) -> float:
    with torch.no_grad():
        want, got = model(image), other(image)
    assert want.std() > 1e-3, "a constant answer would prove nothing"
    return float((want - got).abs().max() / want.std())


@pytest.mark.parametrize("head_kind", ["mmsegmentation", "linear"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("hw", [(64, 64), (96, 160), (70, 101)])
def test_a_rewritten_model_is_the_same_function(
    head_kind: str, bias: bool, hw: tuple[int, int]
) -> None:
    model = random_model(head_kind, bias=bias)
    image = torch.randn(2, 3, *hw, dtype=torch.float64)
    assert difference(model, rewritten_for_export(model), image) < 1e-11


@pytest.mark.parametrize("head_kind", ["mmsegmentation", "linear"])
def test_a_rewritten_model_is_the_same_function_with_aligned_corners(head_kind: str) -> None:
    model = random_model(head_kind, align_corners=True)
    image = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    assert difference(model, rewritten_for_export(model), image) < 1e-11


def test_rewriting_leaves_the_original_as_it_was() -> None:
    model = random_model("mmsegmentation")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rewritten = rewritten_for_export(model)
    with torch.no_grad():
        for parameter in rewritten.parameters():
            parameter.zero_()
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_fusion_runs_at_each_stages_own_resolution() -> None:
    """Multiply-accumulates of the 1x1 convolutions: 1 + 1/4 + 1/16 + 1/64 instead of 4."""
    counted: dict[str, int] = {}

    def count(name: str) -> None:
        def hook(module: nn.Conv2d, _inputs: object, output: Tensor) -> None:
            positions = output.shape[2] * output.shape[3]
            counted[name] = counted.get(name, 0) + positions * module.weight.numel()

        return hook  # type: ignore[return-value]

    model = random_model("mmsegmentation")
    rewritten = rewritten_for_export(model)
    model.decode_head.fusion_conv.conv.register_forward_hook(count("before"))  # type: ignore
    for conv in rewritten.decode_head.fusion:  # type: ignore
        conv.register_forward_hook(count("after"))
    with torch.no_grad():
        image = torch.randn(1, 3, 128, 128, dtype=torch.float64)
        model(image), rewritten(image)
    width = 16
    assert counted["before"] == 32 * 32 * width * 4 * width
    assert counted["after"] == (32**2 + 16**2 + 8**2 + 4**2) * width * width
