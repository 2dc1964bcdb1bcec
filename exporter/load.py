"""A checkpoint file as a described model, with all that its network expects of an image."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from engines.bundle import InputSpec
from engines.errors import ConfigError, ImageError
from engines.images import image_from_file
from exporter.architectures.description import ModelDescription
from exporter.checkpoint import Checkpoint, state_dict_from_checkpoint
from exporter.classes import checked_classes, classes_from_file
from exporter.config_fields import count_of, numbers_of
from exporter.config_text import ConfigSettings, settings_from_config_text
from exporter.detect import model_from_state_dict
from exporter.hints import hints_from_settings, with_hugging_face
from exporter.request import LoadOptions, Resize

# ImageNet's statistics in the 0..255 scale, RGB: what most networks of every family start from.
DEFAULT_MEAN, DEFAULT_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
DEFAULT_HW = (512, 512)
SIDE_MULTIPLE = 32
TESTED_WITH_WINDOWS = "tested with sliding windows"  # begins the warning about them
SMALLEST_STD = 1e-6  # its reciprocal and every product with it are finite in float32


@dataclass(frozen=True)
class LoadedModel:
    """`net` takes normalised RGB (N, C, H, W) float32 and is in eval mode, not rewritten.

    `classes` and `palette` have one entry for each output, `named` of them known by name. `notes`
    say how the file was read; `warnings` what was assumed or may surprise.
    """

    net: nn.Module
    description: ModelDescription
    settings: ConfigSettings
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    named: int
    checkpoint: Checkpoint
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


def load_model(path: Path, options: LoadOptions | None = None) -> LoadedModel:
    """Read, recognise and describe. Raises CheckpointError or ConfigError."""
    options = options or LoadOptions()
    checkpoint = state_dict_from_checkpoint(path)
    warnings: list[str] = []
    settings = settings_from_config_text(checkpoint.config_text or "")
    warnings += settings.notes if checkpoint.config_text else ()
    hints = hints_from_settings(settings, options.keep_classes)
    net, description = model_from_state_dict(
        checkpoint.tensors,
        model=options.model,
        hints=with_hugging_face(hints, checkpoint.hf_config),
    )
    warnings += description.assumed
    mean, std = _normalisation(checkpoint, settings, options, description, warnings)
    if settings.to_rgb is False and description.in_channels == 3:
        _reverse_input_channels(net, description.in_channels)
        warnings.append("trained on BGR images: the first convolution now takes RGB")
    names, palette, named = _classes(checkpoint, options, description.num_outputs, warnings)
    if settings.test_mode == "slide":
        warnings.append(
            f"{TESTED_WITH_WINDOWS} of {settings.crop_size}, stride {settings.stride}; "
            "this runs whole images at one size"
        )
    # The tensors now live in the net; a second reference would keep what loading converted.
    checkpoint = replace(checkpoint, tensors={})
    return LoadedModel(
        net=net,
        description=description,
        settings=settings,
        mean=mean,
        std=std,
        classes=names,
        palette=palette,
        named=named,
        checkpoint=checkpoint,
        notes=(*checkpoint.notes, *_training_notes(checkpoint)),
        warnings=tuple(warnings),
    )


def _training_notes(checkpoint: Checkpoint) -> tuple[str, ...]:
    scales = checkpoint.trained_scales
    if not scales:  # None, or none that can be used
        return ()
    return (f"{len(scales)} scales of quantization-aware training, which --int8 keeps",)


def _normalisation(
    checkpoint: Checkpoint,
    settings: ConfigSettings,
    options: LoadOptions,
    description: ModelDescription,
    warnings: list[str],
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """From the options, the config text, Hugging Face's preprocessor, or the family default.

    In RGB order: the config text alone gives it in the order of the network's input.
    """
    channels = description.in_channels
    step = -1 if settings.to_rgb is False and channels == 3 else 1
    mean = options.mean or (settings.mean and settings.mean[::step])
    std = options.std or (settings.std and settings.std[::step])
    hf = checkpoint.hf_preprocessor
    if (mean is None or std is None) and hf:
        stored = numbers_of(hf.get("image_mean")), numbers_of(hf.get("image_std"))
        if stored[0] and stored[1]:
            mean = mean or tuple(255.0 * v for v in stored[0])
            std = std or tuple(255.0 * v for v in stored[1])
    return checked_normalisation(
        mean, std, channels, warnings, other=description.other_normalisation
    )


def checked_normalisation(
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    channels: int,
    warnings: list[str],
    *,
    other: str = "",
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std per channel; of three channels ImageNet's, with a warning that says `other` too.

    Raises ConfigError for another number of them, and for numbers that cannot be divided by.
    """
    if (mean is None or std is None) and channels == 3:
        mean, std = mean or DEFAULT_MEAN, std or DEFAULT_STD
        line = "no normalisation stored with the weights: ImageNet mean and std assumed"
        warnings.append(f"{line}; {other}" if other else line)
    if mean is None or std is None or not len(mean) == len(std) == channels:
        raise ConfigError(
            f"mean {mean} and std {std} for {channels} input channels",
            expected=f"{channels} numbers each, in the 0..255 scale",
            do="give them with --mean and --std, separated by commas",
        )
    if not all(map(math.isfinite, (*mean, *std))) or min(std) < SMALLEST_STD:
        raise ConfigError(
            f"mean {mean} and std {std}",
            expected=f"finite numbers, and as std numbers above 0 ({SMALLEST_STD:g} or more)",
            do="correct them with --mean and --std",
        )
    if 0 < max(map(abs, mean)) <= 1 and max(std) <= 1:
        warnings.append(
            f"mean {mean} and std {std} look like the scale 0..1; images are 0..255 here: "
            "multiply both by 255"
        )
    return tuple(map(float, mean)), tuple(map(float, std))


