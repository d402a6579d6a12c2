"""Packaging: what a bundle holds, what its manifest and README say, the declared licence."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from model_files import Q4_0, Tensor, checkpoint, gguf

from deployer.artifacts import (
    FOLDER,
    MANIFEST,
    SBOM,
    SIGNATURE,
    SUMS,
    Bundle,
    file_digest,
)
from deployer.planning import Machine, Plan, ResolvedSource, Texts, make_plan
from deployer.recipe import override_recipe
from deployer.stages import licence, package
from deployer.toolchains.specs import Host

Q4 = gguf(tensors=[Tensor("a", (64, 3), Q4_0)])
MADE = {MANIFEST, "README.md", SBOM, SUMS}
APACHE = "\n    Apache License\n    Version 2.0, January 2004\n    http://example.org/\n"
QUALITY = {
    "perplexity": {"value": 11.0}, "perplexity_ratio": {"value": 1.1, "low": 1.05, "high": 1.15},
    "baseline_perplexity": 10.0, "top1_agreement": 0.75, "kl_divergence": {"mean": 0.25},
    "tokens": 128, "window": 65, "windows": 2, "corpus": "text.txt", "corpus_sha256": "d",
    "method": "scored", "engine": "llama 1", "sample": " Paris",
}  # fmt: skip
TUNED = {"name": "calibration-en.txt", "sha256": "c", "samples": 16, "length": 256}


@cache
def planned(*overrides: str) -> Plan:
    recipe = override_recipe(
        {
            "version": 1, "name": "tiny", "source": {"package": "some-model==1.0"},
            "quantization": {"method": "gguf", "scheme": "q4_0"},
        },
        overrides,
    )  # fmt: skip
    source = ResolvedSource("package", {"package": "some-model==1.0"}, "checkpoint")
    machine = Machine(Host("Linux", "x86_64", "3.11"), 10**10)
    return make_plan(recipe, source, machine, Texts("e", "c"))


def records(**changes: Any) -> dict[str, Any]:
    return {
        "source": {"kind": "package", "package": "some-model==1.0"},
        "weights": {"bits_per_weight": 4.5, "types": {"Q4_0": 1}, "kv_bytes_per_token": 9,
                    "context_length": 128},
        "calibration": None,
        "quantization": {"tool_used": "gguf", "substitutions": []},
        "quality": QUALITY,
        "parity": {"strings": 15},
        "observed": {"scoring_peak_bytes": 5, "seconds": {"quantize": 1.5}, "machine": "m"},
        **changes,
    }  # fmt: skip


def new(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


def packaged(root: Path, *overrides: str, licence_file: bool = True, **changes: Any) -> Bundle:
    """A GGUF bundle in `root`/bundle, with what its source had to give."""
    weights = new(root / "weights") / "model.gguf"
    weights.write_bytes(Q4)
    source = checkpoint(root / "checkpoint")
    for name in ("chat_template.jinja", "README.md", "generation_config.json"):
        (source / name).write_text(name, encoding="utf-8")
    if licence_file:
        (source / "LICENSE").write_text(APACHE, encoding="utf-8")
    folder, plan = new(root / "bundle"), planned(*overrides)
    info = package.run(plan, weights, source, records(**changes), {"gguf": "0.19"}, folder)
    bundle = Bundle.read(folder)
    assert info["digest"] == bundle.manifest.digest
    return bundle


def readme(bundle: Bundle) -> str:
    return (bundle.root / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """To be looked at, not to be changed."""
    return packaged(tmp_path_factory.mktemp("bundle"), calibration=TUNED)


# What it holds


def test_a_bundle_holds_all_that_belongs_to_the_weights(bundle: Bundle) -> None:
    assert {path.name for path in bundle.root.iterdir()} == MADE | {
        "model.gguf", "LICENSE", "chat_template.jinja", "config.json", "tokenizer.json",
        "generation_config.json",
    }  # fmt: skip


def test_the_manifest_says_what_it_is_made_of(bundle: Bundle) -> None:
    manifest = bundle.manifest
    assert manifest.bits_per_weight == 4.5
    assert manifest.tools == {"gguf": "0.19"}
    assert manifest.quantization["scheme"] == "q4_0"
    assert manifest.quantization["tool_used"] == "gguf"
    assert manifest.quantization["types"] == {"Q4_0": 1}
    assert manifest.recipe["name"] == "tiny"
    assert manifest.serve["port"] == 8080
    assert manifest.source["license"] == "Apache-2.0"
    assert manifest.calibration == TUNED
    plan = planned()
    assert manifest.plan["device"] == "cpu"
    assert manifest.plan["stages"] == {stage.name: stage.key for stage in plan.stages}
    assert manifest.observed["scoring_peak_bytes"] == 5
    assert manifest.size_bytes == sum(entry.size for entry in manifest.files)


def test_every_file_but_the_manifest_is_listed_with_its_digest(bundle: Bundle) -> None:
    listed = {entry.path: entry.sha256 for entry in bundle.manifest.files}
    there = {path.name for path in bundle.root.iterdir()}
    assert set(listed) == there - {MANIFEST}
    assert all(file_digest(bundle.root / path) == digest for path, digest in listed.items())


def test_the_manifest_is_sealed_and_spelled_in_the_one_way(bundle: Bundle) -> None:
    manifest = bundle.manifest
    assert (manifest.digest, manifest.seal) == (manifest.true_digest(), manifest.true_seal())
    assert (bundle.root / MANIFEST).read_text(encoding="utf-8") == manifest.text()


def test_the_same_inputs_give_the_same_digest(tmp_path: Path) -> None:
    """Also where the second build saw other times and another machine."""
    one = packaged(tmp_path / "one")
    seen = {"scoring_peak_bytes": None, "seconds": {}, "machine": "another"}
    other = packaged(tmp_path / "other", observed=seen)
    assert one.manifest.digest == other.manifest.digest
    assert one.manifest.seal != other.manifest.seal
    changed = packaged(tmp_path / "changed", "serve.port=9000")
    assert changed.manifest.digest != one.manifest.digest


def test_the_sums_are_of_every_file_but_themselves_and_the_manifest(bundle: Bundle) -> None:
    lines = (bundle.root / SUMS).read_text(encoding="utf-8").splitlines()
    told = dict(line.split("  ", 1)[::-1] for line in lines)
    listed = {entry.path: entry.sha256 for entry in bundle.manifest.files if entry.path != SUMS}
    assert told == listed


def test_a_quantized_checkpoint_becomes_a_folder_a_server_can_load(tmp_path: Path) -> None:
    folder, source = new(tmp_path / "bundle"), checkpoint(tmp_path / "source")
    weights = checkpoint(tmp_path / "weights")
    for path, text in ((source / "config.json", "{}"), (source / "LICENSE", "Apache")):
        path.write_text(text, encoding="utf-8")
    plan = planned("target.engine=vllm", "quantization={method: gptq, group_size: 64}")
    package.run(plan, weights, source, records(), {}, folder)
    bundle = Bundle.read(folder)
    assert bundle.weights == folder
    assert bundle.manifest.weights_bytes == (folder / "model.safetensors").stat().st_size
    assert (folder / "config.json").samefile(weights / "config.json")
    assert (folder / "LICENSE").read_text(encoding="utf-8") == "Apache"


def test_what_is_quantized_while_loading_has_the_bits_it_had_in_memory(tmp_path: Path) -> None:
    """Its files hold 16 bits a weight; the manifest says how the engine is to load them."""
    folder = new(tmp_path / "bundle")
    memory = {"bits_per_weight": 6.5, "types": {"Linear4bit": 7}, "weights_bytes": 9}
    plan = planned("target.engine=transformers", "quantization={method: hqq, scheme: int4}")
    weights = checkpoint(tmp_path / "weights")
    quality = {**QUALITY, "memory": memory}
    package.run(plan, weights, None, records(quality=quality), {}, folder)
    bundle = Bundle.read(folder)
    manifest = bundle.manifest
    assert manifest.bits_per_weight == 6.5
    assert manifest.quantization["types"] == {"Linear4bit": 7}
    assert manifest.quantization["load"] == {"method": "hqq", "scheme": "int4", "group_size": 64}
    assert "6.5 bits each, in memory; 16 in the files" in readme(bundle)
    assert "the engine itself, each time it loads" in readme(bundle)


def test_a_gguf_source_gives_a_bundle_of_weights_alone(tmp_path: Path) -> None:
    folder = new(tmp_path / "bundle")
    (tmp_path / "model.gguf").write_bytes(Q4)
    package.run(planned(), tmp_path / "model.gguf", None, records(), {}, folder)
    assert {path.name for path in folder.iterdir()} == MADE | {"model.gguf"}


def test_a_source_that_was_a_bundle_leaves_its_papers_behind(tmp_path: Path) -> None:
    """They are of another bundle; its weights and its licence are taken over."""
    weights = checkpoint(tmp_path / "weights")
    for name in (*MADE, SIGNATURE, "LICENSE"):
        (weights / name).write_text("old", encoding="utf-8")
    folder = new(tmp_path / "bundle")
    plan = planned("target.engine=vllm", "quantization={method: none}")
    package.run(plan, weights, weights, records(), {}, folder)
    manifest = Bundle.read(folder).manifest
    assert {entry.path for entry in manifest.files} == (MADE - {MANIFEST}) | {
        "LICENSE", "config.json", "model.safetensors", "tokenizer.json",
    }  # fmt: skip
    assert all((folder / name).read_text(encoding="utf-8") != "old" for name in MADE)
    assert all((weights / name).read_text(encoding="utf-8") == "old" for name in MADE)


# How it is launched


def test_the_launch_stands_in_the_manifest_as_it_works_in_the_folder(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("secret", encoding="utf-8")
    serve = ("host=0.0.0.0", "port=0", f"api_key_file={tmp_path}/keys", "context=1000")
    made = packaged(tmp_path / "here", *(f"serve.{each}" for each in serve))
    (launch,) = made.manifest.launch
    argv = [*launch["program"], *launch["arguments"]]
    assert argv[:3] == ["llama-server", "--model", "model.gguf"]
    for flag, wanted in {"--host": "127.0.0.1", "--port": "8080", "--ctx-size": "8000"}.items():
        assert argv[argv.index(flag) + 1] == wanted
    assert "--threads" not in argv  # of the machine that runs it
    assert not any("key" in word for word in argv)
    assert (launch["key_variable"], launch["image"], launch["env"]) == ("LLAMA_API_KEY", None, {})


def test_the_launch_of_a_folder_is_in_that_folder(tmp_path: Path) -> None:
    folder, weights = new(tmp_path / "bundle"), checkpoint(tmp_path / "weights")
    plan = planned("target.engine=vllm", "quantization={method: gptq, group_size: 64}")
    package.run(plan, weights, None, records(), {}, folder)
    bundle = Bundle.read(folder)
    (launch,) = bundle.manifest.launch
    assert bundle.manifest.weights == FOLDER
    assert launch["arguments"][:2] == ["--model", "."]
    assert "OMP_NUM_THREADS" not in launch["env"]
    assert "HF_HUB_OFFLINE=1 \\\n" in readme(bundle)


def test_an_engine_without_a_program_of_its_own_has_no_launch(tmp_path: Path) -> None:
    folder, weights = new(tmp_path / "bundle"), checkpoint(tmp_path / "weights")
    plan = planned("target.engine=transformers", "quantization={method: hqq, scheme: int4}")
    memory = {"bits_per_weight": 6.5, "types": {}, "weights_bytes": 9}
    package.run(plan, weights, None, records(quality={**QUALITY, "memory": memory}), {}, folder)
    bundle = Bundle.read(folder)
    assert bundle.manifest.launch == ()
    assert "no other program" in readme(bundle)


# What the README says


def test_the_readme_is_for_a_person_without_deployer(bundle: Bundle) -> None:
    text = readme(bundle)
    for words in (
        "# tiny", "perplexity 11.0, 1.1 times the 16-bit model's (95 % interval 1.05 to 1.15)",
        "75.0% of the tokens; mean KL divergence 0.25 nats", "128 tokens of text.txt",
        "from the Python package some-model==1.0", "tuned on 16 x 256 tokens of calibration-en.txt",
        "perplexity up to 200 and 1.5 times", "Licence: Apache-2.0 (LICENSE)",
        "sha256sum -c SHA256SUMS", "deployer verify . --key PUBLIC.pem", "LLAMA_API_KEY",
        "llama-server \\\n  --model model.gguf \\\n  --alias tiny",
    ):  # fmt: skip
        assert words in text, words
    assert max(map(len, text.splitlines())) < 200


def test_a_missing_licence_is_told(tmp_path: Path) -> None:
    bundle = packaged(tmp_path, licence_file=False)
    assert "license" not in bundle.manifest.source
    assert "Licence: no licence file came with the source" in readme(bundle)
    sbom = json.loads((bundle.root / SBOM).read_text(encoding="utf-8"))
    assert "licenses" not in sbom["metadata"]["component"]


def test_the_seal_can_be_checked_as_the_readme_says(bundle: Bundle) -> None:
    """The command is sed's; here the same replacement is made."""
    assert """sed 's/"seal": "[0-9a-f]*"/"seal": ""/' manifest.json""" in readme(bundle)
    seal = f'"seal": "{bundle.manifest.seal}"'
    text = (bundle.root / MANIFEST).read_text(encoding="utf-8")
    assert text.count(seal) == 1
    emptied = text.replace(seal, '"seal": ""')
    assert hashlib.sha256(emptied.encode()).hexdigest() == bundle.manifest.seal


