"""Inspect: what a bundle says of itself, for a person and for a program."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from deployer.artifacts import SIGNATURE, Bundle, Manifest
from deployer.errors import StoreError
from deployer.home import Home
from deployer.quality import in_words
from deployer.stages.readme import (
    calibration_in_words,
    command_lines,
    licence_in_words,
    limits_in_words,
    source_in_words,
)
from deployer.workflow.bundles import find_bundle

WIDTH = 98
"""Columns a line for a person takes at most, unless a single word is longer."""
_LABEL = 11


@dataclass(frozen=True)
class Inspected:
    """A bundle and whether a signature lies in it, which nobody has checked."""

    bundle: Bundle
    signed: bool

    def as_json(self) -> dict[str, Any]:
        """The manifest, and beside it where the bundle lies and whether it is signed."""
        manifest = self.bundle.manifest
        return {
            "bundle": str(self.bundle.root),
            "signed": self.signed,
            "licence_files": list(manifest.licence_files),
            **manifest.as_json(),
        }

    def describe(self) -> list[str]:
        """What a person reads: no line has over `WIDTH` columns where words allow it.

        Raises StoreError for a manifest that lacks what deployer writes into each.
        """
        try:
            return [_printable(line) for line in self._lines(self.bundle.manifest)]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StoreError(
                f"the manifest of {self.bundle.root} is none that deployer writes ({error!r})",
                "Do not trust the bundle; `deployer inspect --json` shows what it says.",
            ) from error

    def _lines(self, manifest: Manifest) -> list[str]:
        lines = [manifest.name]
        for label, text in self._facts(manifest):
            lines += _folded(label, text)
        for launch in manifest.launch:
            lines += _folded("Launch", f"{launch['release']}, in the bundle's folder:")
            lines += [" " * _LABEL + line for line in command_lines(launch)]
        return [*lines, "Files, with the beginning of their SHA-256:", *_files(manifest)]

    def _facts(self, manifest: Manifest) -> Iterator[tuple[str, str]]:
        yield "Bundle", str(self.bundle.root)
        yield "Digest", manifest.digest
        yield "Made by", f"{manifest.created_by}; format {manifest.manifest_version}"
        yield "Signed", _signed(self.signed)
        yield "Engine", f"{manifest.engine} on {manifest.plan['device']}"
        yield "Size", _size(manifest)
        yield "Source", source_in_words(manifest.source)
        yield "Licence", licence_in_words(manifest)
        yield "Quantizer", calibration_in_words(manifest)
        first, *more = in_words(manifest.quality)
        yield "Quality", " ".join([first.removeprefix("Quality: ") + ".", *(f"{s}." for s in more)])
        yield "Gate", limits_in_words(manifest)
        yield "Scored on", _scored_on(manifest.quality)
        if memory := manifest.observed.get("scoring_peak_bytes"):
            machine = manifest.observed.get("machine", "an unknown machine")
            yield "Memory", f"the process that scored it held {memory / 1e6:,.0f} MB on {machine}"
        yield "Tools", ", ".join(f"{name} {version}" for name, version in manifest.tools.items())


def inspect(what: str | None, home: Home) -> Inspected:
    """Look at a bundle, by folder, by name or the newest; raises as `find_bundle` does."""
    bundle = find_bundle(what, home)
    return Inspected(bundle, (bundle.root / SIGNATURE).is_file())


def _signed(signed: bool) -> str:
    if signed:
        return f"yes ({SIGNATURE}), not checked: deployer verify BUNDLE --key PUBLIC.pem"
    return "no"


def _size(manifest: Manifest) -> str:
    types = ", ".join(f"{n} {kind}" for kind, n in manifest.quantization["types"].items())
    whole, weights = (
        f"{size / 1e6:,.1f} MB" for size in (manifest.size_bytes, manifest.weights_bytes)
    )
    return (
        f"{whole} in {len(manifest.files)} files; weights {weights}, "
        f"{manifest.bits_per_weight:.2f} bits each ({types})"
    )


def _scored_on(quality: Mapping[str, Any]) -> str:
    return (
        f"{quality['corpus']}, SHA-256 {quality['corpus_sha256']}; {quality['windows']} windows of "
        f"{quality['window']} tokens, in {quality['engine']}"
    )


def _folded(label: str, text: str) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=f"{label + ':':<{_LABEL}}",
        subsequent_indent=" " * _LABEL,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _printable(line: str) -> str:
    """A line that cannot steer a terminal, whoever wrote the manifest."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)


def _files(manifest: Manifest) -> list[str]:
    longest = max(len(entry.path) for entry in manifest.files)
    return [
        f"  {entry.path:<{longest}}  {entry.size:>15,}  {entry.sha256[:16]}"
        for entry in manifest.files
    ]
