"""A comparison -> what the `draw_figures` worker draws: slides of 1600 x 900 pixels. Pure.

All positions are computed here, in percent of a plot; the worker only puts ink there.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from deployer.comparison import Comparison
from deployer.report import comparison as tables
from deployer.report import comparison_charts as charts
from deployer.report import comparison_figures as figures
from deployer.report import comparison_latency as latency
from deployer.report import words
from deployer.report.comparison_documents import machine
from deployer.report.comparison_figures import BY_NAME


def comparison_pictures(comparison: Comparison) -> dict[str, Any]:
    """The request of `draw_figures`, without its `folder`; what has no figures is left out."""
    return {
        "foot": f"{comparison.name}: {machine(comparison)}; "
        f"{words.counted(tables.trials_each(comparison), 'trial')}, {comparison.started[:10]}",
        "size": charts.SLIDE,
        "fronts": _fronts(comparison),
        "strips": _strips(comparison),
    }


def _fronts(comparison: Comparison) -> list[dict[str, Any]]:
    users = comparison.workload.users
    quality = charts.quality_of(comparison)
    plans = (
        ("pareto-size.png", "Quality against size", BY_NAME[figures.WEIGHTS],
         "size of the weights, MB", "smaller and closer to 16 bits"),
        ("pareto-throughput.png", "Quality against speed", BY_NAME[figures.OUTPUT],
         f"output tokens per second, {users} users together", "faster and closer to 16 bits"),
    )  # fmt: skip
    made = []
    for file, title, column, across, better in plans:
        chart = charts.front(comparison, column)
        if quality is not None and chart.points:
            down = ", ".join(part for part in (quality.column.title, quality.column.unit) if part)
            made.append({
                "file": file, "title": title, "across": across,
                "down": f"{down} (lower is better)",
                "line_means": f"no format is both {better} than those on the line",
                **asdict(chart),
            })  # fmt: skip
    return made


def _strips(comparison: Comparison) -> dict[str, Any] | None:
    plots = [
        {"title": f"{words.DEFINITIONS[field][0]}: {said}", **asdict(strips)}
        for field, said in (("ttft", "time to first token"), ("tpot", "time per output token"))
        if (strips := latency.strips(comparison, field)).rows
    ]
    if not plots:
        return None
    users = comparison.workload.users
    return {
        "file": "latency.png", "title": "Latency", "plots": plots,
        "alone": "one user", "loaded": f"{users} users at once",
        "means": "thick: middle half of all requests; thin: 5 % to 95 %; stroke: median",
    }  # fmt: skip
