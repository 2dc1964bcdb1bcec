from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
import sys
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from crafted_checkpoints import Claim, Storage, floats, write_legacy, write_zip
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from engines.errors import CheckpointError
from exporter.checkpoint import MAX_TEXT, Checkpoint, state_dict_from_checkpoint

BOTH_CONTAINERS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def small_state_dict() -> OrderedDict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return OrderedDict(
        [
            ("backbone.conv.weight", torch.randn(4, 3, 2, 2, generator=generator)),
            ("backbone.bn.num_batches_tracked", torch.tensor(12)),
            ("decode_head.conv_seg.weight", torch.randn(6, 4, 1, 1, generator=generator)),
            ("decode_head.conv_seg.bias", torch.zeros(6)),
        ]
    )


def saved(path: Path, value: object, *, zipped: bool = True) -> Checkpoint:
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    return state_dict_from_checkpoint(path)


def assert_same(tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(tensors) == list(expected)
    for name, tensor in expected.items():
        assert tensors[name].dtype == tensor.dtype
        assert tensors[name].shape == tensor.shape
        assert tensors[name].is_contiguous()
        assert torch.equal(tensors[name], tensor)


@pytest.fixture(autouse=True)
def _torch_load_is_never_called(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("torch.load was called")

    monkeypatch.setattr(torch, "load", refuse)


@pytest.fixture
def history_buffer() -> Iterator[type]:
    """A class like mmengine's HistoryBuffer, in a module that exists only while it is pickled."""
    module = types.ModuleType("throw_away_logging")

    class HistoryBuffer:
        def __init__(self, values: list[float]) -> None:
            self._log_history = np.array(values)
            self._statistics_methods = OrderedDict[str, object]()

    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = module.__name__, "HistoryBuffer"
    vars(module)["HistoryBuffer"] = HistoryBuffer
    sys.modules[module.__name__] = module
    yield HistoryBuffer
    sys.modules.pop(module.__name__, None)


# Containers and tensors


@BOTH_CONTAINERS
def test_a_bare_state_dict_comes_back_as_it_was_saved(tmp_path: Path, zipped: bool) -> None:
    checkpoint = saved(tmp_path / "a.pth", small_state_dict(), zipped=zipped)
    assert_same(checkpoint.tensors, small_state_dict())
    assert checkpoint.source == "bare state dict"
    assert checkpoint.notes == ()
    assert (checkpoint.classes, checkpoint.palette, checkpoint.config_text) == (None, None, None)
    assert checkpoint.path == tmp_path / "a.pth"
    assert checkpoint.sha256 == hashlib.sha256((tmp_path / "a.pth").read_bytes()).hexdigest()


@BOTH_CONTAINERS
@pytest.mark.parametrize(
    "name", ["float16", "bfloat16", "float64", "int8", "uint8", "int64", "bool"]
)
def test_the_files_dtypes_are_kept(tmp_path: Path, name: str, zipped: bool) -> None:
    tensor = torch.tensor([[0, 1, 3], [1, 0, 100]]).to(getattr(torch, name))
    assert_same(saved(tmp_path / "a.pth", {"a": tensor}, zipped=zipped).tensors, {"a": tensor})


@pytest.mark.parametrize("name", ["uint16", "uint32", "uint64", "complex64"])
def test_rarer_dtypes_are_kept_too(tmp_path: Path, name: str) -> None:
    tensor = torch.tensor([1, 2, 3]).to(getattr(torch, name))
    assert_same(saved(tmp_path / "a.pth", {"a": tensor}).tensors, {"a": tensor})


@BOTH_CONTAINERS
def test_views_of_every_kind_have_the_values_of_the_original(tmp_path: Path, zipped: bool) -> None:
    base = torch.arange(60, dtype=torch.float32)
    image = torch.arange(48.0).reshape(1, 3, 4, 4)
    value = {
        "slice": base[7:19].reshape(3, 4),
        "transposed": base[:12].reshape(3, 4).t(),
        "stepped": base[1::7],
        "expanded": base[3:6].reshape(3, 1).expand(3, 5),
        "overlapping": base.as_strided((5, 3), (1, 1), 2),
        "scalar": base[5],
        "empty": base[:0].reshape(0, 4),
        "channels_last": image.contiguous(memory_format=torch.channels_last),
        "parameter": nn.Parameter(base[:2]),
    }
    loaded = saved(tmp_path / "a.pth", value, zipped=zipped).tensors
    assert_same(loaded, {name: tensor.detach() for name, tensor in value.items()})


def test_only_the_chosen_tensors_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    optimizer = {"state": {0: {"exp_avg": torch.full((5,), 1e30)}}, "param_groups": [{"lr": 0.1}]}
    torch.save({"state_dict": {"a.weight": torch.ones(3)}, "optimizer": optimizer}, path)
    data = bytearray(path.read_bytes())
    start = data.index(torch.full((5,), 1e30).numpy().tobytes())
    data[start] ^= 1  # a damaged optimizer state does no harm, since its checksum is never taken
    path.write_bytes(data)
    assert_same(state_dict_from_checkpoint(path).tensors, {"a.weight": torch.ones(3)})


def test_a_changed_weight_does_not_fit_its_checksum(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"a.weight": torch.full((5,), 0.7)}, path)
    data = bytearray(path.read_bytes())
    data[data.index(torch.full((5,), 0.7).numpy().tobytes())] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="wrong checksum"):
        state_dict_from_checkpoint(path)


