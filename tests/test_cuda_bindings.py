"""Each binding keeps what engines.cuda.interface promises, on a stand-in for the driver.

What it cannot show is what a GPU does: tests/gpu has that.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests.conftest import skip_or_fail
from tests.cuda_bindings.driver_library import FAKE_PYCUDA, HERE, compiled_driver, run_on_driver

ALL = ("memory", "context", "lifetime", "errors")
TRY = "from engines.cuda import open_cuda; print('took', open_cuda().binding)"


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        return compiled_driver(tmp_path_factory.mktemp("driver"))
    except FileNotFoundError as error:
        skip_or_fail(str(error))


def cuda_bindings_version() -> str:
    """FAKE_CUDA_VERSION of a driver that the installed cuda-bindings works with."""
    if importlib.util.find_spec("cuda") is None:
        skip_or_fail("no package cuda-bindings")
    from cuda.bindings import driver

    return str(driver.CUDA_VERSION // 1000 * 1000)


def assert_promises(driver: Path, *about: str, **settings: str) -> None:
    files = [str(HERE / f"promises_{name}.py") for name in about]
    arguments = ["-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    code, output = run_on_driver(driver, arguments, **settings)
    assert code == 0, output
    assert "SKIPPED" not in output, output


def test_the_drivers_own_library_by_ctypes_keeps_every_promise(driver: Path) -> None:
    assert_promises(driver, *ALL, "graphs", RICESEG_CUDA="driver")


def test_cuda_python_keeps_every_promise(driver: Path) -> None:
    version = cuda_bindings_version()
    settings = {"RICESEG_CUDA": "cuda-python", "FAKE_CUDA_VERSION": version}
    assert_promises(driver, *ALL, "graphs", **settings)


def test_pycuda_keeps_every_promise_but_graphs(driver: Path) -> None:
    settings = {"RICESEG_CUDA": "pycuda", "PYTHONPATH": str(FAKE_PYCUDA)}
    assert_promises(driver, *ALL, "pycuda", **settings)


def test_with_no_package_the_drivers_own_library_is_taken(driver: Path) -> None:
    hide = "import sys; sys.modules.update({'cuda': None, 'pycuda': None}); "
    assert run_on_driver(driver, ["-c", hide + TRY]) == (0, "took driver\n")


def test_pycuda_is_taken_where_cuda_python_is_missing(driver: Path) -> None:
    hide = "import sys; sys.modules['cuda'] = None; "
    code, output = run_on_driver(driver, ["-c", hide + TRY], PYTHONPATH=str(FAKE_PYCUDA))
    assert (code, output) == (0, "took pycuda\n")


def test_cuda_python_comes_first(driver: Path) -> None:
    version = cuda_bindings_version()
    code, output = run_on_driver(
        driver, ["-c", TRY], PYTHONPATH=str(FAKE_PYCUDA), FAKE_CUDA_VERSION=version
    )
    assert (code, output) == (0, "took cuda-python\n")


def test_the_environment_names_the_binding_and_the_argument_wins_over_it(driver: Path) -> None:
    path = str(FAKE_PYCUDA)
    settings = {"RICESEG_CUDA": "pycuda", "PYTHONPATH": path}
    assert run_on_driver(driver, ["-c", TRY], **settings) == (0, "took pycuda\n")
    named = TRY.replace("open_cuda()", "open_cuda('driver')")
    assert run_on_driver(driver, ["-c", named], **settings) == (0, "took driver\n")


def test_a_cuda_python_too_new_for_the_driver_is_left_out_with_a_warning(driver: Path) -> None:
    older = str(int(cuda_bindings_version()) - 1000 + 60)  # 12.6 for a package for 13
    hide = "import sys; sys.modules['pycuda'] = None; "
    code, output = run_on_driver(driver, ["-c", hide + TRY], FAKE_CUDA_VERSION=older)
    assert code == 0
    assert "cuda-python made for CUDA" in output
    assert output.endswith("took driver\n")


def test_a_cuda_python_too_new_for_the_driver_is_an_error_where_it_was_asked_for(
    driver: Path,
) -> None:
    older = str(int(cuda_bindings_version()) - 1000 + 60)
    code, output = run_on_driver(
        driver, ["-c", TRY], FAKE_CUDA_VERSION=older, RICESEG_CUDA="cuda-python"
    )
    assert code == 1
    assert f"on a driver for CUDA {int(older) // 1000}.6" in output
    assert f"pip install 'cuda-python=={int(older) // 1000}.*'" in output


def test_a_driver_older_than_jetpack_5s_is_refused(driver: Path) -> None:
    code, output = run_on_driver(
        driver, ["-c", TRY], FAKE_CUDA_VERSION="11020", RICESEG_CUDA="driver"
    )
    assert code == 1
    assert "on a driver for CUDA 11.2" in output


def test_importing_makes_no_call_to_the_driver_and_loads_no_binding(driver: Path) -> None:
    code = (
        "import ctypes, sys\n"
        "fake = ctypes.CDLL('libcuda.so.1')\n"
        "fake.fake_calls.restype = ctypes.c_char_p\n"
        "import engines.cuda, engines.cuda.session, engines.cuda.pycuda_operations\n"
        "import engines.cuda.cuda_python_calls, engines.cuda.ctypes_calls\n"
        "loaded = {name.partition('.')[0] for name in sys.modules}\n"
        "print(fake.fake_calls(), loaded & {'cuda', 'pycuda', 'tensorrt'})\n"
    )
    assert run_on_driver(driver, ["-c", code]) == (0, "b'' set()\n")
