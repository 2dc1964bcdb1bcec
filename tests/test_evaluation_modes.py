"""`riceseg evaluate --mode slide --tta ms+flip`, and Segmenter in windows, on a tiny network.

What is expected is computed here with PyTorch's and OpenCV's own resizing.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from engines.bundle import bundle_from_folder
from engines.errors import ConfigError, InputError
from engines.evaluation.preparation import ImageScale, Preparation, preparation_from_record
from engines.reports.differences import difference_lines
from engines.reports.report import report_from_file, table_markdown
from engines.segmenter import Segmenter
from exporter.config_text import settings_from_config_text
from exporter.evaluation import evaluate_target
from exporter.inference import Inference
from exporter.preparation import preparation_from_config
from exporter.request import DataOptions, LoadOptions
from tests.architectures import tiny_mask2former
from tests.tiny_models import tiny_bundle
from tests.tiny_segformer import (
    CONFIG,
    MEAN,
    STD,
    error_of,
    mask_of,
    photo,
    run_cli,
    tiny_net,
    untimed,
    write_checkpoint,
)

Size = tuple[int, int]
CROP, STRIDE = (64, 64), (40, 48)
RATIOS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
SLIDES = CONFIG.replace(
    "dict(mode='whole')", f"dict(mode='slide', crop_size={CROP}, stride={STRIDE})"
)
# 1.x: a test scale, and an augmentation of the image's own size. 0.x: one of the scale.
PIPELINE = """
test_pipeline = [dict(type='LoadImageFromFile'),
                 dict(type='Resize', scale=(110, 70), keep_ratio=True), dict(type='PackSegInputs')]
"""
AUGMENTED = """
tta_pipeline = [dict(type='LoadImageFromFile'), dict(type='TestTimeAug', transforms=[
    [dict(type='Resize', scale_factor=0.5, keep_ratio=True),
     dict(type='Resize', scale_factor=1.75, keep_ratio=True)],
    [dict(type='RandomFlip', prob=0.0)], [dict(type='PackSegInputs')]])]
"""
OLD_PIPELINE = """
data = dict(test=dict(pipeline=[dict(type='LoadImageFromFile'), dict(
    type='MultiScaleFlipAug', img_scale=(110, 70), flip=False, transforms=[
        dict(type='Resize', keep_ratio=True), dict(type='RandomFlip'),
        dict(type='Pad', size_divisor=32)])]))
