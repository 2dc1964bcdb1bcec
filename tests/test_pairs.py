"""`riceseg evaluate --pairs`: one class against each of the others by mean accuracy."""

from __future__ import annotations

import json
import re
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from tiny_models import bands_model, write_onnx

from engines.dataset import Pair
from engines.errors import BundleError, ConfigError
from engines.evaluation.evaluate import evaluate_predictors
from engines.onnx_predictor import OnnxPredictor
from engines.reports.report import checked_report
from engines.segmenter import Segmenter
from exporter.pairs import ClassPairs, class_pairs, pairs_section, pairs_table
from tests.test_evaluate import pair_of, spec
from tests.tiny_segformer import CLASSES, error_of, export_tiny, run_cli, write_lab

RICE = ("background", "normal", "doyeol", "dobok", "gyulju", "bujin")


# --- which pairs ----------------------------------------------------------------------------------


def test_normal_is_compared_with_every_disorder_and_not_with_the_background() -> None:
    expected = ClassPairs(((1, 2), (1, 3), (1, 4), (1, 5)), background=0)
    assert class_pairs(["normal"], RICE) == expected


def test_several_classes_are_compared_in_the_order_they_were_given() -> None:
    found = class_pairs(["dobok", "normal", "dobok"], RICE[:4])
    assert found.indices == ((3, 1), (3, 2), (1, 2), (1, 3))


def test_the_background_itself_is_compared_with_all_others() -> None:
    assert class_pairs(["background"], RICE[:3]).indices == ((0, 1), (0, 2))


def test_without_a_class_called_background_every_other_class_is_one_of_the_pairs() -> None:
    assert class_pairs(["b"], ["a", "b", "c"]) == ClassPairs(((1, 0), (1, 2)), background=None)


@pytest.mark.parametrize(
    ("name", "index"),
    [("정상", 1), (unicodedata.normalize("NFD", "정상"), 1), (" BLAST", 2), ("STRASSE", 3)],
    ids=["whole syllables", "letters", "capitals", "sharp s"],
)
def test_a_class_is_found_in_any_script_and_case(name: str, index: int) -> None:
    classes = ("배경", "정상", "Blast", "Straße")
    assert {pair[0] for pair in class_pairs([name], classes).indices} == {index}


def test_of_two_classes_that_differ_in_case_the_exact_one_is_taken() -> None:
    assert class_pairs(["Rice"], ["rice", "Rice"]).indices == ((1, 0),)
    with pytest.raises(ConfigError, match=r"'RICE', several classes; expected one of 'rice', 'Ri"):
        class_pairs(["RICE"], ["rice", "Rice"])


def test_an_unknown_name_is_answered_with_the_names_that_there_are() -> None:
    message = r"--pairs 'nomal', no class.*expected one of 'background', 'normal', 'doyeol', 'dobok"
    with pytest.raises(ConfigError, match=rf"{message}.*--pairs 'normal'"):
        class_pairs(["nomal"], RICE)
    with pytest.raises(ConfigError, match=r"'class 19' and 130 more; do this"):
        class_pairs(["벼"], [f"class {i}" for i in range(150)])


def test_a_class_alone_beside_the_background_has_nothing_to_be_compared_with() -> None:
    with pytest.raises(ConfigError, match=r"'panicle' and no class but it and the background"):
        class_pairs(["panicle"], ["background", "panicle"])


# --- the figures ----------------------------------------------------------------------------------


def evaluation_of(folder: Path, red: Any, mask: Any) -> Any:
    predictor = OnnxPredictor(write_onnx(bands_model((2, 3), step=64), folder / "bands.onnx"))
    pair: Pair = pair_of(folder, "a", red, mask)
    return evaluate_predictors([predictor], [pair], input=spec(), num_outputs=4, num_classes=4)


def test_the_figures_are_those_worked_out_by_hand(tmp_path: Path) -> None:
    # Predicted bands of 64: 0 0 1 | 1 2 3. Truth has 0 twice (one found), 1 twice (one found, one
    # taken for 2: a miss of the pair 1 and 3 as well) and 3 twice (one found); 2 has no pixel.
    red, mask = [[0, 63, 64], [127, 128, 255]], [[0, 3, 1], [0, 1, 3]]
    found = evaluation_of(tmp_path, red, mask)
    classes = ("background", "normal", "blast", "lodging")
    section = pairs_section(class_pairs(["normal"], classes), classes, found)
    assert section["background"] == "background"
    blast, lodging = section["rows"]
    assert (blast["reference"], blast["other"]) == ("normal", "blast")
    assert [blast[key] for key in ("acc_reference", "acc_other")] == [50.0, None]
    assert blast["macc"] is blast["macc_with_background"] is None
    assert (lodging["reference"], lodging["other"]) == ("normal", "lodging")
    assert [lodging[key] for key in ("acc_reference", "acc_other", "macc")] == [50.0, 50.0, 50.0]
    assert lodging["macc_with_background"] == 50.0


