"""report.json, report.html and the table: what is written, what is refused, what is escaped."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engines.errors import BundleError, InputError, OutputError
from exporter.report import (
    Strip,
    overlay,
    report_from_file,
    strip_panels,
    table_markdown,
    write_report,
)

PALETTE = [[0, 0, 0], [0, 200, 0], [200, 0, 0]]


def row(form: str, **fields: Any) -> dict[str, Any]:
    return {"form": form, **fields}


def measured_row(form: str, miou: float, p50_ms: float, file_mb: float) -> dict[str, Any]:
    return row(
        form,
        precision="FP32",
        runtime="ONNX Runtime",
        file="model.onnx",
        sha256="ab" * 32,
        miou=miou,
        macc=80.0,
        aacc=90.0,
        iou=[95.0, miou, None],
        acc=[97.0, 85.0, None],
        agreement=99.5,
        latency_p50_ms=p50_ms,
        latency_p95_ms=p50_ms * 1.5,
        fps=1000 / p50_ms,
        peak_memory_mb=300.4,
        file_mb=file_mb,
        batch=1,
        warmup=5,
        runs=30,
        threads=2,
        error=None,
    )


def report(*rows: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {
        "format": "riceseg-report",
        "format_version": 1,
        "name": "demo",
        "classes": ["soil", "crop", "weed"],
        "palette": PALETTE,
        "rows": list(rows) or [measured_row("PyTorch FP32", 70.0, 40.0, 15.2)],
        **fields,
    }


def page(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


def text_of(html: str) -> str:
    """What a reader sees: the text of the page's body with single spaces."""
    body = html[html.index("<body>") :]
    return " ".join(re.sub(r"<[^>]+>", " ", body).split())


def picture_from_uri(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1])))


# --- report.json


def test_a_written_report_is_read_back_with_every_field_of_the_format(tmp_path: Path) -> None:
    write_report(report(name="벼"), tmp_path / "new" / "folder")
    back = report_from_file(tmp_path / "new" / "folder" / "report.json")
    assert back["name"] == "벼"
    assert back["rows"][0]["miou"] == 70.0
    assert back["gate"] is None
    assert back["warnings"] == []
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == [
        "report.html",
        "report.json",
    ]


def test_numbers_of_numpy_are_written_and_nan_becomes_null(tmp_path: Path) -> None:
    fields = {"miou": np.float32(70.5), "iou": (np.float64("nan"), np.float64(60), float("inf"))}
    write_report(report(row("A", runs=np.int64(30), **fields)), tmp_path)
    (written,) = json.loads((tmp_path / "report.json").read_bytes())["rows"]
    assert (written["miou"], written["runs"]) == (70.5, 30)
    assert written["iou"] == [None, 60.0, None]


def test_the_reports_mapping_is_left_as_it_was(tmp_path: Path) -> None:
    given = report(row("A"))
    write_report(given, tmp_path)
    assert given == report(row("A"))


