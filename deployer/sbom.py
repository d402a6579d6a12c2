"""A bundle's bill of materials: CycloneDX 1.6 JSON with the model and the toolchains. Pure.

The document says what the model is (a component of type machine-learning-model with its files, its
licence, its origin and its measured quality), which toolchains made it and serve it, and which
packages each of them pins. It holds no time and no random number, so equal bundles have equal ones.

It is written by hand because cyclonedx-python-lib (11.12) has no model card; its validator checks
the result in the tests.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from deployer.artifacts import FOLDER, FileEntry, Manifest, json_digest

SPECIFICATION = "1.6"
MODEL = "model"
"""The reference of the model in the document."""
LICENCES = frozenset(
    {
        "Apache-2.0", "MIT", "BSD-2-Clause", "BSD-3-Clause", "BSD-3-Clause-Clear", "ISC",
        "CC0-1.0", "CC-BY-4.0", "CC-BY-SA-4.0", "CC-BY-NC-4.0", "CC-BY-NC-SA-4.0",
        "CC-BY-NC-ND-4.0", "MPL-2.0", "Unlicense", "AFL-3.0", "ECL-2.0", "WTFPL",
    }
)  # fmt: skip
"""SPDX ids that a licence may be given by; any other is given by its name."""
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")
_HASH_LINES = re.compile(r'\{\s+"alg": "SHA-256",\s+"content": "([0-9a-f]{64})"\s+\}')
_SERIALS = uuid.UUID("a5f0c5b0-6a3e-5f0e-9a55-2f0f6f3f1d11")


@dataclass(frozen=True)
class Toolchain:
    """A toolchain that made the model: the texts of its lock and of its source release's lock.

    `serves` marks the one with the engine that serves the model.
    """

    name: str
    lock: str
    source: str = ""
    serves: bool = False


@dataclass(frozen=True)
class Package:
    """A pinned package: the SHA-256 of every archive of it that the lock allows."""

    name: str
    version: str
    hashes: tuple[str, ...]

    @property
    def purl(self) -> str:
        return f"pkg:pypi/{self.name}@{quote(self.version, safe='')}"


def render(manifest: Manifest, toolchains: Sequence[Toolchain]) -> str:
    """The document for a bundle. `manifest` lists the model's own files; it needs no digest yet."""
    locked = {made: packages_in(made.lock + made.source) for made in toolchains}
    document: dict[str, Any] = {
        "$schema": f"http://cyclonedx.org/schema/bom-{SPECIFICATION}.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": SPECIFICATION,
        "serialNumber": "",
        "version": 1,
        "metadata": {
            "lifecycles": [{"phase": "build"}],
            "tools": {"components": [_maker(manifest.created_by)]},
            "component": _model(manifest),
        },
        "components": [*map(_platform, toolchains), *_libraries(locked)],
        "dependencies": _dependencies(locked),
    }
    document["serialNumber"] = f"urn:uuid:{uuid.uuid5(_SERIALS, json_digest(document))}"
    text = json.dumps(document, indent=1, ensure_ascii=False)
    return _HASH_LINES.sub(r'{"alg": "SHA-256", "content": "\1"}', text) + "\n"


def packages_in(lock: str) -> list[Package]:
    """What a lock pins for this Python and platform, in its order."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    found = []
    for block in re.split(r"\n(?=\S)", lock.strip()):
        wanted = Requirement(block.partition("\\")[0].strip())
        if wanted.marker is None or wanted.marker.evaluate():
            (pin,) = wanted.specifier
            hashes = tuple(_HASH.findall(block))
            found.append(Package(canonicalize_name(wanted.name), pin.version, hashes))
    return found


def _maker(created_by: str) -> dict[str, str]:
    name, _, version = created_by.partition(" ")
    return {"type": "application", "name": name, "version": version}


def _hashes(digests: Sequence[str]) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": digest} for digest in digests]


def _properties(values: Mapping[str, Any]) -> list[dict[str, str]]:
    """Properties under deployer's own names; what is None is left out."""
    return [
        {"name": f"deployer:{name}", "value": str(value)}
        for name, value in values.items()
        if value is not None
    ]


def _model(manifest: Manifest) -> dict[str, Any]:
    weights = [entry.sha256 for entry in manifest.files if entry.path == manifest.weights]
    licence = manifest.source.get("license")
    return {
        "type": "machine-learning-model",
        "bom-ref": MODEL,
        "name": manifest.name,
        "description": f"Weights of a language model for {manifest.engine}.",
        **({"hashes": _hashes(weights)} if manifest.weights != FOLDER else {}),
        **({"licenses": [{"license": _licence(str(licence))}]} if licence else {}),
        "pedigree": {"ancestors": [_ancestor(manifest.source)], "notes": _made(manifest)},
        "components": [_file(entry) for entry in manifest.files],
        "modelCard": _card(manifest),
        "properties": _properties(
            {
                "engine": manifest.engine,
                "method": manifest.quantization.get("method"),
                "scheme": manifest.quantization.get("scheme"),
                "bits_per_weight": manifest.bits_per_weight,
            }
        ),
    }


def _licence(name: str) -> dict[str, str]:
    return {"id" if name in LICENCES else "name": name}


def _file(entry: FileEntry) -> dict[str, Any]:
    return {"type": "file", "name": entry.path, "hashes": _hashes([entry.sha256])}


