"""Measure deployer against the bare tools, side by side, in one run: `make bench`.

Not a test: the figures depend on the machine and on what else it does. Contenders take turns, one
at a time, in an order that changes every round; medians are compared. Exit status 0 when all was
measured, whether the targets were met or missed; 1 when something could not be measured.

The result is printed as a table and written to $DEPLOYER_HOME/bench.json; that of one part alone to
bench-PART.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from types import ModuleType
from typing import Any

import builds
import part_gateway
import part_llama_cpp
import part_mixed
import part_quantizers
import part_scoring
import part_vllm
from commands import TOOLCHAIN_TIMEOUT, BenchError, deployer
from figures import QUIET, Line, say

from deployer import __version__
from deployer.home import Home, default_home
from deployer.loadtest.host import describe

PARTS: dict[str, ModuleType] = {
    "llama.cpp": part_llama_cpp,
    "vllm": part_vllm,
    "quantizers": part_quantizers,
    "scoring": part_scoring,
    "mixed": part_mixed,
    "gateway": part_gateway,
}
"""In the order in which they run: the first one empties the store before every build."""


def run(chosen: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Measure the chosen parts; raises BenchError where something cannot be measured.

    In the document, the figures of llama.cpp stand at the top, those of the others below the
    part's name.
    """
    home = default_home()
    document: dict[str, Any] = {"host": describe().as_json(), "parts": chosen}
    document["versions"] = install(chosen, home)
    with builds.cold_home(home) as cold:
        for name in chosen:
            say(f"== {name}")
            measured = PARTS[name].measure(cold, options)
            document |= measured if name == "llama.cpp" else {name: measured}
    return document


def install(chosen: list[str], home: Home) -> dict[str, str]:
    """Make the toolchains of the chosen parts; gives the version of each tool in them.

    Toolchains may hold different versions of a library: the names of theirs tell which.
    """
    versions = {"deployer": __version__}
    for name in dict.fromkeys(name for part in chosen for name in PARTS[part].TOOLCHAINS):
        say(f"toolchain {name}")
        made, _ = deployer("toolchain", "install", name, home=home.root, timeout=TOOLCHAIN_TIMEOUT)
        for tool, version in made["versions"].items():
            key = tool if versions.get(tool, version) == version else f"{tool} of {name}"
            versions[key] = version
    return versions


def part_of(document: dict[str, Any], name: str) -> dict[str, Any]:
    """What a part measured."""
    found: dict[str, Any] = document if name == "llama.cpp" else document[name]
    return found


def show(document: dict[str, Any], lines: list[Line]) -> None:
    from deployer.console import print_lines, print_table

    columns = ("figure", "bare", "deployer", "deployer : bare", "target", "")
    print_table(columns, [line.row() for line in lines], "deployer against the bare tools")
    host, parts = document["host"], document["parts"]
    print_lines([
        f"{host['cpu']}, {host['cores']} cores, {host['memory_bytes'] / 1e9:.0f} GB; load before: "
        f"{host['load_before'][0]:.2f}",
        ", ".join(f"{name} {version}" for name, version in document["versions"].items()),
        *(note for name in parts for note in PARTS[name].notes(part_of(document, name))),
        "Medians; ratios of medians.",
    ])  # fmt: skip
    most = max(max(part_of(document, name)["busy_before"]) for name in parts)
    if most > QUIET:
        print_lines(
            [f"Others used up to {most:.0%} of the processor: measure again when it is quiet."]
        )


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("part", nargs="?", choices=[*PARTS, "all"], default="all")
    parser.add_argument("--rounds", type=int, default=3, help="turns of every llama.cpp server (3)")
    parser.add_argument("--builds", type=int, default=2, help="builds each way (2)")
    parser.add_argument(
        "--turns",
        type=int,
        default=3,
        help="turns of either vLLM server, of scoring; half of the gateway's (3)",
    )
    parser.add_argument("--quantizations", type=int, default=1, help="of each kind, each way (1)")
    parser.add_argument("--tokens", type=int, default=64, help="output tokens a request (64)")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 16],
                        help="numbers of streams, of llama.cpp (1 8 16)")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the document, not the table")
    return parser.parse_args(argv)


def main() -> int:
    options = parse(sys.argv[1:])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))  # so that servers are stopped
    started = time.monotonic()
    chosen = list(PARTS) if options.part == "all" else [options.part]
    try:
        document = run(chosen, options)
    except (BenchError, subprocess.TimeoutExpired) as error:
        say(f"error: {error}")
        return 1
    lines = [line for name in chosen for line in PARTS[name].lines(part_of(document, name))]
    document["figures"] = [{**dataclasses.asdict(line), "met": line.met} for line in lines]
    document["seconds"] = round(time.monotonic() - started, 1)
    name = "bench.json" if options.part == "all" else f"bench-{options.part}.json"
    target = default_home().root / name
    target.write_text(json.dumps(document, indent=1), encoding="utf-8")
    if options.json:
        print(json.dumps(document, indent=1))
    else:
        show(document, lines)
        print(f"Took {document['seconds']:.0f} s. All of it: {os.path.relpath(target)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
