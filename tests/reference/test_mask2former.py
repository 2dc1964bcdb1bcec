"""Mask2Former beside mmsegmentation's and mmdetection's own modules of the same weights."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from against_mmsegmentation import (
    AgainstMmsegmentation,
    Case,
    Variant,
    check_within,
    configuration,
    our_logits,
    their_logits,
)
from random_models import (
    mmsegmentation_model,
    normalised,
    random_images,
    randomise_weights,
    save_as_mmengine_does,
)
from torch import Tensor

from exporter.architectures.deformable import with_gather_sampling
from exporter.architectures.description import Hints
from exporter.architectures.mask2former_keys import model_from_tensors
from exporter.load import load_model
from exporter.rewrites.rewritten import rewritten_for_export


class AsTested:
    """mmsegmentation's model with what its data preprocessor does to normalised images in testing:

    filled up to multiples of 32, and what was filled cut off the result.
    """

    def __init__(self, model: Any) -> None:
        self.model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def double(self) -> AsTested:
        self.model.double()
        return self

    def encode_decode(self, x: Tensor, metas: Sequence[Mapping[str, Any]]) -> Tensor:
        from mmseg.utils import stack_batch

        assert self.model.data_preprocessor.test_cfg == {"size_divisor": 32}
        padded, infos = stack_batch(list(x), size_divisor=32, pad_val=0)
        metas = [{**meta, **info} for meta, info in zip(metas, infos, strict=True)]
        with tables_in(x.dtype, self.model):
            logits = self.model.encode_decode(padded, metas)
        left, right, top, bottom = infos[0]["img_padding_size"]
        h, w = logits.shape[2:]
        return logits[:, :, top : h - bottom, left : w - right]  # type: ignore[no-any-return]


@contextmanager
def tables_in(dtype: torch.dtype, model: Any) -> Iterator[None]:
    """mmdetection's positions and places computed in float64 too, where it always has float32."""
    if dtype != torch.float64:
        yield
        return

    class Float64:
        float32 = torch.float64

        def __getattr__(self, name: str) -> Any:
            return getattr(torch, name)

    places = model.decode_head.pixel_decoder.point_generator
    in_float64 = functools.partial(places.single_level_grid_priors, dtype=torch.float64)
    with ExitStack() as stack:
        module = "mmdet.models.layers.positional_encoding.torch"
        stack.enter_context(mock.patch(module, Float64()))
        stack.enter_context(mock.patch.object(places, "single_level_grid_priors", in_float64))
        yield


def spread_queries(head: Any) -> None:
    """Random layers make all queries alike, and masks either full or empty: not with these factors.

    Each query keeps something of its own, and masks have values between.
    """
    with torch.no_grad():
        for embedding in (head.query_embed, head.query_feat, head.level_embed):
            embedding.weight *= embedding.weight.shape[1] ** 0.5
        head.pixel_decoder.level_encoding.weight *= 4
        for layer in head.pixel_decoder.encoder.layers:
            layer.self_attn.sampling_offsets.weight *= 2
        for layer in head.transformer_decoder.layers:
            attentions = (layer.cross_attn.attn.out_proj, layer.self_attn.attn.out_proj)
            for linear, factor in (*((a, 0.1) for a in attentions), (layer.ffn.layers[1], 0.3)):
                linear.weight *= factor
                linear.bias *= factor
            for norm in layer.norms:
                norm.bias *= 0.3
        head.cls_embed.weight *= 4
        head.cls_embed.bias.zero_()
        head.mask_embed[4].weight *= 0.2
        head.mask_embed[4].bias *= 0.2


def even_out(head: Any, logits: Callable[[], Sequence[Tensor]]) -> None:
    """The biases of the class scores, until no class is ahead on the average of some images."""
    with torch.no_grad():
        for _ in range(8):
            mean = sum(part.mean(dim=(0, 2, 3)) for part in logits())
            head.cls_embed.bias[:-1] -= 0.7 * torch.log(mean / mean.mean())


def variant_of(backbone: str, size: str, tolerance: float, **options: Any) -> Variant:
    name = backbone.split("-in")[0]
    side = int(size.split("x")[0])
    schedule = "160k_ade20k"
    return Variant(
        config=f"mask2former/mask2former_{backbone}_8xb2-{schedule}-{size}.py",
        description={"architecture": "mask2former", "variant": name, "head_channels": 256},
        hw=(side, side),
        other_hw=(330, 250),  # filled up to 352x256; in float64 a quarter, 165x125 to 192x128
        tolerance=tolerance,
        **options,
    )


@pytest.fixture(scope="class")
def case(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Case:
    """In the place of the shared one: padded, and with queries that differ."""
    config = configuration(request.param)
    theirs = AsTested(mmsegmentation_model(config))
    preprocessor = config.model.data_preprocessor
    x = normalised(random_images(2, (160, 128)), preprocessor.mean, preprocessor.std)
    randomise_weights(theirs.model, lambda: their_logits(theirs, x), seed=2)
    spread_queries(theirs.decode_head)
    larger = normalised(random_images(1, (320, 256)), preprocessor.mean, preprocessor.std)
    even_out(theirs.decode_head, lambda: [their_logits(theirs, part) for part in (x, larger)])
    path = tmp_path_factory.mktemp("reference") / "model.pth"
    save_as_mmengine_does(theirs.model, config, path, classes=request.param.classes)
    ours = load_model(path)
    path.unlink()
    return Case(request.param, theirs, ours)


def filled_up(config: Any) -> None:
    """Unlike the others, ADE20K's Swin-B and Swin-L are tested without being filled up."""
    assert "test_cfg" not in config.model.data_preprocessor
    config.model.data_preprocessor.test_cfg = {"size_divisor": 32}


class TestMask2Former(AgainstMmsegmentation):
    VARIANTS = (
        # Seen: 9e-5, 2e-5; a 1e-6 relative jitter of the input moves the logits as much.
        variant_of("r50", "512x512", 5e-4),
        variant_of("swin-t", "512x512", 2e-4),
        variant_of(
            "swin-b-in22k-384x384-pre", "640x640", 2e-4, graph=False, slow=True, change=filled_up
        ),
    )

    def test_the_gather_form_gives_mmsegmentations_logits(self, case: Case) -> None:
        x = case.image(case.variant.other_hw)
        want = their_logits(case.theirs, x)
        net = with_gather_sampling(rewritten_for_export(case.ours.net))
        check_within(our_logits(net, x), want, case.variant.tolerance)

    def test_without_filling_up_logits_are_mmsegmentations_too(self, case: Case) -> None:
        net, _ = model_from_tensors(case.theirs.state_dict(), Hints(size_divisor=1, num_heads=8))
        x = case.image(case.variant.other_hw)
        want = their_logits(case.theirs.model, x)
        check_within(our_logits(net, x), want, case.variant.tolerance)

    def test_the_names_of_mmdetection_2_give_the_same_model(self, case: Case) -> None:
        old = {}
        for key, tensor in case.theirs.state_dict().items():
            decoder = "transformer_decoder.layers." in key
            for ours, theirs in (
                (".cross_attn.", ".attentions.0."),
                (".self_attn.", ".attentions.1." if decoder else ".attentions.0."),
                (".ffn.", ".ffns.0."),
            ):
                if key.startswith("decode_head."):
                    key = key.replace(ours, theirs)
            old[key] = tensor
        net, description = model_from_tensors(old)
        assert description.source == "mmsegmentation 0.x"
        got, want = net.state_dict(), case.ours.net.state_dict()
        assert got.keys() == want.keys()
        assert all(torch.equal(got[key], want[key]) for key in want)
