"""What cannot be exported is told in one line, exit code 2, and nothing is left behind."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from engines.bundle import bundle_from_folder
from engines.segmenter import Segmenter
from tests.tiny_segformer import (
    environment,
    error_of,
    export_tiny,
    photo,
    process_arguments,
    run_cli,
    run_process,
    tiny_net,
    write_checkpoint,
    write_lab,
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lab(tmp_path_factory.mktemp("lab"))


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    """A place for a bundle; when the test ends, neither it nor anything beside it may exist."""
    place = tmp_path / "place"
    yield place / "deeper" / "bundle"
    assert not place.exists()


@pytest.fixture
def data(lab: Path, tmp_path: Path) -> Path:
    """A data set to be spoilt."""
    return Path(shutil.copytree(lab / "data", tmp_path / "data"))


# --- checkpoints ------------------------------------------------------------------------------


def cut(path: Path) -> None:
    write_checkpoint(path)
    path.write_bytes(path.read_bytes()[:-5000])


def other_architecture(path: Path) -> None:
    names = ["stem.0.weight", "layer1.0.conv1.weight", "layer4.0.conv1.weight", "fc.weight"]
    torch.save({"state_dict": {name: torch.ones(2, 2) for name in names}}, path)


def encoder_only(path: Path) -> None:
    tensors = tiny_net().state_dict()
    write_checkpoint(path, tensors={k: v for k, v in tensors.items() if "decode_head" not in k})


def not_finite(path: Path, value: float) -> None:
    tensors = {name: tensor.clone() for name, tensor in tiny_net().state_dict().items()}
    tensors["backbone.layers.1.1.0.norm1.weight"][3] = value
    write_checkpoint(path, tensors=tensors)


def incomplete(path: Path) -> None:
    tensors = tiny_net().state_dict()
    write_checkpoint(path, tensors={k: v for k, v in tensors.items() if "fusion_conv" not in k})


CHECKPOINTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "which does not exist"),
    "a folder": (lambda path: path.mkdir(), "a folder without config.json"),
    "empty": (lambda path: path.write_bytes(b""), "an empty file"),
    "cut short": (cut, "damaged or was cut short"),
    "noise": (lambda path: path.write_bytes(bytes(range(1, 255)) * 9), "of no known kind"),
    "text": (lambda path: path.write_text("weights"), "a text file"),
    "web page": (lambda path: path.write_text("<html>login</html>"), "a web page"),
    "photo": (lambda path: Image.new("RGB", (9, 9)).save(path, "PNG"), "of no known kind"),
    "no tensors": (lambda path: torch.save({"epoch": 3}, path), "no state dict"),
    "another architecture": (
        other_architecture,
        "closest match is a ResNet; first unmatched keys: fc.weight, layer1.0.conv1.weight",
    ),
    "an encoder": (encoder_only, "without SegFormer's decode head"),
    "incomplete": (incomplete, "closest match is SegFormer, with 5 tensors missing"),
    "NaN": (lambda path: not_finite(path, float("nan")), "norm1.weight' has 1 NaN or infinite"),
    "infinity": (lambda path: not_finite(path, float("inf")), "norm1.weight' has 1 NaN or inf"),
    "too many names": (
        lambda path: write_checkpoint(path, num_outputs=4),
        "6 class names for a network with 4 outputs",
    ),
    "five bands": (
        lambda path: write_checkpoint(path, in_channels=5, config=None),
        "mean None and std None for 5 input channels",
    ),
}


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_a_file_that_is_no_usable_checkpoint(kind: str, out: Path, tmp_path: Path) -> None:
    write, expected = CHECKPOINTS[kind]
    write(tmp_path / "best.pth")
    result = run_cli("export", "--checkpoint", tmp_path / "best.pth", "--out", out)
    assert expected in error_of(result)
    assert result.stdout == ""


def test_neither_a_checkpoint_nor_a_model(out: Path) -> None:
    assert "neither --checkpoint nor --model" in error_of(run_cli("export", "--out", out))


def test_a_model_that_the_checkpoint_is_not(lab: Path, out: Path) -> None:
    line = error_of(export_tiny(lab, out, "--model", "segformer-b5"))
    assert "--model segformer-b5 with a checkpoint of segformer-custom" in line


def test_outputs_of_a_checkpoint_without_classifier(out: Path, tmp_path: Path) -> None:
    tensors = tiny_net().state_dict()
    kept = {name: tensor for name, tensor in tensors.items() if "conv_seg" not in name}
    write_checkpoint(tmp_path / "tiny.pth", tensors=kept)
    line = error_of(export_tiny(tmp_path, out, "--keep-classes", "2"))
    assert "without the expected tensor 'decode_head.conv_seg.weight'" in line


CLASS_FILES = {
    "a\nb\nc\nd\ne\nf\ng\n": "7 class names for a network with 6 outputs",
    "": "which names no class",
    "벼\n피\n벼\n": "'벼' is named more than once",
    "벼 #102030\n피\n": "2 names and 1 colours",
    '{"classes": ["a"], "palette": [[1, 2, 300]]}': "a colour [1, 2, 300]",
    '{"classes": ["a"': "not valid JSON",
}


@pytest.mark.parametrize("text", CLASS_FILES)
def test_class_names_that_do_not_fit(text: str, lab: Path, out: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text(text, encoding="utf-8")
    line = error_of(export_tiny(lab, out, "--classes", tmp_path / "names.txt"))
    assert CLASS_FILES[text] in line


# --- numbers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        *(["--size", size] for size in ("0x0", "16x16", "100000x100000", "64", "axb", "-64x64")),
        ["--size", "64x64x3"],
        ["--size", "9" * 5000 + "x64"],
        *(["--percentile", value] for value in ("0", "101", "nan", "inf", "x", "-1")),
        *(["--runs", value] for value in ("0", "-1", "x", "1.5")),
        *(["--max-drop", value] for value in ("nan", "inf", "x", "1e400")),
        *(["--opset", value] for value in ("99", "12", "0", "-1", "x")),
        *(["--keep-classes", value] for value in ("0", "-1", "7", "x")),
        *(["--mean", value] for value in ("1,2", "1,2,3,4", "a,b,c", "nan,1,1", "inf,1,1", "")),
        *(["--std", value] for value in ("0,1,1", "-1,1,1", "nan,1,1", "1e-42,1,1", "1,1")),
        *(["--dynamic-batch", value] for value in ("0:1:2", "3:2:1", "1:2", "1:1:5000", "a:b:c")),
        ["--dynamic-batch", "1:1:" + "9" * 5000],
        ["--dynamic-batch", "1:2:4", "--size", "48x80"],
        *(["--calibrator", "best"], ["--output", "masks"], ["--resize", "crop"]),
        *(["--bogus"], ["stray"], ["--fp61"], ["--val-masks", "x"], ["--size"]),
    ],
    ids=lambda arguments: " ".join(arguments)[:30],
)
def test_an_option_out_of_range(arguments: list[str], lab: Path, out: Path) -> None:
    line = error_of(export_tiny(lab, out, *arguments))
    assert len(line) < 500
    if arguments[0] not in ("stray", "--dynamic-batch"):
        assert arguments[0].strip("-") in line


def test_a_size_that_the_network_cannot_be_run_at(out: Path, tmp_path: Path) -> None:
    """Kernels that reduce a stage's map by 32 and are larger than the map itself."""
    tensors = dict(tiny_net().state_dict())
    key = "backbone.layers.0.1.0.attn.sr.weight"
    tensors[key] = tensors[key][:, :, :1, :1].expand(-1, -1, 32, 32).contiguous()
    file = write_checkpoint(tmp_path / "coarse.pth", tensors=tensors)
    line = error_of(run_cli("export", "--checkpoint", file, "--out", out, "--size", "64x64"))
    assert "an input of 64x64, at which the network fails: " in line
    assert not out.exists()


