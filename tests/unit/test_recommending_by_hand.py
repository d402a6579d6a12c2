"""The recommendation of every shipped environment, derived a second time from the raw numbers.

Nothing of deployer.recommending is used for that: the JSON of a comparison and the YAML of an
environment are read as they are, and winner, runner-up and one reason for every other format
follow by plain arithmetic. It is done for made-up figures, and for measured ones where they are
stored.
"""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from made_up_comparison import made_up_comparison

from deployer.comparison import Comparison
from deployer.recipe.environment import Environment, find_environment
from deployer.recommending import recommend

ROOT = Path(__file__).resolve().parents[2]
MEASURED = ROOT / "docs" / "measured" / "comparison.json"
ENVIRONMENTS = ("edge-cpu", "cloud-cpu", "gpu-24g", "gpu-80g")
STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365}
GIB = 1024**3
Json = dict[str, Any]


def comparisons() -> list[Any]:
    """Made-up figures, those shaken at random so that other formats win, and measured ones."""
    made_up = made_up_comparison().model_dump_json()
    found = {"made-up": made_up, **{f"shaken-{seed}": shaken(made_up, seed) for seed in range(2)}}
    if MEASURED.exists():
        found["measured"] = MEASURED.read_text("utf-8")
    return [pytest.param(text, id=name) for name, text in found.items()]


def shaken(document: str, seed: int) -> str:
    """The comparison with every speed, latency, peak and loss of quality times 0.6 to 1.6."""
    draw, comparison = random.Random(seed), json.loads(document)
    for row in comparison["rows"]:
        if row["status"] != "measured":
            continue
        serving = row["serving"]
        times(serving["peak_rss_bytes"], draw.uniform(0.9, 1.6))
        for level in (serving["single"], serving["loaded"]):
            times(level["output"], draw.uniform(0.6, 1.6))
            for latency in (level["ttft"], level["tpot"], level["e2e"]):
                factor = draw.uniform(0.6, 1.6)
                times(latency["p50"], factor)
                times(latency["p95"], factor)
        if "perplexity_ratio" in row["quality"]:
            factor = draw.uniform(0.2, 1.6)
            ratio = row["quality"]["perplexity_ratio"]
            row["quality"]["perplexity_ratio"] = {
                key: 1 + (value - 1) * factor for key, value in ratio.items()
            }
    return json.dumps(comparison)


def times(estimate: Json, factor: float) -> None:
    for key in ("mean", "low", "high"):
        estimate[key] *= factor
    estimate["values"] = [value * factor for value in estimate["values"]]


def raw_environment(name: str) -> Json:
    return yaml.safe_load((ROOT / "recipes" / "environments" / f"{name}.yaml").read_text("utf-8"))


def load_environment(name: str, monkeypatch: pytest.MonkeyPatch) -> Environment:
    monkeypatch.chdir(ROOT)
    return find_environment(name)


def in_memory(size: Json) -> float:
    return size["bits_per_weight"] / 8 * size["parameters"]