"""

LogitsOf = Callable[[NDArray[np.uint8]], Tensor]


PHOTOS = ((72, 88), (66, 66), (80, 120), (60, 92))  # (H, W)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny.pth of whole images, slides.pth of windows at a test scale, data/, and two bundles."""
    lab = tmp_path_factory.mktemp("lab")
    write_checkpoint(lab / "tiny.pth")
    write_checkpoint(lab / "slides.pth", config=SLIDES + PIPELINE + AUGMENTED)
    write_photos(lab / "data", PHOTOS)
    tiny_bundle(lab / "labels", hw=(64, 64))
    result = run_cli(
        "export", "--checkpoint", lab / "slides.pth", "--out", lab / "both", "--output", "both"
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    return lab


def write_photos(root: Path, sizes: Sequence[Size]) -> None:
    for folder in ("images", "masks"):
        (root / folder / "validation").mkdir(parents=True)
    for i, hw in enumerate(sizes):
        picture = photo(hw, 300 + i)
        Image.fromarray(picture).save(root / "images" / "validation" / f"{i}.png")
        Image.fromarray(mask_of(picture)).save(root / "masks" / "validation" / f"{i}.png")


# --- independent truth ----------------------------------------------------------------------------


def of_network(rgb: NDArray[np.uint8]) -> Tensor:
    """(1, K, H, W) at the size of `rgb`, as mmsegmentation's encode_decode."""
    x = torch.from_numpy(rgb.copy()).permute(2, 0, 1).float() - torch.tensor(MEAN).view(3, 1, 1)
    x = (x / torch.tensor(STD).view(3, 1, 1))[None]
    with torch.no_grad():
        return F.interpolate(NET(x), x.shape[2:], mode="bilinear", align_corners=False)


NET = tiny_net()


def in_windows(logits_of: LogitsOf, crop: Size, stride: Size) -> LogitsOf:
    """slide_inference, written with a sum and a count for every pixel."""

    def logits(rgb: NDArray[np.uint8]) -> Tensor:
        h, w = rgb.shape[:2]
        total, count = torch.zeros(1, 6, h, w), torch.zeros(h, w)
        rows = max(h - crop[0] + stride[0] - 1, 0) // stride[0] + 1
        columns = max(w - crop[1] + stride[1] - 1, 0) // stride[1] + 1
        for i in range(rows):
            for j in range(columns):
                bottom, right = min(i * stride[0] + crop[0], h), min(j * stride[1] + crop[1], w)
                top, left = max(bottom - crop[0], 0), max(right - crop[1], 0)
                total[:, :, top:bottom, left:right] += logits_of(rgb[top:bottom, left:right])
                count[top:bottom, left:right] += 1
        return total / count

    return logits


def augmented(
    logits_of: LogitsOf, rgb: NDArray[np.uint8], sizes: Sequence[Size], flips: Sequence[bool]
) -> Tensor:
    """(K, H, W): the mean softmax over the sizes, (height, width), and the mirror images."""
    found = []
    for h, w in sizes:
        for flip in flips:
            scaled = cv2.resize(rgb, (w, h), interpolation=cv2.INTER_LINEAR)
            logits = logits_of(scaled[:, ::-1] if flip else scaled)
            logits = logits.flip(3) if flip else logits
            logits = F.interpolate(logits, rgb.shape[:2], mode="bilinear", align_corners=False)
            found.append(logits.softmax(1)[0])
    return torch.stack(found).mean(0)


def kept_ratio(hw: Size, limits: Size) -> Size:
    """mmcv's rescale_size; `limits` are two numbers in any order."""
    factor = min(max(limits) / max(hw), min(limits) / min(hw))
    return int(hw[0] * factor + 0.5), int(hw[1] * factor + 0.5)


def of_own_size(hw: Size) -> list[Size]:
    sides = [(int(hw[0] * r + 0.5), int(hw[1] * r + 0.5)) for r in RATIOS]
    return [kept_ratio(hw, side) for side in sides]


def pairs(lab: Path) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    for path in sorted((lab / "data" / "images" / "validation").iterdir()):
        mask = lab / "data" / "masks" / "validation" / path.name
        yield np.array(Image.open(path)), np.array(Image.open(mask))


def miou_of(lab: Path, scores_of: Callable[[NDArray[np.uint8]], Tensor]) -> float:
    """mmsegmentation's mIoU, by sets of pixels, of the argmax of (K, H, W)."""
    hits, unions = np.zeros(6), np.zeros(6)
    for rgb, mask in pairs(lab):
        labels, known = scores_of(rgb).argmax(0).numpy(), mask != 255
        for k in range(6):
            a, b = (labels == k) & known, (mask == k) & known
            hits[k] += (a & b).sum()
            unions[k] += (a | b).sum()
    return float(100 * np.mean(hits[unions > 0] / unions[unions > 0]))


def evaluated(target: Path, lab: Path, out: Path, *options: object) -> dict[str, Any]:
    """The report of `riceseg evaluate`."""
    data = ("--data", lab / "data", "--out", out)
    result = run_cli("evaluate", target, *data, *options)
    assert result.exit_code == 0, result.stderr
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return {**report, "stdout": result.stdout, "stderr": result.stderr}


# Pixels where two classes are within rounding may fall either way.
ROUNDING = 0.05


# --- a checkpoint ---------------------------------------------------------------------------------


def test_windows_of_a_checkpoint_are_cut_at_its_test_scale(lab: Path, tmp_path: Path) -> None:
    report = evaluated(lab / "slides.pth", lab, tmp_path, "--mode", "slide")

    def scores(rgb: NDArray[np.uint8]) -> Tensor:
        hw = kept_ratio(rgb.shape[:2], (110, 70))
        scaled = cv2.resize(rgb, (hw[1], hw[0]), interpolation=cv2.INTER_LINEAR)
        logits = in_windows(of_network, CROP, STRIDE)(scaled)
        return F.interpolate(logits, rgb.shape[:2], mode="bilinear", align_corners=False)[0]

    assert report["rows"][0]["miou"] == pytest.approx(miou_of(lab, scores), abs=ROUNDING)
    assert (report["mode"], report["input_hw"]) == ("slide", [64, 64])
    assert not any("sliding windows" in line for line in report["warnings"])


def test_scales_and_mirror_images_of_a_checkpoint_are_averaged(lab: Path, tmp_path: Path) -> None:
    report = evaluated(lab / "slides.pth", lab, tmp_path, "--tta", "ms+flip")
    expected = miou_of(
        lab, lambda rgb: augmented(of_network, rgb, of_own_size(rgb.shape[:2]), (False, True))
    )
    assert report["rows"][0]["miou"] == pytest.approx(expected, abs=ROUNDING)


def test_windows_scales_and_mirror_images_go_together(lab: Path, tmp_path: Path) -> None:
    crop, stride = (48, 64), (32, 48)
    options = ("--mode", "slide", "--crop", "48x64", "--stride", "32x48", "--scale", "90x120")
    report = evaluated(lab / "tiny.pth", lab, tmp_path, *options, "--tta", "ms+flip")

    def scores(rgb: NDArray[np.uint8]) -> Tensor:
        hw = rgb.shape[:2]
        sizes = [kept_ratio(hw, (int(120 * r), int(90 * r))) for r in RATIOS]
        return augmented(in_windows(of_network, crop, stride), rgb, sizes, (False, True))

    assert report["rows"][0]["miou"] == pytest.approx(miou_of(lab, scores), abs=ROUNDING)
    notes = " | ".join(report["rows"][0]["notes"])
    assert "windows of 48x64 every 32x48 pixels, their logits averaged" in notes
    assert "0.5 to 1.75 times 120x90 (width x height) with their ratio kept, as --scale" in notes
    assert "ms+flip: the softmax of 12 predictions averaged" in notes
    assert "calls of the network an image on average" in notes


def test_the_mirror_image_of_whole_images_fills_the_networks_input(
    lab: Path, tmp_path: Path
) -> None:
    options = ("--size", "64x64", "--tta", "flip")
    report = evaluated(lab / "tiny.pth", lab, tmp_path, *options)
    expected = miou_of(lab, lambda rgb: augmented(of_network, rgb, [(64, 64)], (False, True)))
    assert report["rows"][0]["miou"] == pytest.approx(expected, abs=ROUNDING)


def test_a_run_without_modes_is_as_before(lab: Path, tmp_path: Path) -> None:
    report = evaluated(lab / "tiny.pth", lab, tmp_path, "--size", "64x64")
    found = evaluated(lab / "tiny.pth", lab, tmp_path, "--size", "64x64", "--mode", "whole")
    assert report["rows"][0]["miou"] == found["rows"][0]["miou"]
    assert (report["rows"][0]["mode"], report["rows"][0]["tta"]) == ("whole", "none")
    assert report["rows"][0]["notes"] is None
    expected = miou_of(
        lab,
        lambda rgb: F.interpolate(
            of_network(cv2.resize(rgb, (64, 64))), rgb.shape[:2], mode="bilinear"
        )[0],
    )
    assert report["rows"][0]["miou"] == pytest.approx(expected, abs=ROUNDING)


# --- graphs -----------------------------------------------------------------------------------


def of_graph(path: Path) -> LogitsOf:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])

    def logits(rgb: NDArray[np.uint8]) -> Tensor:
        (found,) = session.run(["logits"], {"image": np.ascontiguousarray(rgb)[None]})
        return torch.from_numpy(found)

    return logits


