"""Where a sensitivity goes: into the bundle and its report, or to files of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engines.bundle import bundle_from_folder, bundle_path
from engines.errors import BundleError, ConfigError
from engines.reports.check import plain_document
from engines.reports.report import (
    checked_report,
    json_text,
    report_from_file,
    write_text,
)
from engines.reports.sections import checked_section
from exporter.report_page import page_environment

JSON_NAME, PAGE_NAME, REPORT_PAGE = "sensitivity.json", "sensitivity.html", "report.html"
START, END = "<!-- sensitivity -->", "<!-- end of sensitivity -->"
MAX_PAGE_BYTES = 20_000_000  # a report's pictures have 2.2 MB at most
_SECTION = (
    *("images", "error_images", "val_images", "method", "reference_miou", "groups"),
    *("file", "sha256"),
)


def section_of(document: Mapping[str, Any]) -> dict[str, Any]:
    """The "sensitivity" of a report from a sensitivity.json; NaN is None."""
    section = plain_document({key: document[key] for key in _SECTION})
    return checked_section("sensitivity", section)


def check_report(folder: Path) -> None:
    """BundleError for a bundle whose report cannot be read, before anything long is done for it."""
    _report(folder)


def check_apart(paths: Sequence[Path], bundle: Path) -> None:
    """ConfigError where two files are one, or one lies in the bundle, which stays as it is."""
    places = [path.resolve() for path in paths]
    if len(set(places)) < len(places):
        raise ConfigError(
            f"{paths[0]} for --json and for --out", expected="two files", do="rename one of them"
        )
    for path, place in zip(paths, places, strict=True):
        if place.is_relative_to(bundle.resolve()):
            raise ConfigError(
                f"{path}, which lies in the bundle {bundle}",
                expected="a file outside it",
                do="leave --json and --out out to write into the bundle, or choose another place",
            )


def write_into_bundle(document: Mapping[str, Any], folder: Path) -> Path:
    """Writes sensitivity.json and adds the section to the bundle's report; the page that shows it.

    Everything else in report.json and report.html stays as it is. A bundle without a report, or
    with a page that was not made by this version, gets a page of its own, sensitivity.html.
    Each file is replaced in one step, after the report was found to be readable.
    """
    section = section_of(document)
    texts = {folder / JSON_NAME: _record_text(document, section)}
    path, report = _report(folder)
    html = None
    if path is not None:
        texts[path] = json_text(checked_report({**report, "sensitivity": section}))
        html = _page_with(section, folder, path.with_name(REPORT_PAGE))
    if path is None or html is None:
        page, html = folder / PAGE_NAME, _own_page(document, section)
    else:
        page = path.with_name(REPORT_PAGE)
    for file, text in {**texts, page: html}.items():
        write_text(file, text)
    return page


def _report(folder: Path) -> tuple[Path | None, dict[str, Any]]:
    """The bundle's report.json and its content; None where the bundle names none."""
    bundle = bundle_from_folder(folder)
    if bundle.report is None:
        return None, {}
    path = bundle_path(folder, bundle.report)
    return path, report_from_file(path)


def write_elsewhere(
    document: Mapping[str, Any], *, json_path: Path | None, page: Path | None
) -> None:
    """The same record, or a page of it, or both, where the user wants them."""
    section = section_of(document)
    if json_path is not None:
        write_text(json_path, _record_text(document, section))
    if page is not None:
        write_text(page, _own_page(document, section))


def _record_text(document: Mapping[str, Any], section: Mapping[str, Any]) -> str:
    """The content of sensitivity.json."""
    return json_text({**plain_document(document), **section})


def _own_page(document: Mapping[str, Any], section: Mapping[str, Any]) -> str:
    template = page_environment().get_template("sensitivity.html.jinja")
    return template.render(document=document, section=section)


def _page_with(section: Mapping[str, Any], folder: Path, page: Path) -> str | None:
    """The report's page with the section between its two marks; None where it has no such marks."""
    try:
        file = bundle_path(folder, str(page.relative_to(folder)))
        with file.open("rb") as opened:
            data = opened.read(MAX_PAGE_BYTES + 1)
        html = data.decode("utf-8")
    except (BundleError, OSError, ValueError):  # no page, or none of ours: it is left alone
        return None
    if len(data) > MAX_PAGE_BYTES or html.count(START) != 1 or html.count(END) != 1:
        return None
    before, _, rest = html.partition(START)
    if END not in rest:
        return None
    after = rest.partition(END)[2]
    module: Any = page_environment().get_template("int8.html.jinja").module
    return f"{before}{START}\n{module.sensitivity(section)}\n{END}{after}"
