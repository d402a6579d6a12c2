"""A comparison -> a table for a terminal and the lines below it. Pure.

In the tables `*` marks the best format of a column, `=` those that cannot be told apart from it.
"""

from __future__ import annotations

from dataclasses import dataclass

from deployer.comparison import Comparison, Row
from deployer.report import comparison_figures as figures
from deployer.report import words
from deployer.report.comparison_figures import BY_NAME, Column

STATES = {
    "refused": ("refused", "missed its quality gate"),
    "unavailable": ("not here", "cannot run here"),
    "failed": ("failed", "failed"),
}
"""What a format without figures is called, in a word and in a sentence."""
REFERENCE = "ref"
BEST, TIED = "*", "="
_SHOWN = (
    ("weights\nMB", "weights_bytes"),
    ("perplexity\nratio", figures.RATIO),
    ("KL\nnats", figures.DIVERGENCE),
    ("memory\nMB", "peak_rss_bytes"),
    ("1 user\ntok/s", figures.DECODE),
    ("loaded\ntok/s", figures.OUTPUT),
    ("TTFT p95\nms", "ttft_p95_loaded_ms"),
    ("TPOT p95\nms", "tpot_p95_loaded_ms"),
    ("goodput\n%", "goodput_loaded_share"),
)
"""The columns of the terminal's table; the others are in the CSV and on the page."""
_WITH_INTERVAL = (figures.OUTPUT,)
_LEADS = (
    ("Smallest", ("weights_bytes",)),
    ("Closest to 16 bits", (figures.DIVERGENCE, figures.RATIO)),
    ("Fastest for one user", (figures.DECODE,)),
    ("Fastest for {users} users", (figures.OUTPUT,)),
    ("Least energy", ("energy_j_per_token",)),
)
"""Titles, and the figures that tell; of several the first that has a best one."""


def comparison_table(comparison: Comparison) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Columns and one row a format for a terminal, about 110 letters wide.

    Formats without figures come last, with what they are called in the column of the size; their
    reasons are among `comparison_lines`.
    """
    shown = [
        (title, BY_NAME[name]) for title, name in _SHOWN if is_known(comparison, BY_NAME[name])
    ]
    marks = {column.name: marks_of(comparison, column) for _, column in shown}
    noisy = contended(comparison)
    rows = [
        (
            row.name + (" !" if row.name in noisy else ""),
            *(_cell(row, column, marks[column.name]) for _, column in shown),
        )
        for row in comparison.measured
    ]
    others = [
        (row.name, STATES[row.status][0], *[words.DASH] * (len(shown) - 1))
        for row in comparison.rows
        if row.status != "measured"
    ]
    return ("format", *(title for title, _ in shown)), (*rows, *others)


def is_known(comparison: Comparison, column: Column) -> bool:
    """Whether any format has this figure; the size always has its column."""
    return column.name == "weights_bytes" or any(map(column.read, comparison.measured))


def marks_of(comparison: Comparison, column: Column) -> dict[str, str]:
    """Format -> BEST or TIED."""
    return {
        name: TIED if index else BEST
        for index, name in enumerate(figures.leaders(comparison, column))
    }


def _cell(row: Row, column: Column, marks: dict[str, str]) -> str:
    figure = column.read(row)
    if figure is None:
        return missing(row, column)
    parts = [column.write(figure.value)]
    if column.name in _WITH_INTERVAL:
        parts.append(figures.interval(column, figure))
    return " ".join(part for part in (*parts, marks.get(row.name, "")) if part)


def missing(row: Row, column: Column) -> str:
    """What stands for a figure that is not there."""
    compared = column.group == figures.QUALITY and column.name != "perplexity"
    return REFERENCE if compared and figures.is_reference(row) else words.DASH


def comparison_lines(comparison: Comparison) -> list[str]:
    """What stands below the table: marks, the best formats, reasons, and what disturbed it."""
    lines = [explanation(comparison)]
    lines += map(str, leads(comparison))
    lines += [f"{row.name} {STATES[row.status][1]}: {sentence(row)}" for row in without(comparison)]
    return [*lines, *disturbances(comparison)]


def explanation(comparison: Comparison) -> str:
    """What the marks mean."""
    count = trials_each(comparison)
    if count < 2:
        noise = "One trial tells no noise: small differences may be chance."
    else:
        noise = f"{TIED} tied with it, within the noise of {count} interleaved trials (95 %)."
    compared = f" {REFERENCE}: the 16-bit model that the others of its engine are compared with."
    reference = any(map(figures.is_reference, comparison.measured))
    return f"{BEST} best of its column. {noise}{compared if reference else ''}"


@dataclass(frozen=True)
class Lead:
    """The best format of a figure with those tied with it, best first; `shown` are its figures."""

    title: str
    names: tuple[str, ...]
    shown: tuple[str, ...]
    unit: str

    def __str__(self) -> str:
        pairs = zip(self.names, self.shown, strict=True)
        said = f" {TIED} ".join(f"{name} ({shown} {self.unit})" for name, shown in pairs)
        return f"{self.title}: {said}{', a tie' if len(self.names) > 1 else ''}."


def leads(comparison: Comparison) -> list[Lead]:
    """The best format by size, quality, speed and energy, as far as they are known."""
    found = []
    for title, names in _LEADS:
        columns = (BY_NAME[name] for name in names)
        column = next((c for c in columns if figures.leaders(comparison, c)), None)
        if column is not None:
            best = figures.leaders(comparison, column)
            shown = tuple(_written(comparison.row(name), column) for name in best)
            title = title.format(users=comparison.workload.users)
            found.append(Lead(title, best, shown, column.unit))
    return found


def _written(row: Row, column: Column) -> str:
    figure = column.read(row)
    return words.DASH if figure is None else column.write(figure.value)


def without(comparison: Comparison) -> tuple[Row, ...]:
    """The formats that have no figures."""
    return tuple(row for row in comparison.rows if row.status != "measured")


def sentence(row: Row) -> str:
    reason = (row.reason or "").rstrip(".")
    return f"{reason}." + (f" {row.hint}" if row.hint else "")


def contended(comparison: Comparison) -> dict[str, list[int]]:
    """Format -> the numbers of its trials beside which other programs were busy."""
    found: dict[str, list[int]] = {}
    for trial in comparison.trials:
        if trial.contended:
            found.setdefault(trial.format, []).append(trial.number)
    return found


def disturbances(comparison: Comparison) -> list[str]:
    """A sentence for each trial that cannot be trusted as it is."""
    lines = [
        f"! {trial.format}, trial {trial.number}: other programs used "
        f"{words.share(trial.busy)} of the processors before or during it. Run it again on a "
        "quiet machine before you trust this format's figures."
        for trial in comparison.trials
        if trial.contended
    ]
    where: dict[str, list[str]] = {}
    for row in comparison.measured:
        assert row.serving is not None
        for level in (row.serving.single, row.serving.loaded):
            for problem in level.problems:
                users = words.counted(level.users, "user")
                where.setdefault(problem, []).append(f"{row.name} with {users}")
    return [*lines, *(f"! {problem}: {', '.join(of)}." for problem, of in where.items())]


def trials_each(comparison: Comparison) -> int:
    """How many trials a format had."""
    return max((trial.number for trial in comparison.trials), default=1)
