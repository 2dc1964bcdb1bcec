"""The download behind the TensorRT fixtures: pinned, whole or not there, no silent skip."""

from __future__ import annotations

import base64
import hashlib
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest

from tests.conftest import skip_or_fail
from tests.rtx import wheels_folder
from tests.rtx.wheels_folder import FixtureUnavailable, folder_of_wheels


@pytest.fixture
def pins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for pin files, with a cache folder and no network."""
    monkeypatch.setattr(wheels_folder, "PINS", tmp_path)
    monkeypatch.setenv("RICESEG_TEST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return tmp_path


def wheel(folder: Path) -> Path:
    """The smallest wheel: a module `speck` with NAME in it."""
    path = folder / "speck-1.0-py3-none-any.whl"
    files = {
        "speck.py": b"NAME = 'speck'\n",
        "speck-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: speck\nVersion: 1.0\n",
        "speck-1.0.dist-info/WHEEL": (
            b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        ),
    }
    record = "speck-1.0.dist-info/RECORD"
    lines = []
    for name, data in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
        lines.append(f"{name},sha256={digest},{len(data)}")
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        archive.writestr(record, "\n".join([*lines, f"{record},,\n"]))
    return path


def pin(folder: Path, digest: str) -> None:
    line = f"{wheel(folder)} --hash=sha256:{digest}\n"
    (folder / "speck.txt").write_text(line, encoding="utf-8")


def test_two_that_ask_at_once_get_one_folder_that_was_filled_once(pins: Path) -> None:
    pin(pins, hashlib.sha256(wheel(pins).read_bytes()).hexdigest())
    finished: list[Path] = []
    with ThreadPoolExecutor(2) as pool:
        folders = set(
            pool.map(lambda _: folder_of_wheels("speck", finish=finished.append), range(2))
        )
    (folder,) = folders
    assert (folder / "speck.py").read_text(encoding="utf-8") == "NAME = 'speck'\n"
    assert len(finished) == 1


def test_a_wheel_with_another_hash_is_refused_and_leaves_nothing(pins: Path) -> None:
    pin(pins, "0" * 64)
    with pytest.raises(FixtureUnavailable, match="DO NOT MATCH THE HASHES"):
        folder_of_wheels("speck", finish=lambda folder: None)
    assert [path.suffix for path in (pins / "cache").iterdir()] == [".lock"]


def test_a_step_that_fails_leaves_nothing(pins: Path) -> None:
    pin(pins, hashlib.sha256(wheel(pins).read_bytes()).hexdigest())

    def fail(folder: Path) -> None:
        raise FixtureUnavailable("no compiler")

    with pytest.raises(FixtureUnavailable, match="no compiler"):
        folder_of_wheels("speck", finish=fail)
    assert [path.suffix for path in (pins / "cache").iterdir()] == [".lock"]


def test_without_a_network_the_reason_is_told(pins: Path) -> None:
    line = f"riceseg-no-such-package==1.0 --hash=sha256:{'0' * 64}\n"
    (pins / "absent.txt").write_text(line, encoding="utf-8")
    with pytest.raises(FixtureUnavailable, match=r"absent\.txt.*riceseg-no-such-package"):
        folder_of_wheels("absent", finish=lambda folder: None)


@pytest.mark.parametrize("here", [("Linux", "aarch64"), ("Darwin", "arm64")])
def test_another_platform_is_refused_by_its_name(
    here: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.system", lambda: here[0])
    monkeypatch.setattr("platform.machine", lambda: here[1])
    with pytest.raises(FixtureUnavailable, match=f"{here[0]} {here[1]}"):
        folder_of_wheels("rtx", finish=lambda folder: None)


def test_a_missing_fixture_skips_and_where_required_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RICESEG_REQUIRE_FIXTURES", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no network"):
        skip_or_fail("no network")
    monkeypatch.setenv("RICESEG_REQUIRE_FIXTURES", "1")
    with pytest.raises(pytest.fail.Exception, match=r"RICESEG_REQUIRE_FIXTURES.*no network"):
        skip_or_fail("no network")


def test_tensorrt_rtx_is_there_during_a_test(tensorrt_rtx: ModuleType) -> None:
    import tensorrt_rtx as imported  # type: ignore[import-not-found]

    assert imported is tensorrt_rtx
    assert imported.__version__ == "1.7.1.116"


@pytest.mark.usefixtures("_rtx_modules")
def test_after_that_test_it_is_gone_again() -> None:
    assert not [name for name in sys.modules if name.startswith("tensorrt_rtx")]
