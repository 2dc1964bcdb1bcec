"""The scripts' own parts, without what they measure."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest

from engines.errors import ConfigError, DatasetError, OutputError
from engines.progress import SilentProgress

_BEFORE = list(sys.path)
sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import compare_ptq  # noqa: E402
from measure_calibration import MEMORY_LIMIT, PLAIN, TIME_LIMITS, row_of  # noqa: E402
from ptq import jobs  # noqa: E402
from ptq.networks import NETWORKS, networks_there  # noqa: E402
from update_readme import TABLES, readme_with_table  # noqa: E402

sys.path[:] = _BEFORE

README = "# 벼\n<!-- t -->\nold\n<!-- end of t -->\n끝\n"


# --- update_readme --------------------------------------------------------------------------------


def test_a_table_takes_the_place_between_its_markers_alone() -> None:
    found = readme_with_table(README, "t", "\n| 논 |\n\n")
    assert found == "# 벼\n<!-- t -->\n| 논 |\n<!-- end of t -->\n끝\n"
    assert readme_with_table(found, "t", "old") == README


@pytest.mark.parametrize(
    "readme",
    [
        README.replace("<!-- t -->\n", ""),
        README.replace("<!-- end of t -->", ""),
        README + README,
    ],
)
def test_a_readme_without_its_markers_is_refused(readme: str) -> None:
    with pytest.raises(SystemExit, match="without one <!-- t --> and one <!-- end of t -->"):
        readme_with_table(readme, "t", "new")


@pytest.mark.parametrize("name", TABLES)
def test_a_table_of_the_readme_is_that_of_its_committed_record(name: str) -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    assert readme_with_table(readme, name, TABLES[name]()) == readme


# --- measure_calibration --------------------------------------------------------------------------


def cost(seconds: float, peak_mb: float) -> dict[str, float]:
    return {"seconds": seconds, "cpu_seconds": 3 * seconds, "peak_mb": peak_mb}


@pytest.mark.parametrize(
    ("time_share", "memory_share", "passed"),
    [(1.0, 1.0, True), (1.01, 1.0, False), (1.0, 1.01, False)],
)
def test_a_method_passes_up_to_its_limits(
    time_share: float, memory_share: float, passed: bool
) -> None:
    many = {
        PLAIN: cost(4.0, 100.0),
        "mse": cost(4.0 * TIME_LIMITS["mse"] * time_share, 200.0 * MEMORY_LIMIT * memory_share),
    }
    row = row_of("mse", many, {"mse": cost(0.1, 200.0)})
    assert row["passed"] is passed
    assert row["time_ratio"] == pytest.approx(TIME_LIMITS["mse"] * time_share)
    assert row["cpu_ratio"] == pytest.approx(TIME_LIMITS["mse"] * time_share)
    assert row["memory_ratio"] == pytest.approx(MEMORY_LIMIT * memory_share)
    assert (row["few_peak_mb"], row["seconds"]) == (200.0, many["mse"]["seconds"])


# --- compare_ptq ----------------------------------------------------------------------------------


def made_there(data: Path, *names: str) -> None:
    for network in NETWORKS:
        if network.name in names:
            (data / network.folder).mkdir(parents=True)
            (data / network.checkpoint).touch()


def test_a_network_that_is_not_free_may_be_left_out_unless_it_is_asked_for(tmp_path: Path) -> None:
    made_there(tmp_path, "crop_weed")
    (crop, rice) = NETWORKS
    assert networks_there(tmp_path, only=None) == ([crop], ["rice_panicle"])
    assert networks_there(tmp_path, only="crop_weed") == ([crop], [])
    with pytest.raises(DatasetError, match=r"no segformer_b0_rice_panicle\.pth and no rice_panic"):
        networks_there(tmp_path, only="rice_panicle")
    made_there(tmp_path, "rice_panicle")
    assert networks_there(tmp_path, only=None) == ([crop, rice], [])


def test_a_free_network_is_never_left_out(tmp_path: Path) -> None:
    made_there(tmp_path, "rice_panicle")
    with pytest.raises(DatasetError, match=r"crop_weed\.pth and no crop_weed_full"):
        networks_there(tmp_path, only=None)


def test_one_network_without_its_data_ends_with_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compare_ptq, "modelopt_versions", dict)
    command = ["compare_ptq", "--data", str(tmp_path), "--only", "rice_panicle"]
    monkeypatch.setattr(sys, "argv", command)
    assert compare_ptq.main() == 2
    assert "weights and images of rice_panicle" in capsys.readouterr().err


def test_a_venv_without_modelopt_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'No package 벼' >&2\nexit 1\n", encoding="utf-8")
    python.chmod(0o755)
    monkeypatch.setattr(jobs, "python_of", lambda tool: python)
    with pytest.raises(ConfigError, match="without ModelOpt \\(No package 벼\\)"):
        jobs.modelopt_versions()


def never(*_: object) -> NoReturn:
    raise AssertionError("long work before all was checked")


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    """Both networks are there; nothing is measured and no tool is asked."""
    made_there(tmp_path / "data", *(network.name for network in NETWORKS))
    monkeypatch.setattr(compare_ptq, "modelopt_versions", dict)
    monkeypatch.setattr(compare_ptq, "tensorrt_or_note", lambda progress: (None, []))
    monkeypatch.setattr(compare_ptq, "ptq_markdown", lambda record: "")
    return argparse.Namespace(data=tmp_path / "data", only=None, out=tmp_path / "결과.json")


def test_what_cannot_be_written_or_versioned_ends_it_before_the_long_work(
    options: argparse.Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tensorrt_or_note", "measured"):
        monkeypatch.setattr(compare_ptq, name, never)
    (tmp_path / "file").touch()
    for out, said in ((tmp_path / "file" / "a.json", "not a folder"), (tmp_path, "a folder; ")):
        options.out = out
        with pytest.raises(OutputError, match=said):
            compare_ptq.compare(options, SilentProgress())

    def no_modelopt() -> NoReturn:
        raise ConfigError("no venv", expected="one", do="make it")

    monkeypatch.setattr(compare_ptq, "modelopt_versions", no_modelopt)
    options.out = tmp_path / "a.json"
    with pytest.raises(ConfigError, match="no venv"):
        compare_ptq.compare(options, SilentProgress())


def test_what_was_measured_is_kept_when_a_later_network_fails(
    options: argparse.Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    options.out.write_text("older", encoding="utf-8")

    def interrupted(network: Any, *_: object) -> dict[str, Any]:
        if network is NETWORKS[1]:
            raise KeyboardInterrupt
        return {"name": network.name, "checks": []}

    monkeypatch.setattr(compare_ptq, "measured", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compare_ptq.compare(options, SilentProgress())
    kept = json.loads(compare_ptq.part_of(options.out).read_text(encoding="utf-8"))
    assert [network["name"] for network in kept["networks"]] == ["crop_weed"]
    assert options.out.read_text(encoding="utf-8") == "older"


@pytest.mark.parametrize(("passed", "code"), [(True, 0), (False, 1)])
def test_a_whole_comparison_is_one_file_of_strict_json(
    passed: bool, code: int, options: argparse.Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"miou": float("nan"), "drop": float("-inf"), "agreement": 99.5, "벼": (1, 2)}]
    checks = [{"text": "벼", "passed": passed}]
    monkeypatch.setattr(
        compare_ptq, "measured", lambda network, *_: {"name": "n", "rows": rows, "checks": checks}
    )
    assert compare_ptq.compare(options, SilentProgress()) == code
    text = options.out.read_text(encoding="utf-8")
    found = json.loads(text, parse_constant=never)["networks"]
    assert [network["rows"] for network in found] == 2 * [
        [{"miou": None, "drop": None, "agreement": 99.5, "벼": [1, 2]}]
    ]
    assert [path.name for path in options.out.parent.iterdir() if path.is_file()] == ["결과.json"]
