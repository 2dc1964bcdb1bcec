"""Every rewrite, applied to a copy of a model.

Each rewrite replaces modules of `exporter.architectures` and states why the answer is the same.
"The same" is in exact arithmetic: tests compare both in float64.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn

from exporter.rewrites import aspp, knet, mask2former, resnet, segformer, segmenter, swin, uper
from exporter.rewrites.pieces import fold_conv_bn

Rewrite = Callable[[nn.Module, tuple[int, int] | None], None]

# What is particular comes first: the last one folds the BatchNorms that are left.
REWRITES: tuple[Rewrite, ...] = (
    segformer.rewrite,
    segmenter.rewrite,
    resnet.rewrite,
    aspp.rewrite,
    swin.rewrite,
    knet.rewrite,
    uper.rewrite,
    mask2former.rewrite,
    fold_conv_bn,
)


def rewritten_for_export(model: nn.Module, input_hw: tuple[int, int] | None = None) -> nn.Module:
    """A rewritten deep copy in eval mode; `model` itself is left as it is.

    `input_hw` is the size of the images to come; without it nothing that depends on the size is
    computed beforehand. Module paths of blocks and norms stay, so that intermediate results can be
    compared by name.
    """
    result = copy.deepcopy(model).eval()
    with torch.no_grad():
        for rewrite in REWRITES:
            rewrite(result, input_hw)
    return result.eval()
