"""How a checkpoint's configuration brings images to the network's scale when it is tested."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from engines.evaluation.preparation import OWN_SIZE, ImageScale, Preparation
from exporter.config_fields import count_of, dict_of, flag_of
from exporter.config_literals import ConfigSyntaxError, values_from_text
from exporter.config_pipeline import padded_to, preprocessor_of, tested_transforms, transforms_of
from exporter.config_text import ConfigSettings


def preparation_from_config(text: str, settings: ConfigSettings) -> tuple[Preparation, int]:
    """The scales of `text`, which `settings` were read from, and what sides are padded up to.

    mmsegmentation 0.x applies a ratio of the augmentation to its test scale; a `tta_pipeline` of
    1.x to the image. Padding, at the right and the bottom with 0 after normalisation, is up to a
    multiple: 1 for none. Where the text says nothing, images stay at their own size.
    """
    try:
        values = values_from_text(text)
    except ConfigSyntaxError:
        values = {}
    padded = padded_to(preprocessor_of(values, dict_of(values.get("model"))))
    transforms = tested_transforms(values)
    padded = padded or _divisor(transforms, "Pad")
    scale = OWN_SIZE
    if settings.test_scale is not None:
        scale = ImageScale(settings.test_scale, settings.keep_ratio is not False)
    tested = replace(scale, multiple=_divisor(transforms, "Resize", "ResizeToMultiple") or 1)
    return Preparation(tested, _augmented(values, tested)), padded or 1


def _augmented(values: dict[str, object], tested: ImageScale) -> ImageScale:
    transforms = transforms_of(values.get("tta_pipeline"))
    resizes = [t for t in transforms if t.get("type") == "Resize" and "scale_factor" in t]
    if not resizes:
        return tested
    keep_ratio = flag_of(resizes[0].get("keep_ratio"))
    return ImageScale(None, bool(keep_ratio), _divisor(transforms, "ResizeToMultiple") or 1)


def _divisor(transforms: list[dict[str, Any]], *endings: str) -> int | None:
    """`size_divisor` of the first transform whose type ends so (AlignedResize, ...)."""
    for transform in transforms:
        divisor = count_of(transform.get("size_divisor"))
        if divisor is not None and str(transform.get("type")).endswith(endings):
            return divisor
    return None
