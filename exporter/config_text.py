"""What an mmsegmentation training configuration, kept as text in a checkpoint, says about testing.

The text is read as data (`exporter.config_literals`); mmengine's and mmcv's `Config.fromstring`
would execute it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, cast

from exporter.config_literals import UNKNOWN, ConfigSyntaxError, values_from_text

_MAX_TRANSFORMS = 100
# These data sets of mmsegmentation 0.x and 1.x have reduce_zero_label=True as their own default.
_ZERO_IS_NO_CLASS = (
    "ADE20KDataset",
    "ISPRSDataset",
    "LoveDADataset",
    "PascalContextDataset59",
    "PotsdamDataset",
)


@dataclass(frozen=True)
class ConfigSettings:
    """None where the configuration does not say.

    `mean` and `std` are per channel, on the scale 0..255, in the order of the network's input;
    `to_rgb` says whether the image was turned from OpenCV's BGR into RGB before. `crop_size` and
    `stride` are (height, width). `test_scale` is mmcv's (width, height); with `keep_ratio` its two
    numbers limit the longer and the shorter side, whichever comes first. `size_divisor` is what
    the sides are rounded or padded up to; `notes` say which.
    """

    model_type: str | None = None
    backbone_type: str | None = None
    decode_head_type: str | None = None
    num_classes: int | None = None
    align_corners: bool | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    to_rgb: bool | None = None
    test_mode: str | None = None
    crop_size: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    keep_ratio: bool | None = None
    test_scale: tuple[int, int] | None = None
    reduce_zero_label: bool | None = None
    size_divisor: int | None = None
    notes: tuple[str, ...] = field(default=())


def settings_from_config_text(text: str) -> ConfigSettings:
    """Reads the configuration text of mmsegmentation 0.x (mmcv) or 1.x (mmengine).

    Nothing is executed. Text that is not Python gives settings that are all None, and a note.
    """
    try:
        values = values_from_text(text)
    except ConfigSyntaxError as error:
        return ConfigSettings(notes=(f"the configuration text cannot be read: {error}",))
    notes = _notes(values)
    model = _dict(values.get("model"))
    pipeline = _transforms(_test_pipeline(values))
    return ConfigSettings(
        model_type=_text(model.get("type")),
        backbone_type=_text(_dict(model.get("backbone")).get("type")),
        **_head(model),
        **_normalisation(values, model, pipeline),
        **_test_cfg(values, model, notes),
        **_resize(values, pipeline),
        reduce_zero_label=_reduce_zero_label(values),
        size_divisor=_size_divisor(values, model, pipeline, notes),
        notes=tuple(notes),
    )


def _notes(values: dict[str, object]) -> list[str]:
    if not values:
        return ["the configuration text holds no assignment"]
    notes = []
    if "_base_" in values:
        notes.append("the configuration builds on other files (_base_), which were not read")
    unknown = [name for name, value in values.items() if value is UNKNOWN]
    if unknown:
        notes.append("not worked out, since it would need Python: " + ", ".join(unknown[:4]))
    return notes


def _head(model: dict[str, Any]) -> dict[str, Any]:
    """Of a cascade the last head counts; K-Net's classes are those of its first prediction."""
    heads = model.get("decode_head")
    head = _dict(heads[-1] if isinstance(heads, list) and heads else heads)
    source = head if "num_classes" in head else _dict(head.get("kernel_generate_head"))
    corners = head.get("align_corners", source.get("align_corners"))
    return {
        "decode_head_type": _text(head.get("type")),
        "num_classes": _count(source.get("num_classes")),
        "align_corners": _flag(corners),
    }


def _normalisation(
    values: dict[str, object], model: dict[str, Any], pipeline: list[dict[str, Any]]
) -> dict[str, Any]:
    preprocessor = _preprocessor(values, model)
    if preprocessor:
        source, to_rgb = preprocessor, preprocessor.get("bgr_to_rgb", False)
    else:
        source = _of_type(pipeline, "Normalize") or _dict(values.get("img_norm_cfg"))
        to_rgb = source.get("to_rgb", True) if source else None
    mean, std = _numbers(source.get("mean")), _numbers(source.get("std"))
    if mean is None or std is None or len(mean) != len(std) or min(std) <= 0:
        return {}
    return {"mean": mean, "std": std, "to_rgb": _flag(to_rgb)}


