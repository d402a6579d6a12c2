"""Hashes of large files, remembered by what identifies a file's content on disk.

A file that has the same device, inode, size, modification and change time as when it was hashed is
taken to be the same, so that a second build of a 16 GB checkpoint starts at once. The change time
is the kernel's own: a file that was unpacked in the place of another one may have its inode and any
modification time it likes.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from deployer.artifacts import file_digest, file_identity
from deployer.durable import write_atomically

SETTLED_SECONDS = 2.0
"""How long ago a file must have been written to be remembered: within a tick of a coarse clock it
could change again and keep its time."""


@dataclass
class DigestMemo:
    """Remembers digests in one small JSON file; losing it costs only time."""

    path: Path
    known: dict[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> DigestMemo:
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            known = {}
        return cls(path, known if isinstance(known, dict) else {})

    def knows(self, path: Path) -> bool:
        """Whether a file was hashed before and is unchanged."""
        return _identity(path) in self.known

    def forget(self, path: Path) -> None:
        """Let a file be hashed anew when it is asked for next."""
        self.known.pop(_identity(path), None)

    def digest(self, path: Path, hashed: Callable[[Path], str] | None = None) -> str:
        """SHA-256 of a file, from memory where the file is unchanged, else by `hashed`."""
        identity = _identity(path)
        if identity in self.known:
            return self.known[identity]
        digest = (hashed or file_digest)(path)
        if _identity(path) == identity and time.time() - _touched(path) > SETTLED_SECONDS:
            self.known[identity] = digest
            with contextlib.suppress(OSError):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(self.path, json.dumps(self.known))
        return digest


def _identity(path: Path) -> str:
    return f"{file_identity(path)}:{path.stat().st_ctime_ns}"


def _touched(path: Path) -> float:
    """When a file, or what is told of it, was changed last; seconds since the epoch."""
    status = path.stat()
    return max(status.st_mtime, status.st_ctime)
