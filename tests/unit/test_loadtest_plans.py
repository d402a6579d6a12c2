"""What a load test sends and when: levels, plans, traces, chats, the rates of a sweep."""

from __future__ import annotations

import itertools
import json
import math
import statistics
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loadtest_modules import prompts

from deployer.errors import LoadTestError, UsageError
from deployer.loadtest import planned, sources, sweep
from deployer.loadtest.levels import level_of, users_of
from deployer.loadtest.planned import POOL, Material
from deployer.recipe import LoadTest

WORDS = Material(words=lambda tokens: tokens // 2, plain_words=lambda tokens: tokens)


def rows_of(material: Material = WORDS, seed: object = 1, **fields: object):
    workload = LoadTest(**{"duration": 20, "warmup": 5, **fields})
    return planned.rows(level_of(workload), workload, material, seed)


# --- levels ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "loop", "target", "unit", "seconds"),
    [
        ({"profile": "smoke"}, "closed", 1, "user", 0),
        ({"profile": "sync"}, "closed", 1, "user", 23),
        ({"profile": "concurrent", "users": 4}, "closed", 4, "users", 23),
        ({"profile": "chat", "users": 4}, "closed", 4, "users", 23),
        ({"profile": "poisson", "rate": 2.5}, "open", 2.5, "requests/s", 23),
    ],
)
def test_the_level_of_a_profile(fields, loop, target, unit, seconds):
    level = level_of(LoadTest(**fields))
    assert (level.loop, level.target, level.unit, level.seconds) == (loop, target, unit, seconds)
    assert level.limit > level.seconds


def test_an_open_loop_has_no_users_to_share():
    assert users_of(LoadTest(profile="constant", users=50)) == 1
    assert users_of(LoadTest(profile="prefix", users=50)) == 50


# --- arrivals --------------------------------------------------------------------------------


def test_constant_arrivals_are_evenly_due():
    dues = [row["due"] for row in rows_of(profile="constant", rate=4.0)]
    assert len(dues) == 100 and dues[:3] == [0.0, 0.25, 0.5] and dues[-1] == 24.75


def test_poisson_arrivals_have_the_rate_and_exponential_gaps():
    dues = [row["due"] for row in rows_of(profile="poisson", rate=100.0, duration=95)]
    gaps = [b - a for a, b in itertools.pairwise(dues)]
    assert len(dues) == pytest.approx(10_000, rel=0.05)
    assert statistics.mean(gaps) == pytest.approx(0.01, rel=0.05)
    assert statistics.stdev(gaps) == pytest.approx(0.01, rel=0.05), "an even spacing has 0"
    assert all(0 < due < 100 for due in dues)


def test_the_same_seed_plans_the_same_load():
    assert rows_of(profile="poisson") == rows_of(profile="poisson")
    assert rows_of(profile="poisson") != rows_of(profile="poisson", seed=2)


def test_a_plan_has_a_bound():
    with pytest.raises(UsageError, match="more than 1,000,000"):
        rows_of(profile="constant", rate=10_000.0, duration=86_400)


def test_what_is_measured_of_a_plan_is_due_after_the_warm_up():
    workload = LoadTest(profile="constant", rate=2.0, duration=10, warmup=5)
    level = level_of(workload)
    assert planned.measured_rows(level, planned.rows(level, workload, WORDS, 1)) == 20


# --- lengths ---------------------------------------------------------------------------------


def test_fixed_lengths_need_one_row():
    assert rows_of(profile="concurrent", prompt_tokens=100, output_tokens=7) == [
        {"words": 50, "tokens": 7}
    ]


def test_normal_lengths_have_the_mean_and_the_deviation():
    made = rows_of(profile="concurrent", output_tokens=100, output_tokens_sd=20)
    tokens = [row["tokens"] for row in made]
    assert len(made) == planned.LENGTHS
    assert statistics.mean(tokens) == pytest.approx(100, rel=0.03)
    assert statistics.stdev(tokens) == pytest.approx(20, rel=0.1)
    short = rows_of(profile="concurrent", output_tokens=2, output_tokens_sd=50)
    assert min(row["tokens"] for row in short) == 1


def test_chats_are_sent_as_they_are_with_their_answers_lengths():
    material = Material(WORDS.words, WORDS.plain_words, chats=(("a?", 3), ("b?", 30)))
    made = rows_of(material, profile="concurrent", chats="c.jsonl")
    assert {(row["text"], row["tokens"]) for row in made} == {("a?", 3), ("b?", 30)}


def test_a_warm_cache_has_few_prompts_the_same_in_every_trial():
    fields = {"profile": "constant", "rate": 10.0, "cache": "warm", "prompt_tokens_sd": 30}
    first, second = rows_of(**fields), rows_of(seed=2, **fields)
    words = [row["words"] for row in first]
    assert words[:POOL] == words[POOL : 2 * POOL] and len(set(words[:POOL])) > 1
    assert words == [row["words"] for row in second]


def test_a_pools_prompts_come_again_and_no_other_does():
    of_pool, of_blocks, prefixed = prompts.of_pool, prompts.of_blocks, prompts.prefixed
    assert of_pool(1, 9, "", "run") == of_pool(1, 9, "", "run") != of_pool(2, 9, "", "run")
    assert of_pool(1, 9, "hello", "run").endswith("] hello")
    one, other = of_blocks((1, 2), 50, 90, "m"), of_blocks((1, 3), 50, 90, "m")
    shared = sum(a == b for a, b in zip(one.split(), other.split(), strict=True))
    assert 50 < shared < 70, "the first block is the same, the second is not"
    assert prefixed(20, "m") == prefixed(20, "m")


# --- traces and chats ------------------------------------------------------------------------


