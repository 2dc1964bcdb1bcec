"""How well the chosen images stand for the folder: per class, per measure and per stratum."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from calibration.image_set.facts import ImageFacts
from calibration.image_set.strata import MEASURES, Strata, Stratum


@dataclass(frozen=True)
class Choice:
    """The images to choose from, their strata, and the indices of those chosen, in their order.

    `class_names` may be shorter than the classes in the masks, or empty.
    """

    images: Sequence[ImageFacts]
    strata: Strata
    chosen: Sequence[int]
    class_names: Sequence[str] = ()

    @property
    def chosen_images(self) -> list[ImageFacts]:
        return [self.images[index] for index in self.chosen]


@dataclass(frozen=True)
class CoverageRow:
    """A group of images: how many of those to choose from and of the chosen are in it.

    The percentages are of all to choose from and of all chosen; for a class, of those with a mask.
    """

    kind: str  # "class", "mask" or the name of a measure
    name: str
    candidates: int
    chosen: int
    candidates_percent: float
    chosen_percent: float


_Group = tuple[str, int]  # kind; index of the class or of the measure's part
_NO_MASK = ("mask", 0)


def coverage_rows(choice: Choice) -> tuple[CoverageRow, ...]:
    """Classes by index (where there are masks), then each part of each measure, low to high."""
    everything = range(len(choice.images))
    candidates, chosen = _counted(choice, everything), _counted(choice, choice.chosen)
    totals = (len(choice.images), len(choice.chosen))
    masked = (totals[0] - candidates[_NO_MASK], totals[1] - chosen[_NO_MASK])
    groups = sorted(group for group in candidates if group[0] == "class")
    if 0 < candidates[_NO_MASK] < totals[0]:
        groups.append(_NO_MASK)
    groups += [(m.name, part) for m in MEASURES for part in range(len(m.words))]
    rows = []
    for group in groups:
        of = masked if group[0] == "class" else totals
        both = (candidates[group], chosen[group])
        percents = [100 * n / total if total else 0.0 for n, total in zip(both, of, strict=True)]
        rows.append(CoverageRow(group[0], _name(group, choice.class_names), *both, *percents))
    return tuple(rows)


def stratum_title(stratum: Stratum) -> str:
    """For people, "0+2 dark flat sharp": the classes in the mask, "no mask" or "no class" first."""
    words = [m.words[part] for m, part in zip(MEASURES, stratum.parts, strict=True)]
    if stratum.classes is None:
        return " ".join(["no mask", *words])
    return " ".join(["+".join(map(str, stratum.classes)) or "no class", *words])


def stratum_counts(choice: Choice) -> dict[Stratum, tuple[int, int]]:
    """Images to choose from and chosen ones of each stratum, the largest first."""
    candidates = Counter(choice.strata.of_image)
    chosen = Counter(choice.strata.of_image[index] for index in choice.chosen)
    return {stratum: (size, chosen[stratum]) for stratum, size in candidates.most_common()}


def _counted(choice: Choice, indices: Iterable[int]) -> Counter[_Group]:
    counts: Counter[_Group] = Counter()
    for index in indices:
        classes, parts = choice.strata.of_image[index]
        counts.update([_NO_MASK] if classes is None else [("class", c) for c in classes])
        counts.update((m.name, part) for m, part in zip(MEASURES, parts, strict=True))
    return counts


def _name(group: _Group, class_names: Sequence[str]) -> str:
    kind, index = group
    if group == _NO_MASK:
        return "without a mask"
    if kind == "class":
        return f"{index} {class_names[index]}" if index < len(class_names) else str(index)
    return next(measure.words[index] for measure in MEASURES if measure.name == kind)