def test_the_scale_of_other_programs_is_noticed(lab: Path, tmp_path: Path) -> None:
    scale = ["--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225"]
    result = export_tiny(lab, tmp_path / "out", *scale)
    assert "look like the scale 0..1" in result.stderr


# --- images and masks -------------------------------------------------------------------------


def image_of(data: Path, part: str = "validation") -> Path:
    return data / "images" / part / f"{part[:3]}1.png"


def validated(lab: Path, out: Path, data: Path, *arguments: object) -> str:
    return error_of(export_tiny(lab, out, "--val", data, *arguments))


def calibrated(lab: Path, out: Path, calib: Path, *arguments: object) -> str:
    return error_of(export_tiny(lab, out, "--int8", "--calib", calib, *arguments))


def test_a_photo_that_is_none_is_named(lab: Path, out: Path, data: Path) -> None:
    for path in (image_of(data), image_of(data, "calibration")):
        path.write_text(f"no photo {path}")
    assert "val1.png', which cannot be read" in validated(lab, out, data)
    assert "cal1.png', which cannot be read" in calibrated(lab, out, data)


def test_nothing_but_unreadable_photos_is_no_data_set(lab: Path, out: Path, data: Path) -> None:
    for path in data.glob("images/*/*.png"):
        path.write_text(f"no photo {path}")
    assert "4 images, 4 of them skipped" in validated(lab, out, data, "--skip-bad")
    assert "no calibration images" in calibrated(lab, out, data, "--skip-bad")


