"""What an archive may hold: one bundle, perhaps packages, and nothing beside them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from small_bundle import CONTENT, small_bundle

from deployer.artifacts import MANIFEST, Bundle
from deployer.errors import StoreError
from deployer.progress import SILENT
from deployer.shipping import contents as module
from deployer.shipping import offline, tar
from deployer.shipping.archive import open_archive
from deployer.shipping.contents import contents_of
from deployer.shipping.offline import Offline
from deployer.toolchains.host import this_host
from deployer.toolchains.specs import spec_named

Change = Callable[[Path], object]


def archive_of(bundle: Bundle, path: Path, packages: bool = False) -> Path:
    extra: dict[str, Path | str] = {}
    if packages:
        record = Offline.of((spec_named("llama-cpp"),), this_host())
        extra = {
            "wheels/deployer/deployer-0.1.0-py3-none-any.whl": "own",
            "wheels/deployer/requirements.txt": "list",
            "wheels/llama-cpp/xllamacpp-1-cp311-cp311-manylinux_2_28_x86_64.whl": "server",
            "wheels/llama-cpp/old-1.0.tar.gz": "source",
            **offline.beside(bundle.manifest, record),
        }
    return tar.write(bundle, path, SILENT, extra).path


def refusal(root: Path) -> str:
    with open_archive(root) as archive, pytest.raises(StoreError) as raised:
        contents_of(archive)
    return raised.value.message


@pytest.mark.parametrize("packages", [False, True])
def test_a_bundle_goes_through_an_archive_and_back(tmp_path: Path, packages: bool) -> None:
    bundle = small_bundle(tmp_path / "bundle", signature="{}")
    target = tmp_path / "new"
    with open_archive(archive_of(bundle, tmp_path / "b.tar", packages)) as archive:
        found = contents_of(archive)
        assert found.manifest == bundle.manifest
        assert found.signature == "{}"
        assert (found.record is not None) == packages
        with SILENT.step("") as step:
            found.unpack_bundle(target, step)
    assert {path.name for path in target.iterdir()} == {*CONTENT, MANIFEST, "model.sig"}
    for path in target.iterdir():
        assert path.read_bytes() == (bundle.root / path.name).read_bytes()


def test_packages_of_one_toolchain_alone(tmp_path: Path) -> None:
    bundle = small_bundle(tmp_path / "bundle")
    with open_archive(archive_of(bundle, tmp_path / "b.tar", packages=True)) as archive:
        contents_of(archive).unpack_packages("llama-cpp", tmp_path / "new")
    assert sorted(path.read_text() for path in (tmp_path / "new").iterdir()) == ["server", "source"]


def test_a_bundle_folder_is_as_good_as_an_archive(tmp_path: Path) -> None:
    bundle = small_bundle(tmp_path / "bundle")
    with open_archive(bundle.root) as archive:
        found = contents_of(archive)
    assert (found.manifest, found.signature, found.record) == (bundle.manifest, None, None)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda root: (root / "manifest.json").unlink(), "holds no manifest.json"),
        (lambda root: (root / "manifest.json").write_text("{"), "manifest cannot be read"),
        (lambda root: (root / "manifest.json").write_bytes(b"\xff"), "manifest cannot be read"),
        (lambda root: (root / "manifest.json").write_text("[" * 9999), "manifest cannot be read"),
        (lambda root: (root / "manifest.json").write_text('{"manifest_version": 1}'), "older"),
        (lambda root: (root / "model.gguf").unlink(), "'model.gguf' is missing"),
        (lambda root: (root / "README.md").write_text("x"), "README.md has 1 bytes, its manifest"),
        (lambda root: (root / "run.py").touch(), "it holds run.py, which does not belong"),
        (lambda root: (root / "sub").mkdir() or (root / "sub/x").touch(), "it holds sub/x"),
        (lambda root: (root / "offline.json").touch(), "holds no bundle/manifest.json"),
    ],
)  # fmt: skip
def test_a_folder_that_is_no_bundle(tmp_path: Path, change: Change, said: str) -> None:
    bundle = small_bundle(tmp_path / "bundle")
    change(bundle.root)
    assert said in refusal(bundle.root)


def test_packages_are_of_an_offline_archive_only(tmp_path: Path) -> None:
    bundle = small_bundle(tmp_path / "bundle")
    (bundle.root / "wheels" / "llama-cpp").mkdir(parents=True)
    (bundle.root / "wheels" / "llama-cpp" / "a-1-py3-none-any.whl").touch()
    assert "does not belong to the bundle" in refusal(bundle.root)


@pytest.mark.parametrize("name", ["wheels/a.whl", "wheels/x/run.sh", "wheels/x/y/a.whl", "x.whl"])
def test_packages_lie_in_their_folders(tmp_path: Path, name: str) -> None:
    bundle = small_bundle(tmp_path / "bundle")
    record = Offline.of((spec_named("llama-cpp"),), this_host())
    extra = {**offline.beside(bundle.manifest, record), name: "x"}
    path = tar.write(bundle, tmp_path / "b.tar", SILENT, extra).path
    assert f"it holds {name}" in refusal(path)


@pytest.mark.parametrize("record", ["", "[]", '{"version": 2}', '{"version": 1, "more": 2}'])
def test_an_offline_record_that_says_something_else(tmp_path: Path, record: str) -> None:
    bundle = small_bundle(tmp_path / "bundle")
    path = tar.write(bundle, tmp_path / "b.tar", SILENT, {"offline.json": record}).path
    assert "cannot be read" in refusal(path)


@pytest.mark.parametrize("name", ["../up", "A", "", ".hidden", "n" * 65])
def test_a_name_that_would_lead_elsewhere(tmp_path: Path, name: str) -> None:
    bundle = small_bundle(tmp_path / "bundle")
    renamed = bundle.manifest.model_copy(update={"name": name}).sealed()
    (bundle.root / MANIFEST).write_text(renamed.text(), encoding="utf-8")
    assert "its bundle is called" in refusal(bundle.root)


def test_files_that_are_read_whole_are_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = small_bundle(tmp_path / "bundle", signature="{}")
    monkeypatch.setattr(module, "MAX_SMALL", 1)
    with open_archive(bundle.root) as archive:
        found = contents_of(archive)
        with pytest.raises(StoreError, match=r"model\.sig has 2 bytes, over 1"):
            _ = found.signature
    monkeypatch.setattr(module, "MAX_MANIFEST", 10)
    assert "over 10" in refusal(bundle.root)


def test_a_signature_that_is_no_text(tmp_path: Path) -> None:
    bundle = small_bundle(tmp_path / "bundle")
    (bundle.root / "model.sig").write_bytes(b"\xff\xfe")
    with open_archive(bundle.root) as archive:
        found = contents_of(archive)
        with pytest.raises(StoreError, match=r"model\.sig is no text"):
            _ = found.signature
