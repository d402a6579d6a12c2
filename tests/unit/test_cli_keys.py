"""`deployer key`: the secret is shown once, and nowhere else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from deployer.cli.keys import key
from deployer.errors import UsageError
from deployer.gateway.keys import KeyRing


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(key, [str(each) for each in arguments], catch_exceptions=True)


def lets_in(file: Path, secret: str) -> bool:
    return KeyRing(file, lambda event, /, **fields: None).find(f"Bearer {secret}") is not None


def test_the_secret_stands_alone_on_standard_output(file: Path) -> None:
    ran = run("add", "ops", "--file", file)
    assert ran.exit_code == 0
    secret = ran.stdout.removesuffix("\n")
    assert secret.startswith("dk-") and "\n" not in secret and secret not in ran.stderr
    assert lets_in(file, secret)


def test_json_has_the_secret_and_the_limits(file: Path) -> None:
    ran = run(
        "add", "ops", "--file", file, "--requests-per-minute", "60", "--tokens-per-minute",
        "1000", "--concurrent", "4", "--model", "chat", "--model", "small", "--json",
    )  # fmt: skip
    document = json.loads(ran.stdout)
    assert lets_in(file, document.pop("secret"))
    assert document == {
        "id": "ops", "models": ["chat", "small"], "requests_per_minute": 60,
        "tokens_per_minute": 1000, "concurrent": 4, "file": str(file),
    }  # fmt: skip


def test_the_list_shows_limits_but_no_digest(file: Path) -> None:
    run("add", "ops", "--file", file, "--concurrent", "4")
    run("add", "web", "--file", file, "--model", "chat")
    stored = json.loads(file.read_text(encoding="utf-8"))["keys"]
    shown, document = run("list", "--file", file), run("list", "--file", file, "--json")
    keys = json.loads(document.stdout)["keys"]
    assert [(each["id"], each["concurrent"], each["models"]) for each in keys] == [
        ("ops", 4, None), ("web", None, ["chat"]),
    ]  # fmt: skip
    assert "ops" in shown.stdout and "chat" in shown.stdout
    for each in stored:
        assert each["sha256"] not in shown.output + document.output


def test_an_empty_list_says_what_to_do(file: Path) -> None:
    run("add", "ops", "--file", file)
    run("revoke", "ops", "--file", file)
    assert "deployer key add" in run("list", "--file", file).stdout


def test_a_revoked_key_opens_nothing(file: Path) -> None:
    secret = run("add", "ops", "--file", file).stdout.strip()
    ran = run("revoke", "ops", "--file", file, "--json")
    assert json.loads(ran.stdout) == {"file": str(file), "revoked": "ops"}
    assert not lets_in(file, secret)
    assert isinstance(run("revoke", "ops", "--file", file).exception, UsageError)


def test_a_file_that_others_can_read_is_warned_of(file: Path) -> None:
    run("add", "ops", "--file", file)
    file.chmod(0o644)
    assert "chmod 600" in run("list", "--file", file).stderr


def test_wrong_usage(file: Path, tmp_path: Path) -> None:
    assert run("add", "ops").exit_code == 2
    assert run("add", "ops", "--file", file, "--concurrent", "0").exit_code == 2
    assert isinstance(run("add", "a b", "--file", file).exception, UsageError)
    assert isinstance(run("list", "--file", file).exception, UsageError)
    missing = tmp_path / "missing" / "keys.json"
    assert isinstance(run("add", "ops", "--file", missing).exception, UsageError)
    assert not file.exists()