def counted(predicted: list[Any], truth: list[Any], kept: tuple[int, ...]) -> list[float]:
    """mmsegmentation's Acc of the classes `kept`, where truth of the others is ignored."""
    accuracies = []
    for index in kept:
        hits = [((p == index) & (t == index)).sum() for p, t in zip(predicted, truth, strict=True)]
        accuracies.append(100 * int(sum(hits)) / int(sum((t == index).sum() for t in truth)))
    return accuracies


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle full/ of the classes 배경, 정상, 도열병, 도복, 결주 and 부진, and data/."""
    lab = write_lab(tmp_path_factory.mktemp("lab"))
    result = export_tiny(lab, lab / "full", "--fp16")
    assert result.exit_code == 0, result.stderr
    return lab


@pytest.mark.filterwarnings("error")
def test_the_command_prints_the_table_and_writes_it_into_both_reports(
    lab: Path, tmp_path: Path
) -> None:
    data, out = lab / "data", tmp_path / "report"
    chosen = ["--pairs", "정상", "--pairs", unicodedata.normalize("NFD", "결주")]
    result = run_cli("evaluate", lab / "full", "--data", data, *chosen, "--out", out)
    assert result.exit_code == 0, result.stderr
    section = json.loads((out / "report.json").read_text(encoding="utf-8"))["pairs"]
    rows = [row for row in section["rows"] if row["form"] == "ONNX FP32"]
    assert [(row["reference"], row["other"]) for row in rows] == [
        *(("정상", other) for other in ("도열병", "도복", "결주", "부진")),
        *(("결주", other) for other in ("정상", "도열병", "도복", "부진")),
    ]
    assert {row["form"] for row in section["rows"]} == {"ONNX FP32", "ONNX FP16"}
    predicted, truth = [], []
    with Segmenter.open(lab / "full", precision="fp32", runtime="onnx") as segmenter:
        for path in sorted((data / "images/validation").iterdir()):
            predicted.append(segmenter(np.asarray(Image.open(path))))
            truth.append(np.asarray(Image.open(data / "masks/validation" / path.name)))
    for row in rows:
        pair = CLASSES.index(row["reference"]), CLASSES.index(row["other"])
        first, second, background = counted(predicted, truth, (*pair, 0))
        assert row["acc_reference"] == pytest.approx(first)
        assert row["acc_other"] == pytest.approx(second)
        assert row["macc"] == pytest.approx((first + second) / 2)
        assert row["macc_with_background"] == pytest.approx((first + second + background) / 3)
        figures = rf"{row['macc']:.2f} +{row['macc_with_background']:.2f}"
        assert re.search(rf"{row['reference']} – {row['other']} .*{figures}", result.stdout)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "정상 – 부진" in page
    assert f"<td>{rows[0]['macc']:.2f}</td>" in page


def test_a_checkpoint_is_compared_too(lab: Path, tmp_path: Path) -> None:
    arguments = ["--data", lab / "data", "--size", "64x64", "--pairs", "도복"]
    result = run_cli("evaluate", lab / "tiny.pth", *arguments)
    assert result.exit_code == 0, result.stderr
    assert len(re.findall(r"도복 – ", result.stdout)) == 4


def test_an_unknown_class_is_refused_before_anything_is_scored(lab: Path, tmp_path: Path) -> None:
    arguments = ["evaluate", lab / "full", "--data", lab / "data", "--pairs", "normal"]
    result = run_cli(*arguments, "--out", tmp_path / "report")
    assert "'normal', no class of this model; expected one of '배경', '정상'" in error_of(result)
    assert "evaluate" not in result.stdout
    assert not (tmp_path / "report").exists()


def test_without_pairs_the_report_has_no_such_part(lab: Path, tmp_path: Path) -> None:
    arguments = ["--data", lab / "data", "--out", tmp_path]
    result = run_cli("evaluate", lab / "full/model.onnx", *arguments)
    assert result.exit_code == 0, result.stderr
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["pairs"] is None
    assert "One class against another" not in (tmp_path / "report.html").read_text("utf-8")


# --- reports of others ----------------------------------------------------------------------------


def report_with(rows: Any) -> dict[str, Any]:
    return {
        "format": "riceseg-report", "format_version": 1, "rows": [{"form": "x"}],
        "pairs": {"background": None, "rows": rows},
    }  # fmt: skip


def test_a_report_with_a_strange_pair_is_refused() -> None:
    good = {"form": "x", "reference": "a", "other": "b", "macc": 50.0}
    assert checked_report(report_with([good]))["pairs"]["rows"][0]["acc_other"] is None
    for strange in ({**good, "macc": 101}, {**good, "reference": 3}, {"macc": 1.0}, "no object"):
        with pytest.raises(BundleError, match=r"pairs\.rows\[0\]"):
            checked_report(report_with([strange]))


def test_a_hostile_name_does_nothing_to_the_terminal() -> None:
    row = {"form": "\x1b[2Jx", "reference": "[red]a", "other": "b\x07", "macc": None}
    section = checked_report(report_with([row]))["pairs"]
    console = Console(width=80, record=True, force_terminal=False)
    with console.capture() as captured:
        console.print(pairs_table(section))
    assert "\x1b" not in captured.get()
    assert "\x07" not in captured.get()
    assert "[red]a" in captured.get()
    assert "–: no such pixel" in captured.get()
