"""One suite over every quantizer: each keeps the promises of the Protocol."""

from __future__ import annotations

from pathlib import Path

import pytest

from deployer import quantizers as module
from deployer.command import Command
from deployer.errors import PlanError
from deployer.quantizers import QUANTIZERS, choose_quantizer, quantizers
from deployer.quantizers.llama_quantize import LlamaQuantize
from deployer.recipe import GGUF_SCHEMES, Quantization
from deployer.toolchains.specs import SPECS
from deployer.toolchains.worker import WORKERS

SOURCE, TARGET, IMATRIX = Path("/in/model.gguf"), Path("/out/model.gguf"), Path("/i/imatrix.gguf")
every_tool = pytest.mark.parametrize("tool", QUANTIZERS)


def asked(scheme: str, tool: str = "auto", imatrix: bool = False) -> Quantization:
    return Quantization.model_construct(method="gguf", scheme=scheme, tool=tool, imatrix=imatrix)


def supported(tool: str) -> list[Quantization]:
    every = [asked(scheme, imatrix=imatrix) for scheme in GGUF_SCHEMES for imatrix in (False, True)]
    return [quantization for quantization in every if QUANTIZERS[tool].supports(quantization)]


@every_tool
def test_it_is_listed_under_its_name_and_supports_something(tool: str) -> None:
    quantizer = QUANTIZERS[tool]
    assert quantizer.tool == tool
    assert quantizer.format == "gguf"
    assert quantizer.toolchain in SPECS
    assert supported(tool)


@every_tool
def test_its_command_reads_the_source_writes_the_target_and_runs_nothing(tool: str) -> None:
    quantizer = QUANTIZERS[tool]
    for quantization in supported(tool):
        imatrix = IMATRIX if quantization.imatrix else None
        command = quantizer.command(quantization, SOURCE, TARGET, imatrix)
        assert isinstance(command, Command)
        assert command.toolchain == quantizer.toolchain
        said = [*command.arguments, *map(str, (command.request or {}).values())]
        assert str(SOURCE) in said
        assert str(TARGET) in said
        assert any(str(quantization.scheme) == word.lower() for word in said)
        assert (str(IMATRIX) in said) == quantization.imatrix


@every_tool
def test_its_program_is_of_its_toolchain(tool: str) -> None:
    quantizer = QUANTIZERS[tool]
    command = quantizer.command(supported(tool)[0], SOURCE, TARGET, None)
    if command.worker:
        assert (WORKERS / f"{command.worker}.py").is_file()
    else:
        assert command.program in SPECS[quantizer.toolchain].programs


@every_tool
def test_no_report_and_no_log_tell_of_no_substitution(tool: str) -> None:
    assert QUANTIZERS[tool].substitutions({}, "") == []


# Which one is taken


@pytest.mark.parametrize("scheme", GGUF_SCHEMES)
def test_every_scheme_has_a_tool(scheme: str) -> None:
    compiler_free = scheme in ("q4_0", "q8_0")
    assert choose_quantizer(asked(scheme)).tool == ("gguf" if compiler_free else "llama-quantize")
    assert choose_quantizer(asked(scheme, imatrix=True)).tool == "llama-quantize"


def test_the_tool_the_recipe_names_is_taken() -> None:
    assert choose_quantizer(asked("q4_0", "llama-quantize")).tool == "llama-quantize"


def test_what_no_tool_makes_is_refused() -> None:
    with pytest.raises(PlanError, match="no quantizer makes gguf q9_9") as caught:
        choose_quantizer(asked("q9_9"))
    assert "llama-quantize" in caught.value.hint


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