def test_a_file_saved_without_checksums_is_read(tmp_path: Path) -> None:
    # As torch.serialization.set_crc32_options(False) writes it: all checksums are 0.
    path = tmp_path / "a.pth"
    torch.save(small_state_dict(), path)
    parts = path.read_bytes().split(b"PK\x01\x02")  # the entries of the zip directory
    path.write_bytes(
        b"PK\x01\x02".join([parts[0], *(p[:12] + bytes(4) + p[16:] for p in parts[1:])])
    )
    checkpoint = state_dict_from_checkpoint(path)
    assert_same(checkpoint.tensors, small_state_dict())


def test_a_file_of_a_big_endian_machine_is_swapped(tmp_path: Path) -> None:
    value = {"a": Claim(Storage("0", 3), (3,), (1,))}
    data = np.array([1.0, 2.0, -3.5], dtype=">f4").tobytes()
    path = write_zip(tmp_path / "a.pth", value, {"0": data}, others={"model/byteorder": b"big"})
    assert state_dict_from_checkpoint(path).tensors["a"].tolist() == [1.0, 2.0, -3.5]


def test_a_view_of_a_legacy_storage_starts_where_it_says(tmp_path: Path) -> None:
    view = Storage("9", 6, view=("10", 2, 3), legacy=True)
    whole = Storage("9", 6, legacy=True)
    value = {"part": Claim(view, (2,), (1,), 1), "whole": Claim(whole, (6,), (1,))}
    path = write_legacy(tmp_path / "a.pth", value, {"9": (6, floats(0, 1, 2, 3, 4, 5))})
    tensors = state_dict_from_checkpoint(path).tensors
    assert tensors["part"].tolist() == [3.0, 4.0]
    assert tensors["whole"].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        (Claim(Storage("0", 4), (5,), (1,)), "reaching beyond its storage"),
        (Claim(Storage("0", 4), (4,), (1,), 1), "reaching beyond its storage"),
        (Claim(Storage("0", 4), (2, 2), (3, 1)), "reaching beyond its storage"),
        (Claim(Storage("0", 4), (2,), (2**62,)), "reaching beyond its storage"),
        (Claim(Storage("0", 400), (400,), (1,)), "of which the file holds 16"),
        (Claim(Storage("0", 400), (1,), (1,)), "of which the file holds 16"),
        (Claim(Storage("1", 4), (4,), (1,)), "without its data record"),
        (Claim(Storage("0", 4), (10**12,), (0,)), "would fill 4000000000000 bytes"),
        (Claim(Storage("0", 4), (10**6, 10**6), (0, 0)), "would fill 4000000000000 bytes"),
        (Claim(Storage("0", 4), (2**40, 2**40), (0, 0)), "would fill"),
        (Claim(Storage("0", 4), (0, 2**62, 2**62), (1, 1, 1)), "impossible size"),
        (Claim(Storage("0", 4), (0, *(4,) * 60), (1,) * 61), "impossible size"),
        (Claim(Storage("0", 4), (2, 2), (1,)), "differ in length"),
    ],
)
def test_tensors_that_claim_too_much_are_refused(
    tmp_path: Path, claim: Claim, message: str
) -> None:
    path = write_zip(tmp_path / "a.pth", {"a": claim}, {"0": floats(1, 2, 3, 4)})
    with pytest.raises(CheckpointError, match=message):
        state_dict_from_checkpoint(path)


