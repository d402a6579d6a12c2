"""Draws a soak as an SVG picture: memory, files, times to first token, and the machine's load."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

WIDTH, HEIGHT, LEFT, TOP, GAP = 860, 150, 64, 36, 62
COLOURS = ("#1b6ca8", "#c8553d", "#3d8b5f", "#7a5195", "#b8860b", "#555555")
Line = tuple[str, Sequence[tuple[float, float]]]


def draw(soak: dict[str, Any]) -> str:
    """The picture of a soak's record."""
    moments, minutes = soak["moments"], soak["minutes"]
    names = sorted({name for moment in moments for name in moment["processes"]})

    def of(field: str, only: Sequence[str]) -> list[Line]:
        return [
            (
                name,
                [
                    (moment["at"] / 60, moment["processes"][name][field])
                    for moment in moments
                    if name in moment["processes"]
                ],
            )
            for name in only
        ]

    small = [name for name in names if not name.startswith("engine")]
    engines = [name for name in names if name.startswith("engine")]
    panels = [
        ("memory of gateway and supervisors, PSS, MiB", of("pss_mib", small)),
        ("memory of engines, PSS, MiB", of("pss_mib", engines)),
        ("open files of the gateway", of("files", ["gateway"])),
        (
            "time to first token, ms",
            [
                (
                    word,
                    [(row["minute"] + 0.5, row[key]) for row in minutes if row[key] is not None],
                )
                for word, key in (("p50", "ttft_p50_ms"), ("p95", "ttft_p95_ms"))
            ],
        ),
        (
            "processors busy with other programs",
            [("others", [(moment["at"] / 60, moment["others"]) for moment in moments])],
        ),
    ]
    longest = max(moment["at"] for moment in moments) / 60
    marks = [second / 60 for second in soak["reloads"]]
    parts = [
        _panel(number, title, lines, longest, marks) for number, (title, lines) in enumerate(panels)
    ]
    whole = TOP + len(panels) * (HEIGHT + GAP)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {whole}" '
        f'font-family="sans-serif" font-size="12">'
        f'<rect width="{WIDTH}" height="{whole}" fill="white"/>'
        f'<text x="{LEFT}" y="18" font-size="14">{escape(soak["title"])}</text>'
        f"{''.join(parts)}</svg>\n"
    )


def _panel(
    number: int, title: str, lines: list[Line], longest: float, marks: Sequence[float]
) -> str:
    top = TOP + number * (HEIGHT + GAP) + 16
    wide = WIDTH - LEFT - 16
    highest = max((y for _, points in lines for _, y in points), default=1.0) * 1.08 or 1.0

    def place(x: float, y: float) -> str:
        return f"{LEFT + wide * x / longest:.1f},{top + HEIGHT * (1 - y / highest):.1f}"

    drawn = [f'<text x="{LEFT}" y="{top - 5}">{escape(title)}</text>']
    for share in (0.0, 0.5, 1.0):
        y = top + HEIGHT * (1 - share)
        drawn.append(f'<path d="M{LEFT} {y:.1f}H{LEFT + wide}" stroke="#ddd"/>')
        value = f"{highest * share:.3g}"
        drawn.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value}</text>')
    for mark in marks:
        x = LEFT + wide * mark / longest
        drawn.append(f'<path d="M{x:.1f} {top}v{HEIGHT}" stroke="#bbb" stroke-dasharray="3 3"/>')
    for each, (name, points) in enumerate(lines):
        colour = COLOURS[each % len(COLOURS)]
        path = " ".join(place(x, y) for x, y in points)
        drawn.append(f'<polyline points="{path}" fill="none" stroke="{colour}"/>')
        x, y = LEFT + 170 * each, top + HEIGHT + 32
        drawn.append(f'<text x="{x}" y="{y}" fill="{colour}">{escape(name)}</text>')
    for part in range(7):
        x = LEFT + wide * part / 6
        minute = f"{longest * part / 6:.0f} min"
        drawn.append(
            f'<text x="{x:.1f}" y="{top + HEIGHT + 15}" text-anchor="middle">{minute}</text>'
        )
    return "".join(drawn)
