"""What a manifest may say of its files: names, sizes, digests, and the kinds there are. Pure."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from pathlib import PurePosixPath

from deployer.artifacts import FOLDER, MANIFEST, SBOM, SIGNATURE, SUMS, FileEntry, Manifest
from deployer.checkpoint import PICKLES, WANTED
from deployer.errors import Fault

MAX_FILES = 1000
MAX_NAME = 255
"""Bytes a name has at most on Linux."""
MAX_SIZE = 1 << 50
KINDS = (*WANTED, "*.gguf", "LICENCE*", "COPYING*", SBOM, SUMS)
"""What a bundle holds; anything else is refused, whatever it may be."""
CODE = (
    ".py", ".pyc", ".pyd", ".pyz", ".so", ".dll", ".dylib", ".sh", ".bash", ".bat", ".cmd", ".ps1",
    ".js", ".mjs", ".wasm", ".exe", ".ipynb", ".pl", ".rb", ".lua", ".class",
)  # fmt: skip
ARCHIVES = (
    ".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar", ".whl", ".egg", ".jar",
    ".nemo", ".mar", ".keras",
)  # fmt: skip
_SHA256 = re.compile(r"[0-9a-f]{64}")


def check_listing(manifest: Manifest) -> list[Fault]:
    """Every fault of the list of files itself; nothing is looked at on the disk."""
    files = manifest.files
    if len(files) > MAX_FILES:
        return [Fault(MANIFEST, f"lists {len(files)} files; a bundle has at most {MAX_FILES}")]
    faults = [Fault(entry.path, problem) for entry in files for problem in _problems(entry)]
    faults += _collisions(files)
    faults += [Fault(MANIFEST, problem) for problem in _of_the_whole(manifest)]
    return faults


def is_plain(name: str) -> bool:
    """Whether a name is that of a file right in the folder: it can lead nowhere else."""
    return (
        bool(name)
        and name[0] != "."
        and name.isprintable()
        and not set(name) & set("/\\")
        and len(name.encode()) <= MAX_NAME
    )


def _problems(entry: FileEntry) -> Iterator[str]:
    if not is_plain(entry.path):
        yield "is no plain file name; a bundle is one flat folder"
        return
    if entry.path in (MANIFEST, SIGNATURE):
        yield "is listed in the manifest, which cannot hold the digest of this file"
    kind = _kind_problem(entry.path)
    if kind:
        yield kind
    if not 0 <= entry.size <= MAX_SIZE:
        yield f"is listed with the impossible size {entry.size}"
    if not _SHA256.fullmatch(entry.sha256):
        yield "is listed without a SHA-256 digest in hexadecimal"


def _kind_problem(name: str) -> str | None:
    suffix = PurePosixPath(name).suffix.lower()
    if suffix in PICKLES:
        return "is of a kind that can run code when it is loaded; weights are safetensors or GGUF"
    if suffix in CODE:
        return "is program code; a bundle holds none"
    if suffix in ARCHIVES:
        return "is an archive; a bundle holds its files as they are"
    if not any(PurePosixPath(name).match(pattern) for pattern in KINDS):
        return "is of a kind that a bundle does not hold"
    return None


def _collisions(files: tuple[FileEntry, ...]) -> list[Fault]:
    """Names that are one file on some systems: twice, in another case, composed differently."""
    seen = {_folded(name): name for name in (MANIFEST, SIGNATURE)}
    faults = []
    for entry in files:
        key = _folded(entry.path)
        if key in seen and entry.path not in (MANIFEST, SIGNATURE):
            faults.append(
                Fault(entry.path, f"is listed beside {seen[key]}; on some disks they are one file")
            )
        seen.setdefault(key, entry.path)
    return faults


def _folded(name: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


def _of_the_whole(manifest: Manifest) -> Iterator[str]:
    names = {entry.path for entry in manifest.files}
    total = sum(entry.size for entry in manifest.files)
    if manifest.size_bytes != total:
        yield f"says that the files have {manifest.size_bytes} bytes; they add up to {total}"
    tensors = any(name.endswith(".safetensors") for name in names)
    if manifest.weights == FOLDER:
        if not tensors:
            yield "lists no *.safetensors weights"
    elif manifest.weights not in names or not manifest.weights.endswith(".gguf"):
        yield f"names the weights {manifest.weights!r}, which are no GGUF file of its list"
    elif tensors:
        yield "lists *.safetensors beside GGUF weights"
    if SBOM not in names:
        yield f"lists no bill of materials ({SBOM})"
