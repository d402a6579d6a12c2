"""llama.cpp's adapter: which server, which arguments. No process, no network."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from deployer.engines import ENGINES, Facts, ModelToServe, engine_named
from deployer.engines.llama_cpp import RELEASE, LlamaCpp
from deployer.errors import PlanError
from deployer.recipe import SERVERS, Serve
from deployer.toolchains.specs import LOCKS

GIB = 1 << 30
MODEL = ModelToServe(Path("/bundle/model.gguf"), "smollm2")


def arguments(server: str = "source", facts: Facts | None = None, **serve: object) -> list[str]:
    settings = Serve(**serve)  # type: ignore[arg-type]
    return list(LlamaCpp().launch(server, MODEL, settings, facts or Facts()).command.arguments)


def value(argv: list[str], flag: str) -> str:
    return argv[argv.index(flag) + 1]


@pytest.mark.parametrize(
    ("programs", "toolchains", "server"),
    [
        ((), (), "xllamacpp"),
        ((), ("llama-cpp",), "xllamacpp"),
        (("llama-server",), (), "llama-server"),
        (("llama-server",), ("llama-cpp-native",), "source"),
        ((), ("llama-cpp-native",), "source"),
        ((), ("llama-cpp-python",), "xllamacpp"),
    ],
)
def test_auto_takes_the_fastest_that_is_there(
    programs: tuple[str, ...], toolchains: tuple[str, ...], server: str
) -> None:
    facts = Facts(programs=frozenset(programs), toolchains=frozenset(toolchains))
    assert LlamaCpp().choose("auto", facts) == server


def test_a_named_server_is_taken_as_it_is() -> None:
    for server in ("source", "xllamacpp", "llama-cpp-python"):
        assert LlamaCpp().choose(server, Facts()) == server
    with pytest.raises(PlanError, match="no llama-server is on PATH"):
        LlamaCpp().choose("llama-server", Facts())
    with pytest.raises(PlanError, match="has no server 'vllm'"):
        LlamaCpp().choose("vllm", Facts())


def test_the_context_is_that_of_one_request_times_the_slots() -> None:
    argv = arguments(context=1000, parallel=3)
    assert value(argv, "--ctx-size") == "3000"
    assert value(argv, "--parallel") == "3"
    assert value(arguments("llama-cpp-python", context=1000, parallel=3), "--ctx-size") == "1000"


def test_long_prompts_are_refused_and_nothing_but_the_api_is_served() -> None:
    argv = arguments()
    assert {"--no-context-shift", "--metrics", "--slots", "--no-webui"} <= set(argv)
    assert value(argv, "--cors-origins") == "localhost"


def test_threads_default_to_the_cores() -> None:
    assert value(arguments(facts=Facts(cores=7)), "--threads") == "7"
    assert value(arguments(facts=Facts(cores=7), threads=3), "--threads") == "3"


@pytest.mark.parametrize(("device", "layers"), [("cpu", ["0"]), ("cuda", ["999"]), ("auto", [])])
def test_layers_on_the_gpu(device: str, layers: list[str]) -> None:
    model = ModelToServe(MODEL.weights, MODEL.alias, device)
    argv = LlamaCpp().launch("source", model, Serve(), Facts()).command.arguments
    assert [b for a, b in pairwise(argv) if a == "--n-gpu-layers"] == layers


def test_the_key_file_is_named_and_absent_without_one() -> None:
    assert value(arguments(api_key_file="/keys"), "--api-key-file") == "/keys"
    assert "--api-key-file" not in arguments()


@pytest.mark.parametrize(
    ("server", "toolchain", "worker", "drains"),
    [
        ("llama-server", None, None, False),
        ("source", "llama-cpp-native", None, False),
        ("xllamacpp", "llama-cpp", "serve_xllamacpp", True),
        ("llama-cpp-python", "llama-cpp-python", "serve_llama_cpp_python", True),
    ],
)
def test_the_program_behind_each_server(
    server: str, toolchain: str | None, worker: str | None, drains: bool
) -> None:
    launch = LlamaCpp().launch(server, MODEL, Serve(), Facts())
    assert (launch.command.toolchain, launch.command.worker) == (toolchain, worker)
    assert launch.drains is drains
    assert bool(launch.warnings) is (server == "llama-cpp-python")
    if worker:
        import deployer

        assert (Path(deployer.__file__).parent / "workers" / f"{worker}.py").is_file()


def test_the_prompt_cache_is_bounded_only_where_memory_is_short() -> None:
    assert value(arguments(facts=Facts(spare_memory=4 * GIB)), "--cache-ram") == "2048"
    assert value(arguments(facts=Facts(spare_memory=-1)), "--cache-ram") == "0"
    assert "--cache-ram" not in arguments(facts=Facts(spare_memory=16 * GIB))
    assert "--cache-ram" not in arguments()
    assert "--cache-ram" not in arguments("llama-server", Facts(spare_memory=GIB))


def test_extra_arguments_come_last_as_they_are() -> None:
    for server in ("llama-server", "source", "xllamacpp"):
        assert arguments(server, extra_args=("--batch-size", "64"))[-2:] == ["--batch-size", "64"]
    with pytest.raises(PlanError, match="cannot be used with the llama-cpp-python server"):
        arguments("llama-cpp-python", extra_args=("--batch-size", "64"))


@pytest.mark.parametrize(
    "extra",
    ["--model", "-m", "--host", "--port", "--port=1", "--api-key", "--api_key", "--api-key-file",
     "--ctx-size", "--ctx_size", "-np", "--reuse-port", "-hf", "--alias"],
)  # fmt: skip
@pytest.mark.parametrize("server", SERVERS["llama.cpp"][1:])
def test_extra_arguments_cannot_undo_what_deployer_sets(server: str, extra: str) -> None:
    with pytest.raises(PlanError, match="must not hold"):
        arguments(server, extra_args=(extra, "x"))


def test_the_worker_takes_every_argument_of_the_mapping() -> None:
    """Same arguments, another program: the worker's parser must know them all."""
    import importlib.util

    import deployer

    path = Path(deployer.__file__).parent / "workers" / "serve_xllamacpp.py"
    spec = importlib.util.spec_from_file_location("serve_xllamacpp", path)
    assert spec is not None
    assert spec.loader is not None
    worker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(worker)
    argv = arguments("xllamacpp", Facts(cores=2, spare_memory=GIB), api_key_file="/k", port=1)
    parsed = worker.parse(argv)
    assert (parsed.ctx_size, parsed.parallel, parsed.threads) == (16384, 8, 2)
    assert (parsed.alias, parsed.api_key_file, parsed.cache_ram) == ("smollm2", "/k", 512)
    assert parsed.no_context_shift
    assert parsed.metrics
    assert parsed.no_webui


