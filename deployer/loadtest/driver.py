"""Locust as a process of its own: its arguments, its settings, its progress, its samples."""

from __future__ import annotations

import importlib.util
import json
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deployer
from deployer import process
from deployer.errors import CommandError, LoadTestError
from deployer.loadtest.measure import Worker
from deployer.metrics import Sample
from deployer.progress import Step
from deployer.recipe import LoadTest
from deployer.results import LOG

SMOKE_REQUESTS = 5
SMOKE_LIMIT_S = 300
DRAIN_S = 60
"""Seconds that running requests get to finish after the end; `--stop-timeout` of Locust."""
BACKSTOP_S = 30
TAIL_LINES = 8
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Raw:
    """What Locust left: requests in the order they were sent, times from the start."""

    samples: tuple[Sample, ...]
    workers: tuple[Worker, ...]


def locustfile() -> Path:
    """The locustfile of the checkout, or the copy inside an installed package."""
    package = Path(deployer.__file__).parent
    for folder in (package / "_loadtests", package.parent / "loadtests"):
        if (folder / "locustfile.py").is_file():
            return folder / "locustfile.py"
    raise LoadTestError(
        "the locustfile is missing from this installation", "Install deployer again."
    )


def users(workload: LoadTest) -> int:
    """How many users send requests at the same time."""
    return 1 if workload.profile == "smoke" else workload.users


def time_limit(workload: LoadTest) -> int:
    """Seconds after which Locust ends the load by itself; the locustfile ends it before."""
    if workload.profile == "smoke":
        return SMOKE_LIMIT_S
    return workload.warmup + workload.duration + BACKSTOP_S


def argv(workload: LoadTest, workers: int = 1) -> list[str]:
    """Locust's command line; with several workers a master and so many more processes.

    No secret is in it.
    """
    count = users(workload)
    # Users start one after the other during the warm-up, so that they do not march in step.
    rate = count / (0.8 * workload.warmup) if workload.warmup else count
    return [
        sys.executable, "-m", "locust", "-f", str(locustfile()), "--headless", "--only-summary",
        "--users", str(count), "--spawn-rate", f"{max(rate, 1.0):.3f}",
        "--run-time", f"{time_limit(workload)}s", "--stop-timeout", str(DRAIN_S),
        "--exit-code-on-error", "0", *(_processes(workers) if workers > 1 else ()),
    ]  # fmt: skip


def _processes(workers: int) -> list[str]:
    """A master with its workers on the loopback, at a port of their own."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port = str(probe.getsockname()[1])
    return [
        "--processes", str(workers), "--master-bind-host", LOOPBACK, "--master-bind-port", port,
        "--master-host", LOOPBACK, "--master-port", port,
    ]  # fmt: skip


def settings(workload: LoadTest, **known: Any) -> dict[str, Any]:
    """The content of the file that DEPLOYER_LOADTEST names; its keys are loadtests/settings.py's.

    `known`: run_id, folder, endpoint, model, prompt_words, seed, temperature, ignore_eos.
    """
    smoke = workload.profile == "smoke"
    return {
        "profile": workload.profile,
        "requests": SMOKE_REQUESTS if smoke else 0,
        "warmup_s": float(workload.warmup),
        "duration_s": 0.0 if smoke else float(workload.duration),
        "output_tokens": workload.output_tokens,
        **known,
    }


def drive(
    workload: LoadTest, known: dict[str, Any], step: Step, key: str | None, workers: int = 1
) -> Raw:
    """Run Locust to its end in `known["folder"]` and read what it measured.

    With several `workers` the users are shared among so many processes. Raises LoadTestError,
    with the end of Locust's log, where it fails, sends nothing or loses a worker. An interrupt
    ends Locust too.
    """
    folder = Path(known["folder"])
    (folder / "workload.json").write_text(
        json.dumps(settings(workload, **known), indent=2), encoding="utf-8"
    )
    try:
        process.run(
            argv(workload, workers),
            env=environment(folder / "workload.json", key),
            log_path=folder / LOG,
            cwd=folder,
            timeout=time_limit(workload) + DRAIN_S + BACKSTOP_S,
            on_line=follow(workload, step),
        )
    except CommandError as error:
        raise _failed(error.message, folder / LOG) from error
    raw = gather(folder)
    if not raw.samples or not raw.workers:
        raise _failed("Locust ended without one request", folder / LOG)
    if len(raw.workers) != workers:
        raise _failed(f"{len(raw.workers)} of {workers} workers came to their end", folder / LOG)
    return raw


def environment(workload_file: Path, key: str | None) -> dict[str, str]:
    """Locust's environment: none of its own variables, which would change the test unseen."""
    env = {
        name: value
        for name, value in process.clean_environment().items()
        if not name.startswith(("LOCUST_", "DEPLOYER_API_KEY"))
    }
    env["DEPLOYER_LOADTEST"] = str(workload_file)
    if key:
        env["DEPLOYER_API_KEY"] = key
    return env


def follow(workload: LoadTest, step: Step) -> Callable[[str], None]:
    """A reader of Locust's output that passes the workers' progress lines on to `step`."""
    latest: dict[int, dict[str, float]] = {}

    def on_line(line: str) -> None:
        if not line.startswith("progress {"):
            return
        state = json.loads(line.removeprefix("progress "))
        latest[state["pid"]] = state
        seconds = max(s["seconds"] for s in latest.values())
        done, failed, tokens = (
            int(sum(s[name] for s in latest.values())) for name in ("done", "failed", "tokens")
        )
        note = f"{done} requests, {tokens / max(seconds, 0.1):.0f} output tok/s"
        if failed:
            note += f", {failed} failed"
        if workload.profile == "smoke":
            step.update(done=done + failed, total=SMOKE_REQUESTS + 1, note=note)
        else:
            whole = workload.warmup + workload.duration
            step.update(done=min(seconds, whole), total=whole, note=note)

    return on_line


def gather(folder: Path) -> Raw:
    """Read the workers' files; times are moved to count from the start of the first worker."""
    reports = [json.loads(p.read_text("utf-8")) for p in sorted(folder.glob("worker-*.json"))]
    origin = min((report["started"] for report in reports), default=0.0)
    samples = [
        Sample.from_json(json.loads(line)).shifted(origin)
        for path in sorted(folder.glob("samples-*.jsonl"))
        for line in path.read_text("utf-8").splitlines()
    ]
    workers = [
        Worker(
            started=report["started"] - origin,
            stopping=report["stopping"] - origin,
            lag_ms_p99=report["lag_ms_p99"],
            cpu_percent_max=report["cpu_percent_max"],
        )
        for report in reports
    ]
    return Raw(tuple(sorted(samples, key=lambda s: s.sent)), tuple(workers))


def _failed(what: str, log: Path) -> LoadTestError:
    missing = "" if importlib.util.find_spec("locust") else " Locust is not installed."
    tail = process.tail(log, TAIL_LINES)
    return LoadTestError(
        f"the load test failed: {what}.{missing}" + (f"\n{tail}" if tail else ""),
        f"The whole log is in {log}.",
    )
