"""A bundle of a few bytes on disk, with a true manifest; its weights are no model."""

from __future__ import annotations

from pathlib import Path

from made_up_bundle import manifest

from deployer.artifacts import MANIFEST, SIGNATURE, Bundle, list_files

CONTENT = {
    "model.gguf": b"\x00weights" * 300,
    "README.md": b"# a bundle\n",
    "bom.cdx.json": b"{}",
    "SHA256SUMS": b"",  # an empty file has no block of its own
}


def small_bundle(root: Path, name: str = "small", signature: str | None = None) -> Bundle:
    """Write a bundle into a new folder."""
    root.mkdir(parents=True)
    for path, content in CONTENT.items():
        (root / path).write_bytes(content)
    files = list_files(root)
    size = sum(entry.size for entry in files)
    made = manifest(name=name, files=files, size_bytes=size)
    (root / MANIFEST).write_text(made.text(), encoding="utf-8")
    if signature is not None:
        (root / SIGNATURE).write_text(signature, encoding="utf-8")
    return Bundle.read(root)
