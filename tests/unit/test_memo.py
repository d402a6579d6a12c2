"""Remembered hashes: right after every change, and worth nothing when damaged."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from deployer import memo as module
from deployer.artifacts import file_digest
from deployer.memo import DigestMemo


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were really read."""
    read: list[Path] = []

    def digest(path: Path) -> str:
        read.append(path)
        return file_digest(path)

    monkeypatch.setattr(module, "file_digest", digest)
    return read


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """All files were written long enough ago."""
    monkeypatch.setattr(module, "SETTLED_SECONDS", -1.0)


def written(path: Path, text: str = "weights") -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.usefixtures("later")
def test_a_file_is_hashed_once(tmp_path: Path, hashed: list[Path]) -> None:
    path = written(tmp_path / "model.gguf")
    for _ in range(3):
        memo = DigestMemo.load(tmp_path / "cache" / "digests.json")
        assert memo.digest(path) == file_digest(path)
    assert hashed == [path]


@pytest.mark.parametrize("change", ["content", "size", "time"])
@pytest.mark.usefixtures("later")
def test_a_changed_file_is_hashed_again(tmp_path: Path, hashed: list[Path], change: str) -> None:
    path = written(tmp_path / "model.gguf")
    memo = DigestMemo.load(tmp_path / "digests.json")
    memo.digest(path)
    match change:
        case "content":
            path.write_text("WEIGHTS", encoding="utf-8")
            os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))
        case "size":
            path.write_text("more weights", encoding="utf-8")
        case _:
            os.utime(path, ns=(1, 1))
    assert memo.digest(path) == file_digest(path)
    assert len(hashed) == 2


@pytest.mark.parametrize("content", ["", "{", "[]", "3", '{"a": 1', "\x00"])
@pytest.mark.usefixtures("later")
def test_a_damaged_memory_is_forgotten(tmp_path: Path, hashed: list[Path], content: str) -> None:
    (tmp_path / "digests.json").write_text(content, encoding="utf-8")
    path = written(tmp_path / "model.gguf")
    assert DigestMemo.load(tmp_path / "digests.json").digest(path) == file_digest(path)
    assert isinstance(json.loads((tmp_path / "digests.json").read_text("utf-8")), dict)


def test_a_memory_that_cannot_be_kept_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    path = tmp_path / "model.gguf"
    path.write_text("weights", encoding="utf-8")
    memo = DigestMemo.load(tmp_path / "file" / "digests.json")
    assert memo.digest(path) == file_digest(path)


def test_a_file_that_was_written_just_now_is_not_remembered(
    tmp_path: Path, hashed: list[Path]
) -> None:
    """It could change again without a later time: the clock of a file system has coarse ticks."""
    path = tmp_path / "model.gguf"
    path.write_text("weights", encoding="utf-8")
    memo = DigestMemo.load(tmp_path / "digests.json")
    before = memo.digest(path)
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    path.write_text("WEIGHTS", encoding="utf-8")
    os.utime(path, ns=times)
    assert not memo.knows(path)
    assert memo.digest(path) == file_digest(path) != before


@pytest.mark.usefixtures("later")
def test_a_file_can_be_forgotten_and_hashed_by_another_function(tmp_path: Path) -> None:
    path = written(tmp_path / "model.gguf")
    memo = DigestMemo.load(tmp_path / "digests.json")
    assert memo.digest(path, lambda each: f"digest of {each.name}") == "digest of model.gguf"
    assert memo.knows(path)
    memo.forget(path)
    assert not memo.knows(path)
    assert memo.digest(path) == file_digest(path)


@pytest.mark.usefixtures("later")
def test_another_file_in_its_place_with_its_time_is_hashed_again(tmp_path: Path) -> None:
    """As when two archives are unpacked one after the other: they restore times, inodes recur."""
    path = written(tmp_path / "model.gguf")
    os.utime(path, (0, 0))
    memo = DigestMemo.load(tmp_path / "digests.json")
    before, inode = memo.digest(path), path.stat().st_ino
    with path.open("r+b") as stream:
        stream.write(b"W")
    os.utime(path, (0, 0))
    assert path.stat().st_ino == inode
    assert not memo.knows(path)
    assert memo.digest(path) == file_digest(path) != before
