"""What the tars that leave here share: members without times and owners, and room on the disk."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

from deployer.errors import StoreError


def header(name: str, kind: bytes, size: int, mode: int) -> bytes:
    """The blocks before a member's content: ustar, with a pax part for what ustar cannot say.

    From 1970, owned by root, without user names: the same member always gives the same bytes.
    """
    info = tarfile.TarInfo(name)
    info.type, info.size, info.mode = kind, size, mode
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")


def require_space(folder: Path, needed: int, what: str) -> None:
    """Raise StoreError unless `needed` bytes are free where `what` is to be written."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StoreError(
            f"{what} takes {needed / 1e9:.1f} GB, and {folder} has {free / 1e9:.1f} GB free",
            "Free some space, or name another --output.",
        )
