"""Compare formats: build each, serve each in turns, measure, and keep one document of it all."""

from __future__ import annotations

import json
import secrets
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import deployer
from deployer import comparison as documents
from deployer import loadtest as loadtests
from deployer import report, serving, tasks
from deployer.artifacts import FOLDER, Bundle
from deployer.comparison import Comparison, Trial, Workload
from deployer.durable import disk_error
from deployer.errors import EXIT_FAILED, EXIT_OK, DeployerError, LoadTestError, UsageError
from deployer.home import Home
from deployer.loadtest import host
from deployer.metering import CONTENDED, Meter, busy_now
from deployer.progress import Progress
from deployer.recipe import LoadTest, Recipe, Serve
from deployer.recipe.matrix import Matrix, Measure
from deployer.results import read_samples
from deployer.serving import ServerRecord
from deployer.tasks import Target, TaskResult
from deployer.toolchains.provision import ensure
from deployer.toolchains.worker import run_worker
from deployer.trials import Run
from deployer.workflow.contenders import Contender
from deployer.workflow.running import describe_server
from deployer.workflow.served import on_loopback, served

QUIET_SECONDS = 15.0
"""How long a trial waits for others to leave the processors alone."""


@dataclass(frozen=True)
class ComparisonOutcome:
    """A stored comparison."""

    comparison: Comparison
    folder: Path

    @property
    def exit_code(self) -> int:
        """1 where a format broke, or not one was measured; what cannot run here is no failure."""
        broken = any(row.status == "failed" for row in self.comparison.rows)
        return EXIT_FAILED if broken or not self.comparison.measured else EXIT_OK

    @property
    def table(self) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
        """(columns, rows) for the terminal."""
        return report.comparison_table(self.comparison)

    def describe(self) -> list[str]:
        """What stands below the table."""
        return [
            *report.comparison_lines(self.comparison),
            f"Report: {self.folder / documents.REPORT}",
            f"All of it: {self.folder / documents.COMPARISON}",
        ]


def compare(matrix: Matrix, home: Home, progress: Progress, command: str) -> ComparisonOutcome:
    """Build, serve and measure every format of a matrix, and store the comparison.

    All formats are built first. Then they are served one at a time, in turns, so that what changes
    on the machine meets them all. A format that cannot be built or breaks is a row with the reason;
    the others go on. `command` is how this was asked for. Raises RecipeError and UsageError,
    before anything is done, for a matrix that cannot be meant.
    """
    started, clock = datetime.now(UTC), time.monotonic()
    contenders = [Contender.of(matrix, each) for each in matrix.formats]
    _require_one_model(contenders)
    tasks.check(matrix.measure.tasks)
    machine = host.describe()
    for number, each in enumerate(contenders, 1):
        progress.note(f"Format {number} of {len(contenders)}: {each.name}")
        each.build(home, progress)
    trials = _take_turns(contenders, matrix.measure, home, progress)
    comparison = Comparison(
        id=f"{started:%Y%m%d-%H%M%S}-{matrix.name}-{secrets.token_hex(3)}",
        name=matrix.name,
        started=started.isoformat(timespec="seconds"),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(time.monotonic() - clock, 1),
        command=command,
        git=host.git_commit(Path(deployer.__file__).parents[1]),
        source=_source(contenders),
        host=machine,
        versions=host.versions(),
        workload=_workload(matrix.measure),
        trials=tuple(trials),
        rows=tuple(each.row(matrix, contenders) for each in contenders),
    )
    return ComparisonOutcome(comparison, _store(comparison, home, progress))


def _require_one_model(contenders: Sequence[Contender]) -> None:
    """Raise UsageError unless all are of one checkpoint, scored on the same text."""
    first = contenders[0]
    for each in contenders[1:]:
        for what, ours, theirs in (
            ("another model", each.recipe.source, first.recipe.source),
            ("another evaluation text", _scored_on(each.recipe), _scored_on(first.recipe)),
        ):
            if ours != theirs:
                raise UsageError(
                    f"{each.name} has {what} than {first.name}",
                    "A comparison is of one model in several formats: give all of them the same "
                    "source, and the same text in quality.",
                )


def _scored_on(recipe: Recipe) -> tuple[Any, ...]:
    quality = recipe.quality
    return quality.text, quality.dataset, quality.revision, quality.file, quality.rule


def _source(contenders: Sequence[Contender]) -> dict[str, Any]:
    """Where the model comes from, and what a token of its key-value cache takes, where known."""
    source = contenders[0].recipe.source.model_dump(mode="json", exclude_none=True)
    built = (each.bundle.manifest.quantization for each in contenders if each.bundle)
    taken = (told.get("kv_bytes_per_token") for told in built)
    known = next((size for size in taken if size is not None), None)
    return source if known is None else {**source, "kv_bytes_per_token": known}


def _take_turns(
    contenders: Sequence[Contender], measure: Measure, home: Home, progress: Progress
) -> list[Trial]:
    """Every trial of every format: forwards in the first turn, backwards in the next."""
    trials: list[Trial] = []
    for number in range(1, measure.trials + 1):
        for each in contenders if number % 2 else reversed(contenders):
            if each.failure or each.bundle is None:
                continue
            progress.note(f"Trial {number} of {measure.trials}: {each.name}")
            try:
                trials.append(_trial(each, each.bundle, number, measure, home, progress))
            except DeployerError as error:
                each.drop("failed", error, home, progress)
    return trials


