"""Which figures a comparison has: their names, units and meanings, and which formats lead. Pure.

The terminal's table, the CSV, the Markdown and the page all read the one list `COLUMNS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from deployer.comparison import Comparison, Estimate, Latency, Level, Row
from deployer.ranking import best
from deployer.report import words


@dataclass(frozen=True)
class Figure:
    """A measured value and its 95 % interval; `trials` is the estimate it is the mean of."""

    value: float
    low: float | None = None
    high: float | None = None
    trials: Estimate | None = None


Read = Callable[[Row], Figure | None]


@dataclass(frozen=True)
class Column:
    """One figure of every format.

    `name` is the CSV's and ends with the unit that `read` gives. `unit` is the one it is shown in,
    `scale` how many of those one of the CSV's is. `larger` says which way is better; None: neither.
    """

    name: str
    group: str
    title: str
    unit: str
    read: Read
    larger: bool | None
    digits: Callable[[float], str] = words.rate
    meaning: str = ""
    scale: float = 1.0

    @property
    def exact(self) -> bool:
        """Whether its figures never have an interval."""
        return self.group == SIZE or self.name in _WITHOUT_INTERVAL

    def write(self, value: float) -> str:
        """A value in the column's own unit, without it."""
        return self.digits(value * self.scale)


def trials(estimate: Estimate | None) -> Figure | None:
    """The figure of an estimate."""
    if estimate is None:
        return None
    return Figure(estimate.mean, estimate.low, estimate.high, estimate)


def _size(field: str) -> Read:
    return lambda row: None if row.size is None else Figure(float(getattr(row.size, field)))


def _scored(field: str, key: str = "value") -> Read:
    """A figure of the quality record."""

    def read(row: Row) -> Figure | None:
        found: Any = (row.quality or {}).get(field)
        if found is None:
            return None
        if not isinstance(found, Mapping):
            return _finite(found)
        interval = (found.get("low"), found.get("high")) if key != "p99" else (None, None)
        return _finite(found.get(key), *interval)

    return read


def _finite(value: float | None, low: float | None = None, high: float | None = None
            ) -> Figure | None:  # fmt: skip
    if value is None or not math.isfinite(value):
        return None
    return Figure(float(value), low, high)


def _served(field: str) -> Read:
    return lambda row: trials(getattr(row.serving, field)) if row.serving else None


def _level(row: Row, level: str) -> Level | None:
    found: Level | None = getattr(row.serving, level, None)
    return found


def _loaded(level: str, field: str) -> Read:
    def read(row: Row) -> Figure | None:
        found = _level(row, level)
        return None if found is None else trials(getattr(found, field))

    return read


def _latency(level: str, field: str, share: str) -> Read:
    def read(row: Row) -> Figure | None:
        found = _level(row, level)
        latency: Latency | None = getattr(found, field, None)
        return None if latency is None else trials(getattr(latency, share))

    return read


def four(value: float) -> str:
    """Four significant digits or so, for figures near 1 and far below it."""
    if value and abs(value) < 1e-4:
        return f"{value:.1e}"
    digits = 0 if value >= 1000 else 2 if value >= 10 else 3 if value >= 0.1 else 4
    return f"{value:,.{digits}f}"


def percent(hundredths: float) -> str:
    return words.share(hundredths / 100).removesuffix(" %")


def two(value: float) -> str:
    return f"{value:.2f}"


MEGA = 1e-6
SIZE, QUALITY, COST, ALONE, LOADED = "Size", "Quality", "Cost", "One user", "Loaded"
_SIZES = (
    Column("weights_bytes", SIZE, "weights", "MB", _size("weights_bytes"), False, scale=MEGA,
           meaning="All weights, scales too, in millions of bytes; where the engine quantizes "
           "while it loads, as they are in memory."),
    Column("bundle_bytes", SIZE, "bundle", "MB", _size("bundle_bytes"), False, scale=MEGA,
           meaning="All that is copied to a server: weights, tokenizer, chat template."),
    Column("bits_per_weight", SIZE, "bits a weight", "", _size("bits_per_weight"), False, two,
           "Measured size of the weights divided by their number; scales count as well."),
    Column("ratio_to_fp32", SIZE, "against FP32", "x", _size("ratio_to_fp32"), True, two,
           "How many times smaller than with 32 bits a weight."),
    Column("ratio_to_fp16", SIZE, "against FP16", "x", _size("ratio_to_fp16"), True, two,
           "How many times smaller than with 16 bits a weight."),
)  # fmt: skip
_SCORES = (
    Column("perplexity", QUALITY, "perplexity", "", _scored("perplexity"), None, four,
           "How unsure the model is of the next token of a text: 20 is as if it chose among 20 "
           "tokens. It differs between texts and engines, so only the ratio is compared."),
    Column("perplexity_ratio", QUALITY, "perplexity ratio", "", _scored("perplexity_ratio"), False,
           four, "Perplexity divided by that of the same model with 16 bits in the same engine; "
           "1 is no loss."),
    Column("kl_divergence_nats", QUALITY, "KL divergence", "nats",
           _scored("kl_divergence", "mean"), False, four,
           "How far the probabilities of the next token moved away from the 16-bit model's, mean "
           "over the text; 0 is no change."),
    Column("kl_divergence_p99_nats", QUALITY, "KL divergence p99", "nats",
           _scored("kl_divergence", "p99"), False, four, "99 % of the tokens are below."),
    Column("top1_agreement_share", QUALITY, "same first choice", "%", _scored("top1_agreement"),
           True, percent, "Share of tokens where this model and the 16-bit one hold the same token "
           "for the most likely (top-1 agreement).", 100),
)  # fmt: skip
_COSTS = (
    Column("load_seconds", COST, "load time", "s", _served("load_seconds"), False,
           meaning="From the start of the server to its first token."),
    Column("peak_rss_bytes", COST, "memory", "MB", _served("peak_rss_bytes"), False, scale=MEGA,
           meaning="The most main memory that the server held (peak resident set)."),
    Column("peak_gpu_bytes", COST, "GPU memory", "MB", _served("peak_gpu_bytes"), False,
           scale=MEGA, meaning="The most GPU memory that the server held."),
    Column("energy_j_per_token", COST, "energy", "J/token", _served("energy_j_per_token"), False,
           meaning="Energy of the processor or GPU for each output token, under load."),
)  # fmt: skip
_RATES = {
    "prefill": "How fast a prompt is read: prompt tokens / time to first token.",
    "decode": "How fast one answer grows: 1 / time per output token.",
    "output": "Output tokens of all users together.",
}
OUTPUT = "output_loaded_tokens_per_s"
DECODE = "decode_single_tokens_per_s"
_WITHOUT_INTERVAL = ("perplexity", "kl_divergence_p99_nats", "top1_agreement_share")
WEIGHTS, RATIO, DIVERGENCE = "weights_bytes", "perplexity_ratio", "kl_divergence_nats"


