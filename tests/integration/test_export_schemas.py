"""Exported files against the schemas of their targets: Kubernetes, LeaderWorkerSet, KServe, Helm.

Kubernetes' own schemas come with kubernetes-validate. The others are no part of this project: they
are looked for in $DEPLOYER_SCHEMAS, else in shared/schemas beside the checkout. A custom resource's
schema lets unknown fields pass, and the cluster drops them; here they are errors. Rules in CEL
(x-kubernetes-validations) are not evaluated.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from export_examples import EXAMPLES, example
from jsonschema import Draft202012Validator
from jsonschema import ValidationError as SchemaError

pytestmark = pytest.mark.integration

BESIDE = Path(__file__).resolve().parents[3] / "shared" / "schemas"
SCHEMAS = Path(os.environ.get("DEPLOYER_SCHEMAS") or BESIDE)
VERSIONS = ("1.33", "1.37")
"""The first Kubernetes in which image volumes are beta, and the newest with a schema."""
OURS = {"LeaderWorkerSet", "LLMInferenceService"}
KEEP = "x-kubernetes-preserve-unknown-fields"


def schema_text(name: str) -> str:
    path = SCHEMAS / name
    if not path.exists():
        pytest.skip(f"no {name}: name its folder in DEPLOYER_SCHEMAS")
    return path.read_text(encoding="utf-8")


@cache
def custom_resource(name: str, version: str) -> Draft202012Validator:
    """The schema of a version of a custom resource, closed to unknown fields."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    definition = yaml.load(schema_text(name), Loader=loader)
    (found,) = [entry for entry in definition["spec"]["versions"] if entry["name"] == version]
    return Draft202012Validator(closed(found["schema"]["openAPIV3Schema"]))


def closed(schema: Any) -> Any:
    """The same schema, in which an object with named fields has no others.

    `metadata` is described by Kubernetes itself, so a custom resource's schema says nothing of it.
    """
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: closed(item) for key, item in schema.items()}
    if isinstance(schema.get("properties"), dict) and not schema.get(KEEP):
        made.setdefault("additionalProperties", False)
    return made


def check_core(found: dict[str, Any]) -> None:
    for version in VERSIONS:
        kubernetes_validate.validate(found, version, strict=True)


def check_group(found: dict[str, Any]) -> None:
    custom_resource("leaderworkersets.crd.yaml", "v1").validate(found)


def check_service(found: dict[str, Any]) -> None:
    custom_resource("kserve.llminferenceservices.crd.yaml", "v1alpha2").validate(found)


def check_values(found: dict[str, Any]) -> None:
    schema = json.loads(schema_text("production-stack.values.schema.json"))
    Draft202012Validator(schema).validate(found)


CHECKS: dict[str, Callable[[dict[str, Any]], None]] = {
    "LeaderWorkerSet": check_group,
    "LLMInferenceService": check_service,
}


def check(found: dict[str, Any]) -> None:
    if "servingEngineSpec" in found:
        check_values(found)
    else:
        CHECKS.get(found["kind"], check_core)(found)


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(example(name)))


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_exported_file_is_valid_for_its_target(name: str) -> None:
    found = documents(name)
    assert found
    for part in found:
        check(part)


def pods(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The pods' specifications in a workload."""
    spec = found["spec"]
    if found["kind"] == "LeaderWorkerSet":
        group = spec["leaderWorkerTemplate"]
        return [group["leaderTemplate"]["spec"], group["workerTemplate"]["spec"]]
    if found["kind"] == "LLMInferenceService":
        return [spec["template"], *([spec["worker"]] if "worker" in spec else [])]
    return [spec["template"]["spec"]]


@pytest.mark.parametrize(
    "name",
    ["kubernetes-llama-cpp.yaml", "kubernetes-vllm-pipeline.yaml", "kserve-vllm-pipeline.yaml"],
)
@pytest.mark.parametrize(
    "change",
    [
        lambda pod: pod.update(terminationGracePeriodSecond=1),
        lambda pod: pod.update(terminationGracePeriodSeconds="30"),
        lambda pod: pod["containers"][0].update(argz=[]),
        lambda pod: pod["containers"][0]["resources"].update(limit={}),
    ],
)
def test_the_schemas_refuse_what_is_misspelt(
    name: str, change: Callable[[dict[str, Any]], None]
) -> None:
    (workload,) = [found for found in documents(name) if found["kind"] in {"Deployment", *OURS}]
    broken = copy.deepcopy(workload)
    change(pods(broken)[-1])
    with pytest.raises(SchemaError):
        check(broken)


def test_the_charts_schema_accepts_a_misspelt_field_and_our_records_do_not() -> None:
    """Why production_stack has strict records of its own."""
    (found,) = documents("production-stack-vllm-tensor.yaml")
    found["servingEngineSpec"]["modelSpec"][0]["vllmConfig"]["max_model_len"] = 1
    check_values(found)
    found["servingEngineSpec"]["modelSpec"][0]["replicaCount"] = "2"
    with pytest.raises(SchemaError):
        check_values(found)


def test_a_canary_as_the_documents_tell_it_is_valid() -> None:
    """The patch of docs/kubernetes.md, put into an exported service."""
    text = (Path(__file__).parents[2] / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    (patch,) = [
        json.loads(line.split("'")[1])
        for line in text.splitlines()
        if line.startswith("kubectl patch llminferenceservice") and '"weight":1' in line
    ]
    (found,) = documents("kserve-vllm-tensor.yaml")
    found["spec"]["router"] |= patch["spec"]["router"]
    check_service(found)
