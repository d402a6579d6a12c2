"""`exporting/docker.py` and `exporting/container.py`: what is built and runs, what is refused."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from made_up_bundle import deployment

import deployer
from deployer.errors import PlanError
from deployer.exporting import docker, sizing
from deployer.exporting.container import USER, container

PACKAGE = Path(deployer.__file__).parent
PUBLIC = "vllm/vllm-openai:"


def instructions(dockerfile: str) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile, continued lines joined, comments left out."""
    kept = "\n".join(line for line in dockerfile.splitlines() if not line.startswith("#"))
    lines = re.sub(r"\\\n\s*", " ", kept).splitlines()
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in lines if line]


def of(name: str, dockerfile: str) -> list[str]:
    return [value for each, value in instructions(dockerfile) if each == name]


def worker() -> ModuleType:
    path = PACKAGE / "workers" / "serve_xllamacpp.py"
    spec = importlib.util.spec_from_file_location("serve_xllamacpp", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def argv_in_image(files: dict[str, str]) -> list[str]:
    """What our image's server is started with: its launcher's options, then the image's."""
    (launched,) = [line for line in files["llama-server"].splitlines() if line.startswith("exec ")]
    assert launched.endswith(' "$@"')
    words = shlex.split(launched)
    options = words[words.index("/opt/llama-server/serve_xllamacpp.py") + 1 : -1]
    return [*options, *json.loads(of("CMD", files["Dockerfile"])[0])]


@contextmanager
def answering(status: int) -> Iterator[int]:
    """A server on the loopback that gives every request this status; its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_our_image_runs_the_server_that_deployer_runs() -> None:
    given = deployment(serve={"context": 512, "parallel": 4, "drain_timeout": 45})
    files = docker.render(given)
    parsed = worker().parse(argv_in_image(files))
    assert (parsed.model, parsed.alias) == ("/models/model.gguf", given.manifest.name)
    assert (parsed.host, parsed.port) == ("0.0.0.0", 8080)
    assert (parsed.ctx_size, parsed.parallel, parsed.threads) == (2048, 4, 2)
    assert (parsed.drain_timeout, parsed.cors_origins) == (45, "localhost")
    assert json.loads(of("ENTRYPOINT", files["Dockerfile"])[0]) == ["llama-server"]
    ours = (PACKAGE / "workers" / "serve_xllamacpp.py").read_text()
    assert files["serve_xllamacpp.py"] == ours


def test_old_prompts_are_kept_within_the_memory_limit() -> None:
    given = deployment()
    spare = sizing.memory_limit(given).value - given.footprint.memory_bytes
    parsed = worker().parse(argv_in_image(docker.render(given)))
    assert 0 < parsed.cache_ram * sizing.MIB <= spare // 2


def test_only_the_wheel_of_the_lock_is_installed_and_its_hash_must_match() -> None:
    files = docker.render(deployment())
    lock = (PACKAGE / "toolchains" / "locks" / "llama-cpp.txt").read_text()
    lines = files["requirements.txt"].splitlines()
    assert re.fullmatch(r"xllamacpp==\S+ \\", lines[0])
    assert all(re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", line) for line in lines[1:])
    assert not lines[-1].endswith("\\")
    assert files["requirements.txt"] in lock
    _, command = of("RUN", files["Dockerfile"])
    for option in ("--require-hashes", "--no-deps", "--only-binary=:all:"):
        assert option in command


def test_the_build_context_is_what_the_dockerfile_copies() -> None:
    files = docker.render(deployment())
    allowed = {line[1:] for line in files[".dockerignore"].splitlines() if line.startswith("!")}
    copied = {
        word
        for value in of("COPY", files["Dockerfile"])
        for word in value.split()[:-1]
        if not word.startswith("--") and word != "."
    }
    assert files[".dockerignore"].splitlines()[0] == "*"
    assert allowed == copied
    assert allowed < set(files)


def test_the_model_is_in_the_last_stage_alone() -> None:
    dockerfile = docker.render(deployment())["Dockerfile"]
    assert of("FROM", dockerfile) == ["${BASE} AS server", "server AS bundled"]
    server, bundled = dockerfile.split("FROM server AS bundled")
    assert "bundle" not in " ".join(value for _, value in instructions(server.split("FROM")[1]))
    assert "COPY --from=bundle . /models/" in bundled


@pytest.mark.parametrize(
    ("engine", "changes"), [("llama.cpp", {}), ("vllm", {"device": "cuda"})], ids=["ours", "public"]
)
def test_the_server_is_no_root_and_gets_signals(engine: str, changes: dict[str, Any]) -> None:
    dockerfile = docker.render(deployment(engine, **changes))["Dockerfile"]
    assert of("USER", dockerfile) == [f"{USER}:{USER}"]
    assert of("STOPSIGNAL", dockerfile) == ["SIGTERM"]
    for name in ("ENTRYPOINT", "CMD"):  # a shell in between would keep the signal to itself
        (value,) = of(name, dockerfile)
        assert all(isinstance(word, str) for word in json.loads(value))
    names = [name for name, _ in instructions(dockerfile)]
    assert names.index("USER") > max(
        [number for number, name in enumerate(names[: names.index("ENTRYPOINT")]) if name == "RUN"],
        default=0,
    )


def test_the_health_check_waits_as_long_as_a_start_may_take() -> None:
    given = deployment(taken={"ready_seconds": 40.0})
    (check,) = of("HEALTHCHECK", docker.render(given)["Dockerfile"])
    assert "--start-period=120s" in check
    assert json.loads(check.split(" CMD ")[1])[:2] == ["python", "-c"]


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1), (500, 1)])
def test_the_health_program_ends_with_what_the_server_answers(status: int, code: int) -> None:
    with answering(status) as port:
        program = container(deployment()).health(port)
        assert program is not None
        with pytest.raises(SystemExit) as ended:
            exec(program[2], {})
    assert int(ended.value.code or 0) == code  # type: ignore[arg-type]


def test_the_health_program_fails_where_nobody_listens() -> None:
    program = container(deployment()).health(9)
    assert program is not None
    with pytest.raises(OSError, match="refused"):
        exec(program[2], {})


def test_vllm_runs_in_its_public_image_on_gpus() -> None:
    files = docker.render(deployment("vllm", device="cuda", serve={"vllm": {"tensor_parallel": 2}}))
    assert of("ARG", files["Dockerfile"])[0].startswith(f"BASE={PUBLIC}")
    assert json.loads(of("ENTRYPOINT", files["Dockerfile"])[0]) == ["vllm", "serve"]
    command = json.loads(of("CMD", files["Dockerfile"])[0])
    assert command[0] == "/models"
    assert command[command.index("--tensor-parallel-size") + 1] == "2"
    assert set(files) == {"Dockerfile", ".dockerignore", "README.md"}
    for option in ("--gpus 2", "--shm-size 8g", "--tmpfs /tmp:mode=1777,exec"):
        assert option in files["README.md"]


def test_another_image_is_taken_as_it_is() -> None:
    files = docker.render(deployment(options={"image": "registry.example/llama.cpp:server"}))
    assert of("ARG", files["Dockerfile"]) == ["BASE=registry.example/llama.cpp:server"]
    assert of("ENTRYPOINT", files["Dockerfile"]) == []  # the image knows where its program is
    command = json.loads(of("CMD", files["Dockerfile"])[0])
    assert command[:2] == ["--model", "/models/model.gguf"]
    assert int(command[command.index("--cache-ram") + 1]) > 0
    assert "requirements.txt" not in files


def test_a_recipe_may_set_the_cache_of_old_prompts_itself() -> None:
    serve = {"extra_args": ("--cache-ram", "64")}
    files = docker.render(deployment(options={"image": "llama.cpp:server"}, serve=serve))
    command = json.loads(of("CMD", files["Dockerfile"])[0])
    assert [word for word in command if word == "--cache-ram"] == ["--cache-ram"]
    own = worker().parse(argv_in_image(docker.render(deployment(serve=serve))))
    assert own.cache_ram == 64  # the last one counts


def test_keys_come_from_a_file_that_is_mounted() -> None:
    files = docker.render(deployment(options={"key_secret": "chat-keys", "host": "0.0.0.0"}))
    assert worker().parse(argv_in_image(files)).api_key_file == "/run/secrets/chat-keys"
    readme = files["README.md"]
    assert 'source="$PWD"/chat-keys,target=/run/secrets/chat-keys,readonly' in readme
    assert "one a line" in readme


def test_vllm_gets_its_key_from_the_file_when_it_starts() -> None:
    options = {"key_secret": "chat-keys"}
    files = docker.render(deployment("vllm", device="cuda", options=options))
    entry = json.loads(of("ENTRYPOINT", files["Dockerfile"])[0])
    assert entry[:2] == ["/bin/sh", "-c"]
    assert "VLLM_API_KEY=$(cat /run/secrets/chat-keys)" in entry[2]
    assert entry[2].endswith('exec "$@"')  # the server takes the shell's place, and its signals
    assert entry[3:] == ["sh", "vllm", "serve"]
    assert not any("KEY" in value for value in of("ENV", files["Dockerfile"]))
    assert "below /v1 alone" in files["README.md"]


def test_our_server_takes_keys_from_the_variable_of_llama_server() -> None:
    """A cluster's secret comes as a variable; the image stands in for llama-server."""
    variable = deployment().start("/models").key_variable
    assert variable is not None
    keys = worker().api_keys
    assert keys(None, {variable: "first,second"}) == ["first", "second"]
    assert keys(None, {}) == keys(None, {variable: ""}) == []


def test_a_key_file_comes_before_the_variable(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("# ours\nof-the-file\n\n")
    assert worker().api_keys(str(tmp_path / "keys"), {"LLAMA_API_KEY": "x"}) == ["of-the-file"]


def test_the_readme_gives_the_figures_and_where_they_come_from() -> None:
    given = deployment()
    readme = docker.render(given)["README.md"]
    limit = sizing.memory_limit(given)
    assert f"--memory {limit.value // sizing.MIB}m --memory-swap" in readme
    assert f"--stop-timeout {sizing.grace_seconds(given).value}" in readme
    assert limit.why in readme
    assert "--publish 127.0.0.1:8080:8080" in readme
    estimated = docker.render(deployment(measured=False))["README.md"]
    assert "estimate" in estimated


def test_the_readme_says_when_another_server_was_measured() -> None:
    assert (
        "measured with source" in docker.render(deployment(taken={"server": "source"}))["README.md"]
    )


@pytest.mark.parametrize(
    ("engine", "changes", "message", "hint"),
    [
        ("vllm", {}, "no public image of vllm for the CPU", "--image"),
        ("llama.cpp", {"device": "cuda"}, "computes on the CPU", "--image"),
        ("llama.cpp", {"options": {"host": "0.0.0.0"}}, "answer everybody", "--key-secret"),
        ("llama.cpp", {"options": {"key_secret": "a/b"}}, "cannot be the name", "--key-secret"),
        ("llama.cpp", {"options": {"key_secret": "$(id)"}}, "cannot be the name", "--key-secret"),
        ("llama.cpp", {"options": {"host": "a.example", "key_secret": "k"}}, "address", "--host"),
        ("llama.cpp", {"options": {"model": "oci://r/m:1"}}, "when it is built", "--model"),
        ("llama.cpp", {"options": {"image": "a b"}}, "no reference of an image", "REGISTRY"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_what_to_do(
    engine: str, changes: dict[str, Any], message: str, hint: str
) -> None:
    with pytest.raises(PlanError, match=re.escape(message)) as refused:
        docker.render(deployment(engine, **changes))
    assert hint in refused.value.hint


def test_the_engine_of_deployers_own_server_is_refused() -> None:
    with pytest.raises(PlanError):
        docker.render(deployment("transformers"))


def test_values_of_the_dockerfile_are_taken_literally() -> None:
    assert docker._quoted('a "b" $HOME \\') == '"a \\"b\\" \\$HOME \\\\"'
    with pytest.raises(PlanError):
        docker._quoted("two\nlines")
