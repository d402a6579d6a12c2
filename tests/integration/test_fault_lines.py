"""A short choice of the faults in docs/reliability.md; tests/faults has the long ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from guard import REPOSITORY
from kill_points import Subject, cut_everywhere, kill_everywhere
from model_files import HUGE, METADATA, Tensor, gguf

from deployer.errors import RecipeError, SourceError
from deployer.gateway.keys import Key, add_key, read_keys
from deployer.gguf_file import inspect_gguf
from deployer.progress import SILENT
from deployer.recipe import read_recipe

pytestmark = pytest.mark.integration
FAULTS = REPOSITORY / "tests" / "faults"
WORTH = ("gguf", "checkpoint", "bundle", "tar", "request", "stream")


def ran(script: str, *arguments: str) -> dict[str, Any]:
    """The JSON that a script of tests/faults prints; it must have found nothing."""
    done = subprocess.run(
        [sys.executable, str(FAULTS / script), *arguments],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_broken_inputs_are_taken_or_refused(tmp_path: Path) -> None:
    found = ran("fuzz.py", *WORTH, "--count", "80", "--seed", "3", "--folder", str(tmp_path))
    assert set(found) == set(WORTH)
    assert all(figures["taken"] + figures["refused"] == 80 for figures in found.values())


@pytest.mark.parametrize("kind", ["clients", "engines"])
def test_broken_http_is_answered_or_refused(kind: str) -> None:
    assert ran("sockets.py", kind, "--count", "200", "--seed", "3")["inputs"] == 200


# Times that are promised

BOMB = "a: &a [x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join([f'*{chr(97 + n)}'] * 10)}]\n" for n in range(12)
)
RECIPES = {
    "alias bomb": "version: 1\n" + BOMB,
    "duplicate keys": "version: 1\nversion: 1\n",
    "tag": "version: 1\nname: !!python/object/apply:os.abort []\n",
    "deep nesting": "version: 1\nname: " + "[" * 50_000 + "\n",
    "long number": "version: " + "9" * 60_000 + "\n",
    "control character": "version: 1\nname: a\x00b\n",
    "option": "version: 1\nname: x\nsource: {path: --output}\nquantization: {scheme: q4_0}\n",
    "many keys": "version: 1\n" + "".join(f"k{n}: {n}\n" for n in range(5000)),
}


@pytest.mark.parametrize("kind", [*RECIPES, "a hundred megabytes"])
def test_a_recipe_that_lies_is_refused_within_a_second_with_its_line(
    kind: str, tmp_path: Path
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPES.get(kind, "version: 1\n"), encoding="utf-8")
    if kind not in RECIPES:
        os.truncate(path, 100_000_000)
    read_recipe(REPOSITORY / "recipes" / "smollm2-q4_0.yaml")  # what is loaded once is loaded
    started = time.process_time()
    with pytest.raises(RecipeError) as caught:
        read_recipe(path)
    assert time.process_time() - started < 1.0
    assert all(problem.line for problem in caught.value.problems if problem.message != "missing")


LIES = {
    "entries": gguf(n_entries=HUGE),
    "tensors": gguf(n_tensors=HUGE),
    "dimensions that wrap": gguf(tensors=[Tensor("w", (1 << 62, 4))], data=b""),
    "alignment": gguf({"general.alignment": 1 << 31}),
    "a million entries": gguf(n_entries=1 << 20),
    "layers": gguf({**METADATA, "llama.block_count": 10**6}, data=b""),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_gguf_file_that_lies_is_refused_within_a_second(lie: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(LIES[lie])
    started = time.process_time()
    with pytest.raises(SourceError):
        inspect_gguf(path)
    assert time.process_time() - started < 1.0


# Kills


def test_a_keys_file_survives_every_kill(tmp_path: Path) -> None:
    """The old keys or the new ones, never half a file, and never one that others may read."""

    def names(root: Path) -> list[str]:
        assert (root / "keys.json").stat().st_mode & 0o077 == 0
        return [key.id for key in read_keys(root / "keys.json").keys]

    def look(root: Path) -> None:
        assert names(root) in (["old"], ["old", "new"])

    def act(root: Path) -> None:
        if names(root) == ["old"]:
            add_key(root / "keys.json", Key(id="new"), SILENT)

    def done(root: Path) -> None:
        assert names(root) == ["old", "new"]

    def prepare(root: Path) -> None:
        add_key(root / "keys.json", Key(id="old"), SILENT)

    subject = Subject(prepare, act, look, done)
    assert kill_everywhere(subject, tmp_path / "kills") >= 3
    assert cut_everywhere(subject, tmp_path / "cuts", (1, 100, 300)) >= 2