def _columns_of(level: str, group: str) -> tuple[Column, ...]:
    """The columns of one level of load: rates, latencies, goodput."""
    rates = (
        Column(f"{field}_{level}_tokens_per_s", group, field, "tok/s", _loaded(level, field), True,
               meaning=meaning)
        for field, meaning in _RATES.items()
    )  # fmt: skip
    latencies = (
        Column(f"{field}_{share}_{level}_ms", group, f"{words.DEFINITIONS[field][0]} {share}", "ms",
               _latency(level, field, share), False, meaning=words.DEFINITIONS[field][1])
        for field in ("ttft", "tpot", "e2e")
        for share in ("p50", "p95")
    )  # fmt: skip
    return (
        *rates,
        Column(f"requests_{level}_per_s", group, "requests", "/s",
               _loaded(level, "requests_per_s"), True, meaning="Finished requests."),
        *latencies,
        Column(f"goodput_{level}_share", group, "goodput", "%", _loaded(level, "goodput"), True,
               percent, "Share of requests within every objective; failed ones are not.", 100),
    )  # fmt: skip


COLUMNS: tuple[Column, ...] = (
    *_SIZES, *_SCORES, *_COSTS, *_columns_of("single", ALONE), *_columns_of("loaded", LOADED),
)  # fmt: skip
BY_NAME = {column.name: column for column in COLUMNS}


def task_columns(comparison: Comparison) -> tuple[Column, ...]:
    """The columns of the tasks that any format was asked: score, and recovery."""
    asked = {(t.task, t.metric): None for row in comparison.measured for t in row.tasks}
    return tuple(
        column
        for task, metric in asked
        for column in (
            Column(f"{task}_{metric}_share", "Tasks", f"{task} {metric}", "%",
                   _task(task, metric, "value", ("low", "high")), None, percent,
                   "Share of the task's questions answered right.", 100),
            Column(f"{task}_{metric}_recovery_share", "Tasks", f"{task} recovery", "%",
                   _task(task, metric, "recovery", ("recovery_low", "recovery_high")), True,
                   meaning="Score divided by the 16-bit model's on the same questions.",
                   scale=100),
        )
    )  # fmt: skip


def _task(task: str, metric: str, field: str, interval: tuple[str, str]) -> Read:
    def read(row: Row) -> Figure | None:
        for score in row.tasks:
            if (score.task, score.metric) == (task, metric):
                low, high = (getattr(score, end) for end in interval)
                return _finite(getattr(score, field), low, high)
        return None

    return read


def known_columns(comparison: Comparison) -> tuple[Column, ...]:
    """The columns in which at least one format has a figure."""
    return tuple(
        column
        for column in (*COLUMNS, *task_columns(comparison))
        if any(column.read(row) is not None for row in comparison.measured)
    )


def is_reference(row: Row) -> bool:
    """Whether a format is the 16-bit model that the others of its engine are compared with."""
    return row.status == "measured" and row.method == "none" and "perplexity_ratio" not in (
        row.quality or {}
    )  # fmt: skip


def leaders(comparison: Comparison, column: Column) -> tuple[str, ...]:
    """Names of the best format of a column and of those tied with it, best first.

    Of figures with trials `ranking.best` decides. A quality figure was measured once and has an
    interval of its own: tied are those whose intervals overlap the best one's. Nobody leads a
    column of one figure.
    """
    figures = {row.name: f for row in comparison.measured if (f := column.read(row)) is not None}
    if column.larger is None or len(figures) < 2:
        return ()
    estimates = {name: f.trials or _once(f) for name, f in figures.items()}
    return best(estimates, column.larger)


def _once(figure: Figure) -> Estimate:
    """A figure that was measured once, as `ranking` takes it."""
    value = figure.value
    return Estimate(values=(value,), mean=value, low=figure.low, high=figure.high)


def interval(column: Column, figure: Figure) -> str:
    """ "±4" for the mean of trials, "1.01 to 1.05" for an interval of its own, "" without one."""
    if figure.low is None or figure.high is None:
        return ""
    if figure.trials is None:
        return f"{column.write(figure.low)} to {column.write(figure.high)}"
    half = (figure.high - figure.low) / 2
    if half == 0:
        return ""
    digits = len(column.write(figure.value).partition(".")[2])
    text = f"{half * column.scale:,.{digits}f}"
    return f"±{text if text.strip('0.') else f'{half * column.scale:.1g}'}"
