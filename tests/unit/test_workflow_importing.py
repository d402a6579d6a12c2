"""Importing: verified before it is published, once, and nothing is left of what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from small_bundle import small_bundle

from deployer.artifacts import Bundle
from deployer.errors import BundleError, Fault, ToolchainError, UsageError
from deployer.home import Home
from deployer.progress import SILENT, Progress, Silent
from deployer.shipping import offline, tar
from deployer.shipping.offline import Offline
from deployer.toolchains import provision
from deployer.toolchains.environment import carried_packages, package_arguments
from deployer.toolchains.host import this_host
from deployer.toolchains.specs import spec_named
from deployer.workflow import importing

SPEC = spec_named("llama-cpp")


class Verifier:
    """Stands for `require_whole`: takes a note of each call, and refuses where it is told to."""

    def __init__(self) -> None:
        self.seen: list[tuple[Path | None, bool]] = []
        self.problem: Exception | None = None

    def __call__(self, bundle: Bundle, home: Home, progress: Progress, key: Path | None) -> None:
        self.seen.append((key, (bundle.root / "model.sig").exists()))
        if self.problem:
            raise self.problem


class Listening(Silent):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, message: str) -> None:
        self.warnings.append(message)


@pytest.fixture
def verifier(monkeypatch: pytest.MonkeyPatch) -> Verifier:
    stand_in = Verifier()
    monkeypatch.setattr(importing, "require_whole", stand_in)
    return stand_in


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the toolchains that were asked for."""
    asked: list[str] = []
    monkeypatch.setattr(provision, "ensure", lambda name, home, progress: asked.append(name))
    return asked


def archive(root: Path, packages: bool = False, signature: str | None = None) -> Path:
    bundle = small_bundle(root / "bundle", signature=signature)
    extra: dict[str, Path | str] = {}
    if packages:
        extra = {
            "wheels/llama-cpp/a-1-py3-none-any.whl": "a",
            **offline.beside(bundle.manifest, Offline.of((SPEC,), this_host())),
        }
    return tar.write(bundle, root / "b.tar", SILENT, extra).path


def left(home: Home) -> list[str]:
    """Every file below the home but locks, caches and logs."""
    ignored = {".locks", "cache", "logs"}
    paths = (path.relative_to(home.root) for path in home.root.rglob("*") if path.is_file())
    return sorted(path.as_posix() for path in paths if not ignored & set(path.parts))


def test_a_bundle_is_verified_and_kept(tmp_path: Path, home: Home, verifier: Verifier) -> None:
    imported = importing.import_bundle(archive(tmp_path), home, SILENT)
    assert verifier.seen == [(None, False)]
    root = imported.bundle.root
    assert root.parent == home.bundles / "small"
    assert root.with_name(f"{root.name}.json").is_file()
    assert not (root / "model.gguf").stat().st_mode & 0o222
    assert (root / "model.gguf").read_bytes() == (tmp_path / "bundle/model.gguf").read_bytes()
    assert imported.command == ("deployer", "serve", "small")
    assert (imported.there, imported.signed, imported.toolchains) == (False, False, ())
    assert imported.as_json()["serve"] == "deployer serve small"


def test_a_folder_is_imported_the_same_way(tmp_path: Path, home: Home, verifier: Verifier) -> None:
    bundle = small_bundle(tmp_path / "bundle")
    imported = importing.import_bundle(bundle.root, home, SILENT, name="other")
    assert imported.bundle.root.parent == home.bundles / "other"
    shutil.rmtree(bundle.root)
    assert imported.bundle.weights.is_file()  # a copy


@pytest.mark.usefixtures("verifier")
def test_a_second_import_changes_nothing(tmp_path: Path, home: Home) -> None:
    path = archive(tmp_path)
    importing.import_bundle(path, home, SILENT)
    before = {p: p.stat().st_ino for p in home.bundles.rglob("*") if p.is_file()}
    again = importing.import_bundle(path, home, SILENT)
    assert again.there
    assert {p: p.stat().st_ino for p in home.bundles.rglob("*") if p.is_file()} == before


