"""What is stored beside the weights, as hints for the architectures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from engines.errors import ConfigError
from exporter.architectures.description import Hints
from exporter.config_fields import count_of, dict_of
from exporter.config_text import ConfigSettings

_MAX_HEADS = 256
# Settings of transformers that change no tensor, as in all published Mask2Formers.
_USUAL = {"pre_norm": False, "activation_function": "relu"}
_USUAL_BACKBONES: dict[str, dict[str, object]] = {
    "swin": {"hidden_act": "gelu", "layer_norm_eps": 1e-5},
    "resnet": {
        "hidden_act": "relu",
        "downsample_in_bottleneck": False,
        "downsample_in_first_stage": False,
    },
}


def hints_from_settings(settings: ConfigSettings, keep_outputs: int | None = None) -> Hints:
    """What a training configuration says that no tensor tells.

    Raises ConfigError for settings that compute something else with the same tensors.
    """
    if settings.unusual:
        raise ConfigError(
            f"a configuration with {', '.join(settings.unusual[:3])}",
            expected="settings that are computed here: with these the same weights give other "
            "answers",
            do="train the model without them, or correct the configuration if it is not its own",
        )
    # mmsegmentation pads before a Mask2Former only where its configuration says so.
    divisor = settings.size_divisor or (1 if settings.complete else None)
    is_mask2former = settings.decode_head_type == "Mask2FormerHead"
    return Hints(
        align_corners=settings.align_corners,
        strides=settings.strides,
        dilations=settings.dilations,
        contract_dilation=settings.contract_dilation,
        head_dilations=settings.head_dilations,
        pool_scales=settings.pool_scales,
        num_heads=settings.num_heads,
        size_divisor=divisor if is_mask2former else None,
        keep_outputs=keep_outputs,
    )


def with_hugging_face(hints: Hints, config: Mapping[str, object] | None) -> Hints:
    """`hints` with what a config.json of transformers says; only Mask2Former's is needed.

    Raises ConfigError for settings that compute something else with the same tensors.
    """
    if not config or config.get("model_type") != "mask2former":
        return hints
    backbone = dict_of(config.get("backbone_config"))
    usual_backbone = _USUAL_BACKBONES.get(str(backbone.get("model_type")), {})
    changed = [*_changed(config, _USUAL), *_changed(backbone, usual_backbone)]
    heads = hints.num_heads
    if heads is None and config.get("num_attention_heads") is not None:
        heads = count_of(config["num_attention_heads"])
        if heads is None or heads > _MAX_HEADS:
            changed.append("num_attention_heads")
    if changed:
        raise ConfigError(
            f"a Mask2Former of Hugging Face whose config.json has another {', '.join(changed)}",
            expected="what the published models have, and 1 to "
            f"{_MAX_HEADS} heads: other values compute something else with the same tensors",
            do="correct config.json if the model was not trained with this",
        )
    return replace(hints, num_heads=heads)


def _changed(config: Mapping[str, object], usual: Mapping[str, object]) -> list[str]:
    return [name for name, value in usual.items() if config.get(name, value) != value]
