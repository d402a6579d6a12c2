"""What differs around two results: read it before any figure.

A difference of the workload or the model makes their figures incomparable. Another machine or
another version is often the very question, and then it explains the change.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from deployer.artifacts import Record
from deployer.comparison import Comparison, Row
from deployer.regression.stored import Stored, two_kinds
from deployer.results import LoadTestResult

Kind = Literal["workload", "model", "host", "versions", "formats", "contended"]
ABSENT = "–"
_MEASURED = {"input", "output"}
"""Fields of a load test's workload that are measured lengths, so never quite the same twice."""
_NOT_THE_SERVER = {"endpoint", "argv", "bundle"}
"""Of a load test's server: a free port is another one each time."""


class Difference(Record):
    """`what` in both results, as text; "–" where one of them has none."""

    kind: Kind
    what: str
    old: str
    new: str


def differences(old: Stored, new: Stored) -> tuple[Difference, ...]:
    """All of them, the gravest kind first; raises UsageError for two kinds of results."""
    if isinstance(old, Comparison) and isinstance(new, Comparison):
        return tuple(_of_comparisons(old, new))
    if isinstance(old, LoadTestResult) and isinstance(new, LoadTestResult):
        return tuple(_of_load_tests(old, new))
    raise two_kinds()


def incomparable(found: Sequence[Difference]) -> tuple[Difference, ...]:
    """Those that make the figures incomparable: another workload, another model."""
    return tuple(each for each in found if each.kind in ("workload", "model"))


def _of_comparisons(old: Comparison, new: Comparison) -> Iterator[Difference]:
    yield from _fields("workload", old.workload.as_json(), new.workload.as_json())
    yield from _fields("model", old.source, new.source)
    yield from _fields("host", _host(old), _host(new))
    yield from _fields("versions", _versions(old), _versions(new))
    yield from _tools(old, new)
    yield from _fields("formats", _formats(old), _formats(new))
    yield from _fields("contended", _contended(old), _contended(new))


def _of_load_tests(old: LoadTestResult, new: LoadTestResult) -> Iterator[Difference]:
    yield from _fields("workload", _workload(old), _workload(new))
    yield from _fields("host", _host(old), _host(new))
    yield from _fields("versions", _served(old), _served(new))
    yield from _fields("formats", _stages(old), _stages(new))


def _fields(kind: Kind, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Difference]:
    """Keys whose values differ; what is null and what is missing are the same."""
    for key in dict.fromkeys((*old, *new)):
        if old.get(key) != new.get(key):
            yield Difference(kind=kind, what=key, old=_text(old.get(key)), new=_text(new.get(key)))


def _text(value: Any) -> str:
    if value in (None, ""):
        return ABSENT
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _host(result: Stored) -> dict[str, Any]:
    """The machine without its load, which is never the same twice."""
    return {k: v for k, v in result.host.as_json().items() if k != "load_before"}


def _versions(result: Comparison) -> dict[str, Any]:
    return {**result.versions, "git": result.git}


def _tools(old: Comparison, new: Comparison) -> Iterator[Difference]:
    """What made and served the formats that both measured; told once for all of its formats."""
    rows = {row.name: row for row in new.measured}
    found: dict[tuple[str, str, str], list[str]] = {}
    for row in old.measured:
        if row.name in rows:
            for each in _fields("versions", _made_by(row), _made_by(rows[row.name])):
                found.setdefault((each.what, each.old, each.new), []).append(row.name)
    for (what, before, after), names in found.items():
        of = f"{what} of {', '.join(names)}"
        yield Difference(kind="versions", what=of, old=before, new=after)


def _made_by(row: Row) -> dict[str, Any]:
    serving = row.serving
    return {**row.tools, "server": serving and f"{serving.server} {serving.version}"}


def _formats(result: Comparison) -> dict[str, Any]:
    """What each format is, so that one of the same name and another scheme is told."""
    return {row.name: " ".join((row.engine, row.method, row.scheme)).strip() for row in result.rows}


def _contended(result: Comparison) -> dict[str, Any]:
    """Trials during which other programs used the machine."""
    return {f"{trial.format}, trial {trial.number}": f"{trial.busy:.0%} used by others"
            for trial in result.trials if trial.contended}  # fmt: skip


def _workload(result: LoadTestResult) -> dict[str, Any]:
    known = {k: v for k, v in result.workload.as_json().items() if k not in _MEASURED}
    return {**known, "seed": result.run.seed}


def _served(result: LoadTestResult) -> dict[str, Any]:
    """Versions of the run, and what was served."""
    server = {f"server {k}": v for k, v in result.server.items() if k not in _NOT_THE_SERVER}
    return {**result.run.versions, "git": result.run.git, **server}


def _stages(result: LoadTestResult) -> dict[str, Any]:
    return {stage.name: f"{stage.target:g} {stage.unit}" for stage in result.stages}
