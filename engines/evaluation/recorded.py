"""PyTorch's scores as an earlier report recorded them, to compare a device without torch with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional

from engines.bundle import Bundle, bundle_path
from engines.errors import ConfigError
from engines.reports.report import FILE_NAME, report_from_file

PYTORCH = "PyTorch"  # how the `runtime` of its row begins
_KEPT = ("form", "precision", "runtime", "file", "sha256", "file_mb", "mode", "tta")
_SCORES = ("miou", "macc", "aacc", "iou", "acc")


@dataclass(frozen=True)
class Recorded:
    """The row of PyTorch in a report, and what its scores were measured on.

    `row` has the scores and no speed, which is that of another machine. `data_sha256` is of the
    images and masks, None in older reports. `source` names the report in sentences.
    """

    row: Dict[str, Any]
    source: str
    data_sha256: Optional[str]
    images: Optional[int]

    def same_images(self, data_sha256: str) -> Optional[bool]:
        """Whether it was scored on the images with that hash; None if that is not known."""
        return None if self.data_sha256 is None else self.data_sha256 == data_sha256


def recorded_from_bundle(
    folder: Path, bundle: Bundle, against: Optional[Path]
) -> Optional[Recorded]:
    """PyTorch's row of the report `against`, or of the bundle's own; None where that has none.

    `against` may be a folder with a report.json. Raises BundleError for a file that is no report,
    ConfigError for one without PyTorch's scores, of another checkpoint or of other classes.
    """
    if against is not None:
        path = against / FILE_NAME if against.is_dir() else against
        recorded = _recorded_from_report(path, bundle, str(against))
        if recorded is None:
            raise ConfigError(
                f"{against}, a report without PyTorch's scores",
                expected="the report of an export that was given --val",
                do="export the model with --val, or leave --against out",
            )
        return recorded
    if bundle.report is None:
        return None
    return _recorded_from_report(bundle_path(folder, bundle.report), bundle, "the export's report")


def same_images_lines(recorded: Recorded, data_sha256: str, images: int) -> List[str]:
    """What must be said about a comparison with scores that another machine measured."""
    same = recorded.same_images(data_sha256)
    if same:
        return []
    was = "not recorded how many" if recorded.images is None else str(recorded.images)
    if same is None:
        return [
            f"not known whether PyTorch's mIoU, from {recorded.source}, was measured on the same "
            f"images as here ({was} there, {images} here)"
        ]
    return [
        f"PyTorch's mIoU, from {recorded.source}, was measured on other images ({was} there, "
        f"{images} here): the change of mIoU is no loss of accuracy"
    ]


def _recorded_from_report(path: Path, bundle: Bundle, source: str) -> Optional[Recorded]:
    report = report_from_file(path)
    found = [row for row in report["rows"] if (row["runtime"] or "").startswith(PYTORCH)]
    scored = [row for row in found if row["miou"] is not None]
    if not scored:
        return None
    _check_same_model(report, bundle, source)
    row = scored[0]
    data = report["data"] or {}
    return Recorded(
        row={**{key: row[key] for key in (*_KEPT, *_SCORES)}, "error": None},
        source=source,
        data_sha256=data.get("sha256"),
        images=data.get("images"),
    )


def _check_same_model(report: Dict[str, Any], bundle: Bundle, source: str) -> None:
    there = (report["checkpoint"] or {}).get("sha256")
    if there is not None and there != bundle.checkpoint.sha256:
        raise ConfigError(
            f"{source} of checkpoint {there[:12]}",
            expected=f"one of checkpoint {bundle.checkpoint.sha256[:12]}, which the bundle is from",
            do="give the report of the same export with --against",
        )
    if report["classes"] != list(bundle.classes):
        raise ConfigError(
            f"{source} with {len(report['classes'])} classes ({_shown(report['classes'])})",
            expected=f"the bundle's {len(bundle.classes)} ({_shown(list(bundle.classes))})",
            do="give the report of the same export with --against",
        )


def _shown(names: List[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
