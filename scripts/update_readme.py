"""Write the demo's table into README.md from docs/results/demo.json.

    .venv/bin/python scripts/update_readme.py [REPORT]

With REPORT (build/demo/report.json after scripts/demo), that report becomes docs/results/demo.json.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from exporter.report import report_from_file, table_markdown

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "docs" / "results" / "demo.json"
BEGIN, END = "<!-- demo table -->\n", "<!-- end of demo table -->"


def readme_with_table(readme: str, table: str) -> str:
    """`readme` with `table` between the two markers."""
    head, _, rest = readme.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}{table.strip()}\n{END}{tail}"


def main() -> None:
    if len(sys.argv) > 1:
        shutil.copyfile(sys.argv[1], RESULT)
    path = ROOT / "README.md"
    table = table_markdown(report_from_file(RESULT))
    path.write_text(readme_with_table(path.read_text("utf-8"), table), "utf-8")


if __name__ == "__main__":
    main()
