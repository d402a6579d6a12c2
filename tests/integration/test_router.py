"""Two real servers behind the real vllm-router, by the scripts that `deployer export` writes.

One is killed with SIGKILL under load. With llama.cpp always; with vLLM where
DEPLOYER_SLOW_TESTS is set, since its two servers take minutes to start.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from command_line import DEPLOYER, environment, gone, home_beside, must
from slow import SLOW
from streaming_load import Load

from deployer import serving
from deployer.artifacts import Bundle
from deployer.home import Home
from deployer.loadtest.endpoint import Endpoint
from deployer.machine import usable_cores
from deployer.serving import ServerRecord
from deployer.toolchains import provision

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(usable_cores() < 2, reason="two servers need two cores of their own"),
]
Run = Callable[..., None]


def free_ports(count: int) -> int:
    """The first of so many free ports in a row."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            first = int(probe.getsockname()[1])
        if first + count < 65536 and all(is_free(first + n) for n in range(count)):
            return first


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


@contextmanager
def replicas(bundle: Bundle, home: Home, folder: Path, *more: str) -> Iterator[str]:
    """Export, run both scripts, and give the router's URL; all ends with the context."""
    port = free_ports(3)
    must(
        "export", bundle.root, "--to", "vllm-router", "--replicas", "2", "--port", str(port),
        "--model", bundle.root, "--estimate", "-o", folder, home=home,
    )  # fmt: skip
    program = provision.ensure("vllm-router", home).program("vllm-router")
    env = {**environment(home), "VLLM_ROUTER": str(program)}
    env["PATH"] = f"{DEPLOYER.parent}:{env['PATH']}"
    try:
        with (folder / "replicas.log").open("wb") as log:
            subprocess.run(
                ["sh", "start-replicas.sh", *more], cwd=folder, env=env, check=True, timeout=600,
                stdout=log, stderr=log, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        with (folder / "router.log").open("wb") as log:
            router = subprocess.Popen(
                ["sh", "start-router.sh"], cwd=folder, env=env, stdout=log, stderr=log,
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until(lambda: answers(url), 30, "the router answers")
            yield url
        finally:
            router.kill()
            router.wait()
    finally:
        for record in serving.status(home):
            serving.stop(home, record.name)


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/v1/models", trust_env=False, timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def wait_until(holds: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.1)


def generated(record: ServerRecord) -> int:
    with Endpoint.at(record.endpoint) as server:
        return server.generated_tokens() or 0


def processors(pid: int | None) -> set[int]:
    assert pid is not None
    return os.sched_getaffinity(pid)


def kill(record: ServerRecord) -> float:
    """SIGKILL a server with its supervisor, which would start it again; gives the moment."""
    assert record.engine_pid is not None
    os.kill(record.supervisor_pid, signal.SIGKILL)
    os.kill(record.engine_pid, signal.SIGKILL)
    moment = time.monotonic()
    assert gone(record.engine_pid)
    return moment


def spread_kill_and_return(
    url: str, home: Home, model: str, *, users: int, tokens: int, seconds: float
) -> None:
    """Load, on both; one killed: what is lost was under way; the others go on, then both again."""
    one, two = sorted(serving.status(home), key=lambda record: record.name)
    assert not processors(one.engine_pid) & processors(two.engine_pid), "cores are not shared"
    with Load(url, model, users, tokens) as load:
        time.sleep(seconds)
        made = [generated(one), generated(two)]
        killed = kill(one)
        time.sleep(seconds)
        load.end()
    lost = [request for request in load.asked if not request.good]
    later = [request for request in load.asked if request.started > killed]
    under_way = [r for r in load.asked if r.started <= killed <= r.ended]
    print(
        f"\n{len(load.asked)} requests, tokens {made}; {len(under_way)} under way at the kill, "
        f"{len(lost)} lost ({ {(r.end, r.told) for r in lost} }), {len(later)} later"
    )
    assert min(made) > 0.25 * sum(made), "the load is spread"
    assert all(request in under_way for request in lost), "only what was under way is lost"
    assert len(lost) < users, "what ran on the other server is not"
    assert len(later) >= users and all(request.good for request in later)


def test_two_llama_cpp_servers_behind_the_router(
    home: Home, demo_bundle: Bundle, tmp_path: Path
) -> None:
    own = home_beside(home, tmp_path / "home")
    small = ("--set", "serve.context=512", "--set", "serve.parallel=4")
    with replicas(demo_bundle, own, tmp_path / "out", *small) as url:
        model = demo_bundle.manifest.name
        spread_kill_and_return(url, own, model, users=6, tokens=24, seconds=5)
        took_back(url, own, model, demo_bundle, *small)


def took_back(url: str, home: Home, model: str, bundle: Bundle, *more: str) -> None:
    """The server that was killed, started again, gets requests again."""
    (dead,) = [record for record in serving.status(home) if record.state == "lost"]
    port = str(httpx.URL(dead.endpoint).port)
    must(
        "serve", bundle.root, "--detach", "--name", dead.name, "--set", f"serve.port={port}",
        *more, home=home,
    )  # fmt: skip
    (back,) = serving.status(home, dead.name)
    before = generated(back)
    with Load(url, model, 4, 8) as load:
        wait_until(lambda: generated(back) > before + 8, 30, "it gets requests again")
        load.end()
    assert all(request.good for request in load.asked)


@SLOW
@pytest.mark.timeout(1800)
def test_two_vllm_servers_behind_the_router(home: Home, tmp_path: Path) -> None:
    own = home_beside(home, tmp_path / "home", "store", "bundles")
    recipe = Path(__file__).resolve().parents[2] / "recipes" / "smollm2-bf16.yaml"
    bundle = Bundle.read(Path(must("build", recipe, home=own)["bundle"]))
    more = ("--set", "serve.vllm.eager=true", "--set", "serve.context=512",
            "--set", "serve.parallel=4")  # fmt: skip
    with replicas(bundle, own, tmp_path / "out", *more) as url:
        model = bundle.manifest.name
        spread_kill_and_return(url, own, model, users=6, tokens=24, seconds=20)
