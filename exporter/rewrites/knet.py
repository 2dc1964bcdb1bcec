"""K-Net's rewrites: stages that read the features as they are, and what is constant computed once.

For a stage let X (C, h*w) be the features, T X + t its feature transform (a 1x1 convolution with
bias), S (classes, h*w) the shares of the classes, n = S 1 their sums, and K the new kernels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exporter.architectures.kernel_update import KernelUpdateHead, KernelUpdator
from exporter.architectures.knet import IterativeDecodeHead, UperKernelHead
from exporter.architectures.layers import hw_of
from exporter.rewrites.pieces import ScaledQueries, linear_of
from exporter.rewrites.uper import EarlyTapsHead


def rewrite(model: nn.Module, _input_hw: tuple[int, int] | None) -> None:
    """Each K-Net head: its stages, the last of which keeps the outputs that are wanted.

    Comes before UPerNet's rewrite, whose head gives no features.
    """
    for head in list(model.modules()):
        if not isinstance(head, IterativeDecodeHead):
            continue
        if isinstance(head.kernel_generate_head, UperKernelHead):
            made = EarlyTapsKernelHead(head.kernel_generate_head)
            head.kernel_generate_head = made  # type: ignore[assignment]
        kernels: Tensor | None = head.kernel_generate_head.conv_seg.weight.flatten(1)
        count = len(head.kernel_update_head)
        for i, stage in enumerate(head.kernel_update_head):
            assert isinstance(stage, KernelUpdateHead)
            keep = head.keep_outputs if i == count - 1 else None
            head.kernel_update_head[i] = UntransformedStage(stage, kernels, keep)
            kernels = None
        head.keep_outputs = None


class EarlyTapsKernelHead(EarlyTapsHead):
    """UPerNet's rewritten head that gives what its classifier reads too."""

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """As `UperKernelHead`."""
        features = self.features(maps)
        return self.conv_seg(features), features


