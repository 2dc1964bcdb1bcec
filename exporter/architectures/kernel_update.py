"""K-Net's stage: kernels, one a class, are updated with the features of the pixels they claim.

Source: Zhang et al., "K-Net: Towards Unified Image Segmentation", NeurIPS 2021, and the layer order
of mmsegmentation 1.2 (Apache-2.0), whose parameter names these are.

Every product is a batched matrix product, in place of mmsegmentation's einsum and its convolution
of each image with that image's own weights; kernels are 1x1, as the published ones are.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from exporter.architectures.layers import QkvProjection, hw_of, joined_heads, split_heads


@dataclass(frozen=True)
class StageShape:
    """One stage's parameters.

    `update_channels` is the width of the kernel update, a divisor of the kernels' `channels`: each
    kernel is cut into that many pieces, which go through the same layers. `hidden_channels` are the
    widths between the feed-forward network's layers, empty where it has none.
    """

    channels: int
    update_channels: int
    num_heads: int
    hidden_channels: tuple[int, ...]
    num_mask_layers: int
    has_feature_transform: bool


class KernelUpdator(nn.Module):
    """Eq. 4 and 5 of the paper: gates decide how much of a kernel its pixels replace.

    The name and its spelling are mmsegmentation's.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.dynamic_layer = nn.Linear(channels, 2 * channels)
        self.input_layer = nn.Linear(channels, 2 * channels)
        self.input_gate = nn.Linear(channels, channels)
        self.update_gate = nn.Linear(channels, channels)
        self.norm_in = nn.LayerNorm(channels)
        self.norm_out = nn.LayerNorm(channels)
        self.input_norm_in = nn.LayerNorm(channels)
        self.input_norm_out = nn.LayerNorm(channels)
        self.fc_layer = nn.Linear(channels, channels)
        self.fc_norm = nn.LayerNorm(channels)

    def forward(self, gathered: Tensor, kernels: Tensor) -> Tensor:
        """(N, classes, C) gathered features and (N or 1, classes, C) kernels -> (N, classes, C)."""
        num_classes, width = int(gathered.shape[1]), int(gathered.shape[2])
        pieces = num_classes * (width // self.channels)
        gathered = gathered.reshape(-1, pieces, self.channels)
        kernels = kernels.reshape(-1, pieces, self.channels)
        pixels_in, pixels_out = self.dynamic_layer(gathered).chunk(2, dim=2)
        kernels_in, kernels_out = self.input_layer(kernels).chunk(2, dim=2)
        gate = kernels_in * pixels_in
        kernels_gate = self.input_norm_in(self.input_gate(gate)).sigmoid()
        pixels_gate = self.norm_in(self.update_gate(gate)).sigmoid()
        mixed = pixels_gate * self.norm_out(pixels_out) + kernels_gate * self.input_norm_out(
            kernels_out
        )
        updated = F.relu(self.fc_norm(self.fc_layer(mixed)))
        return updated.reshape(-1, num_classes, width)


class KernelAttention(nn.Module):
    """Attention of the class kernels among themselves, with what came in added."""

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attn = QkvProjection(channels)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            split_heads(F.linear(x, weight, bias), self.num_heads)
            for weight, bias in self.attn.split()
        )
        weights = (q @ k.transpose(2, 3) * int(q.shape[3]) ** -0.5).softmax(dim=3)
        return x + self.attn.out_proj(joined_heads(weights @ v))


class FeedForward(nn.Module):
    """Linear layers with ReLU between them, and what came in added (mmcv's FFN)."""

    def __init__(self, channels: int, hidden_channels: tuple[int, ...]) -> None:
        super().__init__()
        widths = (channels, *hidden_channels)
        hidden = [
            nn.Sequential(nn.Linear(before, after), nn.ReLU()) for before, after in pairwise(widths)
        ]
        self.layers = nn.Sequential(*hidden, nn.Linear(widths[-1], channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class FeatureTransform(nn.Module):
    """A 1x1 convolution with bias and nothing after it (mmcv's ConvModule without activation)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class KernelUpdateHead(nn.Module):
    """One stage."""

    def __init__(self, shape: StageShape) -> None:
        super().__init__()
        width = shape.channels
        self.feat_transform = FeatureTransform(width) if shape.has_feature_transform else None
        self.kernel_update_conv = KernelUpdator(shape.update_channels)
        self.attention = KernelAttention(width, shape.num_heads)
        self.attention_norm = nn.LayerNorm(width)
        has_ffn = bool(shape.hidden_channels)
        self.ffn = FeedForward(width, shape.hidden_channels) if has_ffn else None
        self.ffn_norm = nn.LayerNorm(width) if has_ffn else None
        self.mask_fcs = nn.Sequential()
        for _ in range(shape.num_mask_layers):
            self.mask_fcs.append(nn.Linear(width, width, bias=False))
            self.mask_fcs.append(nn.LayerNorm(width))
            self.mask_fcs.append(nn.ReLU())
        self.fc_mask = nn.Linear(width, width)

    def forward(self, features: Tensor, kernels: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """New masks and kernels.

        `features` (N, C, h, w), `masks` (N, classes, h, w) and `kernels` (N, classes, C); kernels
        that are the same for all images may come once, as (1, classes, C).
        """
        if self.feat_transform is not None:
            features = self.feat_transform(features)
        kernels = self.kernel_update_conv(gathered_features(masks, features), kernels)
        kernels = self.attention_norm(self.attention(kernels))
        if self.ffn is not None and self.ffn_norm is not None:
            kernels = self.ffn_norm(self.ffn(kernels))
        return masks_from_kernels(self.fc_mask(self.mask_fcs(kernels)), features), kernels


def gathered_features(masks: Tensor, features: Tensor) -> Tensor:
    """Eq. 3: the sum of the features under each class's share of the pixels, (N, classes, C).

    Mask logits (N, classes, h, w), features (N, C, h, w). Classes compete for each pixel.
    """
    shares = masks.softmax(dim=1)
    return _flat(shares) @ _flat(features).transpose(1, 2)


def masks_from_kernels(kernels: Tensor, features: Tensor) -> Tensor:
    """(N, classes, C) 1x1 kernels on (N, C, h, w) features -> (N, classes, h, w)."""
    h, w = hw_of(features)
    return (kernels @ _flat(features)).reshape(-1, int(kernels.shape[1]), h, w)


def _flat(x: Tensor) -> Tensor:
    """(N, C, h, w) -> (N, C, h*w)."""
    h, w = hw_of(x)
    return x.reshape(-1, int(x.shape[1]), h * w)
