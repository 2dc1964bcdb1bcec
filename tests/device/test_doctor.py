from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from made_boards import (
    orin_nano,
    plain,
    program,
    programs_fixture,
    rtx_desktop,
    thor,
    write,
    xavier_nx,
)

from engines.board import nvidia_smi, probe
from engines.board.diagnosis import apt_tensorrt_pythons, install_tensorrt, numbers
from engines.board.files import status_and_output
from engines.doctor import doctor_record, doctor_text

__all__ = ["programs_fixture"]
ORIN = {"name": "Orin", "compute_capability": "8.7", "memory_mb": 7619, "cuda": "12.6"}
NO_GPU = {"error": "no NVIDIA driver (libcuda.so.1)", "do": "install the driver"}
HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"
APT = "sudo apt-get update && sudo apt-get install python3-libnvinfer"


class Site:
    """A folder of made-up packages that, beside the standard library, is all there is."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def add(self, name: str, code: str) -> None:
        path = self.folder / f"{name.replace('.', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code + "\n", encoding="utf-8")


@pytest.fixture(name="site")
def site_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    site = Site(tmp_path / "site")
    bare = [entry for entry in sys.path if "-packages" not in entry and entry]
    monkeypatch.setattr(sys, "path", [str(site.folder), *bare])
    return site


def examined(
    root: Path, monkeypatch: pytest.MonkeyPatch, gpu: dict[str, Any] | None = None
) -> dict[str, Any]:
    """doctor_record of a made-up machine on which CUDA says `gpu`."""
    answer = dict(NO_GPU if gpu is None else gpu)
    monkeypatch.setattr(probe, "cuda_found", lambda device, timeout_s: dict(answer))
    record = doctor_record(root)
    assert json.loads(json.dumps(record)) == record
    assert doctor_text(record).endswith("\n")
    return record


def nodes(root: Path, *names: str) -> None:
    write(root, {f"dev/{name}": "" for name in names})


def problems(record: dict[str, Any]) -> list[str]:
    return [item["problem"] for item in record["problems"]]


def test_a_board_with_everything_says_what_it_builds_and_runs(
    tmp_path: Path, programs: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = orin_nano(tmp_path / "root")
    nodes(root, "nvmap", "nvhost-ctrl-gpu")
    site.add("tensorrt", "__version__ = '10.3.0'")
    site.add("onnxruntime", "__version__ = '1.19'\ndef get_available_providers(): return ['CPU']")
    site.add("cuda.bindings.driver", "")
    site.add("PIL.Image", "__version__ = '9.0.1'")
    record = examined(root, monkeypatch, {**ORIN, "binding": "cuda-python"})
    assert record["can"]["engines"] == {
        "works": True,
        "with": "TensorRT 10.3.0",
        "precisions": ["fp32", "fp16", "int8"],
    }
    assert record["can"]["onnx"] == {
        "works": True,
        "with": "ONNX Runtime 1.19",
        "providers": ["CPU"],
    }
    assert record["can"]["images"] == {"works": True, "with": "Pillow 9.0.1"}
    assert record["packages"]["cuda-python"]["state"] == "works"
    assert record["gpu"] == {**ORIN, "binding": "cuda-python", "cuda_toolkit": "12.6.11"}
    assert record["machine"]["power_mode"] == "MAXN_SUPER"
    assert record["problems"] == []
    assert record["install"] == []


def test_the_text_is_for_a_reader(
    tmp_path: Path, programs: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = orin_nano(tmp_path / "root")
    nodes(root, "nvmap")
    site.add("tensorrt", "__version__ = '10.3.0'")
    lines = doctor_text(examined(root, monkeypatch, {**ORIN, "binding": "driver"})).splitlines()
    for line in (
        "  device       NVIDIA Jetson Orin Nano Developer Kit Super",
        "  JetPack      6.2 (L4T 36.4.3)",
        "  power mode   MAXN_SUPER",
        "  clocks       free; sudo jetson_clocks holds them",
        "  GPU          Orin, compute capability 8.7, 7619 MiB",
        "  CUDA         driver up to 12.6, toolkit 12.6.11, through driver",
        "  TensorRT     10.3.0",
        "  pycuda       not installed",
        "  TensorRT engines       yes, TensorRT 10.3.0 / fp32 fp16 int8",
        "  ONNX files             no: ONNX Runtime is not installed",
        "  image files            no: Pillow is not installed; OpenCV is not installed",
        "  ONNX files: pip install 'riceseg[onnx]'",
        "  image files: pip install Pillow",
    ):
        assert line in lines
    assert "Problems" not in lines


def test_a_package_that_crashes_hangs_or_fails_does_not_take_the_doctor_with_it(
    tmp_path: Path, programs: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.add("tensorrt", "raise ImportError('libnvinfer.so.10: cannot open shared object file')")
    site.add("pycuda.driver", "import os; os.abort()")
    site.add("tensorrt_rtx", "import sys; print('hello'); sys.exit(3)")
    site.add("cv2", "import time; time.sleep(60)")
    site.add("jtop", "import os; os._exit(7)")
    began = time.monotonic()
    found = probe.packages_found(timeout_s=6.0)
    assert time.monotonic() - began < 20
    said = {title: package.said for title, package in found.items() if package.state == "broken"}
    assert said == {
        "TensorRT": "ImportError: libnvinfer.so.10: cannot open shared object file",
        "pycuda": "crashes Python (SIGABRT)",
        "TensorRT-RTX": "SystemExit: 3",
        "OpenCV": "does not answer (stopped while it was being loaded)",
        "jetson-stats": "crashes Python (exit status 7)",
    }


@pytest.mark.parametrize(
    "printed",
    ["[1, 2]", "{}", "{no json", '{"state": "fine"}', '"' + "[" * 9, "[" * 100_000, "null"],
)
def test_what_a_package_prints_over_the_answer_is_no_answer(site: Site, printed: str) -> None:
    line = "riceseg-probe " + printed
    site.add("tensorrt", f"import atexit; atexit.register(print, {line!r})")
    found = probe.packages_found()["TensorRT"]
    assert found == probe.Package("broken", said="prints over the answer to whether it loads")


def test_unknown_fields_of_an_answer_are_left_out(site: Site) -> None:
    line = 'riceseg-probe {"state": "works", "version": 1, "age": 3, "providers": 4}'
    site.add("tensorrt", f"import atexit; atexit.register(print, {line!r})")
    assert probe.packages_found()["TensorRT"] == probe.Package("works", version="1")


def test_ctrl_c_ends_what_is_being_asked(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.add("cv2", "import time; time.sleep(60)")
    site.add("tensorrt", "import time; time.sleep(60)")
    started = []

    def child(code: str, question: str) -> Any:
        started.append(real(code, question))
        return started[-1]

    def interrupted(child: Any, deadline: float) -> Any:
        raise KeyboardInterrupt

    real = probe._child
    monkeypatch.setattr(probe, "_child", child)
    monkeypatch.setattr(probe, "_answer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        probe.packages_found()
    assert [process.returncode for process in started] == [-signal.SIGKILL] * 2
    with pytest.raises(KeyboardInterrupt):
        probe.cuda_found()
    assert started[2].returncode == -signal.SIGKILL


def test_an_nvidia_smi_that_hangs_is_asked_once_and_told(
    tmp_path: Path, programs: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, left = tmp_path / "asked", tmp_path / "left"
    script = f"echo x >> {asked}; (/bin/sleep 3; echo x > {left}) & /bin/sleep 60"
    program(programs, "nvidia-smi", script)
    monkeypatch.setattr(nvidia_smi.driver_cuda_version, "__kwdefaults__", {"timeout_s": 0.5})
    began = time.monotonic()
    record = examined(plain(tmp_path / "root"), monkeypatch)
    assert record["problems"][0]["problem"] == "nvidia-smi gives no answer within 0.5 s"
    assert asked.read_text() == "x\n"
    time.sleep(max(0.0, began + 4 - time.monotonic()))
    assert not left.exists()  # its child was stopped too


def test_a_program_that_prints_without_end_is_stopped(tmp_path: Path, programs: Path) -> None:
    program(programs, "nvidia-smi", "while :; do echo 0123456789012345678901234567890; done")
    assert status_and_output(["nvidia-smi"], timeout_s=60) == (None, "")


def test_a_package_whose_own_import_is_missing_is_broken_and_not_absent(site: Site) -> None:
    site.add("onnxruntime", "import numpi")
    found = probe.packages_found()
    assert found["ONNX Runtime"].state == "broken"
    assert found["ONNX Runtime"].said == "ModuleNotFoundError: No module named 'numpi'"
    assert found["TensorRT"] == probe.Package("missing")


def test_a_folder_that_holds_none_of_the_modules_is_no_package(site: Site) -> None:
    site.add("cuda.something_else", "")
    assert probe.packages_found()["cuda-python"] == probe.Package("missing")


def test_the_older_module_of_cuda_python_is_found(site: Site) -> None:
    site.add("cuda.cuda", "__version__ = '12.2'")
    assert probe.packages_found()["cuda-python"].version == "12.2"


def test_a_broken_tensorrt_on_a_board_is_installed_again(
    tmp_path: Path, programs: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = orin_nano(tmp_path / "root")
    nodes(root, "nvmap")
    site.add("tensorrt", "raise ImportError('libnvinfer.so.10: cannot open shared object file')")
    record = examined(root, monkeypatch, ORIN)
    assert record["problems"] == [
        {
            "problem": "TensorRT does not load: ImportError: libnvinfer.so.10: cannot open shared "
            "object file",
            "do": "sudo apt-get install --reinstall python3-libnvinfer",
        }
    ]
    assert record["can"]["engines"] == {"works": False, "why": "TensorRT does not load"}


def test_a_package_built_for_numpy_1_is_named(
    tmp_path: Path, programs: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.add("cv2", "raise ImportError('numpy.core.multiarray failed to import')")
    record = examined(plain(tmp_path / "root"), monkeypatch)
    assert record["problems"][0]["do"] == "pip install 'numpy<2': it was built for numpy 1"


def test_a_virtual_environment_that_does_not_see_the_systems_tensorrt(
    tmp_path: Path, programs: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = orin_nano(tmp_path / "root")
    nodes(root, "nvmap")
    write(root, {f"usr/lib/python{HERE}/dist-packages/tensorrt/__init__.py": ""})
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "venv"))
    write(tmp_path / "venv", {"pyvenv.cfg": "include-system-site-packages = false\n"})
    record = examined(root, monkeypatch, ORIN)
    assert problems(record) == [
        "TensorRT is installed for the system's Python, which this virtual environment does not see"
    ]
    assert "pyvenv.cfg" in record["problems"][0]["do"]
    assert record["python"]["system_site_packages"] is False
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    assert problems(examined(root, monkeypatch, ORIN)) == []


def test_a_tensorrt_of_another_python_is_named(
    tmp_path: Path, programs: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = xavier_nx(tmp_path / "root")
    nodes(root, "nvmap")
    write(root, {"usr/lib/python3.7/dist-packages/tensorrt/tensorrt.so": ""})
    record = examined(root, monkeypatch, ORIN)
    assert problems(record) == [f"TensorRT is installed for Python 3.7, and this is Python {HERE}"]
    assert record["problems"][0]["do"].startswith("use that Python: python3.7 -m venv --system")


def test_the_python_of_an_extension_in_the_shared_folder_is_in_its_name(tmp_path: Path) -> None:
    folder = "usr/lib/python3/dist-packages/tensorrt"
    write(tmp_path, {f"{folder}/tensorrt.cpython-310-aarch64-linux-gnu.so": ""})
    write(tmp_path, {"usr/lib/python3.12/dist-packages/tensorrt/tensorrt.so": ""})
    assert apt_tensorrt_pythons(tmp_path) == ["3.10", "3.12"]
    assert apt_tensorrt_pythons(tmp_path / "nothing") == []


def test_numpy_without_np_bool_and_a_tensorrt_that_needs_it(
    tmp_path: Path, programs: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = xavier_nx(tmp_path / "root")
    nodes(root, "nvmap")
    site.add("tensorrt", "__version__ = '8.5.2.2'")
    site.add("numpy", "__version__ = '1.24.4'")
    record = examined(root, monkeypatch, ORIN)
    assert record["problems"] == [
        {
            "problem": "TensorRT 8.5.2.2 uses np.bool, which numpy 1.24.4 lacks",
            "do": "pip install 'numpy<1.24'",
        }
    ]
    site.add("numpy", "__version__ = '1.23.5'  # the last with np.bool")
    assert problems(examined(root, monkeypatch, ORIN)) == []
    site.add("numpy", "__version__ = '2.0.0' # and no complaint with a TensorRT that is new enough")
    site.add("tensorrt", "__version__ = '8.6.2'  # padding, so that no cached byte code is taken")
    assert problems(examined(root, monkeypatch, ORIN)) == []


def test_a_gpu_without_its_driver(
    tmp_path: Path, programs: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = "sys/bus/pci/devices/0000:01:00.0"
    root = write(plain(tmp_path), {f"{card}/vendor": "0x10de\n", f"{card}/class": "0x030000\n"})
    record = examined(root, monkeypatch)
    assert record["problems"] == [
        {
            "problem": "an NVIDIA GPU, but its driver is not loaded",
            "do": "install the driver and restart; on Ubuntu: sudo ubuntu-drivers install",
        }
    ]
    write(root, {".dockerenv": ""})
    assert "--gpus all" in examined(root, monkeypatch)["problems"][0]["do"]
    write(root, {f"{card}/class": "0x040300\n"})  # its sound device alone is no GPU
    assert examined(root, monkeypatch)["problems"] == []


def test_a_board_without_device_files_is_a_container(
    tmp_path: Path, programs: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = examined(orin_nano(tmp_path / "root"), monkeypatch)
    assert record["problems"][0]["do"] == "start the container with --runtime nvidia"


def test_a_user_without_permission_is_told_the_group(
    tmp_path: Path, programs: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = orin_nano(tmp_path / "root")
    nodes(root, "nvmap", "nvhost-ctrl-gpu", "nvgpu/igpu0/ctrl")
    monkeypatch.setattr("engines.board.diagnosis.may_use", lambda path: path.name != "nvmap")
    monkeypatch.setattr("engines.board.diagnosis._group", lambda path: "video")
    record = examined(root, monkeypatch)
    assert record["problems"] == [
        {
            "problem": "no permission to use /dev/nvmap",
            "do": "sudo usermod -aG video $USER, then log out and in again",
        }
    ]


def test_a_stub_of_the_driver_on_the_library_path(
    tmp_path: Path, programs: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    stubs = tmp_path / "cuda/lib64/stubs"
    write(stubs, {"libcuda.so": ""})
    monkeypatch.setenv("LD_LIBRARY_PATH", f"/usr/lib:{stubs}")
    record = examined(plain(tmp_path / "root"), monkeypatch)
    assert record["problems"][0]["do"] == f"take {stubs} out of LD_LIBRARY_PATH"


def test_what_cuda_refuses_is_a_problem_where_there_is_a_driver(
    tmp_path: Path, programs: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = orin_nano(tmp_path / "root")
    nodes(root, "nvmap")
    site.add("tensorrt", "__version__ = '10.3.0'")
    record = examined(root, monkeypatch, {"error": "error 999", "do": "restart the board"})
    assert record["problems"] == [
        {"problem": "CUDA cannot be used: error 999", "do": "restart the board"}
    ]
    assert record["can"]["engines"] == {
        "works": False,
        "with": "TensorRT 10.3.0",
        "why": "no GPU to use: error 999",
    }


def test_a_plain_machine_has_no_problem_and_runs_onnx(
    tmp_path: Path, programs: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.add("onnxruntime", "__version__ = '1.19'")
    site.add("PIL.Image", "")
    record = examined(plain(tmp_path / "root"), monkeypatch)
    assert record["problems"] == []
    assert record["can"]["onnx"] == {"works": True, "with": "ONNX Runtime 1.19"}
    assert record["can"]["engines"] == {"works": False, "why": "TensorRT is not installed"}
    # Nothing to install for a GPU that is not there.
    assert {item["for"] for item in record["install"]} <= {"riceseg export"}
    assert "  GPU          none (no NVIDIA driver (libcuda.so.1))" in doctor_text(record)


def test_a_desktop_is_told_the_tensorrt_for_its_driver(
    tmp_path: Path, programs: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    rtx_desktop(programs)
    record = examined(plain(tmp_path / "root"), monkeypatch, {"binding": "driver"})
    assert record["gpu"] == {
        "name": "NVIDIA GeForce RTX 4090",
        "compute_capability": "8.9",
        "memory_mb": 24564.0,
        "driver": "575.64.03",
        "cuda": "12.9",
        "binding": "driver",
    }
    install = {item["for"]: item["do"] for item in record["install"]}
    assert install["TensorRT engines"] == "pip install tensorrt-cu12"
    assert install["TensorRT-RTX engines"] == "pip install tensorrt-rtx"


def test_tensorrt_rtx_builds_without_a_gpu_and_needs_turing_to_run(
    tmp_path: Path, programs: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.add("tensorrt_rtx", "__version__ = '1.4.0'")
    root = plain(tmp_path / "root")
    without = examined(root, monkeypatch)["can"]["rtx_engines"]
    assert (without["works"], without["builds"]) == (False, True)
    assert without["why"] == "builds, but no GPU to run on: no NVIDIA driver (libcuda.so.1)"
    old = examined(root, monkeypatch, {"name": "V100", "compute_capability": "7.0"})
    assert old["can"]["rtx_engines"]["works"] is False
    new = examined(root, monkeypatch, {"name": "RTX", "compute_capability": "12.0"})
    assert new["can"]["rtx_engines"]["works"] is True


def test_a_gpu_older_than_volta_gets_fp32_alone(
    tmp_path: Path, programs: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.add("tensorrt", "__version__ = '8.6.1'")
    record = examined(plain(tmp_path), monkeypatch, {"name": "P4", "compute_capability": "6.1"})
    assert record["can"]["engines"]["precisions"] == ["fp32"]


@pytest.mark.parametrize(
    ("machine", "cuda", "said"),
    [
        (
            {"l4t": "35.4.1", "jetpack": "5.1.2"},
            None,
            f"{APT} (TensorRT 8.4 or 8.5, for Python 3.8",
        ),
        (
            {"l4t": "36.4.3", "jetpack": "6.2"},
            "12.6",
            f"{APT} (TensorRT 10.3 (8.6 with JetPack 6.0),",
        ),
        (
            {"l4t": "38.2.0", "jetpack": "7.x"},
            "13.0",
            f"{APT} (TensorRT 10.13 or newer, for Python 3.12",
        ),
        ({"l4t": "32.7.1", "jetpack": "4.6"}, None, "JetPack 5 or newer"),
        ({}, "12.4", "pip install tensorrt-cu12"),
        ({}, "13.1", "pip install tensorrt-cu13"),
        ({}, "14.0", "pip install tensorrt-cu13"),
        ({}, "11.4", "a driver for CUDA 12 or newer (this one is for 11.4), then"),
        ({}, None, "pip install tensorrt"),
    ],
)
def test_how_tensorrt_is_installed(machine: dict[str, Any], cuda: Any, said: str) -> None:
    assert install_tensorrt(machine, cuda).startswith(said)


def test_a_thor_is_told_its_jetpacks_tensorrt(
    tmp_path: Path, programs: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = thor(tmp_path / "root")
    nodes(root, "nvidia0", "nvidiactl")
    program(programs, "nvidia-smi", "echo '|  CUDA Version: 13.0  |'")
    gpu = {"name": "NVIDIA Thor", "compute_capability": "11.0"}
    record = examined(root, monkeypatch, gpu)
    assert record["gpu"] == {**gpu, "cuda": "13.0"}
    install = {item["for"]: item["do"] for item in record["install"]}
    assert "for Python 3.12 in /usr/bin/python3" in install["TensorRT engines"]
    assert "TensorRT-RTX engines" not in install
    assert "riceseg export" not in install


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("10.3.0", (10, 3, 0)),
        ("8.5.2.2", (8, 5, 2, 2)),
        ("2.13.0+cpu", (2, 13, 0)),
        ("?", ()),
        (None, ()),
    ],
)
def test_versions_are_compared_as_numbers(text: Any, parts: Any) -> None:
    assert numbers(text) == parts


def test_hostile_names_stay_on_their_line(
    tmp_path: Path, programs: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = orin_nano(tmp_path / "root")
    write(root, {"proc/device-tree/model": "판\x1b[2J\nfake: yes"})
    site.add("tensorrt", "raise ImportError('\\x1b[31m한글\\n  x')")
    text = doctor_text(examined(root, monkeypatch, ORIN))
    assert "\x1b" not in text
    assert "  device       판?[2J fake: yes\n" in text


def test_cuda_is_asked_in_a_process_of_its_own() -> None:
    found = probe.cuda_found(timeout_s=60.0)
    assert found.get("error") or found["name"]
    assert "crashes" not in str(found.get("error"))


def test_the_doctor_of_this_machine_needs_the_standard_library_alone() -> None:
    code = (
        "import sys, json; from engines.doctor import doctor_record\n"
        "json.dumps(doctor_record()); print('numpy' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=Path(__file__).parent.parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "False\n", done.stderr