MODES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "grey": lambda image: image.convert("L"),
    "RGB with alpha": lambda image: image.convert("RGBA"),
    "CMYK": lambda image: image.convert("CMYK"),
    "16-bit grey": lambda image: Image.fromarray(np.asarray(image)[:, :, 0].astype(np.uint16) << 8),
}


@pytest.mark.parametrize("mode", MODES)
def test_a_photo_of_another_mode_is_converted_on_request_only(
    mode: str, lab: Path, out: Path, data: Path, tmp_path: Path
) -> None:
    path = image_of(data)
    image = MODES[mode](Image.open(path))
    path.unlink()
    image.save(path.with_suffix(".tif"))
    line = validated(lab, out, data)
    assert f"val1.tif', {mode} (mode" in line
    assert "--convert-images" in line
    options = ["--val", data, "--convert-images", "--max-drop", "20"]
    assert export_tiny(lab, tmp_path / "converted", *options).exit_code == 0


def test_labels_beyond_the_classes(lab: Path, out: Path, data: Path) -> None:
    path = data / "masks/validation/val1.png"
    mask = np.array(Image.open(path))
    mask[10, 10] = 6
    Image.fromarray(mask).save(path)
    line = validated(lab, out, data)
    assert "'val1.png': 1 labels that the network does not have: 6; expected 0..5" in line
    assert "network does not have" in validated(lab, out, data, "--keep-classes", "2")


def test_masks_of_colours(lab: Path, out: Path, data: Path) -> None:
    shutil.copy(image_of(data), data / "masks/validation/val1.png")
    assert "val1.png' of mode RGB" in validated(lab, out, data)


def test_masks_without_any_label(lab: Path, out: Path, data: Path) -> None:
    for path in (data / "masks/validation").iterdir():
        Image.fromarray(np.full_like(np.asarray(Image.open(path)), 255)).save(path)
    assert "4 masks in which no pixel has a label" in validated(lab, out, data)


def test_a_mask_of_another_size(lab: Path, out: Path, data: Path) -> None:
    path = data / "masks/validation/val1.png"
    Image.open(path).resize((64, 64), Image.Resampling.NEAREST).save(path)
    line = validated(lab, out, data)
    assert "'val1.png' of 96x64 pixels (width x height) and mask 'val1.png' of 64x64" in line


def test_an_image_or_a_mask_alone(lab: Path, out: Path, data: Path) -> None:
    (data / "masks/validation/val1.png").rename(data / "masks/validation/val9.png")
    line = validated(lab, out, data)
    assert "1 images without a mask" in line
    assert "'val1.png'" in line
    assert "1 masks without an image" in line
    assert "'val9.png'" in line


