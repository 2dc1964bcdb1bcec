"""`riceseg segment` on scenes: one TIFF a band, arrays of bands, and what does not fit together."""

from __future__ import annotations

import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from PIL import Image

from engines.bundle import bundle_from_folder
from engines.segmenter import Segmenter
from exporter.commands.group import riceseg
from exporter.segment_inputs import SegmentItem, items_from
from exporter.segmentation import SegmentOptions, folders_in, segment_one
from tests.band_bundles import band_bundle, fused_bundle, reflectances, stretched
from tests.five_band_scenes import scene_name, write_band, write_data_set, write_scene
from tests.tiny_models import tiny_bundle

HW = (24, 32)
REDEDGE = Path(__file__).parent / "data" / "rededge"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """GNE; the label is red edge // 64."""
    return band_bundle(tmp_path / "bundle", HW)


def segment(bundle: Path, images: Path, out: Path, *options: object) -> Result:
    arguments = ["segment", bundle, images, "--out", out, *options]
    result = CliRunner().invoke(riceseg, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def pixels(path: Path) -> NDArray[Any]:
    with Image.open(path) as image:
        return np.array(image)


def error_line(result: Result) -> str:
    assert result.exit_code == 2, result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    return line


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_each_scene_of_a_folder_gets_labels_and_an_overlay(bundle: Path, tmp_path: Path) -> None:
    scenes = [write_scene(tmp_path / "논", number, hw=HW) for number in range(3)]
    result = segment(bundle, tmp_path / "논", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("3 images: ")
    assert "left out" not in result.stderr
    assert names_in(tmp_path / "out/labels") == [f"{scene_name(n)}.png" for n in range(3)]
    assert names_in(tmp_path / "out/overlays") == [f"{scene_name(n)}.jpg" for n in range(3)]
    for scene in scenes:
        labels = pixels(tmp_path / "out/labels" / f"{scene.name}.png")
        np.testing.assert_array_equal(labels, stretched(scene.bands["E"]) // 64)


def test_the_overlay_shows_what_the_network_saw(bundle: Path, tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "scenes", 1, hw=HW)
    segment(bundle, tmp_path / "scenes", tmp_path / "out", "--alpha", "0")
    drawn = pixels(tmp_path / "out/overlays" / f"{scene.name}.jpg").astype(float)
    seen = np.stack([stretched(scene.bands[letter]) for letter in "ENG"], axis=2)
    assert np.corrcoef(drawn.ravel(), seen.ravel())[0, 1] > 0.9  # a JPEG


def test_the_folders_of_the_raw_data_are_taken_as_they_come(bundle: Path, tmp_path: Path) -> None:
    scenes = write_data_set(tmp_path / "raw", 2, hw=HW)
    result = segment(bundle, tmp_path / "raw", tmp_path / "out", "--no-overlay")
    assert result.exit_code == 0, result.stderr
    assert names_in(tmp_path / "out") == ["labels"]
    assert names_in(tmp_path / "out/labels") == [f"{scene.name}.png" for scene in scenes]


def test_a_scene_of_two_flights_is_never_mixed(bundle: Path, tmp_path: Path) -> None:
    flights = [
        write_scene(tmp_path / "raw" / name, 0, seed, hw=HW) for seed, name in enumerate("ab")
    ]
    flights[0].files["E"].unlink()
    line = error_line(segment(bundle, tmp_path / "raw", tmp_path / "out"))
    assert f"scene {flights[0].name}: its bands lie in several folders" in line
    assert "'a' and 'b'" in line
    whole = write_scene(tmp_path / "raw/b", 1, hw=HW)
    result = segment(bundle, tmp_path / "raw", tmp_path / "out", "--no-overlay")
    assert result.exit_code == 0, result.stderr
    assert names_in(tmp_path / "out/labels") == [f"{whole.name}.png"]
    assert f"left out scene {flights[0].name}: its bands lie in several folders" in result.stderr


def test_one_band_file_stands_for_its_scene(bundle: Path, tmp_path: Path) -> None:
    for number in range(2):
        scene = write_scene(tmp_path / "scenes", number, hw=HW)
    result = segment(bundle, scene.files["N"], tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert names_in(tmp_path / "out/labels") == [f"{scene.name}.png"]


def test_a_rededge_capture_is_a_scene(tmp_path: Path) -> None:
    """In the maker's order: 1 blue, 2 green, 3 red, 4 near infrared, 5 red edge; uint16."""
    for channel, number in enumerate((5, 4, 2)):
        plane = pixels(REDEDGE / f"IMG_0000_{number}.tif")
        folder, out = tmp_path / f"bundle{number}", tmp_path / f"out{number}"
        bundle = band_bundle(folder, plane.shape, channel=channel, nodata=0)
        result = segment(bundle, REDEDGE, out, "--no-overlay")
        assert result.exit_code == 0, result.stderr
        labels = pixels(out / "labels/IMG_0000.png")
        assert len(np.unique(labels)) > 2
        np.testing.assert_array_equal(labels, stretched(plane, nodata=0) // 64)


def test_bad_scenes_stop_the_run_or_are_listed_at_its_end(bundle: Path, tmp_path: Path) -> None:
    scenes = [write_scene(tmp_path / "in", number, hw=HW) for number in range(6)]
    scenes[0].files["E"].unlink()
    write_band(scenes[1].files["N"], np.full(HW, -10000.0, np.float32))
    write_band(scenes[2].files["G"], np.full(HW, 0.5, np.float32))
    write_band(scenes[3].files["G"], np.ones((9, 9), np.float32))
    scenes[4].files["N"].write_bytes(scenes[4].files["N"].read_bytes()[:-2000])
    (tmp_path / "in/우리논.tif").write_bytes(b"")
    line = error_line(segment(bundle, tmp_path / "in", tmp_path / "stopped"))
    assert f"scene {scenes[0].name}: " in line
    assert "E" in line
    result = segment(bundle, tmp_path / "in", tmp_path / "out", "--skip-bad")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("1 images: ")
    assert names_in(tmp_path / "out/labels") == [f"{scenes[5].name}.png"]
    left_out = [line for line in result.stderr.splitlines() if "left out" in line]
    assert len(left_out) == 6
    assert "우리논.tif: not named like" in left_out[0]
    for said, scene, words in zip(
        left_out[1:],
        scenes[:5],
        ("without", "nodata everywhere", "0.5 everywhere", "9", "got"),
        strict=True,
    ):
        assert f"scene {scene.name}: got" in said
        assert words in said


def test_other_images_among_band_files_are_named(bundle: Path, tmp_path: Path) -> None:
    write_scene(tmp_path / "in", 0, hw=HW)
    Image.new("RGB", (5, 5)).save(tmp_path / "in/photo.png")
    result = segment(bundle, tmp_path / "in", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert "left out photo.png: no band file, in a folder of band files" in result.stderr


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "float64", "uint16"])
def test_an_array_file_of_bands_is_composed(bundle: Path, tmp_path: Path, dtype: str) -> None:
    scene = (np.abs(reflectances((30, 20))) * 1000).astype(np.float32)
    scene[-1, -1] = 3.0
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in/a.npy", scene.astype(dtype))
    with Segmenter.open(bundle) as seg:
        expected = seg(scene.astype(dtype))
    assert len(np.unique(expected)) > 1
    result = segment(bundle, tmp_path / "in", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    np.testing.assert_array_equal(pixels(tmp_path / "out/labels/a.png"), expected)


def test_composed_images_are_taken_as_they_are(bundle: Path, tmp_path: Path) -> None:
    image = np.random.default_rng(1).integers(0, 256, (*HW, 3), dtype=np.uint8)
    (tmp_path / "in").mkdir()
    Image.fromarray(image).save(tmp_path / "in/a.png")
    Image.fromarray(image).save(tmp_path / f"in/{scene_name(7)}.tif")  # named like its scene
    np.save(tmp_path / "in/b.npy", image)
    result = segment(bundle, tmp_path / "in", tmp_path / "out", "--no-overlay")
    assert result.exit_code == 0, result.stderr
    for name in ("a", "b", scene_name(7)):
        labels = pixels(tmp_path / f"out/labels/{name}.png")
        np.testing.assert_array_equal(labels, image[:, :, 0] // 64)
    one = tmp_path / f"in/{scene_name(7)}.tif"
    assert segment(bundle, one, tmp_path / "one").exit_code == 0


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((5, 5, 4), np.float32), r"with shape \(5, 5, 4\); expected .*width, 3\)"),
        (np.zeros((5, 5), np.float32), r"with shape \(5, 5\)"),
        (np.zeros((0, 5, 3), np.float32), r"with shape \(0, 5, 3\)"),
        (np.zeros((5, 5, 3), complex), "of complex128"),
        (np.array([[[None] * 3]]), "cannot be read"),
    ],
)
def test_an_array_file_that_holds_no_bands_is_refused(
    bundle: Path, tmp_path: Path, array: NDArray[Any], message: str
) -> None:
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    result = segment(bundle, tmp_path / "a.npy", tmp_path / "out")
    assert re.search(message, error_line(result))
    assert not (tmp_path / "out/labels/a.png").exists()


def test_an_array_file_cut_short_is_refused(bundle: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", reflectances(HW))
    data = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(data[: len(data) // 2])
    assert "which cannot be read" in error_line(
        segment(bundle, tmp_path / "a.npy", tmp_path / "out")
    )


def test_a_bundle_without_bands_says_how_band_files_are_used(tmp_path: Path) -> None:
    write_scene(tmp_path / "in", 0, hw=HW)
    line = error_line(segment(tiny_bundle(tmp_path / "b"), tmp_path / "in", tmp_path / "out"))
    assert "named like a band of a scene" in line
    assert "--bands GNE" in line


def test_a_network_of_one_band_takes_single_files(tmp_path: Path) -> None:
    bundle = band_bundle(tmp_path / "bundle", HW, channels=1, letters="N")
    scene = write_scene(tmp_path / "in", 0, hw=HW)
    for letter in "RGBE":
        scene.files[letter].unlink()
    for number, images in enumerate((tmp_path / "in", scene.files["N"])):
        out = tmp_path / f"out{number}"
        assert segment(bundle, images, out, "--no-overlay").exit_code == 0
        labels = pixels(out / "labels" / f"{scene.name}.png")
        np.testing.assert_array_equal(labels, stretched(scene.bands["N"]) // 64)


# --- graphs that compose by themselves ------------------------------------------------------------


def test_graphs_that_take_bands_give_the_labels_of_the_others(tmp_path: Path) -> None:
    scenes = [write_scene(tmp_path / "in", number, hw=HW) for number in range(2)]
    bundle = fused_bundle(tmp_path / "bundle", HW)
    for out, options in (("plain", ()), ("fused", ("--fused",))):
        result = segment(bundle, tmp_path / "in", tmp_path / out, *options)
        assert result.exit_code == 0, result.stderr
        assert result.stdout.startswith("2 images: ")
    for scene in scenes:
        for file in (f"labels/{scene.name}.png", f"overlays/{scene.name}.jpg"):
            assert (tmp_path / "fused" / file).read_bytes() == (
                tmp_path / "plain" / file
            ).read_bytes()
        labels = pixels(tmp_path / "fused/labels" / f"{scene.name}.png")
        np.testing.assert_array_equal(labels, stretched(scene.bands["E"]) // 64)


@pytest.mark.parametrize("overlay", ["--overlay", "--no-overlay"])
def test_fused_runs_the_graph_that_takes_bands(tmp_path: Path, overlay: str) -> None:
    scene = write_scene(tmp_path / "in", 0, hw=HW)
    np.save(tmp_path / "in.npy", np.stack([scene.bands[letter] for letter in "GNE"], axis=2))
    bundle = fused_bundle(tmp_path / "bundle", HW, step=32)
    for source, name in ((tmp_path / "in", scene.name), (tmp_path / "in.npy", "in")):
        result = segment(bundle, source, tmp_path / "out", "--fused", overlay)
        assert result.exit_code == 0, result.stderr
        labels = pixels(tmp_path / "out/labels" / f"{name}.png")
        np.testing.assert_array_equal(labels, stretched(scene.bands["E"]) // 32)
        assert (tmp_path / "out/overlays").exists() == (overlay == "--overlay")


def test_what_fused_does_not_go_with_is_told_before_anything_is_opened(
    bundle: Path, tmp_path: Path
) -> None:
    write_scene(tmp_path / "in", 0, hw=HW)
    (tmp_path / "photos").mkdir()
    Image.new("RGB", HW).save(tmp_path / "photos/a.png")
    fused = fused_bundle(tmp_path / "fused", HW)
    for path in fused.glob("*.onnx"):
        path.write_bytes(b"?" * path.stat().st_size)
    for arguments, message in (
        ((bundle, tmp_path / "in"), "whose graphs take composed images; .*leave fused out"),
        ((fused, tmp_path / "photos"), "--fused for images; .*leave --fused out"),
        ((fused, tmp_path / "in", "--mode", "slide"), "--mode slide with --fused"),
    ):
        line = error_line(segment(*arguments[:2], tmp_path / "out", "--fused", *arguments[2:]))
        assert re.search(message, line)
    line = error_line(segment(fused, tmp_path / "in", tmp_path / "out.tif", "--fused"))
    assert "--fused with --out" in line
    assert not (tmp_path / "out").exists()


def test_scenes_that_do_not_go_with_fused_are_left_out_or_stop_the_run(tmp_path: Path) -> None:
    scenes = [write_scene(tmp_path / "in", number, hw=HW) for number in range(4)]
    write_scene(tmp_path / "in", 0, hw=(24, 40))
    write_band(scenes[1].files["N"], np.full(HW, -10000.0, np.float32))
    write_band(scenes[2].files["G"], np.full(HW, 0.5, np.float32))
    bundle = fused_bundle(tmp_path / "bundle", HW)
    line = error_line(segment(bundle, tmp_path / "in", tmp_path / "stopped", "--fused"))
    assert f"scene {scenes[0].name}: 40x24 pixels with --fused; expected 32x24" in line
    options = ("--fused", "--no-overlay", "--skip-bad")
    result = segment(bundle, tmp_path / "in", tmp_path / "out", *options)
    assert result.exit_code == 0, result.stderr
    assert names_in(tmp_path / "out/labels") == [f"{scenes[3].name}.png"]
    for scene, words in zip(
        scenes[:3], ("40x24 pixels", "nodata everywhere", "0.5 everywhere"), strict=True
    ):
        assert re.search(f"left out scene {scene.name}: got .*{words}", result.stderr)


def test_an_array_file_that_is_an_image_stops_fused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((*HW, 3), np.uint8))
    line = error_line(
        segment(fused_bundle(tmp_path / "b", HW), tmp_path / "a.npy", tmp_path / "out", "--fused")
    )
    assert "a.npy: an image with --fused" in line


def test_the_work_on_a_scene_can_be_sent_to_another_process(bundle: Path, tmp_path: Path) -> None:
    scenes = [write_scene(tmp_path / "in", number, hw=HW) for number in range(2)]
    items, left_out = items_from(tmp_path / "in", bundle_from_folder(bundle))
    assert (len(items), left_out) == (2, ())
    options = SegmentOptions(alpha=None)
    work, sent, how = pickle.loads(pickle.dumps((segment_one, items, options)))
    assert sent == tuple(SegmentItem(scene.name, scene.files) for scene in scenes)
    with Segmenter.open(bundle) as seg, folders_in(tmp_path / "out", how):
        work(seg, sent[1], tmp_path / "out", how)
    assert names_in(tmp_path / "out/labels") == [f"{scenes[1].name}.png"]


def test_a_scene_is_written_whole_or_not_at_all(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_scene(tmp_path / "in", 0, hw=HW)

    def interrupted(self: Image.Image, path: Path, **_: object) -> None:
        Path(path).write_bytes(b"half a file")
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", interrupted)
    (item,), _ = items_from(tmp_path / "in", bundle_from_folder(bundle))
    with folders_in(tmp_path / "out", SegmentOptions()):
        with Segmenter.open(bundle) as seg, pytest.raises(KeyboardInterrupt):
            segment_one(seg, item, tmp_path / "out", SegmentOptions())
        assert names_in(tmp_path / "out/labels") == []


def test_folders_that_nothing_was_written_into_go_after_an_error(
    bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/bad.png").write_bytes(b"no picture")
    (tmp_path / "kept/labels").mkdir(parents=True)
    for out, left in (("new", False), ("kept", True)):
        error_line(segment(bundle, tmp_path / "in", tmp_path / out))
        assert (tmp_path / out).exists() == left
        assert (tmp_path / out / "labels").exists() == left
        assert not (tmp_path / out / "overlays").exists()


@pytest.mark.parametrize("out", ["논" * 86, "논" * 86 + "/out", "out/" + "a" * 256])
def test_an_out_that_is_too_long_is_told_so(bundle: Path, tmp_path: Path, out: str) -> None:
    write_scene(tmp_path / "in", 0, hw=HW)
    line = error_line(segment(bundle, tmp_path / "in", tmp_path / out))
    assert "File name too long" in line
    assert line.endswith("do this: choose a shorter name")
    assert names_in(tmp_path) == ["bundle", "in"]


def test_labels_whose_name_is_too_long_are_told_so(bundle: Path, tmp_path: Path) -> None:
    name = "a" * 251  # with .png it fits, and not while it is hidden
    (tmp_path / "in").mkdir()
    Image.new("RGB", HW).save(tmp_path / "in" / f"{name}.png")
    line = error_line(segment(bundle, tmp_path / "in", tmp_path / "out"))
    assert "File name too long" in line
    assert line.endswith("do this: choose a shorter name")


def test_an_empty_folder_is_told_what_was_expected(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    shutil.copy(bundle / "bundle.json", tmp_path / "in")
    line = error_line(segment(bundle, tmp_path / "in", tmp_path / "out"))
    assert "no image directly in folder" in line
    assert not (tmp_path / "out").exists()