def test_many_names_of_one_expanded_tensor_cost_it_once(tmp_path: Path) -> None:
    expanded = torch.ones(1).expand(4_000_000)
    tensors = saved(tmp_path / "a.pth", {f"a{i}": expanded for i in range(8)}).tensors
    assert len({tensor.data_ptr() for tensor in tensors.values()}) == 1


def test_many_expanded_tensors_are_refused_together(tmp_path: Path) -> None:
    claims = {f"a{n}": Claim(Storage("0", 1), (4_000_000 + n,), (0,)) for n in range(5)}
    path = write_zip(tmp_path / "a.pth", claims, {"0": floats(1)})
    with pytest.raises(CheckpointError, match="would fill 80000040 bytes"):
        state_dict_from_checkpoint(path)


@pytest.mark.parametrize(
    "storages",
    [{}, {"0": (3, floats(1, 2, 3))}, {"0": (4, floats(1, 2, 3))}, {"7": (4, floats(1, 2, 3, 4))}],
    ids=["missing", "shorter", "cut", "other key"],
)
def test_legacy_storages_that_do_not_fit_are_refused(
    tmp_path: Path, storages: dict[str, tuple[int, bytes]]
) -> None:
    claim = Claim(Storage("0", 4, legacy=True), (4,), (1,))
    path = write_legacy(tmp_path / "a.pth", {"a": claim}, storages)
    with pytest.raises(CheckpointError, match="damaged or was cut short"):
        state_dict_from_checkpoint(path)


def test_an_unknown_legacy_version_is_refused(tmp_path: Path) -> None:
    path = write_legacy(tmp_path / "a.pth", {}, {}, version=1002)
    with pytest.raises(CheckpointError, match=r"unknown version of the old torch\.save format"):
        state_dict_from_checkpoint(path)


def test_a_compressed_record_is_refused_with_the_remedy(tmp_path: Path) -> None:
    claim = Claim(Storage("0", 4), (4,), (1,))
    path = write_zip(
        tmp_path / "a.pth", {"a": claim}, {"0": b"\0" * 16}, compression=zipfile.ZIP_DEFLATED
    )
    with pytest.raises(CheckpointError, match=r"compressed or encrypted.*zip -0 -r"):
        state_dict_from_checkpoint(path)


def test_two_records_of_the_same_name_are_refused(tmp_path: Path) -> None:
    claim = Claim(Storage("0", 1), (1,), (1,))
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = write_zip(
            tmp_path / "a.pth",
            {"a": claim},
            {"0": floats(1)},
            others={"model/data/0": floats(2)},
        )
    with pytest.raises(CheckpointError, match="two zip records with the same name"):
        state_dict_from_checkpoint(path)


@pytest.mark.parametrize("offset", [10**6, 2**32 - 2])
def test_a_record_that_the_directory_places_outside_is_refused(tmp_path: Path, offset: int) -> None:
    claim = Claim(Storage("0", 1), (1,), (1,))
    path = write_zip(tmp_path / "a.pth", {"a": claim}, {"0": floats(1)})
    data = bytearray(path.read_bytes())
    entry = data.rindex(b"PK\x01\x02")  # the directory's entry of the data record
    data[entry + 42 : entry + 46] = offset.to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="is not where the directory says"):
        state_dict_from_checkpoint(path)


def test_a_directory_that_places_records_before_the_file_is_refused(tmp_path: Path) -> None:
    claim = Claim(Storage("0", 1), (1,), (1,))
    path = write_zip(tmp_path / "a.pth", {"a": claim}, {"0": floats(1)})
    data = bytearray(path.read_bytes())
    end = data.rindex(b"PK\x05\x06")
    data[end + 16 : end + 20] = (10**6).to_bytes(4, "little")  # where the directory starts
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged or was cut short"):
        state_dict_from_checkpoint(path)


def test_a_record_that_names_another_folder_is_never_a_path(tmp_path: Path) -> None:
    claim = Claim(Storage("../../outside", 1), (1,), (1,))
    path = write_zip(tmp_path / "a.pth", {"a": claim}, {"../../outside": floats(5)})
    assert state_dict_from_checkpoint(path).tensors["a"].tolist() == [5.0]
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.pth"]


# Hostile and damaged files


