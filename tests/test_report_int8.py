"""The parts of a report about INT8: how the precision was chosen, techniques, sensitivity."""

from __future__ import annotations

import io
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from rich.table import Table

from engines.errors import BundleError
from exporter.commands.show import show_report
from exporter.int8_tables import search_line, search_table, sensitivity_table, techniques_table
from exporter.report import report_from_file, write_report
from tests.test_report import page, report, text_of


def trial(rung: str, **fields: Any) -> dict[str, Any]:
    return {"rung": rung, **fields}


def search(**fields: Any) -> dict[str, Any]:
    trials = [
        trial("every layer", precision="int8", float_groups=[], miou=69.1, drop=0.9,
              agreement=99.2, int8_percent=100.0, passed=False, seconds=31.25),
        trial("without 잔차", precision="int8", float_groups=["ffn_fc2", "잔차"], miou=69.8,
              drop=0.2, agreement=99.75, int8_percent=84.0, passed=True, seconds=62.0),
        trial("FP16"),
    ]  # fmt: skip
    chosen = {"max_drop": 0.5, "reference_miou": 70.0, "chosen": "without 잔차", "seconds": 93.4}
    order = [{"name": "ffn_fc2", "nodes": ["/fc2"], "sqnr_db": 36.71}, {"name": "잔차"}]
    return {**chosen, "trials": trials, "order": order, **fields}


def group(name: str, **fields: Any) -> dict[str, Any]:
    values = {
        "title": name.upper(), "nodes": 4, "macs_percent": 25.0, "miou_drop": 0.2, "sqnr_db": 40.0,
        "agreement": 99.9, "weight_max": 1.5, "weight_outlier_percent": 0.25,
        "activation_low": -2.5, "activation_high": 12345.0, "clip": 10.0, "outlier_percent": 0.125,
    }  # fmt: skip
    return {"name": name, **values, **fields}


def sensitivity(*groups: dict[str, Any], **fields: Any) -> dict[str, Any]:
    values = {
        "images": 64, "error_images": 8, "val_images": 16, "method": "mse", "reference_miou": 70.0,
        "file": "model.onnx", "sha256": "ab" * 32,
    }  # fmt: skip
    return {**values, "groups": list(groups) or [group("q")], **fields}


def techniques(**fields: Any) -> dict[str, Any]:
    rows = [
        {"name": "균등화", "used": True, "sqnr_db": 31.5, "sqnr_db_without": 30.0,
         "agreement": 99.7, "agreement_without": 99.65, "seconds": 12.0},
        {"name": "bias correction", "used": False, "sqnr_db": 29.75, "sqnr_db_without": 30.0},
    ]  # fmt: skip
    return {"images": 32, "rows": rows, **fields}


def written(folder: Path, **sections: Any) -> str:
    write_report(report(**sections), folder)
    return page(folder)


def plot_of(html: str) -> str:
    start = html.index('<div class="costs">')
    return html[start : html.index("<table", start)]


def shown(table: Table) -> list[str]:
    console = Console(file=io.StringIO(), width=80)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return [" ".join(line.split()) for line in console.file.getvalue().splitlines()]


# --- report.json


def test_a_report_without_the_sections_has_none_of_them(tmp_path: Path) -> None:
    html = written(tmp_path)
    back = report_from_file(tmp_path / "report.json")
    assert back["precision_search"] is back["techniques"] is back["sensitivity"] is None
    text = text_of(html)
    for heading in ("How the precision", "What each technique", "What INT8 costs"):
        assert heading not in text


