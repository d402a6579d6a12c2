"""production-stack: which of vLLM's arguments the chart writes itself, and what it cannot do."""

from __future__ import annotations

from typing import Any

import pytest
from export_examples import parsed
from made_up_bundle import deployment
from pydantic import ValidationError

from deployer.errors import PlanError
from deployer.exporting import production_stack
from deployer.exporting.deployment import Deployment
from deployer.exporting.production_stack import VllmConfig

CLAIM = "pvc://models/demo"


def vllm(device: str = "cuda", **changes: Any) -> Deployment:
    options = {"model": CLAIM, **changes.pop("options", {})}
    return deployment("vllm", device=device, options=options, **changes)


def engine(of: Deployment) -> dict[str, Any]:
    values = parsed(production_stack.render(of)["values.yaml"])[0]
    return dict(values["servingEngineSpec"])


def model(of: Deployment) -> dict[str, Any]:
    (found,) = engine(of)["modelSpec"]
    return dict(found)


def test_a_misspelt_field_is_an_error_here() -> None:
    right = {"max_model_len": 1, "max_num_seqs": 1, "enable_prefix_caching": True,
             "enable_chunked_prefill": True, "extra_args": ()}  # fmt: skip
    assert VllmConfig(**right)  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="max_modellen"):
        VllmConfig(**right, max_modellen=1)  # type: ignore[arg-type, call-arg]


def test_an_argument_of_the_chart_is_not_given_twice() -> None:
    serve = {"context": 4096, "parallel": 16, "vllm": {"tensor_parallel": 2, "dtype": "bfloat16"}}
    config = model(vllm(serve=serve))["vllmConfig"]
    extra = config.pop("extraArgs")
    assert config == {
        "maxModelLen": 4096,
        "maxNumSeqs": 16,
        "dtype": "bfloat16",
        "tensorParallelSize": 2,
        "gpuMemoryUtilization": 0.9,
        "enablePrefixCaching": True,
        "enableChunkedPrefill": True,
    }
    by_the_chart = {
        "--model", "--host", "--port", "--max-model-len", "--max-num-seqs", "--dtype",
        "--tensor-parallel-size", "--gpu-memory-utilization", "--enable-prefix-caching",
        "--enable-chunked-prefill",
    }  # fmt: skip
    assert not by_the_chart & set(extra)
    assert extra.count("--shutdown-timeout") == 1
    assert "/bundle" not in extra
    assert extra[extra.index("--served-model-name") + 1] == "demo-w4a16"


def test_what_the_chart_would_say_otherwise_is_switched_off() -> None:
    serve = {"vllm": {"prefix_caching": False, "chunked_prefill": False}}
    config = model(vllm(serve=serve))["vllmConfig"]
    assert config["enablePrefixCaching"] is False and config["enableChunkedPrefill"] is False
    assert "dtype" not in config and "tensorParallelSize" not in config


def test_the_model_is_found_in_the_mounted_claim() -> None:
    found = model(vllm())
    assert found["modelURL"] == "/bundle"
    (volume,) = [entry for entry in found["extraVolumes"] if entry["name"] == "bundle"]
    assert volume["persistentVolumeClaim"] == {"claimName": "models", "readOnly": True}
    (mount,) = [entry for entry in found["extraVolumeMounts"] if entry["name"] == "bundle"]
    assert mount == {
        "name": "bundle", "mountPath": "/bundle", "subPath": "demo", "readOnly": True,
    }  # fmt: skip


def test_shared_memory_is_mounted_once() -> None:
    one, two = model(vllm()), model(vllm(serve={"vllm": {"tensor_parallel": 2}}))
    assert any(entry["name"] == "shm" for entry in one["extraVolumes"])
    assert "shmSize" not in one
    assert not any(entry["name"] == "shm" for entry in two["extraVolumes"])
    assert not any(entry["name"] == "shm" for entry in two["extraVolumeMounts"])
    assert two["shmSize"] == two["limitMemory"]


@pytest.mark.parametrize(
    ("asked", "stop", "drain"), [(600, 2.5, 22), (10, 2.5, 10), (600, None, 15)]
)
def test_the_drain_fits_into_the_charts_grace_period(
    asked: int, stop: float | None, drain: int
) -> None:
    of = vllm(serve={"drain_timeout": asked}, taken={"stop_seconds": stop})
    extra = model(of)["vllmConfig"]["extraArgs"]
    assert extra[extra.index("--shutdown-timeout") + 1] == str(drain)
    assert f"{drain} s to drain (the recipe: {asked} s)" in " ".join(
        production_stack.render(of)["values.yaml"].replace("#", "").split()
    )


def test_probes_replace_the_charts_own() -> None:
    found = engine(vllm(taken={"ready_seconds": 60.0}))
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert found[name]["initialDelaySeconds"] == 0
        assert found[name]["httpGet"] == {"path": "/health", "port": found["containerPort"]}
    start, alive = found["startupProbe"], found["livenessProbe"]
    assert start["periodSeconds"] * start["failureThreshold"] >= 180
    assert alive["periodSeconds"] * alive["failureThreshold"] >= 120
    assert found["containerSecurityContext"]["runAsNonRoot"] is True


def test_resources_and_replicas() -> None:
    found = model(vllm(options={"replicas": 3}, taken={"memory_bytes": 4 << 30}))
    assert found["replicaCount"] == 3
    assert (found["requestMemory"], found["limitMemory"]) == ("4096Mi", "5120Mi")
    assert (found["requestGPU"], found["requestCPU"]) == (1, 3)


def test_on_a_cpu_no_gpu_runtime_is_asked_for() -> None:
    of = vllm("cpu", options={"image": "registry:5000/team/vllm-cpu:1"})
    assert engine(of)["runtimeClassName"] == ""
    assert model(of)["requestGPU"] == 0
    assert "gpuMemoryUtilization" not in model(of)["vllmConfig"]
    assert "--model" not in model(of)["vllmConfig"]["extraArgs"]
    assert (model(of)["repository"], model(of)["tag"]) == ("registry:5000/team/vllm-cpu", "1")
    assert "runtimeClassName" not in engine(vllm())


def test_the_api_key_is_the_secrets_for_the_engine_and_the_router() -> None:
    values = parsed(production_stack.render(vllm(options={"key_secret": "keys"}))["values.yaml"])[0]
    secret = {"secretName": "keys", "secretKey": "api-key"}
    assert values["servingEngineSpec"]["vllmApiKey"] == values["routerSpec"]["vllmApiKey"] == secret
    (found,) = values["servingEngineSpec"]["modelSpec"]
    assert not any(entry["name"] == "VLLM_API_KEY" for entry in found["env"])


def test_what_the_chart_cannot_run_is_refused_with_what_can() -> None:
    cases = [
        (deployment(options={"image": "a:1"}), "production-stack runs vLLM", "kubernetes"),
        (vllm(serve={"vllm": {"pipeline_parallel": 2}}), "in one pod", "LeaderWorkerSet"),
        (vllm(options={"image": "team/vllm"}), "has no tag", "--image"),
        (vllm(options={"image": "registry:5000/vllm"}), "has no tag", "--image"),
        (vllm(options={"model": None}), "find the bundle", "--model"),
    ]
    for of, message, hint in cases:
        with pytest.raises(PlanError, match=message) as caught:
            production_stack.render(of)
        assert hint in caught.value.hint
