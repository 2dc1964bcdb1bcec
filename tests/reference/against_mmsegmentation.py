"""What must hold for every architecture beside mmsegmentation's own modules of the same weights.

A test file of a family has a class that inherits `AgainstMmsegmentation` and lists its VARIANTS;
conftest.py gives its tests one `case` for each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from random_models import (
    MIN_AGREEMENT,
    class_shares,
    mmsegmentation_model,
    normalised,
    quarter_in_float64,
    random_images,
    randomise_weights,
    save_as_mmengine_does,
)
from torch import Tensor, nn

from exporter.load import LoadedModel, load_model
from exporter.onnx_graph import GraphSpec, onnx_from_model
from exporter.rewrites.rewritten import rewritten_for_export
from exporter.simplify import simplify_onnx

FLOAT64 = 1e-8  # of the logits' standard deviation; a wrong epsilon has an effect of 1e-6


@dataclass(frozen=True)
class Variant:
    """One configuration of mmsegmentation's, by its path below `configs`, with random weights.

    `description`: fields of the ModelDescription that the tensors must give. `hw` is the trained
    size. `tolerance`: allowed difference of float32 logits, per standard deviation of the logits.
    `change` edits the configuration before the model is built. `graph`: whether the ONNX graph is
    compared too, which takes time and memory. `class_offsets` names a parameter that is added to
    the logits of each class; it is set so that every class wins somewhere.
    """

    config: str
    description: Mapping[str, Any]
    hw: tuple[int, int]
    other_hw: tuple[int, int]
    tolerance: float
    classes: int = 6
    graph: bool = True
    slow: bool = False
    class_offsets: str | None = None
    change: Callable[[Any], None] = field(default=lambda config: None)

    def __str__(self) -> str:
        description = self.description
        return f"{description['architecture']}-{description['variant']}-{self.hw[0]}x{self.hw[1]}"


@dataclass(frozen=True)
class Case:
    """mmsegmentation's model and ours, which was read from its file."""

    variant: Variant
    theirs: Any
    ours: LoadedModel

    def image(self, hw: tuple[int, int], seed: int = 1) -> Tensor:
        """A normalised (1, 3, H, W) float32 image."""
        return normalised(random_images(1, hw, seed=seed), self.ours.mean, self.ours.std)


def configuration(variant: Variant) -> Any:
    """mmsegmentation's own configuration, with `classes` outputs and without pretraining."""
    import mmseg

    config = Config.fromfile(Path(mmseg.__file__).parent / ".mim" / "configs" / variant.config)
    config.model.pretrained = None
    config.model.backbone.init_cfg = None
    config.model.auxiliary_head = None
    set_classes(config.model.decode_head, variant.classes)
    variant.change(config)
    return config


def set_classes(head: Any, classes: int) -> None:
    """In a head, in the heads inside it, and in what its losses know of the classes."""
    for key, value in list(head.items()):
        if key == "num_classes":
            head[key] = classes
        elif key == "class_weight" and isinstance(value, list):
            head[key] = [1.0] * classes + [0.1]
        elif isinstance(value, dict):
            set_classes(value, classes)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for item in value:
                set_classes(item, classes)


def made_case(variant: Variant, folder: Path) -> Case:
    config = configuration(variant)
    theirs = mmsegmentation_model(config)
    preprocessor = config.model.data_preprocessor
    # Small images suffice for BatchNorm's statistics, and take a twentieth of the time.
    # Two, since a BatchNorm after a pooling to 1x1 sees one value in each.
    x = normalised(random_images(2, (160, 128)), preprocessor.mean, preprocessor.std)
    randomise_weights(theirs, lambda: their_logits(theirs, x), seed=2)
    if variant.class_offsets is not None:
        balance(theirs.get_parameter(variant.class_offsets), their_logits(theirs, x))
    path = folder / "model.pth"
    save_as_mmengine_does(theirs, config, path, classes=variant.classes)
    ours = load_model(path)
    path.unlink()  # 1 GB for the largest
    return Case(variant, theirs, ours)


def balance(offsets: nn.Parameter, logits: Tensor) -> None:
    """Towards equal shares of the labels: rare classes gain, frequent ones lose."""
    rows = logits.movedim(1, 3).flatten(0, 2)  # (pixels, classes)
    shift, step = -rows.mean(dim=0), 0.1 * deviation(logits)
    for _ in range(100):
        share = class_shares((rows + shift).argmax(1), len(shift))
        shift -= step * torch.log(share * len(shift) + 0.1)
    with torch.no_grad():
        offsets += shift


def their_logits(model: Any, x: Tensor) -> Tensor:
    """(N, K, H, W) at the size of `x`, normalised (N, 3, H, W), as mmsegmentation's test has it."""
    hw = tuple(x.shape[2:])
    meta = {"img_shape": hw, "ori_shape": hw, "pad_shape": hw, "batch_input_shape": hw}
    with torch.no_grad():
        logits: Tensor = model.encode_decode(x, [meta] * x.shape[0])
    return logits