def padded(logits_of: LogitsOf) -> LogitsOf:
    """Images that are smaller than a window with the mean to the right and below."""

    def logits(rgb: NDArray[np.uint8]) -> Tensor:
        h, w = rgb.shape[:2]
        full = np.zeros((max(h, 64), max(w, 64), 3), np.uint8)
        full[:] = np.round(MEAN)
        full[:h, :w] = rgb
        return logits_of(full)[:, :, :h, :w]

    return logits


def test_a_bundle_with_logits_runs_windows_at_every_scale(lab: Path, tmp_path: Path) -> None:
    report = evaluated(lab / "both", lab, tmp_path, "--mode", "slide", "--tta", "ms+flip")
    logits_of = padded(in_windows(of_graph(lab / "both" / "model.onnx"), CROP, STRIDE))
    expected = miou_of(
        lab, lambda rgb: augmented(logits_of, rgb, of_own_size(rgb.shape[:2]), (False, True))
    )
    row = report["rows"][0]
    assert row["miou"] == pytest.approx(expected, abs=ROUNDING)
    assert (row["form"], row["mode"], row["tta"]) == ("ONNX FP32", "slide", "ms+flip")


def test_a_graph_by_itself_has_windows_of_its_size_and_two_thirds_between_them(
    lab: Path, tmp_path: Path
) -> None:
    report = evaluated(lab / "both" / "model.onnx", lab, tmp_path, "--mode", "slide")

    def scores(rgb: NDArray[np.uint8]) -> Tensor:
        h, w = rgb.shape[:2]
        scale = max(1.0, 64 / h, 64 / w)  # a smaller image is enlarged
        hw = int(h * scale + 0.5), int(w * scale + 0.5)
        large = cv2.resize(rgb, (hw[1], hw[0]), interpolation=cv2.INTER_LINEAR)
        logits = in_windows(of_graph(lab / "both" / "model.onnx"), CROP, (42, 42))(large)
        return F.interpolate(logits, (h, w), mode="bilinear", align_corners=False)[0]

    assert report["rows"][0]["miou"] == pytest.approx(miou_of(lab, scores), abs=ROUNDING)
    assert "windows of 64x64 every 42x42" in report["rows"][0]["notes"][0]
    assert not any("stretched" in line for line in report["warnings"])