def test_missing_fields_become_none_and_nan_too(tmp_path: Path) -> None:
    write_report(
        report(
            precision_search={"trials": [trial("all", drop=math.nan, miou=np.float32(70.5))]},
            techniques={},
            sensitivity={"groups": [{"name": "q"}]},
        ),
        tmp_path,
    )
    back = report_from_file(tmp_path / "report.json")
    (tried,) = back["precision_search"]["trials"]
    assert (tried["drop"], tried["miou"], tried["float_groups"]) == (None, 70.5, [])
    assert back["precision_search"]["chosen"] is None
    assert back["techniques"] == {"images": None, "rows": []}
    assert back["sensitivity"]["groups"][0]["sqnr_db"] is None
    assert "not measured" in text_of(page(tmp_path))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"sensitivity": []}, r"\[\] as report\.sensitivity .*an object"),
        ({"sensitivity": {"images": -1}}, r"-1 as sensitivity\.images .*a count"),
        ({"sensitivity": {"images": True}}, r"True as sensitivity\.images .*a count"),
        ({"sensitivity": {"reference_miou": 101}}, r"reference_miou .*from 0 to 100"),
        ({"sensitivity": {"groups": {}}}, r"\{\} as sensitivity\.groups .*a list"),
        ({"sensitivity": {"groups": [1]}}, r"1 as sensitivity\.groups\[0\] .*an object"),
        ({"sensitivity": {"groups": [{}]}}, r"None as sensitivity\.groups\[0\]\.name .*a text"),
        ({"sensitivity": {"groups": [{"name": ""}]}}, r"'' as .*name .*1 to 300 characters"),
        ({"sensitivity": {"groups": [{"name": "x" * 301}]}}, r"name .*1 to 300 characters"),
        ({"sensitivity": {"groups": [group("q", clip=-1)]}}, r"-1 as .*clip .*none below 0"),
        ({"sensitivity": {"groups": [group("q", sqnr_db="40")]}}, r"'40' as .*sqnr_db"),
        ({"sensitivity": {"groups": [group("q", miou_drop=1e300)]}}, r"1e\+300 as .*miou_drop"),
        ({"sensitivity": {"groups": [group("q")] * 1001}}, r"1001 as sensitivity\.groups"),
        ({"precision_search": {"trials": [{}]}}, r"precision_search\.trials\[0\]\.rung"),
        ({"precision_search": {"chosen": 3}}, r"3 as precision_search\.chosen"),
        ({"precision_search": {"trials": [trial("a", passed=1)]}}, r"1 as .*passed .*a flag"),
        ({"precision_search": {"trials": [trial("a", float_groups="q")]}}, r"'q' as .*a list"),
        ({"precision_search": {"trials": [trial("a", float_groups=[1])]}}, r"float_groups .*names"),
        ({"precision_search": {"order": [{"sqnr_db": 1}]}}, r"order\[0\]\.name .*a text"),
        ({"precision_search": {"order": [{"name": "a", "nodes": [[]]}]}}, r"nodes .*names"),
        ({"precision_search": {"seconds": -1}}, r"-1 as precision_search\.seconds"),
        ({"techniques": {"rows": [{"name": 1}]}}, r"1 as techniques\.rows\[0\]\.name"),
        ({"techniques": {"rows": [{"name": "a", "used": "no"}]}}, r"'no' as .*used .*a flag"),
    ],
)
def test_what_does_not_fit_is_refused_by_writer_and_reader(
    tmp_path: Path, sections: dict[str, Any], message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        write_report(report(**sections), tmp_path)
    assert list(tmp_path.iterdir()) == []
    file = tmp_path / "report.json"
    file.write_text(json.dumps(report(**sections)), encoding="utf-8")
    with pytest.raises(BundleError, match=message):
        report_from_file(file)


# --- report.html


def test_the_page_shows_the_ladder_and_which_rung_was_chosen(tmp_path: Path) -> None:
    html = written(tmp_path, precision_search=search())
    text = text_of(html)
    assert "Chosen: without 잔차 . At most 0.50 points of mIoU may be lost of 70.00" in text
    assert "3 trials in 1 min 33 s" in text
    assert "every layer int8 – 69.10 +0.90 99.20 100.0 31.2 s ✗ no" in text
    assert "without 잔차 int8 ffn_fc2, 잔차 69.80 +0.20 99.75 84.0 1 min 02 s ✓ yes" in text
    assert "order they leave it in: ffn_fc2 36.7 dB, 잔차 not measured." in text
    assert "FP16 – " + " ".join(["not measured"] * 6) in text
    assert html.count("<strong>without 잔차</strong>") == 2  # in the sentence and in the table


def test_the_page_shows_a_search_that_found_nothing(tmp_path: Path) -> None:
    text = text_of(written(tmp_path, precision_search=search(chosen=None, trials=[])))
    assert "No rung was chosen. At most 0.50 points" in text


def test_the_page_shows_what_each_technique_brought(tmp_path: Path) -> None:
    text = text_of(written(tmp_path, techniques=techniques()))
    assert "on 32 images" in text
    assert "균등화 yes 31.50 30.00 +1.50 99.700 99.650 12.0 s" in text
    assert "bias correction no 29.75 30.00 −0.25 not measured not measured not measured" in text


def test_bars_compare_the_groups_and_the_worst_comes_first(tmp_path: Path) -> None:
    groups = (
        group("gain", miou_drop=-0.3, sqnr_db=60.0, macs_percent=10.0),
        group("half", miou_drop=0.25, sqnr_db=46.0206, macs_percent=20.0),
        group("worst", miou_drop=0.5, sqnr_db=40.0, macs_percent=70.0),
        group("none", miou_drop=None, sqnr_db=None, macs_percent=None),
    )
    html = written(tmp_path, sensitivity=sensitivity(*groups))
    plot = plot_of(html)
    assert re.findall(r"<div>([A-Z]+)</div>", plot) == ["WORST", "HALF", "GAIN", "NONE"]
    # 6.02 dB more is half of the error, 20 dB a tenth; the share of the MACs is what it is.
    widths = [float(width) for width in re.findall(r"width:([\d.]+)%", plot)]
    assert widths == [100, 100, 70, 50, 50, 20, 0, 10, 10]
    values = re.findall(r'class="value">([^<]*)<', plot)
    assert values[:3] == ["0.500 points", "40.0 dB", "70.0 % of MACs"]
    assert values[6] == "−0.300 points"
    assert values[9:] == ["not measured"] * 3


def test_a_loss_that_nobody_would_notice_has_no_long_bar(tmp_path: Path) -> None:
    html = written(tmp_path, sensitivity=sensitivity(group("q", miou_drop=0.01)))
    plot = plot_of(html)
    assert re.findall(r"width:([\d.]+)%", plot)[0] == "10.00"


def test_the_table_of_groups_has_ranges_and_says_what_it_was_measured_on(tmp_path: Path) -> None:
    groups = (group("q"), group("잔차", weight_max=None, weight_outlier_percent=None))
    text = text_of(written(tmp_path, sensitivity=sensitivity(*groups)))
    figures = "4 25.0 0.200 40.0 99.900"
    assert f"Q q {figures} 1.5 0.250 −2.5 … 1.23e+04 10 0.125" in text
    assert f"잔차 잔차 {figures} – – −2.5 … 1.23e+04 10 0.125" in text
    assert (
        "Of model.onnx, SHA-256 abababababab. mIoU on 16 validation images, 70.00 in FP32. SQNR "
        "and equal pixels on 8 validation images. Ranges (mse) from 64 calibration images."
    ) in text


def test_without_validation_images_there_is_no_bar_for_miou(tmp_path: Path) -> None:
    section = sensitivity(group("q", miou_drop=None), reference_miou=None, val_images=0)
    html = written(tmp_path, sensitivity=section)
    plot = plot_of(html)
    assert re.findall(r'class="value">([^<]*)<', plot) == ["40.0 dB", "25.0 % of MACs"]
    assert "mIoU was not measured" in text_of(html)


def test_names_from_outside_are_text_and_never_markup(tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script>\"'>&{{ 7 * 7 }}"
    html = written(
        tmp_path,
        precision_search=search(
            chosen=hostile,
            trials=[trial(hostile, precision=hostile, float_groups=[hostile], error=hostile)],
            order=[{"name": hostile}],
        ),
        techniques={"rows": [{"name": hostile}]},
        sensitivity=sensitivity(
            group(hostile, title=hostile), file=hostile, sha256=hostile, method=hostile
        ),
    )
    assert "<script" not in html
    assert "\"'>" not in html
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt;&#34;&#39;&gt;&amp;{{ 7 * 7 }}") >= 11


def test_a_hostile_report_cannot_move_the_place_of_the_sensitivity(tmp_path: Path) -> None:
    html = written(tmp_path, name="<!-- sensitivity -->", warnings=["<!-- end of sensitivity -->"])
    assert html.count("<!-- sensitivity -->") == html.count("<!-- end of sensitivity -->") == 1


@pytest.mark.parametrize("value", [-1e15, -150.0, 0.0, 150.0, 1e15])
def test_any_number_makes_a_page(tmp_path: Path, value: float) -> None:
    section = sensitivity(group("q", sqnr_db=value, miou_drop=value, activation_low=value))
    html = written(tmp_path, sensitivity=section)
    assert all(float(width) <= 100 for width in re.findall(r"width:([\d.e+]+)%", html))


# --- the terminal


def test_the_terminal_shows_the_search(tmp_path: Path) -> None:
    section = search()
    section["trials"].append(trial("FP32", error="no [room]"))
    written(tmp_path, precision_search=section)
    read = report_from_file(tmp_path / "report.json")["precision_search"]
    assert shown(search_table(read)) == [
        "equal INT8",
        "trial mIoU lost % % time within",
        "every layer 69.10 0.90 99.20 100.0 31.2 s no",
        "without 잔차 69.80 0.20 99.75 84.0 1 min 02 s yes",
        "ffn_fc2, 잔차",
        "FP16 n/m n/m n/m n/m n/m n/m",
        "FP32 n/m n/m n/m n/m n/m n/m",
        "no [room]",
    ]
    assert search_line(read) == (
        "precision: without 잔차, 4 trials in 1 min 33 s, limit 0.50 mIoU points"
    )


def test_the_terminal_shows_techniques_and_groups() -> None:
    section = techniques()
    section["rows"][1] |= dict.fromkeys(("agreement", "agreement_without", "seconds"))
    assert shown(techniques_table(section))[2:] == [
        "균등화 yes 31.50 30.00 99.700 99.650 12.0 s",
        "bias correction no 29.75 30.00 n/m n/m n/m",
    ]
    groups = (group("q"), group("잔차", weight_max=None, miou_drop=-0.0001))
    assert shown(sensitivity_table(sensitivity(*groups)))[2:] == [
        "q 25.0 0.200 40.0 99.90 1.5 -2.5..1.23e+04 10 0.125",
        "잔차 25.0 0.000 40.0 99.90 – -2.5..1.23e+04 10 0.125",
    ]


def test_control_characters_do_not_reach_the_terminal() -> None:
    lines = shown(sensitivity_table(sensitivity(group("q\x1b[31m[bold]"))))
    assert lines[2].startswith("q?[31m[bold] ")


def test_what_an_export_shows_includes_search_and_techniques(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show_report({**report(precision_search=search(), techniques=techniques()), "gate": None}, None)
    out = capsys.readouterr().out
    assert out.index("every layer") < out.index("precision: without 잔차") < out.index("균등화")
