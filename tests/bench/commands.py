"""Run programs for the bench: always bounded, ended by their pid, timed by the wall clock."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deployer.home import Home
from deployer.process import tail

DEPLOYER = Path(sys.executable).with_name("deployer")
COMMAND_TIMEOUT = 900.0
TOOLCHAIN_TIMEOUT = 3600.0
START_TIMEOUT = 300.0
STOP_TIMEOUT = 20.0


class BenchError(Exception):
    """Something could not be measured; the message says what."""


def timed(argv: Sequence[str], env: Mapping[str, str], log: Path, cwd: Path) -> float:
    """Run a program to its end, output appended to `log`; gives the seconds it took."""
    started = time.monotonic()
    with log.open("ab") as output:
        done = subprocess.run(
            list(argv), env=dict(env), cwd=cwd, stdin=subprocess.DEVNULL, stdout=output,
            stderr=output, timeout=COMMAND_TIMEOUT, check=False,
        )  # fmt: skip
    if done.returncode != 0:
        raise BenchError(f"{Path(argv[0]).name} ended with {done.returncode}: {tail(log, 5)}")
    return time.monotonic() - started


def deployer(
    *arguments: str, home: Path, timeout: float = COMMAND_TIMEOUT
) -> tuple[dict[str, Any], float]:
    """Run a deployer command with --json; gives (its document, the seconds it took)."""
    started = time.monotonic()
    done = subprocess.run(
        [str(DEPLOYER), *arguments, "--json"], env={**os.environ, "DEPLOYER_HOME": str(home)},
        stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, check=False,
    )  # fmt: skip
    seconds = time.monotonic() - started
    document = json.loads(done.stdout or b"{}")
    if done.returncode != 0:
        reason = document.get("error", {}).get("message") or done.stderr.decode()[-500:]
        raise BenchError(f"deployer {' '.join(arguments)} failed: {reason}")
    return document, seconds


@contextmanager
def deployed(bundle: Path, name: str, home: Home, settings: Sequence[str]) -> Iterator[str]:
    """`deployer serve --detach` of a bundle, stopped at the end; gives its endpoint."""
    options = [part for setting in ("serve.port=0", *settings) for part in ("--set", setting)]
    arguments = ("serve", str(bundle), "--detach", "--name", name, *options)
    started, _ = deployer(*arguments, home=home.root)
    try:
        yield str(started["endpoint"])
    finally:
        deployer("stop", name, home=home.root)


@contextmanager
def bare(argv: Sequence[str], env: Mapping[str, str] | None = None, *, log: Path) -> Iterator[str]:
    """A server started by hand on a free loopback port; gives its endpoint once healthy.

    `env` is its whole environment, by default this process's.
    """
    port = free_port()
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*argv, "--host", "127.0.0.1", "--port", str(port)], env=env, stdin=subprocess.DEVNULL,
            stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    try:
        _await_health(port, process, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, then SIGKILL to the whole group, which is the process's own."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_TIMEOUT)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _await_health(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        connection.close()
        time.sleep(0.1)
    raise BenchError(f"the bare server did not come up: {tail(log, 5)}")
