"""Records of servers on disk, their logs, the causes of an end; no process is started."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from deployer import serving
from deployer.errors import ServerError, UsageError
from deployer.home import Home
from deployer.serving import causes
from deployer.serving.engine_log import EngineLog
from deployer.serving.holding import hold_name
from deployer.serving.identity import peak_rss, start_mark
from deployer.serving.launching import local_url
from deployer.serving.spec import Patience, Spec
from deployer.serving.state import FRESH, Load, ServerFolder, ServerRecord


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def record(**changes: object) -> ServerRecord:
    """A ready server whose supervisor and engine are this very process."""
    pid, mark = os.getpid(), start_mark(os.getpid())
    values: dict[str, object] = {
        "name": "one", "endpoint": "http://127.0.0.1:1", "supervisor_pid": pid, "engine_pid": pid,
        "bundle": "/b", "log": "/l", "state": "ready", "server": "xllamacpp", "model": "m",
        "ready_at": time.monotonic() - 5, "marks": {"supervisor": mark, "engine": mark},
    }  # fmt: skip
    return ServerRecord.model_validate({**values, **changes})


def put(home: Home, one: ServerRecord) -> ServerFolder:
    folder = ServerFolder.of(home, one.name)
    folder.root.mkdir(parents=True, exist_ok=True)
    folder.write(one)
    return folder


def test_a_running_server_has_uptime_and_memory(home: Home) -> None:
    put(home, record())
    (shown,) = serving.status(home)
    assert shown.state == "ready"
    assert shown.uptime_s is not None
    assert 5 <= shown.uptime_s < 60
    assert shown.peak_rss_bytes is None or shown.peak_rss_bytes > 1 << 20


def test_how_busy_it_is_is_shown_only_while_that_is_fresh(home: Home) -> None:
    folder = put(home, record(last_cause="hung"))
    assert serving.status(home)[0].running is None
    for age, shown in ((0.0, (2.0, 1.0, 9.5)), (FRESH + 1, (None, None, None))):
        load = Load(at=time.monotonic() - age, running=2, waiting=1, output_tokens_per_s=9.5)
        folder.load_file.write_text(json.dumps(load.as_json()))
        (now,) = serving.status(home)
        assert (now.running, now.waiting, now.output_tokens_per_s) == shown
        assert now.last_cause == "hung"
    folder.load_file.write_text("half a docu")
    assert serving.status(home)[0].running is None


def test_json_has_the_promised_fields_and_no_internal_ones() -> None:
    shown = json.loads(json.dumps(record().as_json()))
    promised = {
        "name", "endpoint", "supervisor_pid", "engine_pid", "bundle", "log", "state", "restarts",
        "uptime_s", "ready_seconds", "peak_rss_bytes", "last_cause", "running", "waiting",
        "output_tokens_per_s",
    }  # fmt: skip
    assert promised <= set(shown)
    assert not {"marks", "ready_at", "drain_timeout"} & set(shown)


@pytest.mark.parametrize("changes", [{"marks": {"supervisor": "1"}}, {"supervisor_pid": 2**22 + 1}])
def test_a_reused_or_dead_pid_means_lost(home: Home, changes: dict[str, object]) -> None:
    put(home, record(**changes))
    assert [r.state for r in serving.status(home)] == ["lost"]


def test_a_lost_server_is_cleared_without_touching_who_has_its_pid_now(home: Home) -> None:
    put(home, record(marks={"supervisor": "1", "engine": "1"}))
    assert serving.stop(home, "one").state == "stopped"  # we are alive to see it
    assert serving.status(home) == []
    with pytest.raises(UsageError, match="no server named one"):
        serving.stop(home, "one")


def test_stopped_servers_are_not_listed_and_half_written_ones_neither(home: Home) -> None:
    put(home, record(name="old", state="stopped"))
    put(home, record(name="bad", state="failed"))
    broken = put(home, record(name="broken"))
    broken.state_file.write_text('{"name": "bro')
    assert [r.name for r in serving.status(home)] == ["bad"]
    assert serving.status(home, "old")[0].state == "stopped"


def test_nothing_there_yet(home: Home) -> None:
    assert serving.status(home) == []
    for ask in (lambda: serving.stop(home, "x"), lambda: serving.logs(home, "x")):
        with pytest.raises(UsageError, match="no server named x"):
            ask()


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "-f", "x" * 65])
def test_names_that_are_no_folder_names(home: Home, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be the name"):
        ServerFolder.of(home, name)


def test_the_record_is_replaced_whole(home: Home) -> None:
    folder = put(home, record())
    folder.write(record(state="draining"))
    assert folder.read() == record(state="draining", ready_at=folder.read().ready_at)  # type: ignore[union-attr]
    assert [p.name for p in folder.root.iterdir()] == ["state.json"]


def test_this_process_is_itself_and_a_dead_one_is_nobody() -> None:
    assert start_mark(os.getpid()) == start_mark(os.getpid()) is not None
    assert start_mark(2**22 + 1) is None
    assert peak_rss(2**22 + 1) is None


@pytest.mark.parametrize("ending", ["\n", ""])
@pytest.mark.parametrize("lines", [0, 1, 3, 5000, 20_000])
def test_the_last_lines_of_a_large_log(home: Home, lines: int, ending: str) -> None:
    folder = put(home, record(state="stopped"))
    written = [f"line {n} {'x' * 40}" for n in range(10_000)]
    folder.engine_log.write_text("\n".join(written) + ending)
    wanted = written[-lines:] if lines else []
    assert list(serving.logs(home, "one", lines=lines)) == wanted


def test_a_server_without_a_log_has_no_lines(home: Home) -> None:
    put(home, record(state="failed"))
    assert list(serving.logs(home, "one")) == []


@pytest.mark.parametrize(
    ("returncode", "text", "cause", "retry"),
    [
        (1, "srv start: couldn't bind HTTP server socket, hostname: x", "port in use", True),
        (1, "[Errno 98] error while attempting to bind: address already in use",
         "port in use", True),
        (1, "ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer\n"
            "llama_model_load: error loading model: unable to allocate CPU buffer",
         "out of memory", False),
        (-6, "CUDA error: out of memory", "out of memory", False),
        (127, "llama-server: error while loading shared libraries: libggml.so", "missing library",
         False),
        (1, "ModuleNotFoundError: No module named 'xllamacpp'", "missing library", False),
        (1, "error: invalid argument: --foo", "bad arguments", False),
        (2, "error: unrecognized arguments: --foo", "bad arguments", False),
        (1, "gguf_init_from_file: invalid magic characters", "unusable model", False),
        (1, "OSError: [Errno 98] Address already in use", "port in use", True),
        (1, "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", "out of memory",
         False),
        (1, "ValueError: Free memory on device cuda:0 (1/80 GiB) on startup is less than desired",
         "out of memory", False),
        (1, "ValueError: To serve at least one request with the model's max seq len (8192), (2 GiB "
            "KV cache is needed, which is larger than the available KV cache memory (1 GiB).",
         "cache too small", False),
        (1, "Value error, User-specified max_model_len (9000) is greater than the derived "
            "max_model_len (max_position_embeddings=8192)", "context too long", False),
        (1, "ValueError: LoRA rank 64 is greater than max_lora_rank 16.", "adapter too large",
         False),
        (1, "Value error, awq quantization is currently not supported in cpu.",
         "unsupported quantization", False),
        (2, "serve_vllm: error: argument --dtype: invalid choice: 'x'", "bad arguments", False),
        (1, "safetensors_rust.SafetensorError: Error while deserializing header: header too large",
         "unusable model", False),
        (1, "KeyError: 'layers.0.mlp.down_proj.qweight'", "unusable model", False),
        (1, "ValueError: There is no module or parameter named 'x' in LlamaForCausalLM",
         "unusable model", False),
        (1, "_protocol.WorkerError: transformers cannot load the model: OSError: no file",
         "unusable model", False),
        (-9, "", "killed", True),
        (1, "no idea", "unknown", True),
    ],
)  # fmt: skip
def test_causes(returncode: int, text: str, cause: str, retry: bool) -> None:
    found = causes.explain(returncode, text)
    assert (found.name, found.retry) == (cause, retry)


def test_the_error_ends_with_the_logs_last_lines(tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    log.write_text("old: out of memory\n")
    written = EngineLog(log, 1 << 20)
    written.begin()
    with log.open("a") as stream:
        stream.write("".join(f"line {n}\n" for n in range(20)))
    text = written.text()
    assert "old" not in text
    error = causes.exited(causes.explain(3, text), 3, log, text)
    assert error.message.startswith("the server ended (exit status 3)\n  | line 12\n")
    assert error.message.endswith("  | line 19")
    assert str(log) in error.hint


def test_what_a_log_says_of_a_request_is_no_reason_against_a_new_start() -> None:
    text = "got exception: invalid argument, and No module named 'x'"
    assert not causes.explain(1, text).retry
    assert causes.explain(1, text, served=True).name == "unknown"
    assert causes.explain(-6, "std::bad_alloc", served=True).name == "out of memory"


def test_a_kill_while_memory_ran_out_is_told_from_any_other() -> None:
    starved = causes.explain(-9, "", served=True, starved=True)
    assert (starved.name, starved.retry) == ("out of memory", False)
    assert causes.explain(-11, "", served=True, starved=True).name == "unknown"


def test_an_end_that_was_ours_shows_no_signal(tmp_path: Path) -> None:
    cause = causes.over_limit(3 << 30, 2 << 30)
    message = causes.exited(cause, 0, tmp_path / "log", "last words\n").message
    assert message == (
        "the server was ended: it held 3.00 GiB, and serve.memory_limit_gib is 2\n  | last words"
    )


def test_a_spec_survives_its_file_and_holds_no_key(tmp_path: Path) -> None:
    spec = Spec(
        name="n", engine="e", server="s", argv=("a", "b"), url="http://127.0.0.1:1", port=1,
        model="m", bundle="b", slots=2, context=64, memory_bytes=3, ready_timeout=1.0,
        drain_timeout=1.0, drains=True, health=None, metrics=None, key_file="/keys",
        env={"A": "b"}, cores=(0, 3), numa_node=1, memory_limit=5,
        patience=Patience(check_every=1.0),
    )  # fmt: skip
    spec.write(tmp_path / "spec.json")
    assert Spec.read(tmp_path / "spec.json") == spec


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("::", "http://[::1]:80"),
        ("::1", "http://[::1]:80"),
        ("box.local", "http://box.local:80"),
    ],
)
def test_where_a_server_is_reached(host: str, url: str) -> None:
    assert local_url(host, 80) == url


def test_the_line_that_names_the_error_is_shown_though_others_follow(tmp_path: Path) -> None:
    text = "\n".join(
        [
            "(Worker) WARNING limits can cause `OSError: [Errno 24] Too many open files`",
            "(Worker) ValueError: the header is damaged",
            *(f"  File {n}" for n in range(20)),
            "RuntimeError: Engine core initialization failed. See root cause above.",
        ]
    )
    message = causes.exited(causes.explain(1, text), 1, tmp_path / "log", text).message
    shown = [line.removeprefix("  | ") for line in message.splitlines()[1:]]
    assert shown[:2] == ["(Worker) ValueError: the header is damaged", "..."]
    assert shown[-1].startswith("RuntimeError")
    assert len(shown) == 2 + causes.SHOWN_LINES


def test_who_takes_a_name_deletes_what_killed_ones_left(tmp_path: Path) -> None:
    (tmp_path / ".state.json.4194305").write_text("{", encoding="utf-8")  # no pid is that high
    taken = ServerError("taken")
    with hold_name(tmp_path / "lock", taken):
        assert [path.name for path in tmp_path.iterdir()] == ["lock"]
        with pytest.raises(ServerError, match="taken"), hold_name(tmp_path / "lock", taken):
            pass