def test_a_file_name_that_is_not_utf8_does_not_stop_the_report(tmp_path: Path) -> None:
    write_report(report(worst=[{"image": "photo\udcff.jpg", "agreement": 90.0}]), tmp_path)
    assert report_from_file(tmp_path / "report.json")["worst"][0]["image"] == "photo\udcff.jpg"
    assert "photo\\udcff.jpg" in page(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, r"'other', 1\) as format .*riceseg-report version 1"),
        ({"format_version": 2}, r"\('riceseg-report', 2\) as format"),
        ({"rows": []}, r"\[\] as rows .*at least one row"),
        ({"rows": ["PyTorch"]}, r"'PyTorch' as rows\[0\] .*an object"),
        ({"rows": [{}]}, r"None as rows\[0\]\.form .*a name"),
        ({"rows": [row("A", miou="70")]}, r"'70' as rows\[0\]\.miou .*a number or null"),
        ({"rows": [row("A", miou=True)]}, r"True as rows\[0\]\.miou .*a number or null"),
        ({"rows": [row("A", miou=10**400)]}, r"as rows\[0\]\.miou .*a number or null"),
        ({"rows": [row("A", runs=1.5)]}, r"1.5 as rows\[0\]\.runs .*a count or null"),
        ({"rows": [row("A", runs=-1)]}, r"-1 as rows\[0\]\.runs .*a count or null"),
        ({"rows": [row("A", iou=[])]}, r"\[\] as rows\[0\]\.iou .*3 numbers or nulls"),
        ({"rows": [row("A", iou=[1, 2, "x"])]}, r"rows\[0\]\.iou .*3 numbers or nulls"),
        ({"classes": ["soil"]}, r"as palette .*one \[red, green, blue\] of 0 to 255 per class"),
        ({"classes": [1, 2, 3]}, r"\[1, 2, 3\] as classes"),
        ({"palette": [[0, 0, 0], [0, 0, 256], [1, 2, 3]]}, r"as palette"),
        ({"palette": ["red;}", "a", "b"]}, r"as palette"),
        ({"gate": {"max_drop": 1.0}}, r"None as gate\.passed .*true or false"),
        ({"gate": {"passed": True, "lost": [{"drop": "x"}]}}, r"'x' as gate\.lost\.drop"),
        ({"data": {"images": "16"}}, r"'16' as data\.images .*a count or null"),
        ({"calibration": {"list": ["a.jpg"]}}, r"'a.jpg' as calibration\.list .*an object"),
        ({"machine": "laptop"}, r"'laptop' as report\.machine .*an object or null"),
        ({"warnings": [1]}, r"\[1\] as warnings"),
        ({"worst": [{"agreement": "low"}]}, r"'low' as worst\.agreement"),
    ],
)
def test_what_does_not_fit_the_format_is_refused_by_writer_and_reader(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        write_report({**report(), **change}, tmp_path)
    assert list(tmp_path.iterdir()) == []
    file = tmp_path / "report.json"
    file.write_text(json.dumps({**report(), **change}), encoding="utf-8")
    with pytest.raises(BundleError, match=message):
        report_from_file(file)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\xfa", b"[" * 100_000, b"[1]", b"null"])
def test_a_file_that_is_no_report_is_a_bundle_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "report.json").write_bytes(content)
    with pytest.raises(BundleError, match=r"evaluate the model again"):
        report_from_file(tmp_path / "report.json")


def test_a_missing_report_is_a_bundle_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"report\.json .*No such file"):
        report_from_file(tmp_path / "report.json")


def test_a_value_that_json_cannot_hold_is_a_bug_of_the_caller(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="no place in a report for ndarray"):
        write_report(report(parity={"logits": np.zeros(3)}), tmp_path)


def test_a_folder_that_cannot_be_written_to_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"report\.json"):
        write_report(report(), tmp_path / "file")


# --- the table


def test_the_table_compares_with_the_first_row_and_keeps_failures_visible() -> None:
    table = table_markdown(
        report(
            measured_row("PyTorch FP32", 70.0, 40.0, 15.2),
            measured_row("INT8", 69.123, 80.0, 4.0),
            row("TensorRT | INT8", error="no GPU\nhere"),
        )
    )
    assert table == (
        "| form | mIoU | change | mAcc | aAcc | equal % | p50 ms | p95 ms | fps | memory MB"
        " | file MB |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
        "| PyTorch FP32 | 70.00 | – | 80.00 | 90.00 | 99.50 | 40.0 | 60.0 | 25.0 | 300 | 15.2 |\n"
        "| INT8 | 69.12 | -0.88 | 80.00 | 90.00 | 99.50 | 80.0 | 120.0 | 12.5 | 300 | 4.0 |\n"
        "| TensorRT \\| INT8 | failed" + " | not measured" * 9 + " |\n"
        "\nTensorRT \\| INT8: no GPU here\n"
    )


def test_a_change_below_what_is_shown_has_no_minus_sign() -> None:
    table = table_markdown(report(row("A", miou=70.0), row("B", miou=69.999)))
    assert "| B | 70.00 | +0.00 |" in table


# --- report.html


