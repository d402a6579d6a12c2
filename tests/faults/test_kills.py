"""SIGKILL at every step of publishing anything: the old or the new, never a mixture.

The kills are counted by what was being published; DEPLOYER_MEASURED names a document for them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import bundle_files
import pytest
from kill_points import Subject, cut_everywhere, kill_everywhere
from measured import record_parts
from model_files import F16, Q4_0, Tensor, gguf
from stage_doubles import FakeContext, scored

from deployer import quality
from deployer.artifacts import Bundle, file_digest
from deployer.deployments import DeploymentFolder, DeploymentRecord, DeploymentSpec, Origin
from deployer.durable import write_atomically
from deployer.gateway.routing import Table, read_table
from deployer.home import Home
from deployer.memo import DigestMemo
from deployer.progress import SILENT
from deployer.recipe.deployment import Gateway, Route
from deployer.serving.state import ServerFolder, ServerRecord
from deployer.shipping import oci, tar
from deployer.store import Store
from deployer.toolchains import environment, provision
from deployer.verification import Check, Examined
from deployer.workflow import building, execution, importing

pytestmark = pytest.mark.faults
KEY, OLD = "ab" * 32, "cd" * 32
CUTS = (1, 7, 40, 64, 100, 180, 300, 512, 1000, 1500, 3000, 6000)
WANTED = 200


@pytest.fixture(autouse=True)
def _no_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a killed process wrote is not lost; only a machine without power needs the disk."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="module")
def points() -> Iterator[dict[str, int]]:
    """Kills by what was being published; counted at the end of the module."""
    counted: dict[str, int] = {}
    yield counted
    record_parts("kill_points", counted)


def tried(points: dict[str, int], name: str, subject: Subject, folder: Path) -> int:
    """Kill at every step and in the middle of writes; gives how often."""
    points[name] = kill_everywhere(subject, folder) + cut_everywhere(subject, folder, CUTS)
    return points[name]


# The store


def fill(word: str) -> Callable[[Path], Mapping[str, Any]]:
    def build(folder: Path) -> Mapping[str, Any]:
        for number in range(8):
            (folder / f"{number}.bin").write_bytes(f"{word} {number}".encode() * 50)
        return {"word": word}

    return build


def whole(store: Store, key: str, word: str) -> bool:
    """Whether an artifact is there; what is there must be right in every byte."""
    artifact = store.find("quantize", key)
    if artifact is None:
        return False
    assert artifact.info == {"word": word}
    assert {path.name for path in artifact.root.iterdir()} == {f"{n}.bin" for n in range(8)}
    for entry in artifact.files:
        number = entry.path.removesuffix(".bin")
        assert (artifact.root / entry.path).read_bytes() == f"{word} {number}".encode() * 50
        assert file_digest(artifact.root / entry.path) == entry.sha256
    return True


def in_store(damaged: bool) -> Subject:
    def prepare(root: Path) -> None:
        store = Store(root)
        store.get_or_build("quantize", OLD, fill("old"), SILENT)
        if damaged:
            artifact, _ = store.get_or_build("quantize", KEY, fill("new"), SILENT)
            path = artifact.root / "3.bin"
            path.chmod(0o644)
            path.write_bytes(b"N" + path.read_bytes()[1:])

    def look(root: Path) -> None:
        assert whole(Store(root), OLD, "old")
        whole(Store(root), KEY, "new")

    def done(root: Path) -> None:
        assert whole(Store(root), OLD, "old")
        assert whole(Store(root), KEY, "new")
        assert not list((root / ".tmp").iterdir())
        assert not list((root / "quantize").glob(".*"))

    return Subject(
        prepare, lambda root: Store(root).get_or_build("quantize", KEY, fill("new"), SILENT),
        look, done,
    )  # fmt: skip


@pytest.mark.parametrize("damaged", [False, True], ids=["fresh", "damaged"])
def test_an_artifact(tmp_path: Path, points: dict[str, int], damaged: bool) -> None:
    name = f"store, {'over a damaged artifact' if damaged else 'a new artifact'}"
    assert tried(points, name, in_store(damaged), tmp_path) > 30


# A build, from its source to its bundle

SOURCE = gguf(tensors=[Tensor("a", (64, 3), F16)])
SMALLER = gguf(tensors=[Tensor("a", (64, 3), Q4_0)])
RECIPE = """\
version: 1
name: tiny
source: {gguf: model.gguf}
quantization: {method: gguf, scheme: q4_0}
"""


def quantize(request: Mapping[str, Any]) -> dict[str, Any]:
    Path(request["out"]).write_bytes(SMALLER)
    return {"substitutions": []}


def score(request: Mapping[str, Any]) -> dict[str, Any]:
    return scored(request, 11.0 if Path(request["model"]).read_bytes() == SMALLER else 10.0)


def bundles_of(home: Home) -> list[Bundle]:
    """The bundles that can be seen; each must pass every check."""
    store = Store(home.bundles)
    seen = []
    for path in sorted(home.bundles.glob("*/*.json")):
        artifact = store.find(path.parent.name, path.stem)
        assert artifact is not None, f"{path} is a record of nothing"
        check = Check(
            DigestMemo(home.root / "m"), Examined(home.root / "e"),
            render=lambda _template, _must: None, full=True,
        )  # fmt: skip
        faults = check(artifact.root).faults
        assert not faults, faults
        seen.append(Bundle.read(artifact.root))
    return seen


def nothing_half_made(home: Home) -> None:
    assert not list(home.root.glob("*/.tmp/*"))
    assert not list(home.root.glob("store/*/.*.json.*"))


def test_a_build(tmp_path: Path, points: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The workers' answers come from a table; all that is written is deployer's own doing."""
    monkeypatch.setattr(quality.interval, "__defaults__", (20,))
    answers = {"quantize_gguf": quantize, "score_llama_cpp": score}
    monkeypatch.setattr(execution, "StageContext", lambda *_: FakeContext(tmp_path / "w", answers))
    (tmp_path / "model.gguf").write_bytes(SOURCE)
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(RECIPE, encoding="utf-8")

    def build(root: Path, *overrides: str) -> None:
        building.build(recipe, overrides, Home(root), SILENT)

    def done(root: Path) -> None:
        assert len(bundles_of(Home(root))) == 2
        nothing_half_made(Home(root))

    subject = Subject(
        lambda root: build(root, "quantization.scheme=q8_0"), build,
        lambda root: bundles_of(Home(root)), done,
    )  # fmt: skip
    assert tried(points, "a build and its bundle", subject, tmp_path / "tries") > 60


