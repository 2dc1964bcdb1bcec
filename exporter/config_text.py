"""What an mmsegmentation training configuration, kept as text in a checkpoint, says.

It is asked for what the tensors cannot tell: how images are prepared and tested, and the layers'
strides, dilations, pool scales and attention heads.

The text is read as data (`exporter.config_literals`); mmengine's and mmcv's `Config.fromstring`
would execute it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from exporter.config_fields import count_of, dict_of, flag_of, numbers_of, pair_of, text_of
from exporter.config_literals import UNKNOWN, ConfigSyntaxError, values_from_text
from exporter.config_model import backbone_settings, head_settings
from exporter.config_pipeline import (
    dataset_of,
    of_type,
    padded_to,
    preprocessor_of,
    tested_transforms,
    transforms_of,
)
from exporter.config_unusual import unusual_settings

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

    `strides`, `dilations` and `contract_dilation` are a ResNet's, the first two one number a stage.
    `head_dilations` are those of ASPP and `pool_scales` those of pyramid pooling, in the decode
    head or in K-Net's first head; `num_heads` those of the decoder's attention. `unusual`: what of
    both is not computed here, such as "backbone.style='caffe'". `complete`: whether it builds on no
    other file, so that what it does not say has its usual value.
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
    strides: tuple[int, ...] | None = None
    dilations: tuple[int, ...] | None = None
    contract_dilation: bool | None = None
    head_dilations: tuple[int, ...] | None = None
    pool_scales: tuple[int, ...] | None = None
    num_heads: int | None = None
    unusual: tuple[str, ...] = ()
    complete: bool = True
    notes: tuple[str, ...] = ()


def settings_from_config_text(text: str) -> ConfigSettings:
    """Reads the configuration text of mmsegmentation 0.x (mmcv) or 1.x (mmengine).

    Nothing is executed. Text that is not Python gives settings that are all None, and a note.
    """
    try:
        values = values_from_text(text)
    except ConfigSyntaxError as error:
        return ConfigSettings(notes=(f"the configuration text cannot be read: {error}",))
    notes = _notes(values)
    model = dict_of(values.get("model"))
    complete = "_base_" not in values
    pipeline = tested_transforms(values)
    return ConfigSettings(
        model_type=text_of(model.get("type")),
        **backbone_settings(model, notes, complete=complete),
        **head_settings(model, notes, complete=complete),
        **_normalisation(values, model, pipeline),
        **_test_cfg(values, model, notes),
        **_resize(values, pipeline),
        reduce_zero_label=_reduce_zero_label(values),
        size_divisor=_size_divisor(values, model, pipeline, notes),
        unusual=unusual_settings(model),
        complete=complete,
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


def _normalisation(
    values: dict[str, object], model: dict[str, Any], pipeline: list[dict[str, Any]]
) -> dict[str, Any]:
    preprocessor = preprocessor_of(values, model)
    if preprocessor:
        source, to_rgb = preprocessor, preprocessor.get("bgr_to_rgb", False)
    else:
        source = of_type(pipeline, "Normalize") or dict_of(values.get("img_norm_cfg"))
        to_rgb = source.get("to_rgb", True) if source else None
    mean, std = numbers_of(source.get("mean")), numbers_of(source.get("std"))
    if mean is None or std is None or len(mean) != len(std) or min(std) <= 0:
        return {}
    return {"mean": mean, "std": std, "to_rgb": flag_of(to_rgb)}


def _test_cfg(values: dict[str, object], model: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    """model.test_cfg, or the top-level one of mmsegmentation before 0.7."""
    settings = dict_of(model.get("test_cfg")) or dict_of(values.get("test_cfg"))
    mode = settings.get("mode")
    if mode not in ("whole", "slide"):
        if mode is not None:
            notes.append("the test mode is neither 'whole' nor 'slide'")
        return {}
    crop, stride = pair_of(settings.get("crop_size")), pair_of(settings.get("stride"))
    return {"test_mode": mode, "crop_size": crop, "stride": stride}


def _resize(values: dict[str, object], pipeline: list[dict[str, Any]]) -> dict[str, Any]:
    resize = next((t for t in pipeline if (text_of(t.get("type")) or "").endswith("Resize")), None)
    if resize is None:
        return {}
    augmentation = of_type(pipeline, "MultiScaleFlipAug")
    scales = augmentation.get("img_scale") or resize.get("img_scale") or resize.get("scale")
    scale = scales[0] if isinstance(scales, list) and scales and not count_of(scales[0]) else scales
    of_mmcv_0 = bool(augmentation) or "data" in values  # where the default was the other one
    keep_ratio = flag_of(resize.get("keep_ratio", of_mmcv_0))
    return {"test_scale": pair_of(scale), "keep_ratio": keep_ratio}


def _reduce_zero_label(values: dict[str, object]) -> bool | None:
    test, train = dataset_of(values, "test"), dataset_of(values, "train")
    of_training = (train.get("pipeline"), values.get("train_pipeline"))
    for transforms in (tested_transforms(values), *map(transforms_of, of_training)):
        stated = of_type(transforms, "LoadAnnotations").get("reduce_zero_label")
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
    padded = padded_to(preprocessor_of(values, model))
    if padded is not None:
        notes.append(f"sides are padded to multiples of {padded} after normalisation")
        return padded
    for transform in pipeline:
        divisor = count_of(transform.get("size_divisor"))
        if divisor is not None:
            notes.append(f"sides become multiples of {divisor} in {text_of(transform.get('type'))}")
            return divisor
    return None
