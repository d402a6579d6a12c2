"""Kubernetes: what the objects say, for one pod a replica and for a group of pods."""

from __future__ import annotations

from typing import Any

import pytest
from export_examples import parsed
from made_up_bundle import deployment

from deployer.errors import PlanError
from deployer.exporting import kubernetes
from deployer.exporting.deployment import Deployment

OCI = "oci://registry.example/demo:1"
LLAMA = {"image": "team/llama:1", "model": OCI}
GROUP = {"tensor_parallel": 2, "pipeline_parallel": 2}
Objects = dict[str, dict[str, Any]]


def rendered(of: Deployment) -> str:
    (text,) = kubernetes.render(of).values()
    return text


def objects(of: Deployment) -> Objects:
    """The objects by their kind."""
    return {found["kind"]: found for found in parsed(rendered(of))}


def llama(**changes: Any) -> Deployment:
    options = {**LLAMA, **changes.pop("options", {})}
    return deployment(options=options, **changes)


def vllm(device: str = "cuda", **changes: Any) -> Deployment:
    options = {"model": OCI, **changes.pop("options", {})}
    return deployment("vllm", device=device, options=options, **changes)


def pod(found: Objects) -> dict[str, Any]:
    spec: dict[str, Any] = found["Deployment"]["spec"]["template"]["spec"]
    return spec


def container(of: Deployment) -> dict[str, Any]:
    (made,) = pod(objects(of))["containers"]
    return dict(made)


def group(of: Deployment) -> tuple[dict[str, Any], dict[str, Any]]:
    """The pods of the leader and of a worker."""
    template = objects(of)["LeaderWorkerSet"]["spec"]["leaderWorkerTemplate"]
    return template["leaderTemplate"]["spec"], template["workerTemplate"]["spec"]


def test_a_bundle_becomes_these_objects() -> None:
    kinds = ["ServiceAccount", "Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy"]
    assert list(objects(llama())) == kinds
    assert list(objects(llama(options={"namespace": "chat"}))) == ["Namespace", *kinds]


def test_a_namespace_is_that_of_every_object() -> None:
    found = objects(llama(options={"namespace": "chat"}))
    assert found.pop("Namespace")["metadata"]["name"] == "chat"
    assert {made["metadata"]["namespace"] for made in found.values()} == {"chat"}


