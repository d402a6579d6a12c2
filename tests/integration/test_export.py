"""`deployer export` and `inspect` as a user runs them, with the real demo bundle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import deployer, home_beside, must
from guard import REPOSITORY

from deployer.artifacts import Bundle
from deployer.home import Home

pytestmark = pytest.mark.integration

PLACES: Mapping[str, tuple[str, ...]] = {
    "systemd": (),
    "docker": (),
    "compose": (),
    "kubernetes": ("--model", "oci://registry.example/demo:1", "--image", "registry.example/s:1"),
    "vllm-router": ("--replicas", "2"),
}


SMALL = ("--set", "serve.context=256", "--set", "serve.parallel=2")
"""Little to fill, so that measuring takes seconds."""


@pytest.fixture(scope="module")
def small(home: Home, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The demo bundle with a small context."""
    beside = home_beside(home, tmp_path_factory.mktemp("small") / "home", "store", "bundles")
    document = must("build", REPOSITORY / "recipes" / "smollm2-q4_0.yaml", *SMALL, home=beside)
    return Bundle.read(Path(document["bundle"]))


@pytest.fixture(scope="module")
def exporter(home: Home, tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A home with the shared bundles, where nothing was measured yet."""
    return home_beside(home, tmp_path_factory.mktemp("export") / "home", "store", "bundles")


@pytest.fixture(scope="module")
def measured(
    exporter: Home, small: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """The first export, which starts the server to measure it."""
    folder = tmp_path_factory.mktemp("systemd") / "unit"
    return dict(must("export", small.root, "--to", "systemd", "--output", folder, home=exporter))


def test_an_export_measures_the_server(measured: dict[str, Any], small: Bundle) -> None:
    taken = measured["footprint"]
    assert taken["measured"] is True
    assert taken["digest"] == measured["digest"] == small.manifest.digest
    assert taken["memory_bytes"] > small.manifest.weights_bytes
    assert 0 < taken["ready_seconds"] < 60
    assert taken["requests"] == small.manifest.serve["parallel"]
    folder = Path(measured["path"])
    assert sorted(path.name for path in folder.iterdir()) == sorted(measured["files"])
    assert json.loads((folder / "footprint.json").read_text()) == taken


@pytest.mark.parametrize("target", PLACES)
def test_what_was_measured_is_not_measured_again(
    target: str, measured: dict[str, Any], exporter: Home, small: Bundle, tmp_path: Path
) -> None:
    made = must(
        "export", small.root, "--to", target, "--output", tmp_path / "out", *PLACES[target],
        home=exporter,
    )  # fmt: skip
    assert made["footprint"] == measured["footprint"]
    for path in (tmp_path / "out").iterdir():
        assert str(exporter.root) not in path.read_text(), path.name
        if path.suffix in (".yaml", ".yml"):
            assert list(yaml.safe_load_all(path.read_text()))


def test_an_estimate_says_so(exporter: Home, small: Bundle, tmp_path: Path) -> None:
    made = must(
        "export", small.root, "--to", "kubernetes", "--estimate", "--output", tmp_path / "k",
        *PLACES["kubernetes"], home=exporter,
    )  # fmt: skip
    assert made["footprint"]["measured"] is False
    assert made["footprint"]["ready_seconds"] is None
    (manifests,) = (path for path in (tmp_path / "k").iterdir() if path.suffix == ".yaml")
    assert "estimate" in manifests.read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--to", "production-stack"), "llama.cpp"),
        (("--to", "kserve"), "llama.cpp"),
        (("--to", "kubernetes", "--image", "s:1", "--model", "folder"), "cannot find the bundle"),
        (("--to", "systemd", "--offline"), "--offline is for --to tar"),
        (("--to", "vllm-router"), "two servers or more"),
    ],
)
def test_what_cannot_be_exported_is_refused_and_nothing_written(
    arguments: tuple[str, ...], words: str, exporter: Home, small: Bundle, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    ran = deployer("export", small.root, *arguments, "--output", out, "--json", home=exporter)
    assert (ran.code, words in ran.error["message"]) == (2, True), ran.out
    assert ran.error["hint"]
    assert list(tmp_path.iterdir()) == []


def test_an_export_is_replaced_on_demand_and_nothing_else_is(
    exporter: Home, small: Bundle, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = ("export", small.root, "--to", "docker", "--estimate", "--output", out)
    must(*arguments, home=exporter)
    refused = deployer(*arguments, "--json", home=exporter)
    assert (refused.code, "there already" in refused.error["message"]) == (2, True)
    must(*arguments, "--force", home=exporter)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("all of it")
    refused = deployer(*arguments[:-1], mine, "--force", "--json", home=exporter)
    assert (refused.code, "no earlier export" in refused.error["message"]) == (2, True)
    assert (mine / "thesis.txt").read_text() == "all of it"


def test_a_bundle_that_was_changed_is_not_exported(
    exporter: Home, small: Bundle, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in small.root.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    with (copy / small.manifest.weights).open("r+b") as stream:
        stream.seek(-5, 2)
        stream.write(b"\x7f")
    ran = deployer(
        "export", copy, "--to", "tar", "--output", tmp_path / "x.tar", "--json", home=exporter
    )
    assert (ran.code, ran.error["type"]) == (1, "BundleError"), ran.out
    assert not (tmp_path / "x.tar").exists()