def _ancestor(source: Mapping[str, Any]) -> dict[str, Any]:
    """The model before: a repository's revision, a package's release, or a file or folder."""
    model: dict[str, Any] = {"type": "machine-learning-model"}
    if "repository" in source:
        name, revision = str(source["repository"]), str(source["revision"])
        purl = f"pkg:huggingface/{quote(name)}@{quote(revision.lower(), safe='')}"
        return {**model, "name": name, "version": revision, "purl": purl}
    if "package" in source:
        name, _, version = str(source["package"]).partition("==")
        package = Package(name.lower().replace("_", "-"), version, ())
        return {**model, "name": name, "version": version, "purl": package.purl}
    if "file" in source:
        return {**model, "name": source["file"], "hashes": _hashes([source["sha256"]])}
    content = _properties({"sha256_of_names_and_files": source.get("sha256")})
    return {**model, "name": "a folder with a checkpoint", "properties": content}


def _made(manifest: Manifest) -> str:
    """How the model differs from its ancestor, in one sentence."""
    method, scheme = manifest.quantization.get("method"), manifest.quantization.get("scheme")
    if method == "none":
        return "Its weights are the ancestor's, converted where the engine needs that."
    label = f"{method} {scheme}" if scheme else f"{method}"
    if manifest.quantization.get("load"):
        return f"The engine quantizes the weights to {label} while it loads them."
    return f"Quantized to {label} by {manifest.quantization.get('tool_used')}."


def _card(manifest: Manifest) -> dict[str, Any]:
    return {
        "modelParameters": {
            "task": "text-generation",
            "datasets": _datasets(manifest),
            "inputs": [{"format": "text"}],
            "outputs": [{"format": "text"}],
        },
        "quantitativeAnalysis": {"performanceMetrics": _metrics(manifest.quality)},
        "considerations": {
            "technicalLimitations": _limitations(manifest),
            "performanceTradeoffs": [
                f"{manifest.bits_per_weight} bits a weight, scales included; the figures compare "
                "it with the 16-bit model where there is one."
            ],
        },
    }


def _datasets(manifest: Manifest) -> list[dict[str, Any]]:
    """The texts that the quantizer and the measurement read."""
    quality, tuned = manifest.quality, manifest.calibration
    scored = {"use": "evaluation", "sha256": quality.get("corpus_sha256")}
    named = [(str(quality.get("corpus")), scored)]
    if tuned:
        fields = {name: tuned[name] for name in ("sha256", "samples", "length")}
        named.append((str(tuned["name"]), {"use": "calibration", **fields}))
    return [
        {"type": "dataset", "name": name, "contents": {"properties": _properties(facts)}}
        for name, facts in named
    ]


def _metrics(quality: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The measured figures that there are, each with its text and, where known, its interval."""
    over = f"{quality.get('tokens')} tokens of {quality.get('corpus')}"
    figures = (
        ("perplexity", quality.get("perplexity"), "value"),
        ("perplexity / 16-bit model's", quality.get("perplexity_ratio"), "value"),
        ("KL divergence from the 16-bit model, nats", quality.get("kl_divergence"), "mean"),
        (
            "top-1 agreement with the 16-bit model",
            {"value": quality.get("top1_agreement")},
            "value",
        ),
    )
    return [
        {"type": name, "value": str(figure[key]), "slice": over, **_interval(figure)}
        for name, figure, key in figures
        if figure and figure.get(key) is not None
    ]


def _interval(figure: Mapping[str, Any]) -> dict[str, Any]:
    if "low" not in figure or "high" not in figure:
        return {}
    bounds = {"lowerBound": str(figure["low"]), "upperBound": str(figure["high"])}
    return {"confidenceInterval": bounds}


def _limitations(manifest: Manifest) -> list[str]:
    said = [
        f"Quality was measured on one text ({manifest.quality.get('corpus')}); other texts and "
        "tasks may show other losses.",
        f"As served, a request holds at most {manifest.serve['context']} tokens, prompt and answer "
        "together.",
    ]
    if manifest.source.get("license") is None:
        said.append("The source declares no licence: ask its maker before you use or pass it on.")
    return said


def _platform(made: Toolchain) -> dict[str, Any]:
    """A toolchain; its hash is that of its lock file."""
    purpose = "serves and measures" if made.serves else "made"
    return {
        "type": "platform",
        "bom-ref": _reference(made),
        "name": made.name,
        "description": f"Isolated environment that {purpose} the model; its hash is its lock's.",
        "scope": "required" if made.serves else "excluded",
        "hashes": _hashes([hashlib.sha256(made.lock.encode()).hexdigest()]),
    }


def _reference(made: Toolchain) -> str:
    return f"toolchain:{made.name}"


def _libraries(locked: Mapping[Toolchain, Sequence[Package]]) -> list[dict[str, Any]]:
    """Every package once, sorted; required where the serving toolchain has it."""
    needed = {package.purl for made, some in locked.items() if made.serves for package in some}
    allowed: dict[str, dict[str, None]] = {}
    packages = {package.purl: package for some in locked.values() for package in some}
    for some in locked.values():
        for package in some:
            allowed.setdefault(package.purl, {}).update(dict.fromkeys(package.hashes))
    return [
        {
            "type": "library",
            "bom-ref": purl,
            "name": packages[purl].name,
            "version": packages[purl].version,
            "scope": "required" if purl in needed else "excluded",
            "hashes": _hashes(sorted(allowed[purl])),
            "purl": purl,
        }
        for purl in sorted(packages)
    ]


def _dependencies(locked: Mapping[Toolchain, Sequence[Package]]) -> list[dict[str, Any]]:
    """The model depends on its toolchains, and they on all that they pin."""
    made = [{"ref": MODEL, "dependsOn": [_reference(each) for each in locked]}]
    for toolchain, packages in locked.items():
        pinned = sorted({package.purl for package in packages})
        made.append({"ref": _reference(toolchain), "dependsOn": pinned})
    return made
