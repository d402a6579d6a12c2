"""Small bundles on disk, whole in every respect, to be damaged by tests."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import made_up_bundle
import model_files

from deployer import sbom
from deployer.artifacts import MANIFEST, SBOM, SIGNATURE, FileEntry, Manifest, list_files

CHAT = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
KEY = hashlib.sha256(b"a public key").hexdigest()
SMALL: dict[str, Any] = {
    "LICENSE": "Made up.\n",
    "README.md": "# A small bundle\n",
    "chat_template.jinja": CHAT,
    "config.json": model_files.CONFIG,
    "generation_config.json": {"temperature": 0.5},
    "tokenizer.json": {"model": {"vocab": {"a": 0, "auto_map": 1}}},
    "tokenizer_config.json": {"bos_token": "<s>", "chat_template": CHAT},
}


def write_bundle(
    root: Path, engine: str = "llama.cpp", more: Mapping[str, Any] | None = None, **changes: Any
) -> Path:
    """A whole bundle in a new folder. `more` are further files: bytes, text, or a JSON value."""
    root.mkdir(parents=True)
    if engine == "llama.cpp":
        put(root, "model.gguf", model_files.gguf(
            {**model_files.METADATA, "tokenizer.chat_template": CHAT}))  # fmt: skip
    else:
        model_files.checkpoint(root)
    for name, content in {**SMALL, **(more or {})}.items():
        put(root, name, content)
    seal(root, engine, **changes)
    return root


def put(root: Path, name: str, content: Any) -> None:
    """Write one file of a bundle; what is neither bytes nor text is JSON."""
    if not isinstance(content, bytes | str):
        content = json.dumps(content)
    (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def seal(root: Path, engine: str = "llama.cpp", bill: str | None = None, **changes: Any) -> None:
    """Write a manifest, and a bill of materials, of what lies in the folder now.

    So does whoever makes a bundle, and whoever forges one. `changes` replace the manifest's fields.
    """
    (root / SBOM).unlink(missing_ok=True)
    draft = made_up_bundle.manifest(engine, files=_listed(root))
    (root / SBOM).write_text(bill or sbom.render(draft, ()), encoding="utf-8")
    files = _listed(root)
    size = sum(entry.size for entry in files)
    fields = {"files": files, "size_bytes": size, **changes}
    manifest = made_up_bundle.manifest(engine, **fields)
    (root / MANIFEST).write_text(manifest.text(), encoding="utf-8")


def _listed(root: Path) -> tuple[FileEntry, ...]:
    return tuple(each for each in list_files(root) if each.path not in (MANIFEST, SIGNATURE))


def digests_of(root: Path) -> dict[str, str]:
    """What a signature covers: every file but itself."""
    manifest = Manifest.parse((root / MANIFEST).read_text(encoding="utf-8"))
    own = hashlib.sha256((root / MANIFEST).read_bytes()).hexdigest()
    return {each.path: each.sha256 for each in manifest.files} | {MANIFEST: own}


def statement(digests: Mapping[str, str]) -> dict[str, Any]:
    """What is signed, with the fields that model-signing 1 writes."""
    resources = [
        {"name": name, "algorithm": "sha256", "digest": digest}
        for name, digest in sorted(digests.items())
    ]
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "demo", "digest": {"sha256": "0" * 64}}],
        "predicateType": "https://model_signing/signature/v1.0",
        "predicate": {
            "serialization": {"method": "files", "hash_type": "sha256", "allow_symlinks": False},
            "resources": resources,
        },
    }


def signature_document(payload: bytes, key: str = KEY, made: bytes = b"made up") -> dict[str, Any]:
    """A signature file as JSON; nobody made the signature in it."""
    return {
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": {"publicKey": {"hint": key}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": "application/vnd.in-toto+json",
            "signatures": [{"sig": base64.b64encode(made).decode(), "keyid": ""}],
        },
    }


def signature_text(value: Any) -> bytes:
    """The bytes of a signature file: of a statement's value, or of the whole document."""
    if "dsseEnvelope" not in value:
        value = signature_document(json.dumps(value, indent=2).encode())
    return json.dumps(value, separators=(",", ":")).encode()
