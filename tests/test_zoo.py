"""The zoo: names are found, addresses follow the publisher's pattern, figures are the printed."""

from __future__ import annotations

import re
from collections import Counter
from urllib.parse import urlsplit

import pytest

from engines.errors import ConfigError
from exporter.zoo import ZOO, ZooEntry, alternatives, matching, zoo_entry

NUM_OUTPUTS = {"ade20k": 150, "cityscapes": 19, "coco-stuff": 172, "rice": 6}
DEPTHS = {
    "b0": (2, 2, 2, 2),
    "b1": (2, 2, 2, 2),
    "b2": (3, 4, 6, 3),
    "b3": (3, 4, 18, 3),
    "b4": (3, 8, 27, 3),
    "b5": (3, 6, 40, 3),
}
# The variants that are to be exported, and how many published weights each has for ADE20K.
ON_ADE20K = {
    "segformer": {"b0": 1, "b1": 1, "b2": 1, "b3": 1, "b4": 1, "b5": 2},
    "segmenter": {"t-mask": 1, "s-mask": 1, "s-linear": 1, "b-mask": 1, "l-mask": 1},
    "knet": {"r50-deeplabv3": 1, "r50-upernet": 1, "swin-t-upernet": 1, "swin-l-upernet": 2},
    "upernet": {"r50": 2, "r101": 2, "swin-t": 1, "swin-s": 1, "swin-b": 4, "swin-l": 2},
    "deeplabv3plus": {"r50": 2, "r101": 2},
    "mask2former": {"r50": 1, "r101": 1, "swin-t": 1, "swin-s": 1, "swin-b": 2, "swin-l": 1},
}
# Typed from mmsegmentation's tables: model, --dataset, mIoU, several scales and mirrored, fps.
PRINTED = (
    ("segformer-b0", "ade20k", 37.41, 38.34, 51.3),
    ("segformer-b4", "ade20k", 48.46, 49.76, 15.5),
    ("segformer-b5", "ade20k/640", 49.62, 50.36, 11.3),
    ("segformer-b0", "cityscapes", 76.54, 78.22, 4.74),
    ("segformer-b5", "cityscapes", 82.25, 83.48, 1.39),
    ("segmenter-t-mask", "ade20k", 39.99, 40.83, 28.0),
    ("segmenter-s-linear", "ade20k", 45.75, 46.82, 28.1),
    ("segmenter-s-mask", "ade20k", 46.19, 47.85, 24.8),
    ("segmenter-b-mask", "ade20k", 49.60, 51.07, 13.2),
    ("segmenter-l-mask", "ade20k", 52.16, 53.65, 2.6),
    ("knet-r50-deeplabv3", "ade20k", 45.06, 46.11, 12.1),
    ("knet-swin-t-upernet", "ade20k", 45.84, 46.27, 15.6),
    ("knet-swin-l-upernet", "ade20k/512", 52.05, 53.24, 8.3),
    ("mask2former-r50", "ade20k", 47.87, None, 26.6),
    ("mask2former-r101", "ade20k", 48.60, None, 23.0),
    ("mask2former-swin-t", "ade20k", 48.66, None, 23.8),
    ("mask2former-swin-s", "ade20k", 51.24, None, 19.7),
    ("mask2former-swin-b", "ade20k/in1k", 52.44, None, 12.5),
    ("mask2former-swin-b", "ade20k/in22k", 53.90, None, 12.4),
    ("mask2former-swin-l", "ade20k", 56.01, None, 8.8),
    ("mask2former-r50", "cityscapes", 80.44, None, 9.17),
    ("mask2former-r101", "cityscapes", 80.80, None, 7.11),
    ("mask2former-swin-t", "cityscapes", 81.71, None, 7.18),
    ("mask2former-swin-s", "cityscapes", 82.57, None, 5.57),
    ("mask2former-swin-b", "cityscapes", 83.52, None, 4.32),
    ("mask2former-swin-l", "cityscapes", 83.65, None, 2.86),
    ("deeplabv3plus-r50", "ade20k/80k", 42.72, 43.75, 21.0),
    ("deeplabv3plus-r101", "ade20k/80k", 44.60, 46.06, 14.2),
    ("deeplabv3plus-r50", "ade20k/160k", 43.95, 44.93, None),
    ("deeplabv3plus-r101", "ade20k/160k", 45.47, 46.35, None),
    ("upernet-swin-t", "ade20k", 44.41, 45.79, 21.1),
    ("upernet-swin-l", "ade20k/w12", 52.25, 54.12, 7.6),
)
# Parameters in millions with six classes, from the papers' descriptions; 150 or 19 classes add at
# most 0.2. What mmsegmentation counts with an auxiliary head is not here.
COUNTED = {
    "segmenter-t-mask": 6.7,
    "segmenter-s-mask": 26.0,
    "segmenter-s-linear": 22.0,
    "segmenter-b-mask": 102.4,
}


def title(entry: ZooEntry) -> str:
    return f"{entry.model}-{entry.weights}"


PUBLISHED = [entry for entry in ZOO if entry.url is not None]


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


