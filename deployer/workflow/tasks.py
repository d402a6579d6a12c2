"""Tasks through the served endpoint: serve a bundle, ask it, stop it; then its baseline too."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from deployer import tasks
from deployer.artifacts import FOLDER, Bundle
from deployer.durable import disk_error, write_atomically
from deployer.errors import UsageError
from deployer.home import Home
from deployer.progress import Progress
from deployer.recipe import Serve
from deployer.serving.preflight import read_key
from deployer.tasks import Recovery, Target, TaskResult
from deployer.workflow.bundles import find_bundle
from deployer.workflow.served import on_loopback, served

RESULT = "tasks.json"
LEAST_CONTEXT = 2048
"""Tokens; a bundle whose recipe serves fewer is served with this many, which HumanEval needs."""


@dataclass(frozen=True)
class Asked:
    """One model's results. `model` says which: {endpoint, name} or {bundle, digest, scheme, …}."""

    model: Mapping[str, Any]
    results: tuple[TaskResult, ...]

    def as_json(self) -> dict[str, Any]:
        return {"model": dict(self.model), "tasks": [each.as_json() for each in self.results]}


@dataclass(frozen=True)
class TasksOutcome:
    """A stored run: the model's results, its baseline's where one was named, and what is kept."""

    asked: Asked
    baseline: Asked | None
    recoveries: tuple[Recovery, ...]
    folder: Path

    def as_json(self) -> dict[str, Any]:
        return {
            **self.asked.as_json(),
            "baseline": self.baseline.as_json() if self.baseline else None,
            "recovery": [asdict(each) for each in self.recoveries],
            "folder": str(self.folder),
        }

    @property
    def table(self) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
        """(columns, rows) for the terminal."""
        columns = ["task", "metric", "items", "score (95 %)"]
        rows = [
            [each.name, each.metric, str(each.count), _share(each)] for each in self.asked.results
        ]
        if self.baseline:
            columns += ["baseline (95 %)", "recovery (95 %)", "better / worse"]
            for row, before, kept in zip(rows, self.baseline.results, self.recoveries, strict=True):
                row += [_share(before), _kept(kept), f"{kept.better} / {kept.worse}"]
        return columns, rows

    def describe(self) -> list[str]:
        """What stands below the table."""
        notes = [f"{each.task}: {each.note}." for each in self.recoveries if each.note]
        return [*notes, f"Answers and settings: {self.folder / RESULT}"]


def run_tasks(
    what: str | None,
    against: str | None,
    names: Sequence[str],
    limit: int | None,
    home: Home,
    progress: Progress,
    *,
    endpoint: str | None = None,
    api_key_file: Path | None = None,
) -> TasksOutcome:
    """Ask a bundle (folder or name; the newest where None), or what runs at `endpoint`.

    `against` is the bundle it is compared with, usually the 16-bit one. Each bundle is served on a
    free port of the loopback for as long as its tasks last, one after the other. The outcome is
    stored below `home.evaluations`. Raises UsageError for names that fit nothing, and what
    `serving.start` and `tasks.run` raise.
    """
    if endpoint and what:
        raise UsageError("give BUNDLE or --endpoint, not both")
    bundle = None if endpoint else find_bundle(what, home)
    before = find_bundle(against, home) if against else None
    tasks.check(names)
    if endpoint:
        key = read_key(api_key_file, progress) if api_key_file else None
        with Target.at(endpoint, api_key=key) as target:
            results = tasks.run(names, target, limit, home, progress)
            asked = Asked({"endpoint": target.url, "name": target.model}, results)
    else:
        assert bundle is not None
        asked = _of_bundle(bundle, names, limit, home, progress)
    baseline = _of_bundle(before, names, limit, home, progress) if before else None
    pairs = zip(asked.results, baseline.results, strict=True) if baseline else ()
    recoveries = tuple(tasks.recovery(after, first) for after, first in pairs)
    return _stored(asked, baseline, recoveries, home)


def _of_bundle(
    bundle: Bundle, names: Sequence[str], limit: int | None, home: Home, progress: Progress
) -> Asked:
    manifest = bundle.manifest
    with _served(bundle, home, progress) as target:
        results = tasks.run(names, target, limit, home, progress)
    model = {
        "bundle": manifest.name,
        "digest": manifest.digest,
        "engine": manifest.engine,
        "scheme": manifest.quantization.get("scheme") or "none",
        "bits_per_weight": manifest.bits_per_weight,
    }
    return Asked(model, results)


@contextmanager
def _served(bundle: Bundle, home: Home, progress: Progress) -> Iterator[Target]:
    """The bundle, served on a free port for as long as the context lasts."""
    manifest = bundle.manifest
    serve = alone(Serve.model_validate_json(json.dumps(manifest.serve)))
    tokenizer = bundle.root if manifest.weights == FOLDER else None
    with (
        served(bundle, serve, home, progress, "tasks") as record,
        Target.at(record.endpoint, record.model, tokenizer=tokenizer) as target,
    ):
        yield target


def alone(serve: Serve) -> Serve:
    """Serve settings for one client on this machine, one request at a time."""
    changes = {"parallel": 1, "context": max(serve.context, LEAST_CONTEXT)}
    return on_loopback(serve).model_copy(update=changes)


def _stored(
    asked: Asked, baseline: Asked | None, recoveries: tuple[Recovery, ...], home: Home
) -> TasksOutcome:
    now = datetime.now(UTC)
    named = str(asked.model.get("bundle") or "endpoint")
    folder = home.evaluations / f"{now:%Y%m%d-%H%M%S}-tasks-{named}-{secrets.token_hex(3)}"
    outcome = TasksOutcome(asked, baseline, recoveries, folder)
    document = {"finished": now.isoformat(timespec="seconds"), **outcome.as_json()}
    try:
        folder.mkdir(parents=True)
        write_atomically(folder / RESULT, json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        raise disk_error(error, home.evaluations) from error
    return outcome


def _share(result: TaskResult) -> str:
    return f"{100 * result.value:.1f} % ({100 * result.low:.1f} to {100 * result.high:.1f})"


def _kept(kept: Recovery) -> str:
    if kept.value is None or kept.low is None or kept.high is None:
        return "unknown"
    return f"{100 * kept.value:.1f} % ({100 * kept.low:.1f} to {100 * kept.high:.1f})"
