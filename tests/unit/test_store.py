"""The store: found again, made once, whole or absent."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from deployer import durable
from deployer import store as module
from deployer.artifacts import file_digest
from deployer.errors import StageError, StoreError
from deployer.progress import SILENT, Silent
from deployer.store import (
    Store,
    link_or_copy,
    remove_tree,
    require_space,
)

KEY = "0123456789abcdef" * 4
OTHER = "fedcba9876543210" * 4


class Builder:
    """Fills a folder with known content and counts how often it was asked to."""

    def __init__(self, content: str = "weights") -> None:
        self.content = content
        self.calls = 0

    def __call__(self, folder: Path) -> Mapping[str, Any]:
        self.calls += 1
        (folder / "sub").mkdir()
        (folder / "model.gguf").write_text(self.content, encoding="utf-8")
        (folder / "sub" / "tokenizer.json").write_text("{}", encoding="utf-8")
        return {"bits": 4.5}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def build(store: Store, builder: Builder, key: str = KEY) -> bool:
    """Whether the artifact was there; asserts that it is whole now."""
    artifact, cached = store.get_or_build("quantize", key, builder, SILENT)
    for entry in artifact.files:
        assert file_digest(artifact.root / entry.path) == entry.sha256
    assert nothing_half_written(store)
    return cached


def nothing_half_written(store: Store) -> bool:
    hidden = [p for p in store.root.glob("*/.*") if p.parent.name not in (".locks", ".quarantine")]
    return not hidden and not list((store.root / ".tmp").glob("*"))


# Made once, found again


def test_an_artifact_is_built_once_and_then_found(store: Store) -> None:
    builder = Builder()
    assert store.find("quantize", KEY) is None
    assert not build(store, builder)
    assert build(store, builder)
    assert builder.calls == 1
    found = store.find("quantize", KEY)
    assert found is not None
    assert found.info == {"bits": 4.5}
    assert [entry.path for entry in found.files] == ["model.gguf", "sub/tokenizer.json"]
    assert (found.root / "model.gguf").read_text(encoding="utf-8") == "weights"


def test_its_files_are_read_only(store: Store) -> None:
    build(store, Builder())
    root = store.path("quantize", KEY)
    assert (root / "model.gguf").stat().st_mode & 0o777 == 0o444
    assert (root / "sub" / "tokenizer.json").stat().st_mode & 0o777 == 0o444


def test_the_digest_is_of_content_not_of_time(tmp_path: Path) -> None:
    digests = set()
    for name in ("a", "b"):
        artifact, _ = Store(tmp_path / name).get_or_build("s", KEY, Builder(), SILENT)
        digests.add(artifact.digest)
    other, _ = Store(tmp_path / "c").get_or_build("s", KEY, Builder("other"), SILENT)
    assert len(digests) == 1
    assert other.digest not in digests


def test_stages_and_keys_do_not_share(store: Store) -> None:
    builder = Builder()
    assert not build(store, builder)
    assert not build(store, builder, OTHER)
    assert store.find("convert", KEY) is None


def test_a_touched_artifact_is_the_newest(store: Store) -> None:
    build(store, Builder())
    build(store, Builder(), OTHER)
    old = time.time() - 1000
    for key in (KEY, OTHER):
        os.utime(store.record_path("quantize", key), (old, old))
    artifact = store.find("quantize", KEY)
    assert artifact is not None
    store.touch(artifact)
    newest = max(store.root.glob("quantize/*.json"), key=lambda path: path.stat().st_mtime_ns)
    assert newest == store.record_path("quantize", KEY)


def test_the_clock_may_jump(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    builder = Builder()
    build(store, builder)
    now = time.time()
    for hours in (-1000, 1000):
        monkeypatch.setattr(time, "time", lambda by=hours: now + 3600 * by)
        assert build(store, builder)
    assert builder.calls == 1


def test_a_copied_store_is_found_by_its_hashes(store: Store, tmp_path: Path) -> None:
    """Other modification times alone are no damage: the content is hashed instead."""
    build(store, Builder())
    shutil.copytree(store.root, tmp_path / "copy", copy_function=shutil.copyfile)
    builder = Builder()
    assert build(Store(tmp_path / "copy"), builder)
    assert builder.calls == 0


# Damage


def damage_flip(root: Path, record: Path) -> None:
    path = root / "model.gguf"
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)


def damage_cut(root: Path, record: Path) -> None:
    (root / "model.gguf").chmod(0o644)
    os.truncate(root / "model.gguf", 3)


def damage_cut_keeping_its_time(root: Path, record: Path) -> None:
    status = (root / "model.gguf").stat()
    damage_cut(root, record)
    os.utime(root / "model.gguf", ns=(status.st_atime_ns, status.st_mtime_ns))


def damage_unlink(root: Path, record: Path) -> None:
    (root / "sub" / "tokenizer.json").unlink()


def damage_folder(root: Path, record: Path) -> None:
    remove_tree(root)


def damage_record_cut(root: Path, record: Path) -> None:
    record.write_text(record.read_text(encoding="utf-8")[:50], encoding="utf-8")


def damage_record_list(root: Path, record: Path) -> None:
    record.write_text("[]", encoding="utf-8")


def damage_record_number(root: Path, record: Path) -> None:
    record.write_text('{"files": 1, "mtime_ns": 2, "info": 3}', encoding="utf-8")


def damage_record_without_info(root: Path, record: Path) -> None:
    record.write_text('{"files": [], "mtime_ns": {}}', encoding="utf-8")


def damage_record_of_no_path(root: Path, record: Path) -> None:
    record.write_text(
        record.read_text(encoding="utf-8").replace("model.gguf", "\\u0000"), encoding="utf-8"
    )


DAMAGES = [value for name, value in list(globals().items()) if name.startswith("damage_")]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_artifact_is_quarantined_and_built_again(store: Store, damage: Any) -> None:
    builder = Builder()
    build(store, builder)
    damage(store.path("quantize", KEY), store.record_path("quantize", KEY))
    assert store.find("quantize", KEY) is None
    assert list((store.root / ".quarantine").iterdir())
    assert not build(store, builder)
    assert builder.calls == 2
    assert build(store, builder)


def test_damage_twice_is_kept_twice(store: Store) -> None:
    for _ in range(3):
        build(store, Builder())
        damage_flip(store.path("quantize", KEY), store.record_path("quantize", KEY))
        assert store.find("quantize", KEY) is None
    assert len(list((store.root / ".quarantine").glob("*.json"))) == 3


def test_a_folder_without_a_record_does_not_exist(store: Store) -> None:
    leftover = store.path("quantize", KEY)
    leftover.mkdir(parents=True)
    (leftover / "model.gguf").write_text("half", encoding="utf-8")
    assert store.find("quantize", KEY) is None
    assert not build(store, Builder())
    assert (leftover / "model.gguf").read_text(encoding="utf-8") == "weights"


def test_what_a_killed_build_left_is_swept(store: Store) -> None:
    for path in (
        store.root / ".tmp" / f"quantize-{KEY[:16]}-99999" / "half.gguf",
        store.root / "quantize" / f".{KEY[:16]}.json.99999",
    ):
        path.parent.mkdir(parents=True)
        path.write_text("half", encoding="utf-8")
    assert not build(store, Builder())


# Failure


@pytest.mark.parametrize("error", [StageError("no"), ValueError("no"), KeyboardInterrupt()])
def test_a_failed_build_leaves_nothing_and_passes_its_error_on(
    store: Store, error: BaseException
) -> None:
    def fail(folder: Path) -> Mapping[str, Any]:
        (folder / "half.gguf").write_text("half", encoding="utf-8")
        raise error

    with pytest.raises(type(error)) as caught:
        store.get_or_build("quantize", KEY, fail, SILENT)
    assert caught.value is error
    assert store.find("quantize", KEY) is None
    assert nothing_half_written(store)
    assert not build(store, Builder())


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_a_full_disk_is_a_store_error_and_leaves_nothing(store: Store, code: int) -> None:
    def fill(folder: Path) -> Mapping[str, Any]:
        (folder / "half.gguf").write_text("half", encoding="utf-8")
        raise OSError(code, os.strerror(code), str(folder / "half.gguf"))

    with pytest.raises(StoreError, match="cannot write to") as caught:
        store.get_or_build("quantize", KEY, fill, SILENT)
    assert os.strerror(code) in caught.value.message
    assert "DEPLOYER_HOME" in caught.value.hint
    assert nothing_half_written(store)


@pytest.mark.parametrize("moment", range(5))
def test_a_disk_that_fills_while_publishing_leaves_the_old_artifact(
    store: Store, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    build(store, Builder(), OTHER)
    calls = 0
    flush = durable.flush

    def full(path: Path) -> None:
        nonlocal calls
        calls += 1
        if calls > moment:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        flush(path)

    for user in (module, durable):
        monkeypatch.setattr(user, "flush", full)
    if moment < 4:  # two files, the folder, the record
        with pytest.raises(StoreError, match="No space left"):
            store.get_or_build("quantize", KEY, Builder(), SILENT)
        assert store.find("quantize", KEY) is None
        assert not store.path("quantize", KEY).exists()
    else:
        store.get_or_build("quantize", KEY, Builder(), SILENT)
        assert calls == 4
    assert nothing_half_written(store)
    assert store.find("quantize", OTHER) is not None
    for user in (module, durable):
        monkeypatch.setattr(user, "flush", flush)
    build(store, Builder())


def test_another_trouble_of_the_system_is_passed_on(store: Store) -> None:
    def fail(folder: Path) -> Mapping[str, Any]:
        raise FileNotFoundError(errno.ENOENT, "gone", "x")

    with pytest.raises(FileNotFoundError):
        store.get_or_build("quantize", KEY, fail, SILENT)
    assert nothing_half_written(store)


def test_a_store_that_cannot_be_made_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(StoreError) as caught:
        Store(tmp_path / "file").get_or_build("quantize", KEY, Builder(), SILENT)
    assert caught.value.hint


def test_a_store_that_may_not_be_read_is_a_store_error(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, **_: object) -> str:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    build(store, Builder())
    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(StoreError, match="cannot open"):
        store.find("quantize", KEY)


# At once


class Listener(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.heard = threading.Event()

    def note(self, message: str) -> None:
        self.notes.append(message)
        self.heard.set()


def test_two_builds_at_once_make_it_once(store: Store) -> None:
    begun, listener = threading.Event(), Listener()

    class Slow(Builder):
        def __call__(self, folder: Path) -> Mapping[str, Any]:
            begun.set()
            assert listener.heard.wait(30)
            return super().__call__(folder)

    slow, second = Slow(), Builder("never made")
    outcomes: dict[str, bool] = {}

    def first_build() -> None:
        outcomes["first"] = store.get_or_build("quantize", KEY, slow, SILENT)[1]

    thread = threading.Thread(target=first_build)
    thread.start()
    assert begun.wait(30)
    artifact, cached = store.get_or_build("quantize", KEY, second, listener)
    thread.join(30)
    assert (outcomes["first"], cached) == (False, True)
    assert (slow.calls, second.calls) == (1, 0)
    assert (artifact.root / "model.gguf").read_text(encoding="utf-8") == "weights"
    assert len(listener.notes) == 1
    assert "another build" in listener.notes[0]


# Small tools


def test_a_link_is_made_where_one_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    source.write_text("content", encoding="utf-8")
    link_or_copy(source, tmp_path / "a" / "link")
    assert (tmp_path / "a" / "link").samefile(source)

    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, "another file system")

    monkeypatch.setattr(os, "link", refuse)
    link_or_copy(source, tmp_path / "b" / "copy")
    assert (tmp_path / "b" / "copy").read_text(encoding="utf-8") == "content"
    assert not (tmp_path / "b" / "copy").samefile(source)


def test_space_is_asked_for_where_the_folder_will_be(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "there" / "yet"
    require_space(folder, 1, "a little")
    with pytest.raises(StoreError) as caught:
        require_space(folder, 10**18, "quantizing")
    assert "quantizing needs about 1000000000.0 GB" in caught.value.message
    assert str(tmp_path) in caught.value.message
    assert not folder.exists()


def test_removing_what_is_not_there_is_no_error(tmp_path: Path) -> None:
    remove_tree(tmp_path / "absent")
    assert not (tmp_path / "absent").exists()
