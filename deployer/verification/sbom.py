"""The bill of materials: CycloneDX, and about this bundle's own files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from deployer.artifacts import SBOM, SUMS, Manifest
from deployer.errors import Fault
from deployer.verification.reading import MAX_JSON, Unreadable, parse_json, read_file

MODEL = "machine-learning-model"
WRITTEN_LATER = (SBOM, SUMS, "README.md")
"""Files that a bill cannot list: they are made after it."""


def check_sbom(root: Path, manifest: Manifest) -> list[Fault]:
    """Faults of the bill of materials; one that says nothing of a file is as bad as a wrong one."""
    try:
        document = parse_json(read_file(root / SBOM, MAX_JSON))
        return [Fault(SBOM, problem) for problem in _problems(document, manifest)]
    except Unreadable as error:
        return [Fault(SBOM, str(error))]


def _problems(document: Any, manifest: Manifest) -> Iterator[str]:
    model = _model(document)
    if model is None:
        yield "is no CycloneDX document about a model"
        return
    if model.get("name") != manifest.name:
        yield f"is about another model, {model.get('name')!r}"
    told = dict(_files(model))
    for entry in manifest.files:
        if entry.path in WRITTEN_LATER:
            continue
        if entry.path not in told:
            yield f"does not list {entry.path}"
        elif told[entry.path] != [entry.sha256]:
            yield f"lists another content of {entry.path}"
    own = _sha256(model)
    weights = [entry.sha256 for entry in manifest.files if entry.path == manifest.weights]
    if own and own != weights:
        yield "gives the model another digest than its weights have"


def _model(document: Any) -> Mapping[str, Any] | None:
    if not isinstance(document, dict) or document.get("bomFormat") != "CycloneDX":
        return None
    metadata = document.get("metadata")
    model = metadata.get("component") if isinstance(metadata, dict) else None
    return model if isinstance(model, dict) and model.get("type") == MODEL else None


def _files(model: Mapping[str, Any]) -> Iterator[tuple[str, list[Any]]]:
    """(name, SHA-256 digests) of each file that the model is said to consist of."""
    components = model.get("components")
    for each in components if isinstance(components, list) else ():
        if isinstance(each, dict) and each.get("type") == "file":
            yield str(each.get("name")), _sha256(each)


def _sha256(component: Mapping[str, Any]) -> list[Any]:
    hashes = component.get("hashes")
    return [
        each.get("content")
        for each in (hashes if isinstance(hashes, list) else ())
        if isinstance(each, dict) and each.get("alg") == "SHA-256"
    ]
