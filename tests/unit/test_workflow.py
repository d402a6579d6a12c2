"""Plan, build, find and serve, with workers that answer from a table."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from model_files import F16, Q4_0, Tensor, gguf
from stage_doubles import FakeContext, scored

from deployer import quality, serving
from deployer.artifacts import MANIFEST, Bundle
from deployer.errors import (
    LoadTestError,
    PlanError,
    QualityGateError,
    RecipeError,
    SourceError,
    StoreError,
    UsageError,
)
from deployer.home import Home
from deployer.progress import SILENT
from deployer.recipe import Serve
from deployer.serving import ServerRecord
from deployer.stages import hub
from deployer.workflow import building, bundles, evaluating, execution, planned, running

SOURCE = gguf(tensors=[Tensor("a", (64, 3), F16)])
SMALLER = gguf(tensors=[Tensor("a", (64, 3), Q4_0)])
RECIPE = """\
version: 1
name: tiny
source: {gguf: model.gguf}
quantization: {method: gguf, scheme: q4_0}
"""


class Workers:
    """Stand for the toolchains: how good each file is, and what was run."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.perplexity = {SOURCE: 10.0, SMALLER: 11.0}
        self.ran: list[str] = []
        self.texts: list[str] = []

    def context(self, *_: object) -> FakeContext:
        return FakeContext(
            self.root, {"quantize_gguf": self.quantize, "score_llama_cpp": self.score}
        )

    def quantize(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self.ran.append(f"quantize {request['scheme']}")
        Path(request["out"]).write_bytes(SMALLER)
        return {"substitutions": []}

    def score(self, request: Mapping[str, Any]) -> dict[str, Any]:
        content = Path(request["model"]).read_bytes()
        self.ran.append("score " + ("smaller" if content == SMALLER else "source"))
        self.texts.append(request["text"])
        return scored(request, self.perplexity[content])


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Intervals are test_quality's matter; here they would take half of the time."""
    monkeypatch.setattr(quality.interval, "__defaults__", (100,))


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workers:
    made = Workers(tmp_path)
    monkeypatch.setattr(execution, "StageContext", made.context)
    return made


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    (tmp_path / "model.gguf").write_bytes(SOURCE)
    return path


def build(recipe: Path, home: Home, *overrides: str) -> building.BuildResult:
    return building.build(recipe, overrides, home, SILENT)


def rebuilt(result: building.BuildResult) -> set[str]:
    return {stage.name for stage in result.stages if not stage.cached}


# Build


def test_a_build_makes_a_bundle(recipe: Path, home: Home, workers: Workers) -> None:
    result = build(recipe, home)
    assert rebuilt(result) == {"fetch", "quantize", "baseline", "evaluate", "package"}
    assert workers.ran == ["quantize q4_0", "score source", "score smaller"]
    bundle = result.bundle
    assert bundle.root.parent == home.bundles / "tiny"
    assert bundle.weights.read_bytes() == SMALLER
    assert bundle.manifest.quality["perplexity_ratio"]["value"] == 1.1
    assert bundle.manifest.quality["kl_divergence"]["mean"] == 0.25
    assert bundle.manifest.tools["llama-cpp"] == "1.0"
    assert not list((home.store / ".tmp").iterdir())


HUB = ("quality.dataset=some/texts", "quality.file=a.jsonl", "quality.revision=v1")


def test_an_evaluation_text_of_a_hub_is_fetched_once(
    recipe: Path, home: Home, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[Mapping[str, str]] = []

    def download(pinned: Mapping[str, str], section: str, target: Path, *_: object) -> None:
        fetched.append(pinned)
        target.write_text('{"text": "one"}\n{"text": "two\\n"}\n', encoding="utf-8")

    monkeypatch.setattr(hub, "resolve_dataset_revision", lambda *_: "c0ffee")
    monkeypatch.setattr(hub, "download_dataset_file", download)
    result = build(recipe, home, *HUB)
    assert result.stages[0].name == "evaluation-text"
    quality = result.bundle.manifest.quality
    assert (quality["corpus"], quality["corpus_revision"]) == ("some/texts a.jsonl", "c0ffee")
    assert quality["corpus_sha256"] == hashlib.sha256(b"one\ntwo\n").hexdigest()
    assert build(recipe, home, *HUB).cached
    evaluated(home, "quality.window=1024")
    assert set(workers.texts) == {"one\ntwo\n"}
    assert fetched == [{"dataset": "some/texts", "revision": "c0ffee", "file": "a.jsonl"}]


def test_its_document_has_what_scripts_depend_on(
    recipe: Path, home: Home, workers: Workers
) -> None:
    document = json.loads(json.dumps(build(recipe, home).as_json()))
    assert {
        "bundle",
        "digest",
        "cached",
        "size_bytes",
        "bits_per_weight",
        "stages",
        "quality",
    } <= set(document)
    assert document["bits_per_weight"] == 4.5
    assert document["stages"][0].keys() == {"name", "seconds", "cached"}
    assert not document["cached"]


def test_its_description_is_in_words(recipe: Path, home: Home, workers: Workers) -> None:
    text = "\n".join(build(recipe, home).describe())
    assert "4.50 bits a weight (1 Q4_0)" in text
    assert "1.100 x the 16-bit model's" in text
    assert "reused: nothing" in text
    assert "reused: fetch, quantize" in "\n".join(build(recipe, home).describe())


def test_an_unchanged_rebuild_runs_nothing(recipe: Path, home: Home, workers: Workers) -> None:
    first = build(recipe, home)
    workers.ran.clear()
    second = build(recipe, home)
    assert second.cached
    assert [stage.name for stage in second.stages] == [stage.name for stage in first.stages]
    assert workers.ran == []
    assert second.bundle.manifest == first.bundle.manifest


def test_a_changed_serve_field_rebuilds_no_weights(
    recipe: Path, home: Home, workers: Workers
) -> None:
    first = build(recipe, home)
    workers.ran.clear()
    second = build(recipe, home, "serve.port=9000")
    assert rebuilt(second) == {"package"}
    assert workers.ran == []
    assert second.bundle.manifest.serve["port"] == 9000
    assert second.bundle.root != first.bundle.root
    assert second.bundle.weights.samefile(first.bundle.weights)


def test_another_scheme_keeps_source_and_baseline(
    recipe: Path, home: Home, workers: Workers
) -> None:
    build(recipe, home)
    workers.ran.clear()
    assert rebuilt(build(recipe, home, "quantization.scheme=q8_0")) == {
        "quantize", "evaluate", "package",
    }  # fmt: skip
    assert workers.ran == ["quantize q8_0", "score smaller"]


def test_sixteen_bit_weights_have_nothing_to_be_compared_with(
    recipe: Path, home: Home, workers: Workers
) -> None:
    result = build(recipe, home, "quantization={method: none}")
    assert rebuilt(result) == {"fetch", "evaluate", "package"}
    assert workers.ran == ["score source"]
    assert "perplexity_ratio" not in result.bundle.manifest.quality
    assert result.bundle.weights.read_bytes() == SOURCE


@pytest.mark.parametrize(("perplexity", "words"), [(1e6, "over 200"), (16.0, "over 1.5")])
def test_a_garbage_model_never_becomes_a_bundle(
    recipe: Path, home: Home, workers: Workers, perplexity: float, words: str
) -> None:
    workers.perplexity[SMALLER] = perplexity
    with pytest.raises(QualityGateError, match=words):
        build(recipe, home)
    assert not home.bundles.exists()
    assert list(home.store.glob("evaluate/*.json"))


def test_a_raised_limit_measures_nothing_again(recipe: Path, home: Home, workers: Workers) -> None:
    workers.perplexity[SMALLER] = 16.0
    with pytest.raises(QualityGateError):
        build(recipe, home)
    workers.ran.clear()
    assert rebuilt(build(recipe, home, "quality.max_perplexity_ratio=2.0")) == {"package"}
    assert workers.ran == []


def test_a_failed_stage_keeps_the_ones_before(recipe: Path, home: Home, workers: Workers) -> None:
    perplexity, workers.perplexity = workers.perplexity, {}
    with pytest.raises(KeyError):
        build(recipe, home)
    workers.perplexity = perplexity
    assert rebuilt(build(recipe, home)) == {"baseline", "evaluate", "package"}


def test_a_changed_source_is_built_anew(recipe: Path, home: Home, workers: Workers) -> None:
    build(recipe, home)
    other = gguf(tensors=[Tensor("b", (64, 3), F16)])
    workers.perplexity[other] = 12.0
    (recipe.parent / "model.gguf").write_bytes(other)
    assert "fetch" in rebuilt(build(recipe, home))


def test_a_damaged_bundle_is_built_again(recipe: Path, home: Home, workers: Workers) -> None:
    weights = build(recipe, home).bundle.weights
    weights.unlink()
    weights.write_bytes(SMALLER[:-1] + b"x")
    result = build(recipe, home)
    assert "package" in rebuilt(result)
    assert result.bundle.weights.read_bytes() == SMALLER


def test_a_plan_says_what_is_there(recipe: Path, home: Home, workers: Workers) -> None:
    first = planned.plan(recipe, (), home)
    assert not any(building.cached_stages(first, home).values())
    build(recipe, home)
    assert all(building.cached_stages(first, home).values())
    other = planned.plan(recipe, ("serve.port=1",), home)
    assert building.cached_stages(other, home)["package"] is False


def test_a_recipe_for_a_gpu_is_refused_at_once_without_one(
    recipe: Path, home: Home, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reached(*_: object) -> None:
        raise AssertionError("the source was looked up")

    monkeypatch.setattr(planned, "gpus", lambda: ())
    given = ("target={engine: vllm, device: cuda}", "quantization={method: awq}",
             "source.package=some-model==1")  # fmt: skip
    shown = planned.plan(recipe, given, home)
    assert "no NVIDIA GPU" in shown.obstacles[0].message
    assert shown.serve
    monkeypatch.setattr(planned.fetch, "resolve", reached)
    with pytest.raises(PlanError, match="no NVIDIA GPU") as caught:
        build(recipe, home, *given)
    assert "smollm2-awq.yaml" in caught.value.hint
    assert not home.store.exists()


def test_a_plan_refuses_what_a_build_would(recipe: Path, home: Home) -> None:
    (recipe.parent / "model.gguf").write_bytes(SMALLER)
    with pytest.raises(PlanError, match="quantized already"):
        planned.plan(recipe, (), home)
    (recipe.parent / "model.gguf").write_bytes(SMALLER[:50])
    with pytest.raises(SourceError):
        planned.plan(recipe, (), home)


# Find a bundle


def test_a_bundle_is_found_by_folder_name_or_age(
    recipe: Path, home: Home, workers: Workers, tmp_path: Path
) -> None:
    first = build(recipe, home).bundle
    second = build(recipe, home, "name=other").bundle
    age(home, first, 100)
    assert bundles.find_bundle(None, home).root == second.root
    assert bundles.find_bundle("tiny", home).root == first.root
    assert bundles.find_bundle(str(first.root), home).manifest == first.manifest
    build(recipe, home)  # the newest is the one that was built last, made anew or not
    assert bundles.find_bundle(None, home).root == first.root


def age(home: Home, bundle: Bundle, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(bundle.root.with_suffix(".json"), (then, then))


@pytest.mark.parametrize(("what", "words"), [(None, "no bundle yet"), ("x", "no bundle 'x'")])
def test_a_bundle_that_is_not_there(home: Home, what: str | None, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        bundles.find_bundle(what, home)
    assert "deployer build" in caught.value.hint


def change_manifest(root: Path) -> None:
    path = root / MANIFEST
    document = json.loads(path.read_text(encoding="utf-8"))
    document["serve"]["extra_args"] = ["--evil"]
    replace(path, json.dumps(document).encode())


def cut_manifest(root: Path) -> None:
    replace(root / MANIFEST, (root / MANIFEST).read_bytes()[:100])


def cut_weights(root: Path) -> None:
    replace(root / "model.gguf", b"GGUF")


def drop_weights(root: Path) -> None:
    (root / "model.gguf").unlink()


def replace(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (change_manifest, "was changed after it was made"),
        (cut_manifest, "no readable manifest"),
        (cut_weights, "and has 4"),
        (drop_weights, "is missing"),
    ],
)
def test_a_damaged_bundle_is_never_served(
    recipe: Path, home: Home, workers: Workers, damage: Any, words: str
) -> None:
    root = build(recipe, home).bundle.root
    damage(root)
    for what in (str(root), "tiny", None):
        with pytest.raises(StoreError, match=words):
            bundles.find_bundle(what, home)


# Serve and load-test

RECORD = ServerRecord(
    name="tiny", endpoint="http://127.0.0.1:8080", supervisor_pid=1, engine_pid=2, bundle="/b",
    log="/log", state="ready", server="xllamacpp", model="tiny",
)  # fmt: skip


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Bundle, Serve]]:
    """What was started; nothing really is."""
    started: list[tuple[Bundle, Serve]] = []

    def start(bundle: Bundle, serve: Serve, *_: object, **__: object) -> ServerRecord:
        started.append((bundle, serve))
        return RECORD

    monkeypatch.setattr(serving, "start", start)
    return started


def test_a_recipe_is_built_and_served(
    recipe: Path, home: Home, workers: Workers, served: list[tuple[Bundle, Serve]]
) -> None:
    running.serve(str(recipe), ["quantization.scheme=q8_0", "serve.port=5"], home, SILENT)
    ((bundle, serve),) = served
    assert bundle.manifest.quantization["scheme"] == "q8_0"
    assert serve.port == 5


def test_a_bundle_is_served_with_other_settings(
    recipe: Path, home: Home, workers: Workers, served: list[tuple[Bundle, Serve]]
) -> None:
    build(recipe, home)
    running.serve("tiny", ["serve.port=5"], home, SILENT)
    assert served[0][1].port == 5
    with pytest.raises(UsageError, match="would need another bundle"):
        running.serve("tiny", ["quantization.scheme=q8_0"], home, SILENT)


def status_of(monkeypatch: pytest.MonkeyPatch, *records: ServerRecord) -> None:
    monkeypatch.setattr(serving, "status", lambda home, name=None: list(records))


def test_a_server_that_is_not_ready_is_not_tested(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    status_of(monkeypatch, RECORD.model_copy(update={"state": "starting"}))
    with pytest.raises(LoadTestError, match="is starting, not ready"):
        running.loadtest(None, None, [], home, SILENT)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What load tests were asked for: endpoint, workload, folder, progress, key, known."""
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(running.loadtests, "run", lambda *given, **_: asked.append(given))
    monkeypatch.setattr(running.loadtests, "folder_of", lambda folder, result: folder)
    return asked


def test_a_load_test_takes_the_bundles_workload(
    recipe: Path, home: Home, workers: Workers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    measured: list[tuple[Any, ...]],
) -> None:  # fmt: skip
    bundle = build(recipe, home, "loadtest.users=3").bundle
    status_of(monkeypatch, RECORD.model_copy(update={"bundle": str(bundle.root)}))
    (tmp_path / "keys").write_text("secret \nother\n", encoding="utf-8")
    running.loadtest(None, None, ["loadtest.duration=2"], home, SILENT,
                     api_key_file=tmp_path / "keys")  # fmt: skip
    ((endpoint, workload, _, _, key, known),) = measured
    assert (endpoint, workload.users, workload.duration, key) == (RECORD.endpoint, 3, 2, "secret")
    assert (known["quantization"], known["bits_per_weight"]) == ("q4_0", 4.5)


def test_any_endpoint_can_be_tested(home: Home, measured: list[tuple[Any, ...]]) -> None:
    running.loadtest("http://127.0.0.1:1", None, ["loadtest.users=3"], home, SILENT)
    assert measured[0][1].users == 3
    assert measured[0][4:] == (None, {})


def test_a_deployment_is_tested_at_its_gateway(
    home: Home, monkeypatch: pytest.MonkeyPatch, measured: list[tuple[Any, ...]]
) -> None:
    whole = SimpleNamespace(
        name="chat", endpoint="http://127.0.0.1:8000", state="degraded", servers={"b": 1, "a": 2}
    )
    monkeypatch.setattr(running, "is_deployment_named", lambda name, _: name == "chat")
    monkeypatch.setattr(running.deployments, "status", lambda *_: [whole])
    running.loadtest(None, "chat", ["loadtest.users=3"], home, SILENT)
    assert measured[0][0] == whole.endpoint
    assert measured[0][5] == {"deployment": "chat", "servers": ["a", "b"], "state": "degraded"}
    whole.state = "failed"
    with pytest.raises(LoadTestError, match="chat is failed, not ready"):
        running.loadtest(None, "chat", [], home, SILENT)


# Evaluate


def evaluated(home: Home, *overrides: str, what: str | None = "tiny") -> evaluating.Evaluation:
    return evaluating.evaluate(what, overrides, home, SILENT)


@pytest.fixture
def bundle(recipe: Path, home: Home, workers: Workers) -> Bundle:
    made = build(recipe, home).bundle
    workers.ran.clear()
    return made


def test_a_bundle_is_scored_where_it_lies(bundle: Bundle, home: Home, workers: Workers) -> None:
    done = evaluated(home)
    assert workers.ran == ["score smaller"]  # the 16-bit model was scored by the build
    assert done.record == {**bundle.manifest.quality, "corpus_sha256": done.record["corpus_sha256"]}
    assert not done.missed
    stored = json.loads((done.folder / evaluating.RESULT).read_text(encoding="utf-8"))
    assert stored["quality"] == done.record
    assert (done.folder / evaluating.PAGE).read_text(encoding="utf-8").startswith("<!doctype html>")
    evaluated(home)
    assert workers.ran == ["score smaller"]


def test_other_windows_score_both_models_anew(bundle: Bundle, home: Home, workers: Workers) -> None:
    done = evaluated(home, "quality.windows=2")
    assert workers.ran == ["score source", "score smaller"]
    assert done.record["windows"] == 2


def test_a_bundle_that_was_changed_is_scored_again(
    bundle: Bundle, home: Home, workers: Workers
) -> None:
    evaluated(home)
    workers.perplexity[SOURCE] = 10.0
    bundle.weights.unlink()
    padded = SOURCE[: len(SMALLER)].ljust(len(SMALLER), b"\0")
    bundle.weights.write_bytes(padded)
    workers.perplexity[padded] = 1e6
    done = evaluated(home)
    assert "over 200" in done.missed[0]
    assert done.as_json()["passed"] is False
    assert "Not good enough" in done.describe()[-2]


def test_a_missed_limit_is_told(bundle: Bundle, home: Home) -> None:
    done = evaluated(home, "quality.max_kl_divergence=0.2", "quality.max_perplexity_ratio=1.05")
    assert len(done.missed) == 2
    assert "Every limit" in evaluated(home).describe()[-2]


def test_of_a_bundle_only_quality_can_be_changed(bundle: Bundle, home: Home) -> None:
    with pytest.raises(UsageError, match="another bundle"):
        evaluated(home, "quantization.scheme=q8_0")


def test_a_text_that_is_not_there_is_told_before_anything_is_scored(
    bundle: Bundle, home: Home, workers: Workers, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match="there is no file"):
        evaluated(home, f"quality.text={tmp_path / 'absent.txt'}")
    assert workers.ran == []


def test_a_recipe_is_built_first(recipe: Path, home: Home, workers: Workers) -> None:
    done = evaluated(home, what=str(recipe))
    assert workers.ran == ["quantize q4_0", "score source", "score smaller", "score smaller"]
    assert done.bundle.manifest.name == "tiny"
