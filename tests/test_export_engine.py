"""`riceseg export --engine`: engines for this machine straight after the export."""

from __future__ import annotations

import platform
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import engines.cuda
import engines.trt.api
import engines.trt.build
from engines.bundle import bundle_from_folder
from engines.errors import DeviceError, EngineError
from engines.trt.engine_file import header_from_engine
from tests.tiny_segformer import error_of, export_tiny, run_cli, write_lab


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lab(tmp_path_factory.mktemp("lab"))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that could build, as far as can be told before."""
    found = SimpleNamespace(is_rtx=False)
    monkeypatch.setattr(engines.trt.api, "load_tensorrt", lambda rtx: found)
    closed = SimpleNamespace(close=lambda: None)
    monkeypatch.setattr(engines.cuda, "open_cuda", lambda: closed)


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch, gpu: None) -> list[Any]:
    """The options of the builds that were asked for; nothing is built."""
    asked: list[Any] = []

    def build(folder: Path, options: Any, *, progress: Any) -> Any:
        bundle_from_folder(folder)
        asked.append(options)
        path = folder / f"{options.precision}.engine"
        return SimpleNamespace(path=path, log_path=path, engine_bytes=2_500_000, seconds=61.4)

    monkeypatch.setattr(engines.trt.build, "engine_from_bundle", build)
    return asked


def test_an_rtx_engine_is_built_ahead_of_time_for_each_precision(
    tensorrt_rtx: ModuleType, lab: Path, tmp_path: Path
) -> None:
    options = ["--fp16", "--int8", "--calib", lab / "data", "--target", "rtx", "--engine"]
    result = export_tiny(lab, tmp_path / "out", *options)
    assert result.exit_code == 0, result.stderr
    files = bundle_from_folder(tmp_path / "out").files
    found = sorted((tmp_path / "out/engines").glob("*.engine"))
    headers = [header_from_engine(path) for path in found]
    assert [header.precision for header in headers] == ["fp16", "int8"]
    assert [h.onnx_sha256 for h in headers] == [files["fp16"].sha256, files["int8_fp16"].sha256]
    assert {header.runtime for header in headers} == {"TensorRT-RTX"}
    for path in found:
        assert f"engine: {path} (" in result.stdout
        assert path.with_suffix(".log").exists()
    shown = run_cli("inspect", found[0]).stdout
    for text in ("TensorRT engine", "fp16", "TensorRT-RTX 1.7.1", "any GPU from Ampere on"):
        assert text in shown
    assert found[0].name in run_cli("inspect", tmp_path / "out").stdout


@pytest.mark.parametrize(
    ("options", "precisions"),
    [([], ["fp32"]), (["--fp16"], ["fp16"]), (["--fp16", "--int8"], ["fp16", "int8"])],
)
def test_an_engine_is_built_for_what_the_export_was_asked_for(
    options: list[str], precisions: list[str], built: list[Any], lab: Path, tmp_path: Path
) -> None:
    calib = ["--calib", lab / "data"] if "--int8" in options else []
    result = export_tiny(lab, tmp_path / "out", *options, *calib, "--engine")
    assert result.exit_code == 0, result.stderr
    assert [(o.precision, o.rtx) for o in built] == [(name, None) for name in precisions]
    assert f"engine: {tmp_path / 'out' / precisions[-1]}.engine (2.5 MB, 61 s)" in result.stdout


@pytest.mark.parametrize(
    ("machine", "target", "warned"),
    [
        ("x86_64", "jetpack6", True),
        ("aarch64", "jetpack6", False),
        ("x86_64", "desktop", False),
    ],
)
def test_an_engine_of_a_workstation_is_not_taken_for_the_boards(
    machine: str,
    target: str,
    warned: bool,
    built: list[Any],
    lab: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    result = export_tiny(lab, tmp_path / "out", "--fp16", "--target", target, "--engine")
    assert result.exit_code == 0, result.stderr
    assert ("--engine builds for this machine; on the jetpack6 device" in result.stderr) == warned
    assert [options.rtx for options in built] == [False]


def test_without_tensorrt_nothing_is_exported(
    lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it fails
    result = export_tiny(lab, tmp_path / "out", "--engine")
    line = error_of(result)
    assert "got --engine where none can be built: no TensorRT in this Python" in line
    assert "nvidia-jetpack" in line
    assert "pip install tensorrt" in line
    assert "run `riceseg build BUNDLE` on the device" in line
    assert "load" not in result.stderr.splitlines()[0]
    assert list(tmp_path.iterdir()) == []


def test_without_a_gpu_nothing_is_exported(
    gpu: None, lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_gpu() -> None:
        raise DeviceError("no GPU", expected="one", do="plug it in")

    monkeypatch.setattr(engines.cuda, "open_cuda", no_gpu)
    line = error_of(export_tiny(lab, tmp_path / "out", "--engine"))
    assert "got --engine where none can be built: no GPU" in line
    assert list(tmp_path.iterdir()) == []


def test_an_engine_for_a_cpu_is_a_contradiction(lab: Path, tmp_path: Path) -> None:
    line = error_of(export_tiny(lab, tmp_path / "out", "--target", "cpu", "--engine"))
    assert "got --engine with --target cpu" in line
    assert list(tmp_path.iterdir()) == []


def test_a_build_that_fails_leaves_the_bundle(
    gpu: None, lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise EngineError("no kernel for /ArgMax", expected="one", do="update TensorRT")

    monkeypatch.setattr(engines.trt.build, "engine_from_bundle", fail)
    line = error_of(export_tiny(lab, tmp_path / "out", "--fp16", "--engine"))
    kept = f"the bundle in {tmp_path / 'out'} is complete and kept"
    assert f"got no fp16 engine (no kernel for /ArgMax); {kept}" in line
    assert "do this: update TensorRT" in line
    assert set(bundle_from_folder(tmp_path / "out").files) == {"fp32", "fp16"}


def test_a_failed_gate_builds_no_engine(built: list[Any], lab: Path, tmp_path: Path) -> None:
    options = ["--fp16", "--val", lab / "data", "--max-drop", "-50", "--engine"]
    line = error_of(export_tiny(lab, tmp_path / "out", *options), code=1)
    assert line.endswith("marked as failed; no engine was built")
    assert built == []
