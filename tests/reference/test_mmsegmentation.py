"""SegFormer against mmsegmentation itself: file -> model -> rewritten model -> ONNX graph."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from mmseg.structures import SegDataSample
from PIL import Image
from random_models import (
    IMAGENET_STD,
    MIN_AGREEMENT,
    check_logits,
    checked_agreement,
    class_shares,
    mmsegmentation_config,
    mmsegmentation_logits,
    mmsegmentation_model,
    normalised,
    quarter_in_float64,
    random_images,
    randomise,
    save_as_mmengine_does,
)
from torch import Tensor

from exporter.load import LoadedModel, load_model
from exporter.onnx_graph import GraphSpec, onnx_from_model
from exporter.rewrites.rewritten import rewritten_for_export
from exporter.simplify import simplify_onnx

# Data that may not be redistributed lies beside the repository, where there is any.
SHARED = Path(__file__).parents[3] / "shared" / "data"


@dataclass(frozen=True)
class Spec:
    variant: str
    hw: tuple[int, int]
    channels: int = 3
    classes: int = 19
    head_channels: int = 256
    align_corners: bool = False

    def __str__(self) -> str:
        h, w = self.hw
        corners = "-corners" if self.align_corners else ""
        return (
            f"{self.variant}-{h}x{w}-{self.channels}ch-{self.classes}cls-"
            f"{self.head_channels}{corners}"
        )


# A spread: every variant, size, channel count, class count and head width at least once. Head
# width 768 is EasyCV's and ModelScope's, whose tensors have mmsegmentation's names.
SPECS = [
    Spec("b0", (512, 512), classes=19),
    Spec("b0", (250, 190), channels=5, classes=6),
    Spec("b0", (161, 97), classes=2, align_corners=True),
    Spec("b1", (256, 256), classes=150),
    Spec("b1", (224, 320), channels=5, classes=2, head_channels=768),
    Spec("b2", (224, 320), classes=172, head_channels=768),
    Spec("b2", (250, 190), classes=6),
    Spec("b3", (160, 96), classes=150, head_channels=768),
    Spec("b4", (160, 96), classes=172),
    Spec("b5", (160, 96), channels=5, classes=6),
]


@dataclass(frozen=True)
class Case:
    """`x` is one normalised image, `theirs` mmsegmentation's model, `ours` read from its file."""

    spec: Spec
    x: Tensor
    theirs: Any
    ours: LoadedModel


@pytest.fixture(scope="module", params=SPECS, ids=str)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    spec: Spec = request.param
    config = mmsegmentation_config(
        spec.variant,
        channels=spec.channels,
        classes=spec.classes,
        head_channels=spec.head_channels,
        align_corners=spec.align_corners,
        bgr_to_rgb=spec.channels == 3,
    )
    images = random_images(1, spec.hw, channels=spec.channels, seed=1)
    x = normalised(images, config.data_preprocessor.mean, config.data_preprocessor.std)
    theirs = random_mmsegmentation_model(config, x)
    path = tmp_path_factory.mktemp("mmseg") / "model.pth"
    save_as_mmengine_does(theirs, config, path, classes=theirs.decode_head.num_classes)
    ours = load_model(path)
    path.unlink()  # 0.3 GB for B5
    return Case(spec, x, theirs, ours)


def random_mmsegmentation_model(config: Any, x: Tensor) -> Any:
    theirs = mmsegmentation_model(config)
    randomise(theirs, theirs.decode_head.conv_seg, lambda: mmsegmentation_logits(theirs, x), seed=2)
    return theirs


def mmsegmentation_test_step(model: Any, rgb: np.ndarray[Any, Any]) -> Any:
    """mmsegmentation's whole test of one (H, W, 3) image: its normalisation, network and resize.

    Its images are read by OpenCV, hence BGR.
    """
    bgr = torch.from_numpy(np.ascontiguousarray(rgb[:, :, ::-1].transpose(2, 0, 1)))
    hw = rgb.shape[:2]
    sample = SegDataSample(metainfo={"ori_shape": hw, "img_shape": hw, "pad_shape": hw})
    with torch.no_grad():
        return model.test_step({"inputs": [bgr], "data_samples": [sample]})[0]