def _trial(
    each: Contender, bundle: Bundle, number: int, measure: Measure, home: Home, progress: Progress
) -> Trial:
    """Serve a format, load it, and add what was measured to it."""
    started, before = datetime.now(UTC), _wait_for_quiet()
    serve = on_loopback(Serve.model_validate_json(json.dumps(bundle.manifest.serve)))
    with served(bundle, serve, home, progress, "compare") as record:
        each.server = describe_server(bundle, record, home)
        runs, meters = [], []
        for users in (1, measure.users):
            with Meter(record.engine_pid or record.supervisor_pid) as meter:
                runs.append(_load(users, record, each, measure, home, progress))
            meters.append(meter.reading)
        peak = serving.status(home, record.name)[0].peak_rss_bytes
        if measure.tasks and not each.tasks:
            each.tasks = _ask(bundle, record, measure, home, progress)
    each.load_seconds.append(record.ready_seconds or 0.0)
    each.peaks.append(peak)
    each.single.append(runs[0])
    each.loaded.append(runs[1])
    each.readings.append(meters[1])
    busy = max(before, *(meter.others for meter in meters))
    return Trial(
        format=each.name,
        number=number,
        started=started.isoformat(timespec="seconds"),
        busy=round(busy, 3),
        contended=busy > CONTENDED,
    )


def _wait_for_quiet() -> float:
    """The share of the processors others use; waits a while for it to become small."""
    deadline = time.monotonic() + QUIET_SECONDS
    while (busy := busy_now()) > CONTENDED and time.monotonic() < deadline:
        pass
    return busy


def _load(
    users: int,
    record: ServerRecord,
    each: Contender,
    measure: Measure,
    home: Home,
    progress: Progress,
) -> Run:
    """One load test; raises LoadTestError where not one request was answered."""
    workload = LoadTest(
        profile="concurrent",
        users=users,
        duration=measure.duration,
        warmup=measure.warmup,
        prompt_tokens=measure.prompt_tokens,
        output_tokens=measure.output_tokens,
        slo=measure.slo,
    )
    result = loadtests.run(
        record.endpoint, workload, home.loadtests, progress, None, each.server, report.PAGES
    )
    folder = loadtests.folder_of(home.loadtests, result)
    if not result.stages[0].requests.ok:
        errors = ", ".join(result.stages[0].requests.errors)
        why = errors or "none began after the warm-up and ended in time"
        raise LoadTestError(
            f"with {users} user{'s' if users != 1 else ''} not one request was answered ({why})",
            f"The report is {folder / 'report.html'}. Where the format is just slow, measure for "
            "longer: --duration.",
        )
    return result, read_samples(folder)


def _ask(
    bundle: Bundle, record: ServerRecord, measure: Measure, home: Home, progress: Progress
) -> tuple[TaskResult, ...]:
    tokenizer = bundle.root if bundle.manifest.weights == FOLDER else None
    with Target.at(record.endpoint, record.model, tokenizer=tokenizer) as target:
        return tasks.run(measure.tasks, target, measure.task_limit, home, progress)


def _workload(measure: Measure) -> Workload:
    return Workload(
        users=measure.users,
        duration_s=measure.duration,
        warmup_s=measure.warmup,
        prompt_tokens=measure.prompt_tokens,
        output_tokens=measure.output_tokens,
        temperature=loadtests.TEMPERATURE,
        seed=loadtests.SEED,
        slo=measure.slo.model_dump(),
        tasks=measure.tasks,
        task_limit=measure.task_limit,
    )


def _store(comparison: Comparison, home: Home, progress: Progress) -> Path:
    """Write the files of a comparison into a hidden folder that is renamed when all is there."""
    folder, partial = (home.comparisons / name for name in (comparison.id, f".{comparison.id}"))
    texts = {
        documents.COMPARISON: json.dumps(comparison.as_json(), indent=1, ensure_ascii=False) + "\n",
        documents.TABLE: report.comparison_csv(comparison),
        documents.REPORT: report.comparison_html(comparison),
        documents.SUMMARY: report.comparison_markdown(comparison),
    }
    try:
        partial.mkdir(parents=True)
        for name, text in texts.items():
            (partial / name).write_text(text, encoding="utf-8")
        if comparison.measured:
            _draw(comparison, partial / documents.FIGURES, home, progress)
        partial.rename(folder)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise disk_error(error, home.comparisons) from error
    return folder


def _draw(comparison: Comparison, folder: Path, home: Home, progress: Progress) -> None:
    """The PNG pictures; a comparison without them is still one, so that a failure is only told."""
    folder.mkdir()
    request = {**report.comparison_pictures(comparison), "folder": str(folder)}
    log = home.logs / "compare" / "draw_figures.log"
    try:
        toolchain = ensure("figures", home, progress)
        with progress.step("draw the figures") as step:
            run_worker(toolchain, "draw_figures", request, log_path=log, step=step)
    except DeployerError as error:
        shutil.rmtree(folder, ignore_errors=True)
        progress.warn(f"No PNG figures: {error.message}")
