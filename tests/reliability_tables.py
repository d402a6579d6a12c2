"""The figures of docs/reliability.md, written out of docs/measured/reliability.json.

    python tests/reliability_tables.py

The document has a place for each section of the JSON; what stands there is made of it.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "reliability.md"
MEASURED = ROOT / "docs" / "measured" / "reliability.json"
PLACE = re.compile(r"(<!-- measured: (\w+) -->\n).*?(<!-- /measured -->)", re.DOTALL)
NOTHING = "Not measured yet."


def table(head: tuple[str, ...], rows: list[tuple[object, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def fuzzing(part: Mapping[str, Any]) -> str:
    rows: list[tuple[object, ...]] = []
    for name, each in sorted(part["targets"].items()):
        failed = each["crashed"] + each["died"]
        rows.append(
            (f"`{name}`", each["what"], f"{each['inputs']:,}", f"{each['taken']:,}", failed,
             each["hung"], each["slowest_ms"], each["peak_mib"])
        )  # fmt: skip
    total = sum(each["inputs"] for each in part["targets"].values())
    head = (
        "target",
        "read by",
        "inputs",
        "taken",
        "crashes",
        "hangs",
        "slowest, ms",
        "memory, MiB",
    )
    return f"{table(head, rows)}\n\nTogether {total:,} inputs, seed {part['seed']}."


def sockets(part: Mapping[str, Any]) -> str:
    statuses = ", ".join(f"{status}: {count:,}" for status, count in part["statuses"].items())
    before, after = part["memory_mib"]
    first, last = part["open_files"]
    return (
        f"{part['inputs']:,} inputs, {part['wrong']} wrong. Answers by status: {statuses}. "
        f"The gateway held {before} MiB at the beginning and {after} MiB at the end, and "
        f"{first} and {last} open files. The slowest good request in between took "
        f"{part['slowest_good_request_ms']} ms."
    )


def kill_points(part: Mapping[str, Any]) -> str:
    """Kills by what was being published; had one left anything corrupt, there were no figure."""
    shown = table(("what was being published", "kills"), sorted(part.items()))
    return f"{shown}\n\nTogether {sum(part.values())} kills, none of which left anything corrupt."


def summed(runs: list[Mapping[str, Any]], name: str) -> int:
    return sum(run[name] for run in runs)


def in_runs(runs: list[Mapping[str, Any]]) -> str:
    return "in one run" if len(runs) == 1 else f"in {len(runs)} runs"


def drain(part: Mapping[str, Any]) -> str:
    runs = part["runs"]
    return (
        f"{summed(runs, 'requests'):,} requests {in_runs(runs)} while the server was swapped "
        f"{summed(runs, 'swaps')} times in {summed(runs, 'seconds')} s: {summed(runs, 'lost')} "
        f"lost ({runs[0]['engine']})."
    )


def engine_kills(part: Mapping[str, Any]) -> str:
    runs = part["runs"]
    ends: Counter[str] = Counter()
    for run in runs:
        ends.update(run["ends"])
    told = ", ".join(f"{end}: {count:,}" for end, count in sorted(ends.items()))
    back = sorted(seconds for run in runs for seconds in run["recovery_s"])
    return (
        f"{summed(runs, 'kills')} kills {in_runs(runs)} during {summed(runs, 'requests'):,} "
        f"requests ({runs[0]['engine']}). Ends of the requests: {told}. Lost: "
        f"{summed(runs, 'lost')}, of which {summed(runs, 'lost_elsewhere')} were not at the engine "
        f"that was killed; silently cut: {summed(runs, 'silent')}. A killed engine's server was "
        f"ready again after {back[len(back) // 2]} s (median), at most {back[-1]} s, on a machine "
        f"of {runs[0]['cores']} cores that clients, gateway and both engines share."
    )


def soak(part: Mapping[str, Any]) -> str:
    ends = ", ".join(f"{end}: {count:,}" for end, count in part["ends"].items())
    allowed = part["allowed_growth_mib_per_hour"]
    rows: list[tuple[object, ...]] = [
        (name, part["pss_mib_at_the_end"].get(name, ""), grown, allowed[name])
        for name, grown in sorted(part["growth_mib_per_hour"].items())
    ]
    head = ("process", "memory at the end, MiB", "growth, MiB an hour", "allowed")
    first, last = part["files_of_the_gateway"]
    return (
        f"{part['seconds'] / 60:.0f} minutes, {part['requests']:,} requests ({ends}), "
        f"{part['reloads']} reloads. TTFT p50 {part['ttft_p50_ms']} ms, p95 "
        f"{part['ttft_p95_ms']} ms; other programs kept {part['others_p50_cores']} processors busy "
        f"(median). Open files of the gateway: {first}, at the end {last}.\n\n{table(head, rows)}"
    )


SECTIONS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "fuzzing": fuzzing, "http_from_clients": sockets, "http_from_engines": sockets,
    "kill_points": kill_points, "drain": drain, "engine_kills": engine_kills, "soak": soak,
}  # fmt: skip


def filled(text: str, measured: Mapping[str, Any]) -> str:
    """The document with what was measured in its places."""

    def fill(place: re.Match[str]) -> str:
        part = measured.get(place[2])
        shown = SECTIONS[place[2]](part) if part else NOTHING
        return f"{place[1]}{shown}\n{place[3]}"

    return PLACE.sub(fill, text)


def read_measured() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(MEASURED.read_text(encoding="utf-8"))
    return found


if __name__ == "__main__":
    DOCUMENT.write_text(
        filled(DOCUMENT.read_text(encoding="utf-8"), read_measured()), encoding="utf-8"
    )
    sys.exit(0)
