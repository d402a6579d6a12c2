"""What a proxy costs: candidates for the base of the gateway, against no proxy at all.

python tests/bench/by_hand/gateway_bases.py [--only NAME ...] [--venv FOLDER] [--haproxy PROGRAM]
    [--vllm-router PROGRAM]

A made-up engine (tests/bench/gateway_engine.py) streams tokens that carry the time of their
writing. For each candidate: time to first token, one request at a time, in turns with no proxy;
processor time for each token that is passed on, 50 streams of 20 tokens a second; and 1,000 open
streams of 2 tokens a second. FOLDER is a virtual environment with the candidates that deployer does
not depend on; what is not there is left out:

    uv venv FOLDER; uv pip install --python FOLDER uvicorn httptools uvloop granian httpx aiohttp
    uv pip install --python FOLDER 'litellm[proxy]'

Takes about 45 s a candidate.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(BENCH))

from commands import BenchError, end, free_port  # noqa: E402
from gateway_load import at_once, engine, in_turns, percentile, request, watched  # noqa: E402

PROXIES = Path(__file__).with_name("gateway_proxies.py")
FIRST_TOKEN_ROUNDS = 200
STEADY = {"streams": 50, "events": 200, "rate": 20}
MANY = {"streams": 1000, "events": 20, "rate": 2}
START_TIMEOUT = 90.0
Argv = list[str]


def candidates(options: argparse.Namespace, work: Path) -> dict[str, Callable[[str, int], Argv]]:
    """Name -> (the engine's URL, a port -> the argv of the proxy)."""
    folder = Path(options.venv) / "bin" if options.venv else None

    def program(name: str) -> str:
        if folder is None or not (folder / name).exists():
            raise FileNotFoundError(name)
        return str(folder / name)

    def uvicorn(app: str) -> Callable[[str, int], Argv]:
        return lambda url, port: [
            program("uvicorn"), f"gateway_proxies:{app}", "--app-dir", str(PROXIES.parent),
            "--port", str(port), "--http", "httptools", "--loop", "uvloop", "--no-access-log",
            "--log-level", "warning",
        ]  # fmt: skip

    def granian(app: str) -> Callable[[str, int], Argv]:
        return lambda url, port: [
            program("granian"), "--interface", "asginl", "--port", str(port), "--loop", "uvloop",
            "--no-ws", "--working-dir", str(PROXIES.parent), f"gateway_proxies:{app}",
        ]  # fmt: skip

    def haproxy(url: str, port: int) -> Argv:
        if not options.haproxy:
            raise FileNotFoundError("haproxy")
        (work / "haproxy.cfg").write_text(HAPROXY.format(port=port, server=url[7:]))
        return [options.haproxy, "-f", str(work / "haproxy.cfg")]

    def router(url: str, port: int) -> Argv:
        if not options.vllm_router:
            raise FileNotFoundError("vllm-router")
        return [options.vllm_router, "--worker-urls", url, "--host", "127.0.0.1",
                "--port", str(port), "--policy", "round_robin", "--log-level", "error",
                "--worker-startup-check-interval", "1"]  # fmt: skip

    def litellm(url: str, port: int) -> Argv:
        (work / "litellm.yaml").write_text(LITELLM.format(url=url))
        return [program("litellm"), "--config", str(work / "litellm.yaml"),
                "--host", "127.0.0.1", "--port", str(port)]  # fmt: skip

    return {
        "aiohttp": lambda url, port: [sys.executable, str(PROXIES), str(port)],
        "uvicorn + aiohttp": uvicorn("asgi_aiohttp"),
        "uvicorn + httpx": uvicorn("asgi_httpx"),
        "granian + aiohttp": granian("asgi_aiohttp"),
        "granian + httpx": granian("asgi_httpx"),
        "vllm-router": router,
        "haproxy": haproxy,
        "litellm": litellm,
    }


HAPROXY = """
global
    nbthread 1
    maxconn 5000
defaults
    mode http
    option http-no-delay
    timeout connect 5s
    timeout client 600s
    timeout server 600s
frontend clients
    bind 127.0.0.1:{port}
    default_backend engines
backend engines
    server engine {server}
"""
LITELLM = """
model_list:
  - model_name: fake
    litellm_params: {{model: openai/fake, api_base: "{url}/v1", api_key: none}}
litellm_settings: {{telemetry: false}}
general_settings: {{dangerously_permit_weak_or_unset_master_key: true}}
"""
"""Without a key, as the others: it listens on the loopback for a minute."""


@contextlib.contextmanager
def running(argv: Argv, url: str, port: int, log: Path) -> Iterator[int]:
    """A proxy in front of `url`; gives its pid once a stream came through it."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            argv, env={**os.environ, "UPSTREAM": url, "PYTHONPATH": str(PROXIES.parent)},
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + START_TIMEOUT
        while not _answers(f"http://127.0.0.1:{port}"):
            if process.poll() is not None or time.monotonic() > deadline:
                raise BenchError(f"{argv[0]} did not come up: {log.read_text()[-800:]}")
            time.sleep(0.2)
        yield process.pid
    finally:
        end(process)


def _answers(endpoint: str) -> bool:
    try:
        return at_once(endpoint, "fake", 1, 1, 1000)[0].whole
    except OSError:
        return False


def measure(pid: int, endpoint: str, direct: str) -> dict[str, Any]:
    """The figures of one proxy: seconds, but for those whose name tells another unit."""
    asked = [(url, request(url, "fake", 2, 1000)) for url in (direct, endpoint)]
    alone, through = in_turns(asked, FIRST_TOKEN_ROUNDS)
    with watched(pid) as used:
        steady = at_once(endpoint, "fake", **STEADY)
    tokens = sum(len(stream.delays) for stream in steady)
    with watched(pid) as many_used:
        many = at_once(endpoint, "fake", **MANY)
    delays = [delay for stream in many for delay in stream.delays]
    return {
        "ttft_ms": [1000 * statistics.median(found) for found in (alone, through)],
        "ttft_p99_ms": [1000 * percentile(found, 99) for found in (alone, through)],
        "cpu_us_per_token": 1e6 * used[0].cpu_seconds / tokens,
        "steady_delay_ms": 1000 * statistics.median(d for s in steady for d in s.delays),
        "whole_of_1000": sum(stream.whole for stream in many),
        "many_delay_p99_ms": 1000 * percentile(delays, 99) if delays else None,
        "many_cores": many_used[0].cpu_seconds / many_used[0].wall_seconds,
        "many_memory_mib": many_used[0].memory_bytes / 2**20,
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+")
    parser.add_argument("--venv")
    parser.add_argument("--haproxy")
    parser.add_argument("--vllm-router")
    parser.add_argument("--out", help="JSON file for the figures; those in it are kept")
    return parser.parse_args()


def show(name: str, figures: dict[str, Any]) -> None:
    (alone, through), (alone99, through99) = figures["ttft_ms"], figures["ttft_p99_ms"]
    late = figures["many_delay_p99_ms"]
    print(
        f"{name:18} TTFT +{through - alone:.2f} ms (p99 {through99:.1f}, direct {alone99:.1f}); "
        f"{figures['cpu_us_per_token']:.0f} us a token; 1,000 streams: "
        f"{figures['whole_of_1000']} whole, p99 {late and round(late, 1)} ms, "
        f"{figures['many_cores']:.2f} cores, {figures['many_memory_mib']:.0f} MiB",
        flush=True,
    )


def main() -> None:
    options = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))  # so that proxies are stopped
    out = Path(options.out) if options.out else None
    found = json.loads(out.read_text()) if out and out.exists() else {}
    with tempfile.TemporaryDirectory() as folder, engine(Path(folder, "engine.log")) as url:
        if not options.only:
            many = at_once(url, "fake", **MANY)
            delays = [delay for stream in many for delay in stream.delays]
            print(f"no proxy: 1,000 streams, p99 {1000 * percentile(delays, 99):.1f} ms")
        for name, argv_of in candidates(options, Path(folder)).items():
            port = free_port()
            try:
                if options.only and name not in options.only:
                    continue
                argv = argv_of(url, port)
            except FileNotFoundError as error:
                print(f"{name}: left out, {error} is not there")
                continue
            try:
                with running(argv, url, port, Path(folder, "proxy.log")) as pid:
                    found[name] = measure(pid, f"http://127.0.0.1:{port}", url)
            except BenchError as error:
                print(f"{name}: {error}", flush=True)
                continue
            show(name, found[name])
            if out:
                out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
