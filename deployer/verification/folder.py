"""What really lies in a bundle's folder: every listed file, as a regular file, and nothing else."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from deployer.artifacts import MANIFEST, SIGNATURE, FileEntry, Manifest
from deployer.errors import Fault

MAX_ENTRIES = 10_000
"""Names looked at; whoever fills a folder must not keep us busy."""


def check_folder(root: Path, manifest: Manifest) -> tuple[list[FileEntry], list[Fault]]:
    """(the listed files that are there with the right size, what is wrong with all others)."""
    listed = {entry.path: entry for entry in manifest.files}
    sizes, faults = _present(root, {*listed, MANIFEST, SIGNATURE})
    refused = {fault.file for fault in faults}
    sound = []
    for name, entry in listed.items():
        if name in refused:
            continue
        if name not in sizes:
            faults.append(Fault(name, "is missing"))
        elif sizes[name] != entry.size:
            faults.append(Fault(name, f"has {sizes[name]} bytes; the manifest says {entry.size}"))
        else:
            sound.append(entry)
    return sound, faults


def _present(root: Path, expected: set[str]) -> tuple[dict[str, int], list[Fault]]:
    """(sizes of the expected regular files, faults of everything else)."""
    sizes: dict[str, int] = {}
    faults: list[Fault] = []
    try:
        with os.scandir(root) as entries:
            for number, entry in enumerate(entries):
                if number >= MAX_ENTRIES:
                    faults.append(Fault("", f"the folder holds over {MAX_ENTRIES} files"))
                    break
                status = entry.stat(follow_symlinks=False)
                problem = _problem(entry.name, status.st_mode, expected)
                if problem:
                    faults.append(Fault(entry.name, problem))
                else:
                    sizes[entry.name] = status.st_size
    except OSError as error:
        faults.append(Fault("", f"the folder cannot be read: {error.strerror}"))
    return sizes, sorted(faults, key=lambda fault: fault.file)


def _problem(name: str, mode: int, expected: set[str]) -> str | None:
    if stat.S_ISLNK(mode):
        return "is a symbolic link; a bundle holds regular files only"
    if stat.S_ISDIR(mode):
        return "is a folder; a bundle is one flat folder"
    if not stat.S_ISREG(mode):
        return "is no regular file"
    return None if name in expected else "is not listed in the manifest"
