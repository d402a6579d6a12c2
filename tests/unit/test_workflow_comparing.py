"""Comparing: turns, formats that drop out, and what is stored; building and serving are faked."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from loadtest_samples import closed_loop, result

from deployer.artifacts import Bundle, FileEntry, Manifest
from deployer.comparison import COMPARISON, Comparison, read_comparison
from deployer.errors import (
    DeployerError,
    PlanError,
    QualityGateError,
    ServerError,
    StageError,
    ToolchainError,
    UsageError,
)
from deployer.home import Home
from deployer.metering import Reading
from deployer.progress import SILENT
from deployer.recipe import LoadTest, read_recipe
from deployer.recipe.matrix import Matrix
from deployer.serving import ServerRecord
from deployer.workflow import comparing, contenders
from deployer.workflow.building import BuildResult

RECIPE = """\
version: 1
name: tiny
source: {package: some==1}
quantization: {method: gguf, scheme: q4_0}
"""
QUALITY = {"perplexity": {"value": 11.0}, "tokens": 255, "corpus": "a text", "sample": "Yes."}
REFUSED = {**QUALITY, "perplexity": {"value": 9999.0}}


class Machine:
    """Stands for the machine: what fails, what was served, and what the meters say."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.fails: dict[str, DeployerError] = {}
        self.breaks_in_turn: dict[str, int] = {}
        self.served: list[str] = []
        self.stopped: list[str] = []
        self.users: list[int] = []
        self.others = 0.02
        self.answered = True

    def build(self, path: Path, overrides: Sequence[str], *_: object) -> BuildResult:
        recipe = read_recipe(path, overrides)
        if failure := self.fails.get(recipe.name):
            raise failure
        entry = FileEntry(path="model.gguf", size=1_000_000, sha256="0" * 64)
        manifest = Manifest(
            name=recipe.name, digest="d", engine="llama.cpp", weights="model.gguf",
            size_bytes=1_100_000, bits_per_weight=4.0, files=(entry,),
            recipe=recipe.model_dump(mode="json"), serve=recipe.serve.model_dump(mode="json"),
            source={}, quantization={}, quality=QUALITY, parity={},
            tools={"tool": "1.0"}, created_by="deployer 0",
        )  # fmt: skip
        return BuildResult(Bundle(self.root, manifest), (), 0.0)

    @contextmanager
    def serve(self, bundle: Bundle, serve: Any, *_: object) -> Iterator[ServerRecord]:
        name = bundle.manifest.name
        assert (serve.host, serve.port, serve.api_key_file) == ("127.0.0.1", 0, None)
        self.served.append(name)
        if self.served.count(name) == self.breaks_in_turn.get(name):
            raise ServerError(f"{name} did not come up", "Look at its log.")
        try:
            yield ServerRecord(
                name=name, endpoint="http://127.0.0.1:1", supervisor_pid=1, engine_pid=2,
                bundle="b", log="l", state="ready", server="xllamacpp", model=name,
                ready_seconds=1.5, peak_rss_bytes=5_000_000,
            )  # fmt: skip
        finally:
            self.stopped.append(name)

    def load(self, _endpoint: str, workload: LoadTest, folder: Path, *_: object) -> Any:
        self.users.append(workload.users)
        samples = closed_loop(users=workload.users)
        made = result(samples, workload)
        if not self.answered:
            stage = made.stages[0]
            none = stage.requests.model_copy(update={"ok": 0, "errors": {"http_5xx": 3}})
            made = made.model_copy(
                update={"stages": (stage.model_copy(update={"requests": none}),)}
            )
        kept = folder / made.run.id
        kept.mkdir(parents=True, exist_ok=True)
        lines = (json.dumps(sample.as_json()) for sample in samples)
        (kept / "requests.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return made


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(tmp_path)

    class NoMeter:
        def __init__(self, _pid: int) -> None:
            self.reading = Reading(1.0, made.others, 30.0, "RAPL package")

        def __enter__(self) -> NoMeter:
            return self

        def __exit__(self, *_: object) -> None:
            return

    def status(_home: Home, name: str) -> list[ServerRecord]:
        with made.serve(Bundle(tmp_path, _named(name)), _loopback()) as record:
            made.served.pop()
        made.stopped.pop()
        return [record]

    def no_figures(*_: object) -> None:
        raise ToolchainError("no network", "Look at the proxy.")

    monkeypatch.setattr(contenders, "build", made.build)
    monkeypatch.setattr(comparing, "served", made.serve)
    monkeypatch.setattr(comparing.loadtests, "run", made.load)
    monkeypatch.setattr(comparing.serving, "status", status)
    monkeypatch.setattr(comparing, "Meter", NoMeter)
    monkeypatch.setattr(comparing, "busy_now", lambda: 0.01)
    monkeypatch.setattr(comparing, "QUIET_SECONDS", 0.0)
    monkeypatch.setattr(comparing, "ensure", no_figures)
    return made


def _named(name: str) -> Manifest:
    return Manifest(
        name=name, digest="d", engine="llama.cpp", weights="w", size_bytes=1, bits_per_weight=4.0,
        files=(), recipe={}, serve={}, source={}, quantization={}, quality={}, parity={}, tools={},
        created_by="",
    )  # fmt: skip


def _loopback() -> Any:
    from deployer.recipe import Serve

    return Serve(port=0)


Compare = Callable[..., Comparison]


@pytest.fixture
def compare(tmp_path: Path, machine: Machine) -> Compare:
    (tmp_path / "tiny.yaml").write_text(RECIPE, encoding="utf-8")

    def run(
        *names: str, trials: int = 2, changes: dict[str, dict[str, Any]] | None = None
    ) -> Comparison:
        formats = [{"name": name, "set": (changes or {}).get(name, {})} for name in names]
        matrix = Matrix.model_validate_json(
            json.dumps(
                {
                    "version": 1,
                    "name": "m",
                    "recipe": str(tmp_path / "tiny.yaml"),
                    "formats": formats,
                    "measure": {"trials": trials, "users": 4, "duration": 20, "warmup": 3},
                }
            )
        )
        outcome = comparing.compare(matrix, Home(tmp_path / "home"), SILENT, "deployer compare")
        assert read_comparison(outcome.folder) == outcome.comparison
        statuses = {row.status for row in outcome.comparison.rows}
        fine = "measured" in statuses and "failed" not in statuses
        assert outcome.exit_code == (0 if fine else 1)
        return outcome.comparison

    return run


def test_formats_take_turns_forwards_and_backwards(machine: Machine, compare: Compare) -> None:
    made = compare("a", "b", "c", trials=3)
    forwards = ["m-a", "m-b", "m-c"]
    assert machine.served == [*forwards, *reversed(forwards), *forwards]
    assert machine.stopped == machine.served
    assert machine.users == [1, 4] * 9
    assert [(t.format, t.number) for t in made.trials[:4]] == [
        ("a", 1), ("b", 1), ("c", 1), ("c", 2),
    ]  # fmt: skip


def test_a_row_has_what_was_measured(compare: Compare) -> None:
    row = compare("a").row("a")
    assert row.size and row.serving and row.quality == QUALITY
    assert (row.size.weights_bytes, row.size.bundle_bytes) == (1_000_000, 1_100_000)
    assert (row.size.ratio_to_fp32, row.size.ratio_to_fp16) == (8.0, 4.0)
    assert row.serving.load_seconds.values == (1.5, 1.5)
    assert row.serving.peak_rss_bytes and row.serving.peak_rss_bytes.mean == 5_000_000
    assert (row.serving.single.users, row.serving.loaded.users) == (1, 4)
    tokens = sum(sample.output_tokens or 0 for sample in closed_loop(users=4))
    energy = row.serving.energy_j_per_token
    assert energy and energy.mean == pytest.approx(30.0 / tokens)


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (PlanError("needs a GPU", "Take q8_0."), "unavailable"),
        (QualityGateError("garbage", "More bits.", measured=REFUSED), "refused"),
        (StageError("the converter fell over"), "failed"),
    ],
)
def test_a_format_that_cannot_be_built_has_a_reason_and_no_figure(
    machine: Machine, compare: Compare, failure: DeployerError, status: str
) -> None:
    machine.fails["m-b"] = failure
    made = compare("a", "b")
    row = made.row("b")
    assert (row.status, row.reason, row.serving, row.size) == (status, failure.message, None, None)
    assert row.quality == (REFUSED if status == "refused" else None)
    assert "m-b" not in machine.served
    assert made.row("a").status == "measured"


