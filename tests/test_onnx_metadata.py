"""The metadata of ONNX files is what ONNX Runtime finds in them, read without it."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime
import pytest
from onnx import helper
from tiny_models import bands_model, write_onnx

from engines.onnx_metadata import metadata_from_onnx

LONG = "논" * 70_000


@pytest.mark.parametrize(
    "entries", [{}, {"riceseg.bands": '{"letters": "GNE"}', "벼": "한 줄\n", "": "", "long": LONG}]
)
def test_the_metadata_is_what_onnx_runtime_finds(tmp_path: Path, entries: dict[str, str]) -> None:
    model = bands_model()
    helper.set_model_props(model, entries)
    path = write_onnx(model, tmp_path / "a.onnx")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map == entries
    assert metadata_from_onnx(path) == entries


def test_a_file_cut_short_or_of_anything_else_has_none(tmp_path: Path) -> None:
    model = bands_model()
    helper.set_model_props(model, {"key": "value"})
    whole = model.SerializeToString()
    path = tmp_path / "a.onnx"
    for data in (b"", b"\xff" * 40, b"no graph at all", bytes(10_000), whole[:-1], whole + b"\x72"):
        path.write_bytes(data)
        assert metadata_from_onnx(path) == {}
    path.write_bytes(whole)
    assert metadata_from_onnx(path) == {"key": "value"}


def test_weights_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = bands_model()
    model.graph.initializer.append(helper.make_tensor("w", 1, [1 << 20], bytes(4 << 20), raw=True))
    helper.set_model_props(model, {"key": "value"})
    path = write_onnx(model, tmp_path / "a.onnx")
    taken: list[int] = []
    opened = open

    class Counting:
        def __init__(self, name: Path, mode: str) -> None:
            self._file = opened(name, mode, buffering=0)

        def __getattr__(self, name: str) -> object:
            return getattr(self._file, name)

        def __enter__(self) -> Counting:
            return self

        def __exit__(self, *_: object) -> None:
            self._file.close()

        def read(self, size: int) -> bytes:
            taken.append(size)
            return self._file.read(size)

    monkeypatch.setattr("builtins.open", Counting)
    assert metadata_from_onnx(path) == {"key": "value"}
    monkeypatch.undo()
    assert onnx.load(path).metadata_props[0].key == "key"
    assert sum(taken) < 1000
