"""Mixed precision: the choice is the best there is, shown against every possible choice."""

from __future__ import annotations

import re
from itertools import pairwise, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployer.errors import PlanError
from deployer.planning.mixing import (
    Choice,
    Mix,
    Part,
    Sensitivity,
    choose_mix,
    curve,
    ignored_layers,
    measured_types,
    mixed_job,
    within_bytes,
    within_divergence,
)
from deployer.quantizers import QuantizeJob
from deployer.recipe import Quantization

REST = 7


def table(*parts: dict[str, tuple[int, float]]) -> Sensitivity:
    made = tuple(
        Part(
            f"blk.{number}.ffn",
            (f"blk.{number}.ffn_up.weight", f"blk.{number}.ffn_down.weight"),
            100,
            tuple(Choice(kind, size, kld) for kind, (size, kld) in part.items()),
        )
        for number, part in enumerate(parts)
    )
    return Sensitivity(made, REST, 100 * len(made))


costs = st.tuples(st.integers(1, 40), st.integers(0, 50).map(lambda cost: cost / 64))
tables = st.lists(
    st.dictionaries(st.sampled_from("abcd"), costs, min_size=1), min_size=1, max_size=4
).map(lambda parts: table(*parts))


def every_mix(measured: Sensitivity) -> list[tuple[int, float]]:
    """(bytes, divergence) of all possible choices."""
    return [
        (REST + sum(c.bytes for c in chosen), sum(c.kld for c in chosen))
        for chosen in product(*(part.choices for part in measured.parts))
    ]


def largest_step(measured: Sensitivity) -> float:
    """The most divergence that one step up a hull saves."""
    hulls = [part.hull() for part in measured.parts]
    return max((a.kld - b.kld for hull in hulls for a, b in pairwise(hull)),
               default=0.0)  # fmt: skip


@given(tables)
def test_nothing_of_the_size_is_better_than_a_mix_of_the_curve(measured: Sensitivity) -> None:
    for mix in curve(measured):
        best = min(kld for size, kld in every_mix(measured) if size <= mix.bytes)
        assert mix.kld == pytest.approx(best)


@given(tables, st.integers(0, 160))
def test_a_budget_is_kept_and_used_to_within_one_step(measured: Sensitivity, budget: int) -> None:
    possible = [kld for size, kld in every_mix(measured) if size <= budget]
    if not possible:
        with pytest.raises(PlanError, match="over the budget"):
            within_bytes(measured, budget)
        return
    mix = within_bytes(measured, budget)
    assert mix.bytes == REST + sum(choice.bytes for choice in mix.choices.values()) <= budget
    assert mix.kld == pytest.approx(sum(choice.kld for choice in mix.choices.values()))
    assert mix.kld <= min(possible) + largest_step(measured) + 1e-9


@given(tables, st.integers(0, 200).map(lambda limit: limit / 64))
def test_a_limit_is_kept_by_a_small_mix(measured: Sensitivity, limit: float) -> None:
    possible = [size for size, kld in every_mix(measured) if kld <= limit]
    if not possible:
        with pytest.raises(PlanError, match="best mix"):
            within_divergence(measured, limit)
        return
    mix = within_divergence(measured, limit)
    assert mix.kld <= limit
    assert mix.bytes == REST + sum(choice.bytes for choice in mix.choices.values())
    hulls = [part.hull() for part in measured.parts]
    step = max((b.bytes - a.bytes for hull in hulls for a, b in pairwise(hull)),
               default=0)  # fmt: skip
    assert mix.bytes <= min(possible) + step


def test_what_costs_more_bytes_and_saves_nothing_is_never_chosen() -> None:
    measured = table({"small": (10, 0.5), "worse": (20, 0.6), "equal": (30, 0.5)})
    assert [choice.kind for choice in measured.parts[0].hull()] == ["small"]


def test_the_more_sensitive_part_gets_the_larger_type() -> None:
    measured = table({"4": (40, 0.1), "8": (80, 0.0)}, {"4": (40, 0.9), "8": (80, 0.0)})
    mix = within_bytes(measured, REST + 120)
    assert [choice.kind for choice in mix.choices.values()] == ["4", "8"]
    assert mix.types(measured)["blk.1.ffn_up.weight"] == "8"