def test_a_server_that_breaks_drops_out_with_all_it_had(machine: Machine, compare: Compare) -> None:
    machine.breaks_in_turn["m-b"] = 2
    made = compare("a", "b", trials=3)
    row = made.row("b")
    assert (row.status, row.reason, row.serving) == ("failed", "m-b did not come up", None)
    assert machine.served.count("m-b") == 2
    serving = made.row("a").serving
    assert serving and len(serving.load_seconds.values) == 3


def test_a_server_that_answers_nothing_has_no_throughput(
    machine: Machine, compare: Compare
) -> None:
    machine.answered = False
    row = compare("a").row("a")
    assert row.status == "failed"
    assert row.reason == "with 1 user not one request was answered (http_5xx)"


def test_contended_trials_are_flagged(machine: Machine, compare: Compare) -> None:
    assert not any(trial.contended for trial in compare("a").trials)
    machine.others = 0.3
    (trial,) = compare("a", trials=1).trials
    assert (trial.busy, trial.contended) == (0.3, True)


@pytest.mark.parametrize(
    ("field", "value", "what"),
    [
        ("source.package", "other==2", "another model"),
        ("quality.window", 1024, "another evaluation text"),
        ("quality.text", "zh", "another evaluation text"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_done(
    machine: Machine, compare: Compare, field: str, value: Any, what: str
) -> None:
    with pytest.raises(UsageError, match=f"b has {what} than a"):
        compare("a", "b", changes={"b": {field: value}})
    assert machine.served == []


def test_nothing_is_left_of_a_comparison_that_is_interrupted(
    tmp_path: Path, machine: Machine, compare: Compare, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(comparing.loadtests, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compare("a")
    assert machine.stopped == ["m-a"]
    assert not list((tmp_path / "home").glob("comparisons/*"))


def test_the_files(tmp_path: Path, compare: Compare) -> None:
    made = compare("a", "b")
    folder = tmp_path / "home" / "comparisons" / made.id
    assert {path.name for path in folder.iterdir()} == {
        COMPARISON, "comparison.csv", "report.html", "summary.md",
    }  # fmt: skip
    assert not list(folder.parent.glob(".*"))
