"""What a family gives to the tests that every architecture must pass: small networks of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from exporter.architectures.description import NO_HINTS, Hints


@dataclass(frozen=True)
class Example:
    """A network of thin widths and true structure.

    `make` gives it in eval mode with weights as `lively` gives them. `hw` and `other_hw` are input
    sizes, the second one that needs the family's padding or rounding. `description`: fields of the
    ModelDescription that its tensors must give, written by hand. `attention`: how many products and
    softmaxes TensorRT is to find to be part of self-attention, three for each block.
    """

    id: str
    make: Callable[[], nn.Module]
    hw: tuple[int, int]
    other_hw: tuple[int, int]
    description: Mapping[str, Any]
    hints: Hints = NO_HINTS
    attention: int = 0


def lively(model: nn.Module, *, seed: int = 0, hw: tuple[int, int] = (64, 64)) -> nn.Module:
    """`model` in eval mode with random weights that leave nothing hidden, in place.

    Norms are not 1 and 0, no bias is 0, weights keep the size of what goes through them, and
    BatchNorm has the statistics of a random picture, slightly off.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            owner = model.get_submodule(name.rpartition(".")[0])
            parameter.copy_(_lively_parameter(owner, name, parameter, generator))
        _calibrate(model, torch.randn(2, _in_channels(model), *hw, generator=generator))
    return model.eval()


def _lively_parameter(
    owner: nn.Module, name: str, parameter: Tensor, generator: torch.Generator
) -> Tensor:
    noise = torch.randn(parameter.shape, generator=generator)
    if isinstance(owner, nn.LayerNorm | nn.BatchNorm2d | nn.GroupNorm):
        return 1.0 + 0.3 * noise if name.endswith("weight") else 0.3 * noise
    if parameter.dim() == 1:
        return 0.3 * noise
    return noise / math.sqrt(parameter[0].numel())


def _in_channels(model: nn.Module) -> int:
    return next(m for m in model.modules() if isinstance(m, nn.Conv2d)).in_channels


def _calibrate(model: nn.Module, images: Tensor) -> None:
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # take the batch's own statistics
        norm.train()
    model(images)
    for norm in norms:
        norm.momentum = 0.1
        norm.eval()
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean += 0.2 * norm.running_var.sqrt()
        norm.running_var *= 1.3
