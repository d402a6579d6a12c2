"""A comparison -> one self-contained page. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from deployer.comparison import Comparison, Row
from deployer.report import comparison as tables
from deployer.report import comparison_charts as charts
from deployer.report import comparison_figures as figures
from deployer.report import comparison_latency as latency
from deployer.report import words
from deployer.report.comparison_figures import BY_NAME, Column
from deployer.report.page import render

METHOD = (
    "Every format was made from the same weights, started alone on this machine and asked the same "
    "prompts in the same order. The formats took turns: a trial of each, then the next trial of "
    "each, so that a slow hour of the machine slows all of them.",
    "A figure is the mean over the trials; ± is half of the 95 % interval of that mean (Student's "
    "t). Two formats are tied where the 95 % interval of the ratio of their paired trials holds 1: "
    "the trials cannot tell which is better, and neither should you.",
    "Quality is measured once, before anything is served, on a text that no format was tuned on, "
    "token by token against the 16-bit weights in the same engine. Its interval comes from drawing "
    "the text's blocks of tokens again. There, formats are tied whose intervals overlap.",
    "A format that misses its quality gate is never served, and one that cannot run here has no "
    "figures: nothing on this page is estimated.",
    "Failed requests never enter a latency. Tokens are the server's own count.",
)
_SLO_NAMES = {"ttft_p95_ms": "TTFT", "tpot_p95_ms": "TPOT", "e2e_p95_ms": "E2E"}
_LONGEST_SAMPLE = 240


@dataclass(frozen=True)
class Cell:
    """A figure of the table: its value, its interval, and "best", "tied" or ""."""

    value: str
    interval: str = ""
    rank: str = ""


def comparison_html(comparison: Comparison) -> str:
    """One page that needs nothing else."""
    columns = figures.known_columns(comparison)
    quality = charts.quality_of(comparison)
    return render(
        "comparison.html",
        "quality.css",
        "comparison.css",
        c=comparison,
        verdict=comparison_verdict(comparison),
        summary=_summary(comparison),
        notes=tables.disturbances(comparison),
        leads=tables.leads(comparison),
        quality=quality,
        fronts=_fronts(comparison),
        latencies=_latencies(comparison),
        goodput=latency.goodput(comparison),
        objectives=objectives(comparison),
        groups=_groups(comparison, columns),
        columns=columns,
        rows=_rows(comparison, columns),
        without=[(row, tables.STATES[row.status], tables.sentence(row)) for row in
                 tables.without(comparison)],
        explanation=tables.explanation(comparison),
        noisy=tables.contended(comparison),
        samples=_samples(comparison),
        meanings=_meanings(columns),
        method=METHOD,
        facts=_facts(comparison),
    )  # fmt: skip


def comparison_verdict(comparison: Comparison) -> tuple[str, str]:
    """("good" | "bad" | "unsure", a few words) for the top of the page."""
    measured = len(comparison.measured)
    disturbed = len(tables.disturbances(comparison))
    if not measured:
        return "bad", "Nothing could be measured"
    if disturbed:
        return "unsure", words.counted(disturbed, "warning")
    return "good", f"{measured} of {len(comparison.rows)} formats measured"


def _summary(comparison: Comparison) -> str:
    measured, count = len(comparison.measured), len(comparison.rows)
    trials = tables.trials_each(comparison)
    told = "all" if measured == count else f"{measured} of {count}"
    return (
        f"{count} formats of one model, {told} measured on {comparison.host.cpu} "
        f"({words.counted(comparison.host.cores, 'core')}) in {words.counted(trials, 'trial')}"
    )


def _fronts(comparison: Comparison) -> list[dict[str, Any]]:
    """What the page says around each Pareto front; those without points are left out."""
    users = comparison.workload.users
    plans = (
        (BY_NAME[figures.WEIGHTS], "Quality against size", "size of the weights, MB",
         "smaller and closer", "left"),
        (BY_NAME[figures.OUTPUT], "Quality against speed",
         f"output tokens per second, {users} users together", "faster and closer", "right"),
    )  # fmt: skip
    made = [
        {"chart": charts.front(comparison, column), "title": title, "across": across,
         "both": both, "side": side}
        for column, title, across, both, side in plans
    ]  # fmt: skip
    return [plan for plan in made if plan["chart"].points]  # type: ignore[attr-defined]


def _latencies(comparison: Comparison) -> list[tuple[str, str, latency.Strips]]:
    """(name, definition, strips) of each latency that has any."""
    made = [
        (*words.DEFINITIONS[field], latency.strips(comparison, field)) for field in ("ttft", "tpot")
    ]
    return [each for each in made if each[2].rows]


def objectives(comparison: Comparison) -> list[str]:
    """The objectives that goodput counts, in words; none where no latency is limited."""
    slo = comparison.workload.slo
    return [
        f"{name} at most {words.ms(limit)}"
        for field, name in _SLO_NAMES.items()
        if (limit := slo.get(field)) is not None
    ]


def _groups(comparison: Comparison, columns: Sequence[Column]) -> list[tuple[str, int]]:
    """(title, number of columns) of the table's groups."""
    titles = {figures.LOADED: f"{comparison.workload.users} users"}
    return [
        (titles.get(name, name), len(list(members)))
        for name, members in groupby(columns, key=lambda column: column.group)
    ]


