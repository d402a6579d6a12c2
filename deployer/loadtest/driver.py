"""Locust as a process of its own: its arguments, its settings, its progress, its samples."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deployer
from deployer import process
from deployer.errors import CommandError, LoadTestError
from deployer.loadtest.crew import Crew
from deployer.loadtest.levels import Level
from deployer.loadtest.measure import Worker
from deployer.metrics import Sample
from deployer.progress import Step
from deployer.results import LOG, PLAN, TOLD

DRAIN_S = 60
"""Seconds that running requests get to finish after the end; `--stop-timeout` of Locust."""
BACKSTOP_S = 30
TAIL_LINES = 8
ALONE = Crew()


@dataclass(frozen=True)
class Raw:
    """What Locust left: requests in the order they were sent, times counted from `origin`.

    `origin` is a moment of the monotonic clock, in seconds.
    """

    samples: tuple[Sample, ...]
    workers: tuple[Worker, ...]
    origin: float


def locustfile() -> Path:
    """The locustfile of the checkout, or the copy inside an installed package."""
    package = Path(deployer.__file__).parent
    for folder in (package / "_loadtests", package.parent / "loadtests"):
        if (folder / "locustfile.py").is_file():
            return folder / "locustfile.py"
    raise LoadTestError(
        "the locustfile is missing from this installation", "Install deployer again."
    )


def argv(level: Level, crew: Crew) -> list[str]:
    """Locust's command line; no secret is in it."""
    # An open loop has one user in every process, who sends that process's share.
    count = crew.size if level.loop == "open" else level.users
    rate = count / level.ramp if level.ramp else 100 * count
    return [
        sys.executable, "-m", "locust", "-f", str(locustfile()), "--headless", "--only-summary",
        "--users", str(count), "--spawn-rate", f"{max(rate, 1.0):.3f}",
        "--run-time", f"{level.limit}s", "--stop-timeout", str(DRAIN_S),
        "--exit-code-on-error", "0", *crew.arguments(),
    ]  # fmt: skip


def settings(level: Level, workers: int, **known: Any) -> dict[str, Any]:
    """The content of the file that DEPLOYER_LOADTEST names; its keys are loadtests/settings.py's.

    `known`: run_id, folder, endpoint, model, seed, temperature, and what the profile needs.
    """
    return {
        "loop": level.loop,
        "requests": level.requests,
        "warmup_s": float(level.warmup),
        "ramp_s": level.ramp,
        "duration_s": 0.0 if level.requests else float(level.duration),
        "workers": workers,
        **known,
    }


def drive(
    level: Level,
    known: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    step: Step,
    key: str | None,
    crew: Crew = ALONE,
    origin: float | None = None,
) -> Raw:
    """Run Locust to its end in `known["folder"]` and read what it measured.

    `rows` are the requests to send (planned.py); the crew's processes share the load. Times count
    from `origin`, by default from the start of the load. Raises LoadTestError, with the end of
    Locust's log, where it fails, sends nothing or loses a worker. An interrupt ends Locust too.
    """
    folder = Path(known["folder"])
    on_line = follow(level, step)
    told = settings(level, crew.size, **known)
    tell(told, rows, folder)
    crew.begin(told, rows, on_line)
    try:
        process.run(
            argv(level, crew),
            env=environment(folder / TOLD, key),
            log_path=folder / LOG,
            cwd=folder,
            timeout=crew.patience + level.limit + DRAIN_S + BACKSTOP_S,
            on_line=on_line,
        )
    except CommandError as error:
        raise _failed(error.message, folder / LOG) from error
    crew.collect(folder)
    raw = gather(folder, origin)
    if not raw.samples or not raw.workers:
        raise _failed("Locust ended without one request", folder / LOG)
    if len(raw.workers) != crew.size:
        raise _failed(f"{len(raw.workers)} of {crew.size} workers came to their end", folder / LOG)
    return raw


def tell(told: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Write for Locust, which works in `folder`, what `settings` says and the requests to send."""
    here = {**told, "folder": str(folder), "plan": str(folder / PLAN)}
    (folder / PLAN).write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    (folder / TOLD).write_text(json.dumps(here, indent=2), encoding="utf-8")


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


def follow(level: Level, step: Step) -> Callable[[str], None]:
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
        if level.requests:
            step.update(done=done + failed, total=level.requests + 1, note=note)
        else:
            step.update(done=min(seconds, level.seconds), total=level.seconds, note=note)

    return on_line


def gather(folder: Path, origin: float | None = None) -> Raw:
    """Read the workers' files; times are moved to count from `origin`, else the first start."""
    reports = [json.loads(p.read_text("utf-8")) for p in sorted(folder.glob("worker-*.json"))]
    if origin is None:
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
    return Raw(tuple(sorted(samples, key=lambda s: s.sent)), tuple(workers), origin)


def _failed(what: str, log: Path) -> LoadTestError:
    missing = "" if importlib.util.find_spec("locust") else " Locust is not installed."
    tail = process.tail(log, TAIL_LINES)
    return LoadTestError(
        f"the load test failed: {what}.{missing}" + (f"\n{tail}" if tail else ""),
        f"The whole log is in {log}.",
    )
