"""The zoo: names are found, addresses follow the publisher's pattern, figures are plausible."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

import pytest

from engines.errors import ConfigError
from exporter.zoo import ZOO, ZooEntry, zoo_entry

NUM_OUTPUTS = {"ade20k": 150, "cityscapes": 19, "coco-stuff": 172, "rice": 6}
DEPTHS = {
    "b0": (2, 2, 2, 2),
    "b1": (2, 2, 2, 2),
    "b2": (3, 4, 6, 3),
    "b3": (3, 4, 18, 3),
    "b4": (3, 8, 27, 3),
    "b5": (3, 6, 40, 3),
}


def parameters_of_segformer(variant: str, num_outputs: int) -> int:
    """Counted from the paper's description, with mmsegmentation's 256-channel head."""
    dims = (32, 64, 160, 256) if variant == "b0" else (64, 128, 320, 512)
    total, channels = 0, 3
    for dim, depth, patch, ratio in zip(
        dims, DEPTHS[variant], (7, 3, 3, 3), (8, 4, 2, 1), strict=True
    ):
        reduction = dim * dim * ratio * ratio + dim + 2 * dim if ratio > 1 else 0
        attention = 4 * (dim * dim + dim) + reduction
        mlp = 2 * 4 * dim * dim + 4 * dim + dim + 4 * dim * 9 + 4 * dim
        total += channels * dim * patch * patch + dim + 2 * dim
        total += depth * (attention + mlp + 4 * dim) + 2 * dim
        total += dim * 256 + 2 * 256
        channels = dim
    return total + 1024 * 256 + 2 * 256 + 256 * num_outputs + num_outputs


def test_the_zoo_holds_b0_to_b5_on_both_large_data_sets_and_what_else_was_published() -> None:
    names = [(entry.dataset, entry.model) for entry in ZOO]
    assert len(set(names)) == len(names) == 15
    for dataset in ("ade20k", "cityscapes"):
        assert [m for d, m in names if d == dataset] == [f"segformer-b{n}" for n in range(6)]
    assert ("coco-stuff", "segformer-b0") in names
    assert ("rice", "segformer-b4") in names


@pytest.mark.parametrize("entry", ZOO, ids=lambda entry: f"{entry.model}-{entry.dataset}")
def test_parameters_are_those_of_the_described_network(entry: ZooEntry) -> None:
    counted = parameters_of_segformer(entry.model[-2:], NUM_OUTPUTS[entry.dataset])
    assert entry.parameters_m == round(counted / 1e6, 1)


@pytest.mark.parametrize("entry", ZOO, ids=lambda entry: f"{entry.model}-{entry.dataset}")
def test_an_address_ends_in_a_file_name_that_carries_its_hash(entry: ZooEntry) -> None:
    assert (entry.url is None) == (entry.sha256_prefix is None)
    if entry.url is None:
        return
    assert urlsplit(entry.url).scheme == "https"
    assert entry.model[-2:] in entry.url
    assert f"_{entry.dataset}_" in entry.url
    assert f"{entry.crop_hw[0]}x{entry.crop_hw[1]}" in entry.url
    assert re.search(rf"_\d{{8}}_\d{{6}}-{entry.sha256_prefix}\.pth$", entry.url)
    assert re.fullmatch(r"[0-9a-f]{8}", str(entry.sha256_prefix))


def test_larger_variants_are_slower_and_several_scales_are_never_worse() -> None:
    for dataset in ("ade20k", "cityscapes"):
        entries = [entry for entry in ZOO if entry.dataset == dataset]
        speeds = [entry.fps for entry in entries if entry.fps is not None]
        assert speeds == sorted(speeds, reverse=True)
        assert all(entry.miou_ms_flip and entry.miou_ms_flip > entry.miou for entry in entries)


def test_b0_on_ade20k_has_the_figures_of_the_published_table() -> None:
    entry = zoo_entry("segformer-b0", "ade20k")
    assert (entry.miou, entry.miou_ms_flip, entry.fps) == (37.41, 38.34, 51.32)
    assert entry.crop_hw == (512, 512)
    assert entry.url == (
        "https://download.openmmlab.com/mmsegmentation/v0.5/segformer/"
        "segformer_mit-b0_512x512_160k_ade20k/"
        "segformer_mit-b0_512x512_160k_ade20k_20210726_101530-8ffa8fda.pth"
    )


@pytest.mark.parametrize(
    "model", ["segformer-b2", "SegFormer_B2", "segformer_mit-b2", " SegFormer B2"]
)
def test_usual_spellings_of_a_model_are_the_same_model(model: str) -> None:
    assert zoo_entry(model, "Cityscapes").miou == 81.08


def test_a_misspelt_model_is_answered_with_the_close_one_and_the_list() -> None:
    with pytest.raises(ConfigError, match=r"'segfromer-b3'.*segformer-b0.*did you mean .*b3"):
        zoo_entry("segfromer-b3", "ade20k")


def test_a_model_like_no_other_is_answered_with_the_list_alone() -> None:
    with pytest.raises(ConfigError, match=r"one of segformer-b0, .*pass --checkpoint FILE"):
        zoo_entry("unet", "ade20k")


def test_a_data_set_the_model_was_not_published_on_is_answered_with_those_it_was() -> None:
    with pytest.raises(ConfigError, match=r"one of ade20k, cityscapes, rice; .*cityscapes\?"):
        zoo_entry("segformer-b4", "cityscape")
