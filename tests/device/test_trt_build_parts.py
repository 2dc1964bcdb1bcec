"""What stands around a build: calibration, the forecast of memory, the timing cache."""

from __future__ import annotations

import dataclasses
import os

import numpy as np
import pytest
from fake_builder import Graph, Layer, fake_module
from fake_cuda import RecordingCuda

from engines.errors import ConfigError, DeviceError, ImageError
from engines.progress import SilentProgress
from engines.resize import ResizeRule
from engines.trt.api import tensorrt_from_module
from engines.trt.build import BuildOptions, Calibration, engine_from_onnx
from engines.trt.calibrator import cache_for
from engines.trt.memory import (
    FreeMemory,
    MemoryForecast,
    check_memory,
    free_memory,
    memory_forecast,
    workspace_bytes,
)
from engines.trt.timing_cache import default_timing_cache

CACHE = b"TRT-8601-EntropyCalibration2\nimage: 3f800000\n/net/a/Add: x: 3c010204\n"


class Warned(SilentProgress):
    def __init__(self):
        super().__init__()
        self.warnings, self.notes, self.done = [], [], []

    def warn(self, text):
        self.warnings.append(text)

    def note(self, text):
        self.notes.append(text)

    def advance(self, done, total):
        self.done.append((done, total))


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("RICESEG_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def build(tmp_path):
    """A function that builds `tmp_path/model.onnx` with a fake of a version."""
    (tmp_path / "model.onnx").write_bytes(b"\x08\x08" + bytes(100))

    def run(options, version="10.3.0", cuda=None, progress=None, **fake):
        return engine_from_onnx(
            tmp_path / "model.onnx",
            tmp_path / "out.engine",
            options,
            cuda=cuda or RecordingCuda(),
            progress=progress or SilentProgress(),
            tensorrt=tensorrt_from_module(fake_module(version, **fake)),
        )

    return run


# Implicit INT8


@pytest.mark.parametrize(
    ("version", "first"),
    [
        ("8.5.2", b"TRT-8502-EntropyCalibration2\n"),
        ("8.6.1", b"TRT-8601-EntropyCalibration2\n"),
        ("10.3.0", b"TRT-100300-EntropyCalibration2\n"),
    ],
)
def test_a_cache_bears_the_version_that_reads_it(tmp_path, version, first):
    (tmp_path / "calibration.cache").write_bytes(CACHE)
    found = cache_for(tensorrt_from_module(fake_module(version)), tmp_path / "calibration.cache")
    assert found == first + CACHE.split(b"\n", 1)[1]


@pytest.mark.parametrize(
    "data", [b"", b"TRT-8601-MinMaxCalibration\nx: 00000000\n", b"\x00" * 100, b"no cache"]
)
def test_another_file_is_no_cache(tmp_path, data):
    (tmp_path / "calibration.cache").write_bytes(data)
    with pytest.raises(ConfigError, match="expected a first line such as TRT-8601"):
        cache_for(tensorrt_from_module(fake_module()), tmp_path / "calibration.cache")
    with pytest.raises(ConfigError, match="No such file"):
        cache_for(tensorrt_from_module(fake_module()), tmp_path / "missing.cache")


def implicit(**calibration):
    return BuildOptions("int8", implicit_int8=True, calibration=Calibration(**calibration))


def test_implicit_int8_takes_its_scales_from_the_cache_with_fp16_beside(build, tmp_path):
    (tmp_path / "calibration.cache").write_bytes(CACHE)
    seen = []

    def on_build(config, monitor):
        seen.append((config.int8_calibrator.read_calibration_cache(), config.flags))

    record = build(implicit(cache=tmp_path / "calibration.cache"), on_build=on_build)
    assert seen == [
        (
            cache_for(tensorrt_from_module(fake_module()), tmp_path / "calibration.cache"),
            {"INT8", "FP16"},
        )
    ]
    assert record.header.notes == ("implicit INT8 from calibration.cache",)


def image_files(folder, *levels):
    paths = []
    for number, level in enumerate(levels):
        paths.append(folder / f"이미지{number}.npy")
        np.save(str(paths[-1]), np.full((2, 3, 3), level, np.uint8))
    return tuple(paths)


def on_device(cuda, address, count):
    """The bytes that the GPU holds at `address`."""
    return np.array(cuda.memory[address].bytes[:count]).reshape(-1)


def test_without_a_cache_the_images_are_run_and_the_cache_is_kept(build, tmp_path):
    cuda, progress = RecordingCuda(), Warned()
    batches = []

    def on_build(config, monitor):
        calibrator = config.int8_calibrator
        assert calibrator.read_calibration_cache() is None
        assert calibrator.get_batch_size() == 2
        while True:
            addresses = calibrator.get_batch(["image"])
            if addresses is None:
                break
            (address,) = addresses
            batches.append([int(v) for v in on_device(cuda, address, 36)[::18]])
        calibrator.write_calibration_cache(memoryview(b"TRT-100300-EntropyCalibration2\n"))

    record = build(
        implicit(images=image_files(tmp_path, 10, 20, 30)),
        cuda=cuda,
        progress=progress,
        graph=Graph(batch=2),
        on_build=on_build,
    )
    # The last batch of two is filled up with the first image.
    assert batches == [[10, 20], [30, 10]]
    assert progress.done == [(1, 3), (2, 3), (3, 3)]
    kept = (tmp_path / "out.calibration.cache").read_bytes()
    assert kept == b"TRT-100300-EntropyCalibration2\n"
    assert record.header.notes == ("implicit INT8 calibrated on 3 images",)
    assert cuda.leaks() == []


def test_a_free_batch_is_calibrated_at_its_usual_size(build, tmp_path):
    sizes = []

    def on_build(config, monitor):
        sizes.append(config.int8_calibrator.get_batch_size())
        names = [name for name, _ in config._module.calls]
        assert names.index("set_shape") < names.index("calibration_profile")

    options = dataclasses.replace(implicit(images=image_files(tmp_path, 1)), batch=(1, 3, 8))
    build(options, graph=Graph(batch=-1), on_build=on_build)
    assert sizes == [3]


def test_images_are_fitted_to_the_network_as_the_bundle_says(build, tmp_path):
    np.save(str(tmp_path / "wide.npy"), np.full((1, 3, 3), 50, np.uint8))
    cuda = RecordingCuda()
    rows = []

    def on_build(config, monitor):
        (address,) = config.int8_calibrator.get_batch(["image"])
        rows.extend(on_device(cuda, address, 18).reshape(2, 9).tolist())

    build(
        implicit(
            images=(tmp_path / "wide.npy",), rule=ResizeRule("letterbox"), pad_value=(7, 8, 9)
        ),
        cuda=cuda,
        on_build=on_build,
    )
    assert rows == [[50] * 9, [7, 8, 9] * 3]


def test_an_image_that_cannot_be_read_ends_the_build_with_its_own_error(build, tmp_path):
    (tmp_path / "bad.npy").write_bytes(b"no array")

    def on_build(config, monitor):
        assert config.int8_calibrator.get_batch(["image"]) is None

    cuda = RecordingCuda()
    with pytest.raises(ImageError, match=r"bad\.npy"):
        build(implicit(images=(tmp_path / "bad.npy",)), cuda=cuda, on_build=on_build)
    assert cuda.leaks() == []
    assert not (tmp_path / "out.engine").exists()


def test_a_failing_copy_to_the_gpu_ends_the_build_with_its_own_error(build, tmp_path):
    cuda = RecordingCuda()
    cuda.fail("copy_in")

    def on_build(config, monitor):
        assert config.int8_calibrator.get_batch(["image"]) is None

    with pytest.raises(DeviceError, match="a refusal of copy_in"):
        build(implicit(images=image_files(tmp_path, 1)), cuda=cuda, on_build=on_build)
    assert cuda.leaks() == []


def test_implicit_int8_without_cache_and_images_is_refused(build):
    def on_build(config, monitor):
        assert config.int8_calibrator.get_batch(["image"]) is None

    with pytest.raises(ConfigError, match="without a calibration cache and without images"):
        build(BuildOptions("int8", implicit_int8=True), on_build=on_build)


def test_implicit_int8_wants_a_graph_without_q_and_dq(build):
    graph = Graph([Layer("/net/Q", "QUANTIZE", outputs=["INT8"])])
    with pytest.raises(ConfigError, match=r"--implicit-int8 .* written in INT8 .*fp32 file"):
        build(implicit(), graph=graph)


# Memory

MB = 1_000_000


def test_the_forecast_covers_what_was_measured():
    """TensorRT-RTX 1.7.1, SegFormer-B0, B2 and B4: file in MB, peak less what was there before."""
    rtx = tensorrt_from_module(fake_module("10.3.0"))
    object.__setattr__(rtx, "runtime", "TensorRT-RTX")
    measured = {
        "fp32": [(15, 240), (109, 602), (256, 1238)],
        "fp16": [(7, 214), (55, 420), (128, 858)],
        "int8": [(15, 251), (110, 464), (257, 1003)],
    }
    for precision, figures in measured.items():
        for file_mb, peak_mb in figures:
            forecast = memory_forecast(
                rtx,
                onnx_bytes=file_mb * MB,
                precision=precision,
                largest_layer=10 * MB,
                gpu=True,
            )
            assert peak_mb * MB <= forecast.host <= 2 * peak_mb * MB
            assert forecast.device == 0


def forecast(host=1000, device=2000, least_host=100, least_device=200):
    return MemoryForecast(host * MB, device * MB, least_host * MB, least_device * MB)


def test_enough_memory_is_one_line_without_a_warning():
    line, warnings = check_memory(forecast(), FreeMemory(5000 * MB, 6000 * MB, False))
    assert line == ("forecast: 1.0 GB of memory (5.0 GB free), 2.0 GB of GPU memory (6.0 GB free)")
    assert warnings == ()


def test_on_a_board_both_come_from_the_same_memory():
    line, warnings = check_memory(forecast(), FreeMemory(2500 * MB, None, True))
    assert line == "forecast: 3.0 GB of memory (2.5 GB free)"
    (warning,) = warnings
    assert warning.startswith("this build may need 3.0 GB of memory and 2.5 GB are free; ")
    assert "add swap" in warning


def test_a_board_that_cannot_hold_the_least_is_told_before_the_build():
    with pytest.raises(
        DeviceError,
        match=r"got 0\.2 GB of free memory; expected about 3\.0 GB for this build, and never less "
        r"than 0\.3 GB; do this: .*swap.*--workspace.*smaller input size",
    ):
        check_memory(forecast(), FreeMemory(200 * MB, None, True))
    with pytest.raises(DeviceError, match="of free GPU memory"):
        check_memory(forecast(), FreeMemory(5000 * MB, 199 * MB, False))


def test_a_system_that_tells_nothing_is_not_asked():
    line, warnings = check_memory(forecast(), FreeMemory(None, None, False))
    assert (line, warnings) == ("forecast: 1.0 GB of memory, 2.0 GB of GPU memory", ())


def test_free_memory_is_what_the_system_could_give(tmp_path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 8000 kB\nMemFree: 100 kB\nMemAvailable:    4000 kB\n")
    assert free_memory(None, meminfo=meminfo) == FreeMemory(4000 * 1024, None, False)
    board = RecordingCuda(integrated=True, free=1 << 30)
    assert free_memory(board, meminfo=meminfo) == FreeMemory(4000 * 1024, None, True)
    desktop = RecordingCuda(free=1 << 30)
    assert free_memory(desktop, meminfo=meminfo) == FreeMemory(4000 * 1024, 1 << 30, False)
    assert free_memory(None, meminfo=tmp_path / "none").host is None


def test_a_board_s_layers_get_a_quarter_of_what_is_free():
    board = FreeMemory(4 << 30, None, True)
    assert workspace_bytes(None, board) == 1 << 30
    assert workspace_bytes(100, board) == 100 << 20
    assert workspace_bytes(None, FreeMemory(4 << 30, 8 << 30, False)) is None


def test_a_build_stops_before_it_starts_where_memory_is_missing(build, tmp_path, monkeypatch):
    monkeypatch.setattr("engines.trt.stages.free_memory", lambda cuda: FreeMemory(50, None, True))
    with pytest.raises(DeviceError, match="of free memory"):
        build(BuildOptions())
    assert not (tmp_path / "out.engine").exists()


# Timing cache


def cache_file(tmp_path):
    return tmp_path / "cache" / "timing" / "NVIDIA-RTX-6000-sm87-trt10.3.0.cache"


def test_a_timing_cache_is_kept_per_gpu_and_version(build, tmp_path):
    cuda = RecordingCuda(name="NVIDIA RTX 6000")
    tensorrt = tensorrt_from_module(fake_module("10.3.0"))
    assert default_timing_cache(tensorrt, cuda.info) == cache_file(tmp_path)
    build(BuildOptions(), cuda=cuda)
    assert cache_file(tmp_path).read_bytes() == b"cache of 10.3.0+"
    build(BuildOptions(), cuda=cuda)
    assert cache_file(tmp_path).read_bytes() == b"cache of 10.3.0++"
    assert os.listdir(str(cache_file(tmp_path).parent)) == [cache_file(tmp_path).name]


@pytest.mark.parametrize("data", [b"damaged", b"cache of 8.6.1"])
def test_a_cache_that_does_not_fit_is_replaced_with_a_warning(build, tmp_path, data):
    path = tmp_path / "mine.cache"
    path.write_bytes(data)
    progress = Warned()
    record = build(BuildOptions(timing_cache=path), progress=progress)
    assert path.read_bytes() == b"cache of 10.3.0+"
    (warning,) = record.warnings
    assert "damaged or of another GPU or version; starting an empty one" in warning
    assert progress.warnings == [warning]


def test_a_cache_that_cannot_be_written_is_a_warning(build, tmp_path):
    (tmp_path / "a-file").write_bytes(b"")
    record = build(BuildOptions(timing_cache=tmp_path / "a-file" / "x.cache"))
    assert [w for w in record.warnings if "was not written: " in w]
    assert record.path.exists()


def test_a_folder_in_place_of_the_cache_is_a_warning(build, tmp_path):
    (tmp_path / "folder.cache").mkdir()
    record = build(BuildOptions(timing_cache=tmp_path / "folder.cache"))
    assert "is no file of at most 1 GiB" in record.warnings[0]
    assert "was not written" in record.warnings[1]