class Runs:
    def __init__(self, function: Any, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@BOTH_CONTAINERS
def test_no_code_of_a_malicious_file_runs(tmp_path: Path, zipped: bool) -> None:
    marker = tmp_path / "marker"
    value = {
        "state_dict": {"a.weight": torch.ones(2)},
        "meta": {"CLASSES": Runs(os.system, f"touch {marker}")},
        "hook": Runs(eval, f"open({str(marker)!r}, 'w')"),
    }
    checkpoint = saved(tmp_path / "a.pth", value, zipped=zipped)
    assert not marker.exists()
    assert_same(checkpoint.tensors, {"a.weight": torch.ones(2)})
    assert checkpoint.classes is None


@pytest.mark.parametrize("name", ["a.weight", "a.bias"])
def test_a_parameter_built_by_a_refused_function_is_an_error_naming_it(
    tmp_path: Path, name: str
) -> None:
    value = {"b": torch.ones(1), name: Runs(os.system, "true")}
    with pytest.raises(CheckpointError, match=r"'posix\.system', which is never run"):
        saved(tmp_path / "a.pth", value)


def test_a_sparse_tensor_is_refused_by_the_name_of_its_function(tmp_path: Path) -> None:
    value = {"b": torch.ones(1), "mask": torch.ones(2, 2).to_sparse()}
    with pytest.raises(CheckpointError, match=r"torch\._utils\._rebuild_sparse_tensor"):
        saved(tmp_path / "a.pth", value)


def _damaged_copies(data: bytes) -> st.SearchStrategy[bytes]:
    flips = st.lists(
        st.tuples(st.integers(0, len(data) - 1), st.integers(1, 255)), min_size=1, max_size=4
    )

    def damaged(changes: list[tuple[int, int]]) -> bytes:
        copy = bytearray(data)
        for position, mask in changes:
            copy[position] ^= mask
        return bytes(copy)

    return flips.map(damaged)


def _small_file(kind: str, folder: Path) -> bytes:
    path = folder / "original"
    value = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.int16)}
    if kind == "safetensors":
        save_file(value, path)
    else:
        meta = {"CLASSES": ("x", "y"), "PALETTE": np.array([[0, 0, 0], [1, 2, 3]])}
        whole = {"meta": meta, "state_dict": OrderedDict(value)}
        torch.save(whole, path, _use_new_zipfile_serialization=kind == "zip")
    return path.read_bytes()


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_every_truncation_is_a_checkpoint_error(tmp_path: Path, kind: str) -> None:
    data = _small_file(kind, tmp_path)
    path = tmp_path / ("a.safetensors" if kind == "safetensors" else "a.pth")
    for length in [*range(0, len(data), 5), *range(len(data) - 40, len(data))]:
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError) as caught:
            state_dict_from_checkpoint(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_changed_bytes_give_a_checkpoint_or_a_checkpoint_error(
    tmp_path: Path, kind: str, data: st.DataObject
) -> None:
    path = tmp_path / ("a.safetensors" if kind == "safetensors" else "a.pth")
    path.write_bytes(data.draw(_damaged_copies(_small_file(kind, tmp_path))))
    with contextlib.suppress(CheckpointError):
        for tensor in state_dict_from_checkpoint(path).tensors.values():
            tensor.sum()


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    head=st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02", b"\x80\x02\x8a\x0a"]), tail=st.binary()
)
def test_garbage_is_a_checkpoint_error(tmp_path: Path, head: bytes, tail: bytes) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes(head + tail)
    with pytest.raises(CheckpointError):
        state_dict_from_checkpoint(path)


# Files that are something else


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file"),
        (b"lr = 0.1\nmodel = 'x'\n", "a text file"),
        (b"\n<!DOCTYPE html><html><body>404</body></html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        (b"\x1f\x8b\x08\x00abc", "gzip-compressed"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"\x93NUMPY\x01\x00", "a numpy array"),
        (b"\x08\x08\x12\x07pytorch\x1a\x032.1:\x80", "an ONNX file"),
        (b"a" * 257 + b"ustar\x0000" + b"\0" * 300, "a tar archive"),
        (b"\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a", "01 02 03 04 05 06 07 08"),
        (pickle.dumps([1, 2]), "a pickle of list"),
        (pickle.dumps({"epoch": 3, "loss": 0.5}, 2), "no state dict.*'epoch', 'loss'"),
        (pickle.dumps({}, 2), "no named entry"),
        (pickle.dumps(Path("x"), 2), r"an object of class pathlib\.PosixPath"),
    ],
)
def test_what_is_no_checkpoint_is_told_for_what_it_is(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        state_dict_from_checkpoint(path)


def test_a_missing_file_and_a_pipe_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        state_dict_from_checkpoint(tmp_path / "a.pth")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="not a regular file"):
        state_dict_from_checkpoint(tmp_path / "pipe")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("model/code/__torch__.py", "model/data.pkl", "model/constants.pkl"), "TorchScript"),
        (("model/archive_format", "model/data/weights/x"), "a program of torch.export"),
        (("weights/best.pth",), "0 files data.pkl.*unpack it"),
        (("a/data.pkl", "b/data.pkl"), "2 files data.pkl"),
    ],
)
def test_other_zip_archives_are_told_for_what_they_are(
    tmp_path: Path, names: tuple[str, ...], message: str
) -> None:
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        for name in names:
            archive.writestr(name, b"\x80\x02}.")
    with pytest.raises(CheckpointError, match=message):
        state_dict_from_checkpoint(tmp_path / "a.pt")


