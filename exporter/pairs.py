"""One class against each of the others by mean accuracy: normal against every disorder.

Of a confusion matrix over the set, rows truth and columns prediction: a class's accuracy is the
share of its pixels that were found, mmsegmentation's Acc, where any other label is a miss, those of
the pair's other class and of the classes outside the pair alike. The pair's mAcc is the mean of the
two. "With background" is the mean of the two and the background's: what mmsegmentation's test
program prints with `classes=('background', 'normal', 'bujin')` when pixels of the other classes are
ignored in the truth and misses in the prediction, as in the configurations of
https://github.com/ironluffy/RiceSeg, from which figures of this data set are published.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from engines.errors import ConfigError
from engines.evaluation.evaluate import Evaluation
from engines.progress import printable

BACKGROUND = ("background", "배경")
_SHOWN_NAMES = 20
_FIGURES = ("acc_reference", "acc_other", "macc", "macc_with_background")
_HEADINGS = ("acc of\nthe first", "acc of\nthe second", "mAcc", "mAcc with\nbackground")


@dataclass(frozen=True)
class ClassPairs:
    """Indices (reference, other) of the pairs, and of the background class, if there is one."""

    indices: tuple[tuple[int, int], ...]
    background: int | None


def class_pairs(names: Sequence[str], classes: Sequence[str]) -> ClassPairs:
    """Each class of `names` with every other of `classes`, in their order, but the background.

    Case and the way in which a script is encoded (Korean syllables whole or in letters) do not
    matter; a name is taken once. Raises ConfigError for a name that is no class, or several, and
    for one that there is nothing to compare with.
    """
    background = next((i for i, name in enumerate(classes) if _plain(name) in BACKGROUND), None)
    indices: list[tuple[int, int]] = []
    for reference in dict.fromkeys(_index_of(name, classes) for name in names):
        others = [i for i in range(len(classes)) if i not in (reference, background)]
        if not others:
            raise ConfigError(
                f"--pairs {classes[reference]!r} and no class but it and the background",
                expected="a model of two classes or more beside the background",
                do="leave --pairs out",
            )
        indices += [(reference, other) for other in others]
    return ClassPairs(tuple(indices), background)


def _plain(name: str) -> str:
    return unicodedata.normalize("NFKC", name).strip().casefold()


def _index_of(name: str, classes: Sequence[str]) -> int:
    if name in classes:
        return list(classes).index(name)
    plain = [_plain(item) for item in classes]
    if plain.count(_plain(name)) == 1:
        return plain.index(_plain(name))
    near = difflib.get_close_matches(_plain(name), plain, n=1)
    suggested = classes[plain.index(near[0])] if near else classes[0]
    more = f" and {len(classes) - _SHOWN_NAMES} more" if len(classes) > _SHOWN_NAMES else ""
    several = "several classes" if plain.count(_plain(name)) else "no class of this model"
    raise ConfigError(
        f"--pairs {name!r}, {several}",
        expected=f"one of {', '.join(map(repr, classes[:_SHOWN_NAMES]))}{more}",
        do=f"give, for example, --pairs {suggested!r}",
    )


def pairs_section(
    pairs: ClassPairs, classes: Sequence[str], evaluation: Evaluation
) -> dict[str, Any]:
    """The report's part "pairs": for each form every pair; percent, None for a class without truth.

    A mean is None unless all classes in it have pixels in the truth.
    """
    rows = []
    for row in evaluation.rows:
        accuracy = _accuracies(row.confusion)
        for reference, other in pairs.indices:
            both = [accuracy[reference], accuracy[other]]
            with_background = None
            if pairs.background not in (None, reference):
                with_background = _mean([*both, accuracy[pairs.background]])
            rows.append(
                {
                    "form": row.name,
                    "reference": classes[reference],
                    "other": classes[other],
                    **dict(zip(_FIGURES, [*both, _mean(both), with_background], strict=True)),
                }
            )
    background = None if pairs.background is None else classes[pairs.background]
    return {"background": background, "rows": rows}


def _accuracies(confusion: np.ndarray[Any, np.dtype[np.int64]]) -> list[float | None]:
    right, pixels = np.diagonal(confusion).tolist(), confusion.sum(axis=1).tolist()
    return [100.0 * r / n if n else None for r, n in zip(right, pixels, strict=True)]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def pairs_table(section: Mapping[str, Any]) -> Table:
    """A line for each pair below the name of each form; percent."""
    shown = [
        (heading, key)
        for heading, key in zip(_HEADINGS, _FIGURES, strict=True)
        if any(row[key] is not None for row in section["rows"]) or key == "macc"
    ]
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, caption_justify="left")
    table.add_column("pair", overflow="fold")
    for heading, _ in shown:
        table.add_column(heading, justify="right", no_wrap=True)
    form = None
    for row in section["rows"]:
        if row["form"] != form:
            form = row["form"]
            table.add_row(Text(printable(form), "bold"))
        name = Text("  " + printable(f"{row['reference']} – {row['other']}"))
        table.add_row(name, *(_figure(row[key]) for _, key in shown))
    if any(row["macc"] is None for row in section["rows"]):
        table.caption = Text("–: no such pixel")
    return table


def _figure(value: float | None) -> Text:
    return Text("–", "dim") if value is None else Text(f"{value:.2f}")