def _classes(
    checkpoint: Checkpoint, options: LoadOptions, num_outputs: int, warnings: list[str]
) -> tuple[tuple[str, ...], tuple[tuple[int, int, int], ...], int]:
    names, palette = checkpoint.classes, checkpoint.palette
    if options.classes is not None:
        given = classes_from_file(options.classes)
        names, palette = given.names, given.palette
        warnings += given.notes
    elif names is not None and options.keep_classes is not None:
        names, palette = names[:num_outputs], palette[:num_outputs] if palette else None
    full_names, full_palette, notes = checked_classes(names, palette, num_outputs)
    warnings += notes
    return full_names, full_palette, len(names) if names else num_outputs


def _reverse_input_channels(net: nn.Module, channels: int) -> None:
    """conv(x[:, ::-1]) with weights w equals conv(x) with weights w[:, ::-1].

    Every backbone here begins with the one convolution that reads the image.
    """
    convolutions = (m for m in net.get_submodule("backbone").modules() if isinstance(m, nn.Conv2d))
    first = next(m for m in convolutions if m.in_channels == channels)
    with torch.no_grad():
        first.weight.copy_(first.weight.flip(1))


def first_image_hw(
    files: Iterable[Path], *, channels: int, convert: bool, skip_bad: bool
) -> tuple[int, int] | None:
    """Height and width of the first image, or with `skip_bad` of the first that can be read."""
    for path in files:
        try:
            image = image_from_file(path, channels=channels, convert=convert)
        except ImageError:
            if not skip_bad:
                raise
        else:
            return image.shape[0], image.shape[1]
    return None


def network_size(
    loaded: LoadedModel, image_hw: tuple[int, int] | None
) -> tuple[tuple[int, int], Resize]:
    """Height and width to export for, and the resize rule, as the checkpoint was tested.

    `image_hw` is the size of the user's images where known. With a keep-ratio test pipeline the
    size is what that pipeline gives for such an image, rounded up to a multiple of 32. Where nobody
    says a size, it is the one that the position embeddings were trained at, else 512x512.
    """
    settings, hf = loaded.settings, loaded.checkpoint.hf_preprocessor
    if settings.test_mode == "slide" and settings.crop_size is not None:
        return settings.crop_size, "stretch"
    if settings.test_scale is not None and not settings.keep_ratio:
        w, h = settings.test_scale
        return (h, w), "stretch"
    if settings.test_scale is not None and image_hw is not None:
        long, short = max(settings.test_scale), min(settings.test_scale)
        factor = min(long / max(image_hw), short / min(image_hw))
        sides = (int(side * factor + 0.5) for side in image_hw)
        h, w = (-(-side // SIDE_MULTIPLE) * SIDE_MULTIPLE for side in sides)
        return (h, w), "letterbox"
    size = (hf or {}).get("size")
    if isinstance(size, dict):
        height, width = count_of(size.get("height")), count_of(size.get("width"))
        if height is not None and width is not None:
            return (height, width), "stretch"
    default = loaded.description.trained_hw or DEFAULT_HW
    return default, "letterbox" if settings.keep_ratio else "stretch"


def network_input(
    loaded: LoadedModel,
    hw: tuple[int, int],
    resize: Resize,
    batch: tuple[int, int, int] = (1, 1, 1),
) -> InputSpec:
    """The graph's input for a model: its channels and normalisation, at the size `hw`."""
    channels = loaded.description.in_channels
    return InputSpec(
        name="image",
        hw=hw,
        channels=channels,
        channel_order="RGB" if channels == 3 else "as trained",
        mean=loaded.mean,
        std=loaded.std,
        resize=resize,
        batch=batch,
    )
