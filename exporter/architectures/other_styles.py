"""What key maps of other programs share: renaming that loses nothing, and Swin's patch merging.

The original Swin Transformer, detectron2 and Hugging Face put the four pixels of a 2x2 square side
by side as upper left, lower left, upper right, lower right, each with all its channels.
mmsegmentation unfolds: channel by channel, each with upper left, upper right, lower left, lower
right. Sources: the structure of microsoft/Swin-Transformer (MIT) and of mmcv's PatchMerging
(Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

_PIXELS = 4
# Where mmsegmentation's pixels, row by row, stand in the original's order, column by column.
_ROW_BY_ROW = [0, 2, 1, 3]
_MERGING_TENSORS = (
    ".downsample.reduction.weight",
    ".downsample.norm.weight",
    ".downsample.norm.bias",
)


def renamed_tensors(
    tensors: Mapping[str, Tensor], name_of: Callable[[str], str]
) -> dict[str, Tensor]:
    """Under their new names; of two that want the same one the second keeps its old name.

    It is then left over, which strict loading refuses.
    """
    named: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        new = name_of(key)
        named[key if new in named else new] = tensor
    return named


def with_merging_reordered(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of each stage's `downsample` with their last axis, 4 x channels, reordered.

    One whose last axis is no multiple of 4 stays, for strict loading to refuse.
    """
    return {
        key: _reordered(tensor) if key.endswith(_MERGING_TENSORS) else tensor
        for key, tensor in named.items()
    }


def _reordered(tensor: Tensor) -> Tensor:
    """(..., 4 * C), pixel by pixel -> (..., C * 4), channel by channel."""
    if tensor.dim() == 0 or tensor.shape[-1] % _PIXELS or not tensor.numel():
        return tensor
    leading, channels = tensor.shape[:-1], tensor.shape[-1] // _PIXELS
    pixels = tensor.reshape(*leading, _PIXELS, channels)[..., _ROW_BY_ROW, :]
    return pixels.transpose(-1, -2).reshape(*leading, channels * _PIXELS)