class UntransformedStage(nn.Module):
    """A stage whose feature transform moved from the pixels into the layers of the kernels.

    Gathering is linear, so S (T X + t)' = (S X') T' + n t', and T' is followed by the linear
    `dynamic_layer`, into which it goes. In the masks K (T X + t) = (K T) X + K t, and K comes from
    the linear `fc_mask`, into which T and t go (the identity and 0 in a stage without a transform).
    Classes are fewer than pixels by two to three orders of magnitude: at 128x128 each stage saves
    4.3 G multiply-accumulates and a map.
    Three stages in ONNX Runtime 1.31 on one core, medians: with 6 classes 38 -> 9 ms at 64x64 and
    217 -> 37 ms at 128x128, with 150 classes 97 -> 67 ms and 867 -> 458 ms.

    Rows of the kernels are independent after the attention, so outputs that nobody wants are left
    out there (`keep`).
    """

    def __init__(self, source: KernelUpdateHead, kernels: Tensor | None, keep: int | None) -> None:
        super().__init__()
        width = source.fc_mask.out_features
        transform = torch.eye(width).to(source.fc_mask.weight)
        shift = torch.zeros(width).to(transform)
        if source.feat_transform is not None:
            conv = source.feat_transform.conv
            assert conv.bias is not None
            transform, shift = conv.weight.flatten(1), conv.bias
        self.keep = keep
        self.kernel_update_conv = SumsUpdator(
            source.kernel_update_conv, (transform, shift), kernels
        )
        self.attention = ScaledKernelAttention(source.attention.num_heads, source.attention.attn)
        self.attention_norm = source.attention_norm
        self.ffn, self.ffn_norm = source.ffn, source.ffn_norm
        self.mask_fcs = source.mask_fcs
        weight, bias = source.fc_mask.weight, source.fc_mask.bias
        self.fc_mask = linear_of(transform.T @ weight, transform.T @ bias)
        self.fc_offset = linear_of((shift @ weight)[None], (shift @ bias)[None])

    def forward(self, features: Tensor, kernels: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """As `KernelUpdateHead`; the kernels that come back are the first `keep`."""
        h, w = hw_of(features)
        pixels = features.reshape(-1, int(features.shape[1]), h * w)
        scales = Scales.of(h * w)
        shares = masks.softmax(dim=1).reshape(-1, int(masks.shape[1]), h * w) * scales.sums
        sums, sizes = shares @ pixels.transpose(1, 2), shares.sum(dim=2, keepdim=True)
        kernels = self.kernel_update_conv(sums, sizes, kernels, scales)
        kernels = self.attention_norm(self.attention(kernels))
        if self.keep is not None:
            kernels = kernels[:, : self.keep]
        if self.ffn is not None and self.ffn_norm is not None:
            kernels = self.ffn_norm(self.ffn(kernels))
        rows = self.mask_fcs(kernels)
        masks = self.fc_mask(rows) @ pixels + self.fc_offset(rows)
        return masks.reshape(-1, int(rows.shape[1]), h, w), kernels


@dataclass(frozen=True)
class Scales:
    """What sums over all pixels, and what is computed from them, are multiplied by for FP16.

    Unscaled they overflow it where a class has many pixels. `sums` lets a sum of features of mean
    64 pass and no more, since shares as small as 1e-6 shall not vanish: all of them together may be
    all that a class has. `layers`, for the layers after that, is the power of two nearest to
    1 / sqrt(pixels), which is as far from the largest numbers as from the smallest. Powers of two
    round nothing. Only the shares are multiplied at run time: 433 -> 458 ms with 150 classes.
    """

    sums: float
    layers: float

    @classmethod
    def of(cls, pixels: int) -> Scales:
        exponent = math.log2(pixels)
        return cls(2.0 ** -max(0, math.ceil(exponent) - 10), 2.0 ** -round(exponent / 2))


class SumsUpdator(nn.Module):
    """`KernelUpdator` on sums of untransformed features, all of it times `Scales`.

    The pixels' part goes through linear layers and then LayerNorm. With every bias on the way times
    s, what reaches LayerNorm is s times the original, and (s x - s m) / sqrt(s^2 v + s^2 e) =
    (x - m) / sqrt(v + e): the epsilon is multiplied by the square.

    Kernels that are the same for every image (the first stage's are the classifier's weights) go
    through `input_layer`, and the half that needs it through `input_norm_out`, once, here. onnxsim
    folds as much (289 nodes either way); without it, 1 of 757 ms with 150 classes at 128x128.
    """

    kernels_in: Tensor
    kernels_out: Tensor

    def __init__(
        self, source: KernelUpdator, transform: tuple[Tensor, Tensor], kernels: Tensor | None
    ) -> None:
        super().__init__()
        self.channels = source.channels
        self.dynamic_layer = SumsLinear(source.dynamic_layer, *transform)
        self.input_gate = ScaledLinear(source.input_gate)
        self.update_gate = ScaledLinear(source.update_gate)
        self.norm_in, self.norm_out = ScaledNorm(source.norm_in), ScaledNorm(source.norm_out)
        self.input_norm_in = ScaledNorm(source.input_norm_in)
        self.fc_layer, self.fc_norm = source.fc_layer, source.fc_norm
        self.input_layer: nn.Linear | None = None
        if kernels is None:
            self.input_layer, self.input_norm_out = source.input_layer, source.input_norm_out
        else:
            pieces = source.input_layer(kernels.reshape(1, -1, self.channels))
            kernels_in, kernels_out = pieces.chunk(2, dim=2)
            self.register_buffer("kernels_in", kernels_in.clone())
            self.register_buffer("kernels_out", source.input_norm_out(kernels_out))

    def forward(self, sums: Tensor, sizes: Tensor, kernels: Tensor, scales: Scales) -> Tensor:
        """(N, classes, C) sums, (N, classes, 1) sizes, both times `scales.sums`, and kernels."""
        num_classes, width = int(sums.shape[1]), int(sums.shape[2])
        pieces = num_classes * (width // self.channels)
        scale = scales.layers
        dynamic = self.dynamic_layer(sums, sizes, scales)
        pixels_in, pixels_out = dynamic.reshape(-1, pieces, 2 * self.channels).chunk(2, dim=2)
        kernels_in, kernels_out = self._of_kernels(kernels, pieces)
        gate = kernels_in * pixels_in
        kernels_gate = self.input_norm_in(self.input_gate(gate, scale), scale).sigmoid()
        pixels_gate = self.norm_in(self.update_gate(gate, scale), scale).sigmoid()
        mixed = pixels_gate * self.norm_out(pixels_out, scale) + kernels_gate * kernels_out
        return F.relu(self.fc_norm(self.fc_layer(mixed))).reshape(-1, num_classes, width)

    def _of_kernels(self, kernels: Tensor, pieces: int) -> tuple[Tensor, Tensor]:
        if self.input_layer is None:
            return self.kernels_in, self.kernels_out
        kernels = self.input_layer(kernels.reshape(-1, pieces, self.channels))
        kernels_in, kernels_out = kernels.chunk(2, dim=2)
        return kernels_in, self.input_norm_out(kernels_out)


class ScaledLinear(nn.Linear):
    """`source` on its input times `scale`, and so is its answer."""

    def __init__(self, source: nn.Linear) -> None:
        super().__init__(source.in_features, source.out_features, device="meta")
        self.weight, self.bias = source.weight, source.bias

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return F.linear(x, self.weight, self.bias * scale)


class ScaledNorm(nn.LayerNorm):
    """`source` on its input times `scale`."""

    def __init__(self, source: nn.LayerNorm) -> None:
        super().__init__(source.normalized_shape, eps=source.eps, device="meta")
        self.weight, self.bias = source.weight, source.bias

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        eps = self.eps * scale**2
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, eps)


class SumsLinear(nn.Linear):
    """`source` of each piece that sums of transformed features are cut into, piece after piece.

    It takes the sums before the transform T x + t and the number of pixels in each, both times
    `scales.sums`: their shifts add up to that many t. Its answer is times `scales.layers`.
    """

    of_size: Tensor

    def __init__(self, source: nn.Linear, transform: Tensor, shift: Tensor) -> None:
        width, out = source.in_features, source.out_features
        pieces = transform.shape[0] // width
        super().__init__(transform.shape[1], out * pieces, device="meta")
        weight = source.weight @ transform.reshape(pieces, width, -1)
        self.weight = nn.Parameter(weight.flatten(0, 1))
        self.bias = nn.Parameter(source.bias.repeat(pieces))
        self.register_buffer("of_size", (shift.reshape(pieces, width) @ source.weight.T).flatten())

    def forward(self, sums: Tensor, sizes: Tensor, scales: Scales) -> Tensor:  # type: ignore[override]
        ratio = scales.layers / scales.sums
        of_sizes = sizes * (self.of_size * ratio) + self.bias * scales.layers
        return F.linear(sums, self.weight * ratio) + of_sizes


class ScaledKernelAttention(ScaledQueries):
    """`KernelAttention` with `ScaledQueries`: what came in is added."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)
