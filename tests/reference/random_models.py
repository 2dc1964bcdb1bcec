"""mmsegmentation's and transformers' own models with random weights that leave nothing hidden.

With a library's default initialisation (zero biases, LayerNorm of 1 and 0, BatchNorm statistics of
0 and 1, logits that hardly vary) swapped channels, a forgotten bias or another epsilon change next
to nothing. `randomise` sets every number to something that matters.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Standard deviation of every class's logits after `randomise`.
LOGIT_SIGMA = 0.5
# Absolute differences allowed in float32, per standard deviation of the logits: 2e-4 at 0.5.
# A 1e-6 relative jitter of the input alone moves the logits by 1e-5 to 3e-5.
TOLERANCE = 4e-4
# Percent of the pixels whose labels must agree, without near ties.
MIN_AGREEMENT = 99.99

IMAGENET_MEAN, IMAGENET_STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
_WIDE = [64, 128, 320, 512]
MIT_DIMS = {
    "b0": [32, 64, 160, 256],
    "b1": _WIDE,
    "b2": _WIDE,
    "b3": _WIDE,
    "b4": _WIDE,
    "b5": _WIDE,
}
MIT_DEPTHS = {
    "b0": [2, 2, 2, 2],
    "b1": [2, 2, 2, 2],
    "b2": [3, 4, 6, 3],
    "b3": [3, 4, 18, 3],
    "b4": [3, 8, 27, 3],
    "b5": [3, 6, 40, 3],
}


class _NoCompiledOps(ModuleType):
    """In place of mmcv's compiled operators, none of which SegFormer uses."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def unavailable(*_args: object, **_kwargs: object) -> None:
            raise RuntimeError(f"mmcv's compiled operator {name} is not available")

        return unavailable


def stand_in_for_compiled_ops() -> None:
    """Lets mmcv-lite's `mmcv.ops`, and with it mmsegmentation's models, be imported."""
    module = _NoCompiledOps("mmcv._ext")
    module.__spec__ = ModuleSpec("mmcv._ext", None)
    sys.modules.setdefault("mmcv._ext", module)


def mmsegmentation_config(
    variant: str,
    *,
    channels: int = 3,
    classes: int = 19,
    head_channels: int = 256,
    align_corners: bool = False,
    bgr_to_rgb: bool = True,
) -> Any:
    """mmsegmentation's own configuration of this variant (512x512, ADE20K), as a Config.

    With other than 3 channels, the normalisation's mean and std are made up.
    """
    import mmseg
    from mmengine.config import Config

    folder = Path(mmseg.__file__).parent / ".mim" / "configs" / "segformer"
    config = Config.fromfile(folder / f"segformer_mit-{variant}_8xb2-160k_ade20k-512x512.py")
    config.model.pretrained = None
    config.model.backbone.init_cfg = None
    config.model.backbone.in_channels = channels
    config.model.decode_head.update(
        num_classes=classes, channels=head_channels, align_corners=align_corners
    )
    mean, std = IMAGENET_MEAN, IMAGENET_STD
    if channels != 3:
        mean = [100.0 + 7.0 * i for i in range(channels)]
        std = [50.0 + 3.0 * i for i in range(channels)]
    for preprocessor in (config.data_preprocessor, config.model.data_preprocessor):
        preprocessor.update(mean=mean, std=std, bgr_to_rgb=bgr_to_rgb)
    return config


def mmsegmentation_model(config: Any) -> Any:
    """The EncoderDecoder of `config` in eval mode, BatchNorm2d in place of SyncBN."""
    import mmseg.models  # noqa: F401  # registers the model types
    from mmengine.model import revert_sync_batchnorm
    from mmengine.registry import init_default_scope
    from mmseg.registry import MODELS

    init_default_scope("mmseg")
    model = revert_sync_batchnorm(MODELS.build(config.model)).eval()
    for module in model.modules():
        # mmengine puts a class of its own there, which no test for BatchNorm2d would find.
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.__class__ = nn.BatchNorm2d
    return model


