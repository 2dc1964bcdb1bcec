"""Every entry of the zoo against the metafiles and configurations that mmsegmentation installs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mmdet.models  # noqa: F401  # registers what Mask2Former is built of
import mmseg.models
import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from torch import nn

from exporter.zoo import ZOO, ZooEntry, zoo_entry

CONFIGS = Path(mmseg.__file__).parent / ".mim" / "configs"
FOLDERS = ("segformer", "segmenter", "knet", "upernet", "swin", "deeplabv3plus", "mask2former")
DATASETS = {
    "ADE20K": "ade20k",
    "Cityscapes": "cityscapes",
    "LoveDA": "loveda",
    "Potsdam": "potsdam",
    "Vaihingen": "vaihingen",
}
# Not among the architectures and variants here.
LEFT_OUT = ("r18", "r50b", "r101b", "d16-mg124", "_fcn_r50-d8", "_pspnet_r50-d8")
# Published by mmsegmentation 0.x; 1.2.2 has the configuration alone.
BEFORE = {
    "w7": "swin/swin-large-patch4-window7-in22k-pre_upernet_8xb2-160k_ade20k-512x512.py",
    "w12": "swin/swin-large-patch4-window12-in22k-384x384-pre_upernet_8xb2-160k_ade20k-512x512.py",
}


def published_models() -> dict[str, dict[str, Any]]:
    """Address -> what the metafile says of it."""
    found = {}
    for folder in FOLDERS:
        metafile = yaml.safe_load((CONFIGS / folder / "metafile.yaml").read_text(encoding="utf-8"))
        for model in metafile["Models"]:
            assert model["Weights"] not in found
            found[model["Weights"]] = model
    return found


METAFILES = published_models()


def title(entry: ZooEntry) -> str:
    return f"{entry.model}-{entry.weights}"


def config_of(entry: ZooEntry) -> Any:
    """The configuration that the metafile names, of six classes for rice."""
    if entry.dataset == "rice":
        of_ade20k = zoo_entry(entry.model, "ade20k")
        config = config_of(of_ade20k)
        _set_classes(config.model, 6)
        return config
    if entry.model == "upernet-swin-l":
        return Config.fromfile(CONFIGS / BEFORE[entry.recipe])
    path = METAFILES[str(entry.url)]["Config"]
    return Config.fromfile(CONFIGS.parent / path)


def _set_classes(node: Any, count: int) -> None:
    for value in node if isinstance(node, list) else node.values():
        if isinstance(value, dict | list):
            _set_classes(value, count)
    if isinstance(node, dict) and "num_classes" in node:
        node["num_classes"] = count


def parameters_of(config: Any, monkeypatch: pytest.MonkeyPatch) -> int:
    """Of the network without its auxiliary head, built without memory for its weights."""
    linspace = torch.linspace  # Swin reads the numbers of it
    monkeypatch.setattr(torch, "linspace", lambda *a, **k: linspace(*a, **{**k, "device": "cpu"}))
    init_default_scope("mmseg")
    config.model.pretrained = None
    config.model.backbone.init_cfg = None
    with torch.device("meta"):
        model: nn.Module = MODELS.build(config.model)
    return sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if not name.startswith("auxiliary_head.")
    )


@pytest.mark.parametrize("entry", [e for e in ZOO if e.url], ids=title)
def test_an_address_and_its_figures_are_those_of_the_metafile(entry: ZooEntry) -> None:
    if entry.model == "upernet-swin-l":
        assert entry.url not in METAFILES
        assert "0.x" in entry.note
        return
    model = METAFILES[str(entry.url)]
    results = model["Results"]
    assert DATASETS[results["Dataset"]] == entry.dataset
    assert results["Metrics"]["mIoU"] == entry.miou
    assert results["Metrics"].get("mIoU(ms+flip)") == entry.miou_ms_flip
    if entry.fps_device:
        assert f" {entry.fps_device} " in model["Metadata"]["Training Resources"]


@pytest.mark.parametrize("entry", [e for e in ZOO if e.url], ids=title)
def test_crop_and_test_mode_are_those_of_the_configuration(entry: ZooEntry) -> None:
    config = config_of(entry)
    assert tuple(config.crop_size) == entry.crop_hw
    test = config.model.test_cfg
    assert test.mode == entry.test_mode
    if test.mode == "slide":
        assert tuple(test.crop_size) == entry.crop_hw
        side, step = test.crop_size[0], test.stride[0]
        assert f"windows of {side}x{side} every {step} pixels" in entry.note
    heads = config.model.decode_head
    align_corners = not isinstance(heads, list) and bool(heads.get("align_corners"))
    assert ("align_corners" in entry.note) == align_corners
    (resize,) = (step for step in config.test_pipeline if step["type"] == "Resize")
    assert str(min(resize["scale"])) in entry.note
    assert ("127.5" in entry.note) == (config.model.data_preprocessor.mean[0] == 127.5)


# K-Net's configurations name an argument of mmcv as it was called before.
@pytest.mark.filterwarnings('ignore:"dropout" is deprecated:DeprecationWarning')
@pytest.mark.parametrize("entry", [e for e in ZOO if e.dataset != "coco-stuff"], ids=title)
def test_parameters_are_those_of_mmsegmentations_network(
    entry: ZooEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(entry)
    count = parameters_of(config, monkeypatch)
    if entry.family == "segmenter":  # the published files have the bias that 1.2.2 leaves out
        count += config.model.backbone.embed_dims
    assert entry.parameters_m == round(count / 1e6, 1)


def test_nothing_of_these_variants_and_data_sets_is_missing() -> None:
    wanted = {
        address
        for address, model in METAFILES.items()
        if model["Results"]["Dataset"] in DATASETS and not any(part in address for part in LEFT_OUT)
    }
    held = {entry.url for entry in ZOO if entry.url and entry.model != "upernet-swin-l"}
    assert held == wanted
    assert len(wanted) == 73
