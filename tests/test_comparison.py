"""`riceseg report`: what it prints, what it writes, and the page of several devices."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from engines.errors import OutputError
from engines.reports.merge import merged_markdown, merged_report
from engines.reports.report import write_report_json
from exporter.commands.report import report as command
from exporter.comparison import html_from_merged, write_comparison

PALETTE = [[0, 0, 0], [0, 200, 0], [200, 0, 0]]
ORIN = {"device": "Jetson Orin Nano 현장", "power_mode": "15W"}
CPU = {"cpu": "Xeon"}


def row(form: str, **fields: Any) -> dict[str, Any]:
    return {"form": form, "runtime": "TensorRT 10.3.0", "precision": "fp16", **fields}


def document(machine: dict[str, Any], *rows: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {
        "format": "riceseg-report",
        "format_version": 1,
        "name": "demo",
        "classes": ["배경", "벼", "잡초"],
        "palette": PALETTE,
        "machine": machine,
        "rows": list(rows) or [row("TensorRT FP16", miou=80.0, iou=[95.0, 70.0, None], fps=50.0)],
        **fields,
    }


def text_of(html: str) -> str:
    body = html[html.index("<body>") :]
    return " ".join(re.sub(r"<[^>]+>", " ", body).split())


def run(*arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


# --- the command


def test_the_command_prints_the_table_and_writes_three_files(tmp_path: Path) -> None:
    write_report_json(document(ORIN), tmp_path / "orin")
    write_report_json(document({**ORIN, "power_mode": "25W"}), tmp_path / "orin25")
    out = tmp_path / "비교"
    result = run(tmp_path / "orin", tmp_path / "orin25" / "report.json", "--out", out)
    assert result.exit_code == 0, result.output
    markdown = (out / "comparison.md").read_text(encoding="utf-8")
    assert result.output == f"{markdown}\ncomparison: {out / 'comparison.html'}\n"
    assert "Not comparable as they are" in markdown
    assert "Jetson Orin Nano 현장 · 25W" in markdown
    merged = json.loads((out / "comparison.json").read_bytes())
    assert (merged["format"], merged["format_version"]) == ("riceseg-comparison", 1)
    assert merged_markdown(merged) == markdown
    assert sorted(path.name for path in out.iterdir()) == [
        "comparison.html",
        "comparison.json",
        "comparison.md",
    ]


def test_without_a_folder_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_report_json(document(CPU), tmp_path)
    monkeypatch.chdir(tmp_path)
    result = run("report.json")
    assert result.exit_code == 0
    assert result.output.startswith("| device ")
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_no_report_is_a_usage_error() -> None:
    result = run()
    assert result.exit_code == 2
    assert "Missing argument" in result.output


def test_a_folder_that_cannot_be_written_to_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"comparison\.json"):
        write_comparison(merged_report([document(CPU)]), tmp_path / "file")


# --- the page


def test_the_page_is_well_formed_and_asks_for_nothing_from_elsewhere() -> None:
    html = html_from_merged(merged_report([document(ORIN), document(CPU, row("A", error="no"))]))
    stack: list[str] = []
    links: list[str] = []

    class Walker(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            links.extend(name for name, _ in attrs if name in ("src", "href", "srcset"))
            if tag not in ("meta", "img", "br"):
                stack.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert stack.pop() == tag

    Walker().feed(html)
    assert stack == []
    assert links == []
    assert "<script" not in html
    assert "http" not in html.replace('http-equiv="Content-Security-Policy"', "")
    assert "url(" not in html


def test_names_from_outside_are_text_and_never_markup() -> None:
    hostile = "<script>alert(1)</script>\"'>&{{ 7 * 7 }}"
    everywhere = document(
        {"device": hostile, "power_mode": hostile, hostile: hostile},
        row(hostile, error=hostile, runtime=hostile, power_source=hostile),
        row(hostile, iou=[50.0, 50.0, 50.0]),
        name=hostile,
        created=hostile,
        classes=[hostile] * 3,
        checkpoint={"file": hostile, "sha256": hostile},
        versions={hostile: hostile},
        input_hw=[hostile],
        warnings=[hostile],
        mode=hostile,
    )
    html = html_from_merged(
        merged_report([everywhere, document(CPU, classes=[hostile] * 3)], sources=[hostile, "b"])
    )
    assert "<script" not in html
    assert "\"'>" not in html
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt;&#34;&#39;&gt;&amp;{{ 7 * 7 }}") > 20


def bars(html: str, title: str) -> list[str]:
    """The widths of the bars below a heading, in percent."""
    card = html[html.index(f"<h3>{title}</h3>") :]
    return re.findall(r'<b style="width:([\d.]+)%"', card[: card.index('<div class="card')])


def test_bars_are_as_long_as_the_figures() -> None:
    rows = [
        row("FP32", fps=20.0, miou=80.0),
        row("FP16", fps=50.0, miou=79.0),
        row("INT8", error="no"),
    ]
    html = html_from_merged(
        merged_report([document(ORIN, *rows), document(CPU, row("ONNX", fps=5.0, miou=0.0))])
    )
    # The fastest, 50 fps, is the whole length; mIoU goes from 0 to 100.
    assert bars(html, "Images per second") == ["40.00", "100.00", "10.00"]
    mious = re.findall(r'<b style="width:([\d.]+)%"', html[html.index("<h3>mIoU %</h3>") :])
    assert mious == ["80.00", "79.00", "0.00"]
    assert "INT8 failed" in text_of(html)


def test_the_page_shows_warnings_groups_and_what_was_not_measured() -> None:
    first = document(ORIN, row("TensorRT FP16", miou=80.0, power_w=9.5, power_source="VDD_IN"))
    second = document({**ORIN, "power_mode": "25W"}, row("TensorRT FP16", error="no memory"))
    text = text_of(html_from_merged(merged_report([first, second], sources=["a", "b"])))
    assert "Not comparable as they are" in text
    assert "power mode: 15W against 25W" in text
    assert "Jetson Orin Nano 현장 15W TensorRT FP16 TensorRT 10.3.0 · fp16 80.00 –" in text
    assert "9.50" in text
    assert "현장 25W TensorRT FP16 TensorRT 10.3.0 · fp16 failed – not measured" in text
    assert "TensorRT FP16: no memory" in text
    assert "Power was read from: Jetson Orin Nano 현장 · 15W: VDD_IN." in text


def test_reports_of_the_same_device_and_mode_are_told_apart_by_their_path() -> None:
    merged = merged_report([document(ORIN), document(ORIN)], sources=["before", "after"])
    text = text_of(html_from_merged(merged))
    assert "TensorRT 10.3.0 · fp16 before 80.00" in text
    assert "TensorRT 10.3.0 · fp16 after 80.00" in text


def test_the_iou_of_each_class_stands_beside_that_of_the_other_devices() -> None:
    other = document(CPU, row("ONNX", miou=78.0, iou=[94.0, None, 62.25]), row("unscored"))
    html = html_from_merged(merged_report([document(ORIN), other]))
    table = html[html.index('<table class="iou">') :]
    lines = [text_of(f"<body>{line}") for line in table[: table.index("</table>")].split("<tr")[1:]]
    cells = [line.partition("> ")[2] for line in lines]
    assert cells == [
        "Class TensorRT FP16 Jetson Orin Nano 현장 · 15W ONNX Xeon",
        "배경 95.00 94.00",
        "벼 70.00 not measured",
        "잡초 not measured 62.25",
    ]


def test_without_scores_there_is_no_class_table() -> None:
    nameless = document(CPU, row("A", fps=1.0), classes=[], palette=[])
    html = html_from_merged(merged_report([nameless]))
    assert "IoU per class" not in html
    assert "3 classes" not in html