class ByHand:
    """One format: its figures in the environment, and the kinds of limits it misses."""

    def __init__(self, row: Json, comparison: Json, environment: Json) -> None:
        self.row, self.comparison, self.environment = row, comparison, environment
        self.values: list[float] = []
        if environment["device"] == "cuda":
            self.on_a_gpu()
        else:
            self.on_a_cpu()

    @property
    def kv(self) -> float:
        told = self.comparison["source"].get("kv_bytes_per_token")
        if told:
            return float(told)
        return min(
            (r["serving"]["peak_rss_bytes"]["mean"] - in_memory(r["size"]))
            / r["serving"]["context"] / r["serving"]["parallel"]
            for r in self.comparison["rows"]
            if r["status"] == "measured" and r["serving"]["peak_rss_bytes"]
        )  # fmt: skip

    def on_a_cpu(self) -> None:
        load, asked = self.environment["load"], self.comparison["workload"]
        level = self.row["serving"]["single" if load["users"] == 1 else "loaded"]
        fewer, more = min(1, load["users"] / level["users"]), max(1, load["users"] / level["users"])
        self.failed = level["failed"]
        more_time = self.comparison["host"]["cores"] / self.environment["cores"]
        longer = load["prompt_tokens"] / asked["prompt_tokens"]
        self.ttft = level["ttft"]["p95"]["mean"] * more_time * longer * more
        self.tpot = level["tpot"]["p95"]["mean"] * more_time * more
        ttft, tpot = level["ttft"]["p50"]["mean"], level["tpot"]["p50"]["mean"]
        before = ttft + (asked["output_tokens"] - 1) * tpot
        after = more_time * (ttft * longer + (load["output_tokens"] - 1) * tpot)
        rate = fewer * (load["output_tokens"] / after) / (asked["output_tokens"] / before)
        self.values = [value * rate for value in level["output"]["values"]]
        self.output = level["output"]["mean"] * rate
        self.memory = self.row["serving"]["peak_rss_bytes"]["mean"]
        self.room = 0.9 * self.environment["memory_gib"] * GIB
        self.capacity_is_enough = True

    def on_a_gpu(self) -> None:
        gpu, load = self.environment["gpu"], self.environment["load"]
        size, slo = self.row["size"], self.environment["slo"]
        self.failed = 0
        self.room = 0.9 * gpu["memory_gib"] * GIB
        kv = self.kv
        bits = size["bits_per_weight"]
        share = 0.84 if bits >= 12 else 0.64 if bits >= 8 else 0.43
        computed = 0.25 if bits >= 12 else 0.15 if bits >= 8 else 0.12
        text = load["prompt_tokens"] + load["output_tokens"]
        wanted = load["requests_per_s"] * load["output_tokens"]
        at_work, self.output = None, 0.0
        for users in range(1, 257):
            together = 1 if self.row["engine"] == "transformers" else users
            cache = together * text * kv
            seconds = 0.0013 + (in_memory(size) / share + cache / 0.84) / (
                gpu["bandwidth_gb_s"] * 1e9
            )
            prompt = together * 2 * size["parameters"] * load["prompt_tokens"]
            first = seconds + prompt / (computed * gpu["tflops"] * 1e12)
            whole = first + (load["output_tokens"] - 1) * seconds
            first += (users - together) * whole
            whole += (users - together) * whole
            output = users * load["output_tokens"] / whole
            memory = in_memory(size) + cache + 1.5 * GIB
            good = (
                1000 * first <= slo["ttft_p95_ms"]
                and 1000 * seconds <= slo["tpot_p95_ms"]
                and memory <= self.room
            )
            if users == 1 or (good and output > self.output):
                self.output, at_best = output, (1000 * first, 1000 * seconds, memory)
            if at_work is None and output >= wanted:
                at_work = (1000 * first, 1000 * seconds, memory)
        self.capacity_is_enough = self.output >= wanted
        self.ttft, self.tpot, self.memory = at_work or at_best

    @property
    def ratio(self) -> float:
        found = self.row["quality"].get("perplexity_ratio")
        return found["value"] if found else 1.0

    @property
    def problem(self) -> str | None:
        """The first limit that is not kept."""
        if self.memory > self.room:
            return "memory"
        quality, limits = self.row["quality"], self.environment["quality"]
        ratio = quality.get("perplexity_ratio", {"value": 1.0})
        divergence = quality.get("kl_divergence", {"mean": 0.0})
        if ratio.get("high", ratio["value"]) > limits["max_perplexity_ratio"]:
            return "quality"
        if divergence.get("high", divergence["mean"]) > limits["max_kl_divergence"]:
            return "quality"
        if quality.get("top1_agreement", 1.0) < limits.get("min_top1_agreement", 0.0):
            return "quality"
        slo = self.environment["slo"]
        if self.failed or self.ttft > slo["ttft_p95_ms"] or self.tpot > slo["tpot_p95_ms"]:
            return "slo"
        return None if self.capacity_is_enough else "throughput"

    def same_speed(self, other: ByHand) -> bool:
        if not self.values:
            high, low = max(self.output, other.output), min(self.output, other.output)
            return high / low <= 1.2
        logs = [math.log(a / b) for a, b in zip(self.values, other.values, strict=True)]
        if len(logs) == 1:
            return logs[0] == 0
        mean = sum(logs) / len(logs)
        deviation = math.sqrt(sum((x - mean) ** 2 for x in logs) / (len(logs) - 1))
        return abs(mean) <= STUDENT[len(logs) - 1] * deviation / math.sqrt(len(logs))


def winner(formats: dict[str, ByHand]) -> str | None:
    """The best quality, then the smallest, of those as fast as the fastest."""
    if not formats:
        return None
    fastest = max(formats.values(), key=lambda each: each.output)
    near = {n: f for n, f in formats.items() if f is fastest or f.same_speed(fastest)}
    order = sorted(
        near, key=lambda n: (round(near[n].ratio, 3), near[n].row["size"]["weights_bytes"])
    )
    return order[0]


