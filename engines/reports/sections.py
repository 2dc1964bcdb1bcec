"""The optional parts of a report: of INT8 what each layer group costs, how the precision was chosen
and what each technique brought; and one class against each of the others (`exporter.pairs`).

A drop is in mIoU points, SQNR in dB (see `calibration.output_error`), a range in the tensor's own
unit; everything else is as in `engines.reports.check`.
"""

from __future__ import annotations

from typing import Any, Dict, Mapping, NamedTuple

from engines.reports.fields import KINDS, checked_record, require

MAX_ENTRIES = 1_000  # groups, trials or techniques; a real report has fewer than fifty
MAX_PAIRS = 200_000  # of classes, for each form

_GROUP = {
    **dict.fromkeys(("name", "title"), "name"),
    "nodes": "count",
    **dict.fromkeys(("macs_percent", "agreement", "outlier_percent"), "percent"),
    "weight_outlier_percent": "percent",
    **dict.fromkeys(("miou_drop", "sqnr_db", "activation_low", "activation_high"), "number"),
    **dict.fromkeys(("weight_max", "clip"), "amount"),
}
_SENSITIVITY = {
    **dict.fromkeys(("images", "error_images", "val_images"), "count"),
    **dict.fromkeys(("method", "file", "sha256"), "text"),
    "reference_miou": "percent",
}
_TRIAL = {
    **dict.fromkeys(("rung", "precision"), "name"),
    "float_groups": "list",
    **dict.fromkeys(("miou", "agreement", "int8_percent"), "percent"),
    "drop": "number",
    "passed": "flag",
    "seconds": "amount",
    "error": "text",
}
_ORDERED = {
    "name": "name",
    "nodes": "list",
    **dict.fromkeys(("macs_percent", "agreement"), "percent"),
    "sqnr_db": "number",
}
_SEARCH = {
    "chosen": "name",
    "max_drop": "number",
    "reference_miou": "percent",
    "seconds": "amount",
}
_TECHNIQUE = {
    "name": "name",
    "used": "flag",
    **dict.fromkeys(("sqnr_db", "sqnr_db_without"), "number"),
    **dict.fromkeys(("agreement", "agreement_without"), "percent"),
    "seconds": "amount",
}
_PAIR = {
    **dict.fromkeys(("form", "reference", "other"), "name"),
    **dict.fromkeys(("acc_reference", "acc_other", "macc", "macc_with_background"), "percent"),
}


class _Entries(NamedTuple):
    """A list of a section: the kinds of an entry's fields, which must be there, how many."""

    kinds: Mapping[str, str]
    named: str
    most: int = MAX_ENTRIES


class _Section(NamedTuple):
    """The kinds of its own fields, and its lists by their names."""

    kinds: Mapping[str, str]
    lists: Mapping[str, _Entries]


_SECTIONS = {
    "precision_search": _Section(
        _SEARCH, {"trials": _Entries(_TRIAL, "rung"), "order": _Entries(_ORDERED, "name")}
    ),
    "techniques": _Section({"images": "count"}, {"rows": _Entries(_TECHNIQUE, "name")}),
    "sensitivity": _Section(_SENSITIVITY, {"groups": _Entries(_GROUP, "name")}),
    "pairs": _Section({"background": "name"}, {"rows": _Entries(_PAIR, "form", MAX_PAIRS)}),
}
SECTIONS = tuple(_SECTIONS)


def checked_section(name: str, section: Any) -> Dict[str, Any]:
    """The section `name` with every field, None where missing; BundleError on a misfit."""
    form = _SECTIONS[name]
    full = checked_record(section, name, **form.kinds, **dict.fromkeys(form.lists, "list"))
    for key, entries in form.lists.items():
        values, where = full[key] or [], f"{name}.{key}"
        require(len(values) <= entries.most, len(values), where, f"at most {entries.most} entries")
        full[key] = [_entry(value, f"{where}[{i}]", entries) for i, value in enumerate(values)]
    return full


def _entry(value: Any, where: str, form: _Entries) -> Dict[str, Any]:
    full = checked_record(value, where, **form.kinds)
    require(full[form.named] is not None, None, f"{where}.{form.named}", "a text")
    for key in [key for key, kind in form.kinds.items() if kind == "list"]:
        names = full[key] or []
        fits = len(names) <= MAX_ENTRIES and all(map(KINDS["name"], names))
        require(fits, names, f"{where}.{key}", f"at most {MAX_ENTRIES} names")
        full[key] = names
    return full
