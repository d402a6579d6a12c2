"""`exporting/compose.py`: the Compose file, its figures and their origins, and what is refused."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from made_up_bundle import deployment
from pydantic import ValidationError

from deployer.errors import PlanError
from deployer.exporting import compose, docker, sizing
from deployer.exporting.container import USER, container
from deployer.exporting.deployment import Deployment

TIME = re.compile(r"^([0-9]+)s$")


def service(given: Deployment) -> dict[str, Any]:
    """The one service of the rendered file."""
    text = compose.render(given)["compose.yaml"]
    found: dict[str, Any] = yaml.safe_load(text)["services"]["server"]
    return found


def comment_above(text: str, key: str) -> str:
    """The comment lines right above the line that sets `key`."""
    lines = text.splitlines()
    (at,) = [number for number, line in enumerate(lines) if line.strip().startswith(f"{key}:")]
    first = at
    while lines[first - 1].strip().startswith("#"):
        first -= 1
    return " ".join(line.strip().lstrip("# ") for line in lines[first:at])


def test_the_server_gets_the_bundle_and_the_port_of_this_machine_alone() -> None:
    given = deployment()
    made = service(given)
    assert made["ports"] == ["127.0.0.1:8080:8080"]
    (mount,) = made["volumes"]
    # What `--to tar` unpacks to, so that both can be copied side by side.
    folder = f"./{given.manifest.name}-{given.manifest.digest[:12]}"
    assert (mount["source"], mount["target"], mount["read_only"]) == (folder, "/models", True)
    assert mount["bind"] == {"create_host_path": False}
    assert made["command"][:2] == ["--model", "/models/model.gguf"]
    assert made["command"] == list(container(given).command)


def test_our_image_is_built_from_files_that_come_along() -> None:
    given = deployment()
    files = compose.render(given)
    made = service(given)
    assert made["build"] == {"context": ".", "target": "server"}
    assert "AS server" in files["Dockerfile"]
    built = docker.render(given)
    assert {name: files[name] for name in built if name != "README.md"} == {
        name: text for name, text in built.items() if name != "README.md"
    }


def test_it_may_do_little() -> None:
    made = service(deployment())
    assert made["user"] == f"{USER}:{USER}"
    assert made["read_only"] is True
    assert made["cap_drop"] == ["ALL"]
    assert made["security_opt"] == ["no-new-privileges:true"]
    assert made["tmpfs"] == ["/tmp:mode=1777"]


def test_figures_come_from_the_footprint_and_say_so() -> None:
    given = deployment(taken={"memory_bytes": 3 << 30, "ready_seconds": 50.0, "stop_seconds": 2.0})
    made, text = service(given), compose.render(given)["compose.yaml"]
    assert made["mem_limit"] == f"{sizing.memory_limit(given).value // sizing.MIB}m"
    assert made["memswap_limit"] == made["mem_limit"]
    assert made["healthcheck"]["start_period"] == "150s"
    assert made["cpus"] == float(given.footprint.threads)
    assert sizing.memory_limit(given).why in comment_above(text, "mem_limit")
    assert comment_above(text, "start_period") == sizing.startup_seconds(given).why
    assert comment_above(text, "stop_grace_period") == sizing.grace_seconds(given).why
    assert comment_above(text, "cpus") == sizing.cpus(given).why
    assert given.footprint.machine in text


def test_an_estimate_is_called_one() -> None:
    text = compose.render(deployment(measured=False))["compose.yaml"]
    assert "estimate" in comment_above(text, "mem_limit")
    assert "estimate" in text.split("services:")[0]


def test_it_is_given_longer_to_end_than_requests_are_given_to_finish() -> None:
    made = service(deployment(serve={"drain_timeout": 90}))
    match = TIME.match(made["stop_grace_period"])
    assert match is not None
    assert int(match[1]) > 90
    assert made["stop_signal"] == "SIGTERM"


def test_keys_are_a_secret_and_never_in_the_file() -> None:
    given = deployment(options={"key_secret": "chat-keys", "host": "0.0.0.0"})
    whole = yaml.safe_load(compose.render(given)["compose.yaml"])
    assert whole["secrets"] == {"chat-keys": {"file": "./chat-keys"}}
    made = whole["services"]["server"]
    assert made["secrets"] == ["chat-keys"]
    at = made["command"].index("--api-key-file")
    assert made["command"][at + 1] == "/run/secrets/chat-keys"
    assert made["ports"] == ["0.0.0.0:8080:8080"]
    assert "Bearer $(head -n 1 chat-keys)" in compose.render(given)["README.md"]


def test_compose_replaces_no_variable_in_what_the_server_gets() -> None:
    given = deployment("vllm", device="cuda", options={"key_secret": "chat-keys"})
    made = service(given)
    assert "$$(cat /run/secrets/chat-keys)" in made["entrypoint"][2]
    for word in (*made["entrypoint"], *made["command"], *made["environment"].values()):
        assert "$" not in word.replace("$$", "")
    literal = service(deployment(serve={"extra_args": ("--note", "$HOME")}))
    assert literal["command"][-1] == "$$HOME"


def test_gpus_are_reserved_and_shared_memory_is_enough_for_several() -> None:
    made = service(deployment("vllm", device="cuda", serve={"vllm": {"tensor_parallel": 4}}))
    (device,) = made["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 4, "capabilities": ["gpu"]}
    assert made["shm_size"] == "8g"
    assert made["tmpfs"] == ["/tmp:mode=1777,exec"]
    assert made["image"].startswith("vllm/vllm-openai:v")
    assert "build" not in made
    assert "deploy" not in service(deployment())


def test_another_image_starts_its_own_program_and_has_its_own_health_check() -> None:
    made = service(deployment(options={"image": "llama.cpp:server"}))
    assert made["image"] == "llama.cpp:server"
    assert not {"entrypoint", "build", "healthcheck"} & set(made)


@pytest.mark.parametrize(
    ("model", "source"),
    [("/srv/bundle", "/srv/bundle"), ("../bundle", "../bundle"), ("bundle", "./bundle"),
     ("/srv/$x", "/srv/$$x")],
)  # fmt: skip
def test_the_bundle_may_lie_elsewhere(model: str, source: str) -> None:
    assert service(deployment(options={"model": model}))["volumes"][0]["source"] == source


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({"replicas": 2}, "runs one server", "vllm-router"),
        ({"model": "oci://registry.example/m:1"}, "from a folder", "--model"),
        ({"host": "0.0.0.0"}, "answer everybody", "--key-secret"),
    ],
)
def test_what_cannot_be_is_refused_with_what_to_do(
    options: dict[str, Any], message: str, hint: str
) -> None:
    with pytest.raises(PlanError, match=re.escape(message)) as refused:
        compose.render(deployment(options=options))
    assert hint in refused.value.hint


def test_an_ipv6_address_is_published_in_brackets() -> None:
    given = deployment(options={"host": "::1"})
    assert service(given)["ports"] == ["[::1]:8080:8080"]
    assert "curl http://[::1]:8080/v1" in compose.render(given)["README.md"]


@pytest.mark.parametrize(
    ("engine", "changes"),
    [
        ("llama.cpp", {}),
        ("llama.cpp", {"options": {"key_secret": "chat-keys", "host": "0.0.0.0"}}),
        ("llama.cpp", {"options": {"image": "llama.cpp:server"}, "measured": False}),
        ("vllm", {"device": "cuda", "serve": {"vllm": {"tensor_parallel": 2}}}),
        ("vllm", {"device": "cuda", "options": {"key_secret": "chat-keys"}}),
    ],
)
def test_a_parser_of_the_compose_specification_takes_it(
    engine: str, changes: dict[str, Any]
) -> None:
    """Another's parser, which refuses unknown keys and values without their unit."""
    parser = pytest.importorskip("compose_spec", reason="a development dependency").PyCompose
    text = compose.render(deployment(engine, **changes))["compose.yaml"]
    parser.from_yaml(text).validate()
    with pytest.raises(ValueError, match="mem_limt"):
        parser.from_yaml(text.replace("mem_limit:", "mem_limt:"))


def test_a_misspelt_field_is_an_error() -> None:
    made = compose.Compose.model_validate({"services": {}}, strict=False)
    assert made.secrets is None
    with pytest.raises(ValidationError, match="mem_limt"):
        compose.Service.model_validate({"mem_limt": "1g"})
    with pytest.raises(ValidationError, match="services"):
        compose.Compose.model_validate({"service": {}})