def written(tmp_path: Path, text: str, name: str = "t.jsonl") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "ours.jsonl",
            '{"time": 5, "prompt_tokens": 10, "output_tokens": 2}\n\n'
            '{"time": 6.5, "prompt_tokens": 20, "output_tokens": 3}\n',
        ),
        (
            "hashed.jsonl",
            '{"timestamp": 5000, "input_length": 10, "output_length": 2}\n'
            '{"timestamp": 6500, "input_length": 20, "output_length": 3}\n',
        ),
        (
            "dated.csv",
            "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,10,2\n"
            "2023-11-16 18:15:48.1805900,20,3\n",
        ),
    ],
)
def test_traces_of_three_kinds(tmp_path, name, text):
    trace = sources.read_trace(written(tmp_path, text, name))
    assert [(t.due, t.prompt_tokens, t.output_tokens) for t in trace] == [(0, 10, 2), (1.5, 20, 3)]


def test_a_trace_is_replayed_within_the_seconds_asked_for(tmp_path):
    lines = [
        {"timestamp": 1000 * i, "input_length": 600, "output_length": 9, "hash_ids": [0, i]}
        for i in (3, 0, 1, 2)
    ]
    path = written(tmp_path, "".join(json.dumps(line) + "\n" for line in lines))
    trace = sources.read_trace(path)
    workload = LoadTest(profile="replay", trace=str(path), warmup=1, duration=2)
    level = planned.replay_level(level_of(workload), trace)
    made = planned.rows(level, workload, Material(WORDS.words, WORDS.plain_words, trace), 1)
    assert [row["due"] for row in made] == [0, 1, 2]
    assert made[2]["blocks"] == (0, 2) and made[2]["block_words"] == 512
    assert (level.duration, level.rate) == (2, 1.0)
    short = planned.replay_level(level_of(workload.model_copy(update={"duration": 99})), trace)
    assert short.duration == 3.0, "a second more than the trace"


def test_a_trace_that_ends_before_the_warm_up_is_refused():
    workload = LoadTest(profile="replay", trace="t", warmup=9)
    with pytest.raises(UsageError, match="before the warm-up of 9 s"):
        planned.replay_level(level_of(workload), [sources.Traced(0, 1, 1), sources.Traced(2, 1, 1)])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "has no requests"),
        ("{broken", "is not JSONL"),
        ("[1]", "line 1: no object"),
        ('{"when": 1}', "line 1: no request of a trace: neither time"),
        ('{"time": 1, "prompt_tokens": 1}', "line 1"),
        ('{"time": 1, "prompt_tokens": 0, "output_tokens": 1}', "at least 1"),
        ('{"time": NaN, "prompt_tokens": 1, "output_tokens": 1}', "finite"),
        ('{"time": null, "prompt_tokens": 1, "output_tokens": 1}', "line 1"),
    ],
)
def test_what_is_no_trace_is_told_with_its_line(tmp_path, text, why):
    with pytest.raises(LoadTestError, match=why):
        sources.read_trace(written(tmp_path, text))


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(LoadTestError, match="cannot read"):
        sources.read_trace(tmp_path / "absent.jsonl")
    with pytest.raises(LoadTestError, match="cannot read"):
        sources.described(tmp_path / "absent.jsonl")


def test_chats_of_two_kinds(tmp_path):
    lines = [
        {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"},
                      {"role": "assistant", "content": "a"}]},
        {"conversations": [{"from": "human", "value": "q2"}, {"from": "gpt", "value": "a2"}]},
        {"messages": [{"role": "user", "content": "nobody answered"}]},
    ]  # fmt: skip
    path = written(tmp_path, "".join(json.dumps(line) + "\n" for line in lines))
    assert sources.read_chats(path) == (sources.Chat("q", "a"), sources.Chat("q2", "a2"))
    with pytest.raises(LoadTestError, match="line 1: no chat"):
        sources.read_chats(written(tmp_path, '{"text": "x"}'))
    assert sources.described(path).startswith("t.jsonl sha256:")


NAMES = st.sampled_from(["time", "timestamp", "prompt_tokens", "output_tokens"])
VALUES = st.one_of(st.none(), st.text(max_size=3), st.floats(), st.integers())


@given(st.dictionaries(NAMES, VALUES))
def test_any_record_is_a_request_or_refused(record):
    try:
        one = sources._traced(record)
    except (LookupError, ValueError, TypeError, OverflowError):
        return
    assert one.prompt_tokens >= 1 and math.isfinite(one.due)


# --- the rates of a sweep --------------------------------------------------------------------


def swept(capacity: float, first: float):
    """The stages of a sweep of a server that keeps up with `capacity` requests per second."""
    stages: list = []
    rate: float | None = first
    while rate:
        stages.append(SimpleNamespace(target=rate, saturated=rate > capacity))
        rate = sweep.next_rate(stages)
    return stages


@pytest.mark.parametrize("capacity", [0.9, 1.0, 3.3, 37.0, 400.0])
def test_a_sweep_finds_the_knee_within_a_fifth(capacity):
    stages = swept(capacity, 1.0)
    found = stages[sweep.knee(stages)].target
    assert capacity / 1.2 <= found <= capacity
    assert len(stages) <= sweep.MOST_STAGES


def test_a_sweep_ends_where_nothing_can_be_found():
    assert sweep.knee(swept(0.001, 1.0)) is None
    assert len(swept(0.001, 1.0)) == sweep.MOST_HALVINGS + 1
    fast = swept(math.inf, 1.0)
    assert fast[sweep.knee(fast)].target == max(s.target for s in fast) <= sweep.HIGHEST


def test_a_rate_above_a_saturated_one_is_no_knee():
    stages = [
        SimpleNamespace(target=t, saturated=s) for t, s in ((2, False), (4, True), (8, False))
    ]
    assert sweep.knee(stages) == 0
