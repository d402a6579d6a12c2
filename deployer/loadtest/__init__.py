"""The load test: Locust against an endpoint -> LoadTestResult.

`run` does it all. `preparing` learns what it must know before, `planned` says what to send and
when, `sweep` which rate comes next, `driver` runs the process; `measure`, `judging`, `validity` and
`recording` make the document, `storage` the files. Definitions: docs/loadtest.md.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import deployer
from deployer.errors import LoadTestError, UsageError
from deployer.loadtest import driver, host, measure, planned, preparing, recording, storage, sweep
from deployer.loadtest.crew import Crew
from deployer.loadtest.endpoint import Endpoint
from deployer.loadtest.joining import join as join_leader
from deployer.loadtest.judging import exit_code
from deployer.loadtest.leading import Address, Leader
from deployer.loadtest.levels import Level, level_of, users_of, users_text
from deployer.loadtest.measure import Part
from deployer.loadtest.preparing import SEED, TEMPERATURE, Prepared
from deployer.loadtest.recording import Loads
from deployer.loadtest.storage import Page
from deployer.metrics import PREVIEW, Sample, first_chunk_tokens
from deployer.progress import SILENT, Progress
from deployer.recipe import LoadTest
from deployer.recipe.addresses import on_loopback
from deployer.results import LoadTestResult, Run

__all__ = ["SEED", "TEMPERATURE", "Page", "exit_code", "folder_of", "join", "run"]


def run(
    endpoint: str,
    workload: LoadTest,
    out_dir: Path,
    progress: Progress = SILENT,
    api_key: str | None = None,
    server: Mapping[str, Any] | None = None,
    pages: Mapping[str, Page] | None = None,
    workers: int = 1,
    listen: str | None = None,
) -> LoadTestResult:
    """Measure the server at `endpoint` and store the result in `out_dir`/ID (`folder_of`).

    The load is shared among `workers` processes; UsageError where there are fewer users. They are
    of this machine, or join from others at the address `listen` (HOST:PORT).
    `server` says what is known of it (engine, version, quantization, bundle digest, argv);
    `api_key` may also come from DEPLOYER_API_KEY or DEPLOYER_API_KEY_FILE; `pages` are drawn and
    stored under their names. The folder appears whole or not at all. Raises LoadTestError when
    nothing answers or Locust fails (its log is kept); whatever the server does wrong under load
    is a result, not an error. An interrupt ends Locust and leaves nothing.
    """
    _check_workers(workload, workers)
    identity = _identity(workload)
    machine = host.describe()
    key = api_key or _key_from_environment()
    with (
        Endpoint.at(endpoint, key) as target,
        _crew(target, workers, listen, progress) as crew,
        storage.folder_for(identity, out_dir) as folder,
    ):
        started = datetime.now(UTC)
        prepared = preparing.prepare(target, workload, identity, progress)
        if workload.cache == "warm":
            preparing.warm(target, workload, prepared, progress)
        before = target.generated_tokens()
        loads = Loads()
        _measure(loads, target, workload, prepared, folder, progress, key, crew)
        grown = _grown(target, before, loads.samples)
        result = recording.result(
            workload,
            prepared,
            loads,
            _run_record(identity, started),
            {"endpoint": target.url, "model": prepared.known["model"], **(server or {})},
            machine,
            grown,
        )
        storage.write(folder, result, loads.samples, pages or {})
    for problem in result.client.problems:
        progress.warn(f"Not a valid measurement: {problem}.")
    for flag in result.flags:
        progress.warn(flag.message)
    return result


def join(url: str, progress: Progress = SILENT, api_key: str | None = None) -> int:
    """Be a worker of the load test that is led at `url`, until it is over.

    Gives the number of loads it took part in. The key is the one of the server under test, from
    this machine's own environment if not given.
    """
    return join_leader(url, progress, api_key or _key_from_environment())


@contextmanager
def _crew(target: Endpoint, workers: int, listen: str | None, progress: Progress) -> Iterator[Crew]:
    """The processes that put the load; others are told where to join."""
    if listen is None:
        yield Crew(workers)
        return
    address = Address.parse(listen)
    if target.is_local and not on_loopback(address.host):
        raise UsageError(
            f"other machines cannot reach {target.url}",
            "Name the server with --endpoint as they see it, for example http://10.0.0.7:8000.",
        )
    with Leader(workers, address) as leader:
        each = f"on {workers} machines" if workers > 1 else "on another machine"
        progress.note(f"Run this {each}: deployer loadtest join {leader.url}")
        yield leader


def _measure(
    loads: Loads,
    target: Endpoint,
    workload: LoadTest,
    prepared: Prepared,
    folder: Path,
    progress: Progress,
    key: str | None,
    crew: Crew,
) -> None:
    """Put every level of load on the server, every trial of it, and fill `loads`."""
    limits = measure.limits_of(workload.slo)
    for level in _levels(loads, workload, prepared):
        number = len(loads.levels)
        parts = []
        for trial in range(workload.trials):
            place = _place(folder, workload, number, trial)
            rows = planned.rows(level, workload, prepared.material, f"{SEED + trial}/{level.rate}")
            run_number = number * workload.trials + trial
            known = {**prepared.of_run(run_number), "folder": str(place)}
            with progress.step(_title(workload, level, trial)) as step:
                raw = driver.drive(level, known, rows, step, key, crew, loads.origin)
            loads.origin = raw.origin
            tokenized = _tokenized(raw.samples, target)
            samples = tuple(replace(s, stage=number, trial=trial) for s in tokenized)
            span = measure.window(level, samples, raw.workers)
            expected = planned.measured_rows(level, rows) if level.loop == "open" else None
            parts.append(Part(samples, span, raw.workers, expected))
        loads.levels.append(level)
        loads.parts.append(parts)
        loads.stages.append(measure.stage(level, parts, limits))


def _levels(loads: Loads, workload: LoadTest, prepared: Prepared) -> Iterator[Level]:
    """The only level; of a sweep one after the other, as the stages so far tell."""
    level = level_of(workload)
    if workload.profile == "replay":
        level = planned.replay_level(level, prepared.material.trace)
    yield level
    while workload.profile == "sweep" and (rate := sweep.next_rate(loads.stages)):
        yield level_of(workload, rate)


def _place(folder: Path, workload: LoadTest, number: int, trial: int) -> Path:
    """Where Locust writes: the folder itself, or one of its own where there are several runs."""
    if workload.profile != "sweep" and workload.trials == 1:
        return folder
    place = folder / f"stage-{number + 1}-trial-{trial + 1}"
    place.mkdir()
    return place


def folder_of(out_dir: Path, result: LoadTestResult) -> Path:
    """Where `run` stored a result."""
    return out_dir / result.run.id


def _check_workers(workload: LoadTest, workers: int) -> None:
    if not workload.is_open and workers > users_of(workload):
        raise UsageError(
            f"{workers} load workers cannot share {users_text(users_of(workload))}",
            "Use no more --workers than --users; the profiles smoke and sync have one user.",
        )


def _identity(workload: LoadTest) -> str:
    now = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    return f"{now}-{workload.profile}-{secrets.token_hex(3)}"


def _run_record(identity: str, started: datetime) -> Run:
    return Run(
        id=identity,
        started=started.isoformat(timespec="seconds"),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        seed=SEED,
        git=host.git_commit(Path(deployer.__file__).parents[1]),
        versions=host.versions(),
    )


def _key_from_environment() -> str | None:
    key = os.environ.get("DEPLOYER_API_KEY")
    path = os.environ.get("DEPLOYER_API_KEY_FILE")
    if not key and path:
        try:
            key = Path(path).read_text("utf-8").strip().partition("\n")[0].strip()
        except OSError as error:
            raise LoadTestError(
                f"the API key file {path} cannot be read: {error.strerror}",
                "Mend or unset DEPLOYER_API_KEY_FILE.",
            ) from error
    return key or None


def _title(workload: LoadTest, level: Level, trial: int) -> str:
    of = f", trial {trial + 1} of {workload.trials}" if workload.trials > 1 else ""
    if level.requests:
        return f"Load test: smoke, {level.requests} requests one after another{of}"
    name = level.name if level.loop == "closed" else f"{workload.profile}, {level.name}"
    return f"Load test: {name} for {level.duration:g} s{of}"


def _tokenized(samples: Sequence[Sample], target: Endpoint) -> tuple[Sample, ...]:
    """Count the tokens of answers whose server told none, where it has a tokenizer to ask."""
    counted = []
    offered = True
    for sample in samples:
        if offered and sample.ok and sample.output_tokens is None:
            tokens = target.count_tokens(sample.text)
            offered = tokens is not None
            if tokens:
                sample = _with_tokens(sample, tokens)
        counted.append(replace(sample, text=sample.text[:PREVIEW]))
    return tuple(counted)


def _with_tokens(sample: Sample, tokens: int) -> Sample:
    chunks, chars = len(sample.chunks), len(sample.text)
    first = first_chunk_tokens(tokens, chunks, sample.first_chars, chars)
    return replace(sample, output_tokens=tokens, n_first=first, token_source="tokenized")


def _grown(target: Endpoint, before: int | None, samples: Sequence[Sample]) -> int | None:
    """What the server's own count of generated tokens grew by during the load."""
    if before is None:
        return None
    ours = sum(sample.output_tokens or 0 for sample in samples)
    after = target.settled_tokens(before + ours)
    return None if after is None else after - before
