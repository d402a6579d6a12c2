"""The installed `deployer` command: quick help, plain output, scripts that shells accept."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import DEPLOYER, deployer, environment
from guard import REPOSITORY

from deployer.home import Home

pytestmark = pytest.mark.integration

HEAVY = (
    "pydantic", "rich", "httpx", "httpx2", "numpy", "gguf", "yaml", "locust", "huggingface_hub",
    "jinja2", "psutil", "filelock", "platformdirs", "uv", "deployer.workflow", "deployer.serving",
    "deployer.recipe", "deployer.toolchains",
)  # fmt: skip
MODULES = """
import json, sys
sys.argv = ["deployer", "--help"]
from deployer.cli import main
try:
    main()
except SystemExit:
    print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""


@pytest.fixture
def own(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def test_help_imports_nothing_heavy(own: Home) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", MODULES], env=environment(own), capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    loaded = set(json.loads(ran.stderr))
    assert "click" in loaded
    assert "deployer.cli" in loaded
    assert not loaded & set(HEAVY)


def test_help_makes_no_home(own: Home) -> None:
    assert deployer("--help", home=own).code == 0
    assert deployer("status", home=own).code == 0
    assert not own.root.exists()


def test_it_runs_as_a_module_too(own: Home) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "deployer", "--version"], env=environment(own), check=True,
        capture_output=True, text=True,
    )  # fmt: skip
    assert ran.stdout.startswith("deployer, version")


@pytest.mark.parametrize(
    "arguments",
    [("doctor",), ("status",), ("toolchain", "list"), ("plan", "recipes/smollm2-q4_0.yaml"),
     ("plan", "absent.yaml"), ("schema",)],
)  # fmt: skip
@pytest.mark.parametrize("lang", ["C.UTF-8", "POSIX"])
def test_no_colours_without_a_terminal(own: Home, arguments: tuple[str, ...], lang: str) -> None:
    """Nor in a locale that has only ASCII, where Python is told not to help itself."""
    env = {"LC_ALL": lang, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    ran = deployer(*arguments, home=own, env=env)
    assert ran.code in (0, 1, 2)
    assert "\x1b" not in ran.out + ran.err
    assert "a bug in deployer" not in ran.err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script_is_one(own: Home, shell: str, tmp_path: Path) -> None:
    script = deployer("completion", shell, home=own).out
    assert "_DEPLOYER_COMPLETE" in script
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed; its script was printed")
    path = tmp_path / "completion"
    path.write_text(script, encoding="utf-8")
    subprocess.run([shell, "-n", str(path)], check=True)


def test_completion_knows_the_commands(own: Home) -> None:
    env = {"_DEPLOYER_COMPLETE": "bash_complete", "COMP_WORDS": "deployer tool", "COMP_CWORD": "1"}
    assert deployer(home=own, env=env).out.strip() == "plain,toolchain"


def test_a_reader_that_goes_away_ends_it_quietly(own: Home) -> None:
    writer = subprocess.Popen(
        [str(DEPLOYER), "schema"], env=environment(own), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, cwd=REPOSITORY,
    )  # fmt: skip
    assert writer.stdout and writer.stderr
    writer.stdout.close()
    err = writer.stderr.read()
    writer.stderr.close()
    assert writer.wait(60) == 1  # as click has it
    assert err == b""
