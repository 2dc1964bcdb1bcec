"""Where a configuration says how images are prepared: its preprocessor, data sets and pipelines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from exporter.config_fields import count_of, dict_of

# Looked at in one pipeline, with what is nested in it: a text can name a list again and again.
_MAX_ITEMS = 1000
_MAX_DEPTH = 4


def preprocessor_of(values: dict[str, object], model: dict[str, Any]) -> dict[str, Any]:
    """`data_preprocessor` of 1.x, of the model or at the top level."""
    return dict_of(model.get("data_preprocessor")) or dict_of(values.get("data_preprocessor"))


def padded_to(preprocessor: dict[str, Any]) -> int | None:
    """What sides are padded up to in testing, in mmsegmentation 1.x or mmdetection 3."""
    tested = count_of(dict_of(preprocessor.get("test_cfg")).get("size_divisor"))
    return tested or count_of(preprocessor.get("pad_size_divisor"))


def dataset_of(values: dict[str, object], part: str) -> dict[str, Any]:
    """data.test of 0.x, test_dataloader.dataset of 1.x, without RepeatDataset and the like."""
    dataset: Any = dict_of(values.get("data")).get(part)
    if dataset is None:
        dataset = dict_of(values.get(f"{part}_dataloader")).get("dataset")
    for _ in range(4):
        if isinstance(dataset, list) and dataset:
            dataset = dataset[0]
        inner = dict_of(dataset).get("dataset", dict_of(dataset).get("datasets"))
        if inner is None:
            break
        dataset = inner
    return dict_of(dataset)


def tested_transforms(values: dict[str, object]) -> list[dict[str, Any]]:
    """`transforms_of` the pipeline of the data that the model is tested on."""
    stated = dataset_of(values, "test").get("pipeline")
    return transforms_of(stated if isinstance(stated, list) else values.get("test_pipeline"))


def transforms_of(pipeline: object) -> list[dict[str, Any]]:
    """In order, with those inside MultiScaleFlipAug and TestTimeAug, whose lists are nested."""
    return [transform for transform in islice(_nested(pipeline, 0), _MAX_ITEMS) if transform]


def of_type(transforms: Iterable[dict[str, Any]], kind: str) -> dict[str, Any]:
    """The first transform of that type, or an empty dictionary."""
    return next((t for t in transforms if t.get("type") == kind), {})


def _nested(pipeline: object, depth: int) -> Iterator[dict[str, Any]]:
    """Every item, that of another kind as an empty dictionary."""
    for item in pipeline if isinstance(pipeline, list) and depth <= _MAX_DEPTH else []:
        yield dict_of(item)
        inner = item.get("transforms") if isinstance(item, dict) else item
        yield from _nested(inner, depth + 1)
