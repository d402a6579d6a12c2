"""How many streams one core of load generator can follow before it lags.

    python tests/bench/by_hand/loadtest_capacity.py --out capacity --streams 100 200 400 600 800

The metronome (20 tokens a second and stream) gets one core and the load test another; the machine
must have nothing else to do. Each level runs for 15 s after a warm-up. Beside the lag and the CPU
stands the error against the metronome's own record: of the median and of the 95th percentile. It
ends with the first level where the p99 of the lag is above 10 ms, and writes capacity.csv,
capacity.md and capacity.svg.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PACE, TTFT, TOKENS = 0.05, 0.2, 100
LIMIT_MS = 10.0
COLUMNS = ("streams", "events_per_s", "lag_p99_ms", "cpu_percent", "us_per_event",
           "ttft_p50_error_ms", "ttft_p95_error_ms", "tpot_p50_error_ms", "valid")  # fmt: skip


@contextmanager
def metronome(core: int | None, pace: float = PACE, *more: str) -> Iterator[str]:
    """The server on a core of its own, `pace` seconds between tokens; gives its address."""
    argv = [sys.executable, str(HERE / "metronome.py"), "--ttft", str(TTFT), "--pace", str(pace)]
    argv += more
    child = subprocess.Popen([*_pinned(core), *argv], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        yield child.stdout.readline().split()[2]
    finally:
        child.terminate()
        child.wait(10)


def _pinned(core: int | None) -> list[str]:
    return [] if core is None else ["taskset", "-c", str(core)]


def ask(url: str, path: str) -> dict[str, Any]:
    with urllib.request.urlopen(url + path, timeout=10) as answer:
        return dict(json.load(answer))


def level(url: str, streams: int, seconds: int, core: int | None) -> dict[str, Any]:
    """One load test and what it cost; latencies are compared with the server's own record."""
    warmup = max(6, streams // 100)
    argv = [
        *_pinned(core), sys.executable, "-m", "deployer", "loadtest", "--endpoint", url,
        "--profile", "concurrent", "--users", str(streams), "--duration", str(seconds), "--json",
        "--set", f"loadtest.warmup={warmup}", "--set", f"loadtest.output_tokens={TOKENS}",
        "--set", "loadtest.prompt_tokens=64",
    ]  # fmt: skip
    ask(url, "/forget")
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    try:
        result = json.loads(done.stdout)
        stage, client, truth = result["stages"][0], result["client"], ask(url, "/truth")
    except (ValueError, KeyError) as error:
        raise SystemExit(f"the load test of {streams} streams failed:\n{done.stderr}") from error
    events = stage["throughput"]["output_tokens_per_s"]
    latency = stage["latency_ms"]

    def error_of(name: str, point: str) -> float:
        return round(latency[name][point] - truth[f"{name}_ms"][point], 3)

    return dict(zip(COLUMNS, (
        streams, round(events), client["lag_ms_p99"], client["cpu_percent_max"],
        round(client["cpu_percent_max"] * 1e4 / events, 1), error_of("ttft", "p50"),
        error_of("ttft", "p95"), error_of("tpot", "p50"), client["valid"],
    ), strict=True))  # fmt: skip


def write(rows: Sequence[dict[str, Any]], out: Path) -> None:
    with (out / "capacity.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(str(row[name]) for name in COLUMNS) + " |" for row in rows]
    (out / "capacity.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (out / "capacity.svg").write_text(picture(rows), encoding="utf-8")


def picture(rows: Sequence[dict[str, Any]]) -> str:
    """Lag and CPU over the number of streams, with the limit."""
    width, height, left, top = 640, 300, 60, 30
    most = max(row["streams"] for row in rows) * 1.05
    high = max(2 * LIMIT_MS, *(row["lag_p99_ms"] for row in rows))

    def path(name: str, scale: float) -> str:
        places = (
            f"{left + width * row['streams'] / most:.1f},"
            f"{top + height * (1 - row[name] / scale):.1f}"
            for row in rows
        )
        return " ".join(places)

    limit = top + height * (1 - LIMIT_MS / high)
    labels = "".join(
        f'<text x="{left + width * row["streams"] / most:.1f}" y="{top + height + 18}" '
        f'text-anchor="middle">{row["streams"]}</text>'
        for row in rows
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width + 130}" height="{height + 70}" '
        'font-family="sans-serif" font-size="12">'
        f'<rect x="{left}" y="{top}" width="{width}" height="{height}" fill="none" stroke="#ccc"/>'
        f'<line x1="{left}" x2="{left + width}" y1="{limit:.1f}" y2="{limit:.1f}" stroke="#c33" '
        f'stroke-dasharray="4 4"/><text x="{left + width + 6}" y="{limit:.1f}">10 ms</text>'
        f'<polyline points="{path("lag_p99_ms", high)}" fill="none" stroke="#2f6bd8"/>'
        f'<polyline points="{path("cpu_percent", 100)}" fill="none" stroke="#e39a2d"/>'
        f'<text x="{left}" y="{top - 10}" fill="#2f6bd8">lag p99 (top: {high:.0f} ms)</text>'
        f'<text x="{left + 200}" y="{top - 10}" fill="#e39a2d">CPU (top: 100 % of a core)</text>'
        f'{labels}<text x="{left}" y="{top + height + 40}">streams, 20 tokens/s each</text></svg>\n'
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--streams", type=int, nargs="+", default=[100, 200, 300, 400, 500, 600, 800]
    )
    parser.add_argument("--seconds", type=int, default=15)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    cores = sorted(os.sched_getaffinity(0))
    server, client = (cores[0], cores[1]) if len(cores) > 1 else (None, None)
    rows: list[dict[str, Any]] = []
    with metronome(server) as url:
        for streams in given.streams:
            rows.append(level(url, streams, given.seconds, client))
            print(rows[-1], flush=True)
            write(rows, given.out)
            if rows[-1]["lag_p99_ms"] > LIMIT_MS:
                break
            time.sleep(2)


if __name__ == "__main__":
    main()