def test_folders_that_are_not_there_or_empty(lab: Path, out: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.txt").write_text("# nothing\n")
    (tmp_path / "wrong.txt").write_text("not-there.png\n")
    assert "which is not a folder" in validated(lab, out, tmp_path / "nothing")
    assert "was not found" in validated(lab, out, tmp_path / "empty")
    assert "no image directly in" in calibrated(lab, out, tmp_path / "empty")
    assert "without any path" in calibrated(lab, out, tmp_path / "list.txt")
    assert "1 missing files, the first in line 1" in calibrated(lab, out, tmp_path / "wrong.txt")
    assert "which does not exist" in calibrated(lab, out, tmp_path / "nothing")


def test_int8_needs_images(lab: Path, out: Path) -> None:
    assert "INT8 without --calib" in error_of(export_tiny(lab, out, "--int8"))


def test_a_validation_image_is_no_calibration_image_under_any_name(
    lab: Path, out: Path, data: Path
) -> None:
    assert "4 calibration images that are validation images too: val0.png" in calibrated(
        lab, out, data / "images/validation", "--val", data
    )
    shutil.copy(image_of(data), data / "images/calibration/새 이름.png")
    line = calibrated(lab, out, data, "--val", data)
    assert "1 calibration images that are validation images too: 새 이름.png" in line


# --- the place --------------------------------------------------------------------------------


def test_a_place_that_is_taken_stays_as_it_is(lab: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.txt").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for name in ("file", "thesis", "link"):
        for more in ([], ["--overwrite"]):
            line = error_of(export_tiny(lab, tmp_path / name, *more))
            assert "which exists and is not a bundle" in line
    assert "Not a directory" in error_of(export_tiny(lab, tmp_path / "file/below"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link", "thesis"]
    assert (tmp_path / "thesis/chapter.txt").read_text() == "mine"


def test_a_place_that_cannot_be_written_to(lab: Path, tmp_path: Path) -> None:
    for place in (Path("/proc/bundle"), Path("/"), Path("/proc"), tmp_path / ("x" * 300)):
        assert "choose" in error_of(export_tiny(lab, place))
    assert list(tmp_path.iterdir()) == []


def test_replacing_a_bundle_never_takes_the_checkpoint_with_it(lab: Path, tmp_path: Path) -> None:
    assert export_tiny(lab, tmp_path / "out").exit_code == 0
    shutil.copy(lab / "tiny.pth", tmp_path / "out/tiny.pth")
    line = error_of(export_tiny(tmp_path / "out", tmp_path / "out", "--overwrite"))
    assert "which lies inside --out" in line
    assert (tmp_path / "out/tiny.pth").exists()


def test_a_link_to_an_empty_folder_is_followed(lab: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    assert export_tiny(lab, tmp_path / "link").exit_code == 0
    assert (tmp_path / "link").is_symlink()
    assert bundle_from_folder(tmp_path / "disk").name == "segformer-custom"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "link"]


def test_a_file_name_that_is_no_text(lab: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / os.fsdecode(b"best\xff\x1b[31m.pth")
    shutil.copy(lab / "tiny.pth", checkpoint)
    arguments = ["--checkpoint", checkpoint, "--size", "64x64", "--out", tmp_path / "out"]
    result = run_cli("export", *arguments)
    assert result.exit_code == 0, result.stderr
    assert bundle_from_folder(tmp_path / "out").checkpoint.file == "best??[31m.pth"
    place = tmp_path / os.fsdecode(b"\xff")
    assert "not a name in UTF-8" in error_of(run_cli("export", *arguments[:4], "--out", place))
    checkpoint.write_text("no weights")
    assert "\x1b" not in error_of(run_cli("export", *arguments[:4], "--out", tmp_path / "other"))


# --- the end comes early ----------------------------------------------------------------------


def start(lab: Path, out: Path, **options: object) -> subprocess.Popen[bytes]:
    arguments = ["--checkpoint", lab / "tiny.pth", "--size", "64x64", "--out", out]
    arguments += ["--int8", "--fp16", "--calib", lab / "data", "--val", lab / "data"]
    return subprocess.Popen(
        process_arguments("export", *arguments, "--max-drop", "20"),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,  # type: ignore[call-overload]
    )


def wait_for(child: subprocess.Popen[bytes], text: bytes) -> None:
    assert child.stderr is not None
    for line in child.stderr:
        if text in line:
            return
    pytest.fail(f"ended before {text!r}")


def is_whole(folder: Path) -> bool:
    with Segmenter.open(folder, precision="int8") as segmenter:
        return segmenter(photo((20, 30), 1)).shape == (20, 30)


def test_killed_at_any_moment_it_leaves_a_whole_bundle_or_none(lab: Path, tmp_path: Path) -> None:
    rng, interrupted = random.Random(3), 0
    for number in range(4):
        place = tmp_path / str(number)
        place.mkdir()
        child = start(lab, place / "bundle")
        wait_for(child, b"load ...")
        time.sleep(rng.uniform(0.02, 1.2))
        child.kill()
        child.communicate()
        interrupted += child.returncode == -signal.SIGKILL
        if (place / "bundle").exists():
            assert is_whole(place / "bundle")
        result = export_tiny(
            lab, place / "bundle", "--overwrite", "--int8", "--calib", lab / "data"
        )
        assert result.exit_code == 0, result.stderr
        assert is_whole(place / "bundle")
        assert [path.name for path in place.iterdir()] == ["bundle"]
    assert interrupted >= 1


def test_a_bundle_that_was_just_being_replaced_comes_back(lab: Path, tmp_path: Path) -> None:
    """Killed between the two renames: neither may be lost, and the folder is not free."""
    assert export_tiny(lab, tmp_path / "bundle").exit_code == 0
    (tmp_path / "bundle").rename(tmp_path / ".bundle.partial-999999999-00c0ffee.old")
    (tmp_path / ".bundle.partial-999999999-00c0ffee").mkdir()
    assert "already holds a bundle" in error_of(export_tiny(lab, tmp_path / "bundle"))
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert bundle_from_folder(tmp_path / "bundle").name == "segformer-custom"


def test_two_exports_to_one_place_give_one_whole_bundle(lab: Path, tmp_path: Path) -> None:
    children = [start(lab, tmp_path / "bundle") for _ in range(2)]
    said = [child.communicate(timeout=300)[1].decode() for child in children]
    assert sorted(child.returncode for child in children) == [0, 2], said
    assert any("already holds a bundle" in text for text in said)
    assert is_whole(tmp_path / "bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize("stage", [b"load ...", b"verify against PyTorch ..."])
def test_ctrl_c_leaves_nothing(stage: bytes, lab: Path, out: Path) -> None:
    child = start(lab, out)
    wait_for(child, stage)
    child.send_signal(signal.SIGINT)
    stderr = child.communicate(timeout=60)[1]
    assert child.returncode == 130
    assert b"Traceback" not in stderr
    assert b"interrupted" in stderr


def limit_file_size() -> None:
    """Writing beyond it fails as on a full disk, for every file of the process."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def test_a_write_that_fails_half_way(lab: Path, out: Path) -> None:
    arguments = ["--checkpoint", lab / "tiny.pth", "--size", "64x64", "--out", out]
    result = run_process("export", *arguments, preexec_fn=limit_file_size)
    assert "File too large; expected a file system and a limit" in error_of(result)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a small disk")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_fills_up_at_any_stage(lab: Path, small_disk: Path) -> None:
    line = error_of(export_tiny(lab, small_disk))
    assert f"{small_disk}, where a file system is mounted" in line
    all_forms = ["--int8", "--fp16", "--calib", lab / "data", "--val", lab / "data"]
    stages = set()
    for free in (100_000, 400_000, 600_000, 800_000, 1_000_000, 1_200_000):
        (small_disk / "others").write_bytes(b"")
        room = shutil.disk_usage(small_disk).free
        (small_disk / "others").write_bytes(bytes(room - free))
        result = export_tiny(lab, small_disk / "bundle", *all_forms, "--max-drop", "20")
        assert "No space left on device" in error_of(result)
        assert [path.name for path in small_disk.iterdir()] == ["others"]
        stages |= {line.partition(": failed")[0] for line in result.stderr.splitlines()
                   if ": failed" in line}  # fmt: skip
    writing = {"quantize to INT8", "write FP16", "write INT8 with FP16", "write report and bundle"}
    assert stages == {"trace to ONNX", *writing}
