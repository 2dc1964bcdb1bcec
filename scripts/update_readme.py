"""Write the tables of README.md from the records in docs/results.

    .venv/bin/python scripts/update_readme.py [REPORT]

With REPORT (build/demo/report.json after scripts/demo), that report becomes docs/results/demo.json.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from measure_families import table as families_table
from ptq.table import ptq_markdown

from exporter.report import report_from_file, table_markdown

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"


def demo_table() -> str:
    return table_markdown(report_from_file(RESULTS / "demo.json"))


def ptq_tables() -> str:
    return ptq_markdown(json.loads((RESULTS / "ptq.json").read_text(encoding="utf-8")))


def families_int8() -> str:
    record = json.loads((RESULTS / "families.json").read_text(encoding="utf-8"))
    return families_table(record["families"])


def scenes_speed() -> str:
    """What `prepare` and large fields cost, beside what they may."""
    prepare = json.loads((RESULTS / "prepare.json").read_text(encoding="utf-8"))
    field = json.loads((RESULTS / "field.json").read_text(encoding="utf-8"))
    plain, ours = prepare["scenes_per_second"].values()
    time, limits, side = field["time"], field["limits"], prepare["side"]
    rows = [
        (
            f"`prepare`, {prepare['scenes']} scenes of {side}x{side}, {prepare['cores']} cores",
            f"{ours:.0f} scenes a second, {prepare['ratio']:.2f} times the {plain:.0f} of the "
            f"recipe in one plain process; files that differ: {prepare['differing_files']}",
            f"at least {prepare['limit']:g} times, no file",
        ),
        (
            f"a field of {time['side_px']}x{time['side_px']}, {time['bundle']}",
            f"{time['time_ratio']:.2f} times the plain inference of its windows",
            f"at most {limits['time_ratio']} times",
        ),
    ]
    for row in field["memory"]:
        height, width = row["hw"]
        rows.append(
            (
                f"a field of {width}x{height}, {row['outputs']} classes",
                f"{row['peak_gib']:.2f} GiB at most",
                f"at most {limits['peak_gib']} GiB",
            )
        )
    polygons = field["polygons"]
    height, width = polygons["hw"]
    rows.append(
        (
            f"`--vectorize` of {width}x{height} labels, {polygons['polygons']:,} polygons",
            f"{polygons['peak_gib']:.2f} GiB at most, {polygons['seconds']:.0f} s",
            f"at most {limits['peak_gib']} GiB",
        )
    )
    lines = ["| | measured | aim |", "|---|---|---|"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


# Each stands between the lines <!-- NAME --> and <!-- end of NAME -->.
TABLES: dict[str, Callable[[], str]] = {
    "demo table": demo_table,
    "ptq tables": ptq_tables,
    "families int8": families_int8,
    "scenes speed": scenes_speed,
}


def readme_with_table(readme: str, name: str, table: str) -> str:
    """`readme` with `table` between the two markers of `name`, which must be there once."""
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    if readme.count(begin) != 1 or readme.count(end) != 1:
        raise SystemExit(f"README.md without one {begin.strip()} and one {end}")
    head, _, rest = readme.partition(begin)
    _, _, tail = rest.partition(end)
    return f"{head}{begin}{table.strip()}\n{end}{tail}"


def main() -> None:
    if len(sys.argv) > 1:
        shutil.copyfile(sys.argv[1], RESULTS / "demo.json")
    path = ROOT / "README.md"
    readme = path.read_text("utf-8")
    for name, table in TABLES.items():
        readme = readme_with_table(readme, name, table())
    path.write_text(readme, "utf-8")


if __name__ == "__main__":
    main()
