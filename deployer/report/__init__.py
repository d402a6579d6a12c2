"""Stored results -> a page, a summary and a table. Pure: no file is read but our own templates.

html(result, samples)              one self-contained page, no script, no request
quality_html(record, …)            the same of a quality record
summary_markdown(result, samples)  the short form
table(result)                      columns and rows for a terminal
comparison_html, _csv, _markdown, _table, _lines    of a comparison of formats
comparison_pictures                what the worker `draw_figures` draws of it
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from deployer.metrics import ERRORS, MEASURED, Sample, tpot, ttft
from deployer.report import charts, words
from deployer.report.comparison import comparison_lines, comparison_table
from deployer.report.comparison_documents import comparison_csv, comparison_markdown
from deployer.report.comparison_page import comparison_html
from deployer.report.comparison_pictures import comparison_pictures
from deployer.report.page import render
from deployer.report.quality import quality_html
from deployer.report.words import markdown as _md
from deployer.results import REPORT, SUMMARY, LoadTestResult, Stage

__all__ = [
    "PAGES", "comparison_csv", "comparison_html", "comparison_lines", "comparison_markdown",
    "comparison_pictures", "comparison_table", "html", "quality_html", "summary_markdown", "table",
    "verdict",
]  # fmt: skip

COLUMNS = (
    "stage", "target", "achieved", "ok/err", "TTFT p50 / p99", "TPOT p50 / p99", "E2E p99",
    "output tok/s", "goodput", "cache", "flags",
)  # fmt: skip


def table(result: LoadTestResult) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Columns and one row a stage, all text."""
    names = [flag.name for flag in result.flags]
    if not result.client.valid:
        names.insert(0, "not_valid")
    return COLUMNS, tuple(_row(stage, names) for stage in result.stages)


def _row(stage: Stage, names: Sequence[str]) -> tuple[str, ...]:
    latency = stage.latency_ms
    return (
        stage.name,
        f"{stage.target:g} {stage.unit}",
        f"{stage.achieved:.1f}",
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
    if missed:
        return "bad", f"{len(missed)} objective{'s' if len(missed) > 1 else ''} missed"
    if any(flag.name == "degenerate_output" for flag in result.flags):
        return "unsure", "Answers look broken"
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
    users = int(work.target.get("users", 1))
    amount = (
        f"{int(work.target['requests'])} requests one after another"
        if "requests" in work.target
        else f"{users} concurrent user{'s' if users != 1 else ''} for "
        f"{work.target.get('duration_s', 0):g} s"
    )
    return (
        f"{work.profile}: {amount}, about {work.prompt_tokens} tokens in, {work.output_tokens} out"
    )


def _machine_line(result: LoadTestResult) -> str:
    host = result.host
    gpus = f", {' and '.join(host.gpus)}" if host.gpus else ""
    return f"{host.cpu}, {host.threads} threads{gpus}"


def html(result: LoadTestResult, samples: Sequence[Sample] = ()) -> str:
    """One page that needs nothing else. Without `samples` it has no charts."""
    return render("loadtest.html", **_view(result, samples))


def _view(result: LoadTestResult, samples: Sequence[Sample]) -> dict[str, Any]:
    stage = result.stages[0]
    ok = [s for s in samples if s.ok and s.phase == MEASURED]
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
        "errors": [(name, n, ERRORS[name]) for name, n in stage.requests.errors.items()],
        "ttft": charts.distribution([v * 1000 for s in ok if (v := ttft(s)) is not None]),
        "tpot": charts.distribution([v * 1000 for s in ok if (v := tpot(s)) is not None]),
        "timeline": charts.timeline(samples, stage.duration_s),
        "rate": charts.rate(samples, stage.throughput.output_tokens_per_s),
    }


def _latencies(stage: Stage) -> list[tuple[str, str, Any]]:
    """(name, definition, summary) of each latency; TTFO only where it differs from TTFT."""
    latency = stage.latency_ms
    same = latency.ttfo == latency.ttft
    return [
        (name, definition, getattr(latency, field))
        for field, (name, definition) in words.DEFINITIONS.items()
        if not (field == "ttfo" and same)
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
