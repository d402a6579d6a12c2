"""Which tool quantizes, why it is that one, and what the tools say no to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deployer import quantizers as module
from deployer.errors import PlanError
from deployer.quantizers import QUANTIZERS, QuantizeJob, choose_quantizer, quantizers
from deployer.quantizers.llama_quantize import LlamaQuantize
from deployer.recipe import GGUF_SCHEMES, Quantization


def asked(method: str = "gguf", **settings: Any) -> Quantization:
    """As a recipe would give it, with its checks."""
    return Quantization.model_validate({"method": method, **settings})


def unchecked(**settings: Any) -> Quantization:
    return Quantization.model_construct(**settings)


def chosen(wanted: Quantization, device: str = "cpu") -> str:
    return choose_quantizer(wanted, device).quantizer.tool


@pytest.mark.parametrize("scheme", GGUF_SCHEMES)
def test_every_llama_cpp_type_has_a_tool(scheme: str) -> None:
    compiler_free = scheme in ("q4_0", "q8_0")
    plain = unchecked(method="gguf", scheme=scheme)
    weighed = unchecked(method="gguf", scheme=scheme, imatrix=True)
    assert chosen(plain) == ("gguf" if compiler_free else "llama-quantize")
    assert chosen(weighed) == "llama-quantize"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(
    ("method", "scheme"),
    [("awq", "w4a16"), ("gptq", "w4a16"), ("gptq", "w8a16"), ("gptq", "w8a8")],
)
def test_auto_takes_what_is_maintained_and_says_why(method: str, scheme: str, device: str) -> None:
    choice = choose_quantizer(asked(method, scheme=scheme), device)
    assert choice.quantizer.tool == "llm-compressor"
    assert choice.quantizer.format == "compressed-tensors"
    assert "maintained" in choice.why


@pytest.mark.parametrize(
    ("method", "tool", "device", "toolchain"),
    [
        ("awq", "llm-compressor", "cpu", "llm-compressor"),
        ("awq", "llm-compressor", "cuda", "llm-compressor-cuda"),
        ("awq", "autoawq", "cpu", "autoawq"),
        ("awq", "autoawq", "cuda", "autoawq-cuda"),
        ("gptq", "auto-gptq", "cuda", "auto-gptq"),
    ],
)
def test_the_tool_the_recipe_names_is_taken(
    method: str, tool: str, device: str, toolchain: str
) -> None:
    choice = choose_quantizer(asked(method, tool=tool), device)
    assert (choice.quantizer.tool, choice.why) == (tool, "the recipe names it")
    assert choice.quantizer.toolchain(device) == toolchain


def test_auto_gptq_says_no_without_cuda_and_what_else_there_is() -> None:
    with pytest.raises(PlanError, match="auto-gptq needs CUDA to quantize") as caught:
        choose_quantizer(asked("gptq", tool="auto-gptq"), "cpu")
    assert "tool" in caught.value.hint


def test_a_refusal_names_every_tool_and_its_reason() -> None:
    with pytest.raises(PlanError, match="no tool makes awq w9a9 on cpu") as caught:
        choose_quantizer(unchecked(method="awq", scheme="w9a9", clip=True, offload=True), "cpu")
    for tool in ("llm-compressor", "autoawq"):
        assert f"{tool} " in caught.value.message


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"zero_point": False, "tool": "auto"}, "zero points only"),
        ({"group_size": -1}, "needs a group_size"),
        ({"offload": True}, "no offload"),
        ({"ignore": ()}, "never quantizes lm_head"),
    ],
)
def test_what_autoawq_cannot_do(settings: dict[str, Any], reason: str) -> None:
    assert reason in str(QUANTIZERS["autoawq"].refusal(asked("awq", **settings), "cpu"))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"scheme": "w8a8"}, "w4a16 and w8a16 only"),
        ({"offload": True}, "no offload"),
        ({"ignore": ("lm_head", "re:.*down_proj")}, "every layer but lm_head"),
    ],
)
def test_what_auto_gptq_cannot_do(settings: dict[str, Any], reason: str) -> None:
    assert reason in str(QUANTIZERS["auto-gptq"].refusal(asked("gptq", **settings), "cuda"))


def test_only_autoawq_searches_for_clipping() -> None:
    wanted = asked("awq", tool="autoawq", clip=True)
    assert chosen(wanted) == "autoawq"
    assert QUANTIZERS["llm-compressor"].refusal(wanted, "cpu") == "has no clip search"


def test_an_installed_package_adds_one_but_replaces_none(monkeypatch: pytest.MonkeyPatch) -> None:
    class Third(LlamaQuantize):
        tool = "third"

    class Entry:
        def __init__(self, name: str) -> None:
            self.name = name

        def load(self) -> type[Third]:
            return Third

    def entry_points(group: str) -> list[Entry]:
        assert group == "deployer.quantizers"
        return [Entry("third"), Entry("gguf")]

    monkeypatch.setattr(module, "entry_points", entry_points)
    table = quantizers()
    assert table["third"].tool == "third"
    assert table["gguf"] is QUANTIZERS["gguf"]


# llama-quantize's log

LOG = """\
[   1/ 272] output_norm.weight - [576, 1, 1, 1], type = f32, size = 0.002 MB
llama_tensor_get_type : blk.0.ffn_down.weight - ncols    576 not divisible by    256 (required for \
type   q4_K) - falling back to   q5_0
llama_tensor_get_type : blk.1.ffn_down.weight - ncols    576 not divisible by    256 (required for \
type   q6_K) - falling back to   q8_0
"""


def test_substitutions_are_read_from_the_log() -> None:
    found = QUANTIZERS["llama-quantize"].substitutions({}, LOG)
    assert found == [
        {
            "tensor": f"blk.{layer}.ffn_down.weight",
            "wanted": wanted,
            "used": used,
            "why": "its width is no multiple of 256",
        }
        for layer, wanted, used in ((0, "q4_K", "q5_0"), (1, "q6_K", "q8_0"))
    ]


def test_the_gguf_packages_worker_reports_its_own() -> None:
    told = [{"tensor": "t", "wanted": "Q4_0", "used": "F16", "why": "its width"}]
    assert QUANTIZERS["gguf"].substitutions({"substitutions": told}, "") == told
    assert QUANTIZERS["gguf"].substitutions({"substitutions": None}, "") == []


# A mix of types


def test_a_mix_names_the_type_of_every_tensor() -> None:
    mixed = Quantization.model_validate({"imatrix": True, "mixed": {"budget_bpw": 5.0}})
    assert chosen(mixed) == "llama-quantize"
    types = {
        "token_embd.weight": "q8_0", "output.weight": "q6_k", "blk.1.attn_q.weight": "iq4_nl",
    }  # fmt: skip
    job = QuantizeJob(mixed, Path("in"), Path("out"), imatrix=Path("i.gguf"), types=types)
    assert QUANTIZERS["llama-quantize"].command(job).arguments == (
        "--imatrix", "i.gguf", "--token-embedding-type", "q8_0", "--output-tensor-type", "q6_k",
        "--tensor-type", r"^blk\.1\.attn_q\.weight$=iq4_nl", "in", "out", "Q8_0",
    )  # fmt: skip
