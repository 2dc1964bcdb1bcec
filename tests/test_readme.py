"""The commands of both READMEs run; the table is the one of the committed report."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import rasterio

from exporter.report import report_from_file, table_markdown
from tests.five_band_scenes import write_data_set, write_scene
from tests.tiny_segformer import write_checkpoint

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
KOREAN = (ROOT / "README.ko.md").read_text(encoding="utf-8")
RICE_CLASSES = ("background", "normal", "doyeol", "dobok", "gyulju", "bujin")


def blocks_of(text: str) -> list[tuple[str, str]]:
    """(language, code) of what is to be run."""
    return re.findall(r"^```(bash|python)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


BLOCKS, KOREAN_BLOCKS = blocks_of(README), blocks_of(KOREAN)


def numbered(blocks: list[tuple[str, str]]) -> list[str]:
    return [f"{i}-{block[0]}" for i, block in enumerate(blocks)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's data and what `rice_place` has; the blocks run in it one after the other."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "demo").symlink_to(ROOT / "demo")
    write_rice(folder)
    return folder


@pytest.fixture(scope="module")
def rice_place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rice")
    write_rice(folder)
    return folder


def write_rice(folder: Path) -> None:
    """What both speak of: zips in raw/, best.pth, scenes/ and field.tif."""
    write_data_set(folder / "raw", 40, zipped=True, hw=(64, 80))
    write_checkpoint(folder / "best.pth", classes=RICE_CLASSES)
    bands = write_scene(folder / "scenes", 300).bands
    height, width = bands["R"].shape
    with rasterio.open(
        folder / "field.tif", "w", driver="GTiff", height=height, width=width, count=5,
        dtype="float32", nodata=-10000.0, crs="EPSG:5186",
        transform=rasterio.Affine(0.05, 0, 200_000, 0, -0.05, 500_000),
    ) as field:  # fmt: skip
        for number, letter in enumerate("BGRNE", start=1):
            field.write(bands[letter], number)


def run(place: Path, language: str, code: str) -> subprocess.CompletedProcess[str]:
    scripts = str(Path(sys.executable).parent)
    environment = {
        **os.environ,
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
        "PYTHONWARNINGS": "error::DeprecationWarning:engines",
    }
    command = ["bash", "-euc", code] if language == "bash" else [sys.executable, "-c", code]
    return subprocess.run(
        command, cwd=place, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(("language", "code"), BLOCKS, ids=numbered(BLOCKS))
def test_a_block_of_the_readme_runs(place: Path, language: str, code: str) -> None:
    done = run(place, language, code)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("language", "code"), KOREAN_BLOCKS, ids=numbered(KOREAN_BLOCKS))
def test_a_block_of_the_korean_readme_runs(rice_place: Path, language: str, code: str) -> None:
    done = run(rice_place, language, code)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_korean_readme_leaves_the_files_that_it_speaks_of(rice_place: Path) -> None:
    if not (rice_place / "build").exists():
        pytest.skip("its blocks were not run")
    expected = [
        *(f"data/images/{part}" for part in ("train", "val", "test")),
        *(f"data/{name}" for name in ("classes.txt", "split.csv", "balance.csv", "sheet.png")),
        *(f"build/rice/{name}" for name in ("model.int8.onnx", "report.html")),
        "build/masks/labels/R20220726A12R0300.png",
        *(f"build/labels.{suffix}" for suffix in ("tif", "csv", "png", "geojson")),
    ]
    assert [path for path in expected if not (rice_place / path).exists()] == []


@pytest.mark.parametrize("blocks", [BLOCKS, KOREAN_BLOCKS], ids=["README", "README.ko"])
def test_a_readme_has_blocks_of_both_kinds(blocks: list[tuple[str, str]]) -> None:
    assert {language for language, _ in blocks} == {"bash", "python"}


def test_the_demo_table_is_the_one_of_the_committed_report() -> None:
    table = table_markdown(report_from_file(ROOT / "docs" / "results" / "demo.json")).strip()
    assert f"<!-- demo table -->\n{table}\n<!-- end of demo table -->" in README


@pytest.mark.parametrize("text", [README, KOREAN], ids=["README", "README.ko"])
def test_every_file_that_a_readme_links_to_exists(text: str) -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if "://" not in link]
    assert len(links) >= 5
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_heading_that_the_korean_readme_links_to_exists() -> None:
    headings = re.findall(r"^#+ (.+)$", README, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    links = re.findall(r"\]\(README\.md#([^)]+)\)", KOREAN)
    assert links
    assert set(links) <= anchors