def test_an_imported_bundle(tmp_path: Path, points: dict[str, int]) -> None:
    bundle = Bundle.read(bundle_files.write_bundle(tmp_path / "made" / "b"))
    archive = tmp_path / "b.tar"
    tar.write(bundle, archive, SILENT)

    def act(root: Path) -> None:
        importing.import_bundle(archive, Home(root / "home"), SILENT)

    def done(root: Path) -> None:
        (found,) = bundles_of(Home(root / "home"))
        assert found.manifest.digest == bundle.manifest.digest
        nothing_half_made(Home(root / "home"))

    subject = Subject(
        lambda root: None, act, lambda root: bundles_of(Home(root / "home")), done
    )  # fmt: skip
    # No cuts: the process that renders the chat template would inherit the limit.
    points["an imported bundle"] = kill_everywhere(subject, tmp_path / "tries")
    assert points["an imported bundle"] > 20


def test_a_bundle_that_leaves(tmp_path: Path, points: dict[str, int]) -> None:
    """The tar file and the image layout: there whole, or not there under their names."""
    bundle = Bundle.read(bundle_files.write_bundle(tmp_path / "made" / "b"))
    tar.write(bundle, tmp_path / "true.tar", SILENT)
    oci.write(bundle, tmp_path / "true", SILENT)
    true_tar = (tmp_path / "true.tar").read_bytes()
    layout = files_below(tmp_path / "true")

    def act(root: Path) -> None:
        tar.write(bundle, root / "b.tar", SILENT)
        if not (root / "image").exists():  # an export refuses to write over a folder
            oci.write(bundle, root / "image", SILENT)

    def look(root: Path) -> None:
        if (root / "b.tar").exists():
            assert (root / "b.tar").read_bytes() in (true_tar, b"an older one")
        if (root / "image").exists():
            assert files_below(root / "image") == layout

    def done(root: Path) -> None:
        look(root)
        named = {path.name for path in root.iterdir() if not path.name.startswith(".b.tar.sha256.")}
        assert named == {"b.tar", "b.tar.sha256", "image"}
        assert (root / "b.tar").read_bytes() == true_tar

    subject = Subject(
        lambda root: (root / "b.tar").write_bytes(b"an older one"), act, look, done
    )  # fmt: skip
    assert tried(points, "an exported tar file and image layout", subject, tmp_path / "tries") > 20


