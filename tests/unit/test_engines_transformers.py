"""The transformers adapter: arguments, environment, memory, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from deployer.engines import ENGINES, Facts, Launch, ModelToServe
from deployer.engines.transformers import BUFFERS, CPU, GPU, HOST_BUFFERS
from deployer.errors import PlanError
from deployer.recipe import Quantization, Serve, Transformers

ENGINE = ENGINES["transformers"]
FACTS = Facts(cores=4)
NF4 = {"method": "bitsandbytes", "scheme": "nf4", "double_quant": True}
MODEL = ModelToServe(
    Path("/bundle"), "name", "cpu", "bitsandbytes", "nf4", 1000, 5_000_000, load=NF4
)


def launch(model: ModelToServe = MODEL, facts: Facts = FACTS, **serve: object) -> Launch:
    return ENGINE.launch("transformers", model, Serve.model_validate({"port": 9, **serve}), facts)


def value(made: Launch, flag: str) -> str:
    arguments = made.command.arguments
    return arguments[arguments.index(flag) + 1]


def test_the_recipe_becomes_arguments_and_no_key_is_among_them() -> None:
    made = launch(
        context=100, parallel=1, api_key_file="/secret/keys", drain_timeout=17,
        transformers=Transformers(dtype="float32"),
    )  # fmt: skip
    assert made.command.worker == "serve_transformers"
    assert made.command.toolchain == CPU
    for flag, wanted in {
        "--model": "/bundle", "--alias": "name", "--host": "127.0.0.1", "--port": "9",
        "--context": "100", "--dtype": "float32", "--device": "cpu", "--drain-timeout": "17",
        "--api-key-file": "/secret/keys",
    }.items():  # fmt: skip
        assert value(made, flag) == wanted
    assert json.loads(value(made, "--load")) == NF4
    assert made.drains
    assert not made.warnings


def test_sixteen_bit_weights_are_loaded_as_they_are() -> None:
    assert "--load" not in launch(replace(MODEL, load=None)).command.arguments


def test_its_threads_are_those_asked_for_else_the_cores() -> None:
    assert launch().command.env["OMP_NUM_THREADS"] == "4"
    assert launch(threads=2).command.env["OMP_NUM_THREADS"] == "2"
    assert launch().command.env["HF_HUB_OFFLINE"] == "1"


def test_a_gpu_has_a_toolchain_of_its_own() -> None:
    gpu = launch(replace(MODEL, device="auto"), Facts(has_gpu=True))
    assert (gpu.command.toolchain, value(gpu, "--device")) == (GPU, "cuda")
    assert ENGINE.scoring("cuda").toolchain == GPU
    assert ENGINE.scoring("cpu").toolchain == CPU


def test_one_request_at_a_time_is_told_and_counted() -> None:
    """The cache is that of one request, since the others wait."""
    (warning,) = launch(parallel=8).warnings
    assert "one request at a time" in warning
    held = ENGINE.memory(MODEL, Serve(context=100, parallel=8), FACTS)
    assert (held.weights, held.cache, held.buffers) == (5_000_000, 100_000, BUFFERS)
    wide = Serve(context=100, transformers=Transformers(dtype="float32"))
    assert ENGINE.memory(MODEL, wide, FACTS).cache == 200_000
    gpu = ENGINE.memory(replace(MODEL, device="cuda"), Serve(), FACTS)
    assert gpu.total == HOST_BUFFERS


def test_what_its_server_does_not_know_is_refused() -> None:
    with pytest.raises(PlanError, match=r"extra_args cannot be used"):
        launch(extra_args=("--x",))
    with pytest.raises(PlanError, match=r"no server 'vllm'"):
        ENGINE.choose("vllm", FACTS)


@pytest.mark.parametrize(
    ("quantization", "load"),
    [
        ({"method": "bitsandbytes", "scheme": "nf4", "double_quant": True}, NF4),
        (
            {"method": "bitsandbytes", "scheme": "int8"},
            {"method": "bitsandbytes", "scheme": "int8"},
        ),
        (
            {"method": "hqq", "scheme": "int4"},
            {"method": "hqq", "scheme": "int4", "group_size": 64},
        ),
        ({"method": "torchao", "scheme": "int8"}, {"method": "torchao", "scheme": "int8"}),
        ({"method": "none"}, None),
    ],
)
def test_an_engine_is_told_how_to_quantize(
    quantization: dict[str, object], load: dict[str, object] | None
) -> None:
    assert Quantization.model_validate(quantization).load == load


def test_there_is_no_public_program_that_serves_it_the_same() -> None:
    with pytest.raises(PlanError, match="no program of its own") as caught:
        ENGINE.portable(MODEL, Serve(), 4)
    assert "deployer serve" in caught.value.hint
