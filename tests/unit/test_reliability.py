"""docs/reliability.md: every test it names is there, and its figures are those that were measured.

Also here, what the figures are made with: inputs that one seed gives again, and how requests and
memory are judged.
"""

from __future__ import annotations

import json
import random
import re
from functools import cache
from typing import Any

import pytest
from mutating import (
    VALUES,
    json_bytes,
    mutate_bytes,
    mutate_json,
    mutate_text,
    mutate_tree,
    pack,
    unpack,
)
from reliability_tables import DOCUMENT, PLACE, ROOT, SECTIONS, filled, read_measured
from soak_plot import draw
from soaking import Moment, Seen, growth, minutes
from streaming_load import Asked, percentile

NAMED = re.compile(r"`((?:unit|integration|contract|faults)/\w+\.py)(?:::(\w+))?`")
LINES = 22


@cache
def document() -> str:
    return DOCUMENT.read_text(encoding="utf-8")


@cache
def functions_of(name: str) -> frozenset[str]:
    text = (ROOT / "tests" / name).read_text(encoding="utf-8")
    return frozenset(re.findall(r"^def (\w+)\(", text, re.MULTILINE))


def test_every_test_it_names_is_there() -> None:
    named = NAMED.findall(document())
    assert len(named) > 60
    missing = [
        f"{name}::{test}"
        for name, test in named
        if not (ROOT / "tests" / name).is_file() or (test and test not in functions_of(name))
    ]
    assert not missing


def test_every_line_of_the_contract_has_a_row() -> None:
    numbers = [int(number) for number in re.findall(r"^\| (\d+) \|", document(), re.MULTILINE)]
    assert numbers == list(range(1, LINES + 1))
    for row in re.findall(r"^\| \d+ \|.*", document(), re.MULTILINE):
        assert NAMED.search(row), row


def test_its_figures_are_those_that_were_measured() -> None:
    places = [place[1] for place in PLACE.findall(document())]
    assert places == list(SECTIONS)
    assert filled(document(), read_measured()) == document()


# Wall clocks

MAY_ASK_THE_TIME = frozenset(
    {
        "gateway/events.py", "gateway/keys.py", "gateway/spans.py",
        "loadtest/__init__.py", "memo.py",
        "serving/holding.py", "store.py", "toolchains/provision.py", "workflow/comparing.py",
        "workflow/evaluating.py", "workflow/footprints.py", "workflow/tasks.py",
    }
)  # fmt: skip
"""Modules that tell the time to people, make a name of it, or compare it with a file's. All else
measures with a clock that only goes forward, so that a jump of the time changes nothing."""


def test_only_what_tells_the_time_asks_for_it() -> None:
    asking = re.compile(r"\btime\.time(?:_ns)?\(|datetime\.now\(|\butcnow\(")
    core = ROOT / "deployer"
    found = {
        path.relative_to(core).as_posix()
        for path in core.rglob("*.py")
        if "workers" not in path.parts and asking.search(path.read_text(encoding="utf-8"))
    }
    assert found <= MAY_ASK_THE_TIME


# Broken inputs


@pytest.mark.parametrize("seed", range(8))
def test_one_seed_gives_one_input(seed: int) -> None:
    tree = {"a": [1, {"b": "c"}], "d": {"e": None}}

    def made() -> tuple[bytes, str, bytes]:
        rng = random.Random(seed)
        return (
            mutate_bytes(rng, b"some bytes of a file" * 9, [b"other" * 40]),
            mutate_text(rng, "a: 1\nb:\n  - c d\n"),
            mutate_json(rng, tree),
        )

    before = json.dumps(VALUES)
    assert made() == made()
    assert tree == {"a": [1, {"b": "c"}], "d": {"e": None}}
    assert json.dumps(VALUES) == before


def test_inputs_differ_from_their_example_and_from_each_other() -> None:
    rng, tree = random.Random(1), {"a": [1, 2], "b": {"c": "d"}}
    made = [json_bytes(mutate_tree(rng, tree)) for _ in range(200)]
    assert len(set(made)) > 100
    assert sum(each != json_bytes(tree) for each in made) > 150


def test_a_packed_folder_is_unpacked() -> None:
    files = {"a.json": b"{}", "é": b"", "b": b"\x00" * 100}
    assert unpack(pack(files)) == files


# Requests and memory


def test_a_request_was_under_way_between_its_ends() -> None:
    request = Asked(started=10.0, tokens_wanted=4, ended=12.0)
    assert request.under_way(10.0) and request.under_way(12.0)
    assert not request.under_way(12.05)
    assert request.under_way(12.05, slack=0.1)
    assert not request.good


def test_percentiles() -> None:
    assert percentile([], 0.5) is None
    assert percentile([3.0], 0.95) == 3.0
    assert percentile([float(n) for n in range(100)], 0.95) == 95.0


def soaked(megabytes_a_minute: float) -> list[Moment]:
    def seen(minute: int) -> Seen:
        held = 60 + megabytes_a_minute * minute + (30 if minute < 3 else 0)
        return Seen(pid=1, pss_mib=held, files=10, threads=2, cpu_s=minute)

    return [Moment(60.0 * n, {"gateway": seen(n)}, others=0.5) for n in range(61)]


def test_growth_is_told_an_hour_and_without_the_warm_up() -> None:
    assert growth(soaked(0.0), "gateway") == pytest.approx(0.0, abs=0.01)
    assert growth(soaked(0.5), "gateway") == pytest.approx(30.0, abs=0.1)


def test_a_soak_is_drawn() -> None:
    asked = [
        Asked(started=100.0 + n, tokens_wanted=1, ended=101.0 + n, first=100.2 + n, end="done")
        for n in range(90)
    ]
    rows = minutes(asked, 100.0)
    assert [row["requests"] for row in rows] == [60, 30]
    assert rows[0]["ttft_p50_ms"] == pytest.approx(200.0)
    moments: list[dict[str, Any]] = [
        {"at": m.at, "others": m.others, "processes": {"gateway": vars(m.processes["gateway"])}}
        for m in soaked(0.1)
    ]
    shown = draw({"title": "a & b", "moments": moments, "minutes": rows, "reloads": [600.0]})
    assert "a &amp; b" in shown
    assert shown.count("<polyline") == 5