def files_below(root: Path) -> dict[str, bytes]:
    found = (path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in found}


# Toolchains


def test_a_toolchain(
    tmp_path: Path, points: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The packages are made up; the folder, its marker and the lock are deployer's own."""

    def create(spec: object, host: object, root: Path, home: Home, log_path: Path) -> Path:
        python = root / "env" / "bin" / "python"
        python.parent.mkdir(parents=True)
        for number in range(10):
            python.with_name(f"{number}.py").write_text("x = 1\n", encoding="utf-8")
        python.write_text("", encoding="utf-8")
        return python

    monkeypatch.setattr(environment, "create", create)
    monkeypatch.setattr(environment, "health_check", lambda *_: {"xllamacpp": "1"})

    def look(root: Path) -> bool:
        found = provision.find("llama-cpp", Home(root))
        if found:
            assert found.versions == {"xllamacpp": "1"}
            assert len(list((found.root / "env" / "bin").iterdir())) == 11
        return found is not None

    def done(root: Path) -> None:
        assert look(root)
        assert len(provision.installed(Home(root))) == 1

    subject = Subject(
        lambda root: None, lambda root: provision.ensure("llama-cpp", Home(root)), look, done
    )  # fmt: skip
    assert tried(points, "a toolchain", subject, tmp_path) > 10


# Small files that are replaced


def replaced(
    write: Callable[[Path, int], object], read: Callable[[Path], object], old: object, new: object
) -> Subject:
    """A file that holds the old or the new; `write` gets 1 for the old and 2 for the new."""

    def look(root: Path) -> None:
        assert read(root) in (old, new)

    def done(root: Path) -> None:
        assert read(root) == new

    return Subject(lambda root: write(root, 1), lambda root: write(root, 2), look, done)


def deployment(number: int) -> DeploymentRecord:
    return DeploymentRecord(
        name="x", endpoint="http://127.0.0.1:1", supervisor_pid=1, gateway_pid=None,
        state="stopped", generation=number, file=None, keys=False,
        models=("chat",), log="l", events="e",
    )  # fmt: skip


def table(number: int) -> Table:
    routes = (Route(model="chat", to={"one": 1.0}),)
    return Table(deployment="x", generation=number, gateway=Gateway(), routes=routes)


def spec(number: int) -> DeploymentSpec:
    routes = (Route(model="chat", to={"one": 1.0}),)
    return DeploymentSpec(
        name="x", generation=number, origin=Origin(), gateway=Gateway(), routes=routes, servers={}
    )


def server(number: int) -> ServerRecord:
    return ServerRecord(
        name="x", endpoint="http://127.0.0.1:1", supervisor_pid=1, engine_pid=None, bundle="b",
        log="l" * 200, state="stopped", server="s", model="m", restarts=number,
    )  # fmt: skip


SMALL = {
    "a server's record": replaced(
        lambda root, number: ServerFolder(root).write(server(number)),
        lambda root: ServerFolder(root).read(), server(1), server(2),
    ),
    "a deployment's record": replaced(
        lambda root, number: DeploymentFolder(root).write(deployment(number)),
        lambda root: DeploymentFolder(root).read(), deployment(1), deployment(2),
    ),
    "a deployment's spec": replaced(
        lambda root, number: spec(number).write(root / "spec.json"),
        lambda root: DeploymentSpec.read(root / "spec.json"), spec(1), spec(2),
    ),
    "the gateway's table": replaced(
        lambda root, number: write_atomically(root / "t.json", table(number).model_dump_json()),
        lambda root: read_table(root / "t.json"), table(1), table(2),
    ),
    "bundles that were examined": replaced(
        lambda root, number: Examined.load(root / "e.json").add(f"{number}" * 64),
        lambda root: Examined.load(root / "e.json").passed, ["1" * 64], ["1" * 64, "2" * 64],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SMALL)
def test_a_small_file(tmp_path: Path, points: dict[str, int], name: str) -> None:
    assert tried(points, name, SMALL[name], tmp_path) >= 3


def test_enough_points_were_tried(points: dict[str, int]) -> None:
    """The target of 200 kill points, over all that is published."""
    if len(points) < 8:
        pytest.skip("counts the points of the tests above: run the whole file")
    assert sum(points.values()) >= WANTED, points
