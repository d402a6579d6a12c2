"""The command line: one JSON document, documented exit codes, no traceback, help for everything."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from deployer import doctor, errors, serving
from deployer.cli import cli, loadtesting, main
from deployer.cli.output import emit
from deployer.errors import (
    CommandError,
    DeployerError,
    InvalidMeasurement,
    Problem,
    QualityGateError,
    RecipeError,
)
from deployer.recipe import json_schema
from deployer.recipe.loadtest import PROFILES
from deployer.serving import ServerRecord
from deployer.toolchains import installation, provision
from deployer.workflow import building, running

RECIPE = """\
version: 1
name: tiny
source: {package: some-model==1.0}
quantization: {method: gguf, scheme: q4_0}
"""
RECORD = ServerRecord(
    name="tiny", endpoint="http://127.0.0.1:8080", supervisor_pid=1, engine_pid=2, bundle="/b",
    log="/log", state="ready", server="xllamacpp", model="tiny",
)  # fmt: skip


class Outcome:
    """What a command printed and how it ended."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def document(self) -> Any:
        """The one JSON document of standard output, strictly read."""

        def refuse(word: str) -> None:
            raise AssertionError(f"{word} is no JSON")

        return json.loads(self.out, parse_constant=refuse)


Run = Callable[..., Outcome]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def run_command(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["deployer", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        assert "Traceback" not in captured.out + captured.err
        code = ended.value.code
        return Outcome(code if isinstance(code, int) else 0, captured.out, captured.err)

    return run_command


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    return str(path)


def commands(group: click.Group = cli, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command by its words."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        if not isinstance(command, click.Group) or command.invoke_without_command:
            yield (*path, name)


def command_of(words: tuple[str, ...]) -> click.Command:
    command: click.Command = cli
    for word in words:
        assert isinstance(command, click.Group)
        command = command.commands[word]
    return command


every_command = pytest.mark.parametrize("words", list(commands()), ids=" ".join)

# Help


@every_command
def test_help_mentions_every_option(run: Run, words: tuple[str, ...]) -> None:
    outcome = run(*words, "--help")
    assert outcome.code == 0
    for parameter in command_of(words).params:
        for option in parameter.opts:
            shown = option if option.startswith("-") else option.upper()
            assert shown in outcome.out or (parameter.metavar or "") in outcome.out
        if isinstance(parameter, click.Option):
            assert parameter.help or isinstance(parameter.type, click.Choice | click.IntRange)


def test_the_profiles_are_the_recipes() -> None:
    assert loadtesting.PROFILES == PROFILES


@every_command
def test_every_command_takes_json_and_says_what_it_does(words: tuple[str, ...]) -> None:
    command = command_of(words)
    assert any("--json" in parameter.opts for parameter in command.params)
    assert command.help


def test_the_help_names_every_command_and_the_exit_codes(run: Run) -> None:
    out = run("--help").out
    for words in commands():
        assert words[0] in out
    assert "70 a bug" in " ".join(out.split())
    assert run("-h").out == out


def test_the_version_is_told(run: Run) -> None:
    from deployer import __version__

    assert __version__ in run("--version").out


def test_nothing_asked_is_answered_with_help(run: Run) -> None:
    outcome = run()
    assert outcome.code == 2
    assert "build" in outcome.err


# Usage


@pytest.mark.parametrize(
    "arguments",
    [
        ("biuld",), ("build",), ("plan", "a", "b"), ("build", "x.yaml", "--nope"),
        ("loadtest", "--users", "many"), ("loadtest", "--users", "0"), ("logs", "-n", "-1"),
        ("loadtest", "--profile", "wild"), ("completion", "tcsh"), ("stop", "x", "--all"),
        ("build", "absent.yaml"), ("plan", "absent.yaml"), ("serve", "absent"),
        ("serve", "absent.yaml"), ("logs",), ("stop",), ("loadtest",), ("serve",),
        ("loadtest", "--endpoint", "http://127.0.0.1:9", "--server", "x"),
        ("loadtest", "--endpoint", "http://127.0.0.1:9", "--set", "serve.port=1"),
        ("loadtest", "--endpoint", "http://127.0.0.1:9", "--set", "loadtest.userz=1"),
        ("loadtest", "--endpoint", "http://127.0.0.1:9", "--api-key-file", "absent"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_exits_2(run: Run, arguments: tuple[str, ...]) -> None:
    outcome = run(*arguments)
    assert outcome.code == 2
    assert outcome.out == ""
    assert "rror: " in outcome.err
    document = run(*arguments, "--json").document
    assert set(document) == {"error"}
    assert {"type", "message", "hint"} <= set(document["error"])
    assert document["error"]["type"] in ("UsageError", "RecipeError")
    assert document["error"]["message"]


# Errors


@pytest.mark.parametrize(
    "error",
    [
        *(
            kind("it failed", "try this")
            for kind in (
                DeployerError, errors.UsageError, errors.PlanError, errors.SourceError,
                errors.ToolchainError, errors.StageError, errors.StoreError, errors.ServerError,
                errors.ServerExited, errors.ReadinessTimeout, errors.LoadTestError,
                InvalidMeasurement,
            )
        ),
        RecipeError("r.yaml", [Problem("serve.prt", "unknown key", 3)]),
        CommandError("it failed", "h", argv=("a",), returncode=1, log_path=Path("/l"), tail="last"),
        QualityGateError("garbage", "h", measured={"perplexity": float("nan")}),
    ],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_every_error_is_one_document_or_a_sentence_and_a_hint(
    run: Run, recipe: str, monkeypatch: pytest.MonkeyPatch, error: DeployerError
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(building, "build", fail)
    outcome = run("build", recipe)
    assert outcome.code == error.exit_code
    assert outcome.out == ""
    assert f"error: {error.message}" in outcome.err
    assert f"hint: {error.hint}" in outcome.err
    assert "\x1b" not in outcome.err
    outcome = run("build", recipe, "--json")
    assert outcome.code == error.exit_code
    told = outcome.document["error"]
    assert (told["type"], told["message"]) == (type(error).__name__, error.message)
    if isinstance(error, CommandError):
        assert told["tail"] == "last"
    if isinstance(error, QualityGateError):
        assert told["quality"] == {"perplexity": None}


def test_the_exit_codes_are_the_documented_ones() -> None:
    tree = str(errors.__doc__)
    for name in dir(errors):
        kind = getattr(errors, name)
        if isinstance(kind, type) and issubclass(kind, DeployerError):
            line = next(line for line in tree.splitlines() if f"{name} " in line)
            assert f" {kind.exit_code} " in line, name


def test_a_log_tail_is_shown_above_the_hint(
    run: Run, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise CommandError("it failed", "read it", tail="\n".join(f"line {n}" for n in range(20)))

    monkeypatch.setattr(building, "build", fail)
    err = run("build", recipe).err
    assert "  | line 19\nhint: read it" in err
    assert "line 11\n" not in err


@pytest.mark.parametrize("as_json", [False, True])
def test_a_bug_is_owned_up_to_with_a_log(
    run: Run, recipe: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, as_json: bool
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(building, "build", fail)
    outcome = run("build", recipe, *(["--json"] if as_json else []))
    assert outcome.code == 70
    (log,) = (tmp_path / "deployer-home" / "logs").glob("bug-*.log")
    assert "ZeroDivisionError: oops" in log.read_text(encoding="utf-8")
    assert str(log) in (outcome.document["error"]["hint"] if as_json else outcome.err)


@pytest.mark.parametrize("as_json", [False, True])
def test_an_interrupt_exits_130(
    run: Run, recipe: str, monkeypatch: pytest.MonkeyPatch, as_json: bool
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(building, "build", interrupt)
    outcome = run("build", recipe, *(["--json"] if as_json else []))
    assert outcome.code == 130
    if as_json:
        assert outcome.document["error"]["type"] == "Interrupted"
    else:
        assert outcome.err.strip() == "Interrupted."


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_trouble_of_the_machine_is_no_bug(
    run: Run, recipe: str, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code), "/somewhere/log")

    monkeypatch.setattr(building, "build", fail)
    outcome = run("build", recipe)
    assert outcome.code == 1
    assert f"error: /somewhere/log: {os.strerror(code)}" in outcome.err
    assert "DEPLOYER_HOME" in outcome.err


def test_another_error_of_the_system_is_a_bug(
    run: Run, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise FileNotFoundError(errno.ENOENT, "gone", "x")

    monkeypatch.setattr(building, "build", fail)
    assert run("build", recipe).code == 70


def test_a_home_of_nobody_is_no_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEPLOYER_HOME", "~no-such-user-at-all/home")
    assert run("status", "--json").document == {"servers": [], "deployments": []}


def test_names_that_are_no_text_are_shown_somehow(run: Run) -> None:
    name = os.fsdecode(b"caf\xe9.yaml")
    assert run("plan", name).code == 2
    assert "caf" in run("plan", name, "--json").document["error"]["message"]


# Each command's document


def test_plan_prints_the_plan_and_does_nothing(run: Run, recipe: str, tmp_path: Path) -> None:
    document = run("plan", recipe, "--json").document
    assert document["name"] == "tiny"
    assert [stage["cached"] for stage in document["stages"]] == [False] * len(document["stages"])
    outcome = run("plan", recipe)
    assert outcome.code == 0
    assert "quantize to q4_0" in outcome.out
    assert f"Next: deployer build {recipe}" in outcome.out
    assert "\x1b" not in outcome.out
    assert not (tmp_path / "deployer-home" / "store").exists()


def test_plan_shows_what_another_machine_would_do(run: Run, recipe: str) -> None:
    given = ("--set", "target={engine: vllm, device: cuda}", "--set", "quantization={method: awq}",
             "--set", "source.package=some-model==1.0")  # fmt: skip
    outcome = run("plan", recipe, *given)
    assert outcome.code == 0
    assert "w4a16 is made by llm-compressor: it is maintained" in outcome.out
    assert "serve_vllm --model BUNDLE" in outcome.out
    assert "Not on this machine: target.device is cuda" in outcome.out
    document = run("plan", recipe, *given, "--json").document
    assert "no NVIDIA GPU" in document["obstacles"][0]["message"]
    assert document["serve"]["env"]["HF_HUB_OFFLINE"] == "1"
    assert run("build", recipe, *given).code == 2


def test_plan_repeats_the_overrides_in_the_next_command(run: Run, recipe: str) -> None:
    outcome = run("plan", recipe, "--set", "quantization.scheme=q8_0")
    assert f"Next: deployer build {recipe} --set quantization.scheme=q8_0" in outcome.out


def test_plan_obeys_overrides(run: Run, recipe: str) -> None:
    document = run("plan", recipe, "--set", "quantization.scheme=q8_0", "--json").document
    assert document["recipe"]["quantization"]["scheme"] == "q8_0"
    outcome = run("plan", recipe, "--set", "serve.prt=1", "--json")
    assert outcome.code == 2
    assert outcome.document["error"]["problems"][0]["field"] == "serve.prt"


def test_build_prints_its_result(run: Run, recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Result:
        def as_json(self) -> dict[str, Any]:
            return {"bundle": "/b", "cached": True}

        def describe(self) -> list[str]:
            return ["tiny: 1 MB"]

    def build(path: Path, overrides: tuple[str, ...], *_: object) -> Result:
        assert str(path) == recipe
        assert overrides == ("serve.port=1", "name=x")
        return Result()

    monkeypatch.setattr(building, "build", build)
    arguments = ("build", recipe, "--set", "serve.port=1", "--set", "name=x")
    assert run(*arguments, "--json").document == {"bundle": "/b", "cached": True}
    assert run(*arguments).out == "tiny: 1 MB\n"


@pytest.mark.parametrize("detach", [False, True])
def test_serve_prints_one_document_once_ready(
    run: Run, monkeypatch: pytest.MonkeyPatch, detach: bool
) -> None:
    def serve(*_: object, on_ready: Callable[[ServerRecord], None], **__: object) -> ServerRecord:
        on_ready(RECORD)
        return RECORD

    monkeypatch.setattr(running, "serve", serve)
    arguments = ("serve", "tiny", *(["--detach"] if detach else []))
    document = run(*arguments, "--json").document
    assert document["endpoint"] == RECORD.endpoint
    assert "curl http://127.0.0.1:8080/v1/chat/completions" in run(*arguments).out


def test_a_server_that_fails_later_adds_no_second_document(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def serve(*_: object, on_ready: Callable[[ServerRecord], None], **__: object) -> ServerRecord:
        on_ready(RECORD)
        raise errors.ServerExited("it crashed again and again", "look at its log")

    monkeypatch.setattr(running, "serve", serve)
    outcome = run("serve", "tiny", "--json")
    assert outcome.code == 1
    assert outcome.document["name"] == "tiny"
    assert "crashed again" in outcome.err


def test_status_lists_servers(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("status", "--json").document == {"servers": [], "deployments": []}
    assert "No server runs" in run("status").out
    records = [RECORD, RECORD.model_copy(update={"uptime_s": 5.0, "peak_rss_bytes": 10**9})]
    monkeypatch.setattr(serving, "status", lambda home, name=None: records)
    listed = run("status", "--json").document["servers"]
    assert listed[1]["uptime_s"] == 5.0
    table = run("status").out
    assert "1000 MB peak" in table
    assert RECORD.endpoint in table


def test_logs_and_stop_take_the_only_server(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "status", lambda home, name=None: [RECORD])
    monkeypatch.setattr(serving, "logs", lambda home, name, lines, follow: iter([name, str(lines)]))
    assert run("logs", "-n", "3").out == "tiny\n3\n"
    assert run("logs", "--json").document == {"name": "tiny", "lines": ["tiny", "50"]}
    monkeypatch.setattr(serving, "stop", lambda home, name, progress: RECORD)
    for arguments in (("stop",), ("stop", "tiny"), ("stop", "--all")):
        assert run(*arguments, "--json").document["servers"][0]["name"] == "tiny"


def test_with_two_servers_a_name_is_asked_for(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    other = RECORD.model_copy(update={"name": "other"})
    monkeypatch.setattr(serving, "status", lambda home, name=None: [RECORD, other])
    outcome = run("stop")
    assert outcome.code == 2
    assert "2 servers run: tiny, other" in outcome.err


@pytest.mark.parametrize("code", [0, 1, 3])
def test_loadtest_ends_with_the_results_code(
    run: Run, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    class Result:
        def as_json(self) -> dict[str, Any]:
            return {"requests": 5, "ttft": float("nan")}

    class Outcome:
        result, exit_code = Result(), code
        table = (("metric", "value"), [("TTFT", "5 ms")])

        def describe(self) -> list[str]:
            return ["Report: r.html"]

    def loadtest(
        endpoint: str, server: None, overrides: list[str], *_: object, **__: object
    ) -> Any:
        assert overrides == ["loadtest.users=2", "loadtest.duration=3", "loadtest.warmup=0"]
        return Outcome()

    monkeypatch.setattr(running, "loadtest", loadtest)
    arguments = ("loadtest", "--users", "2", "--duration", "3", "--set", "loadtest.warmup=0")
    outcome = run(*arguments, "--json")
    assert (outcome.code, outcome.document) == (code, {"requests": 5, "ttft": None})
    outcome = run(*arguments)
    assert outcome.code == code
    assert "Report: r.html" in outcome.out


@pytest.mark.parametrize(("verdict", "code"), [("good", 0), ("note", 0), ("bad", 1)])
def test_doctor_ends_with_its_verdict(
    run: Run, monkeypatch: pytest.MonkeyPatch, verdict: Any, code: int
) -> None:
    finding = doctor.Finding("memory", verdict, "1 GB", "buy some")
    monkeypatch.setattr(doctor, "examine", lambda home: [finding])
    outcome = run("doctor", "--json")
    assert outcome.code == code
    assert outcome.document == {"ok": code == 0, "findings": [vars(finding)]}
    assert "memory: 1 GB\n    buy some\n" in run("doctor").out


def test_toolchains_are_listed_made_and_removed(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    document = run("toolchain", "list", "--json").document
    assert document["installed"] == []
    assert "llama-cpp" in document["not_installed"]
    assert "made when needed" in run("toolchain", "list").out
    made = installation.Toolchain("llama-cpp", "k", tmp_path, {"gguf": "0.19"})
    monkeypatch.setattr(provision, "ensure", lambda name, home, progress: made)
    document = run("toolchain", "install", "llama-cpp", "--json").document
    assert document == {"name": "llama-cpp", "path": str(tmp_path), "versions": {"gguf": "0.19"}}
    assert "is ready in" in run("toolchain", "install", "llama-cpp").out
    outcome = run("toolchain", "remove", "llama-cpp", "--json")
    assert outcome.code == 1
    assert outcome.document["error"]["type"] == "ToolchainError"
    monkeypatch.setattr(installation, "remove", lambda name, home: [tmp_path])
    assert run("toolchain", "remove", "x", "--json").document == {"removed": [str(tmp_path)]}


def test_an_unknown_toolchain_is_named(run: Run) -> None:
    outcome = run("toolchain", "install", "nope", "--json")
    assert outcome.code == 1
    assert "llama-cpp" in outcome.document["error"]["hint"]


def test_schema_prints_the_schema(run: Run) -> None:
    assert run("schema").document == run("schema", "--json").document == json_schema()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(run: Run, monkeypatch: pytest.MonkeyPatch, shell: str) -> None:
    from click.shell_completion import BashComplete

    monkeypatch.setattr(BashComplete, "_check_version", staticmethod(lambda: None))
    outcome = run("completion", shell)
    assert outcome.code == 0
    assert "_DEPLOYER_COMPLETE" in outcome.out
    assert shell in outcome.out
    document = run("completion", shell, "--json").document
    assert document["shell"] == shell
    assert document["script"].strip() == outcome.out.strip()


def test_a_document_has_no_number_that_json_has_not(capsys: pytest.CaptureFixture[str]) -> None:
    emit({"a": [float("inf"), (1.5, float("nan"))], "b": {"c": -float("inf")}, "d": "é"})
    out = capsys.readouterr().out
    assert json.loads(out) == {"a": [None, [1.5, None]], "b": {"c": None}, "d": "é"}
    assert "é" in out
