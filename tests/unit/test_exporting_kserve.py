"""KServe: what is left to its presets, and which arguments survive them."""

from __future__ import annotations

from typing import Any

import pytest
from export_examples import parsed
from made_up_bundle import deployment

from deployer.errors import PlanError
from deployer.exporting import kserve
from deployer.exporting.deployment import Deployment


def vllm(device: str = "cuda", **changes: Any) -> Deployment:
    options = {"model": "oci://registry.example/demo:1", **changes.pop("options", {})}
    return deployment("vllm", device=device, options=options, **changes)


def service(of: Deployment) -> dict[str, Any]:
    (text,) = kserve.render(of).values()
    return dict(parsed(text)[0])


def main(of: Deployment, part: str = "template") -> dict[str, Any]:
    (container,) = service(of)["spec"][part]["containers"]
    return dict(container)


def test_the_model_is_where_it_was_pushed() -> None:
    spec = service(vllm(options={"replicas": 2}))["spec"]
    assert spec["model"] == {"uri": "oci://registry.example/demo:1", "name": "demo-w4a16"}
    assert spec["replicas"] == 2
    assert spec["router"] == {"route": {}}


def test_the_presets_own_arguments_are_left_to_them() -> None:
    args = main(vllm())["args"]
    names = {word.split("=")[0] for word in args}
    assert not names & {"--model", "--served-model-name", "--host", "--port"}
    assert {"--max-model-len=2048", "--tensor-parallel-size=1", "--shutdown-timeout=30"} <= set(
        args
    )


def test_every_argument_is_a_word_that_a_shell_leaves_alone() -> None:
    args = main(vllm())["args"]
    assert "--model-loader-extra-config.enable_weights_track=true" in args
    assert not any(set(word) & set(" {}\"'$`\\;&|<>*?()") for word in args)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("--a", "1"), ("--a=1",)),
        (("--flag",), ("--flag",)),
        (("--a", '{"b": {"c": 1}, "d": "x"}'), ("--a.b.c=1", "--a.d=x")),
        (("--many", "x", "y"), ("--many", "x", "y")),
        (("/mnt/models", "--port", "1", "--a", "b"), ("--a=b",)),
    ],
)  # fmt: skip
def test_how_arguments_are_spelled(given: tuple[str, ...], words: tuple[str, ...]) -> None:
    assert kserve.arguments(given) == words


@pytest.mark.parametrize(
    "given",
    [("--a", "two words"), ("--a", "$(id)"), ("--a", '{"b": "8"}'), ("--a", '{"b": [1, 2]}')],
)
def test_what_a_shell_would_change_is_refused(given: tuple[str, ...]) -> None:
    with pytest.raises(PlanError, match="as it is"):
        kserve.arguments(given)


def test_probes_have_times_and_no_question_of_their_own() -> None:
    found = main(vllm(taken={"ready_seconds": 50.0}))
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert set(found[name]) == {"periodSeconds", "timeoutSeconds", "failureThreshold"}
    start, alive = found["startupProbe"], found["livenessProbe"]
    assert start["periodSeconds"] * start["failureThreshold"] >= 150
    assert alive["periodSeconds"] * alive["failureThreshold"] >= 120


def test_the_grace_period_is_longer_than_the_drain() -> None:
    of = vllm(serve={"drain_timeout": 120})
    assert service(of)["spec"]["template"]["terminationGracePeriodSeconds"] > 120


def test_one_pod_needs_no_worker_and_two_do() -> None:
    assert not {"parallelism", "worker"} & set(service(vllm())["spec"])
    of = vllm(
        serve={"vllm": {"tensor_parallel": 4, "pipeline_parallel": 2}},
        options={"key_secret": "keys"},
    )
    assert service(of)["spec"]["parallelism"] == {"tensor": 4, "pipeline": 2}
    for part in ("template", "worker"):
        assert main(of, part)["resources"]["limits"]["nvidia.com/gpu"] == "4"
        assert not any(word.startswith("--pipeline") for word in main(of, part)["args"])
    assert not any(entry["name"] == "VLLM_API_KEY" for entry in main(of, "worker")["env"])
    assert any(entry["name"] == "VLLM_API_KEY" for entry in main(of)["env"])


@pytest.mark.parametrize("model", [None, "/srv/bundle", "oci://", "pvc://a b", "http://host/x"])
def test_kserve_must_know_where_the_bundle_is(model: str | None) -> None:
    with pytest.raises(PlanError, match="where the bundle is"):
        kserve.render(vllm(options={"model": model, "image": "a:1"}))


def test_another_engine_is_refused() -> None:
    with pytest.raises(PlanError, match="starts vLLM"):
        kserve.render(deployment(options={"model": "oci://a/b:1", "image": "a:1"}))