def test_the_page_is_well_formed_and_asks_for_nothing_from_elsewhere(tmp_path: Path) -> None:
    picture = np.zeros((8, 8, 3), np.uint8)
    write_report(report(), tmp_path, strips=[Strip("a.jpg", 99.0, [("Image", picture)])])
    html = page(tmp_path)
    stack: list[str] = []
    links: list[str | None] = []

    class Walker(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            links.extend(value for name, value in attrs if name in ("src", "href", "srcset"))
            if tag not in ("meta", "img", "br"):
                stack.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert stack.pop() == tag

    Walker().feed(html)
    assert stack == []
    assert [str(link)[:11] for link in links] == ["data:image/"]
    assert "<script" not in html
    assert "http" not in html.replace('http-equiv="Content-Security-Policy"', "")
    assert "url(" not in html


def test_names_from_outside_are_text_and_never_markup(tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script>\"'>&{{ 7 * 7 }}"
    everywhere = report(
        measured_row(hostile, 70.0, 40.0, 15.2),
        row(hostile, error=hostile, runtime=hostile, file=hostile, sha256=hostile),
        name=hostile,
        created=hostile,
        checkpoint={"file": hostile, "sha256": hostile},
        machine={hostile: hostile},
        versions={"torch": hostile},
        data={"folder": hostile, "images": 1, "skipped": [hostile]},
        input_hw=[hostile],
        classes=[hostile] * 3,
        gate={"max_drop": 1, "drop": 2, "passed": False, "lost": [{"class": hostile, "drop": 1}]},
        calibration={
            "method": hostile,
            "images": 1,
            "list": [{"file": hostile, "sha256": hostile}],
        },
        parity={hostile: [hostile]},
        warnings=[hostile],
    )
    picture = np.zeros((8, 8, 3), np.uint8)
    write_report(everywhere, tmp_path, strips=[Strip(hostile, 99.0, [(hostile, picture)])])
    html = page(tmp_path)
    assert "<script" not in html
    assert "\"'>" not in html
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt;&#34;&#39;&gt;&amp;{{ 7 * 7 }}") > 25


@pytest.mark.parametrize(
    ("gate", "banner"),
    [
        (None, "No gate was set"),
        (
            {"max_drop": 1.0, "drop": 0.125, "passed": True, "lost": []},
            "Gate passed mIoU drop 0.12, limit 1.00",
        ),
        (
            {"max_drop": 1.0, "drop": 2.5, "passed": False, "lost": [{"class": "벼", "drop": 9}]},
            "Gate failed mIoU drop 2.50, limit 1.00 (percentage points). 벼: 9.00 points lost",
        ),
        (
            {"max_drop": 1.0, "drop": None, "passed": False, "lost": []},
            "Gate failed mIoU drop not measured , limit 1.00",
        ),
    ],
)
def test_the_banner_says_how_the_gate_went(
    tmp_path: Path, gate: dict[str, Any] | None, banner: str
) -> None:
    write_report(report(gate=gate), tmp_path)
    assert banner in text_of(page(tmp_path))


def test_the_page_shows_what_was_measured_and_what_was_not(tmp_path: Path) -> None:
    write_report(
        report(
            measured_row("PyTorch FP32", 70.0, 40.0, 16.0),
            measured_row("INT8", 69.0, 80.0, 4.0),
            row("TensorRT INT8", error="no GPU here"),
            warnings=["INT8 is slower here"],
            calibration={"method": "percentile", "images": 2, "list": [{"file": "a.jpg"}]},
            parity={"max_abs_logit": 2.5e-6, "equal_pixels": {"share": 100.0}, "passed": True},
        ),
        tmp_path,
    )
    text = text_of(page(tmp_path))
    assert "INT8 beside PyTorch FP32" in text
    assert "69.00 (−1.00)" in text
    assert "2.0× slower" in text
    assert "4.0× smaller" in text
    assert "TensorRT INT8 failed not measured" in text
    assert "TensorRT INT8: no GPU here" in text
    assert "1 warning INT8 is slower here" in text
    assert "method percentile images 2" in text
    assert "max abs logit 2.5e-06 equal pixels: share 100 passed yes" in text
    assert "Batch Warm-up Runs Threads File PyTorch FP32 1 5 30 2 model.onnx" in text


def test_the_page_shows_what_a_board_tells(tmp_path: Path) -> None:
    figures = {
        "latency_p99_ms": 44.04, "copy_in_ms": 1.0, "compute_ms": 8.0, "copy_out_ms": 1.0,
        "power_w": 9.5, "power_source": "VDD_IN (ina3221)", "throttled": True,
        "notes": ["no CUDA graph: pycuda"], "fusion": {"layer_norms": {"fused": 16}},
    }  # fmt: skip
    rows = [{**measured_row("TensorRT FP16", 70.0, 10.0, 9.0), **figures}, row("TensorRT INT8")]
    write_report(report(*rows), tmp_path)
    html, text = page(tmp_path), text_of(page(tmp_path))
    assert "p95 ms p99 ms fps" in text
    assert "15.0 44.0 100.0" in text
    table = text[text.index("On the device") : text.index("Where the time goes")]
    assert "copy in ms compute ms copy out ms W throttled" in table
    assert "TensorRT FP16 1.00 8.00 1.00 9.50 yes" in table
    assert "TensorRT INT8 not measured" in table
    parts = html[html.index("Where the time goes") :]
    assert re.findall(r'<span style="width:([\d.]+)%', parts) == ["10.00", "80.00", "10.00"]
    assert "Layers of TensorRT FP16 layer norms: fused 16" in text
    assert "TensorRT FP16: no CUDA graph: pycuda" in text
    assert "Power of TensorRT FP16: VDD_IN (ina3221)" in text


def test_the_page_shows_what_fused_and_the_slowest_layers(tmp_path: Path) -> None:
    fusion = {
        "layers": 197,
        "attention": {"found": 8, "fused": 6},
        "layer_norms": {"found": 30, "fused": None},
        "reformats": {"count": 12, "time_ms": 0.41, "percent": 6.125},
        "slowest": [
            {"name": "_gemm_mha_v2_myl0_4", "layer": "net.attn", "ms": 0.25},
            {"name": "<b>", "layer": None, "ms": 0.125},
            {"name": "no time"},
            "no layer",
        ],
        "notes": ["<i>one</i>", "two"],
    }
    engine = {**measured_row("TensorRT FP16", 70.0, 10.0, 9.0), "fusion": fusion}
    odd = {**measured_row("TensorRT INT8", 70.0, 10.0, 9.0), "fusion": {"slowest": 3}}
    write_report(report(engine, odd), tmp_path)
    html, text = page(tmp_path), text_of(page(tmp_path))
    assert (
        "Layers of TensorRT FP16 fused 6 of 8 attention blocks fused, how many of 30 LayerNorms "
        "fused is not told, 12 reformat layers (0.41 ms, 6 %) layers 197"
    ) in text
    assert "layer norms: fused not recorded" in text
    assert "reformats: time ms 0.41 reformats: percent 6.125" in text
    assert "note &lt;i&gt;one&lt;/i&gt; note two" in text
    assert "0.250 net.attn _gemm_mha_v2_myl0_4 0.125 – &lt;b&gt;" in text
    assert html.count("The slowest layers") == 1
    assert "no layer" not in text


def test_the_page_of_a_report_without_a_board_has_no_empty_part_for_it(tmp_path: Path) -> None:
    write_report(report(), tmp_path)
    text = text_of(page(tmp_path))
    assert "On the device" not in text
    assert "Where the time goes" not in text
    assert "p99" not in text


def test_bars_have_the_class_colour_and_the_length_of_the_iou(tmp_path: Path) -> None:
    write_report(report(measured_row("PyTorch FP32", 70.0, 40.0, 15.2)), tmp_path)
    cards = re.findall(
        r'<div class="class" style="--c:(rgb\([\d,]+\))">(.*?)</div>\s*</div>', page(tmp_path), re.S
    )
    assert [colour for colour, _ in cards] == ["rgb(0,0,0)", "rgb(0,200,0)", "rgb(200,0,0)"]
    assert [re.findall(r"width:([\d.]+)%", card) for _, card in cards] == [["95.00"], ["70.00"], []]
    assert "not measured" in cards[2][1]


@pytest.mark.parametrize("count", [0, 1, 2, 24, 25, 150])
def test_any_number_of_classes_makes_a_page(tmp_path: Path, count: int) -> None:
    names = [f"class {i}" for i in range(count)]
    iou = [50.0] * count
    lower = [50.0 - i / 10 for i in range(count)]
    rows = [row("A", miou=50.0, iou=iou), row("B", iou=lower), row("C", error="failed")]
    write_report(report(*rows, classes=names, palette=[[1, 2, 3]] * count), tmp_path)
    html = page(tmp_path)
    shown = re.findall(r'<h3><i class="swatch"></i>(class \d+)</h3>', html)
    if count > 24:
        assert shown[:12] == [f"class {count - 1 - i}" for i in range(12)]
        assert shown[12:] == names
    else:
        assert shown == names


# --- pictures


def test_an_overlay_mixes_image_and_class_colour_and_leaves_ignored_pixels_grey() -> None:
    image = np.full((1, 3, 3), 100, np.uint8)
    labels = np.array([[1, 7, 255]], np.uint8)
    mixed = overlay(image, labels, PALETTE, alpha=0.5)
    assert mixed.dtype == np.uint8
    assert mixed[0, 0].tolist() == [50, 150, 50]  # class 1
    assert mixed[0, 1].tolist() == [114, 114, 114]  # an output that has no colour
    assert mixed[0, 2, 0] == mixed[0, 2, 1] == mixed[0, 2, 2] in (96, 168)


def test_an_overlay_of_many_channels_shows_the_first_three() -> None:
    image = np.dstack([np.full((2, 2), v, np.uint8) for v in (10, 20, 30, 40, 50)])
    labels = np.zeros((2, 2), np.uint8)
    assert overlay(image, labels, PALETTE, alpha=0.0)[0, 0].tolist() == [10, 20, 30]
    assert overlay(image[:, :, :1], labels, PALETTE, alpha=0.0)[0, 0].tolist() == [10, 10, 10]


def test_labels_of_another_size_are_refused() -> None:
    image, labels = np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5), np.uint8)
    with pytest.raises(InputError, match=r"labels of shape \(4, 5\) for an image of \(4, 4\)"):
        overlay(image, labels, PALETTE)