def why_not(mine: ByHand, best: ByHand) -> str:
    """What puts the best before a format that keeps every limit."""
    pairs = [
        (-best.output, -mine.output),
        (round(best.ratio, 3), round(mine.ratio, 3)),
        (best.row["size"]["weights_bytes"], mine.row["size"]["weights_bytes"]),
    ]
    if all(a <= b for a, b in pairs) and any(a < b for a, b in pairs):
        return "dominated"
    return "cost" if mine.output < best.output and not mine.same_speed(best) else "tie"


def has_figures(row: Json, environment: Json) -> bool:
    """Whether the row is measured, at the load of the environment, and runs on its device."""
    if row["status"] != "measured" or not runs(row, environment["device"]):
        return False
    if environment["device"] == "cuda":
        return True
    level = row["serving"]["single" if environment["load"]["users"] == 1 else "loaded"]
    return all(level[name] for name in ("ttft", "tpot", "e2e", "output"))


def runs(row: Json, device: str) -> bool:
    """What vLLM cannot do on a CPU and Quanto not on a GPU, in a table of the test's own."""
    if device == "cuda" and (row["method"], row["scheme"]) == ("quanto", "float8"):
        return False
    gpu_only = (("gptq", "w8a16"), ("bitsandbytes", "nf4"), ("bitsandbytes", "int8"))
    on_gpu_only = row["engine"] == "vllm" and (row["method"], row["scheme"]) in gpu_only
    return device == "cuda" or not on_gpu_only


@pytest.mark.parametrize("document", comparisons())
@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_the_recommendation_follows_from_the_raw_numbers(
    name: str, document: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    comparison, environment = json.loads(document), raw_environment(name)
    found = recommend(Comparison.model_validate_json(document), load_environment(name, monkeypatch))
    formats = {
        row["name"]: ByHand(row, comparison, environment)
        for row in comparison["rows"]
        if has_figures(row, environment)
    }
    good = {n: f for n, f in formats.items() if f.problem is None}
    first = winner(good)
    second = winner({n: f for n, f in good.items() if n != first})
    assert (found.chosen.name if found.chosen else None) == first
    assert (found.runner_up.name if found.runner_up else None) == second

    reasons = {each.name: each.kind for each in found.ruled_out}
    assert set(reasons) == {row["name"] for row in comparison["rows"]} - {first, second}
    for row in comparison["rows"]:
        if row["name"] in (first, second):
            continue
        kind = reasons[row["name"]]
        if row["name"] not in formats:
            assert kind in ("not-runnable", "not-measured", "quality")
            assert (kind == "quality") == (row["status"] == "refused")
        elif formats[row["name"]].problem:
            assert kind == formats[row["name"]].problem
        else:
            assert first is not None
            assert kind == why_not(formats[row["name"]], formats[first])


@pytest.mark.parametrize("document", comparisons())
@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_the_figures_of_the_answer_follow_from_the_raw_numbers(
    name: str, document: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    comparison, environment = json.loads(document), raw_environment(name)
    found = recommend(Comparison.model_validate_json(document), load_environment(name, monkeypatch))
    if found.chosen is None:
        pytest.skip("no format suits it")
    row = next(row for row in comparison["rows"] if row["name"] == found.chosen.name)
    mine = ByHand(row, comparison, environment)
    look = found.chosen.outlook
    assert look.output.mean == pytest.approx(mine.output)
    assert look.ttft_p95_ms.mean == pytest.approx(mine.ttft)
    assert look.tpot_p95_ms.mean == pytest.approx(mine.tpot)
    assert look.memory.mean == pytest.approx(mine.memory)
    cost = environment["price_per_hour"] * 1e6 / 3600 / mine.output
    assert found.chosen.cost == pytest.approx(cost)
    spare = {each.of: each.share for each in found.headroom}
    assert spare["memory"] == pytest.approx(1 - mine.memory / mine.room)
    slo = environment["slo"]
    used = max(mine.ttft / slo["ttft_p95_ms"], mine.tpot / slo["tpot_p95_ms"])
    assert spare["SLO"] == pytest.approx(1 - used)
    load = environment["load"]
    if "requests_per_s" in load:
        asked = load["requests_per_s"] * load["output_tokens"]
        assert spare["throughput"] == pytest.approx(1 - asked / mine.output)
    if environment["device"] == "cuda":
        assert {look.output.basis, look.memory.basis, look.ttft_p95_ms.basis} == {"estimated"}
        assert found.confidence == "low"
