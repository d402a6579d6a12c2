"""Small folders as inputs: files, links where files should be, folders where links should."""

from __future__ import annotations

import os
import random
from pathlib import Path

from mutating import unpack

LINK = b"\x00link:"
"""A packed file that begins so is a symbolic link; FOLDER is one."""
FOLDER = b"\x00folder"


def misplace(rng: random.Random, files: dict[str, bytes], name: str) -> None:
    """Leave a file out, rename it, or put a link or a folder in its place."""
    content = files.pop(name, b"")
    match rng.randrange(5):
        case 0:
            files[rng.choice(("model.safetensors", "model-00003-of-00002.safetensors", "x.bin",
                              "model-99999-of-00002.safetensors", "é.json"))] = content  # fmt: skip
        case 1:
            files[name] = LINK + rng.choice((b"../../../../etc/passwd", b"absent", name.encode()))
        case 2:
            files[name] = FOLDER
        case 3:
            files[name] = b""


def lay_out(data: bytes, folder: Path) -> dict[str, bytes]:
    """Write a packed folder."""
    files = unpack(data)
    for name, content in files.items():
        path = folder / name
        if content.startswith(LINK):
            to = content.removeprefix(LINK).replace(b"\0", b"")
            path.symlink_to(os.fsdecode(to[:200] or b"absent"))
        elif content == FOLDER:
            path.mkdir()
        else:
            path.write_bytes(content)
    return files
