"""Numpy archives as checkpoints: Google's ViT-AugReg weights, and what must not be believed.

That the names are those of mmsegmentation's converter is shown in tests/reference.
"""

from __future__ import annotations

import contextlib
import io
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from engines.errors import CheckpointError
from exporter.architectures.segmenter import LinearHead, Segmenter, SegmenterShape
from exporter.architectures.vit import TransformerLayer, VitShape
from exporter.checkpoint import state_dict_from_checkpoint
from exporter.inspection import facts_about
from exporter.load import load_model
from tests.tiny_segformer import error_of, run_cli

Array = NDArray[Any]

DIM, HEADS, HIDDEN = 128, 2, 96
BLOCK = "Transformer/encoderblock_{}/"
ATTENTION = BLOCK + "MultiHeadDotProductAttention_1/"


def augreg_arrays(depth: int = 2, dim: int = DIM, heads: int = HEADS) -> dict[str, Array]:
    """Random arrays by the names and shapes of Google's files, for 4 x 4 patches."""
    width = dim // heads
    shapes: dict[str, tuple[int, ...]] = {
        "cls": (1, 1, dim),
        "embedding/kernel": (16, 16, 3, dim),
        "embedding/bias": (dim,),
        "Transformer/posembed_input/pos_embedding": (1, 17, dim),
        "Transformer/encoder_norm/scale": (dim,),
        "Transformer/encoder_norm/bias": (dim,),
        "head/kernel": (dim, 7),
        "head/bias": (7,),
        "pre_logits/kernel": (dim, dim),
    }
    for i in range(depth):
        block, attention = BLOCK.format(i), ATTENTION.format(i)
        for part in ("query", "key", "value"):
            shapes[f"{attention}{part}/kernel"] = (dim, heads, width)
            shapes[f"{attention}{part}/bias"] = (heads, width)
        shapes[f"{attention}out/kernel"] = (heads, width, dim)
        shapes[f"{attention}out/bias"] = (dim,)
        for norm in ("LayerNorm_0", "LayerNorm_2"):
            shapes |= {f"{block}{norm}/scale": (dim,), f"{block}{norm}/bias": (dim,)}
        shapes |= {
            f"{block}MlpBlock_3/Dense_0/kernel": (dim, HIDDEN),
            f"{block}MlpBlock_3/Dense_0/bias": (HIDDEN,),
            f"{block}MlpBlock_3/Dense_1/kernel": (HIDDEN, dim),
            f"{block}MlpBlock_3/Dense_1/bias": (dim,),
        }
    rng = np.random.default_rng(3)
    scale = dim**-0.5
    return {k: (scale * rng.normal(size=s)).astype(np.float32) for k, s in shapes.items()}


def write(path: Path, arrays: dict[str, Any], *, compressed: bool = False) -> Path:
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path


# --- what becomes of the arrays ------------------------------------------------------------------


def flax_block(arrays: dict[str, Array], x: Array) -> Array:
    """One encoder block as flax computes it: einsums over (heads, width), exact GELU, eps 1e-6."""
    block, attention = BLOCK.format(0), ATTENTION.format(0)

    def norm(name: str, x: Array) -> Array:
        centred = x - x.mean(axis=-1, keepdims=True)
        x = centred / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-6)
        return x * arrays[f"{block}{name}/scale"] + arrays[f"{block}{name}/bias"]

    def part(name: str, x: Array) -> Array:
        kernel, bias = arrays[f"{attention}{name}/kernel"], arrays[f"{attention}{name}/bias"]
        return np.einsum("nlc,chd->nlhd", x, kernel) + bias

    h = norm("LayerNorm_0", x)
    q, k, v = (part(name, h) for name in ("query", "key", "value"))
    scores = np.einsum("nqhd,nkhd->nhqk", q / np.sqrt(q.shape[-1]), k)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    mixed = np.einsum("nhqk,nkhd->nqhd", weights, v)
    out = np.einsum("nqhd,hdc->nqc", mixed, arrays[f"{attention}out/kernel"])
    x = x + out + arrays[f"{attention}out/bias"]
    dense = f"{block}MlpBlock_3/Dense_"
    h = norm("LayerNorm_2", x) @ arrays[f"{dense}0/kernel"] + arrays[f"{dense}0/bias"]
    h = torch.nn.functional.gelu(torch.from_numpy(h)).numpy()
    return np.asarray(x + h @ arrays[f"{dense}1/kernel"] + arrays[f"{dense}1/bias"])


def test_a_block_computes_what_flax_computes(tmp_path: Path) -> None:
    arrays = augreg_arrays(depth=1)
    tensors = state_dict_from_checkpoint(write(tmp_path / "vit.npz", arrays)).tensors
    layer = TransformerLayer(DIM, HEADS, HIDDEN, bias=True, eps=1e-6)
    prefix = "layers.0."
    layer.load_state_dict({k.removeprefix(prefix): t for k, t in tensors.items() if prefix in k})
    x = np.random.default_rng(8).normal(size=(2, 5, DIM))
    want = flax_block({k: v.astype(np.float64) for k, v in arrays.items()}, x)
    with torch.no_grad():
        got = layer.double()(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)


