"""Deployments: the shipped ones are read, and every mistake in one is told with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from deployer.errors import RecipeError, UsageError
from deployer.recipe.deployment import deployment_around, is_deployment, read_deployment

REPOSITORY = Path(__file__).resolve().parents[2]
SHIPPED = sorted((REPOSITORY / "recipes" / "deployments").glob("*.yaml"))
TEXT = """\
version: 1
name: chat
gateway: {port: 0, keys: keys.json}
servers:
  q4: {bundle: smollm2-q4_0, serve: {context: 512, vllm: {eager: true}}}
  q8: {recipe: ../q8.yaml}
routes:
  - {model: smollm2, to: {q4: 9, q8: 1}}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "chat.yaml"
    path.write_text(TEXT, encoding="utf-8")
    return path


def problems(path: Path, old: str, new: str) -> list[str]:
    """What is told of the file with one piece of its text replaced."""
    assert old in TEXT
    path.write_text(TEXT.replace(old, new), encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        read_deployment(path)
    assert caught.value.hint == "docs/gateway.md explains every field."
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_shipped_deployments_are_read_and_their_recipes_are_there(path: Path) -> None:
    found = read_deployment(path)
    assert found.name == path.stem
    assert all(server.recipe and Path(server.recipe).is_file() for server in found.servers.values())


def test_they_show_a_canary_and_a_fallback() -> None:
    assert [path.stem for path in SHIPPED] == ["canary", "demo", "fallback"]
    canary, _, fallback = (read_deployment(path).routes[0] for path in SHIPPED)
    assert len(canary.to) == 2
    assert fallback.fallback and fallback.quality and fallback.objectives.ttft_p95_ms


def test_paths_are_relative_to_the_file_and_in_overrides_to_the_working_directory(
    file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    found = read_deployment(file, ["gateway.certificate=c.pem", "gateway.private_key=/k.pem"])
    assert found.gateway.keys == str(tmp_path / "keys.json")
    assert found.gateway.certificate == str(tmp_path / "here" / "c.pem")
    assert found.gateway.private_key == "/k.pem"
    assert found.servers["q4"].bundle == "smollm2-q4_0"  # a name, no path
    assert Path(str(found.servers["q8"].recipe)).resolve() == (tmp_path.parent / "q8.yaml")


def test_overrides_and_another_name(file: Path) -> None:
    found = read_deployment(file, ["gateway.port=9000", "servers.q8.serve.parallel=2"], "other")
    assert (found.name, found.gateway.port) == ("other", 9000)
    assert found.servers["q8"].overrides() == {"serve.parallel": 2}
    assert found.servers["q4"].overrides() == {"serve.context": 512, "serve.vllm.eager": True}
    with pytest.raises(UsageError, match="is not FIELD=VALUE"):
        read_deployment(file, ["gateway.port"])
    with pytest.raises(RecipeError, match=r"gateway\.prt: unknown key; did you mean port"):
        read_deployment(file, ["gateway.prt=1"])


def test_sticky_by_key_needs_keys(file: Path) -> None:
    text = TEXT.replace("q8: 1}", "q8: 1}, sticky: key")
    file.write_text(text, encoding="utf-8")
    assert read_deployment(file).routes[0].sticky == "key"
    file.write_text(text.replace(", keys: keys.json", ""), encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        read_deployment(file)
    (problem,) = caught.value.problems
    assert (problem.line, problem.field) == (8, "routes.0.sticky")
    assert "key needs gateway.keys" in problem.message


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("context: 512", "contxt: 5", "line 5: servers.q4.serve.contxt: unknown key; did you mean "
         "context?"),
        ("context: 512", "port: 8", "line 5: servers.q4: serve.port is chosen by the deployment; "
         "clients reach gateway.host and gateway.port"),
        ("recipe: ../q8.yaml", "serve: {}", "line 6: servers.q8: give one of bundle and recipe"),
        ("q8: 1", "q9: 1", "line 1: routes: smollm2 names q9, which is no server"),
        ("q4: 9, q8: 1", "q4: 0", "line 8: routes.0: to: at least one weight must be above 0"),
        ("keys: keys.json", "certificate: c.pem", "line 3: gateway: certificate and private_key "
         "belong together: give both or neither"),
        ("q8: 1}", "q8: 1}, fallback: q4", "line 8: routes.0: fallback is one of the servers of "
         "to"),
        ("name: chat", f"name: {'c' * 32}\nx: 1", "line 3: x: unknown key; known: version, name, "
         "gateway, servers, routes"),
    ],
)  # fmt: skip
def test_every_mistake_is_told_with_its_line(file: Path, old: str, new: str, told: str) -> None:
    assert problems(file, old, new) == [told]


def test_names_must_fit_the_name_of_a_process(file: Path) -> None:
    text = TEXT.replace("q8", "a" * 30).replace("name: chat", f"name: {'c' * 27}")
    file.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match="it has more than 56 characters"):
        read_deployment(file)


@pytest.mark.parametrize("expect", ["(", "[[a]"])
def test_a_question_must_be_an_expression(file: Path, expect: str) -> None:
    new = f"q8: 1}}, quality: {{questions: [{{ask: x, expect: '{expect}'}}]}}"
    (told,) = problems(file, "q8: 1}", new)
    assert told.startswith("line 8: routes.0.quality.questions.0.expect: is no regular expression")


def test_a_file_with_servers_is_a_deployment(file: Path, tmp_path: Path) -> None:
    assert is_deployment(file)
    assert not is_deployment(REPOSITORY / "recipes" / "smollm2-q4_0.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text(TEXT + "  - [", encoding="utf-8")
    assert is_deployment(broken)
    broken.write_text("name: [", encoding="utf-8")
    assert not is_deployment(broken)
    with pytest.raises(UsageError, match="there is no deployment"):
        is_deployment(tmp_path / "none.yaml")


def test_a_deployment_around_one_server() -> None:
    overrides = ["gateway.port=0", "serve.context=512"]
    found = deployment_around({"bundle": "b"}, "smollm2", "chat", overrides)
    assert (found.name, found.gateway.port) == ("chat", 0)
    assert found.servers["main"].overrides() == {"serve.context": 512}
    assert [(route.model, route.to) for route in found.routes] == [("smollm2", {"main": 1.0})]
    with pytest.raises(RecipeError, match=r"serve\.host is chosen by the deployment"):
        deployment_around({"bundle": "b"}, "smollm2", "chat", ["serve.host=0.0.0.0"])
