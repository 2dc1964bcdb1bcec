"""How images are run when a model is scored: whole or in windows, at one scale or several."""

from __future__ import annotations

from dataclasses import dataclass

from engines.bundle import Bundle, InputSpec
from engines.errors import ConfigError
from engines.evaluation.evaluate import Predictor
from engines.evaluation.image_predictor import (
    FlipPredictor,
    GraphWindows,
    ImagePredictor,
    OnStep,
)
from engines.evaluation.preparation import (
    AS_IT_IS,
    MAX_MULTIPLE,
    MAX_SIDE,
    Preparation,
    at_scale,
    augmentations,
    preparation_from_record,
    scale_text,
)
from engines.evaluation.request import MODES
from engines.evaluation.sliding import Windows, windows_from_bundle, windows_of_size
from engines.onnx_predictor import OnnxPredictor
from exporter.load import LoadedModel
from exporter.onnx_graph import SIDE_LIMITS, ImageToLabels
from exporter.preparation import preparation_from_config
from exporter.torch_images import TorchImages
from exporter.torch_predictor import TorchPredictor


@dataclass(frozen=True)
class Inference:
    """What was asked for; `crop`, `stride` and `scale` are (height, width), None as recorded.

    `scale` is what images are brought to, their ratio kept, before they are cut or multiplied by
    a ratio. Raises ConfigError for an option that does not apply.
    """

    mode: str = "whole"
    tta: str = "none"
    crop: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    scale: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        augmentations(self.tta)
        if self.mode not in MODES:
            raise ConfigError(f"--mode {self.mode}", expected=" or ".join(MODES), do="use one")
        for name, value in (("--crop", self.crop), ("--stride", self.stride)):
            if value is not None and self.mode != "slide":
                raise ConfigError(
                    f"{name} with --mode {self.mode}",
                    expected=f"{name} with --mode slide only",
                    do="add --mode slide, or leave it out",
                )
        if self.scale is not None and not self.whole_images:
            raise ConfigError(
                "--scale with images that fill the network's input",
                expected="--scale with --mode slide or --tta ms",
                do="give the network's input with --size, or leave it out",
            )
        for name, value in (("--crop", self.crop), ("--scale", self.scale)):
            low, high = SIDE_LIMITS
            if value is not None and not all(low <= side <= high for side in value):
                raise ConfigError(
                    f"{name} {value[0]}x{value[1]}",
                    expected=f"height and width from {low} to {high}",
                    do=f"give, for example, {name} 512x512",
                )

    @property
    def whole_images(self) -> bool:
        """Whether predictors get images as they are, and not brought to the network's input."""
        return self.mode == "slide" or self.tta.startswith("ms")


WHOLE = Inference()


@dataclass(frozen=True)
class Plan:
    """An `Inference` with what a checkpoint or a bundle has recorded put in.

    `windows` None: whole images. `pad` is what a checkpoint's sides are padded up to. `source`
    says where the scale comes from.
    """

    inference: Inference = WHOLE
    windows: Windows | None = None
    preparation: Preparation = AS_IT_IS
    pad: int = 1
    align_corners: bool = False
    source: str = ""

    def notes(self) -> tuple[str, ...]:
        """What the figures of a row mean; nothing for whole images without augmentation."""
        inference = self.inference
        lines = []
        if self.windows is not None:
            size, stride = self.windows.size, self.windows.stride
            lines.append(
                f"windows of {size[0]}x{size[1]} every {stride[0]}x{stride[1]} pixels, their "
                "logits averaged"
            )
        if inference.tta.startswith("ms"):
            lines.append(
                f"images at 0.5 to 1.75 times {scale_text(self.preparation.augmented)}{self.source}"
            )
        elif self.windows is not None:
            lines.append(f"images at {scale_text(self.preparation.tested)}{self.source}")
        if inference.tta != "none":
            count = len(augmentations(inference.tta))
            lines.append(f"{inference.tta}: the softmax of {count} predictions averaged")
        if lines:
            lines.append("time and fps are of one call of the network, not of an image")
        return tuple(lines)


def plan_for_checkpoint(inference: Inference, loaded: LoadedModel) -> Plan:
    """Crop, stride and scale of the configuration where none is given; ConfigError without them."""
    settings = loaded.settings
    text = loaded.checkpoint.config_text or ""
    preparation, pad = preparation_from_config(text, settings)
    if inference.scale is not None:
        preparation = at_scale(inference.scale)
    if inference.whole_images:
        _check_sizes(preparation, pad)
    return Plan(
        inference,
        _windows_for_checkpoint(inference, loaded),
        preparation,
        pad,
        bool(settings.align_corners),
        _source(inference, "the configuration says" if text else ""),
    )


