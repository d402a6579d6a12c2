"""A load test's result -> its table, its short form, its page. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from deployer.metrics import ERRORS, MEASURED, Sample, tpot, ttft
from deployer.report import charts, load_curves, words
from deployer.report.page import render
from deployer.report.words import markdown as _md
from deployer.results import REPORT, SUMMARY, LoadTestResult, Stage

COLUMNS = (
    "stage", "target", "achieved", "ok/err", "TTFT p50 / p99", "TPOT p50 / p99", "E2E p99",
    "output tok/s", "goodput", "cache", "flags",
)  # fmt: skip


def table(result: LoadTestResult) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Columns and one row a stage, all text."""
    names = [flag.name for flag in result.flags]
    if not result.client.valid:
        names.insert(0, "not_valid")
    rows = []
    for number, stage in enumerate(result.stages):
        own = ["saturated"] if stage.saturated else ["knee"] if number == result.knee else []
        rows.append(_row(stage, [*own, *(names if number == 0 else ())]))
    return COLUMNS, tuple(rows)


def _row(stage: Stage, names: Sequence[str]) -> tuple[str, ...]:
    latency = stage.latency_ms
    return (
        stage.name,
        f"{stage.target:g}",
        f"{stage.achieved:.{1 if stage.offered is None else 2}f}",
        f"{stage.requests.ok}/{stage.requests.failed}",
        words.pair(latency.ttft),
        words.pair(latency.tpot),
        words.ms(latency.e2e.p99),
        words.rate(stage.throughput.output_tokens_per_s),
        words.share(stage.goodput.share),
        words.share(words.cached_share(stage)),
        ", ".join(names) or words.DASH,
    )


def verdict(result: LoadTestResult) -> tuple[str, str]:
    """("good" | "bad" | "unsure", a few words) for the top of a report."""
    missed = [gate for gate in result.gates if not gate.passed]
    if result.too_many_errors:
        return "bad", "Too many errors"
    if not result.client.valid:
        return "unsure", "Not a valid measurement"
    if result.workload.profile == "sweep" and result.knee is None:
        return "bad", "Saturated at every rate"
    if missed:
        return "bad", f"{len(missed)} objective{'s' if len(missed) > 1 else ''} missed"
    if any(flag.name == "degenerate_output" for flag in result.flags):
        return "unsure", "Answers look broken"
    if result.knee is not None:
        return "good", f"Knee at {result.main_stage.name}"
    return "good", "All objectives met" if len(result.gates) > 1 else "No errors"


def summary_markdown(result: LoadTestResult, samples: Sequence[Sample] = ()) -> str:
    """The short form: verdict, table, objectives, problems."""
    columns, rows = table(result)
    lines = [
        f"# Load test of {_md(words.short_model(str(result.server.get('model', '?'))))}",
        "",
        f"**{verdict(result)[1]}.** {_md(_workload_line(result))}, {_md(_machine_line(result))}.",
        "",
        "| " + " | ".join(columns) + " |",
        "|" + "---|" * len(columns),
        *("| " + " | ".join(map(_md, row)) + " |" for row in rows),
        "",
        "| objective | measured | met |",
        "|---|---|---|",
        *(
            f"| {gate.expression} | {words.gate_value(gate)} "
            f"| {'yes' if gate.passed else '**no**'} |"
            for gate in result.gates
        ),
        "",
        *(f"- Not valid: {_md(problem)}." for problem in result.client.problems),
        *(f"- {_md(flag.message)}" for flag in result.flags),
        f"- Run {result.run.id}, {result.run.started}, deployer "
        f"{result.run.versions.get('deployer', '?')}.",
    ]
    return "\n".join(lines) + "\n"


def _workload_line(result: LoadTestResult) -> str:
    work = result.workload
    times = f", {work.trials} trials" if work.trials > 1 else ""
    return (
        f"{work.profile}: {_amount(result)}{times}, about {work.prompt_tokens} tokens in, "
        f"{work.output_tokens} out"
        if work.lengths not in ("trace", "chats")
        else f"{work.profile}: {_amount(result)}{times}, lengths of {work.source}"
    )


