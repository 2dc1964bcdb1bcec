"""SegFormer checkpoints: what is found from the tensors alone."""

from __future__ import annotations

import itertools
import re

import pytest
import torch

from engines.errors import CheckpointError, ConfigError
from exporter.architectures.description import Hints
from exporter.architectures.segformer import Segformer, SegformerShape
from exporter.detect import model_from_state_dict

WIDE = (64, 128, 320, 512)
DEPTHS = {
    "b0": ((32, 64, 160, 256), (2, 2, 2, 2)),
    "b1": (WIDE, (2, 2, 2, 2)),
    "b2": (WIDE, (3, 4, 6, 3)),
    "b3": (WIDE, (3, 4, 18, 3)),
    "b4": (WIDE, (3, 8, 27, 3)),
    "b5": (WIDE, (3, 6, 40, 3)),
}


def shape_of(**changes: object) -> SegformerShape:
    values: dict[str, object] = {
        "embed_dims": (8, 16, 40, 64),
        "depths": (1, 2, 1, 1),
        "num_heads": (1, 2, 5, 8),
        "sr_ratios": (8, 4, 2, 1),
        "mlp_ratios": (4, 4, 4, 4),
        "in_channels": 3,
        "num_outputs": 4,
        "head_channels": 16,
        "head_kind": "mmsegmentation",
    }
    return SegformerShape(**(values | changes))  # type: ignore[arg-type]


def tensors_of(shape: SegformerShape) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return dict(Segformer(shape).state_dict())


@pytest.mark.parametrize("variant", DEPTHS)
def test_each_variant_is_found_from_its_shapes(variant: str) -> None:
    dims, depths = DEPTHS[variant]
    shape = shape_of(embed_dims=dims, depths=depths, head_channels=256)
    with torch.device("meta"):
        tensors = dict(Segformer(shape).state_dict())
    _, description = model_from_state_dict(tensors)
    assert description.name == f"segformer-{variant}"


@pytest.mark.parametrize(
    ("in_channels", "num_outputs", "head_channels", "bias"),
    list(itertools.product([1, 3, 5], [2, 6, 150], [16, 48], [True, False])),
)
def test_channels_outputs_and_widths_are_found_for_many_shapes(
    in_channels: int, num_outputs: int, head_channels: int, bias: bool
) -> None:
    shape = shape_of(
        in_channels=in_channels,
        num_outputs=num_outputs,
        head_channels=head_channels,
        qkv_bias=bias,
        depths=(1, 1, 2, 1),
        sr_ratios=(4, 2, 1, 1),
        mlp_ratios=(2, 4, 4, 3),
    )
    model, description = model_from_state_dict(tensors_of(shape))
    assert model.shape == shape
    assert description.variant == "custom"
    assert (description.in_channels, description.num_outputs) == (in_channels, num_outputs)
    assert description.head_channels == head_channels


def test_parameters_are_counted_as_the_sum_over_all_trained_tensors() -> None:
    tensors = tensors_of(shape_of())
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    expected = sum(t.numel() for key, t in tensors.items() if not key.endswith(buffers))
    assert model_from_state_dict(tensors)[1].parameters == expected


def test_half_precision_weights_are_loaded_as_float32() -> None:
    tensors = tensors_of(shape_of())
    halves = {k: t.half() if t.is_floating_point() else t for k, t in tensors.items()}
    model, _ = model_from_state_dict(halves)
    weight = model.state_dict()["decode_head.conv_seg.weight"]
    assert weight.dtype == torch.float32
    assert torch.equal(weight, tensors["decode_head.conv_seg.weight"].half().float())


def test_an_auxiliary_head_is_left_out() -> None:
    tensors = tensors_of(shape_of())
    tensors["auxiliary_head.conv_seg.weight"] = torch.ones(4, 16, 1, 1)
    _, description = model_from_state_dict(tensors)
    assert description.num_outputs == 4


def test_keeping_two_outputs_keeps_the_first_two() -> None:
    tensors = tensors_of(shape_of(num_outputs=5))
    whole, _ = model_from_state_dict(tensors)
    sliced, description = model_from_state_dict(tensors, hints=Hints(keep_outputs=2))
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(sliced(image), whole(image)[:, :2], rtol=1e-4, atol=1e-6)
    assert description.num_outputs == 2