def our_logits(net: nn.Module, x: Tensor, align_corners: bool = False) -> Tensor:
    with torch.no_grad():
        logits = net(x)
        if logits.shape[2:] == x.shape[2:]:
            return logits  # type: ignore[no-any-return]
        return F.interpolate(logits, x.shape[2:], mode="bilinear", align_corners=align_corners)


def deviation(logits: Tensor) -> float:
    return float((logits - logits.mean(dim=(0, 2, 3), keepdim=True)).std())


def check_within(got: Tensor, want: Tensor, tolerance: float) -> None:
    """Values within `tolerance` standard deviations; labels equal but where two are that near."""
    assert got.shape == want.shape
    assert torch.isfinite(got).all()
    sigma = deviation(want)
    worst = float((got - want).abs().max()) / sigma
    print(f"\n{worst:.1e} standard deviations of {sigma:.2g}")
    assert worst <= tolerance, f"logits differ by {worst:.2e} standard deviations"
    check_labels(got.argmax(1), want, tolerance)


def check_labels(labels: Tensor, want: Tensor, tolerance: float) -> None:
    top = want.topk(2, dim=1).values
    clear = top[:, 0] - top[:, 1] >= tolerance * deviation(want)
    assert clear.float().mean() > 0.98, "too many near ties for a comparison of labels"
    agreement = 100.0 * float((labels == want.argmax(1))[clear].double().mean())
    assert agreement >= MIN_AGREEMENT, f"{agreement:.4f} % of the labels agree"


class AgainstMmsegmentation:
    VARIANTS: tuple[Variant, ...] = ()

    def test_random_weights_give_more_than_one_class(self, case: Case) -> None:
        labels = their_logits(case.theirs, case.image((160, 128))).argmax(1)
        shares = class_shares(labels, case.variant.classes)
        assert (shares > 0.03).sum() >= 2, shares

    def test_it_is_found_from_the_tensors(self, case: Case) -> None:
        found = case.ours.description
        got = {name: getattr(found, name) for name in case.variant.description}
        assert got == dict(case.variant.description)
        assert found.num_outputs == case.variant.classes
        assert found.source == "mmsegmentation"
        assert found.parameters == sum(p.numel() for p in case.theirs.parameters())

    @pytest.mark.parametrize("size", ["hw", "other_hw"])
    def test_logits_are_mmsegmentations(self, case: Case, size: str) -> None:
        x = case.image(getattr(case.variant, size))
        want = their_logits(case.theirs, x)
        check_within(our_logits(case.ours.net, x), want, case.variant.tolerance)

    def test_in_float64_the_original_and_the_rewritten_differ_by_rounding_alone(
        self, case: Case
    ) -> None:
        x = quarter_in_float64(case.image(case.variant.other_hw))
        theirs, ours = case.theirs.double(), case.ours.net.double()
        try:
            want = their_logits(theirs, x)
            limit = FLOAT64 * deviation(want)
            assert float((our_logits(ours, x) - want).abs().max()) <= limit
            rewritten = rewritten_for_export(ours, (int(x.shape[2]), int(x.shape[3])))
            assert float((our_logits(rewritten, x) - want).abs().max()) <= limit
        finally:
            theirs.float()  # exact, since the numbers came from float32
            ours.float()

    def test_the_graph_gives_mmsegmentations_logits_and_labels(
        self, case: Case, tmp_path: Path
    ) -> None:
        variant = case.variant
        if not variant.graph:
            pytest.skip("the graph of a smaller variant is compared")
        images = random_images(1, variant.hw, seed=3)
        spec = GraphSpec(variant.hw, case.ours.mean, case.ours.std, output="both")
        traced, graph = tmp_path / "traced.onnx", tmp_path / "graph.onnx"
        net = rewritten_for_export(case.ours.net, variant.hw)
        onnx_from_model(net, spec, traced, num_outputs=variant.classes)
        simplify_onnx(traced, graph, batch=images)
        traced.unlink()
        want = their_logits(case.theirs, normalised(images, case.ours.mean, case.ours.std))
        session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
        labels, logits = session.run(None, {"image": images})
        assert labels.dtype == np.uint8
        check_within(torch.from_numpy(logits), want, variant.tolerance)
        check_labels(torch.from_numpy(labels).long(), want, variant.tolerance)


def parametrised(metafunc: pytest.Metafunc) -> None:
    """One `case` for each variant of the test's class; for conftest.py."""
    owner = metafunc.cls
    if owner is not None and issubclass(owner, AgainstMmsegmentation):
        marks = [[pytest.mark.slow] if v.slow else [] for v in owner.VARIANTS]
        values = [
            pytest.param(v, marks=m, id=str(v)) for v, m in zip(owner.VARIANTS, marks, strict=True)
        ]
        metafunc.parametrize("case", values, indirect=True, scope="class")


@pytest.fixture(scope="class")
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return made_case(request.param, tmp_path_factory.mktemp("reference"))
