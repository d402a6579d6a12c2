"""Environments: the shipped ones are read, and every mistake in one is told with its line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from deployer.errors import RecipeError, UsageError
from deployer.recipe.environment import (
    Environment,
    GpuKind,
    LeastQuality,
    Load,
    Objectives,
    environment_names,
    find_environment,
)

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ("cloud-cpu", "edge-cpu", "gpu-24g", "gpu-80g")
TEXT = """\
version: 1
name: mine
description: a machine
device: cpu
cores: 4
memory_gib: 8
load: {users: 2, prompt_tokens: 64, output_tokens: 64}
price_per_hour: 0.1
"""
GPU = """\
gpu: {name: G, memory_gib: 24, bandwidth_gb_s: 300, tflops: 100, compute_capability: "8.9"}
"""


@pytest.fixture
def in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def written(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.usefixtures("in_the_checkout")
def test_the_shipped_environments_are_known_by_name() -> None:
    assert environment_names() == SHIPPED
    for name in SHIPPED:
        found = find_environment(name)
        assert found.name == name
        assert (found.gpu is not None) == name.startswith("gpu")


@pytest.mark.usefixtures("in_the_checkout")
def test_the_shipped_gpus_hold_what_their_data_sheets_say() -> None:
    found = [find_environment(name).gpu for name in ("gpu-24g", "gpu-80g")]
    said = [(g.name, g.bandwidth_gb_s, g.tflops, g.compute_capability) for g in found if g]
    assert said == [("NVIDIA L4", 300, 121, "8.9"), ("NVIDIA H100", 3350, 989, "9.0")]


def test_a_file_is_read_wherever_it_lies(tmp_path: Path) -> None:
    found = find_environment(written(tmp_path, TEXT))
    assert isinstance(found, Environment)
    assert (found.currency, found.load.users, found.slo.ttft_p95_ms) == ("USD", 2, None)


@pytest.mark.usefixtures("in_the_checkout")
def test_an_unknown_name_says_where_it_looked_and_what_there_is() -> None:
    with pytest.raises(UsageError) as caught:
        find_environment("edge-gpu")
    assert f"recipes/environments/edge-gpu.yaml is here in {ROOT}" in caught.value.message
    assert "cloud-cpu, edge-cpu, gpu-24g, gpu-80g" in caught.value.hint


def test_without_a_checkout_no_name_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="there is no environment edge-cpu") as caught:
        find_environment("edge-cpu")
    assert "none there" in caught.value.hint


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("memory_gib: 8", "memory: 8", 6, "unknown key; did you mean memory_gib?"),
        ("cores: 4", "cores: 0", 5, "greater than 0"),
        ("cores: 4", "cores: '4'", 5, "valid integer"),
        ("users: 2", "users: 2, requests_per_s: 1", 7, "give one of users and requests_per_s"),
        ("users: 2, ", "", 7, "give one of users and requests_per_s"),
        ("device: cpu", "device: cuda", 1, "give both or neither"),
        ("price_per_hour: 0.1", f"price_per_hour: 0.1\n{GPU}", 1, "give both or neither"),
        ("device: cpu", "device: tpu", 4, "'tpu' is not known"),
        ("price_per_hour: 0.1", "price_per_hour: .inf", 8, "finite"),
        ("price_per_hour: 0.1", "price_per_hour: 1\ncurrency: dollars", 9, "form"),
        ("price_per_hour: 0.1", "price_per_hour: 1\nslo: {ttft_p95_ms: 0}", 9, "greater than 0"),
        ("price_per_hour: 0.1", "price_per_hour: 1\nquality: {max_kl: 1}", 9, "unknown key"),
    ],
)
def test_every_mistake_is_told_with_its_line(
    tmp_path: Path, old: str, new: str, line: int, message: str
) -> None:
    assert old in TEXT
    with pytest.raises(RecipeError) as caught:
        find_environment(written(tmp_path, TEXT.replace(old, new)))
    assert any(p.line == line and message in p.message for p in caught.value.problems), (
        caught.value.problems
    )
    assert "docs/recommend.md" in caught.value.hint


def test_the_document_names_every_field_and_no_other() -> None:
    text = (ROOT / "docs" / "recommend.md").read_text("utf-8")
    table = text[text.index("| field |") : text.index("## How it chooses")]
    documented = set(re.findall(r"^\| `([a-z0-9_.]+)`", table, re.MULTILINE))
    fields = set()
    for name, info in Environment.model_fields.items():
        inner = {"gpu": GpuKind, "slo": Objectives, "quality": LeastQuality, "load": Load}.get(name)
        fields |= {f"{name}.{each}" for each in inner.model_fields} if inner else {name}
        assert inner or info.description
    assert documented == fields


def test_a_capability_is_written_in_quotes(tmp_path: Path) -> None:
    text = TEXT.replace("device: cpu", "device: cuda") + GPU
    find_environment(written(tmp_path, text))
    with pytest.raises(RecipeError, match="compute_capability"):
        find_environment(written(tmp_path, text.replace('"8.9"', "8.9")))