def test_a_whole_pickled_model_is_named_by_its_class(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"torch\.nn\.modules\.linear\.Linear.*state_dict\(\)"
    ):
        saved(tmp_path / "a.pth", nn.Linear(2, 3))


# Wrappers and names


@pytest.mark.parametrize(
    "key", ["state_dict", "model", "model_state", "model_state_dict", "state_dict_ema", "module"]
)
def test_a_state_dict_is_found_under_its_usual_keys(tmp_path: Path, key: str) -> None:
    checkpoint = saved(tmp_path / "a.pth", {key: small_state_dict(), "epoch": 3})
    assert_same(checkpoint.tensors, small_state_dict())
    assert checkpoint.source == f"state dict under {key!r}"
    assert checkpoint.notes == (f"state dict found under {key!r}",)


def test_a_state_dict_is_found_one_level_deeper(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path / "a.pth", {"model": {"state_dict": small_state_dict()}})
    assert_same(checkpoint.tensors, small_state_dict())
    assert checkpoint.notes == ("state dict found under 'model' / 'state_dict'",)


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."]
)
def test_wrapper_prefixes_on_all_names_are_removed(tmp_path: Path, prefix: str) -> None:
    renamed = {prefix + name: tensor for name, tensor in small_state_dict().items()}
    checkpoint = saved(tmp_path / "a.pth", {"state_dict": renamed})
    assert_same(checkpoint.tensors, small_state_dict())
    assert any("removed from all 4 names" in note for note in checkpoint.notes)


def test_a_prefix_on_some_names_stays(tmp_path: Path) -> None:
    value = {"module.a": torch.ones(1), "b": torch.ones(1)}
    assert list(saved(tmp_path / "a.pth", value).tensors) == ["module.a", "b"]


def test_averaged_copies_in_half_precision_are_left_out(tmp_path: Path) -> None:
    value = {name: tensor.half() for name, tensor in small_state_dict().items()}
    copies = {f"ema_{name.replace('.', '_')}": tensor for name, tensor in value.items()}
    lone = {"ema_decay_rate": torch.ones(1)}
    checkpoint = saved(tmp_path / "a.pth", {"state_dict": {**value, **copies, **lone}})
    assert_same(checkpoint.tensors, {**value, **lone})
    assert "left out 4 averaged copies (ema_...) of the weights" in checkpoint.notes


def test_averaged_weights_of_mmengine_are_ignored_beside_a_state_dict(tmp_path: Path) -> None:
    ema = {
        "steps": torch.tensor(9),
        **{f"module.{k}": v + 1 for k, v in small_state_dict().items()},
    }
    both = saved(tmp_path / "a.pth", {"ema_state_dict": ema, "state_dict": small_state_dict()})
    assert_same(both.tensors, small_state_dict())
    assert "the averaged weights under 'ema_state_dict' were ignored" in both.notes
    alone = saved(tmp_path / "b.pth", {"ema_state_dict": ema, "meta": {}})
    assert_same(alone.tensors, {name: v + 1 for name, v in small_state_dict().items()})


