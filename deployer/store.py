"""The content-addressed store: one immutable folder per key, published by one atomic rename.

    ROOT/STAGE/KEY/             the files of an artifact, read-only
    ROOT/STAGE/KEY.json         its record, written last: an artifact without one does not exist
    ROOT/.tmp/STAGE-KEY-PID/    an artifact in the making; deleted when its maker is gone
    ROOT/.locks/STAGE-KEY       held while a key is being made, so that two builds make it once
    ROOT/.quarantine/           artifacts whose files no longer match their hashes

A key names inputs: what went in, with which settings and which tools. The record holds the files'
hashes; a file whose size or modification time changed is hashed again before it is used.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from deployer.artifacts import Artifact, FileEntry, file_digest, list_files
from deployer.durable import disk_error, flush, hold_lock, write_atomically
from deployer.errors import StoreError
from deployer.progress import Progress

_KEY_LENGTH = 16
DISK_TROUBLE = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO}
)
"""Error numbers that mean the store, not the work, is in trouble."""
Build = Callable[[Path], Mapping[str, Any]]
"""Fills an empty folder with an artifact's files and returns what to record about them."""


@dataclass(frozen=True)
class Store:
    """The artifacts below one folder; `digest` gives the SHA-256 of a file that is published."""

    root: Path
    digest: Callable[[Path], str] = file_digest

    def path(self, stage: str, key: str) -> Path:
        return self.root / stage / key[:_KEY_LENGTH]

    def record_path(self, stage: str, key: str) -> Path:
        return self.root / stage / f"{key[:_KEY_LENGTH]}.json"

    def find(self, stage: str, key: str) -> Artifact | None:
        """The artifact of a key, or None. A damaged one is moved to quarantine: None as well."""
        root = self.path(stage, key)
        record_path = self.record_path(stage, key)
        try:
            record = json.loads(record_path.read_text(encoding="utf-8"))
            files = tuple(FileEntry.model_validate(entry) for entry in record["files"])
            times, info = dict(record["mtime_ns"]), dict(record["info"])
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise disk_error(error, self.root) from error
        except (ValueError, KeyError, TypeError):
            self._quarantine(stage, key)
            return None
        if not all(_unchanged(root, entry, times.get(entry.path)) for entry in files):
            self._quarantine(stage, key)
            return None
        return Artifact(stage, key, root, info, files)

    def get_or_build(
        self, stage: str, key: str, build: Build, progress: Progress
    ) -> tuple[Artifact, bool]:
        """The artifact of a key, built where it is missing; the flag tells if it was there.

        `build` runs under the key's lock in a folder of its own. Whatever it raises is passed on
        after that folder was deleted; nothing of a failed or killed build is ever visible.
        """
        found = self.find(stage, key)
        if found:
            return found, True
        with self._locked(stage, key, progress):
            found = self.find(stage, key)
            if found:
                return found, True
            return self._build(stage, key, build), False

    def touch(self, artifact: Artifact) -> None:
        """Mark an artifact as the newest of its stage."""
        os.utime(self.record_path(artifact.stage, artifact.key))

    def _build(self, stage: str, key: str, build: Build) -> Artifact:
        work = self._new_work_folder(stage, key)
        try:
            info = dict(build(work))
            return self._publish(stage, key, work, info)
        except OSError as error:
            if error.errno in DISK_TROUBLE:
                raise disk_error(error, self.root) from error
            raise
        finally:
            remove_tree(work)

    def _publish(self, stage: str, key: str, work: Path, info: dict[str, Any]) -> Artifact:
        files = _flushed_and_listed(work, self.digest)
        record = {
            "stage": stage,
            "key": key,
            "info": info,
            "files": [entry.as_json() for entry in files],
            "mtime_ns": {entry.path: (work / entry.path).stat().st_mtime_ns for entry in files},
        }
        for entry in files:
            (work / entry.path).chmod(stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH)
        target, record_path = self.path(stage, key), self.record_path(stage, key)
        target.parent.mkdir(parents=True, exist_ok=True)
        # A folder without a record, or half a record: their maker was killed right here.
        remove_tree(target)
        for leftover in target.parent.glob(f".{record_path.name}.*"):
            leftover.unlink()
        work.rename(target)
        try:
            flush(target.parent)
            write_atomically(record_path, json.dumps(record, indent=1))
        except BaseException:
            remove_tree(target)
            raise
        return Artifact(stage, key, target, info, files)

    def _new_work_folder(self, stage: str, key: str) -> Path:
        prefix = f"{stage}-{key[:_KEY_LENGTH]}-"
        folder = self.root / ".tmp"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for leftover in folder.glob(f"{prefix}*"):  # we hold the lock: its maker is gone
                remove_tree(leftover)
            work = folder / f"{prefix}{os.getpid()}"
            work.mkdir()
        except OSError as error:
            raise disk_error(error, self.root) from error
        return work

    @contextmanager
    def _locked(self, stage: str, key: str, progress: Progress) -> Iterator[None]:
        path = self.root / ".locks" / f"{stage}-{key[:_KEY_LENGTH]}"
        with hold_lock(path, f"another build makes this {stage} artifact", progress):
            yield

    def _quarantine(self, stage: str, key: str) -> None:
        """Move a damaged artifact out of sight, where a person can still look at it."""
        folder = self.root / ".quarantine"
        name = f"{stage}-{key[:_KEY_LENGTH]}-{time.time_ns()}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # another process was faster
                self.record_path(stage, key).rename(folder / f"{name}.json")
                self.path(stage, key).rename(folder / name)
        except OSError as error:
            raise disk_error(error, self.root) from error


def _flushed_and_listed(root: Path, digest: Callable[[Path], str]) -> tuple[FileEntry, ...]:
    """Every file below `root`, hashed while the disk takes it: both wait for something else."""
    paths = [path for path in root.rglob("*") if path.is_file()]
    with ThreadPoolExecutor(1) as disk:
        flushed = [disk.submit(flush, path) for path in paths]
        files = list_files(root, digest)
        for each in flushed:
            each.result()
    return files


def link_or_copy(source: Path, target: Path) -> None:
    """Hard-link a file, or copy it where the two folders lie on different file systems."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def remove_tree(root: Path) -> None:
    """Delete a folder and all in it, read-only files too; nothing happens if it is not there."""
    shutil.rmtree(root, ignore_errors=True)


def require_space(folder: Path, needed: int, purpose: str) -> None:
    """Raise StoreError unless `needed` bytes are free on the file system of `folder`."""
    while not folder.exists():
        folder = folder.parent
    free = psutil.disk_usage(str(folder)).free
    if free < needed:
        raise StoreError(
            f"{purpose} needs about {needed / 1e9:.1f} GB, and {folder} has {free / 1e9:.1f} GB "
            "free",
            "Free some space, or set DEPLOYER_HOME to a folder on a larger disk.",
        )


def _unchanged(root: Path, entry: FileEntry, mtime_ns: int | None) -> bool:
    try:
        status = (root / entry.path).stat()
    except (OSError, ValueError):  # a damaged record may name what is no path at all
        return False
    if status.st_size != entry.size:
        return False
    return status.st_mtime_ns == mtime_ns or file_digest(root / entry.path) == entry.sha256