def test_every_variant_has_its_published_weights() -> None:
    got = Counter(entry.model for entry in ZOO if entry.dataset == "ade20k")
    wanted = {
        f"{family}-{variant}": count
        for family, variants in ON_ADE20K.items()
        for variant, count in variants.items()
    }
    assert got == wanted
    assert {entry.model for entry in ZOO} == set(wanted)


def test_a_name_means_one_entry_and_a_recipe_is_said_exactly_where_there_are_several() -> None:
    names = [(entry.model, entry.weights) for entry in ZOO]
    assert len(set(names)) == len(names) == 82
    for entry in ZOO:
        assert bool(entry.recipe) == (len(alternatives(entry)) > 1)
        assert zoo_entry(entry.model, entry.weights) is entry


@pytest.mark.parametrize(("model", "dataset", "miou", "ms_flip", "fps"), PRINTED)
def test_figures_are_those_of_the_published_tables(
    model: str, dataset: str, miou: float, ms_flip: float | None, fps: float | None
) -> None:
    entry = zoo_entry(model, dataset)
    assert (entry.miou, entry.miou_ms_flip) == (miou, ms_flip)
    assert entry.fps == (None if fps is None else pytest.approx(fps, abs=0.051))


@pytest.mark.parametrize("entry", matching("segformer"), ids=title)
def test_parameters_of_segformer_are_those_of_the_described_network(entry: ZooEntry) -> None:
    counted = parameters_of_segformer(entry.model[-2:], NUM_OUTPUTS[entry.dataset])
    assert entry.parameters_m == round(counted / 1e6, 1)


@pytest.mark.parametrize(("model", "counted"), COUNTED.items())
def test_more_classes_add_few_parameters(model: str, counted: float) -> None:
    for entry in matching(model):
        assert counted <= entry.parameters_m <= counted + 0.2


@pytest.mark.parametrize("entry", PUBLISHED, ids=title)
def test_an_address_ends_in_a_file_name_that_carries_its_date_and_hash(entry: ZooEntry) -> None:
    assert entry.url is not None
    parts = urlsplit(entry.url)
    assert (parts.scheme, parts.hostname) == ("https", "download.openmmlab.com")
    begins, project, version, family, folder, name = parts.path.split("/")
    assert (begins, project, version) == ("", "mmsegmentation", "v0.5")
    assert family in (entry.family, "swin")
    assert re.fullmatch(r"[0-9a-f]{8}", str(entry.sha256_prefix))
    assert re.fullmatch(
        rf"{re.escape(folder)}_20(20|21|22)[01]\d[0-3]\d_[0-2]\d[0-5]\d[0-5]\d-{entry.sha256_prefix}\.pth",
        name,
    )
    assert f"_{entry.dataset}" in folder
    # The one name that says another crop than its configuration.
    h, w = (512, 512) if entry.model == "segmenter-l-mask" else entry.crop_hw
    assert f"{h}x{w}" in folder


def test_no_two_entries_share_an_address_or_a_hash() -> None:
    for values in ([e.url for e in PUBLISHED], [e.sha256_prefix for e in PUBLISHED]):
        assert len(set(values)) == len(values)


def test_only_weights_with_an_address_have_a_hash() -> None:
    unknown = {(entry.model, entry.dataset) for entry in ZOO if entry.sha256_prefix is None}
    assert unknown == {(entry.model, entry.dataset) for entry in ZOO if entry.url is None}
    assert {dataset for _, dataset in unknown} == {"coco-stuff", "rice"}


def test_a_backbone_of_the_name_is_that_of_the_address() -> None:
    sizes = {"t": "tiny", "s": "small", "b": "base", "l": "large"}
    for entry in PUBLISHED:
        for backbone in re.findall(r"b\d|r50|r101|swin-[tsbl]", entry.model):
            spelt = backbone
            if entry.family == "upernet" and backbone.startswith("swin-"):
                spelt = f"swin_{sizes[backbone[-1]]}"
            assert re.search(rf"{spelt}(?!\d)", str(entry.url))


@pytest.mark.parametrize("entry", ZOO, ids=title)
def test_figures_are_plausible_and_a_speed_names_its_gpu(entry: ZooEntry) -> None:
    assert 35 < entry.miou < 90
    if entry.dataset in ("ade20k", "cityscapes") and entry.miou_ms_flip is not None:
        assert entry.miou < entry.miou_ms_flip < entry.miou + 2.5
    if entry.url is not None:
        assert (entry.fps is None) == (entry.fps_device is None)
    assert entry.test_mode in ("whole", "slide")
    assert entry.note


def test_larger_variants_of_one_family_are_slower() -> None:
    for family in ("segformer", "mask2former"):
        for dataset in ("ade20k", "cityscapes"):
            entries = [e for e in matching(family, dataset) if "swin" in e.model or "-b" in e.model]
            by_size = sorted(entries, key=lambda e: (e.parameters_m, e.crop_hw))
            speeds = [e.fps for e in by_size if e.recipe != "in1k"]
            assert speeds == sorted(speeds, reverse=True)  # type: ignore[type-var]
            assert len(speeds) >= 4


