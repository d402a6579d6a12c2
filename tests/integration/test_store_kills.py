"""SIGKILL at every step of publishing: the old artifact or the new one, never a mixture.

A forked child builds an artifact and is killed at the n-th step that changes a file below the
store; the parent then looks at what is there, and builds it again. Every n is tried.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from kill_points import killed_at

from deployer.artifacts import file_digest
from deployer.progress import SILENT
from deployer.store import Store, remove_tree

pytestmark = pytest.mark.integration

FILES = 20
KEY, OLD = "ab" * 32, "cd" * 32


def fill(word: str) -> Callable[[Path], Mapping[str, Any]]:
    def build(folder: Path) -> Mapping[str, Any]:
        for number in range(FILES):
            (folder / f"{number}.bin").write_bytes(f"{word} {number}".encode() * 50)
        return {"word": word}

    return build


def build_and_die(store: Store, at: int) -> bool:
    """Build in a child that is killed at its `at`-th step; whether it was."""
    return killed_at(
        lambda: store.get_or_build("quantize", KEY, fill("new"), SILENT), store.root, at
    )


def assert_whole(store: Store, key: str, word: str) -> None:
    artifact = store.find("quantize", key)
    assert artifact is not None
    assert artifact.info == {"word": word}
    names = {entry.path for entry in artifact.files}
    assert names == {f"{number}.bin" for number in range(FILES)}
    assert {path.name for path in artifact.root.iterdir()} == names
    for entry in artifact.files:
        assert file_digest(artifact.root / entry.path) == entry.sha256
        number = entry.path.removesuffix(".bin")
        assert (artifact.root / entry.path).read_bytes() == f"{word} {number}".encode() * 50


def damaged(store: Store) -> None:
    """The key holds an artifact with one bit flipped, which is found and replaced first."""
    artifact, _ = store.get_or_build("quantize", KEY, fill("new"), SILENT)
    path = artifact.root / "3.bin"
    path.chmod(0o644)
    path.write_bytes(b"N" + path.read_bytes()[1:])


@pytest.mark.parametrize("prepare", [lambda store: None, damaged], ids=["fresh", "damaged"])
def test_a_kill_at_any_step_leaves_all_or_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prepare: Callable[[Store], None]
) -> None:
    # What a killed process wrote is not lost, only what a machine without power did not flush.
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    kills = 0
    for at in range(1, 10_000):
        store = Store(tmp_path / str(at))
        store.get_or_build("quantize", OLD, fill("old"), SILENT)
        prepare(store)
        if not build_and_die(store, at):
            break
        kills += 1
        assert_whole(store, OLD, "old")
        if store.find("quantize", KEY):
            assert_whole(store, KEY, "new")
        store.get_or_build("quantize", KEY, fill("new"), SILENT)
        assert_whole(store, KEY, "new")
        assert not list((store.root / ".tmp").iterdir())
        assert not list((store.root / "quantize").glob(".*"))
        remove_tree(store.root)
    assert kills >= 70  # opening, hashing, flushing and renaming 20 files and a record


def test_a_killed_builder_frees_its_lock_and_the_waiting_one_builds(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    begun = tmp_path / "begun"
    child = os.fork()
    if child == 0:

        def hang(folder: Path) -> Mapping[str, Any]:
            (folder / "half.bin").write_bytes(b"half")
            begun.touch()
            time.sleep(600)
            return {}

        try:
            store.get_or_build("quantize", KEY, hang, SILENT)
        finally:
            os._exit(1)
    while not begun.exists():
        time.sleep(0.01)

    class Impatient:
        """Kills the builder as soon as the store says that it waits for it."""

        step = SILENT.step
        warn = SILENT.warn

        def note(self, message: str) -> None:
            assert "another build" in message
            os.kill(child, signal.SIGKILL)

    _, cached = store.get_or_build("quantize", KEY, fill("new"), Impatient())
    os.waitpid(child, 0)
    assert not cached
    assert_whole(store, KEY, "new")
    assert not list((store.root / ".tmp").iterdir())


def test_many_processes_at_once_build_it_once(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    built = tmp_path / "built"
    built.mkdir()

    def build(folder: Path) -> Mapping[str, Any]:
        (built / str(os.getpid())).touch()
        time.sleep(0.2)
        return fill("new")(folder)

    children = []
    for _ in range(8):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                artifact, _ = store.get_or_build("quantize", KEY, build, SILENT)
                code = 0 if artifact.info == {"word": "new"} else 1
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 8
    assert len(list(built.iterdir())) == 1
    assert_whole(store, KEY, "new")