def save_as_mmengine_does(
    model: Any,
    config: Any,
    path: Path,
    *,
    classes: int,
    names: Sequence[str] | None = None,
    palette: Sequence[tuple[int, int, int]] | None = None,
) -> None:
    """The dictionary of mmengine's Runner.save_checkpoint, without the optimizer."""
    from mmengine.logging import MessageHub

    hub = MessageHub.get_instance("reference")
    hub.update_scalar("train/loss", 0.25)
    meta = {
        "epoch": 0,
        "iter": 160000,
        "cfg": config.pretty_text,
        "seed": 0,
        "experiment_name": "reference",
        "time": "20260102_030405",
        "mmengine_version": "0.10.7",
        "dataset_meta": {
            "classes": tuple(names or (f"class {i}" for i in range(classes))),
            "palette": [list(rgb) for rgb in palette or [(i, 255 - i, 7) for i in range(classes)]],
        },
    }
    checkpoint = {
        "meta": meta,
        "state_dict": model.state_dict(),
        "message_hub": hub.state_dict(),
        "param_schedulers": [],
    }
    torch.save(checkpoint, path)


def transformers_model(
    variant: str, *, channels: int = 3, classes: int = 19, head_channels: int = 256
) -> Any:
    """Hugging Face's SegformerForSemanticSegmentation in eval mode."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    config = SegformerConfig(
        num_channels=channels,
        num_labels=classes,
        depths=MIT_DEPTHS[variant],
        hidden_sizes=MIT_DIMS[variant],
        decoder_hidden_size=head_channels,
    )
    return SegformerForSemanticSegmentation(config).eval()


def mmsegmentation_logits(model: Any, x: Tensor) -> Tensor:
    """Logits at a quarter of the size of `x`, a normalised (N, C, H, W) float tensor."""
    with torch.no_grad():
        logits: Tensor = model(x, mode="tensor")
    return logits


def transformers_logits(model: Any, x: Tensor) -> Tensor:
    """Logits at a quarter of the size of `x`, a normalised (N, C, H, W) float tensor."""
    with torch.no_grad():
        logits: Tensor = model(x).logits
    return logits


def random_images(
    count: int, hw: tuple[int, int], *, channels: int = 3, seed: int = 0
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """(N, H, W, C) uint8 with structure at all scales, the full range and independent channels."""
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(count, channels, *hw)
    for cells in (3, 7, 17, 43):
        noise = torch.randn(count, channels, cells, cells, generator=generator)
        total += F.interpolate(noise, size=hw, mode="bicubic", align_corners=False)
    total += 0.3 * torch.randn(total.shape, generator=generator)
    levels = (128 + 40 * total).clamp(0, 255).round().to(torch.uint8)
    return levels.permute(0, 2, 3, 1).contiguous().numpy()


def normalised(
    images: np.ndarray[Any, np.dtype[np.uint8]], mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """(N, H, W, C) uint8 -> (N, C, H, W) float32, (x - mean) / std per channel."""
    x = torch.from_numpy(images.astype(np.float64).transpose(0, 3, 1, 2))
    shape = (1, -1, 1, 1)
    x = (x - torch.tensor(mean).double().view(shape)) / torch.tensor(std).double().view(shape)
    return x.float()


def quarter_in_float64(x: Tensor) -> Tensor:
    """The upper left quarter of (N, C, H, W): float64 convolutions take about ten times as long."""
    h, w = x.shape[2:]
    return x[:, :, : (h + 1) // 2, : (w + 1) // 2].double()


def randomise(
    model: nn.Module, classifier: nn.Conv2d, logits: Callable[[], Tensor], *, seed: int
) -> None:
    """Random weights in place, the same for the same seed.

    `logits` runs `model` on the images that the statistics are calibrated with; `classifier` is
    its last layer. Afterwards each class's logits have a standard deviation of LOGIT_SIGMA there,
    and each class takes a real share of the argmax.
    """
    randomise_weights(model, logits, seed=seed)
    with torch.no_grad():
        _balance(classifier, logits)


def randomise_weights(model: nn.Module, logits: Callable[[], Tensor], *, seed: int) -> None:
    """As `randomise`, but the logits are left as large as they come."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(_random_parameter(model, name, parameter, generator))
        norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        _calibrate(norms, logits)
        _jitter(norms, generator)