def _test_cfg(values: dict[str, object], model: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    """model.test_cfg, or the top-level one of mmsegmentation before 0.7."""
    settings = _dict(model.get("test_cfg")) or _dict(values.get("test_cfg"))
    mode = settings.get("mode")
    if mode not in ("whole", "slide"):
        if mode is not None:
            notes.append("the test mode is neither 'whole' nor 'slide'")
        return {}
    crop, stride = _pair(settings.get("crop_size")), _pair(settings.get("stride"))
    return {"test_mode": mode, "crop_size": crop, "stride": stride}


def _resize(values: dict[str, object], pipeline: list[dict[str, Any]]) -> dict[str, Any]:
    resize = next((t for t in pipeline if (_text(t.get("type")) or "").endswith("Resize")), None)
    if resize is None:
        return {}
    augmentation = _of_type(pipeline, "MultiScaleFlipAug")
    scales = augmentation.get("img_scale") or resize.get("img_scale") or resize.get("scale")
    scale = scales[0] if isinstance(scales, list) and scales and not _count(scales[0]) else scales
    of_mmcv_0 = bool(augmentation) or "data" in values  # where the default was the other one
    keep_ratio = _flag(resize.get("keep_ratio", of_mmcv_0))
    return {"test_scale": _pair(scale), "keep_ratio": keep_ratio}


def _reduce_zero_label(values: dict[str, object]) -> bool | None:
    test, train = _dataset(values, "test"), _dataset(values, "train")
    for pipeline in (_test_pipeline(values), train.get("pipeline"), values.get("train_pipeline")):
        stated = _of_type(_transforms(pipeline), "LoadAnnotations").get("reduce_zero_label")
        if isinstance(stated, bool):
            return stated
    for dataset in (test, train):
        if isinstance(dataset.get("reduce_zero_label"), bool):
            return bool(dataset["reduce_zero_label"])
    kind = test.get("type", train.get("type", values.get("dataset_type")))
    return kind in _ZERO_IS_NO_CLASS if isinstance(kind, str) else None


def _size_divisor(
    values: dict[str, object],
    model: dict[str, Any],
    pipeline: list[dict[str, Any]],
    notes: list[str],
) -> int | None:
    padded = _count(_dict(_preprocessor(values, model).get("test_cfg")).get("size_divisor"))
    if padded is not None:
        notes.append(f"sides are padded to multiples of {padded} after normalisation")
        return padded
    for transform in pipeline:
        divisor = _count(transform.get("size_divisor"))
        if divisor is not None:
            notes.append(f"sides become multiples of {divisor} in {_text(transform.get('type'))}")
            return divisor
    return None


def _preprocessor(values: dict[str, object], model: dict[str, Any]) -> dict[str, Any]:
    return _dict(model.get("data_preprocessor")) or _dict(values.get("data_preprocessor"))


def _dataset(values: dict[str, object], part: str) -> dict[str, Any]:
    """data.test of 0.x, test_dataloader.dataset of 1.x, without RepeatDataset and the like."""
    dataset: Any = _dict(values.get("data")).get(part)
    if dataset is None:
        dataset = _dict(values.get(f"{part}_dataloader")).get("dataset")
    for _ in range(4):
        if isinstance(dataset, list) and dataset:
            dataset = dataset[0]
        inner = _dict(dataset).get("dataset", _dict(dataset).get("datasets"))
        if inner is None:
            break
        dataset = inner
    return _dict(dataset)


def _test_pipeline(values: dict[str, object]) -> object:
    stated = _dataset(values, "test").get("pipeline")
    return stated if isinstance(stated, list) else values.get("test_pipeline")


def _transforms(pipeline: object) -> list[dict[str, Any]]:
    """The transforms in order, those inside MultiScaleFlipAug after it."""
    flat: list[dict[str, Any]] = []
    for transform in pipeline[:_MAX_TRANSFORMS] if isinstance(pipeline, list) else []:
        flat.append(_dict(transform))
        inner = flat[-1].get("transforms")
        flat += [_dict(t) for t in inner[:_MAX_TRANSFORMS]] if isinstance(inner, list) else []
    return flat


def _of_type(transforms: Iterable[dict[str, Any]], kind: str) -> dict[str, Any]:
    return next((t for t in transforms if t.get("type") == kind), {})


def _dict(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and len(value) < 100 and value.isprintable() else None


def _flag(value: object) -> bool | None:
    return value if isinstance(value, bool) else None


def _count(value: object) -> int | None:
    return value if type(value) is int and 0 < value < 2**31 else None


def _numbers(value: object) -> tuple[float, ...] | None:
    if not isinstance(value, list | tuple) or not 0 < len(value) <= 64:
        return None
    if not all(type(v) in (int, float) and math.isfinite(v) for v in value):
        return None
    return tuple(float(v) for v in value)


def _pair(value: object) -> tuple[int, int] | None:
    """Two counts; a single one stands for both."""
    pair = value if isinstance(value, list | tuple) else (value, value)
    counts = [_count(part) for part in pair]
    if len(counts) != 2 or counts[0] is None or counts[1] is None:
        return None
    return counts[0], counts[1]
