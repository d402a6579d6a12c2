"""Put a stored comparison into the documents: docs/measured/, and the table in docs/methods*.md.

    python tests/bench/publish.py FOLDER      a folder below $DEPLOYER_HOME/comparisons

What the documents show of it is made of the very document that lies beside them.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

from deployer.comparison import COMPARISON, FIGURES, REPORT, TABLE, read_comparison
from deployer.home import default_home
from deployer.report import comparison_markdown

DOCS = Path(__file__).resolve().parents[2] / "docs"
MEASURED = DOCS / "measured"
CHAPTERS = (DOCS / "methods.md", DOCS / "methods.zh-TW.md")
PLACE = re.compile(r"(<!-- measured-table -->\n).*?(<!-- /measured-table -->)", re.DOTALL)


def filled(chapter: str, table: str) -> str:
    """The chapter with `table` in its place."""
    text, count = PLACE.subn(lambda place: f"{place[1]}\n{table}\n{place[2]}", chapter)
    if count != 1:
        raise SystemExit("the chapter has not one place for the measured table")
    return text


def publish(folder: Path) -> None:
    comparison = read_comparison(folder)
    shutil.rmtree(MEASURED / FIGURES, ignore_errors=True)  # what others measured lies there too
    MEASURED.mkdir(parents=True, exist_ok=True)
    for name in (COMPARISON, TABLE, REPORT):
        text = (folder / name).read_text("utf-8")
        assert str(default_home().root) not in text, f"{name} names a folder of this machine"
        shutil.copy(folder / name, MEASURED / name)
    shutil.copytree(folder / FIGURES, MEASURED / FIGURES)
    for chapter in CHAPTERS:
        text = filled(chapter.read_text("utf-8"), comparison_markdown(comparison))
        chapter.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit((__doc__ or "").strip())
    publish(Path(sys.argv[1]))
