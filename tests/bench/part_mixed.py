"""Mixed precision: KL divergence of the chosen mix against llama.cpp's own types of the same size.

Both sides have the importance matrix. The sensitivity is measured on the calibration text; the
divergence is what the builds measure on the evaluation text.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from commands import deployer
from figures import Line, say, wait_for_quiet

from deployer.home import Home

RECIPE = Path(__file__).parents[2] / "recipes" / "smollm2-mixed.yaml"
SCHEMES = ("q4_0", "q4_k_m")
TOOLCHAINS = ("convert", "llama-cpp", "llama-cpp-native")
BUILD_TIMEOUT = 3600.0
PLACES = 10_000
"""Bits a weight are told to four places."""
LENIENT = ("quality.max_perplexity_ratio=100", "quality.max_kl_divergence=100")


def measure(home: Home, options: argparse.Namespace) -> dict[str, Any]:
    """Build llama.cpp's own types, and a mix of at most the size of each."""
    busy = [wait_for_quiet()]
    contests = {}
    for scheme in SCHEMES:
        say(f"{scheme}, and a mix of its size")
        plain = f"quantization={{method: gguf, scheme: {scheme}, imatrix: true}}"
        theirs = _built(home, f"name=plain-{scheme}", plain)
        budget = math.floor(theirs["bits_per_weight"] * PLACES) / PLACES
        ours = _built(home, f"name=mixed-{scheme}", f"quantization.mixed.budget_bpw={budget}")
        contests[scheme] = {"bare": theirs, "ours": ours}
    return {"contests": contests, "busy_before": busy}


def _built(home: Home, *settings: str) -> dict[str, Any]:
    changes = [word for setting in (*settings, *LENIENT) for word in ("--set", setting)]
    done, _ = deployer("build", str(RECIPE), *changes, home=home.root, timeout=BUILD_TIMEOUT)
    return {name: done[name] for name in ("bits_per_weight", "size_bytes", "quality", "types")}


def lines(document: Mapping[str, Any]) -> list[Line]:
    """The mix's divergence against llama.cpp's; it must be lower."""
    found = []
    for scheme, sides in document["contests"].items():
        bare, ours = (sides[who]["quality"]["kl_divergence"]["mean"] for who in ("bare", "ours"))
        title = f"KL divergence, mix at the size of {scheme}"
        found.append(Line(title, bare, ours, ours / bare, "x", 1.0))
    return found


def notes(document: Mapping[str, Any]) -> list[str]:
    """The sizes, in words."""
    said = (
        f"{scheme}: {sides['bare']['bits_per_weight']:.3f} bits a weight, the mix "
        f"{sides['ours']['bits_per_weight']:.3f}"
        for scheme, sides in document["contests"].items()
    )
    return [f"Mixes at the size of {'; '.join(said)}."]