def _random_parameter(
    model: nn.Module, name: str, parameter: Tensor, generator: torch.Generator
) -> Tensor:
    owner = model.get_submodule(name.rpartition(".")[0])
    noise = torch.randn(parameter.shape, generator=generator)
    if isinstance(owner, nn.LayerNorm | nn.BatchNorm2d | nn.GroupNorm):
        return 1.0 + 0.3 * noise if name.endswith("weight") else 0.3 * noise
    if parameter.dim() == 1:  # biases
        return 0.3 * noise
    return noise / math.sqrt(parameter[0].numel())


def _calibrate(norms: list[nn.BatchNorm2d], logits: Callable[[], Tensor]) -> None:
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # take the batch's own statistics
        norm.train()
    logits()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
        var = norm.running_var
        assert var is not None
        # After a pooling to 1x1 each image gives one value, and two may happen to be equal.
        var.clamp_(min=0.2 * float(var.mean()))


def _jitter(norms: list[nn.BatchNorm2d], generator: torch.Generator) -> None:
    for norm in norms:
        mean, var = norm.running_mean, norm.running_var
        assert mean is not None
        assert var is not None
        mean += 0.2 * var.sqrt() * torch.randn(mean.shape, generator=generator)
        var *= 0.7 + 0.8 * torch.rand(var.shape, generator=generator)


def _balance(classifier: nn.Conv2d, logits: Callable[[], Tensor]) -> None:
    assert classifier.bias is not None
    classifier.bias.zero_()
    rows = logits().movedim(1, 3).flatten(0, 2)  # (pixels, classes)
    factor = LOGIT_SIGMA / rows.std(dim=0)
    centred = (rows - rows.mean(dim=0)) * factor
    shift = torch.zeros(rows.shape[1])
    for _ in range(100):  # towards equal shares; rare classes gain, frequent ones lose
        share = class_shares((centred + shift).argmax(1), len(shift))
        shift -= 0.1 * LOGIT_SIGMA * torch.log(share * len(shift) + 0.1)
    classifier.weight *= factor.view(-1, 1, 1, 1)
    classifier.bias += shift - rows.mean(dim=0) * factor


def class_shares(labels: Tensor, count: int) -> Tensor:
    """Share of each of `count` classes among the labels, 0..1."""
    return torch.bincount(labels.flatten(), minlength=count).float() / labels.numel()


def check_logits(got: Tensor, want: Tensor) -> tuple[float, float]:
    """Asserts that (N, K, H, W) logits agree, in value and in argmax.

    Values: within TOLERANCE standard deviations of `want`. Argmax: equal on MIN_AGREEMENT percent
    of the pixels, those left out whose two largest logits differ by less than that tolerance.
    Returns the largest difference in standard deviations, and the agreement in percent.
    """
    assert got.shape == want.shape
    assert torch.isfinite(got).all()
    sigma = float((want - want.mean(dim=(0, 2, 3), keepdim=True)).std())
    worst = float((got - want).abs().max()) / sigma
    assert worst <= TOLERANCE, f"logits differ by {worst:.2e} standard deviations"
    agreement = checked_agreement(got.argmax(1), want)
    return worst, agreement


def checked_agreement(labels: Tensor, want: Tensor) -> float:
    """Asserts that (N, H, W) labels are the argmax of the logits `want`, as `check_logits` does."""
    sigma = float((want - want.mean(dim=(0, 2, 3), keepdim=True)).std())
    top = want.topk(2, dim=1).values
    clear = top[:, 0] - top[:, 1] >= TOLERANCE * sigma
    assert clear.float().mean() > 0.99, "too many near ties for a comparison of labels"
    agreement = 100.0 * float((labels == want.argmax(1))[clear].double().mean())
    assert agreement >= MIN_AGREEMENT, f"{agreement:.4f} % of the labels agree"
    return agreement
