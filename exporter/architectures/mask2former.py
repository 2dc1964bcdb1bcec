"""Mask2Former for semantic segmentation: backbone, pixel decoder, mask decoder, sum over queries.

Source: Cheng et al., "Masked-attention Mask Transformer for Universal Image Segmentation", CVPR
2022, and the structure of mmsegmentation 1.2 and mmdetection 3.3 (Apache-2.0). Parameter names are
mmsegmentation's, so that its checkpoints load with ``strict=True``.

These modules compute what the original computes, operation by operation. What makes the exported
graph faster is in `exporter.rewrites.mask2former`.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from exporter.architectures.backbones import BackboneShape, backbone_from_shape
from exporter.architectures.layers import hw_of, resize_bilinear
from exporter.architectures.mask_decoder import MaskDecoderShape, MaskHead
from exporter.architectures.pixel_decoder import PixelDecoderShape

USUAL_DIVISOR = 32
ProductAt = Literal["input", "quarter"]


@dataclass(frozen=True)
class Mask2FormerShape:
    """Shapes of the three parts. `kept`: how many of the classes are given, None for all.

    `divisor`: of the sides of what the backbone sees, mmsegmentation's test_cfg.size_divisor.
    """

    backbone: BackboneShape
    pixels: PixelDecoderShape
    masks: MaskDecoderShape
    kept: int | None = None
    divisor: int = USUAL_DIVISOR

    @property
    def num_outputs(self) -> int:
        return self.masks.classes if self.kept is None else self.kept


class SemanticMasks(nn.Module):
    """Class scores and mask scores of the queries -> scores of the classes at every pixel.

    With `product_at` "quarter" the sum over the queries is taken at the masks' own resolution and
    its result is resized: a sixteenth of the work and memory, but another function. On random
    weights 8 % of the labels are others, so nothing chooses it by itself.
    """

    def __init__(self, num_outputs: int, product_at: ProductAt = "input") -> None:
        super().__init__()
        self.num_outputs = num_outputs
        self.product_at: ProductAt = product_at

    def forward(
        self, classes: Tensor, masks: Tensor, padded: tuple[int, int], hw: tuple[int, int]
    ) -> Tensor:
        """classes (N, Q, K + 1), masks (N, Q, h, w) -> (N, num_outputs, *hw).

        The masks lie over the `padded` image; what exceeds `hw` below and to the right is cut off.
        """
        if self.product_at == "quarter":
            logits = resize_bilinear(self.product(classes, masks), padded, False)
        else:
            logits = self.product(classes, resize_bilinear(masks, padded, False))
        return cut(logits, hw)

    def product(self, classes: Tensor, masks: Tensor) -> Tensor:
        """Sum over the queries of class probability times mask probability, at every pixel."""
        h, w = hw_of(masks)
        shares = classes.softmax(dim=2)[:, :, : self.num_outputs].transpose(1, 2)
        flat = masks.sigmoid().reshape(-1, int(masks.shape[1]), h * w)
        return (shares @ flat).reshape(-1, self.num_outputs, h, w)


class Mask2Former(nn.Module):
    """Normalised (N, in_channels, H, W) float -> (N, num_outputs, H, W) float, 0 to Q.

    The input is filled up with zeros below and to the right until both sides are multiples of
    `shape.divisor`, as mmsegmentation does in testing.
    """

    def __init__(self, shape: Mask2FormerShape) -> None:
        super().__init__()
        self.shape = shape
        self.backbone = backbone_from_shape(shape.backbone)
        self.decode_head = MaskHead(shape.pixels, shape.masks)
        self.semantic: nn.Module = SemanticMasks(shape.num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        hw, divisor = hw_of(x), self.shape.divisor
        padded = (-(-hw[0] // divisor) * divisor, -(-hw[1] // divisor) * divisor)
        if padded != hw:
            x = F.pad(x, (0, padded[1] - hw[1], 0, padded[0] - hw[0]))
        classes, masks = self.decode_head(self.backbone(x))
        return self.semantic(classes, masks, padded, hw)


def with_quarter_products(model: Mask2Former) -> Mask2Former:
    """Another model on the same weights that sums over queries at a quarter of the size.

    Not exact: see `SemanticMasks`.
    """
    other = copy.copy(model)
    other._modules = dict(model._modules)
    other.semantic = SemanticMasks(model.shape.num_outputs, "quarter")
    return other


def cut(x: Tensor, hw: tuple[int, int]) -> Tensor:
    """The upper left `hw` of (N, C, H, W)."""
    return x if hw_of(x) == hw else x[:, :, : hw[0], : hw[1]]