def test_the_rest_is_named_and_the_classifier_left_out(tmp_path: Path) -> None:
    arrays = augreg_arrays()
    checkpoint = state_dict_from_checkpoint(write(tmp_path / "vit.npz", arrays))
    tensors = checkpoint.tensors
    assert checkpoint.source == "ViT-AugReg"
    assert any("left out 3 arrays" in note for note in checkpoint.notes)
    kernel = tensors["patch_embed.projection.weight"]
    assert float(kernel[5, 2, 3, 11]) == arrays["embedding/kernel"][3, 11, 2, 5]
    for name, old in {
        "patch_embed.projection.bias": "embedding/bias",
        "pos_embed": "Transformer/posembed_input/pos_embedding",
        "cls_token": "cls",
        "ln1.weight": "Transformer/encoder_norm/scale",
        "ln1.bias": "Transformer/encoder_norm/bias",
        "layers.1.ln2.weight": "Transformer/encoderblock_1/LayerNorm_2/scale",
    }.items():
        np.testing.assert_array_equal(tensors[name].numpy(), arrays[old])
    assert len(tensors) == 6 + 2 * 12


def test_a_backbone_is_described_and_cannot_be_exported(tmp_path: Path) -> None:
    path = write(tmp_path / "S_16.npz", augreg_arrays(depth=12, dim=384, heads=6))
    facts = facts_about(path)
    assert facts["kind"] == "backbone without decode head, which cannot be exported"
    assert facts["model"] == "ViT-S/16, position embedding of 64x64"
    assert facts["written by"] == "ViT-AugReg"
    arguments = ["export", "--checkpoint", path, "--out", tmp_path / "out"]
    message = error_of(run_cli(*arguments))
    assert "without decode head" in message
    assert "give the checkpoint of the whole Segmenter" in message
    assert not (tmp_path / "out").exists()


def test_with_a_decode_head_it_is_a_whole_model(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    head = {
        "decode_head.conv_seg.weight": rng.normal(size=(3, DIM, 1, 1)).astype(np.float32),
        "decode_head.conv_seg.bias": rng.normal(size=3).astype(np.float32),
    }
    loaded = load_model(write(tmp_path / "whole.npz", augreg_arrays() | head))
    assert loaded.description.name == "segmenter-custom-linear"
    assert loaded.description.num_outputs == 3
    got = loaded.net.state_dict()["decode_head.conv_seg.weight"].numpy()
    np.testing.assert_array_equal(got, head["decode_head.conv_seg.weight"])


def test_a_state_dict_that_numpy_saved_is_read_by_its_names(tmp_path: Path) -> None:
    vit = VitShape(in_channels=3, dim=64, depth=1, num_heads=1, hidden=32, patch=16, grid=(4, 4))
    net = Segmenter(SegmenterShape(vit, None, 2))
    assert isinstance(net.decode_head, LinearHead)
    tensors = dict(net.state_dict())
    path = write(tmp_path / "own.npz", {k: t.numpy() for k, t in tensors.items()})
    loaded = load_model(path)
    assert loaded.checkpoint.source == "bare state dict"
    got = loaded.net.state_dict()
    assert all(torch.equal(got[name], tensor) for name, tensor in tensors.items())


def test_arrays_of_a_hybrid_are_refused_by_name(tmp_path: Path) -> None:
    arrays = augreg_arrays() | {"block1/unit1/conv1/kernel": np.zeros((1, 1, 4, 4))}
    with pytest.raises(CheckpointError, match=r"block1/unit1/conv1/kernel.*without a ResNet"):
        state_dict_from_checkpoint(write(tmp_path / "R50.npz", arrays))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("embedding/kernel", (4, 4)),
        (f"{ATTENTION.format(0)}query/kernel", (DIM, DIM)),
        (f"{ATTENTION.format(0)}key/kernel", (DIM, HEADS, 3)),
        (f"{ATTENTION.format(0)}key/bias", ()),
        (f"{ATTENTION.format(0)}out/kernel", (DIM,)),
        (f"{ATTENTION.format(1)}value/kernel", (0, 0, 0)),
        (f"{BLOCK.format(0)}MlpBlock_3/Dense_0/kernel", (1, 2, 3)),
    ],
)
def test_arrays_of_other_axes_are_refused(
    tmp_path: Path, name: str, shape: tuple[int, ...]
) -> None:
    arrays = augreg_arrays() | {name: np.zeros(shape, np.float32)}
    with pytest.raises(CheckpointError, match="ViT-AugReg file"):
        state_dict_from_checkpoint(write(tmp_path / "vit.npz", arrays))