def _rows(comparison: Comparison, columns: Sequence[Column]) -> list[tuple[Row, list[Cell | None]]]:
    """The measured formats with a cell for each column; None where there is no figure."""
    ranks = {column.name: tables.marks_of(comparison, column) for column in columns}
    names = {tables.BEST: "best", tables.TIED: "tied"}
    return [
        (row, [_cell(row, c, names.get(ranks[c.name].get(row.name, ""), "")) for c in columns])
        for row in comparison.measured
    ]


def _cell(row: Row, column: Column, rank: str) -> Cell | None:
    figure = column.read(row)
    if figure is None:
        text = tables.missing(row, column)
        return None if text == words.DASH else Cell(text)
    return Cell(column.write(figure.value), figures.interval(column, figure), rank)


def _samples(comparison: Comparison) -> list[tuple[str, str]]:
    """What each format answered: figures alone do not show nonsense."""
    return [
        (row.name, " ".join(row.serving.sample.split())[:_LONGEST_SAMPLE])
        for row in comparison.measured
        if row.serving and row.serving.sample.strip()
    ]


def _meanings(columns: Sequence[Column]) -> list[tuple[str, str, str]]:
    """(name, unit, meaning) of every figure once; percentiles of a latency share a line."""
    found: dict[str, tuple[str, str]] = {}
    for column in columns:
        name = column.title.removesuffix(" p50").removesuffix(" p95")
        found.setdefault(name, (column.unit, column.meaning))
    percentiles = {name for name, _ in words.DEFINITIONS.values()}
    return [
        (name, unit, f"{meaning} p50: half of the requests were faster; p95: 95 % were."
         if name in percentiles else meaning)
        for name, (unit, meaning) in found.items()
    ]  # fmt: skip


def _facts(comparison: Comparison) -> list[tuple[str, list[tuple[str, str]]]]:
    """(heading, [(name, value)]) of what was measured on what."""
    host = comparison.host
    machine = [
        ("processor", host.cpu), ("cores", f"{host.cores}, {host.threads} threads"),
        ("memory", words.gib(host.memory_bytes)), ("GPUs", ", ".join(host.gpus) or "none"),
        ("system", host.system),
        ("load before", ", ".join(f"{value:.2f}" for value in host.load_before)),
    ]  # fmt: skip
    run = [
        ("comparison", comparison.id), ("started", _time(comparison.started)),
        ("took", f"{comparison.seconds / 60:.0f} min"), ("commit", comparison.git or "unknown"),
    ]  # fmt: skip
    source = [(key, str(value)) for key, value in comparison.source.items() if value]
    return [
        ("Machine", machine), ("Load", _load(comparison)), ("Model", source),
        ("Versions", _versions(comparison)), ("Run", run),
    ]  # fmt: skip


def _load(comparison: Comparison) -> list[tuple[str, str]]:
    work = comparison.workload
    limit = f", {work.task_limit} questions each" if work.task_limit else ""
    return [
        ("users", f"1, then {work.users} at once"),
        ("duration", f"{work.duration_s} s each, after {work.warmup_s} s of warm-up"),
        ("prompts", f"about {work.prompt_tokens} tokens"),
        ("answers", f"{work.output_tokens} tokens, temperature {work.temperature:g}"),
        ("seed", str(work.seed)), ("trials", str(tables.trials_each(comparison))),
        ("objectives", ", ".join(objectives(comparison)) or "none"),
        ("tasks", ", ".join(work.tasks) + limit if work.tasks else "none"),
    ]  # fmt: skip


def _versions(comparison: Comparison) -> list[tuple[str, str]]:
    found = dict(comparison.versions)
    for row in comparison.measured:
        found |= {**row.tools, **({row.serving.server: row.serving.version} if row.serving else {})}
    return list(found.items())


def _time(moment: str) -> str:
    return moment.replace("T", " ").replace("+00:00", " UTC")