def test_entries_that_are_no_tensors_are_left_out_with_a_note(tmp_path: Path) -> None:
    value = {**small_state_dict(), "epoch": 3, "name": "x", "extra": Runs(os.getcwd)}
    checkpoint = saved(tmp_path / "a.pth", value)
    assert_same(checkpoint.tensors, small_state_dict())
    assert checkpoint.notes == ("left out 3 entries that are no tensors: epoch, name, extra",)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [("a.weight", 3.0, "'a.weight' is a float"), ("head", {"w": 1}, "'head' is a dict")],
)
def test_a_parameter_that_is_no_tensor_is_an_error(
    tmp_path: Path, name: str, value: object, message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        saved(tmp_path / "a.pth", {"b": torch.ones(1), name: value})


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[31m", ""])
def test_unprintable_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match="printable tensor names"):
        saved(tmp_path / "a.pth", {name: torch.ones(1), "b": torch.ones(1)})


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_nan_and_infinity_are_refused_by_the_first_name(
    tmp_path: Path, bad: float, dtype: torch.dtype
) -> None:
    value = {
        "a.weight": torch.ones(3, dtype=dtype),
        "b.weight": torch.tensor([1.0, bad, bad], dtype=dtype),
        "c.weight": torch.tensor([bad], dtype=dtype),
    }
    with pytest.raises(CheckpointError, match=r"'b\.weight' has 2 NaN or infinite.*1 more tensor"):
        saved(tmp_path / "a.pth", value)


# What training programs store beside the weights


@BOTH_CONTAINERS
def test_a_checkpoint_of_mmsegmentation_0(tmp_path: Path, zipped: bool) -> None:
    meta = {
        "mmseg_version": "0.28.0+1234567",
        "mmcv_version": "1.6.2",
        "config": "model = dict(type='EncoderDecoder')\n",
        "CLASSES": ("background", "벼"),
        "PALETTE": np.array([[0, 0, 0], [8, 39, 245]], dtype=np.uint8),
        "hook_msgs": {"best_score": np.float64(0.7), "best_ckpt": "best.pth"},
        "iter": np.int64(160000),
    }
    optimizer = {"state": {0: {"step": 1, "exp_avg": torch.zeros(3)}}, "param_groups": []}
    whole = {"meta": meta, "state_dict": small_state_dict(), "optimizer": optimizer}
    checkpoint = saved(tmp_path / "a.pth", whole, zipped=zipped)
    assert_same(checkpoint.tensors, small_state_dict())
    assert checkpoint.source == "mmsegmentation 0.x"
    assert checkpoint.classes == ("background", "벼")
    assert checkpoint.palette == ((0, 0, 0), (8, 39, 245))
    assert checkpoint.config_text == "model = dict(type='EncoderDecoder')\n"


@BOTH_CONTAINERS
def test_a_checkpoint_of_mmengine_with_its_message_hub(
    tmp_path: Path, zipped: bool, history_buffer: Callable[[list[float]], object]
) -> None:
    whole = {
        "meta": {
            "cfg": "crop_size = (512, 512)\n",
            "dataset_meta": {"classes": ["crop", "weed"], "palette": [[0, 255, 0], (255, 0, 0)]},
            "mmengine_version": "0.10.7",
        },
        "state_dict": small_state_dict(),
        "message_hub": {
            "log_scalars": OrderedDict(loss=history_buffer([0.5, 0.25])),
            "runtime_info": OrderedDict(iter=np.int64(3), score=np.float32(0.5)),
        },
        "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1e-3}]},
        "param_schedulers": [{"last_step": 3, "base": np.array([0.1])}],
    }
    torch.save(whole, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    del sys.modules["throw_away_logging"]
    checkpoint = state_dict_from_checkpoint(tmp_path / "a.pth")
    assert_same(checkpoint.tensors, small_state_dict())
    assert checkpoint.source == "mmsegmentation 1.x"
    assert checkpoint.classes == ("crop", "weed")
    assert checkpoint.palette == ((0, 255, 0), (255, 0, 0))
    assert checkpoint.config_text == "crop_size = (512, 512)\n"
    assert "throw_away_logging" not in sys.modules


@pytest.mark.parametrize(
    ("meta", "classes", "palette", "note"),
    [
        ({"CLASSES": None, "PALETTE": None}, None, None, None),
        ({"CLASSES": np.array(["a", "b"])}, ("a", "b"), None, None),
        ({"CLASSES": ["a"], "PALETTE": None}, ("a",), None, None),
        ({"CLASSES": ["a"], "PALETTE": np.array([[1, 2, 3]])}, ("a",), ((1, 2, 3),), None),
        ({"CLASSES": ["a", "b"], "PALETTE": [[1, 2, 3]]}, ("a", "b"), None, "palette"),
        ({"CLASSES": ["a"], "PALETTE": [[1, 2, 300]]}, ("a",), None, "palette"),
        ({"CLASSES": ["a"], "PALETTE": [[0.5, 0.1, 0.2]]}, ("a",), None, "palette"),
        ({"CLASSES": [1, 2]}, None, None, "class names of an unreadable kind"),
        ({"CLASSES": ["a\x1b"]}, ("a?",), None, None),
        ({"dataset_meta": {"CLASSES": ("a",), "PALETTE": []}}, ("a",), None, None),
        ({"dataset_meta": None, "CLASSES": ("a",)}, ("a",), None, None),
        ({"dataset_meta": Runs(os.getcwd)}, None, None, "class names of an unreadable kind"),
    ],
)
def test_class_names_and_palettes_of_every_kind(
    tmp_path: Path,
    meta: dict[str, object],
    classes: tuple[str, ...] | None,
    palette: object,
    note: str | None,
) -> None:
    checkpoint = saved(tmp_path / "a.pth", {"meta": meta, "state_dict": small_state_dict()})
    assert (checkpoint.classes, checkpoint.palette) == (classes, palette)
    assert any(note in text for text in checkpoint.notes) if note else len(checkpoint.notes) == 1


def test_an_endless_configuration_text_is_ignored_with_a_note(tmp_path: Path) -> None:
    meta = {"config": "#" * (MAX_TEXT + 1), "mmcv_version": "1.7.0"}
    checkpoint = saved(tmp_path / "a.pth", {"meta": meta, "state_dict": small_state_dict()})
    assert checkpoint.config_text is None
    assert checkpoint.source == "mmcv 0.x"
    assert any("configuration text" in note for note in checkpoint.notes)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_pickle_of_numpy_arrays_is_detectron2s(tmp_path: Path, protocol: int) -> None:
    arrays = {
        "backbone.res2.0.conv1.weight": np.arange(6, dtype=">f4").reshape(2, 3),
        "sem_seg_head.predictor.class_embed.bias": np.asfortranarray(np.ones((2, 2), np.float16)),
    }
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "third party"}, protocol))
    checkpoint = state_dict_from_checkpoint(path)
    expected = {
        "backbone.res2.0.conv1.weight": torch.arange(6.0).reshape(2, 3),
        "sem_seg_head.predictor.class_embed.bias": torch.ones(2, 2, dtype=torch.float16),
    }
    assert_same(checkpoint.tensors, expected)
    assert checkpoint.source == "detectron2"


