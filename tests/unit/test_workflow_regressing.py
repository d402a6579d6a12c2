"""`deployer compare OLD NEW`: found by name or path, refused where nothing can be told."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_up_comparison import made_up_comparison

from deployer.comparison import COMPARISON, Comparison, estimate
from deployer.errors import UsageError
from deployer.home import Home
from deployer.workflow.regressing import compare_stored


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def stored(home: Home, name: str, document: Comparison) -> Path:
    folder = home.comparisons / name
    folder.mkdir(parents=True)
    (folder / COMPARISON).write_text(document.model_dump_json(), encoding="utf-8")
    return folder


def slower(document: Comparison, name: str) -> Comparison:
    """The same, but that one format takes three times as long to load."""
    rows = []
    for row in document.rows:
        if row.name == name and row.serving:
            longer = estimate([3 * value for value in row.serving.load_seconds.values])
            serving = row.serving.model_copy(update={"load_seconds": longer})
            row = row.model_copy(update={"serving": serving})
        rows.append(row)
    return document.model_copy(update={"rows": tuple(rows)})


def test_two_comparisons_are_found_by_their_names(home: Home) -> None:
    before = made_up_comparison()
    stored(home, "old", before)
    stored(home, "new", slower(before, "q8_0"))
    found = compare_stored("old", "new", home)
    assert [(c.format, c.figure, c.verdict) for c in found.regressed] == [
        ("q8_0", "load time", "regressed")
    ]
    columns, rows = found.table
    assert rows[0][columns.index("format")] == "q8_0"  # regressions come first
    assert "Regression in q8_0." in found.describe()
    assert found.as_json()["regressed"] == 1


def test_the_same_twice_is_no_regression(home: Home) -> None:
    folder = stored(home, "old", made_up_comparison())
    found = compare_stored("old", str(folder / COMPARISON), home)
    assert found.before() == []
    assert {change.verdict for change in found.found} == {"same", "unknown"}
    assert "No regression was found." in found.describe()


def test_another_workload_is_refused_unless_forced(home: Home) -> None:
    before = made_up_comparison()
    workload = before.workload.model_copy(update={"users": before.workload.users + 1})
    stored(home, "old", before)
    stored(home, "new", before.model_copy(update={"workload": workload}))
    with pytest.raises(UsageError, match="not asked the same: another workload: users: 8 → 9"):
        compare_stored("old", "new", home)
    assert compare_stored("old", "new", home, force=True).before()


def test_what_is_not_there_is_told(home: Home) -> None:
    with pytest.raises(UsageError, match="nowhere holds no stored comparison"):
        compare_stored("nowhere", "nowhere", home)
