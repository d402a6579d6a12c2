"""The section `loadtest` of a recipe, and its gates."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from deployer.recipe import PROFILES, LoadTest
from deployer.recipe.gates import NAMES, parse


def section(**fields: object) -> LoadTest:
    return LoadTest.model_validate_json(json.dumps(fields))


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        ("ttft_p95_ms <= 300", "ttft_p95_ms <= 300"),
        ("  goodput>=0.95 ", "goodput >= 0.95"),
        ("output_tokens_per_s > 100.50", "output_tokens_per_s > 100.5"),
        ("e2e_from_schedule_p99_ms < 2000", "e2e_from_schedule_p99_ms < 2000"),
    ],
)
def test_a_gate_has_one_spelling(text: str, spelled: str) -> None:
    assert parse(text).text == spelled
    assert section(gates=[text]).gates == (spelled,)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no gate"),
        ("ttft_p95_ms", "no gate"),
        ("ttft_p95_ms == 300", "no gate"),
        ("ttft_p95_ms <= 300ms", "no gate"),
        ("ttft_p95_ms <= -1", "no gate"),
        ("ttft_p95_ms <= 1e3", "no gate"),
        ("300 >= ttft_p95_ms", "no gate"),
        ("goodput >= 0.9 and 1", "no gate"),
        ("__import__('os') <= 1", "no gate"),
        ("ttft_p95 <= 300", "did you mean ttft_p95_ms"),
        ("zzz <= 1", "for example goodput"),
        ("goodput >= 95", "share from 0 to 1"),
    ],
)
def test_what_is_no_gate_is_told(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse(text)


@pytest.mark.parametrize(
    ("text", "value", "met"),
    [
        ("ttft_p95_ms <= 300", 300.0, True),
        ("ttft_p95_ms < 300", 300.0, False),
        ("goodput >= 0.95", 0.949, False),
        ("requests_per_s > 2", 2.1, True),
    ],
)
def test_a_gate_compares(text: str, value: float, met: bool) -> None:
    assert parse(text).met_by(value) is met
    assert parse(text).upper is ("<" in text)


@given(st.text(max_size=40))
def test_no_text_is_more_than_a_gate(text: str) -> None:
    try:
        gate = parse(text)
    except ValueError:
        return
    assert gate.name in NAMES and parse(gate.text) == gate


def test_a_recipe_tells_which_gate_is_wrong() -> None:
    with pytest.raises(ValidationError, match="did you mean ttft_p95_ms"):
        section(gates=["goodput >= 0.9", "ttft_p95_m <= 3"])


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_can_be_asked_for(profile: str) -> None:
    fields = {"trace": "t.jsonl"} if profile == "replay" else {}
    made = section(profile=profile, **fields)
    assert made.is_open is (profile in ("constant", "poisson", "sweep", "replay"))


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"profile": "replay"}, "needs a trace"),
        ({"chats": "c.jsonl", "output_tokens_sd": 4}, "lengths of their own"),
        ({"profile": "chat", "cache": "warm"}, "does not fit the profile chat"),
        ({"rate": 0}, "greater than 0"),
        ({"trials": 0}, "greater than or equal to 1"),
    ],
)
def test_what_contradicts_itself_is_refused(fields: dict[str, object], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        section(**fields)


def test_a_trace_may_stay_where_another_profile_is_asked_for() -> None:
    assert section(profile="concurrent", trace="t.jsonl").trace == "t.jsonl"
