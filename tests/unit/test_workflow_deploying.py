"""From a deployment's file to what its supervisor runs. Bundles and servers are fake."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from deployment_samples import server_spec
from made_up_bundle import manifest

from deployer import deployments
from deployer.artifacts import Bundle
from deployer.deployments import DeploymentSpec
from deployer.errors import RecipeError, UsageError
from deployer.home import Home
from deployer.progress import SILENT
from deployer.recipe import Serve
from deployer.serving.spec import Spec
from deployer.workflow import deploying

TEXT = """\
version: 1
name: chat
gateway: {port: 0, drain_timeout: 90}
servers:
  q4: {bundle: small, serve: {context: 512}}
  q8: {bundle: large}
routes:
  - {model: smollm2, to: {q4: 9, q8: 1}}
"""


class Fakes:
    """Stands for what finds, verifies and prepares; notes what it was asked."""

    def __init__(self) -> None:
        self.prepared: list[tuple[str, Serve, int]] = []
        self.started: list[DeploymentSpec] = []
        self.ports = iter((9001, 9001, 9002, 9003, 9004))

    def find_bundle(self, what: str | None, home: Home) -> Bundle:
        made = manifest(name=what or "newest", serve={"host": "0.0.0.0", "api_key_file": "/no"})
        return Bundle(Path("/bundles") / made.name, made)

    def prepare(self, bundle: Bundle, serve: Serve, *_: Any, reserved: int, **given: Any) -> Spec:
        self.prepared.append((given["name"], serve, reserved))
        return replace(server_spec(given["name"], next(self.ports)), memory_bytes=1000)

    def serve(self, spec: DeploymentSpec, *_: Any, **__: Any) -> None:
        self.started.append(spec)


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Fakes:
    made = Fakes()
    monkeypatch.setattr(deploying, "find_bundle", made.find_bundle)
    monkeypatch.setattr(deploying, "require_whole", lambda *_: None)
    monkeypatch.setattr(deploying, "prepare", made.prepare)
    monkeypatch.setattr(deployments, "serve", made.serve)
    return made


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "chat.yaml"
    path.write_text(TEXT, encoding="utf-8")
    return path


def served(fakes: Fakes, what: Path | str | None, home: Home, *overrides: str) -> DeploymentSpec:
    deploying.serve(str(what) if what else None, overrides, home, SILENT)
    return fakes.started[-1]


def test_every_server_is_prepared_on_the_loopback_beside_those_before_it(
    fakes: Fakes, home: Home, file: Path
) -> None:
    spec = served(fakes, file, home)
    (q4, q8) = fakes.prepared[0], fakes.prepared[-1]
    assert (q4[0], q8[0]) == ("chat.q4.1", "chat.q8.1")
    assert (q4[2], q8[2]) == (0, 1000)  # bytes that are promised already
    for _, serve, _ in fakes.prepared:
        assert (serve.host, serve.port, serve.api_key_file) == ("127.0.0.1", 0, None)
        assert serve.drain_timeout == 90
    assert (q4[1].context, q8[1].context) == (512, Serve().context)
    assert [planned.spec.port for planned in spec.servers.values()] == [9001, 9002]
    assert (spec.name, spec.generation, spec.origin.file) == ("chat", 1, str(file))


def test_a_server_with_the_same_bundle_and_settings_goes_on_running(
    fakes: Fakes, home: Home, file: Path
) -> None:
    first = served(fakes, file, home)
    file.write_text(TEXT.replace("q8: 1}", "q8: 5}").replace("512", "1024"), encoding="utf-8")
    deployment = deploying.read_deployment(file)
    kept = dict(first.servers)
    again = deploying._Resolving(deployment, first.origin, home, SILENT, kept).resolve(2)
    assert again.servers["q8"] == first.servers["q8"]
    assert again.servers["q4"].instance == "chat.q4.2"
    assert again.routes[0].to == {"q4": 9.0, "q8": 5.0}


def test_a_bad_setting_is_told_with_the_name_of_its_server(
    fakes: Fakes, home: Home, file: Path
) -> None:
    file.write_text(TEXT.replace("context: 512", "server: vllm"), encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        served(fakes, file, home)
    assert caught.value.problems[0].field.startswith("servers.q4")
    assert str(file) in caught.value.message
    assert fakes.started == []


def test_a_gateway_around_one_bundle(fakes: Fakes, home: Home) -> None:
    spec = served(fakes, "my.model-q4", home, "gateway.port=0", "serve.parallel=2")
    assert (spec.name, spec.routes[0].model) == ("my-model-q4", "my.model-q4")
    assert list(spec.servers) == ["main"]
    assert fakes.prepared[0][1].parallel == 2
    assert spec.origin.what == "my.model-q4"
    assert served(fakes, None, home, "gateway.port=0").origin.what == "newest"
    with pytest.raises(UsageError, match="would need another bundle"):
        served(fakes, "b", home, "quantization.scheme=q8_0")
