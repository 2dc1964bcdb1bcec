"""Swin's rewrites: windows by one table, scaled queries, constant position biases.

Measured with ONNX Runtime on one core, Swin-T's widths with two blocks in each stage, 512x512: 455
nodes and 274 ms as the modules are, 354 nodes and 248 ms rewritten (windows alone 250, merging
alone 255; the least of 21 runs of processor time, on a busy machine).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exporter.architectures.layers import joined_heads, split_heads
from exporter.architectures.swin import PatchMerging, ShiftWindowMsa
from exporter.architectures.windows import padded_hw, places_in_windows, shift_mask, windows_of
from exporter.rewrites.pieces import linear_of


def rewrite(model: nn.Module, _input_hw: tuple[int, int] | None) -> None:
    """Every window attention and every step between stages."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, ShiftWindowMsa):
                setattr(parent, name, GatheredWindows(child))
            elif isinstance(child, PatchMerging):
                setattr(parent, name, RowMerging(child))


class GatheredWindows(nn.Module):
    """`ShiftWindowMsa` whose windows are gathered from the tokens by one table, and put back by
    another.

    Padding, rolling, cutting into windows, and all of that undone only move tokens, so that one
    table of numbers does each way at once; what padding adds is one more token of zeros.
    """

    def __init__(self, source: ShiftWindowMsa) -> None:
        super().__init__()
        self.window, self.shift = source.window, source.shift
        self.w_msa = BiasedAttention(source)

    def forward(self, x: Tensor, hw: tuple[int, int]) -> Tensor:
        length, dim = self.window**2, int(x.shape[2])
        padded = padded_hw(hw, self.window)
        tokens = x if padded == hw else F.pad(x, (0, 0, 0, 1))
        table = torch.from_numpy(windows_of(hw, self.window, self.shift))
        windows = tokens.index_select(1, table).reshape(-1, length, dim)
        mask: Tensor | None = None
        if self.shift:
            mask = torch.from_numpy(shift_mask(padded, self.window, self.shift)).to(x)
        out = self.w_msa(windows, mask).reshape(-1, padded[0] * padded[1], dim)
        places = torch.from_numpy(places_in_windows(hw, self.window, self.shift))
        return out.index_select(1, places)


class BiasedAttention(nn.Module):
    """Window attention with 1/sqrt(d) inside the query's weights and its position bias read out.

    q, k and v are layers of their own: a joint one has to be cut, which copies it. The mask is not
    added to the bias beforehand: apart they are (heads + windows) * L * L numbers, together heads *
    windows * L * L (Swin-B, windows of 12, 640x640: 64 and 315 MB), and one addition less is not
    measurably faster. TensorRT-RTX 1.7 takes both additions into its fused attention (FP16).
    """

    def __init__(self, source: ShiftWindowMsa) -> None:
        super().__init__()
        msa = source.w_msa
        self.num_heads = msa.num_heads
        weights = msa.qkv.weight.chunk(3)
        biases: tuple[Tensor | None, ...] = (None, None, None)
        if msa.qkv.bias is not None:
            biases = msa.qkv.bias.chunk(3)
        scale = (msa.qkv.in_features // msa.num_heads) ** -0.5
        self.q = linear_of(weights[0] * scale, None if biases[0] is None else biases[0] * scale)
        self.k, self.v = linear_of(weights[1], biases[1]), linear_of(weights[2], biases[2])
        self.proj = msa.proj
        self.position_bias = nn.Parameter(msa.position_bias().detach().contiguous())

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """As `WindowMsa.forward`."""
        q, k, v = (split_heads(layer(x), self.num_heads) for layer in (self.q, self.k, self.v))
        scores = q @ k.transpose(2, 3) + self.position_bias
        if mask is not None:
            windows, length = int(mask.shape[0]), int(mask.shape[1])
            of_image = scores.reshape(-1, windows, self.num_heads, length, length)
            scores = (of_image + mask[:, None]).reshape(-1, self.num_heads, length, length)
        return self.proj(joined_heads(scores.softmax(dim=3) @ v))


class RowMerging(nn.Module):
    """`PatchMerging` with the four neighbours outermost in the channels.

    LayerNorm and the linear layer take their channels in any order, so long as their weights have
    the same one. With a token's channels together, two rows of tokens become one row of merged
    ones by exchanging axes once; the original order needs a transposed map and back.
    """

    def __init__(self, source: PatchMerging) -> None:
        super().__init__()
        dim = source.reduction.in_features // 4
        order = torch.arange(4 * dim).reshape(dim, 4).T.reshape(-1)
        self.norm: nn.LayerNorm | None = None
        if source.norm is not None:
            self.norm = nn.LayerNorm(4 * dim, eps=source.norm.eps, device="meta")
            self.norm.weight = nn.Parameter(source.norm.weight[order])
            self.norm.bias = nn.Parameter(source.norm.bias[order])
        self.reduction = linear_of(source.reduction.weight[:, order], None)

    def forward(self, x: Tensor, hw: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
        dim = int(x.shape[2])
        h, w = padded_hw(hw, 2)
        x = x.reshape(-1, *hw, dim)
        if (h, w) != hw:
            x = F.pad(x, (0, 0, 0, w - hw[1], 0, h - hw[0]))
        x = x.reshape(-1, h // 2, 2, w // 2, 2, dim).transpose(2, 3)
        tokens = x.reshape(-1, h * w // 4, 4 * dim)
        if self.norm is not None:
            tokens = self.norm(tokens)
        return self.reduction(tokens), (h // 2, w // 2)