@pytest.mark.parametrize("part", ["query/kernel", "value/bias"])
def test_a_missing_part_of_the_attention_is_named(tmp_path: Path, part: str) -> None:
    arrays = augreg_arrays()
    del arrays[ATTENTION.format(1) + part]
    with pytest.raises(CheckpointError, match=rf"encoderblock_1.*{part}.*missing"):
        state_dict_from_checkpoint(write(tmp_path / "vit.npz", arrays))


# --- the container -------------------------------------------------------------------------------


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "<f2", "<i8", "|u1", "|b1"])
def test_numbers_of_every_kind_and_order_are_read(
    tmp_path: Path, dtype: str, compressed: bool
) -> None:
    array = (np.arange(24).reshape(2, 3, 4) % 2).astype(dtype)
    arrays = {"a.weight": array, "b.weight": np.asfortranarray(array), "c": array[0, 0, :1]}
    path = write(tmp_path / "x.npz", arrays, compressed=compressed)
    tensors: dict[str, Tensor] = state_dict_from_checkpoint(path).tensors
    assert list(tensors) == list(arrays)
    for name, expected in arrays.items():
        assert tensors[name].is_contiguous()
        np.testing.assert_array_equal(tensors[name].numpy(), expected)


def header(descr: str, shape: str, order: bool = False) -> bytes:
    """Of the format's version 1.0, written out by hand."""
    text = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def npz(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("unpickled",))


def test_the_header_written_here_is_numpys() -> None:
    data = header("'<f4'", "(2,)") + np.float32([1, 2]).tobytes()
    np.testing.assert_array_equal(np.load(io.BytesIO(data)), [1, 2])


@pytest.mark.parametrize(
    "data",
    [
        header("'|O'", "(1,)") + pickle.dumps([Bomb()]),
        header("[('x', '<f4')]", "(1,)") + b"\0\0\0\0",
        header("'<U4'", "(1,)") + b"\0" * 16,
        header("'<c8'", "(1,)") + b"\0" * 8,
        header("'|V4'", "(1,)") + b"\0" * 4,
        header("'<f16'", "(1,)") + b"\0" * 16,
        header("'<f4'", "(3,)") + b"\0" * 8,
        header("'<f4'", "(1,)") + b"\0" * 8,
        header("'<f4'", f"({2**40},)") + b"\0" * 8,
        header("'<f4'", f"({2**40}, {2**40}, {2**40}, 0)"),
        header("'<f4'", "(-1,)") + b"\0" * 8,
        header("'<f4'", "(True,)") + b"\0" * 4,
        header("'<f4'", "(1,) * 99999999") + b"\0" * 8,
        header("'<f4'", "(" + "1," * 70 + ")") + b"\0" * 4,
        header("'nonsense'", "(1,)") + b"\0" * 8,
        header("__import__('os')", "(1,)"),
        b"\x93NUMPY\x01\x00\xff\xff{",
        b"\x93NUMPY\x09\x00",
        b"\x93NUMP",
        b"",
    ],
)
def test_an_array_that_is_not_what_it_claims_is_refused(tmp_path: Path, data: bytes) -> None:
    good = header("'<f4'", "(1,)") + b"\0" * 4
    with pytest.raises(CheckpointError):
        state_dict_from_checkpoint(npz(tmp_path / "x.npz", {"good.npy": good, "bad.npy": data}))


def test_an_archive_that_unpacks_to_much_more_than_its_size_is_refused(tmp_path: Path) -> None:
    count = 30_000_000  # 120 MB that compress to 120 kB
    data = header("'<f4'", f"({count},)") + bytes(4 * count)
    path = npz(tmp_path / "x.npz", {"a.npy": data}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 200_000
    with pytest.raises(CheckpointError, match="that unpack to 120000"):
        state_dict_from_checkpoint(path)


@pytest.mark.parametrize("names", [["a.npy", "b.txt"], ["a.npy", "c.npy.exe"]])
def test_an_archive_of_other_things_is_refused(tmp_path: Path, names: list[str]) -> None:
    good = header("'<f4'", "(1,)") + b"\0" * 4
    with pytest.raises(CheckpointError, match="not every member"):
        state_dict_from_checkpoint(npz(tmp_path / "x.npz", dict.fromkeys(names, good)))


@pytest.fixture(scope="module")
def whole_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    arrays = {"a.weight": np.ones((2, 3), np.float32), "b.bias": np.ones(4, np.float32)}
    return write(tmp_path_factory.mktemp("npz") / "x.npz", arrays, compressed=True).read_bytes()


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(edits=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=4),
       keep=st.floats(0, 1))  # fmt: skip
def test_whatever_the_bytes_are_no_other_error_gets_out(
    whole_file: bytes, tmp_path: Path, edits: list[tuple[int, int]], keep: float
) -> None:
    data = bytearray(whole_file)
    for place, value in edits:
        data[place % len(data)] = value
    path = tmp_path / "x.npz"
    path.write_bytes(data[: int(len(data) * keep) if keep < 0.5 else len(data)])
    with contextlib.suppress(CheckpointError):
        assert state_dict_from_checkpoint(path).tensors
