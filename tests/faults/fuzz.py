"""Try every parser with thousands of broken inputs: none may crash, hang or take much memory.

    python tests/faults/fuzz.py [TARGET ...] [--count N] [--seed S] [--folder F] [--out FILE]
    python tests/faults/fuzz.py TARGET --replay FILE

An interrupted run goes on where it stopped when it is started again with the same seed and folder.
Inputs that fail lie in the folder afterwards, each with what happened; --replay tries one again.
Exits with 1 where there is a failure.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fuzzing import NAMES, drive, judge, work
from measured import read, write
from targets import TARGETS
from targets.faulty import FAULTY

from deployer.home import default_home

ALL = {target.name: target for target in (*TARGETS, *FAULTY)}
TRUE = [target.name for target in TARGETS]


def tell(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def fuzz(names: list[str], seed: int, folder: Path, count: int | None = None) -> dict[str, object]:
    """Run targets one after another; gives the figures of each by its name."""
    found: dict[str, object] = {}
    for name in names:
        target = ALL[name]
        number = count or target.count
        options = {"--seed": seed, "--folder": folder, "--count": number}
        command = [sys.executable, str(Path(__file__).resolve()), name, "--worker"]
        command += [str(word) for option in options.items() for word in option]
        started = time.monotonic()
        figures = drive(target, seed, folder, number, command, tell)
        found[name] = {"what": target.what, "inputs": number, **figures}
        tell(f"{name}: {figures} in {time.monotonic() - started:.0f} s")
    return found


def failures(found: dict[str, object]) -> int:
    """Inputs that crashed, hung or ended their worker, and those that were not tried."""
    bad = [name for name in NAMES if name not in ("taken", "refused")]
    return sum(int(figures[name]) for figures in found.values() for name in bad)  # type: ignore[index]


def record(path: Path, seed: int, found: dict[str, object]) -> None:
    """Put the figures beside those of the targets that were run before."""
    document = read(path)
    targets = {**document.get("fuzzing", {}).get("targets", {}), **found}
    write(path, "fuzzing", {"seed": seed, "targets": targets})


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "names", nargs="*", metavar="TARGET", help=", ".join(target.name for target in TARGETS)
    )
    parser.add_argument("--count", type=int, help="inputs of each target; default: its own number")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="default: DEPLOYER_HOME/cache/fuzz-SEED")
    parser.add_argument("--out", type=Path, help="JSON file that gets the figures")
    parser.add_argument("--replay", type=Path, help="an input to try once, in this process")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if unknown := set(given.names) - set(ALL):
        parser.error(f"no target {min(unknown)}; there are {', '.join(ALL)}")
    if (given.replay or given.worker) and len(given.names) != 1:
        parser.error("--replay needs one TARGET")
    return given


def main() -> int:
    given = arguments()
    folder = given.folder or default_home().cache / f"fuzz-{given.seed}"
    if given.worker:
        work(ALL[given.names[0]], given.seed, folder, given.count)
        return 0
    if given.replay:
        verdict, said = judge(ALL[given.names[0]], given.replay.read_bytes())
        print(NAMES[verdict], said, sep="\n")
        return int(bool(said))
    found = fuzz(given.names or TRUE, given.seed, folder, given.count)
    if given.out:
        record(given.out, given.seed, found)
    print(json.dumps(found, indent=1))
    return int(failures(found) > 0)


if __name__ == "__main__":
    sys.exit(main())