def test_a_strip_shows_image_truth_both_results_and_where_they_differ() -> None:
    image = np.full((6, 8, 3), 200, np.uint8)
    reference = np.zeros((6, 8), np.uint8)
    labels = reference.copy()
    labels[2, 3] = 1
    panels = strip_panels(image, reference, reference, labels, PALETTE)
    assert [title for title, _ in panels] == ["Image", "Truth", "PyTorch", "INT8", "Difference"]
    difference = panels[-1][1]
    assert difference[2, 3].tolist() == [255, 0, 144]
    assert difference[0, 0].tolist() == [124, 124, 124]  # 200 * 0.5 + 24
    assert int((difference != difference[0, 0]).any(axis=2).sum()) == 1
    assert panels[3][1][2, 3].tolist() == [80, 200, 80]  # 0.4 * 200 + 0.6 * (0, 200, 0)


def test_a_strip_without_truth_leaves_it_out_and_takes_other_titles() -> None:
    image, labels = np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.uint8)
    panels = strip_panels(image, None, labels, labels, PALETTE, titles=("ONNX", "FP16"))
    assert [title for title, _ in panels] == ["Image", "ONNX", "FP16", "Difference"]


def test_panels_of_a_large_photo_are_small_and_keep_a_single_different_pixel_visible() -> None:
    image = np.zeros((1440, 960, 3), np.uint8)
    reference = np.zeros((1440, 960), np.uint8)
    labels = reference.copy()
    labels[700, 500] = 2
    panels = strip_panels(image, reference, reference, labels, PALETTE)
    assert {picture.shape for _, picture in panels} == {(480, 320, 3)}
    red, green, _ = panels[-1][1][700 // 3, 500 // 3].astype(int)
    assert red - green > 50


def test_embedded_pictures_are_what_was_drawn(tmp_path: Path) -> None:
    drawn = np.zeros((20, 30, 3), np.uint8)
    drawn[:, 15:] = (200, 30, 60)
    write_report(report(), tmp_path, strips=[Strip("a.jpg", 99.0, [("Image", drawn)])])
    (uri,) = re.findall(r'src="(data:[^"]+)"', page(tmp_path))
    shown = np.asarray(picture_from_uri(uri))
    assert np.abs(shown.astype(int) - drawn).mean() < 2


def test_the_page_stays_below_three_megabytes_with_pictures_of_noise(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (480, 480, 3), np.uint8)
    strips = [Strip(f"{i}.jpg", 90.0, [("Image", noise)] * 5) for i in range(14)]
    write_report(report(), tmp_path, strips=strips)
    assert (tmp_path / "report.html").stat().st_size < 3_000_000
    assert page(tmp_path).count("<img") == 12 * 5
    assert "2 more are not shown" in text_of(page(tmp_path))