def test_the_mirror_image_of_a_bundle_is_averaged(lab: Path, tmp_path: Path) -> None:
    report = evaluated(lab / "both", lab, tmp_path, "--tta", "flip")
    logits_of = of_graph(lab / "both" / "model.onnx")
    expected = miou_of(lab, lambda rgb: augmented(logits_of, rgb, [(64, 64)], (False, True)))
    assert report["rows"][0]["miou"] == pytest.approx(expected, abs=ROUNDING)
    assert report["mode"] == "whole"


# --- what is told ------------------------------------------------------------------------------


def test_reports_say_mode_and_augmentation_of_each_row(lab: Path, tmp_path: Path) -> None:
    report = evaluated(
        lab / "both", lab, tmp_path / "a", "--mode", "slide", "--tta", "flip", "--stride", "64x64"
    )
    assert "ONNX FP32, slide, flip" in " ".join(report["stdout"].split())
    assert "ONNX FP32, slide, flip" in table_markdown(report_from_file(tmp_path / "a/report.json"))
    page = (tmp_path / "a" / "report.html").read_text(encoding="utf-8")
    assert "fp32 · slide · flip</small>" in page
    assert "windows of 64x64 every 64x64 pixels, their logits averaged" in page
    assert "time and fps are of one call of the network, not of an image" in report["stderr"]
    evaluated(lab / "both", lab, tmp_path / "b")
    reports = [report_from_file(tmp_path / name / "report.json") for name in "ab"]
    lines = difference_lines(reports, ["first", "second"])
    assert "test mode: slide, flip (first); whole (second)" in lines


def test_pictures_of_the_worst_images_are_of_whole_images(lab: Path, tmp_path: Path) -> None:
    # A second form, so that there is something to differ from.
    bundle = bundle_from_folder(lab / "both")
    second = tmp_path / "bundle"
    second.mkdir()
    document = json.loads((lab / "both" / "bundle.json").read_text(encoding="utf-8"))
    document["files"]["fp16"] = document["files"]["fp32"]
    for name in (bundle.files["fp32"].file, "report.json"):
        (second / name).write_bytes((lab / "both" / name).read_bytes())
    document["files"] = {key: document["files"][key] for key in ("fp32", "fp16")}
    (second / "bundle.json").write_text(json.dumps(document), encoding="utf-8")
    report = evaluated(second, lab, tmp_path / "out", "--mode", "slide")
    assert [row["agreement"] for row in report["rows"]] == [100.0, 100.0]
    assert len(report["worst"]) == 4
    assert "Difference</figcaption>" in (tmp_path / "out" / "report.html").read_text()


