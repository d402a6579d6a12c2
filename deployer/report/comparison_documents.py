"""A comparison -> CSV and Markdown: what is stored beside it, and stands in documents. Pure."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from deployer.comparison import Comparison, Row
from deployer.report import comparison as tables
from deployer.report import comparison_figures as figures
from deployer.report import words
from deployer.report.comparison_figures import BY_NAME, Column, Figure

ABOUT = ("engine", "method", "scheme", "status", "reason", "hint", "bundle", "digest")
"""Fields of a row that are no figures, in the order of the CSV."""


def comparison_csv(comparison: Comparison) -> str:
    """One row a format: what it is, then every figure with its 95 % interval.

    A column's name ends with its unit; `_low` and `_high` are added for the ends of an interval.
    What was not measured is empty, and a format without figures has its `reason`.
    """
    columns = (*figures.COLUMNS, *figures.task_columns(comparison))
    noisy = tables.contended(comparison)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = [name for column in columns for name in _csv_names(column)]
    writer.writerow(["format", *ABOUT, "server", "version", "contended_trials", *names])
    for row in comparison.rows:
        about = [getattr(row, field) or "" for field in ABOUT]
        served = [row.serving.server, row.serving.version] if row.serving else ["", ""]
        trials = " ".join(map(str, noisy.get(row.name, ())))
        cells = [cell for column in columns for cell in _csv_cells(column, column.read(row))]
        writer.writerow([row.name, *about, *served, trials, *cells])
    return out.getvalue()


def _csv_names(column: Column) -> list[str]:
    return [column.name, *([] if column.exact else [f"{column.name}_low", f"{column.name}_high"])]


def _csv_cells(column: Column, figure: Figure | None) -> list[str]:
    ends = (figure.value, figure.low, figure.high) if figure else (None, None, None)
    cells = ["" if end is None else f"{end:.10g}" for end in ends]
    return cells[:1] if column.exact else cells


_IN_MARKDOWN = (
    "weights_bytes", "bits_per_weight", figures.RATIO, figures.DIVERGENCE, "top1_agreement_share",
    "load_seconds", "peak_rss_bytes", "peak_gpu_bytes", figures.DECODE, figures.OUTPUT,
    "ttft_p50_loaded_ms", "ttft_p95_loaded_ms", "tpot_p50_loaded_ms", "tpot_p95_loaded_ms",
    "goodput_loaded_share", "energy_j_per_token",
)  # fmt: skip
_INTERVALS_IN_MARKDOWN = (figures.RATIO, figures.DECODE, figures.OUTPUT)


def comparison_markdown(comparison: Comparison) -> str:
    """The table for documents: formats and figures, and below it where they come from."""
    tasks = [c for c in figures.task_columns(comparison) if c.name.endswith("_recovery_share")]
    shown = [
        BY_NAME[name] for name in _IN_MARKDOWN if tables.is_known(comparison, BY_NAME[name])
    ] + tasks
    heads = ["format", "engine", *(_head(column, comparison) for column in shown)]
    lines = [
        "| " + " | ".join(map(words.markdown, heads)) + " |",
        "|---|---|" + "---:|" * len(shown),
        *("| " + " | ".join(map(words.markdown, row)) + " |" for row in _cells(comparison, shown)),
        "",
        tables.explanation(comparison).replace(f"{tables.BEST} best", f"\\{tables.BEST} best"),
        "",
        *_reasons_in_markdown(comparison),
        *(f"- {words.markdown(line)}" for line in tables.disturbances(comparison)),
        *(f"- {words.markdown(line)}" for line in origin(comparison)),
        "- Command:",
        "",
        "      " + " ".join(comparison.command.split()),
    ]
    return "\n".join(lines) + "\n"


def _head(column: Column, comparison: Comparison) -> str:
    users = {figures.ALONE: "1 user", figures.LOADED: f"{comparison.workload.users} users"}
    title = ", ".join(part for part in (column.title, users.get(column.group)) if part)
    return f"{title} ({column.unit})" if column.unit else title


def _cells(comparison: Comparison, shown: Sequence[Column]) -> list[list[str]]:
    marks = {column.name: tables.marks_of(comparison, column) for column in shown}
    return [
        [row.name, row.engine, *(_markdown_cell(row, c, marks[c.name]) for c in shown)]
        for row in comparison.measured
    ]


def _markdown_cell(row: Row, column: Column, marks: dict[str, str]) -> str:
    figure = column.read(row)
    if figure is None:
        return tables.missing(row, column)
    parts = [column.write(figure.value)]
    between = figures.interval(column, figure) if column.name in _INTERVALS_IN_MARKDOWN else ""
    if between:
        parts.append(between if between.startswith("±") else f"({between})")
    return " ".join(part for part in (*parts, marks.get(row.name, "")) if part)


def _reasons_in_markdown(comparison: Comparison) -> list[str]:
    rows = tables.without(comparison)
    if not rows:
        return []
    told = [
        (row.name, row.engine, tables.STATES[row.status][1], tables.sentence(row)) for row in rows
    ]
    return [
        "| no figures | engine | | reason |",
        "|---|---|---|---|",
        *("| " + " | ".join(map(words.markdown, cells)) + " |" for cells in told),
        "",
    ]


def origin(comparison: Comparison) -> list[str]:
    """Lines that say on what, with which versions, when and how it was measured."""
    work = comparison.workload
    trials = words.counted(tables.trials_each(comparison), "trial")
    return [
        f"Machine: {machine(comparison)}.",
        f"Software: {software(comparison)}.",
        f"Load: one user, then {work.users} at once, {work.duration_s} s each after "
        f"{work.warmup_s} s of warm-up; prompts of about {work.prompt_tokens} tokens, answers of "
        f"{work.output_tokens}, seed {work.seed}; {trials} of "
        "each format, taken in turns.",
        f"Measured {comparison.started[:10]}, comparison {comparison.id}.",
    ]


def machine(comparison: Comparison) -> str:
    """The hardware in a line."""
    host = comparison.host
    parts = [host.cpu, words.counted(host.cores, "core"), words.counted(host.threads, "thread"),
             words.gib(host.memory_bytes), *(host.gpus or ("no GPU",)), host.system]  # fmt: skip
    return ", ".join(parts)


def software(comparison: Comparison) -> str:
    """deployer's own version and that of each server, in a line."""
    served = {
        f"{row.serving.server} {row.serving.version}": None
        for row in comparison.measured
        if row.serving
    }
    own = [f"{name} {version}" for name, version in comparison.versions.items()]
    return ", ".join([*own, *served])