def test_memory_is_weights_cache_and_buffers() -> None:
    model = ModelToServe(Path("m.gguf"), "m", kv_bytes_per_token=1000, weights_bytes=GIB)
    needed = LlamaCpp().memory(model, Serve(context=100, parallel=3), Facts())
    assert (needed.weights, needed.cache) == (GIB, 300_000)
    assert needed.total == GIB + 300_000 + needed.buffers


def test_the_table_names_each_engine_as_it_names_itself() -> None:
    assert [engine.name for engine in ENGINES.values()] == list(ENGINES) == list(SERVERS)
    assert engine_named("llama.cpp") is ENGINES["llama.cpp"]
    with pytest.raises(PlanError, match="no engine 'nope'"):
        engine_named("nope")


def test_third_parties_add_engines_by_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import EntryPoint, EntryPoints

    entry = EntryPoint("mine", "deployer.engines.llama_cpp:LlamaCpp", "deployer.engines")
    monkeypatch.setattr("deployer.engines.entry_points", lambda group: EntryPoints([entry]))
    assert engine_named("mine") is LlamaCpp
    with pytest.raises(PlanError) as caught:
        engine_named("nope")
    assert caught.value.hint == "There are: llama.cpp, mine, transformers, vllm."


# Without deployer


def test_the_public_server_gets_the_same_settings_and_no_key() -> None:
    serve = Serve(context=1000, parallel=3, port=9, api_key_file="/secret/keys", threads=None)
    made = LlamaCpp().portable(MODEL, serve, threads=5)
    argv = list(made.argv)
    assert made.program == ("llama-server",)
    for flag, wanted in {
        "--model": "/bundle/model.gguf", "--alias": "smollm2", "--ctx-size": "3000",
        "--parallel": "3", "--threads": "5", "--port": "9",
    }.items():  # fmt: skip
        assert value(argv, flag) == wanted
    assert not any("key" in word for word in argv)
    assert (made.key_variable, made.image, made.env) == ("LLAMA_API_KEY", None, {})
    assert value(list(LlamaCpp().portable(MODEL, Serve(threads=2), 5).argv), "--threads") == "2"


def test_threads_that_are_not_known_are_left_to_the_program() -> None:
    assert "--threads" not in LlamaCpp().portable(MODEL, Serve(), threads=0).argv
    assert "--threads" in arguments()


def test_the_release_is_the_locked_one_unless_told() -> None:
    """Renewing the lock must renew the constant; look then whether the arguments still hold."""
    assert RELEASE.replace(" ", "==") in (LOCKS / "source.txt").read_text(encoding="utf-8")
    assert LlamaCpp().portable(MODEL, Serve(), 1).release == f"llama.cpp of {RELEASE}"
    assert LlamaCpp().portable(MODEL, Serve(), 1, "b11549").release == "llama.cpp b11549"


def test_what_deployer_sets_is_refused_here_too() -> None:
    with pytest.raises(PlanError, match="must not hold --model"):
        LlamaCpp().portable(MODEL, Serve(extra_args=("--model", "x")), 1)
    assert LlamaCpp().portable(MODEL, Serve(extra_args=("--mlock",)), 1).arguments[-1] == "--mlock"
