"""PyTorch's labels of the validation images, kept in the bundle."""

from __future__ import annotations

import hashlib
import shutil
import tracemalloc
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from engines.bundle import bundle_from_folder
from engines.dataset import Pair
from engines.evaluation.evaluate import Prediction
from engines.evaluation.reference import reference_from_bundle
from engines.resize import ResizeRule
from exporter.keep_reference import reference_kept
from exporter.onnx_graph import GraphSpec, ImageToLabels
from exporter.torch_predictor import TorchPredictor
from tests.tiny_segformer import MEAN, STD, error_of, export_tiny, tiny_net, write_lab


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lab(tmp_path_factory.mktemp("lab"))


def kept(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_file_holds_what_pytorch_answers_for_each_image(lab: Path, tmp_path: Path) -> None:
    options = ["--val", lab / "data", "--max-drop", "20", "--keep-reference"]
    result = export_tiny(lab, tmp_path / "out", *options)
    assert result.exit_code == 0, result.stderr
    found = kept(tmp_path / "out/reference.npz")
    images = sorted((lab / "data/images/validation").iterdir())
    assert sorted(found) == sorted(map(sha256, images))
    predictor = TorchPredictor(ImageToLabels(tiny_net(), GraphSpec((64, 64), MEAN, STD)).eval())
    for path in images:
        small = cv2.resize(np.asarray(Image.open(path)), (64, 64))
        labels = found[sha256(path)]
        assert (labels.dtype, labels.shape) == (np.dtype(np.uint8), (64, 64))
        assert len(np.unique(labels)) > 1
        assert np.mean(labels == predictor.labels(small[None])[0]) > 0.99  # OpenCV's rounding
    bundle = bundle_from_folder(tmp_path / "out")
    assert bundle.files["reference"].file == "reference.npz"
    with reference_from_bundle(tmp_path / "out", bundle) as reference:  # type: ignore[union-attr]
        assert reference.count == 4
        labels = reference(sha256(images[0]))
        assert labels is not None
        np.testing.assert_array_equal(labels, found[sha256(images[0])])


def test_a_letterboxed_image_is_kept_with_its_padding(lab: Path, tmp_path: Path) -> None:
    options = ["--size", "64x96", "--resize", "letterbox", "--val", lab / "data"]
    result = export_tiny(lab, tmp_path / "out", *options, "--max-drop", "20", "--keep-reference")
    assert result.exit_code == 0, result.stderr
    assert {a.shape for a in kept(tmp_path / "out/reference.npz").values()} == {(64, 96)}


def test_equal_files_are_kept_once_and_unreadable_ones_not_at_all(
    lab: Path, tmp_path: Path
) -> None:
    shutil.copytree(lab / "data", tmp_path / "data")
    for kind in ("images", "masks"):
        folder = tmp_path / "data" / kind / "validation"
        shutil.copy(folder / "val0.png", folder / "val9.png")
    (tmp_path / "data/images/validation/val1.png").write_text("no image")
    options = ["--val", tmp_path / "data", "--skip-bad", "--max-drop", "20", "--keep-reference"]
    result = export_tiny(lab, tmp_path / "out", *options)
    assert result.exit_code == 0, result.stderr
    images = [tmp_path / f"data/images/validation/val{i}.png" for i in (0, 2, 3)]
    assert sorted(kept(tmp_path / "out/reference.npz")) == sorted(map(sha256, images))


def test_without_validation_images_there_is_nothing_to_keep(lab: Path, tmp_path: Path) -> None:
    line = error_of(export_tiny(lab, tmp_path / "out", "--keep-reference"))
    assert "got --keep-reference without --val" in line
    assert list(tmp_path.iterdir()) == []


class Stripes:
    """A predictor of 512x512 noise: labels that do not compress."""

    name = "stripes"

    def predict(
        self, network_image: np.ndarray, image_hw: tuple[int, int], rule: ResizeRule
    ) -> Prediction:
        labels = np.random.default_rng(network_image[0, 0, 0]).integers(0, 256, (512, 512))
        return Prediction(network=labels.astype(np.uint8), image=labels.astype(np.uint8))


def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    pairs, told = [], []
    for index in range(60):
        path = tmp_path / f"{index}.png"
        path.write_bytes(bytes([index]))
        pairs.append(Pair(path, path))
    with reference_kept(
        Stripes(), pairs, tmp_path / "all.npz", then=lambda *step: told.append(step)
    ) as recorder:
        for index in range(60):
            if index == 10:
                tracemalloc.start()
            image = np.full((1, 1, 3), index, np.uint8)
            recorder.predict(image, (1, 1), ResizeRule("stretch"))
            recorder.on_image(index + 1, 60)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 12 * 512 * 512  # 50 images are 13 MB; numpy draws one as int64, of 8 bytes
    assert told == [(done, 60) for done in range(1, 61)]
    assert (tmp_path / "all.npz").stat().st_size > 60 * 512 * 512
    expected = Stripes().predict(np.full((1, 1, 3), 59, np.uint8), (1, 1), ResizeRule("stretch"))
    found = kept(tmp_path / "all.npz")
    np.testing.assert_array_equal(found[sha256(tmp_path / "59.png")], expected.network)


def test_the_same_images_give_the_same_bytes(tmp_path: Path) -> None:
    path = tmp_path / "0.png"
    path.write_bytes(b"0")
    for name in ("a", "b"):
        with reference_kept(
            Stripes(), [Pair(path, path)], tmp_path / name, then=lambda *_: None
        ) as recorder:
            recorder.predict(np.zeros((1, 1, 3), np.uint8), (1, 1), ResizeRule("stretch"))
            recorder.on_image(1, 1)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    with zipfile.ZipFile(tmp_path / "a") as file:
        (entry,) = file.infolist()
    assert entry.compress_type == zipfile.ZIP_DEFLATED