class Array:
    """What numpy's own pickles ask for, with a state as given."""

    def __init__(self, *state: object) -> None:
        self.state = state

    def __reduce__(self) -> Any:
        return np._core.multiarray._reconstruct, (np.ndarray, (0,), b"b"), self.state


F4, OBJECT = np.dtype("<f4"), np.dtype(object)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (Array(1, (10**9, 10**9), F4, False, b"abcd"), "shape does not fit its bytes"),
        (Array(1, (2**62, 4), F4, False, b"abcd"), "shape does not fit its bytes"),
        (Array(1, (-1,), F4, False, b"abcd"), "not a number >= 0"),
        (Array(1, (1,) * 100, F4, False, b"abcd"), "not a short tuple"),
        (Array(1, (1,), F4, False, [1.5]), "without its bytes"),
        (Array(1, "x", F4, False, b"abcd"), "not a short tuple"),
        (Array(1, (1,)), "unreadable state"),
        (np.array([{"a": 1}], dtype=object), "something else than numbers"),
        (np.zeros(2, dtype=[("x", "<f4")]), "something else than numbers"),
        (np.array(["2026-01-01"], dtype="M8[D]"), "something else than numbers"),
        (Runs(os.system, "false"), r"'posix\.system', which is never run"),
        (1.5, "'a.weight' is a float"),
    ],
)
def test_a_hostile_pickle_of_arrays_is_an_error(
    tmp_path: Path, array: object, message: str
) -> None:
    path = tmp_path / "model.pkl"
    model = {"sem_seg_head.b.bias": np.ones(2, np.float32), "a.weight": array}
    path.write_bytes(pickle.dumps({"model": model, "__author__": "x"}))
    with pytest.raises(CheckpointError, match=message):
        state_dict_from_checkpoint(path)


def test_many_names_of_one_array_cost_it_once(tmp_path: Path) -> None:
    array = np.ones(300_000, np.float32)
    path = tmp_path / "model.pkl"
    model = {f"sem_seg_head.{i}": array for i in range(500)}
    path.write_bytes(pickle.dumps({"model": model}))
    tensors = state_dict_from_checkpoint(path).tensors
    assert len({tensor.data_ptr() for tensor in tensors.values()}) == 1


def test_every_truncation_of_a_pickle_of_arrays_is_a_checkpoint_error(tmp_path: Path) -> None:
    model = {"sem_seg_head.a.weight": np.arange(6, dtype=np.float32).reshape(2, 3)}
    data = pickle.dumps({"model": model, "__author__": "third party"})
    path = tmp_path / "model.pkl"
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError):
            state_dict_from_checkpoint(path)


