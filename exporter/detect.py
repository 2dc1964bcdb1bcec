"""Which architecture a state dict is, found from its tensors alone."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from engines.errors import CheckpointError, ConfigError
from exporter.architectures import (
    deeplabv3plus_keys,
    knet_keys,
    mask2former_keys,
    segformer_keys,
    segmenter_keys,
    upernet_keys,
)
from exporter.architectures.description import NO_HINTS, Architecture, Hints, ModelDescription

ARCHITECTURES: tuple[Architecture, ...] = (
    segformer_keys,
    segmenter_keys,
    deeplabv3plus_keys,
    knet_keys,
    mask2former_keys,
    upernet_keys,
)

# Part of a tensor name -> family, for the message about an architecture we do not export.
# The first match counts, so the more particular parts come first.
_FAMILY_SIGNS = (
    ("segformer.stages.", "SegFormer under transformers 5's inner names (use save_pretrained)"),
    ("kernel_update_head", "K-Net"),
    ("decode_head.cls_emb", "Segmenter"),
    ("decoder.cls_emb", "Segmenter (original names)"),
    ("csm.0.mlp", "PEM"),
    ("pixel_decoder", "Mask2Former"),
    ("pixel_level_module", "MaskFormer, or Mask2Former without its head (Hugging Face)"),
    ("token_mixer.ssm", "SegMAN"),
    ("mhca_stages", "AFFormer"),
    ("sep_bottleneck", "DeepLabV3+"),
    ("aspp_modules", "DeepLabV3"),
    ("psp_modules", "UPerNet or PSPNet"),
    ("bkbone.", "HetNet"),
    ("relative_position_bias_table", "a Swin Transformer"),
    ("patch_embed1.proj", "a MiT encoder without decode head (ImageNet weights)"),
    ("patch_embed", "a Vision Transformer"),
    ("layer4.", "a ResNet"),
)


def model_from_state_dict(
    tensors: Mapping[str, Tensor],
    *,
    model: str | None = None,
    hints: Hints = NO_HINTS,
) -> tuple[nn.Module, ModelDescription]:
    """The module in eval mode with the checkpoint's weights in float32, and its description.

    `model` is only compared with what was found ("segformer" fits every variant of it); `hints`
    say what no tensor tells. Raises CheckpointError for an unknown architecture, ConfigError when
    `model` or `hints` do not fit.
    """
    keys = frozenset(tensors)
    for architecture in ARCHITECTURES:
        if architecture.recognises(keys):
            found, description = architecture.model_from_tensors(tensors, hints)
            if model is not None and model not in (description.name, description.architecture):
                raise ConfigError(
                    f"--model {model} with a checkpoint of {description.name}",
                    expected=f"--model {description.name}, or no --model",
                    do="leave --model out: the architecture is found from the tensors",
                )
            return found, description
    raise _unknown_architecture(sorted(keys))


def _unknown_architecture(keys: list[str]) -> CheckpointError:
    family = next(
        (name for sign, name in _FAMILY_SIGNS if any(sign in key for key in keys)),
        "no family known here",
    )
    known = ", ".join(a.NAME for a in ARCHITECTURES)
    for part, other in (("decode_head.", "backbone"), ("backbone.", "decode head")):
        if keys and all(key.startswith(part) for key in keys):
            return CheckpointError(
                f"{len(keys)} tensors {part}*, whose closest match is {family}, and no {other}",
                expected=f"the whole model's checkpoint, of {known}",
                do="give the file that training wrote, not a part of it",
            )
    return CheckpointError(
        f"{len(keys)} tensors whose closest match is {family}; first unmatched keys: "
        + ", ".join(keys[:4]),
        expected=f"a checkpoint of {known}",
        do="export a supported architecture; `riceseg models` lists them",
    )