def our_logits(net: torch.nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = net(x)
    return logits


def max_abs(difference: Tensor) -> float:
    return float(difference.abs().max())


class TestEveryVariant:
    def test_random_weights_give_every_class_a_share_of_the_pixels(self, case: Case) -> None:
        labels = mmsegmentation_logits(case.theirs, case.x).argmax(1)
        shares = class_shares(labels, case.spec.classes) * case.spec.classes
        assert shares.min() > 0.2
        assert shares.max() < 5.0

    def test_shape_is_found_from_the_tensors(self, case: Case) -> None:
        found = case.ours.description
        assert found.name == f"segformer-{case.spec.variant}"
        assert found.head == "mmsegmentation"
        assert found.head_channels == case.spec.head_channels
        assert found.in_channels == case.spec.channels
        assert found.num_outputs == case.spec.classes
        assert found.source == "mmsegmentation"
        assert found.parameters == sum(p.numel() for p in case.theirs.parameters())

    def test_normalisation_and_classes_are_read_from_the_file(self, case: Case) -> None:
        expected = case.theirs.data_preprocessor
        assert case.ours.mean == pytest.approx(expected.mean.flatten().tolist())
        assert case.ours.std == pytest.approx(expected.std.flatten().tolist())
        assert case.ours.classes[-1] == f"class {case.spec.classes - 1}"
        assert case.ours.palette[1] == (1, 254, 7)

    def test_logits_are_mmsegmentations(self, case: Case) -> None:
        theirs = mmsegmentation_logits(case.theirs, case.x)
        worst, agreement = check_logits(our_logits(case.ours.net, case.x), theirs)
        print(f"\n{case.spec}: {worst:.1e} sigma, {agreement:.4f} %")

    def test_logits_in_float64_differ_by_rounding_alone(
        self, case: Case, float64_logits: Float64Logits
    ) -> None:
        # Rounding to float32 would hide a wrong epsilon, whose effect is about 1e-5.
        difference = max_abs(float64_logits.plain - float64_logits.theirs)
        print(f"\n{case.spec}: {difference:.1e}")
        assert difference <= 1e-10

    def test_rewriting_changes_nothing_in_float64(
        self, case: Case, float64_logits: Float64Logits
    ) -> None:
        difference = max_abs(float64_logits.rewritten - float64_logits.plain)
        print(f"\n{case.spec}: {difference:.1e}")
        assert difference <= 1e-10


@dataclass(frozen=True)
class Float64Logits:
    theirs: Tensor
    plain: Tensor
    rewritten: Tensor


@pytest.fixture(scope="module")
def float64_logits(case: Case) -> Float64Logits:
    x = quarter_in_float64(case.x)
    theirs, ours = case.theirs.double(), case.ours.net.double()
    try:
        return Float64Logits(
            mmsegmentation_logits(theirs, x),
            our_logits(ours, x),
            our_logits(rewritten_for_export(ours), x),
        )
    finally:
        theirs.float()  # exact, since the numbers came from float32
        ours.float()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """B0 with 3 classes on one 96x64 image."""
    config = mmsegmentation_config("b0", classes=3)
    x = normalised(random_images(1, (96, 64)), config.data_preprocessor.mean, IMAGENET_STD)
    theirs = random_mmsegmentation_model(config, x)
    path = tmp_path_factory.mktemp("small") / "model.pth"
    save_as_mmengine_does(theirs, config, path, classes=theirs.decode_head.num_classes)
    return Case(Spec("b0", (96, 64), classes=3), x, theirs, load_model(path))


@pytest.mark.parametrize(
    "name",
    [
        "backbone.layers.0.0.norm",
        "backbone.layers.1.1.0.norm1",
        "backbone.layers.2.1.1.attn.norm",
        "backbone.layers.3.2",
        "decode_head.fusion_conv.bn",
    ],
)
def test_float64_comparison_would_notice_another_epsilon(small: Case, name: str) -> None:
    x = small.x.double()
    theirs, ours = (copy.deepcopy(m).double() for m in (small.theirs, small.ours.net))
    want = mmsegmentation_logits(theirs, x)
    assert max_abs(our_logits(ours, x) - want) <= 1e-10
    norm: Any = ours.get_submodule(name)
    norm.eps = 2 * norm.eps
    assert max_abs(our_logits(ours, x) - want) > 1e-9


@pytest.mark.parametrize(
    ("variant", "hw", "classes", "batch"),
    [
        ("b0", (512, 512), 3, (1, 1, 1)),
        ("b0", (250, 190), 19, (1, 1, 1)),
        ("b2", (160, 96), 6, (1, 2, 4)),
    ],
)
def test_simplified_graph_gives_mmsegmentations_logits_and_labels(
    variant: str, hw: tuple[int, int], classes: int, batch: tuple[int, int, int], tmp_path: Path
) -> None:
    config = mmsegmentation_config(variant, classes=classes)
    images = random_images(2, hw, seed=3)
    x = normalised(images, config.data_preprocessor.mean, config.data_preprocessor.std)
    theirs = random_mmsegmentation_model(config, x)
    save_as_mmengine_does(
        theirs, config, tmp_path / "model.pth", classes=theirs.decode_head.num_classes
    )

    ours = load_model(tmp_path / "model.pth")
    spec = GraphSpec(hw, ours.mean, ours.std, output="both", batch=batch)
    traced, graph = tmp_path / "traced.onnx", tmp_path / "graph.onnx"
    onnx_from_model(rewritten_for_export(ours.net), spec, traced, num_outputs=classes)
    simplify_onnx(traced, graph, batch=images[: batch[1]])

    want = F.interpolate(mmsegmentation_logits(theirs, x), hw, mode="bilinear")
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    size = batch[1]
    runs = [session.run(None, {"image": images[i : i + size]}) for i in range(0, 2, size)]
    labels, logits = (torch.from_numpy(np.concatenate(parts)) for parts in zip(*runs, strict=True))
    assert labels.dtype == torch.uint8
    worst, agreement = check_logits(logits, want)
    print(f"\n{variant} {hw}: {worst:.1e} sigma, {agreement:.4f} %")
    checked_agreement(labels.long(), want)


@pytest.mark.parametrize("bgr_to_rgb", [True, False])
def test_image_in_rgb_gives_the_result_of_mmsegmentations_test_step(
    bgr_to_rgb: bool, tmp_path: Path
) -> None:
    config = mmsegmentation_config("b0", classes=6, bgr_to_rgb=bgr_to_rgb)
    images = random_images(1, (128, 160), seed=4)
    stored_order = images if bgr_to_rgb else np.ascontiguousarray(images[..., ::-1])
    x = normalised(stored_order, config.data_preprocessor.mean, config.data_preprocessor.std)
    theirs = random_mmsegmentation_model(config, x)
    save_as_mmengine_does(
        theirs, config, tmp_path / "model.pth", classes=theirs.decode_head.num_classes
    )
    want = mmsegmentation_test_step(theirs, images[0]).seg_logits.data[None]

    ours = load_model(tmp_path / "model.pth")
    got = our_logits(ours.net, normalised(images, ours.mean, ours.std))
    check_logits(F.interpolate(got, (128, 160), mode="bilinear"), want)


def test_trained_rice_checkpoint_gives_mmsegmentations_labels() -> None:
    checkpoint = SHARED / "segformer_b0_rice_panicle.pth"
    tiles = sorted((SHARED / "rice_panicle" / "images" / "val").glob("*.jpg"))[::10][:8]
    if not checkpoint.is_file() or len(tiles) < 8:
        pytest.skip(f"no trained checkpoint with its tiles in {SHARED}: not redistributable")
    ours = load_model(checkpoint)
    theirs = mmsegmentation_model(mmsegmentation_config("b0", classes=2))
    # mmengine's history objects need the full unpickler; the file is the project's own.
    weights = torch.load(checkpoint, map_location="cpu", weights_only=False)["state_dict"]
    theirs.load_state_dict(weights)

    equal = []
    for path in tiles:
        with Image.open(path) as opened:
            image = np.asarray(opened.convert("RGB"))
        step = mmsegmentation_test_step(theirs, image)
        logits = our_logits(ours.net, normalised(image[None], ours.mean, ours.std))
        labels = F.interpolate(logits, image.shape[:2], mode="bilinear").argmax(1)
        assert class_shares(labels, 2).min() > 0
        checked_agreement(labels, step.seg_logits.data[None])
        equal.append((labels == step.pred_sem_seg.data).double().mean())
    assert 100 * float(torch.stack(equal).mean()) >= MIN_AGREEMENT