# The licence

CARDS = {
    "---\nlanguage: en\nlicense: apache-2.0\n---\n# Model\n": "Apache-2.0",
    "---\r\nlicense: 'mit'\r\n---\r\n": "MIT",
    "---\nlicense: other\nlicense_name: some-community-licence\n---\n": "some-community-licence",
    "---\nlicense: other\n---\n": "other",
    "---\r\nlicense: MIT\r\nlanguage: en\r\n---\r\n": "MIT",
    "---\nlicense: llama3.2\n---\n": "llama3.2",
    "---\nlicense:\n- mit\n---\n": None,
    "# Model\nlicense: mit\n": None,
    "---\nlicense: mit\n": None,
    "": None,
}


@pytest.mark.parametrize(("card", "named"), CARDS.items())
def test_a_licence_is_what_the_model_card_names(
    tmp_path: Path, card: str, named: str | None
) -> None:
    (tmp_path / "README.md").write_bytes(card.encode())
    assert licence.declared(tmp_path) == named


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (APACHE, "Apache-2.0"),
        ("MIT License\n\nCopyright", "MIT"),
        ("The MIT License (MIT)", "MIT"),
        ("Some terms, compatible with the MIT License", None),
        ("\xff\xfe", None),
    ],
)
def test_without_a_card_it_is_what_the_licence_file_begins_with(
    tmp_path: Path, text: str, named: str | None
) -> None:
    (tmp_path / "LICENSE.txt").write_text(text, encoding="utf-8")
    assert licence.declared(tmp_path) == named
    (tmp_path / "README.md").write_text("---\nlicense: bsd-3-clause\n---\n", encoding="utf-8")
    assert licence.declared(tmp_path) == "BSD-3-Clause"


def test_where_nothing_is_told_nothing_is_declared(tmp_path: Path) -> None:
    assert licence.declared(tmp_path) is None