def _amount(result: LoadTestResult) -> str:
    """How much load, in a few words."""
    target = result.workload.target
    seconds = f"for {target.get('duration_s', 0):g} s"
    if "requests" in target:
        return f"{int(target['requests'])} requests one after another"
    if result.workload.profile == "sweep":
        low, high = (f(s.target for s in result.stages) for f in (min, max))
        return f"{low:g} to {high:g} requests/s, each {seconds}"
    if "rate" in target:
        return f"{target['rate']:g} requests/s {seconds}"
    users = int(target.get("users", 1))
    return f"{users} concurrent user{'s' if users != 1 else ''} {seconds}"


def _machine_line(result: LoadTestResult) -> str:
    host = result.host
    gpus = f", {' and '.join(host.gpus)}" if host.gpus else ""
    return f"{host.cpu}, {host.threads} threads{gpus}"


def html(result: LoadTestResult, samples: Sequence[Sample] = ()) -> str:
    """One page that needs nothing else. Without `samples` it has no charts."""
    return render("loadtest.html", **_view(result, samples))


def _view(result: LoadTestResult, samples: Sequence[Sample]) -> dict[str, Any]:
    stage = result.main_stage
    number = result.knee or 0
    main = [s for s in samples if s.stage == number]
    ok = [s for s in main if s.ok and s.phase == MEASURED]
    once = _from_zero([s for s in main if s.trial == 0])
    columns, rows = table(result)
    return {
        "result": result,
        "stage": stage,
        "model": words.short_model(str(result.server.get("model", "?"))),
        "verdict": verdict(result),
        "workload": _workload_line(result),
        "machine": _machine_line(result),
        "server": _server_facts(result),
        "columns": columns,
        "rows": rows,
        "latencies": _latencies(stage),
        "errors": _errors(result),
        "totals": {
            name: sum(getattr(each.requests, name) for each in result.stages)
            for name in ("sent", "cutoff", "warmup")
        },
        "method": words.method(result.workload),
        "ttft": charts.distribution([v * 1000 for s in ok if (v := ttft(s)) is not None]),
        "tpot": charts.distribution([v * 1000 for s in ok if (v := tpot(s)) is not None]),
        "timeline": charts.timeline(once, stage.duration_s / result.workload.trials),
        "rate": charts.rate(once, stage.throughput.output_tokens_per_s),
        "part": _part(result),
        "latency_curve": load_curves.latency_curve(result.stages, result.knee),
        "goodput_curve": load_curves.goodput_curve(result.stages, result.knee),
        "failures": load_curves.errors(samples),
        "spread": [words.spread(name, each) for name, each in stage.trials.items()],
    }


def _from_zero(samples: Sequence[Sample]) -> list[Sample]:
    """The same requests with their times counted from the first of them, if it came late.

    Only one of several runs of the load begins at zero.
    """
    start = min((min(s.due, s.sent) for s in samples), default=0.0)
    return [s.shifted(start) for s in samples] if start > 1 else list(samples)


def _part(result: LoadTestResult) -> str:
    """Which of several runs of the load the charts over time show; "" where there was one."""
    trial = "its first trial" if result.workload.trials > 1 else ""
    name = result.main_stage.name if len(result.stages) > 1 else ""
    return ", ".join(filter(None, (name, trial)))


def _errors(result: LoadTestResult) -> list[tuple[str, int, str]]:
    """(class, requests, meaning) of all stages together."""
    counts = {
        name: sum(stage.requests.errors.get(name, 0) for stage in result.stages) for name in ERRORS
    }
    return [(name, number, ERRORS[name]) for name, number in counts.items() if number]


def _latencies(stage: Stage) -> list[tuple[str, str, Any]]:
    """(name, definition, summary) of each latency; TTFO only where it differs from TTFT."""
    latency = stage.latency_ms
    same = latency.ttfo == latency.ttft
    return [
        (name, definition, summary)
        for field, (name, definition) in words.DEFINITIONS.items()
        if (summary := getattr(latency, field)) is not None and not (field == "ttfo" and same)
    ]


def _server_facts(result: LoadTestResult) -> list[tuple[str, str]]:
    """What is known of the server, in the order it was given; lists joined as one line."""
    return [
        (name.replace("_", " "), " ".join(map(str, value)) if isinstance(value, list | tuple)
         else str(value))
        for name, value in result.server.items()
        if value not in (None, "", [], ())
    ]  # fmt: skip


PAGES: dict[str, Callable[[LoadTestResult, Sequence[Sample]], str]] = {
    REPORT: html,
    SUMMARY: summary_markdown,
}
"""What a load test stores beside its result: file name -> how it is drawn."""