# Hugging Face

LABELS = {"10": "k", "2": "c", "0": "a", "1": "b"} | {str(i): f"name {i}" for i in range(3, 10)}


def hugging_face_folder(folder: Path, config: object, weights: str = "model.safetensors") -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "preprocessor_config.json").write_text('{"do_reduce_labels": true}')
    tensors = dict(small_state_dict())
    if weights.endswith(".safetensors"):
        save_file(tensors, folder / weights)
    else:
        torch.save(tensors, folder / weights)
    return folder


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("give", ["folder", "file"])
def test_a_hugging_face_folder_or_the_file_in_it(tmp_path: Path, weights: str, give: str) -> None:
    config = {"model_type": "segformer", "id2label": LABELS}
    folder = hugging_face_folder(tmp_path / "hf", config, weights)
    checkpoint = state_dict_from_checkpoint(folder if give == "folder" else folder / weights)
    expected = small_state_dict()
    assert sorted(checkpoint.tensors) == sorted(expected)
    assert all(torch.equal(checkpoint.tensors[name], expected[name]) for name in expected)
    assert checkpoint.source == "Hugging Face"
    assert checkpoint.classes is not None
    assert checkpoint.classes[:4] == ("a", "b", "c", "name 3")
    assert checkpoint.classes[10] == "k"
    assert checkpoint.hf_config == config
    assert checkpoint.hf_preprocessor == {"do_reduce_labels": True}
    assert checkpoint.path == folder / weights
    assert checkpoint.sha256 == hashlib.sha256((folder / weights).read_bytes()).hexdigest()


@pytest.mark.parametrize("labels", [{"1": "a", "2": "b"}, {"x": "a"}, {"0": 5}, [], {"0": "a\n"}])
def test_labels_that_do_not_count_from_zero_are_ignored(tmp_path: Path, labels: object) -> None:
    folder = hugging_face_folder(tmp_path / "hf", {"model_type": "segformer", "id2label": labels})
    checkpoint = state_dict_from_checkpoint(folder)
    assert checkpoint.classes is None
    assert any("id2label" in note for note in checkpoint.notes)


def test_a_foreign_config_beside_a_file_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"lr": 0.1}')
    checkpoint = saved(tmp_path / "a.pth", small_state_dict())
    assert checkpoint.hf_config is None
    assert any("config.json beside the file" in note for note in checkpoint.notes)


def test_a_checkpoint_of_mmsegmentation_keeps_its_names_beside_any_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "segformer", "id2label": {"0": "x"}}')
    whole = {"meta": {"CLASSES": ("a",)}, "state_dict": small_state_dict()}
    assert saved(tmp_path / "a.pth", whole).classes == ("a",)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, "\udcff", "1" * 5000])
def test_a_broken_config_of_a_folder_is_an_error(tmp_path: Path, text: str) -> None:
    folder = hugging_face_folder(tmp_path / "hf", {})
    (folder / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError, match=r"config\.json, which is not a JSON object"):
        state_dict_from_checkpoint(folder)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ((), "a folder without config.json"),
        (("best.pth", "last.pth"), "give the file itself: .*best.pth"),
        (("config.yaml", "model_final.pkl"), "give the file itself: .*model_final.pkl"),
        (("config.json",), "without model.safetensors and pytorch_model.bin"),
        (("config.json", "model.safetensors.index.json"), "split into several files"),
    ],
)
def test_other_folders_are_refused_with_the_remedy(
    tmp_path: Path, files: tuple[str, ...], message: str
) -> None:
    for name in files:
        (tmp_path / name).write_text("{}")
    with pytest.raises(CheckpointError, match=message):
        state_dict_from_checkpoint(tmp_path)


def test_one_part_of_split_weights_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "model-00001-of-00002.safetensors")
    with pytest.raises(CheckpointError, match="split into several files"):
        state_dict_from_checkpoint(tmp_path / "model-00001-of-00002.safetensors")


def test_safetensors_are_known_by_their_content(tmp_path: Path) -> None:
    save_file({"module.a": torch.arange(3).to(torch.bfloat16)}, tmp_path / "weights.bin")
    checkpoint = state_dict_from_checkpoint(tmp_path / "weights.bin")
    assert_same(checkpoint.tensors, {"a": torch.arange(3).to(torch.bfloat16)})
