"""How an image is brought to the network's scale, or to several: mmsegmentation's test pipelines.

Sizes are rounded as mmcv rounds them:
https://github.com/open-mmlab/mmcv/blob/v2.1.0/mmcv/image/geometric.py (`rescale_size`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Tuple

from engines.errors import ConfigError
from engines.resize import Image, resize_bilinear

# The ratios of mmsegmentation's own configurations, 0.x (`MultiScaleFlipAug`) and 1.x.
RATIOS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
TTA = ("none", "flip", "ms", "ms+flip")
# What a record may ask for: it must not make a photo fill the memory.
MAX_SIDE, MAX_MULTIPLE = 8192, 1024


class Augmentation(NamedTuple):
    """One prediction of an image: at `ratio` of its test-time size, mirrored or not.

    None is the scale of the test without augmentation, which is not always ratio 1: see
    `Preparation`.
    """

    ratio: Optional[float]
    flip: bool


def augmentations(tta: str) -> Tuple[Augmentation, ...]:
    """What `tta` means; ConfigError for none of TTA."""
    if tta not in TTA:
        raise ConfigError(f"--tta {tta}", expected=", ".join(TTA), do="choose one of them")
    ratios: Tuple[Optional[float], ...] = RATIOS if tta.startswith("ms") else (None,)
    flips = (False, True) if tta.endswith("flip") else (False,)
    return tuple(Augmentation(ratio, flip) for ratio in ratios for flip in flips)


@dataclass(frozen=True)
class ImageScale:
    """The size that an image is resized to, in one step or two.

    `limits` is mmcv's scale (width, height). With `keep_ratio` the image becomes as large as it
    can with its longer side up to the larger number and its shorter up to the smaller, else
    exactly that; None leaves it at its own size. `multiple`: both sides are then rounded up to
    multiples of it, in a second resize (`ResizeToMultiple`, NVlabs' `AlignedResize`).
    """

    limits: Optional[Tuple[int, int]] = None
    keep_ratio: bool = True
    multiple: int = 1

    def steps(self, image_hw: Tuple[int, int], ratio: float = 1.0) -> List[Tuple[int, int]]:
        """The (height, width) of each resize, the last one what the network sees."""
        height, width = image_hw
        if self.limits is None:
            limits = int(width * ratio + 0.5), int(height * ratio + 0.5)
        else:
            limits = int(self.limits[0] * ratio), int(self.limits[1] * ratio)
        if self.keep_ratio:
            factor = min(max(limits) / max(image_hw), min(limits) / min(image_hw))
            limits = int(width * factor + 0.5), int(height * factor + 0.5)
        first = max(1, limits[1]), max(1, limits[0])
        aligned = tuple(-(-side // self.multiple) * self.multiple for side in first)
        return [first] if aligned == first else [first, (aligned[0], aligned[1])]


OWN_SIZE = ImageScale()


@dataclass(frozen=True)
class Preparation:
    """Both scales of a configuration: `tested` without augmentation, `augmented` times a ratio.

    They differ in mmsegmentation 1.x, whose `tta_pipeline` multiplies the image's own size even
    where its `test_pipeline` resizes to a scale; 0.x multiplies that scale.
    """

    tested: ImageScale = OWN_SIZE
    augmented: ImageScale = OWN_SIZE

    def steps(self, image_hw: Tuple[int, int], ratio: Optional[float]) -> List[Tuple[int, int]]:
        """As `ImageScale.steps`; None is the ratio without augmentation."""
        if ratio is None:
            return self.tested.steps(image_hw)
        return self.augmented.steps(image_hw, ratio)

    def prepared(self, image: Image, augmentation: Augmentation) -> Image:
        """The image (H, W, C) uint8 that the network is to see; may share memory with `image`."""
        for hw in self.steps((image.shape[0], image.shape[1]), augmentation.ratio):
            if hw != image.shape[:2]:
                image = resize_bilinear(image, hw)
        return image[:, ::-1] if augmentation.flip else image

    def record(self) -> Dict[str, Any]:
        """For a bundle's `test_mode`; `preparation_from_record` reads it."""
        return {"tested": asdict(self.tested), "augmented": asdict(self.augmented)}


AS_IT_IS = Preparation()


def at_scale(limits: Tuple[int, int]) -> Preparation:
    """Images brought to this (height, width) first, ratio kept, and the ratios times that."""
    scale = ImageScale((limits[1], limits[0]))
    return Preparation(scale, scale)


def preparation_from_record(record: Mapping[str, Any]) -> Preparation:
    """From the `test_mode` of a bundle, which may be older or altered.

    Own size where that is not known or beyond MAX_SIDE.
    """
    return Preparation(_scale(record.get("tested")), _scale(record.get("augmented")))


def scale_text(scale: ImageScale) -> str:
    """ "their own size", "2048x512 with their ratio kept": what images are resized to."""
    if scale.limits is None:
        text = "their own size"
    else:
        kept = " with their ratio kept" if scale.keep_ratio else ""
        text = f"{scale.limits[0]}x{scale.limits[1]} (width x height){kept}"
    return text if scale.multiple == 1 else f"{text}, sides rounded up to {scale.multiple}"


def _scale(value: Any) -> ImageScale:
    if not isinstance(value, Mapping):
        return OWN_SIZE
    limits: Any = value.get("limits")
    multiple = value.get("multiple")
    pair = isinstance(limits, (list, tuple)) and len(limits) == 2
    usable = pair and all(type(side) is int and 1 <= side <= MAX_SIDE for side in limits)
    if type(multiple) is not int or not 1 <= multiple <= MAX_MULTIPLE:
        multiple = 1
    both = (limits[0], limits[1]) if usable else None
    return ImageScale(both, value.get("keep_ratio") is not False, multiple)
