"""`riceseg evaluate --mode --tta` beside mmsegmentation's pipelines, segmentors and TTA model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from against_mmsegmentation import Case, Variant, made_case
from mmengine.config import ConfigDict
from mmengine.dataset import Compose, pseudo_collate
from mmseg.models import SegTTAModel
from random_models import random_images

from engines.evaluation.image_predictor import ImagePredictor
from engines.evaluation.preparation import ImageScale
from engines.resize import ResizeRule, network_image_from_image
from exporter.inference import Inference, plan_for_checkpoint, torch_predictor
from exporter.onnx_graph import GraphSpec, ImageToLabels
from exporter.torch_images import TorchImages

pytestmark = [
    # mmengine's, of the labels that SegTTAModel stores.
    pytest.mark.filterwarnings("ignore:The shape of value will convert:UserWarning"),
    # mmsegmentation's, of sizes that do not suit align_corners.
    pytest.mark.filterwarnings("ignore:When align_corners=True:UserWarning"),
]

# Of probabilities, and of logits with a deviation of about 0.5. The networks alone differ by up to
# 2e-5, since batches and normalisation are computed in another order.
TOLERANCE = 1e-4
CROP, STRIDE = (128, 128), (85, 85)
SCALE = (230, 150)  # of the test pipeline, (width, height)
SIZES = ((140, 201), (96, 180), (111, 83))  # the last one is smaller than the windows at ratio 1


def for_windows(config: Any) -> None:
    """Small windows, small test scale, and the patch bias that Segmenter's checkpoints have."""
    config.model.test_cfg = ConfigDict(mode="slide", crop_size=CROP, stride=STRIDE)
    for transform in config.test_pipeline:
        if transform.type == "Resize":
            transform.scale = SCALE
    config.test_dataloader.dataset.pipeline = config.test_pipeline
    if config.model.backbone.type == "VisionTransformer":
        config.model.backbone.patch_bias = True


def whole_and_padded(config: Any) -> None:
    """mmsegmentation's Mask2Former pads so; it makes no difference which network it is done for."""
    for_windows(config)
    config.model.test_cfg = ConfigDict(mode="whole")
    config.model.data_preprocessor.test_cfg = ConfigDict(size_divisor=64)


def aligned(config: Any) -> None:
    """AlignedResize of the published figures, and a head that aligns corners."""
    for_windows(config)
    config.model.test_cfg = ConfigDict(mode="whole")
    config.model.decode_head.align_corners = True
    place = [t.type for t in config.test_pipeline].index("Resize")
    config.test_pipeline.insert(place + 1, ConfigDict(type="ResizeToMultiple", size_divisor=32))
    config.test_dataloader.dataset.pipeline = config.test_pipeline


SEGFORMER = "segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py"
SEGMENTER = "segmenter/segmenter_vit-t_mask_8xb1-160k_ade20k-512x512.py"
MODELS = {
    "segformer-slide": (SEGFORMER, for_windows),
    "segformer-padded": (SEGFORMER, whole_and_padded),
    "segformer-aligned": (SEGFORMER, aligned),
    "segmenter-slide": (SEGMENTER, for_windows),
}


@dataclass(frozen=True)
class Setup:
    case: Case
    config: Any
    mode: str