def plan_for_graph(inference: Inference, input: InputSpec, bundle: Bundle | None = None) -> Plan:
    """For graphs of the size of `input`; `bundle` None: a graph of which nothing is recorded.

    Raises ConfigError for windows or scales that a fixed size does not allow.
    """
    if inference.mode == "whole" and inference.tta.startswith("ms"):
        raise ConfigError(
            f"--tta {inference.tta} for a graph of {input.hw[0]}x{input.hw[1]}",
            expected="a checkpoint, which takes images at every scale, or windows of that size",
            do="add --mode slide, use --tta flip, or evaluate the checkpoint",
        )
    if inference.crop not in (None, input.hw):
        assert inference.crop is not None
        raise ConfigError(
            f"--crop {inference.crop[0]}x{inference.crop[1]} for a graph of "
            f"{input.hw[0]}x{input.hw[1]}",
            expected="windows of the graph's size",
            do="leave --crop out, or export with --size",
        )
    record = {} if bundle is None else bundle.test_mode
    windows = None
    if inference.mode == "slide":
        recorded = windows_of_size(input.hw) if bundle is None else windows_from_bundle(bundle)
        windows = recorded if inference.stride is None else Windows(input.hw, inference.stride)
    known = "tested" in record
    return Plan(
        inference,
        windows,
        preparation_from_record(record) if inference.scale is None else at_scale(inference.scale),
        1,
        record.get("align_corners") is True,
        _source(inference, "the bundle says" if known else ""),
    )


def torch_predictor(plan: Plan, model: ImageToLabels, on_step: OnStep | None = None) -> Predictor:
    """The PyTorch model run as `plan` says."""
    if plan.inference.whole_images:
        return ImagePredictor(
            TorchImages(model, plan.windows, pad=plan.pad),
            preparation=plan.preparation,
            tta=plan.inference.tta,
            align_corners=plan.align_corners,
            on_step=on_step,
        )
    predictor = TorchPredictor(model)
    if plan.inference.tta == "none":
        return predictor
    return FlipPredictor(predictor, align_corners=plan.align_corners, on_step=on_step)


def graph_predictor(
    plan: Plan, predictor: OnnxPredictor, input: InputSpec, on_step: OnStep | None = None
) -> Predictor:
    """An open graph run as `plan` says; it stays the caller's to close.

    Raises ConfigError for a graph without logits where predictions are to be averaged.
    """
    inference = plan.inference
    if plan.windows is not None:
        several = inference.tta.startswith("ms")
        windows = GraphWindows(
            predictor,
            plan.windows,
            batch=predictor.fixed_batch or input.batch[1],
            pad_value=input.pad_value if several else None,
        )
        return ImagePredictor(
            windows,
            preparation=plan.preparation,
            tta=inference.tta,
            align_corners=plan.align_corners,
            on_step=on_step,
        )
    if inference.tta == "none":
        return predictor
    return FlipPredictor(predictor, align_corners=plan.align_corners, on_step=on_step)


def _windows_for_checkpoint(inference: Inference, loaded: LoadedModel) -> Windows | None:
    settings = loaded.settings
    if inference.mode != "slide":
        return None
    crop = inference.crop or settings.crop_size
    if crop is None:
        raise ConfigError(
            "--mode slide with a checkpoint that does not say its windows",
            expected="test_cfg with crop_size and stride in its configuration",
            do="give --crop and --stride, for example --crop 512x512 --stride 341x341",
        )
    if inference.stride is not None:
        return Windows(crop, inference.stride)
    return windows_of_size(crop, settings.stride if crop == settings.crop_size else None)


def _check_sizes(preparation: Preparation, pad: int) -> None:
    """A configuration comes with a file from anywhere, and must not fill the memory."""
    for scale in (preparation.tested, preparation.augmented):
        sides = scale.limits or (1, 1)
        if max(sides) > MAX_SIDE or max(scale.multiple, pad) > MAX_MULTIPLE:
            raise ConfigError(
                f"a configuration that tests images of {sides[0]}x{sides[1]}, sides rounded up to "
                f"{max(scale.multiple, pad)}",
                expected=f"sides up to {MAX_SIDE}, rounded up to {MAX_MULTIPLE} at most",
                do="correct the configuration, or evaluate without --mode slide and --tta ms",
            )


def _source(inference: Inference, says: str) -> str:
    if inference.scale is not None:
        return ", as --scale says"
    return f", as {says}" if says else ", since nothing else is recorded"
