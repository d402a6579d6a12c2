"""Figures of an exported file: what is measured, what is estimated, and that each says so."""

from __future__ import annotations

import pytest
from made_up_bundle import MIB, deployment

from deployer.exporting import sizing
from deployer.exporting.sizing import Figure

FROM_MEASUREMENT = (
    sizing.memory_request, sizing.memory_limit, sizing.startup_seconds, sizing.stop_seconds,
    sizing.startup_failures, sizing.grace_seconds,
)  # fmt: skip
UNMEASURED = ("an estimate", "no start was measured", "not measured")


@pytest.mark.parametrize("figure", FROM_MEASUREMENT)
def test_a_figure_says_whether_it_was_measured(figure: object) -> None:
    measured: Figure = figure(deployment())  # type: ignore[operator]
    guessed: Figure = figure(deployment(measured=False))  # type: ignore[operator]
    assert "measured" in measured.why
    assert not any(words in measured.why for words in UNMEASURED)
    assert any(words in guessed.why for words in UNMEASURED)


def test_memory_is_rounded_up_to_whole_mebibytes() -> None:
    assert sizing.memory_request(deployment(taken={"memory_bytes": 5 * MIB + 1})).value == 6 * MIB
    assert sizing.memory_request(deployment(taken={"memory_bytes": 5 * MIB})).value == 5 * MIB


@pytest.mark.parametrize(
    ("measured", "memory", "limit", "told"),
    [
        (True, 700 * MIB, 956 * MIB, "256 MiB to spare"),
        (True, 8000 * MIB, 10000 * MIB, "25% to spare"),
        (False, 8000 * MIB, 12000 * MIB, "50% to spare"),
    ],
)
def test_the_limit_leaves_a_margin_that_is_told(
    measured: bool, memory: int, limit: int, told: str
) -> None:
    made = deployment(measured=measured, taken={"memory_bytes": memory})
    assert sizing.memory_limit(made).value == limit
    assert told in sizing.memory_limit(made).why


def test_the_prompt_cache_fits_between_the_peak_and_the_limit() -> None:
    made = deployment(taken={"memory_bytes": 700 * MIB})
    assert sizing.prompt_cache(made).value == 128 * MIB


def test_a_start_may_take_three_times_the_measured_one_and_never_less_than_a_minute() -> None:
    assert sizing.startup_seconds(deployment(taken={"ready_seconds": 41.2})).value == 124
    short = sizing.startup_seconds(deployment(taken={"ready_seconds": 2.4}))
    assert (short.value, "at least 60 s" in short.why) == (60, True)


def test_a_model_that_is_compiled_may_start_later_than_it_was_measured() -> None:
    """The measured start may have found it compiled; a new machine has not."""
    compiled = deployment("vllm", taken={"ready_seconds": 97.0})
    assert sizing.startup_seconds(compiled).value == 600
    assert "97.0 s measured" in sizing.startup_seconds(compiled).why
    slow = deployment("vllm", taken={"ready_seconds": 300.0})
    assert sizing.startup_seconds(slow).value == 900
    eager = deployment("vllm", serve={"vllm": {"eager": True}}, taken={"ready_seconds": 48.0})
    assert sizing.startup_seconds(eager).value == 144


def test_an_unmeasured_start_may_take_what_the_recipe_says() -> None:
    made = deployment(measured=False, serve={"ready_timeout": 900})
    assert sizing.startup_seconds(made).value == 900
    assert "serve.ready_timeout" in sizing.startup_seconds(made).why


def test_probes_cover_the_whole_start() -> None:
    for ready in (0.1, 20.1, 33.4, 400.0):
        made = deployment(taken={"ready_seconds": ready})
        covered = sizing.startup_failures(made).value * sizing.PROBE_SECONDS
        assert covered >= sizing.startup_seconds(made).value


@pytest.mark.parametrize("stop", [None, 0.0, 0.3, 12.0])
def test_the_grace_period_is_longer_than_the_drain(stop: float | None) -> None:
    for drain in (0, 1, 30, 900):
        made = deployment(serve={"drain_timeout": drain}, taken={"stop_seconds": stop})
        for before in (0, 5):
            grace = sizing.grace_seconds(made, before).value
            assert grace > before + drain + (stop or 0)


def test_processors_are_the_threads_or_what_feeds_the_gpus() -> None:
    assert sizing.cpus(deployment(taken={"threads": 6})).value == 6
    gpus = deployment("vllm", device="cuda", serve={"vllm": {"tensor_parallel": 4}})
    assert sizing.cpus(gpus).value == 6
    assert "not measured" in sizing.cpus(gpus).why
