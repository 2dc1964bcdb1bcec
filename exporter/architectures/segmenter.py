"""Segmenter: a Vision Transformer with a mask-transformer or a linear decode head.

Source: Strudel et al., "Segmenter: Transformer for Semantic Segmentation", ICCV 2021, and the layer
order of mmsegmentation 1.2 (Apache-2.0), whose parameter names are used.

These modules compute what the original computes, operation by operation. What makes the exported
graph faster is in `exporter.rewrites.segmenter`, applied to a copy.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exporter.architectures.layers import hw_of, map_from_sequence, sequence_from_map
from exporter.architectures.vit import TransformerLayer, VisionTransformer, VitShape

# Of the decoder in every program; the encoder's is in `VitShape`.
DECODER_EPS = 1e-5


@dataclass(frozen=True)
class MaskDecoderShape:
    """The mask transformer's own sizes; `num_classes` before any are left out."""

    dim: int
    depth: int
    num_heads: int
    hidden: int
    num_classes: int
    qkv_bias: bool = True


@dataclass(frozen=True)
class SegmenterShape:
    """`decoder` is None for the linear head.

    `num_outputs`: the first ones of the classes. `crop`: the logits are enlarged over the padding
    and then cut to the image, as the original does, instead of stretched over the image, as
    mmsegmentation does; of importance only where the sides are no multiples of the patch.
    """

    encoder: VitShape
    decoder: MaskDecoderShape | None
    num_outputs: int
    crop: bool = False


class MaskTransformerHead(nn.Module):
    """(N, C, h, w) -> (N, num_outputs, h, w): patches by cosine with class embeddings.

    The class embeddings go through the decoder's layers beside the patches, so that all of them are
    needed even where only the first `num_outputs` masks are wanted.
    """

    def __init__(self, in_channels: int, shape: MaskDecoderShape, num_outputs: int) -> None:
        super().__init__()
        dim = shape.dim
        self.num_outputs = num_outputs
        self.layers = nn.ModuleList(
            TransformerLayer(
                dim, shape.num_heads, shape.hidden, bias=shape.qkv_bias, eps=DECODER_EPS
            )
            for _ in range(shape.depth)
        )
        self.dec_proj = nn.Linear(in_channels, dim)
        self.cls_emb = nn.Parameter(torch.zeros(1, shape.num_classes, dim))
        self.patch_proj = nn.Linear(dim, dim, bias=False)
        self.classes_proj = nn.Linear(dim, dim, bias=False)
        self.decoder_norm = nn.LayerNorm(dim, eps=DECODER_EPS)
        self.mask_norm = nn.LayerNorm(shape.num_classes, eps=DECODER_EPS)

    def forward(self, x: Tensor) -> Tensor:
        hw = hw_of(x)
        count = hw[0] * hw[1]
        classes = self.cls_emb.expand(x.shape[0], -1, -1)
        tokens = torch.cat((self.dec_proj(sequence_from_map(x)), classes), dim=1)
        for layer in self.layers:
            tokens = layer(tokens)
        tokens = self.decoder_norm(tokens)
        patches = F.normalize(self.patch_proj(tokens[:, :count]), dim=2)
        classes = F.normalize(self.classes_proj(tokens[:, count:]), dim=2)
        masks = map_from_sequence(self.mask_norm(patches @ classes.transpose(1, 2)), hw)
        return masks if self.num_outputs == int(masks.shape[1]) else masks[:, : self.num_outputs]


class LinearHead(nn.Module):
    """mmsegmentation's FCNHead without convolutions: (N, C, h, w) -> (N, num_outputs, h, w)."""

    def __init__(self, in_channels: int, num_outputs: int) -> None:
        super().__init__()
        self.conv_seg = nn.Conv2d(in_channels, num_outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_seg(x)


class Segmenter(nn.Module):
    """Normalised (N, in_channels, H, W) float -> logits (N, num_outputs, H / 16, W / 16) float.

    With `shape.crop`, and sides that are no multiples of the patch, (N, num_outputs, H, W).
    """

    def __init__(self, shape: SegmenterShape) -> None:
        super().__init__()
        self.shape = shape
        self.backbone = VisionTransformer(shape.encoder)
        self.decode_head: nn.Module
        if shape.decoder is None:
            self.decode_head = LinearHead(shape.encoder.dim, shape.num_outputs)
        else:
            self.decode_head = MaskTransformerHead(
                shape.encoder.dim, shape.decoder, shape.num_outputs
            )

    def forward(self, x: Tensor) -> Tensor:
        logits = self.decode_head(self.backbone(x))
        (h, w), patch = hw_of(x), self.shape.encoder.patch
        if not self.shape.crop or (h % patch == 0 and w % patch == 0):
            return logits
        scale = (float(patch), float(patch))
        logits = F.interpolate(logits, scale_factor=scale, mode="bilinear", align_corners=False)
        return logits[:, :, :h, :w]
