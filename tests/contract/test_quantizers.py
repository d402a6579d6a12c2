"""One suite over every quantizer: each keeps the promises of the Protocol."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deployer.command import Command
from deployer.quantizers import QUANTIZERS, CalibrationSet, QuantizeJob
from deployer.recipe import GGUF_SCHEMES, Quantization
from deployer.recipe.quantization import SCHEMES
from deployer.toolchains.specs import SPECS
from deployer.toolchains.worker import WORKERS

SOURCE, TARGET, IMATRIX = Path("/in/model"), Path("/out/model"), Path("/i/imatrix.gguf")
CALIBRATION = CalibrationSet(Path("/c/text.txt"), "text", 8, 128)
FORMATS = {"gguf", "awq", "gptq", "compressed-tensors"}
DEVICES = ("cpu", "cuda")
every_tool = pytest.mark.parametrize("tool", QUANTIZERS)


def asked(method: str, scheme: str, imatrix: bool = False) -> Quantization:
    return Quantization.model_construct(method=method, scheme=scheme, imatrix=imatrix)


EVERY = [
    *(asked("gguf", scheme, imatrix) for scheme in GGUF_SCHEMES for imatrix in (False, True)),
    *(asked(method, scheme) for method in ("awq", "gptq") for scheme in SCHEMES[method]),
]


def jobs(tool: str) -> list[QuantizeJob]:
    """A job for all that the tool does not refuse."""
    return [
        QuantizeJob(
            wanted,
            SOURCE,
            TARGET,
            device,
            IMATRIX if wanted.imatrix else None,
            CALIBRATION if wanted.calibrated else None,
        )
        for wanted in EVERY
        for device in DEVICES
        if QUANTIZERS[tool].refusal(wanted, device) is None
    ]


@every_tool
def test_it_is_listed_under_its_name_and_makes_something(tool: str) -> None:
    quantizer = QUANTIZERS[tool]
    assert quantizer.tool == tool
    assert quantizer.format in FORMATS
    assert jobs(tool)


@every_tool
def test_its_words_end_a_sentence(tool: str) -> None:
    """`tool: auto` is explained as "TOOL, since MERIT", and "no tool makes it: TOOL REFUSAL"."""
    quantizer = QUANTIZERS[tool]
    refusals = {quantizer.refusal(wanted, device) for wanted in EVERY for device in DEVICES}
    for words in (quantizer.merit, *refusals - {None}):
        assert words and words[0].islower() and not words.endswith(".")
    assert len(refusals) > 1, "no tool makes everything"


@every_tool
def test_it_makes_no_other_method_than_its_format_holds(tool: str) -> None:
    made = {job.quantization.method for job in jobs(tool)}
    assert made == ({"gguf"} if QUANTIZERS[tool].format == "gguf" else made - {"gguf"})


@every_tool
def test_its_toolchains_exist(tool: str) -> None:
    for job in jobs(tool):
        assert QUANTIZERS[tool].toolchain(job.device) in SPECS


@every_tool
def test_its_command_reads_the_source_writes_the_target_and_runs_nothing(tool: str) -> None:
    quantizer = QUANTIZERS[tool]
    for job in jobs(tool):
        command = quantizer.command(job)
        assert isinstance(command, Command)
        assert command.toolchain == quantizer.toolchain(job.device)
        said = [*command.arguments, *map(str, (command.request or {}).values())]
        assert str(SOURCE) in said
        assert str(TARGET) in said
        assert any(str(job.quantization.scheme) == word.lower() for word in said)
        assert (str(IMATRIX) in said) == job.quantization.imatrix


@every_tool
def test_its_program_is_of_its_toolchain(tool: str) -> None:
    for job in jobs(tool):
        command = QUANTIZERS[tool].command(job)
        if command.worker:
            assert (WORKERS / f"{command.worker}.py").is_file()
            json.dumps(command.request)
        else:
            assert command.program in SPECS[command.toolchain or ""].programs


@every_tool
def test_a_worker_that_calibrates_gets_every_knob_and_the_set(tool: str) -> None:
    for job in jobs(tool):
        if not job.quantization.calibrated:
            continue
        request = QUANTIZERS[tool].command(job).request or {}
        assert request["method"] == job.quantization.method
        assert request["device"] == job.device
        assert request["knobs"].keys() == job.quantization.knobs.keys()
        assert request["knobs"]["ignore"] == ["lm_head"]
        assert request["calibration"] == {
            "path": "/c/text.txt", "kind": "text", "samples": 8, "length": 128,
        }  # fmt: skip


@every_tool
def test_calibrating_without_a_set_is_a_mistake_of_ours(tool: str) -> None:
    for job in jobs(tool):
        if job.quantization.calibrated:
            bare = QuantizeJob(job.quantization, SOURCE, TARGET, job.device)
            with pytest.raises(ValueError, match="needs a calibration set"):
                QUANTIZERS[tool].command(bare)


@every_tool
def test_no_report_and_no_log_tell_of_no_substitution(tool: str) -> None:
    assert QUANTIZERS[tool].substitutions({}, "") == []
