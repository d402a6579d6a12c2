"""The load test: Locust against an endpoint -> LoadTestResult.

`run` does it all; `measure` holds the arithmetic, `driver` the process, `endpoint` the requests
beside the load, `storage` the files. Definitions: docs/loadtest.md.
"""

from __future__ import annotations

import os
import runpy
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import deployer
from deployer.errors import LoadTestError, UsageError
from deployer.loadtest import driver, host, measure, storage
from deployer.loadtest.driver import SMOKE_REQUESTS, Raw
from deployer.loadtest.endpoint import Endpoint, words_for
from deployer.loadtest.measure import exit_code
from deployer.loadtest.storage import Page
from deployer.metrics import MEASURED, PREVIEW, Sample, first_chunk_tokens
from deployer.progress import SILENT, Progress
from deployer.recipe import LoadTest
from deployer.results import Host, LoadTestResult, Run, Trials, Workload

__all__ = ["Page", "exit_code", "folder_of", "run"]

SEED = 1
TEMPERATURE = 0.7
IGNORE_EOS = False
CALIBRATION_WORDS = (8, 40)


def run(
    endpoint: str,
    workload: LoadTest,
    out_dir: Path,
    progress: Progress = SILENT,
    api_key: str | None = None,
    server: Mapping[str, Any] | None = None,
    pages: Mapping[str, Page] | None = None,
    workers: int = 1,
) -> LoadTestResult:
    """Measure the server at `endpoint` and store the result in `out_dir`/ID (`folder_of`).

    The users are shared among `workers` processes; UsageError where there are fewer users.
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
        storage.folder_for(identity, out_dir) as folder,
    ):
        started = datetime.now(UTC)
        known = _prepare(target, workload, identity, progress)
        before = target.generated_tokens()
        with progress.step(_title(workload)) as step:
            raw = driver.drive(workload, {**known, "folder": str(folder)}, step, key, workers)
        samples = _tokenized(raw.samples, target)
        result = _result(
            workload,
            Raw(samples, raw.workers),
            _run_record(identity, started),
            {"endpoint": target.url, "model": known["model"], **(server or {})},
            machine,
            _grown(target, before, samples),
        )
        storage.write(folder, result, samples, pages or {})
    for problem in result.client.problems:
        progress.warn(f"Not a valid measurement: {problem}.")
    for flag in result.flags:
        progress.warn(flag.message)
    return result


def folder_of(out_dir: Path, result: LoadTestResult) -> Path:
    """Where `run` stored a result."""
    return out_dir / result.run.id


def _result(
    workload: LoadTest,
    raw: Raw,
    run_record: Run,
    server: Mapping[str, Any],
    machine: Host,
    server_tokens: int | None,
) -> LoadTestResult:
    samples, workers = raw.samples, raw.workers
    users = driver.users(workload)
    span = measure.window(workload, samples, workers)
    limits = measure.limits_of(workload.slo)
    stages = (measure.stage(_users(users), users, samples, span, limits),)
    return LoadTestResult(
        run=run_record,
        server=dict(server),
        host=machine,
        workload=_workload_record(workload, users, samples),
        stages=stages,
        trials=Trials(mean=stages[0].throughput.output_tokens_per_s),
        gates=measure.gates(workload.slo, stages),
        client=measure.client(workers, stages, samples, server_tokens),
        flags=measure.flags(samples, stages, machine, workload.profile),
        answers=measure.answers(samples),
    )


def _check_workers(workload: LoadTest, workers: int) -> None:
    if workers > driver.users(workload):
        raise UsageError(
            f"{workers} load workers cannot share {_users(driver.users(workload))}",
            "Use no more --workers than --users; the profile smoke has one user.",
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


def _users(users: int) -> str:
    return "1 user" if users == 1 else f"{users} users"


def _title(workload: LoadTest) -> str:
    if workload.profile == "smoke":
        return f"Load test: smoke, {SMOKE_REQUESTS} requests one after another"
    return f"Load test: {_users(workload.users)} for {workload.duration} s"


def _prepare(
    target: Endpoint, workload: LoadTest, identity: str, progress: Progress
) -> dict[str, Any]:
    """Check that the server answers real requests, and learn how long a prompt must be."""
    make = runpy.run_path(str(driver.locustfile().with_name("prompts.py")))["make"]
    with progress.step(f"Endpoint {target.url}") as step:
        model = target.model()
        step.update(note=model)
        measured = {
            words: target.prompt_tokens(model, make(words, SEED, secrets.token_hex(4)))
            for words in CALIBRATION_WORDS
        }
    tokens = {words: count for words, count in measured.items() if count is not None}
    return {
        "run_id": identity,
        "endpoint": target.url,
        "model": model,
        "prompt_words": words_for(workload.prompt_tokens, tokens),
        "seed": SEED,
        "temperature": TEMPERATURE,
        "ignore_eos": IGNORE_EOS,
    }


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


def _workload_record(workload: LoadTest, users: int, samples: Sequence[Sample]) -> Workload:
    ok = [s for s in samples if s.ok and s.phase == MEASURED]
    smoke = workload.profile == "smoke"
    amount = {"requests": SMOKE_REQUESTS} if smoke else {"duration_s": workload.duration}
    return Workload(
        profile=workload.profile,
        loop="closed",
        target={"users": users, **amount},
        warmup="1 request" if smoke else f"{workload.warmup} s",
        prompt_tokens=workload.prompt_tokens,
        output_tokens=workload.output_tokens,
        input=measure.summary([s.prompt_tokens for s in ok]),
        output=measure.summary([s.output_tokens for s in ok]),
        ignore_eos=IGNORE_EOS,
        cache_mode="nonce",
        temperature=TEMPERATURE,
        slo=workload.slo.model_dump(),
    )