def test_what_is_left_of_the_budget_goes_to_a_smaller_step() -> None:
    measured = table({"a": (10, 1.0), "b": (90, 0.0)}, {"a": (10, 0.2), "b": (20, 0.15)})
    mix = within_bytes(measured, REST + 40)
    assert [choice.kind for choice in mix.choices.values()] == ["a", "b"]


def test_bits_a_weight_count_everything() -> None:
    measured = table({"a": (50, 0.1)})
    mix = choose_mix(measured, budget_bpw=8 * 57 / 100)
    assert measured.bits_per_weight(mix.bytes) == pytest.approx(8 * 57 / 100)
    with pytest.raises(PlanError, match=r"4\.560 bits a weight"):
        choose_mix(measured, budget_bpw=4.5)


def test_a_report_is_read() -> None:
    group = {
        "name": "embedding", "tensors": ["token_embd.weight"], "parameters": 64,
        "bytes": {"f16": 128, "q8_0": 68}, "kld": {"f16": 0.0, "q8_0": 0.01},
    }  # fmt: skip
    measured = Sensitivity.from_report(
        {"groups": [group], "rest": {"parameters": 2, "bytes": 8}, "parameters": 66}
    )
    assert choose_mix(measured, max_kl_divergence=0.02).types(measured) == {
        "token_embd.weight": "q8_0"
    }
    assert [mix.as_json(measured)["types"]["embedding"] for mix in curve(measured)] == [
        "q8_0", "f16",
    ]  # fmt: skip


def test_parts_left_at_16_bits_become_patterns_of_layers() -> None:
    half, low = Choice("f16", 2, 0.0), Choice("w4_g64", 1, 0.1)
    choices = {
        "blk.0.attention": half, "blk.11.attention": half, "blk.1.ffn": half, "blk.0.ffn": low,
        "blk.1.ffn_down": low, "blk.11.ffn_down": half,
    }  # fmt: skip
    mix = Mix(choices, 0, 0.1)
    patterns = [re.compile(pattern.removeprefix("re:")) for pattern in ignored_layers(mix)]
    names = {
        "model.layers.0.self_attn.q_proj": True, "model.layers.11.self_attn.o_proj": True,
        "model.layers.1.self_attn.q_proj": False, "model.layers.1.mlp.down_proj": False,
        "model.layers.11.mlp.down_proj": True, "model.layers.0.mlp.up_proj": False,
        "model.layers.1.mlp.up_proj": True, "model.layers.11.mlp.gate_proj": False,
    }  # fmt: skip
    assert {n: any(p.match(n) for p in patterns) for n in names} == names


def test_a_job_gets_types_or_ignored_layers(tmp_path) -> None:
    measured = table({"f16": (200, 0.0), "q4_0": (50, 0.2)}, {"f16": (200, 0.0), "q4_0": (50, 0.3)})
    mix = within_bytes(measured, REST + 250)
    gguf = Quantization.model_validate({"mixed": {"budget_bpw": 8.0}})
    job = mixed_job(QuantizeJob(gguf, tmp_path, tmp_path), measured, mix)
    assert set(job.types.values()) == {"f16", "q4_0"}
    awq = Quantization.model_validate({"method": "awq", "mixed": {"budget_bpw": 8.0}})
    job = mixed_job(QuantizeJob(awq, tmp_path, tmp_path), measured, mix)
    assert job.quantization.knobs["ignore"][0] == "lm_head"
    assert job.quantization.knobs["ignore"][1].startswith(r"re:.*\.layers\.(1)\.")


def test_what_is_measured_follows_the_recipe() -> None:
    def asked(**values):
        values = {"mixed": {"budget_bpw": 8.0}, **values}
        return measured_types(Quantization.model_validate(values))

    assert "q4_k" in asked()["types"]
    assert asked(mixed={"budget_bpw": 5.0, "types": ("q4_0",)}) == {"types": ["q4_0"]}
    assert asked(method="awq", group_size=64) == {"types": ["w4_g64_zero"], "groups": r"blk\..*"}
    assert asked(method="gptq", scheme="w8a16", group_size=-1)["types"] == ["w8_channel"]
