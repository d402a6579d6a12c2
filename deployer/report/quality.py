"""A quality record -> a page: its figures against their limits, window by window. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from deployer.report import quality_charts, words
from deployer.report.page import render

MOST_GROUPS = 16
"""Groups of a sensitivity result that are shown; the rest is in its JSON."""
MOST_MIXES = 16
"""Points of its curve that are listed with their types."""
METHOD = (
    "The text is tokenized once, without special tokens. Windows do not overlap; each is BOS and "
    "window - 1 tokens, all of which are scored (a model without BOS: the first token is not).",
    "The model is compared with its own 16-bit weights on the same token ids in the same engine, "
    "never with a figure of another engine, text or window.",
    "Perplexity is exp of the mean of -ln p over the scored tokens. Its ratio has a 95 % interval "
    "from a paired block bootstrap: whole blocks of neighbouring tokens are drawn again, for both "
    "models the same ones.",
    "KL divergence is sum of p ln(p / q) over the whole vocabulary, p of the 16-bit model and q of "
    "this one, in nats for each scored token.",
)


@dataclass(frozen=True)
class Figure:
    """One row of the table: a measured figure, its limit in words, and whether it keeps it."""

    name: str
    value: str
    definition: str
    interval: str = ""
    limit: str = words.DASH
    kept: bool | None = None


def quality_html(
    record: Mapping[str, Any],
    sensitivity: Mapping[str, Any] | None = None,
    *,
    name: str = "",
    limits: Mapping[str, Any] | None = None,
    kld: Sequence[float] = (),
) -> str:
    """One page that needs nothing else, of a manifest's quality record.

    `name` is the model's, `limits` the recipe's quality section, `kld` the KL divergence of every
    scored token in nats (a histogram), `sensitivity` the result of a sensitivity analysis. What
    the record does not have is left out of the page.
    """
    rows = figures(record, limits or {})
    windows = record.get("per_window") or ()
    return render(
        "quality.html",
        "quality.css",
        name=name or "Quality",
        record=record,
        figures=rows,
        verdict=quality_verdict(rows),
        headline=_headline(record),
        facts=_facts(record),
        scatter=quality_charts.windows_scatter(windows),
        divergence=quality_charts.windows_divergence(
            windows, record.get("kl_divergence", {}).get("mean")
        ),
        tokens=quality_charts.token_divergence(kld),
        method=METHOD,
        **_sensitivity_view(sensitivity),
    )


def figures(record: Mapping[str, Any], limits: Mapping[str, Any]) -> list[Figure]:
    """The rows of the table; figures that were not measured are left out."""
    ratio, divergence = record.get("perplexity_ratio"), record.get("kl_divergence")
    cosine, top1 = record.get("hidden_cosine"), record.get("top1_agreement")
    rows = [
        _at_most("Perplexity", record["perplexity"]["value"], limits.get("max_perplexity"),
                 "exp of the mean of -ln p over the scored tokens; 1 would be a text foreseen "
                 "without doubt."),
    ]  # fmt: skip
    if "baseline_perplexity" in record:
        rows.append(Figure("16-bit perplexity", number(record["baseline_perplexity"]),
                           "The same of the weights before quantization."))  # fmt: skip
    if ratio:
        row = _at_most(
            "Perplexity ratio",
            ratio["value"],
            limits.get("max_perplexity_ratio"),
            "Perplexity / 16-bit perplexity, with its 95 % interval; 1 is no loss.",
        )
        rows.append(replace(row, interval=_interval(ratio)))
    if divergence:
        rows += _divergences(divergence, limits.get("max_kl_divergence"))
    if top1 is not None:
        least = limits.get("min_top1_agreement")
        row = Figure(
            "Top-1 agreement",
            words.share(top1),
            "Share of scored tokens where both models rank the same token first.",
        )
        if least is not None:
            row = replace(row, limit=f"≥ {100 * least:g} %", kept=top1 >= least)
        rows.append(row)
    if cosine:
        rows.append(Figure(
            "Hidden-state cosine", f"{cosine['mean']:.4f}",
            "Cosine similarity of the two models' last hidden states, mean over the scored "
            "tokens; 1 is the same direction.",
            interval=f"lowest {cosine['min']:.3f}",
        ))  # fmt: skip
    return rows


def _divergences(divergence: Mapping[str, float], limit: float | None) -> list[Figure]:
    mean = _at_most("KL divergence, mean", divergence["mean"], limit,
                    "How far the probabilities of the next token moved, in nats a token; 0 is no "
                    "change.")  # fmt: skip
    return [
        replace(mean, interval=_interval(divergence)),
        Figure("KL divergence, p99", number(divergence["p99"]), "99 % of the tokens are below."),
        Figure("KL divergence, max", number(divergence["max"]), "The token that moved most."),
    ]


def _at_most(name: str, value: float, limit: float | None, definition: str) -> Figure:
    if limit is None:
        return Figure(name, number(value), definition)
    return Figure(name, number(value), definition, limit=f"≤ {limit:g}", kept=value <= limit)


def _interval(figure: Mapping[str, float]) -> str:
    """`low to high` where the figure has an interval."""
    if "low" not in figure:
        return ""
    return f"{number(figure['low'])} to {number(figure['high'])}"


def quality_verdict(rows: Sequence[Figure]) -> tuple[str, str]:
    """("good" | "bad" | "unsure", a few words) for the top of the page."""
    held = [row.kept for row in rows if row.kept is not None]
    missed = held.count(False)
    if missed:
        return "bad", f"{missed} limit{'s' if missed > 1 else ''} missed"
    return ("good", "All limits kept") if held else ("unsure", "No limit set")


def number(value: float | None) -> str:
    """Four digits or so: "13.47", "1.0273", "0.0184", "1,284", "2.1e-05"."""
    if value is None or not math.isfinite(value):
        return words.DASH if value is None else str(value)
    size = abs(value)
    if size >= 1e6 or 0 < size < 1e-4:
        return f"{value:.2g}"
    digits = 0 if size >= 1000 else 1 if size >= 100 else 2 if size >= 10 else 4
    return f"{value:,.{digits}f}"


def _headline(record: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """(title, number, unit, note) of the figures that stand large at the top."""
    ratio, divergence = record.get("perplexity_ratio"), record.get("kl_divergence")
    cells = []
    if ratio:
        note = f"{_interval(ratio)}, 95 % interval" if "low" in ratio else "1 is no loss"
        cells.append(("Perplexity ratio", f"{ratio['value']:.4g}", "x", note))
    if divergence:
        cells.append(("KL divergence", number(divergence["mean"]), "nats",
                      f"mean, p99 {number(divergence['p99'])}"))  # fmt: skip
    if record.get("top1_agreement") is not None:
        share, unit = words.share(record["top1_agreement"]).split(" ")
        cells.append(("Same first choice", share, unit, "of the scored tokens"))
    baseline = record.get("baseline_perplexity")
    cells.append(
        (
            "Perplexity",
            number(record["perplexity"]["value"]),
            "",
            f"16-bit {number(baseline)}" if baseline else "no 16-bit model to compare",
        )
    )
    return cells


def _facts(record: Mapping[str, Any]) -> list[tuple[str, str, bool]]:
    """(name, value, whether it is code) of what was scored and how."""
    named = (
        ("text", "corpus", False), ("text SHA-256", "corpus_sha256", True),
        ("scored tokens", "tokens", False), ("token ids SHA-256", "ids_sha256", True),
        ("method", "method", False), ("engine", "engine", False),
        ("text revision", "corpus_revision", True),
    )  # fmt: skip
    facts = [
        (title, words.count(value) if isinstance(value, int) else str(value), code)
        for title, field, code in named
        if (value := record.get(field)) not in (None, "")
    ]
    if record.get("window"):
        start = "without BOS" if record.get("bos") is False else "BOS included"
        facts.insert(2, ("windows", f"{_windows(record)} tokens, {start}", False))
    return facts


def _windows(record: Mapping[str, Any]) -> str:
    count = record.get("windows")
    return f"{count:,} of {record['window']:,}" if count else f"{record['window']:,}"


def _sensitivity_view(sensitivity: Mapping[str, Any] | None) -> dict[str, Any]:
    """The curve, and the most sensitive groups with their types; empty without a result."""
    if not sensitivity:
        return {"curve": quality_charts.Plot(), "kind": "", "groups": [], "details": []}
    kind, groups = quality_charts.sensitive_groups(sensitivity, MOST_GROUPS)
    return {
        "curve": quality_charts.sensitivity_curve(sensitivity),
        "kind": kind,
        "groups": [(name, number(value), share) for name, value, share in groups],
        "details": [
            (
                f"{point['bits_per_weight']:.2f}",
                number(point["kl_divergence"]),
                _mix(point.get("types", {})),
            )
            for point in _spread(sensitivity["curve"])
        ],
    }


def _spread(curve: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """At most MOST_MIXES points, from the smallest to the largest, evenly spread."""
    points = sorted(curve, key=lambda p: float(p["bits_per_weight"]))
    last = min(len(points), MOST_MIXES) - 1
    return [points[round(i * (len(points) - 1) / max(last, 1))] for i in range(last + 1)]


def _mix(types: Mapping[str, str]) -> str:
    """Of {group: type} how many groups have each type, the most frequent first."""
    return ", ".join(f"{count} {kind}" for kind, count in Counter(types.values()).most_common())
