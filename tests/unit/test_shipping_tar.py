"""One tar file: the same bytes each time, readable by anybody, whole or absent."""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from small_bundle import CONTENT, small_bundle

from deployer.artifacts import Bundle
from deployer.errors import StoreError
from deployer.progress import SILENT, Silent, Step
from deployer.shipping import tar


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return small_bundle(tmp_path / "bundle")


def members(path: Path) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(path, "r:") as archive:
        return {member.name: member for member in archive}


def test_it_unpacks_to_the_bundle(bundle: Bundle, tmp_path: Path) -> None:
    written = tar.write(bundle, tmp_path / "out" / "b.tar", SILENT)
    with tarfile.open(written.path, "r:") as archive:
        archive.extractall(tmp_path / "x", filter="data")
    (folder,) = (tmp_path / "x").iterdir()
    assert folder.name == f"small-{bundle.manifest.digest[:12]}" == bundle.manifest.full_name
    names = {*CONTENT, "manifest.json"}
    assert {path.name for path in folder.iterdir()} == names
    for name in names:
        assert (folder / name).read_bytes() == (bundle.root / name).read_bytes()


def test_the_sum_beside_it_is_that_of_the_file(bundle: Bundle, tmp_path: Path) -> None:
    written = tar.write(bundle, tmp_path / "b.tar", SILENT)
    content = written.path.read_bytes()
    assert written.sha256 == hashlib.sha256(content).hexdigest()
    assert written.size_bytes == len(content)
    assert (tmp_path / "b.tar.sha256").read_text() == f"{written.sha256}  b.tar\n"


def test_the_same_bundle_gives_the_same_bytes(bundle: Bundle, tmp_path: Path) -> None:
    first = tar.write(bundle, tmp_path / "a.tar", SILENT)
    copy = Bundle.read(Path(shutil.copytree(bundle.root, tmp_path / "copy")))
    for path in copy.root.iterdir():
        os.utime(path, (1, 1))
        path.chmod(0o600)
    second = tar.write(copy, tmp_path / "b.tar", SILENT)
    assert first.sha256 == second.sha256


def test_names_are_sorted_and_nothing_tells_of_this_machine(bundle: Bundle, tmp_path: Path) -> None:
    found = members(tar.write(bundle, tmp_path / "b.tar", SILENT).path)
    top = bundle.manifest.full_name
    assert list(found) == [top, *(f"{top}/{name}" for name in sorted([*CONTENT, "manifest.json"]))]
    for member in found.values():
        assert (member.mtime, member.uid, member.gid, member.uname) == (0, 0, 0, "")
        assert member.mode == (0o755 if member.isdir() else 0o644)


def test_with_more_to_carry_the_bundle_gets_its_own_folder(bundle: Bundle, tmp_path: Path) -> None:
    wheel = tmp_path / "a.whl"
    wheel.write_bytes(b"wheel")
    extra = {"wheels/deployer/a.whl": wheel, "install.sh": "echo\n"}
    found = members(tar.write(bundle, tmp_path / "b.tar", SILENT, extra).path)
    top = bundle.manifest.full_name
    folders = [name for name, member in found.items() if member.isdir()]
    assert folders == [top, f"{top}/bundle", f"{top}/wheels", f"{top}/wheels/deployer"]
    assert f"{top}/bundle/model.gguf" in found
    assert found[f"{top}/install.sh"].mode == 0o755
    assert found[f"{top}/wheels/deployer/a.whl"].size == 5


def test_the_signature_travels_with_the_bundle(tmp_path: Path) -> None:
    bundle = small_bundle(tmp_path / "signed", signature="{}")
    found = members(tar.write(bundle, tmp_path / "b.tar", SILENT).path)
    assert f"{bundle.manifest.full_name}/model.sig" in found


@pytest.mark.parametrize("change", [b"", b"short", b"\x01weights" * 300, b"\x00weights" * 301])
def test_a_file_that_is_not_what_the_manifest_says_does_not_leave(
    bundle: Bundle, tmp_path: Path, change: bytes
) -> None:
    (bundle.root / "model.gguf").write_bytes(change)
    with pytest.raises(StoreError, match=r"model\.gguf changed since it was verified"):
        tar.write(bundle, tmp_path / "out" / "b.tar", SILENT)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_failure_leaves_what_was_there(bundle: Bundle, tmp_path: Path) -> None:
    written = tar.write(bundle, tmp_path / "out" / "b.tar", SILENT)
    (bundle.root / "model.gguf").unlink()
    with pytest.raises(StoreError, match=r"cannot write .*b\.tar: .*model\.gguf: No such file"):
        tar.write(bundle, written.path, SILENT)
    assert hashlib.sha256(written.path.read_bytes()).hexdigest() == written.sha256
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["b.tar", "b.tar.sha256"]


def test_what_a_killed_export_left_goes(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / ".b.tar.123.partial").write_bytes(b"half")
    (tmp_path / ".b.tar.gz").write_bytes(b"the user's")
    tar.write(bundle, tmp_path / "b.tar", SILENT)
    assert not (tmp_path / ".b.tar.123.partial").exists()
    assert (tmp_path / ".b.tar.gz").exists()


def test_space_is_looked_at_first(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 0))
    with pytest.raises(StoreError, match=r"takes 0\.0 GB"):
        tar.write(bundle, tmp_path / "b.tar", SILENT)
    assert not (tmp_path / "b.tar").exists()


def test_it_tells_how_far_it_is(bundle: Bundle, tmp_path: Path) -> None:
    told: list[tuple[float | None, float | None]] = []

    class Listening:
        def update(
            self, done: float | None = None, total: float | None = None, note: str | None = None
        ) -> None:
            told.append((done, total))

    class Progress(Silent):
        @contextmanager
        def step(self, title: str) -> Iterator[Step]:
            yield Listening()

    tar.write(bundle, tmp_path / "b.tar", Progress())
    done = [each for each, _ in told if each is not None]
    assert done == sorted(done)
    assert told[-1][0] == told[-1][1]


def test_names_that_ustar_cannot_hold(tmp_path: Path) -> None:
    bundle = small_bundle(tmp_path / "bundle")
    long = f"wheels/deployer/{'a' * 140}-ü.whl"
    written = tar.write(bundle, tmp_path / "b.tar", SILENT, {long: "x"})
    assert f"{bundle.manifest.full_name}/{long}" in members(written.path)