def test_what_is_refused_leaves_nothing(tmp_path: Path, home: Home, verifier: Verifier) -> None:
    verifier.problem = BundleError("/some/folder", [Fault("model.gguf", "is not as it was made")])
    with pytest.raises(BundleError, match=r"the bundle in b\.tar has 1 problem:\n  model"):
        importing.import_bundle(archive(tmp_path, packages=True), home, SILENT)
    assert left(home) == []


def test_a_name_that_cannot_be(tmp_path: Path, home: Home) -> None:
    with pytest.raises(UsageError, match="cannot be called"):
        importing.import_bundle(archive(tmp_path), home, SILENT, name="../x")
    assert not home.root.exists()


def test_the_signature_is_checked_and_comes_along(
    tmp_path: Path, home: Home, verifier: Verifier
) -> None:
    key = tmp_path / "public.pem"
    imported = importing.import_bundle(archive(tmp_path, signature="{}"), home, SILENT, key=key)
    assert verifier.seen == [(key, True)]
    assert imported.signed
    record = imported.bundle.root.with_suffix(".json").read_text()
    assert "model.sig" not in record  # signing again must not look like damage


def test_a_signature_that_comes_later_is_added(
    tmp_path: Path, home: Home, verifier: Verifier
) -> None:
    first = importing.import_bundle(archive(tmp_path / "a"), home, SILENT)
    signed = archive(tmp_path / "b", signature="{}")
    verifier.problem = BundleError("b", [Fault("model.sig", "is not by this key")])
    with pytest.raises(BundleError, match="is not by this key"):
        importing.import_bundle(signed, home, SILENT, key=tmp_path / "k")
    assert not (first.bundle.root / "model.sig").exists()
    verifier.problem = None
    assert importing.import_bundle(signed, home, SILENT, key=tmp_path / "k").signed


@pytest.mark.usefixtures("verifier")
def test_toolchains_are_made_of_what_was_carried(
    tmp_path: Path, home: Home, made: list[str]
) -> None:
    imported = importing.import_bundle(archive(tmp_path, packages=True), home, SILENT)
    assert imported.toolchains == ("llama-cpp",) == tuple(made)
    folder = carried_packages(SPEC, home)
    assert [path.name for path in folder.iterdir()] == ["a-1-py3-none-any.whl"]
    assert package_arguments(SPEC, home) == ["--no-index", "--find-links", str(folder)]


@pytest.mark.usefixtures("verifier")
def test_packages_that_do_not_work_are_taken_back(
    tmp_path: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(name: str, home: Home, progress: Progress) -> None:
        raise ToolchainError("the hash differs", "Look at the log.")

    monkeypatch.setattr(provision, "ensure", fails)
    path = archive(tmp_path, packages=True)
    with pytest.raises(ToolchainError, match="small was imported, but not what serves it: the h"):
        importing.import_bundle(path, home, SILENT)
    assert not carried_packages(SPEC, home).exists()
    assert [name for name in left(home) if not name.startswith("bundles/small/")] == []


@pytest.mark.usefixtures("verifier")
def test_packages_of_another_deployer_or_machine_are_left_out(
    tmp_path: Path, home: Home, made: list[str]
) -> None:
    bundle = small_bundle(tmp_path / "bundle")
    record = Offline.of((SPEC,), this_host())
    other_lock = record.toolchains[0].model_copy(update={"lock": "0" * 64})
    for changed, said in (
        (record.model_copy(update={"toolchains": (other_lock,)}), "not of this one"),
        (record.model_copy(update={"machine": "s390x"}), "not for this machine"),
    ):
        extra = {"wheels/llama-cpp/a-1-py3-none-any.whl": "a",
                 **offline.beside(bundle.manifest, changed)}  # fmt: skip
        path = tar.write(bundle, tmp_path / "b.tar", SILENT, extra).path
        listening = Listening()
        assert importing.import_bundle(path, home, listening).toolchains == ()
        assert said in listening.warnings[0]
    assert made == []
    assert not home.wheels.exists()
