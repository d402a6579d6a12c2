"""Hashes of large files, remembered by what identifies a file's content on disk.

A file that has the same device, inode, size and modification time as when it was hashed is taken
to be the same, so that a second build of a 16 GB checkpoint starts at once.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field
from pathlib import Path

from deployer.artifacts import file_digest, file_identity
from deployer.durable import write_atomically


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

    def digest(self, path: Path) -> str:
        """SHA-256 of a file, from memory where the file is unchanged."""
        identity = file_identity(path)
        if identity not in self.known:
            self.known[identity] = file_digest(path)
            with contextlib.suppress(OSError):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(self.path, json.dumps(self.known))
        return self.known[identity]
