"""Swin's tables, its rewrites, and what is read from its tensors.

The maps themselves are compared with mmsegmentation's in tests/reference/test_upernet.py.
"""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from engines.errors import CheckpointError
from exporter.architectures.backbones import backbone_from_shape, backbone_shape
from exporter.architectures.swin import (
    PatchMerging,
    ShiftWindowMsa,
    Swin,
    SwinShape,
    WindowMsa,
    swin_shape,
    without_index_tables,
)
from exporter.architectures.windows import places_in_windows, shift_mask, windows_of
from exporter.rewrites.swin import GatheredWindows, RowMerging, rewrite

# Table 7 and section 3.3 of the paper; heads of 32 channels.
PUBLISHED = {
    "swin-t": (96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "swin-s": (96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "swin-b": (128, (2, 2, 18, 2), (4, 8, 16, 32)),
    "swin-l": (192, (2, 2, 18, 2), (6, 12, 24, 48)),
}
THIN = SwinShape(3, 8, (2, 2, 1, 1), (1, 2, 2, 4), window=7)
BARE = SwinShape(5, 8, (1, 2, 2, 2), (2, 2, 2, 4), 3, 3.0, 2, qkv_bias=False, patch_norm=False)


def tensors_of(shape: SwinShape) -> dict[str, Tensor]:
    with torch.device("meta"):
        return {f"backbone.{key}": t for key, t in Swin(shape).state_dict().items()}


# --- from tensors ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "window"), list(itertools.product(PUBLISHED, (7, 12))))
def test_each_published_swin_is_found_from_its_shapes(name: str, window: int) -> None:
    dim, depths, heads = PUBLISHED[name]
    shape = swin_shape(tensors_of(SwinShape(3, dim, depths, heads, window)), "backbone.")
    assert shape == SwinShape(3, dim, depths, heads, window)
    assert shape.name == name
    assert shape.channels == (dim, 2 * dim, 4 * dim, 8 * dim)


@pytest.mark.parametrize("shape", [THIN, BARE])
def test_everything_else_is_found_too(shape: SwinShape) -> None:
    found = backbone_shape(tensors_of(shape))
    assert found == shape
    assert found.name == "custom"
    assert isinstance(backbone_from_shape(found), Swin)


def test_a_swin_with_heads_of_another_width_has_no_published_name() -> None:
    assert SwinShape(3, 96, (2, 2, 6, 2), (6, 12, 24, 48), 7).name == "custom"


@pytest.mark.parametrize(
    ("key", "rows"), [("attn.w_msa.relative_position_bias_table", 65**2), ("", 0)]
)
def test_what_no_swin_has_is_refused(key: str, rows: int) -> None:
    """Windows of 33, whose bias alone would be a million numbers a head; 3 heads of 8 channels."""
    tensors = tensors_of(THIN)
    table = "backbone.stages.0.blocks.0.attn.w_msa.relative_position_bias_table"
    size = (rows, 1) if key else (13**2, 3)
    tensors[table] = torch.empty(size, device="meta")
    with pytest.raises(CheckpointError, match="windows of 1 to 32"):
        swin_shape(tensors, "backbone.")


def test_another_backbone_is_refused_with_its_first_tensors() -> None:
    tensors = {"backbone.downsample_layers.0.0.weight": torch.ones(1)}
    with pytest.raises(CheckpointError, match=r"downsample_layers\.0\.0\.weight"):
        backbone_shape(tensors)


def test_stored_index_tables_are_left_out() -> None:
    tensors = {
        "a.relative_position_index": torch.ones(1),
        "a.relative_position_bias_table": torch.ones(1),
    }
    assert list(without_index_tables(tensors)) == ["a.relative_position_bias_table"]


# --- tables ---------------------------------------------------------------------------------------


def test_a_bias_depends_on_how_far_query_and_key_are_apart() -> None:
    """Row (2w - 1) * (dy + w - 1) + dx + w - 1 of the table, here with w = 3."""
    msa = WindowMsa(dim=4, num_heads=2, window=3, bias=True)
    far = np.array([[dy, dx] for dy in range(-2, 3) for dx in range(-2, 3)], dtype=np.float32)
    with torch.no_grad():
        msa.relative_position_bias_table.copy_(torch.from_numpy(far))
        bias = msa.position_bias()
    for query, key in itertools.product(range(9), repeat=2):
        dy, dx = query // 3 - key // 3, query % 3 - key % 3
        assert bias[:, query, key].tolist() == [dy, dx]


def test_windows_are_padded_rolled_and_cut() -> None:
    """By hand: a map of 2 rows and 3 columns, padded by a column of 6, rolled by one row and one
    column: 4 5 6 3 / 1 2 6 0."""
    assert windows_of((2, 3), 2, 1).tolist() == [4, 5, 1, 2, 6, 3, 6, 0]
    assert places_in_windows((2, 3), 2, 1).tolist() == [7, 2, 3, 5, 0, 1]
    assert windows_of((2, 3), 2, 0).tolist() == [0, 1, 3, 4, 2, 6, 5, 6]


def test_positions_from_opposite_sides_of_the_map_do_not_see_each_other() -> None:
    mask = shift_mask((8, 12), 4, 2)
    assert mask.shape == (6, 16, 16)
    for window, query, key in itertools.product(range(6), range(16), range(16)):
        sides = []
        for position in (query, key):
            row = 4 * (window // 3) + position // 4 + 2  # before the roll
            column = 4 * (window % 3) + position % 4 + 2
            sides.append((row >= 8, column >= 12))
        assert mask[window, query, key] == (0.0 if sides[0] == sides[1] else -100.0)


def test_windows_stay_shifted_where_the_map_is_one_window() -> None:
    """As in mmsegmentation, and unlike other libraries."""
    blocks = [randomised(ShiftWindowMsa(8, 2, 4, shift=shift, bias=True)) for shift in (0, 2)]
    tokens = torch.randn(1, 16, 8, dtype=torch.float64)
    with torch.no_grad():
        still, shifted = (block(tokens, (4, 4)) for block in blocks)
    assert float((still - shifted).abs().max()) > 0.01


# --- rewrites -------------------------------------------------------------------------------------


def randomised(module: nn.Module) -> Any:
    """In float64 and eval mode; norms of other than 1 and 0, biases of other than 0."""
    torch.manual_seed(4)
    for name, parameter in module.named_parameters():
        nn.init.normal_(parameter, mean=0.5 if "norm" in name else 0.0, std=0.3)
    return module.double().eval()


def check_same(got: Tensor, want: Tensor) -> None:
    assert float(want.std()) > 0.01
    torch.testing.assert_close(got, want, rtol=0, atol=1e-11 * float(want.abs().max()))


@pytest.mark.parametrize("shift", [0, 3])
@pytest.mark.parametrize("hw", [(14, 21), (16, 12), (7, 7), (2, 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_gathered_windows_are_the_same_attention(
    hw: tuple[int, int], shift: int, bias: bool
) -> None:
    block = randomised(ShiftWindowMsa(8, 2, 7, shift=shift, bias=bias))
    tokens = torch.randn(3, hw[0] * hw[1], 8, dtype=torch.float64)
    with torch.no_grad():
        check_same(GatheredWindows(block)(tokens, hw), block(tokens, hw))


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("hw", [(8, 6), (7, 9), (1, 1)])
def test_merged_rows_are_the_same_step(hw: tuple[int, int], norm: bool) -> None:
    merging = randomised(PatchMerging(6, norm=norm))
    tokens = torch.randn(2, hw[0] * hw[1], 6, dtype=torch.float64)
    with torch.no_grad():
        want, want_hw = merging(tokens, hw)
        got, got_hw = RowMerging(merging)(tokens, hw)
    check_same(got, want)
    assert got_hw == want_hw == ((hw[0] + 1) // 2, (hw[1] + 1) // 2)


@pytest.mark.parametrize("shape", [THIN, BARE])
@pytest.mark.parametrize("hw", [(112, 56), (64, 64), (99, 133)])
def test_a_rewritten_swin_gives_the_same_maps(shape: SwinShape, hw: tuple[int, int]) -> None:
    net = randomised(Swin(shape))
    image = torch.randn(2, shape.in_channels, *hw, dtype=torch.float64)
    rewritten = copy.deepcopy(net)
    with torch.no_grad():
        rewrite(rewritten, hw)
        assert not any(isinstance(m, ShiftWindowMsa | PatchMerging) for m in rewritten.modules())
        for got, want in zip(rewritten(image), net(image), strict=True):
            check_same(got, want)