def test_only_segmenter_large_crops_and_769_are_tested_in_windows() -> None:
    for entry in ZOO:
        windows = (
            entry.family == "segmenter"
            or entry.crop_hw == (769, 769)
            or (entry.family, entry.dataset) == ("segformer", "cityscapes")
        )
        assert (entry.test_mode == "slide") == windows


@pytest.mark.parametrize(
    ("model", "ade20k"),
    [
        ("knet-r50-deeplabv3", "ade20k"),
        ("knet-swin-t-upernet", "ade20k"),
        ("knet-swin-l-upernet", "ade20k/512"),
        ("segmenter-b-mask", "ade20k"),
    ],
)
def test_what_is_printed_for_rice_is_marked_as_the_figures_of_ade20k(
    model: str, ade20k: str
) -> None:
    rice, printed = zoo_entry(model, "rice"), zoo_entry(model, ade20k)
    assert (rice.miou, rice.miou_ms_flip, rice.fps, rice.crop_hw) == (
        printed.miou,
        printed.miou_ms_flip,
        printed.fps,
        printed.crop_hw,
    )
    assert "figures are those of ADE20K" in rice.note
    assert rice.fps_device is None


@pytest.mark.parametrize(
    ("model", "dataset", "taken"),
    [
        ("upernet-swin-b", "ade20k", "ade20k/in22k-w12"),
        ("mask2former-swin-b", "ade20k", "ade20k/in22k"),
        ("deeplabv3plus-r50", "ade20k", "ade20k/160k"),
        ("knet-swin-l-upernet", "ADE20K", "ade20k/640"),
        # 79.39 in windows of 769, 78.19 on whole photos
        ("upernet-r50", "cityscapes", "cityscapes/80k"),
        ("deeplabv3plus-r101", "cityscapes", "cityscapes/80k"),
    ],
)
def test_of_several_the_best_on_whole_photos_is_taken_and_listed_first(
    model: str, dataset: str, taken: str
) -> None:
    entry = zoo_entry(model, dataset)
    assert entry.weights == taken
    others = alternatives(entry)
    assert others[0] is entry
    assert len(others) > 1
    assert all(e.miou <= entry.miou or e.test_mode == "slide" for e in others)
    assert matching(model, dataset) == others


def test_families_and_data_sets_are_listed_in_alphabetical_order() -> None:
    shown = list(dict.fromkeys((entry.family, entry.dataset) for entry in ZOO))
    assert shown == sorted(shown)


@pytest.mark.parametrize(
    ("model", "ours"),
    [
        ("segformer-b2", "segformer-b2"),
        ("SegFormer_B2", "segformer-b2"),
        ("segformer_mit-b2", "segformer-b2"),
        (" SegFormer B2", "segformer-b2"),
        ("segmenter_vit-s_mask", "segmenter-s-mask"),
        ("K-Net Swin-T UPerNet", "knet-swin-t-upernet"),
        ("DeepLabV3+ R50", "deeplabv3plus-r50"),
        ("Mask2Former_Swin-B", "mask2former-swin-b"),
    ],
)
def test_usual_spellings_of_a_model_are_the_same_model(model: str, ours: str) -> None:
    assert zoo_entry(model, "Cityscapes" if "b2" in ours else "ade20k").model == ours


def test_a_misspelt_model_is_answered_with_the_close_one_and_the_list() -> None:
    with pytest.raises(ConfigError, match=r"'segfromer-b3'.*segformer-b0.*did you mean .*b3"):
        zoo_entry("segfromer-b3", "ade20k")


def test_a_model_like_no_other_is_answered_with_the_list_alone() -> None:
    with pytest.raises(ConfigError, match=r"one of deeplabv3plus-r101, .*pass --checkpoint FILE"):
        zoo_entry("zzz", "ade20k")


def test_a_data_set_the_model_was_not_published_on_is_answered_with_those_it_was() -> None:
    with pytest.raises(ConfigError, match=r"one of ade20k, cityscapes, rice; .*cityscapes\?"):
        zoo_entry("segformer-b4", "cityscape")


def test_an_unknown_recipe_is_answered_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"one of ade20k/160k, ade20k/80k, city.*ade20k/80k"):
        zoo_entry("deeplabv3plus-r50", "ade20k/8k")


def test_a_family_or_a_data_set_can_be_listed_alone() -> None:
    assert {entry.family for entry in matching("Mask2Former")} == {"mask2former"}
    assert len(matching("mask2former")) == 13
    assert {entry.dataset for entry in matching(dataset="LoveDA")} == {"loveda"}
    assert len(matching("deeplabv3plus", "loveda")) == 2
    assert matching() == list(ZOO)


def test_what_cannot_be_listed_is_answered_with_the_families_or_data_sets() -> None:
    with pytest.raises(ConfigError, match=r"one of deeplabv3plus, knet, .*mask2former-r50"):
        matching("maskformer-r50")
    with pytest.raises(ConfigError, match=r"'rice' for mask2former; .*one of ade20k, cityscapes;"):
        matching("mask2former", "rice")