def test_services_and_policies_select_the_pods() -> None:
    found = objects(llama())
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    selectors = [
        found["Deployment"]["spec"]["selector"]["matchLabels"],
        found["Service"]["spec"]["selector"],
        found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        found["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
    ]
    assert all(selector.items() <= labels.items() for selector in selectors)
    version = "app.kubernetes.io/version"
    assert version in labels and version not in selectors[0]  # else no update could keep it


def test_a_name_that_begins_with_a_digit_is_given_a_letter() -> None:
    found = objects(llama(name="7b-chat"))
    assert found["Service"]["metadata"]["name"] == "model-7b-chat"
    assert list(kubernetes.render(llama(name="7b-chat"))) == ["model-7b-chat.yaml"]


def test_the_three_probes_ask_three_things() -> None:
    made = container(llama(taken={"ready_seconds": 40.0}))
    start, ready, alive = (made[f"{name}Probe"] for name in ("startup", "readiness", "liveness"))
    assert start["httpGet"] == ready["httpGet"] == {"path": "/health", "port": "http"}
    assert start["failureThreshold"] * start["periodSeconds"] >= 3 * 40
    assert ready["failureThreshold"] * ready["periodSeconds"] <= 15
    assert "httpGet" not in alive  # a busy server may answer late, and must live
    assert alive["failureThreshold"] * alive["periodSeconds"] >= 120


@pytest.mark.parametrize("drain", [0, 5, 30, 600])
@pytest.mark.parametrize("made", [llama, vllm])
def test_a_pod_has_time_to_drain_before_it_is_killed(made: Any, drain: int) -> None:
    of = made(serve={"drain_timeout": drain}, taken={"stop_seconds": 2.5})
    found = pod(objects(of))
    sleep = found["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert sleep >= 5
    assert found["terminationGracePeriodSeconds"] >= 5 + drain + 2.5


def test_a_server_that_does_not_drain_itself_gets_sigterm_after_the_drain() -> None:
    def sleep(of: Deployment) -> int:
        return int(container(of)["lifecycle"]["preStop"]["sleep"]["seconds"])

    assert sleep(llama(serve={"drain_timeout": 30})) == 35
    assert sleep(vllm(serve={"drain_timeout": 30})) == 5
    assert sleep(vllm(serve={"drain_timeout": 30}, options={"release": "0.17.0"})) == 35


def test_resources_are_the_footprints() -> None:
    made = container(llama(taken={"memory_bytes": 3 << 30, "threads": 4}))
    assert made["resources"] == {
        "requests": {"cpu": "4", "memory": "3072Mi"},
        "limits": {"memory": "3840Mi"},
    }
    gpus = container(vllm(serve={"vllm": {"tensor_parallel": 2}}))["resources"]
    assert gpus["limits"]["nvidia.com/gpu"] == gpus["requests"]["nvidia.com/gpu"] == "2"


@pytest.mark.parametrize("measured", [True, False])
def test_every_figure_says_where_it_comes_from(measured: bool) -> None:
    of = llama(measured=measured)
    told = objects(of)["Deployment"]["metadata"]["annotations"]
    text = rendered(of)
    assert told["deployer/bundle-digest"] == of.manifest.digest
    assert told["deployer/figures"] == of.footprint.origin
    assert f"# figures: {of.footprint.origin}" in text
    for name in ("memory-request", "memory-limit", "startup-failures", "grace-period"):
        doubt = "estimate" in told[f"deployer/{name}"] or "not measured" in told[f"deployer/{name}"]
        assert (doubt or "no start was measured" in told[f"deployer/{name}"]) is not measured
    comments = [line.strip() for line in text.splitlines() if line.strip().startswith("#")]
    assert any("the peak measured with 8 requests" in line for line in comments) is measured


def test_another_bundle_of_the_same_name_restarts_the_pods() -> None:
    one, other = objects(llama()), objects(llama(tools={"gguf": "other"}))
    templates = [found["Deployment"]["spec"]["template"]["metadata"] for found in (one, other)]
    assert templates[0] != templates[1]
    assert one["Deployment"]["spec"]["selector"] == other["Deployment"]["spec"]["selector"]


def test_the_pod_may_do_little() -> None:
    found = pod(objects(llama()))
    (made,) = found["containers"]
    assert found["securityContext"]["runAsNonRoot"] and found["securityContext"]["runAsUser"] > 0
    assert found["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert found["automountServiceAccountToken"] is False
    assert found["enableServiceLinks"] is False  # VLLM_PORT would change vLLM's settings
    assert made["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    writable = {m["mountPath"] for m in made["volumeMounts"] if not m.get("readOnly")}
    assert writable == {"/tmp"}


@pytest.mark.parametrize(("made", "variable"), [(llama, "LLAMA_API_KEY"), (vllm, "VLLM_API_KEY")])
def test_the_api_key_comes_from_a_secret_and_stands_in_no_argument(
    made: Any, variable: str
) -> None:
    of = made(options={"key_secret": "chat-keys"})
    found = container(of)
    (key,) = [entry for entry in found["env"] if entry["name"] == variable]
    assert key["valueFrom"]["secretKeyRef"] == {"name": "chat-keys", "key": "api-key"}
    assert not any("key" in word for word in found["args"])
    assert "kubectl create secret generic chat-keys --from-file=api-key=FILE" in rendered(of)


@pytest.mark.parametrize(
    ("made", "secret", "closed"),
    [(llama, None, True), (llama, "keys", False), (vllm, None, True), (vllm, "keys", True)],
)
def test_who_may_connect(made: Any, secret: str | None, closed: bool) -> None:
    """vLLM's key leaves /metrics, /tokenize and others open, llama.cpp's only /health."""
    of = made(options={"key_secret": secret})
    policy = objects(of)["NetworkPolicy"]["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    (clients,) = policy["ingress"]
    assert clients["ports"] == [{"protocol": "TCP", "port": "http"}]
    assert clients.get("from") == ([{"podSelector": {}}] if closed else None)
    assert policy["egress"] == []
    assert ("only pods of this namespace may connect" in " ".join(rendered(of).split())) is closed


def test_the_server_listens_on_all_addresses_of_the_pod() -> None:
    args = container(llama(options={"port": 9000}))["args"]
    assert args[args.index("--host") + 1] == "0.0.0.0"
    assert args[args.index("--port") + 1] == "9000"
    service = objects(llama(options={"port": 9000}))["Service"]["spec"]["ports"]
    assert service == [{"name": "http", "port": 9000, "targetPort": "http"}]


def test_llama_cpp_keeps_old_prompts_within_the_limit() -> None:
    made = container(llama(taken={"memory_bytes": 700 << 20}))
    assert made["args"][-2:] == ["--cache-ram", "128"]
    ours = llama(serve={"extra_args": ("--cache-ram", "7")})
    assert container(ours)["args"].count("--cache-ram") == 1


def test_nothing_in_an_argument_is_taken_for_a_variable() -> None:
    made = container(llama(serve={"extra_args": ("--prefix", "$(HOME) $HOME")}))
    assert "$$(HOME) $HOME" in made["args"]


def test_a_llama_cpp_image_starts_its_own_program() -> None:
    assert "command" not in container(llama())
    assert container(vllm())["command"] == ["vllm", "serve"]
    assert container(vllm())["args"][0] == "/bundle/models"


def test_replicas_spread_over_the_nodes() -> None:
    assert "topologySpreadConstraints" not in pod(objects(llama()))
    (spread,) = pod(objects(llama(options={"replicas": 3})))["topologySpreadConstraints"]
    assert spread["topologyKey"] == "kubernetes.io/hostname"
    update = objects(llama())["Deployment"]["spec"]["strategy"]["rollingUpdate"]
    assert update == {"maxUnavailable": 0, "maxSurge": 1}


def test_a_model_over_several_machines_becomes_groups_of_pods() -> None:
    of = vllm(serve={"vllm": GROUP}, options={"replicas": 2})
    found = objects(of)
    assert "Deployment" not in found
    spec = found["LeaderWorkerSet"]["spec"]
    assert (spec["replicas"], spec["leaderWorkerTemplate"]["size"]) == (2, 2)
    assert found["Service"]["spec"]["selector"]["deployer/role"] == "leader"
    for made in group(of):
        (box,) = made["containers"]
        assert box["resources"]["limits"]["nvidia.com/gpu"] == "2"
        address = next(entry for entry in box["env"] if entry["name"] == "VLLM_HOST_IP")
        assert address["valueFrom"]["fieldRef"]["fieldPath"] == "status.podIP"


def test_the_pods_of_a_group_find_each_other() -> None:
    of = vllm(serve={"vllm": GROUP})
    for made in group(of):
        words = made["containers"][0]["args"]
        assert words[words.index("--nnodes") + 1] == "$(LWS_GROUP_SIZE)"
        assert words[words.index("--node-rank") + 1] == "$(LWS_WORKER_INDEX)"
        assert words[words.index("--master-addr") + 1] == "$(LWS_LEADER_ADDRESS)"
    policy = objects(of)["NetworkPolicy"]["spec"]
    ours = [{"podSelector": policy["podSelector"]}]
    assert {"from": ours} in policy["ingress"] and {"to": ours} in policy["egress"]


def test_a_worker_of_a_group_serves_nobody_and_outlives_the_leader() -> None:
    leader, worker = group(vllm(serve={"vllm": GROUP}, options={"key_secret": "keys"}))
    (box,) = worker["containers"]
    assert "--headless" in box["args"] and "--headless" not in leader["containers"][0]["args"]
    assert not {"--host", "--port"} & set(box["args"])
    assert not {"ports", "startupProbe", "readinessProbe", "livenessProbe"} & set(box)
    assert not any(entry["name"] == "VLLM_API_KEY" for entry in box["env"])
    assert box["lifecycle"]["preStop"]["sleep"]["seconds"] == 35
    assert worker["terminationGracePeriodSeconds"] > 35


def test_what_cannot_be_is_refused_with_a_hint() -> None:
    cases = [
        (deployment(options={"model": OCI}), "no public image"),
        (vllm(options={"model": None}), "find the bundle"),
        (vllm(serve={"vllm": GROUP}, options={"release": "0.11.2"}), "several machines"),
        (llama(options={"namespace": "Chat"}), "namespace"),
        (llama(options={"key_secret": "my_keys"}), "secret"),
        (deployment("transformers", options=LLAMA), "transformers"),
    ]
    for of, message in cases:
        with pytest.raises(PlanError, match=message) as caught:
            kubernetes.render(of)
        assert caught.value.hint
