"""Segmenter's exact rewrites; `rewritten` says when and how they are applied."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exporter.architectures.layers import (
    hw_of,
    map_from_sequence,
    sequence_from_map,
)
from exporter.architectures.segmenter import LinearHead, MaskTransformerHead, Segmenter
from exporter.architectures.vit import SelfAttention, VisionTransformer, resized_positions
from exporter.rewrites.pieces import ScaledQueries, conv_like, linear_of

Tokens = tuple[Tensor, tuple[int, int]]  # (N, h*w, C) and (h, w)


def rewrite(model: nn.Module, input_hw: tuple[int, int] | None = None) -> None:
    """Replaces, in place, what belongs to Segmenters. Encoder and head then hand over `Tokens`."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, SelfAttention):
                setattr(parent, name, ScaledQueries(child.num_heads, child.attn))
        if isinstance(parent, Segmenter):
            assert isinstance(parent.backbone, VisionTransformer)
            encoder = TokenEncoder(parent.backbone, input_hw)
            parent.backbone = encoder  # type: ignore[assignment]
            head = parent.decode_head
            if isinstance(head, MaskTransformerHead):
                parent.decode_head = TokenMasks(head)
            elif isinstance(head, LinearHead):
                parent.decode_head = TokenClassifier(head)


class TokenEncoder(nn.Module):
    """The ViT with class token, positions and the patches' bias as one constant that is added.

    concat(class, patches + bias) + positions = pad(patches) + concat(class, bias) + positions,
    where `pad` sets a row of zeros before the patches. For images of `input_hw` the sum of all but
    the patches, with the bicubic resizing in it, is computed here once: no Resize by cubic
    interpolation, which TensorRT lacks, and no Expand to the batch size. Nothing reads the class
    token after the last layer, so it is left out before the last LayerNorm, which is row by row.
    """

    added: Tensor

    def __init__(self, source: VisionTransformer, input_hw: tuple[int, int] | None) -> None:
        super().__init__()
        self.grid, self.positions = source.grid, source.positions
        self.class_tokens = int(source.cls_token.shape[1])
        self.cls_token, self.pos_embed = source.cls_token, source.pos_embed
        self.patch_embed = source.patch_embed
        conv = source.patch_embed.projection
        self.patch_bias = conv.bias
        self.patch_embed.projection = conv_like(conv, conv.weight, None)
        self.layers, self.ln1 = source.layers, source.ln1
        self.hw: tuple[int, int] | None = None
        if input_hw is not None:
            patch = int(conv.kernel_size[0])
            self.hw = (-(-input_hw[0] // patch), -(-input_hw[1] // patch))
            self.register_buffer("added", self._added_at(self.hw), persistent=False)

    def _added_at(self, hw: tuple[int, int]) -> Tensor:
        """(1, class tokens + h*w, C): all that is added to the padded patches."""
        rows = resized_positions(self.pos_embed, self.grid, hw, self.positions)
        class_rows, patch_rows = rows[:, : self.class_tokens], rows[:, self.class_tokens :]
        if self.patch_bias is not None:
            patch_rows = patch_rows + self.patch_bias
        return torch.cat((class_rows + self.cls_token, patch_rows), dim=1).detach()

    def forward(self, x: Tensor) -> Tokens:
        patches = self.patch_embed(x)
        hw = hw_of(patches)
        added = self.added if hw == self.hw else self._added_at(hw)
        tokens = F.pad(sequence_from_map(patches), (0, 0, self.class_tokens, 0)) + added
        for layer in self.layers:
            tokens = layer(tokens)
        return self.ln1(tokens[:, self.class_tokens :]), hw


class TokenMasks(nn.Module):
    """The mask-transformer head on tokens; the projection's bias and the classes are one constant.

    concat(x W + b, classes) = pad(x W) + concat(b, classes), as in `TokenEncoder`. A patch's length
    divides its products with the classes instead of its channels, which are more:
    (p / |p|) . c = (p . c) / |p|. Lengths are kept from zero as torch does it, without its Expand.
    """

    def __init__(self, source: MaskTransformerHead) -> None:
        super().__init__()
        self.num_outputs = source.num_outputs
        self.num_classes = int(source.cls_emb.shape[1])
        self.layers = source.layers
        self.dec_proj = linear_of(source.dec_proj.weight, None)
        self.dec_bias, self.cls_emb = source.dec_proj.bias, source.cls_emb
        self.decoder_norm, self.mask_norm = source.decoder_norm, source.mask_norm
        self.patch_proj, self.classes_proj = source.patch_proj, source.classes_proj

    def forward(self, source: Tokens) -> Tensor:
        x, hw = source
        count = hw[0] * hw[1]
        bias = self.dec_bias.expand(1, count, -1)
        added = torch.cat((bias, self.cls_emb), dim=1)
        tokens = F.pad(self.dec_proj(x), (0, 0, 0, self.num_classes)) + added
        for layer in self.layers:
            tokens = layer(tokens)
        tokens = self.decoder_norm(tokens)
        patches = self.patch_proj(tokens[:, :count])
        classes = self.classes_proj(tokens[:, count:])
        masks = patches @ (classes / _length(classes)).transpose(1, 2)
        masks = self.mask_norm(masks / _length(patches))
        if self.num_outputs < self.num_classes:
            masks = masks[:, :, : self.num_outputs]
        return map_from_sequence(masks, hw)


class TokenClassifier(nn.Module):
    """The linear head's 1x1 convolution as a linear layer on tokens: no transpose of C channels."""

    def __init__(self, source: LinearHead) -> None:
        super().__init__()
        conv = source.conv_seg
        self.conv_seg = linear_of(conv.weight[:, :, 0, 0], conv.bias)

    def forward(self, source: Tokens) -> Tensor:
        x, hw = source
        return map_from_sequence(self.conv_seg(x), hw)


def _length(x: Tensor) -> Tensor:
    """(N, L, C) -> (N, L, 1), at least 1e-12 as in torch.nn.functional.normalize."""
    return x.norm(dim=2, keepdim=True).clamp_min(1e-12)