@pytest.fixture(scope="module", params=MODELS)
def setup(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Setup:
    path, change = MODELS[request.param]
    configs = []

    def keep(config: Any) -> None:
        change(config)
        configs.append(config)

    variant = Variant(path, {}, (512, 512), (512, 512), TOLERANCE, change=keep)
    case = made_case(variant, tmp_path_factory.mktemp("modes"))
    config = configs[0]
    spread(case)
    return Setup(case, config, config.model.test_cfg.mode)


def spread(case: Case) -> None:
    """Shift the last layer in both models, so that no class always wins, and scale a classifier.

    Segmenter's logits are normalised over the classes, and vary little over an image.
    """
    x = torch.cat([case.image((128, 128), seed=hw[0]) for hw in SIZES])
    with torch.no_grad():
        logits = case.theirs.encode_decode(x, [{"img_shape": (128, 128)}] * len(x))
        mean, std = logits.mean(dim=(0, 2, 3)), logits.std(dim=(0, 2, 3))
        for net in (case.theirs, case.ours.net):
            head = net.decode_head
            if hasattr(head, "mask_norm"):
                head.mask_norm.bias -= mean
            else:
                head.conv_seg.weight /= 2 * std.view(-1, 1, 1, 1)
                head.conv_seg.bias.copy_((head.conv_seg.bias - mean) / (2 * std))


def picture(hw: tuple[int, int]) -> np.ndarray[Any, Any]:
    image: np.ndarray[Any, Any] = random_images(1, hw, seed=hw[0])[0]
    return image


def their_samples(
    setup: Setup, image: np.ndarray[Any, Any], pipeline: list[Any]
) -> Iterator[dict[str, Any]]:
    """What mmsegmentation's data loader would give the model, for each augmentation one."""
    bgr = np.ascontiguousarray(image[:, :, ::-1])
    kept = [t for t in pipeline if not t["type"].startswith("Load")]
    for transform in kept:
        if transform["type"] == "TestTimeAug":
            inner = [[t for t in group if t["type"] != "LoadAnnotations"]
                     for group in transform["transforms"]]  # fmt: skip
            transform["transforms"] = [group for group in inner if group]
    results = {"img": bgr, "img_shape": bgr.shape[:2], "ori_shape": bgr.shape[:2], "img_path": "-"}
    packed = Compose(kept)(results)
    yield pseudo_collate([packed])


def copied(pipeline: Any) -> list[Any]:
    plain: list[Any] = ConfigDict(pipeline=pipeline).to_dict()["pipeline"]
    return plain


def their_logits_and_labels(setup: Setup, data: dict[str, Any]) -> tuple[Any, Any]:
    with torch.no_grad():
        sample = setup.case.theirs.test_step(data)[0]
    return sample.seg_logits.data, sample.pred_sem_seg.data[0].numpy()


def their_sum_and_labels(setup: Setup, data: dict[str, Any]) -> tuple[Any, Any]:
    """The sum of all softmaxes, by hand, and the labels of SegTTAModel itself."""
    total: Any = 0
    count = len(data["inputs"])
    with torch.no_grad():
        for index in range(count):
            one = {key: value[index] for key, value in data.items()}
            total = total + setup.case.theirs.test_step(one)[0].seg_logits.data.softmax(0)
        model = SegTTAModel(module=setup.case.theirs)
        labels = model.test_step(data)[0].pred_sem_seg.data[0].numpy()
    assert np.array_equal(labels, total.argmax(0).numpy())
    return total / count, labels


def ours(setup: Setup, **asked: Any) -> ImagePredictor:
    loaded = setup.case.ours
    plan = plan_for_checkpoint(Inference(mode=setup.mode, **asked), loaded)
    corners = bool(loaded.settings.align_corners)
    spec = GraphSpec((512, 512), loaded.mean, loaded.std, align_corners=corners)
    predictor = torch_predictor(plan, ImageToLabels(loaded.net, spec))
    if not isinstance(predictor, ImagePredictor):  # whole images fill a fixed size by default
        source = TorchImages(ImageToLabels(loaded.net, spec), None, pad=plan.pad)
        predictor = ImagePredictor(
            source, preparation=plan.preparation, align_corners=plan.align_corners
        )
    return predictor


def check(labels: Any, their_labels: Any, scores: Any) -> None:
    """Equal but where the two best are nearer than rounding."""
    best = torch.as_tensor(scores).topk(2, dim=0).values
    clear = (best[0] - best[1] > TOLERANCE).numpy()
    assert clear.mean() > 0.98
    assert np.array_equal(labels[clear], their_labels[clear])


@pytest.mark.parametrize("hw", SIZES, ids=str)
def test_one_prediction_of_an_image_is_mmsegmentations(setup: Setup, hw: Any) -> None:
    image = picture(hw)
    (data,) = their_samples(setup, image, copied(setup.config.test_pipeline))
    logits, their_labels = their_logits_and_labels(setup, data)
    predictor = ours(setup)
    found = predictor.predict(image, hw, ResizeRule("stretch"))
    check(found.image, their_labels, logits)
    assert len(np.unique(their_labels)) >= 2


@pytest.mark.parametrize("hw", SIZES, ids=str)
def test_averaged_logits_of_windows_are_mmsegmentations(setup: Setup, hw: Any) -> None:
    image = picture(hw)
    (data,) = their_samples(setup, image, copied(setup.config.test_pipeline))
    theirs = setup.case.theirs
    prepared = theirs.data_preprocessor(data, False)
    x = prepared["inputs"]
    meta = {"ori_shape": hw, "img_shape": tuple(x.shape[2:])}
    with torch.no_grad():
        want = theirs.inference(x, [meta])[0].numpy()
    plan = plan_for_checkpoint(Inference(mode=setup.mode), setup.case.ours)
    given = data["inputs"][0].numpy()[::-1].transpose(1, 2, 0)  # BGR to RGB, channels last
    mean, std = setup.case.ours.mean, setup.case.ours.std
    corners = bool(setup.case.ours.settings.align_corners)
    spec = GraphSpec((512, 512), mean, std, align_corners=corners)
    source = TorchImages(ImageToLabels(setup.case.ours.net, spec), plan.windows, pad=plan.pad)
    found = np.concatenate(list(source.bands(given)), axis=1)
    assert found.shape[1:] == given.shape[:2]
    np.testing.assert_allclose(found, want[:, : found.shape[1], : found.shape[2]], atol=TOLERANCE)


@pytest.mark.parametrize(
    ("hw", "tta"), [(SIZES[0], "ms+flip"), (SIZES[1], "ms"), (SIZES[2], "ms+flip")], ids=str
)
def test_scales_and_mirror_images_are_averaged_as_its_tta_model_does(
    setup: Setup, hw: Any, tta: str
) -> None:
    image = picture(hw)
    pipeline = copied(setup.config.tta_pipeline)
    if tta == "ms":
        pipeline[1]["transforms"][1] = [{"type": "RandomFlip", "prob": 0.0}]
    (data,) = their_samples(setup, image, pipeline)
    assert len(data["inputs"]) == {"ms": 6, "ms+flip": 12}[tta]
    mean, their_labels = their_sum_and_labels(setup, data)
    predictor = ours(setup, tta=tta)
    total = predictor.summed(image)
    np.testing.assert_allclose(total.values / len(data["inputs"]), mean.numpy(), atol=TOLERANCE)
    check(predictor.labels(image), their_labels, mean)


@pytest.mark.parametrize("hw", SIZES[:2], ids=str)
def test_the_mirror_image_alone_is_averaged_as_its_tta_model_does(setup: Setup, hw: Any) -> None:
    """Of windows at the test scale; whole images fill the network's input, here 128x192."""
    image, slides = picture(hw), setup.mode == "slide"
    scale = {"type": "Resize", "scale": SCALE if slides else (192, 128), "keep_ratio": slides}
    pipeline = copied(setup.config.tta_pipeline)
    pipeline[1]["transforms"][0] = [scale]
    (data,) = their_samples(setup, image, pipeline)
    mean, their_labels = their_sum_and_labels(setup, data)
    loaded = setup.case.ours
    plan = plan_for_checkpoint(Inference(mode=setup.mode, tta="flip"), loaded)
    corners = bool(loaded.settings.align_corners)
    spec = GraphSpec((128, 192), loaded.mean, loaded.std, align_corners=corners)
    predictor = torch_predictor(plan, ImageToLabels(loaded.net, spec))
    rule = ResizeRule("stretch")
    given = image if slides else network_image_from_image(image, (128, 192), rule, (0, 0, 0))
    check(predictor.predict(given, hw, rule).image, their_labels, mean)
    if isinstance(predictor, ImagePredictor):
        np.testing.assert_allclose(predictor.summed(image).values / 2, mean.numpy(), atol=TOLERANCE)


@pytest.mark.parametrize("hw", SIZES[:2], ids=str)
def test_ratios_of_a_given_scale_are_those_of_multi_scale_flip_aug(setup: Setup, hw: Any) -> None:
    """mmsegmentation 0.x: `int(side * ratio)` of img_scale, then the ratio of the image kept."""
    image = picture(hw)
    ratios = [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]
    pipeline = copied(setup.config.tta_pipeline)
    pipeline[1]["transforms"][0] = [
        {"type": "Resize", "scale": (int(200 * r), int(140 * r)), "keep_ratio": True}
        for r in ratios
    ]
    (data,) = their_samples(setup, image, pipeline)
    mean, their_labels = their_sum_and_labels(setup, data)
    predictor = ours(setup, tta="ms+flip", scale=(140, 200))
    np.testing.assert_allclose(predictor.summed(image).values / 12, mean.numpy(), atol=TOLERANCE)
    check(predictor.labels(image), their_labels, mean)


@pytest.mark.parametrize("hw", [(375, 500), (512, 683), (1, 7), (301, 299), (3000, 4000)])
@pytest.mark.parametrize("scale", [(2048, 512), (512, 512), (1024, 2048)])
def test_sizes_are_mmcvs(hw: Any, scale: Any) -> None:
    from mmcv.transforms import Resize

    for ratio in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75):
        limits = int(scale[0] * ratio), int(scale[1] * ratio)
        for keep in (True, False):
            if hw[0] > 2000 and ratio > 1:
                continue
            blank = np.zeros((*hw, 3), np.uint8)
            of_scale = Resize(scale=limits, keep_ratio=keep)({"img": blank})["img"].shape[:2]
            assert ImageScale(scale, keep).steps(hw, ratio) == [of_scale]
            if keep is False or min(hw) * ratio < 1:
                continue
            results = {"img": blank, "img_shape": hw}
            of_image = Resize(scale_factor=ratio, keep_ratio=True)(results)["img"].shape[:2]
            assert ImageScale().steps(hw, ratio) == [of_image]
