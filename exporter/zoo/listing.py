"""All published weights in the order they are shown in, and the search by name."""

from __future__ import annotations

import difflib

from engines.errors import ConfigError
from exporter.zoo import deeplabv3plus, knet, mask2former, segformer, segmenter, upernet
from exporter.zoo.entry import ZooEntry

_FAMILIES = (
    deeplabv3plus.ENTRIES,
    knet.ENTRIES,
    mask2former.ENTRIES,
    segformer.ENTRIES,
    segmenter.ENTRIES,
    upernet.ENTRIES,
)
# How configurations and papers spell parts of a name, in the order they are replaced.
_SPELLINGS = (
    ("_", "-"),
    (" ", "-"),
    ("-mit-", "-"),
    ("-vit-", "-"),
    ("k-net", "knet"),
    ("+", "plus"),
)


def _in_order(entries: tuple[ZooEntry, ...]) -> list[ZooEntry]:
    """By data set, then models as their file has them, then the one to take first.

    That is, of several for one data set: tested on whole photos before sliding windows, which need
    several runs for a photo; then the highest mIoU.
    """
    models = [entry.model for entry in entries]
    return sorted(
        entries,
        key=lambda e: (e.dataset, models.index(e.model), e.test_mode != "whole", -e.miou),
    )


ZOO: tuple[ZooEntry, ...] = tuple(entry for family in _FAMILIES for entry in _in_order(family))


def _key(name: str) -> str:
    """The usual spellings of one name are one name: "SegFormer_MiT-B0", "DeepLabV3+ R50"."""
    key = name.strip().lower()
    for spelling, ours in _SPELLINGS:
        key = key.replace(spelling, ours)
    return key


def zoo_entry(model: str, dataset: str) -> ZooEntry:
    """The entry of `model` trained on `dataset`; case, "_", "mit-" and "vit-" do not matter.

    Where there are several, "ade20k" is the first in `ZOO` and "ade20k/80k" the one of that recipe.
    Raises ConfigError with the close matches and what the zoo has.
    """
    of_model = [entry for entry in ZOO if entry.model == _key(model)]
    otherwise = "choose one, or pass --checkpoint FILE"
    if not of_model:
        models = sorted({entry.model for entry in ZOO})
        raise ConfigError(
            f"model {model!r}",
            expected=f"one of {', '.join(models)}",
            do=_did_you_mean(_key(model), models) or otherwise,
        )
    for entry in of_model:
        if _key(dataset) in (entry.dataset, entry.weights):
            return entry
    known = [entry.weights for entry in of_model]
    raise ConfigError(
        f"data set {dataset!r} for {of_model[0].model}",
        expected=f"one of {', '.join(known)}",
        do=_did_you_mean(_key(dataset), known) or otherwise,
    )


def alternatives(entry: ZooEntry) -> list[ZooEntry]:
    """All of the same model and data set, the one that is taken without a recipe first."""
    return [e for e in ZOO if (e.model, e.dataset) == (entry.model, entry.dataset)]


def matching(model: str | None = None, dataset: str | None = None) -> list[ZooEntry]:
    """The entries of a model or a whole family, and of a data set; None: of every one.

    Raises ConfigError where there is none.
    """
    found = list(ZOO)
    if model is not None:
        found = [entry for entry in found if _key(model) in (entry.model, entry.family)]
        if not found:
            families = sorted({entry.family for entry in ZOO})
            models = [entry.model for entry in ZOO]
            raise ConfigError(
                f"model {model!r}",
                expected=f"one of {', '.join(families)}, or a variant of theirs",
                do=_did_you_mean(_key(model), [*families, *models]) or "choose one",
            )
    if dataset is not None:
        datasets = sorted({entry.dataset for entry in found})
        found = [entry for entry in found if _key(dataset) in (entry.dataset, entry.weights)]
        if not found:
            raise ConfigError(
                f"data set {dataset!r}" + ("" if model is None else f" for {_key(model)}"),
                expected=f"one of {', '.join(datasets)}",
                do=_did_you_mean(_key(dataset), datasets) or "choose one",
            )
    return found


def _did_you_mean(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, dict.fromkeys(known), n=3, cutoff=0.6)
    return f"did you mean {' or '.join(close)}?" if close else ""
