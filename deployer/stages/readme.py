"""A bundle's README.md: what it is, how good, under which licence, how to check and run it.

It is for somebody who has the bundle and nothing else, so each command in it is of a standard tool
or of the engine itself.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from deployer.artifacts import FOLDER, MANIFEST, SBOM, SIGNATURE, SUMS, Manifest

NAME = "README.md"


def render(manifest: Manifest) -> str:
    """The text of README.md; `manifest` needs no digest yet."""
    return "\n".join(
        [
            f"# {manifest.name}",
            "",
            f"The weights of a language model for {manifest.engine} and all that belongs to them, "
            f"made by {manifest.created_by}.",
            "",
            *(f"- {line}" for line in _facts(manifest)),
            "",
            "## Check it",
            "",
            *_check(),
            "",
            "## Run it",
            "",
            *_run(manifest),
            "",
        ]
    )


def _facts(manifest: Manifest) -> list[str]:
    return [
        f"Model: {source_in_words(manifest.source)}",
        f"Weights: {_weights(manifest)}",
        *_quality(manifest.quality),
        f"Limits it had to keep: {limits_in_words(manifest)}",
        f"Quantizer: {calibration_in_words(manifest)}",
        f"Licence: {licence_in_words(manifest)}",
        f"`{MANIFEST}` holds the recipe, the tools and their versions, and every file's digest; "
        f"`{SBOM}` lists all parts (CycloneDX).",
    ]


def source_in_words(source: Mapping[str, Any]) -> str:
    """Where the model came from, pinned."""
    if "repository" in source:
        return f"{source['repository']} at revision {source['revision']}"
    if "package" in source:
        return f"from the Python package {source['package']}"
    if "file" in source:
        return f"the file {source['file']}, SHA-256 {source['sha256']}"
    return f"a folder whose names and files have the SHA-256 {source.get('sha256')}"


def calibration_in_words(manifest: Manifest) -> str:
    """Which tool made the weights smaller, and what it was tuned on."""
    quantization, tuned = manifest.quantization, manifest.calibration
    if quantization.get("load"):
        return "the engine itself, each time it loads the weights"
    if quantization.get("method") == "none":
        return "none, these are the 16-bit weights"
    tool = str(quantization.get("tool_used"))
    if tuned is None:
        return f"{tool}, without calibration"
    samples = f"{tuned['samples']} x {tuned['length']} tokens"
    return f"{tool}, tuned on {samples} of {tuned['name']} (SHA-256 {tuned['sha256']})"


def licence_in_words(manifest: Manifest) -> str:
    """The declared licence and the files that hold it."""
    named, files = manifest.source.get("license"), manifest.licence_files
    if not files:
        told = f"{named}, as the source declares; " if named else ""
        return f"{told}no licence file came with the source"
    return f"{named or 'as these files say'} ({', '.join(files)})"


def _weights(manifest: Manifest) -> str:
    where = "the safetensors files" if manifest.weights == FOLDER else manifest.weights
    counted = (
        "in memory; 16 in the files, quantized while loading"
        if manifest.quantization.get("load")
        else "stored ones counted with their scales"
    )
    size = f"{manifest.weights_bytes / 1e6:.1f} MB"
    return f"{where}, {size}; {manifest.bits_per_weight} bits each, {counted}"


def _quality(quality: Mapping[str, Any]) -> list[str]:
    ratio = quality.get("perplexity_ratio")
    compared = f", {ratio['value']} times the 16-bit model's" if ratio else ""
    if ratio and "low" in ratio:
        compared += f" (95 % interval {ratio['low']} to {ratio['high']})"
    lines = [
        f"Quality: perplexity {quality['perplexity']['value']}{compared}, over "
        f"{quality['tokens']} tokens of {quality['corpus']} ({quality['method']})"
    ]
    if "top1_agreement" in quality:
        lines.append(
            f"Same first choice as the 16-bit model: {quality['top1_agreement']:.1%} of the tokens"
            + _divergence(quality.get("kl_divergence"))
        )
    return lines


def _divergence(divergence: Mapping[str, Any] | None) -> str:
    return f"; mean KL divergence {divergence['mean']} nats" if divergence else ""


def limits_in_words(manifest: Manifest) -> str:
    """The limits of the quality gate that this model was held to."""
    limits = manifest.recipe["quality"]
    highest = f"perplexity up to {limits['max_perplexity']:g}"
    if "perplexity_ratio" not in manifest.quality:
        return highest
    return (
        f"{highest} and {limits['max_perplexity_ratio']:g} times the 16-bit model's, KL divergence "
        f"up to {limits['max_kl_divergence']:g} nats, same first choice for at least "
        f"{limits['min_top1_agreement']:.0%} of the tokens"
    )


def _check() -> list[str]:
    return [
        "With standard tools, in this folder. The first command compares every file but "
        f"`{MANIFEST}`,",
        "the second must print the manifest's own `seal`:",
        "",
        "```",
        f"sha256sum -c {SUMS}",
        f'sed \'s/"seal": "[0-9a-f]*"/"seal": ""/\' {MANIFEST} | sha256sum',
        "```",
        "",
        "They find accidental damage. Whether the bundle is the one its maker signed is told by",
        f"`deployer verify . --key PUBLIC.pem`, where the maker added `{SIGNATURE}`.",
    ]


def _run(manifest: Manifest) -> list[str]:
    if not manifest.launch:
        return [
            "`deployer serve .` in this folder. There is no other program that serves it as it was",
            "measured.",
        ]
    lines = ["`deployer serve .` in this folder, or without deployer:"]
    for launch in manifest.launch:
        lines += ["", f"With {launch['release']}:", "", "```", *command_lines(launch), "```"]
        if launch.get("key_variable"):
            lines += [
                "",
                f"It listens on this machine only. Before you change `--host`, put a key into "
                f"`{launch['key_variable']}`.",
            ]
    return lines


def command_lines(launch: Mapping[str, Any]) -> list[str]:
    """The command for a shell, a line for each variable and each flag."""
    lines = [[f"{name}={shlex.quote(value)}"] for name, value in launch["env"].items()]
    lines.append([shlex.quote(word) for word in launch["program"]])
    for word in launch["arguments"]:
        if word.startswith("--"):
            lines.append([])
        lines[-1].append(shlex.quote(word))
    return " \\\n  ".join(map(" ".join, lines)).split("\n")