@pytest.mark.parametrize("count", [0, -1, 5])
def test_keeping_an_impossible_number_of_outputs_is_refused(count: int) -> None:
    with pytest.raises(ConfigError, match=r"expected 1 to 4"):
        model_from_state_dict(tensors_of(shape_of()), hints=Hints(keep_outputs=count))


def test_a_model_name_that_does_not_fit_is_refused_with_what_was_found() -> None:
    with pytest.raises(ConfigError, match="segformer-custom"):
        model_from_state_dict(tensors_of(shape_of()), model="segformer-b3")


def test_the_family_name_alone_fits_every_variant() -> None:
    model_from_state_dict(tensors_of(shape_of()), model="segformer")


def test_a_missing_tensor_is_named() -> None:
    tensors = tensors_of(shape_of())
    del tensors["backbone.layers.2.1.0.norm1.weight"]
    with pytest.raises(CheckpointError, match=r"1 tensors missing.*layers\.2\.1\.0\.norm1"):
        model_from_state_dict(tensors)


def test_a_tensor_left_over_is_named() -> None:
    tensors = tensors_of(shape_of()) | {"decode_head.extra.weight": torch.ones(1)}
    with pytest.raises(CheckpointError, match=r"1 left over.*decode_head\.extra\.weight"):
        model_from_state_dict(tensors)


def test_a_tensor_of_another_shape_is_named_with_both_shapes() -> None:
    tensors = tensors_of(shape_of())
    tensors["backbone.layers.0.2.weight"] = torch.ones(9)
    with pytest.raises(CheckpointError, match=r"layers\.0\.2\.weight \(9,\) instead of \(8,\)"):
        model_from_state_dict(tensors)


def test_a_whole_stage_missing_is_refused() -> None:
    tensors = {k: t for k, t in tensors_of(shape_of()).items() if "backbone.layers.3." not in k}
    with pytest.raises(CheckpointError, match=r"without the expected tensor.*layers\.3"):
        model_from_state_dict(tensors)


def test_an_encoder_without_a_head_is_refused_by_that_name() -> None:
    tensors = {k: t for k, t in tensors_of(shape_of()).items() if k.startswith("backbone.")}
    with pytest.raises(CheckpointError, match="without SegFormer's decode head"):
        model_from_state_dict(tensors)


@pytest.mark.parametrize(
    ("key", "family"),
    [
        ("decode_head.cls_emb", "Segmenter"),
        ("segformer.stages.0.blocks.0.norm1.weight", "SegFormer under transformers 5's inner"),
        ("sem_seg_head.pixel_decoder.csm.0.mlp.0.mlp.0.weight", "PEM"),
        ("sem_seg_head.pixel_decoder.input_proj.0.0.weight", "Mask2Former"),
        ("backbone.layer4.0.conv1.weight", "a ResNet"),
        ("something.else", "no family known here"),
    ],
)
def test_another_architecture_is_named_with_its_first_keys(key: str, family: str) -> None:
    with pytest.raises(CheckpointError, match=f"closest match is {family}.*{re.escape(key)}"):
        model_from_state_dict({key: torch.ones(1), "zzz.weight": torch.ones(1)})


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"embed_dims": (16, 8, 8, 8), "num_heads": (1, 1, 1, 1)},
            "stages of 16, 8, 8, 8 channels",
        ),
        ({"embed_dims": (8, 28, 28, 28), "num_heads": (1, 1, 1, 1)}, "stages of 8, 28, 28, 28"),
    ],
)
def test_stages_that_no_number_of_heads_fits_are_refused(
    changes: dict[str, object], told: str
) -> None:
    with pytest.raises(CheckpointError, match=told):
        model_from_state_dict(tensors_of(shape_of(**changes)))


def test_a_layer_narrower_than_its_stage_is_refused() -> None:
    key = "backbone.layers.0.1.0.ffn.layers.0.weight"
    tensors = tensors_of(shape_of())
    with pytest.raises(CheckpointError, match="and 0, 4, 4, 4 times as many"):
        model_from_state_dict(tensors | {key: tensors[key][:1]})


def test_logits_are_a_quarter_of_the_input_and_a_batch_is_its_images_one_by_one() -> None:
    model, _ = model_from_state_dict(tensors_of(shape_of()))
    images = torch.randn(3, 3, 96, 64)
    with torch.no_grad():
        together = model(images)
        single = torch.cat([model(image[None]) for image in images])
    assert together.shape == (3, 4, 24, 16)
    torch.testing.assert_close(together, single, rtol=1e-4, atol=1e-5)
