"""What a build tells its manifest: the calibration set that was read, and what was observed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from deployer.artifacts import Artifact, file_digest
from deployer.planning import Machine, Plan, ResolvedSource, Texts, make_plan
from deployer.quantizers import CalibrationSet
from deployer.recipe import override_recipe
from deployer.toolchains.specs import Host
from deployer.workflow.execution import Execution, StageOutcome
from deployer.workflow.provenance import observed, records, tuned_on

HUB = {"dataset": "some/texts", "revision": "f" * 40, "file": "a.jsonl"}


def planned(*overrides: str, texts: Texts | None = None) -> Plan:
    recipe = override_recipe(
        {"version": 1, "name": "tiny", "source": {"package": "some-model==1.0"},
         "quantization": {"method": "gguf", "scheme": "q4_0"}},
        overrides,
    )  # fmt: skip
    source = ResolvedSource("package", {"package": "some-model==1.0"}, "checkpoint")
    machine = Machine(Host("Linux", "x86_64", "3.11"), 10**10)
    return make_plan(recipe, source, machine, texts or Texts("e", "c"))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "calibration-en.txt"
    path.write_text("some words", encoding="utf-8")
    return path


def run_of(plan: Plan, text: Path) -> Execution:
    """Stands for a build that has measured its model."""
    facts = SimpleNamespace(
        plan=plan, digests=file_digest, parity={}, scoring_peak=7,
        calibration_set=CalibrationSet(text, "text", 16, 256),
        pinned=lambda name: dict(plan.stage(name).settings),  # type: ignore[union-attr]
        outcomes=[StageOutcome("fetch", 1.23, False), StageOutcome("quantize", 0.0, True)],
    )  # fmt: skip
    return cast(Execution, facts)


def weights(**info: Any) -> Artifact:
    return Artifact("quantize", "key", Path(), {"weights": {}, **info}, ())


GPTQ = ("target.engine=vllm", "quantization={method: gptq, group_size: 64}")
IMATRIX = ("quantization.imatrix=true", "quantization.scheme=q4_k_m")
MIXED = ("quantization={method: gguf, mixed: {budget_bpw: 6}}",)


@pytest.mark.parametrize(
    ("overrides", "report", "samples", "length"),
    [
        (GPTQ, {"samples": 12, "tokens": 3000}, 12, 256),  # what it took, not what was asked
        (GPTQ, {}, 16, 256),
        (IMATRIX, {}, 16, 256),
    ],
)
def test_the_calibration_set_is_told_as_the_quantizer_got_it(
    text: Path, overrides: tuple[str, ...], report: dict[str, int], samples: int, length: int
) -> None:
    told = tuned_on(run_of(planned(*overrides), text), weights(report=report))
    assert told == {
        "name": "calibration-en.txt", "sha256": file_digest(text), "samples": samples,
        "length": length,
    }  # fmt: skip


def test_a_mix_was_chosen_on_as_much_text_as_was_measured(text: Path) -> None:
    plan = planned(*MIXED)
    mixed = plan.recipe.quantization.mixed
    assert mixed is not None and not plan.recipe.quantization.imatrix
    told = tuned_on(run_of(plan, text), weights())
    assert told is not None
    assert (told["samples"], told["length"]) == (mixed.windows, mixed.WINDOW)


@pytest.mark.parametrize("overrides", [(), ("quantization={method: none}",)])
def test_a_quantizer_that_reads_no_set_is_not_said_to(
    text: Path, overrides: tuple[str, ...]
) -> None:
    assert tuned_on(run_of(planned(*overrides), text), weights()) is None


def test_a_set_of_a_hub_goes_by_the_hub_s_name(text: Path) -> None:
    hub = ("calibration={dataset: some/texts, file: a.jsonl}",)
    plan = planned(*GPTQ, *hub, texts=Texts("e", "c", HUB))
    run = run_of(plan, text)
    told = tuned_on(run, weights())
    assert told is not None and told["name"] == "some/texts a.jsonl"
    made = records(run, weights(tool="t", report={"tokens": 5}), {})
    assert made["quantization"]["calibration"] == HUB
    assert (made["quantization"]["tool_used"], made["quantization"]["tokens"]) == ("t", 5)


def test_only_stages_that_ran_have_a_time(text: Path) -> None:
    told = observed(run_of(planned(), text))
    assert told["seconds"] == {"fetch": 1.2}
    assert told["scoring_peak_bytes"] == 7
    assert told["machine"].endswith(" cores")