class Counted:
    """A Progress that keeps every step of a stage."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, int | None]] = []
        self.times: list[tuple[str, float]] = []
        self.notes: list[str] = []

    def stage(self, title: str) -> Any:
        return contextlib.nullcontext()

    def advance(self, done: int, total: int | None) -> None:
        self.steps.append((done, total))

    def note(self, text: str) -> None:
        self.notes.append(text)

    def warn(self, text: str) -> None: ...


def test_progress_counts_predictions(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exporter.measure.benchmark_checkpoint", untimed)
    progress = Counted()
    data = DataOptions(val=lab / "data")
    inference = Inference(mode="slide", tta="flip")
    evaluate_target(
        lab / "slides.pth", data, LoadOptions(), size=None, inference=inference, progress=progress
    )
    # Two predictions of each of 4 images, and each image once more when it is done.
    assert progress.steps == [
        (0, 8), (1, 8), (2, 8), (2, 8), (3, 8), (4, 8), (4, 8),
        (5, 8), (6, 8), (6, 8), (7, 8), (8, 8), (8, 8),
    ]  # fmt: skip
    # 72x88 becomes 70x86: rows at 0 and 6, columns at 0 and 22, twice. 6 classes of 4 bytes.
    assert progress.notes[0] == (
        "an image of 72x88 takes 2 predictions, 8 calls of the network and up to 0 MB of logits"
    )


# --- what cannot be done ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "options", "expected"),
    [
        ("both", ["--tta", "ms"], "--tta ms for a graph of 64x64; expected a checkpoint"),
        ("both/model.onnx", ["--tta", "ms+flip"], "add --mode slide, use --tta flip"),
        ("labels", ["--tta", "flip"], "ONNX FP32, which gives labels only; expected logits"),
        ("labels", ["--mode", "slide"], "do this: export the model with --output logits"),
        ("both", ["--mode", "slide", "--crop", "32x32"], "--crop 32x32 for a graph of 64x64"),
        ("both", ["--mode", "slide", "--stride", "65x64"], "windows of 64x64 every 65x64"),
        ("both", ["--scale", "64x64"], "--scale with images that fill the network's input"),
        ("both", ["--tta", "flip", "--scale", "64x64"], "expected --scale with --mode slide or"),
        ("tiny.pth", ["--crop", "64x64"], "--crop with --mode whole"),
        ("tiny.pth", ["--tta", "ms", "--stride", "64x64"], "--stride with --mode whole"),
        ("tiny.pth", ["--mode", "slide"], "does not say its windows; expected test_cfg"),
        ("tiny.pth", ["--mode", "slide", "--crop", "16x64"], "--crop 16x64; expected height and"),
        ("tiny.pth", ["--tta", "ms", "--size", "64x64"], "--size with --mode whole --tta ms"),
        ("slides.pth", ["--mode", "slide", "--size", "64x64"], "do this: give the windows' size"),
        ("slides.pth", ["--mode", "slide", "--stride", "80x80"], "windows of 64x64 every 80x80"),
        ("slides.pth", ["--mode", "tiles"], "'tiles' is not one of 'whole', 'slide'"),
    ],
)  # fmt: skip
def test_options_that_do_not_apply_are_errors(
    lab: Path, target: str, options: list[str], expected: str
) -> None:
    result = run_cli("evaluate", lab / target, "--data", lab / "data", *options)
    if "tiles" in options:
        assert result.exit_code == 2
        assert expected in result.stderr
    else:
        assert expected in error_of(result)


def test_an_image_too_small_for_the_network_is_an_error(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "tiny.pth")
    write_photos(tmp_path / "data", [(20, 40)])
    result = run_cli("evaluate", tmp_path / "tiny.pth", "--data", tmp_path / "data", "--tta", "ms")
    assert "a part of an image of 10x20, at which the network fails" in error_of(result)


def test_a_norm_over_a_single_value_is_an_error_of_the_size(tmp_path: Path) -> None:
    """GroupNorm of 32 channels in 32 groups, on a map of one pixel: PyTorch raises a ValueError."""
    tensors = dict(tiny_mask2former.network(tiny_mask2former.RESNET_SHAPE).state_dict())
    write_checkpoint(tmp_path / "tiny.pth", tensors=tensors, classes=None, config=None)
    write_photos(tmp_path / "data", [(32, 32)])
    result = run_cli("evaluate", tmp_path / "tiny.pth", "--data", tmp_path / "data", "--tta", "ms")
    assert "an image of 16x16, at which the network fails: Expected more" in error_of(result)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("scale=(110, 70)", "scale=(110000, 70000)", "images of 110000x70000, sides rounded up"),
        ("size=(64, 64)", "test_cfg=dict(size_divisor=999999)", "sides rounded up to 999999"),
    ],
)
def test_a_configuration_cannot_fill_the_memory(
    lab: Path, tmp_path: Path, old: str, new: str, expected: str
) -> None:
    config = (SLIDES + PIPELINE).replace(old, new)
    assert new in config
    write_checkpoint(tmp_path / "a.pth", config=config)
    options = ("--data", lab / "data", "--mode", "slide")
    assert expected in error_of(run_cli("evaluate", tmp_path / "a.pth", *options))


# --- what a configuration and a bundle say -------------------------------------------------------


def prepared(text: str) -> tuple[Preparation, int]:
    return preparation_from_config(text, settings_from_config_text(text))


def test_the_scales_of_configurations() -> None:
    tested = ImageScale((110, 70), True)
    assert prepared(CONFIG + PIPELINE + AUGMENTED) == (Preparation(tested, ImageScale()), 1)
    assert prepared(CONFIG + PIPELINE) == (Preparation(tested, tested), 1)
    assert prepared(OLD_PIPELINE) == (Preparation(tested, tested), 32)
    assert prepared("") == prepared("not python (") == (Preparation(), 1)
    stretched = PIPELINE.replace("keep_ratio=True", "keep_ratio=False")
    exact = ImageScale((110, 70), False)
    assert prepared(stretched) == (Preparation(exact, exact), 1)
    rounded = PIPELINE.replace("dict(type='PackSegInputs')", "dict(type='ResizeToMultiple', size_divisor=32)")  # fmt: skip  # noqa: E501
    aligned = ImageScale((110, 70), True, 32)
    assert prepared(rounded) == (Preparation(aligned, aligned), 1)
    padding = "data_preprocessor = dict(test_cfg=dict(size_divisor=32))\n"
    assert prepared(padding + PIPELINE) == (Preparation(tested, tested), 32)


def test_an_export_records_the_scales_and_the_windows(lab: Path) -> None:
    test_mode = bundle_from_folder(lab / "both").test_mode
    assert (test_mode["mode"], test_mode["crop_size"]) == ("slide", [64, 64])
    assert (test_mode["stride"], test_mode["align_corners"]) == ([40, 48], False)
    expected = Preparation(ImageScale((110, 70), True), ImageScale())
    assert preparation_from_record(test_mode) == expected


# --- the runtime -------------------------------------------------------------------------------


def test_a_segmenter_in_windows_gives_what_evaluate_scores(lab: Path, tmp_path: Path) -> None:
    def scores(rgb: NDArray[np.uint8]) -> Tensor:
        hw = kept_ratio(rgb.shape[:2], (110, 70))
        scaled = cv2.resize(rgb, (hw[1], hw[0]), interpolation=cv2.INTER_LINEAR)
        logits = in_windows(of_graph(lab / "both" / "model.onnx"), CROP, STRIDE)(scaled)
        return F.interpolate(logits, rgb.shape[:2], mode="bilinear", align_corners=False)[0]

    images = [rgb for rgb, _ in pairs(lab)]
    with Segmenter.open(lab / "both", runtime="onnx", mode="slide") as segmenter:
        one = [segmenter(image) for image in images]
        together = segmenter.batch(images)
        streamed = list(segmenter.stream(images))
        with pytest.raises(ConfigError, match="batch 2 with mode 'slide'"):
            segmenter.stream(images, batch=2)
        with pytest.raises(InputError, match=r"shape \(5, 5, 4\)"):
            segmenter(np.zeros((5, 5, 4), np.uint8))
    for image, labels, second, third in zip(images, one, together, streamed, strict=True):
        assert np.mean(labels == scores(image).argmax(0).numpy()) > 0.999
        assert labels.tolist() == second.tolist() == third.tolist()
    options = ("--out", tmp_path, "--mode", "slide", "--runtime", "onnx", "--no-overlay")
    result = run_cli("segment", lab / "both", lab / "data/images/validation", *options)
    assert result.exit_code == 0, result.stderr
    assert np.array(Image.open(tmp_path / "labels" / "0.png")).tolist() == one[0].tolist()


def test_a_segmenter_of_labels_alone_does_not_open_in_windows(
    lab: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ConfigError, match="which gives labels only"):
        Segmenter.open(lab / "labels", runtime="onnx", mode="slide")
    with pytest.raises(ConfigError, match=r"mode 'tiles'; expected whole or slide"):
        Segmenter.open(lab / "labels", runtime="onnx", mode="tiles")
    assert "run here on the whole image" not in caplog.text
