"""Ready means: our process, and no other, answered one real token for this bundle."""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import httpx
import psutil

from deployer.engine_metrics import read_engine_metrics

POLL_SECONDS = 0.1
QUICK = 5.0
LEAST = 0.5
"""Seconds that an answer is waited for, however little time is left."""
_NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Servers are asked by plain HTTP. A context of its own, with all the certificates of the system,
would cost each client 85 ms of processor time, every few seconds for as long as a server runs."""


class NotReady(Exception):
    """What is still missing; a user sees it only when time is over."""


@dataclass(frozen=True)
class Endpoint:
    """Where to ask a server, and what its answers must be about."""

    url: str
    port: int
    model: str
    health: str | None
    metrics: str | None
    key: str | None = None

    def client(self, timeout: float = QUICK) -> httpx.Client:
        """A client that talks to the server directly, whatever proxies the user has set."""
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        return httpx.Client(
            base_url=self.url, headers=headers, timeout=timeout, trust_env=False, verify=_NO_TLS
        )


def answer_one_token(endpoint: Endpoint, timeout: float) -> None:
    """Check that the model is loaded, is ours, and makes a token within `timeout` seconds.

    Raises NotReady with what is missing.
    """
    timeout = max(LEAST, timeout)
    try:
        with endpoint.client(min(QUICK, timeout)) as client:
            if endpoint.health and client.get(endpoint.health).status_code != 200:
                raise NotReady("it is loading the model")
            _check_model(client, endpoint.model)
            _check_token(client, endpoint.model, timeout)
    except httpx.HTTPError as error:
        raise NotReady(f"it does not answer ({type(error).__name__})") from error


def listens(pid: int, port: int) -> bool:
    """Whether the process, or one it started, listens on the port."""
    try:
        process = psutil.Process(pid)
        for one in [process, *process.children(recursive=True)]:
            for connection in one.net_connections(kind="tcp"):
                if connection.status == psutil.CONN_LISTEN and connection.laddr[1] == port:
                    return True
    except psutil.Error:
        pass
    return False


def _check_model(client: httpx.Client, model: str) -> None:
    answer = _json(client.get("/v1/models"))
    entries = answer.get("data")
    names = (
        [e.get("id") for e in entries if isinstance(e, dict)] if isinstance(entries, list) else []
    )
    if model not in names:
        raise NotReady(f"it does not serve {model}")


def _check_token(client: httpx.Client, model: str, timeout: float) -> None:
    request = {
        "model": model,
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 1,
    }
    limits = httpx.Timeout(min(QUICK, timeout), read=timeout)
    answer = _json(client.post("/v1/chat/completions", json=request, timeout=limits))
    usage = answer.get("usage")
    if not isinstance(usage, dict) or not usage.get("completion_tokens"):
        raise NotReady("its answer holds no token")


def _json(response: httpx.Response) -> Mapping[str, object]:
    if response.status_code != 200:
        raise NotReady(f"it answers {response.request.url.path} with {response.status_code}")
    try:
        answer = response.json()
    except ValueError as error:
        raise NotReady(f"it answers {response.request.url.path} with what is no JSON") from error
    return answer if isinstance(answer, dict) else {}


def ask_until_ready(endpoint: Endpoint, pid: int, deadline: float) -> Iterator[str]:
    """Ask until it is ready or `deadline` has come; yields what is missing, "" once ready.

    The port must be our process's (`pid`) before anything is sent to it. `deadline` is a time of
    `time.monotonic`.
    """
    while not listens(pid, endpoint.port):
        if time.monotonic() > deadline:
            return
        yield "it does not listen yet"
        time.sleep(POLL_SECONDS)
    yield "it does not answer"
    while (left := deadline - time.monotonic()) > 0:
        try:
            answer_one_token(endpoint, left)
        except NotReady as reason:
            yield str(reason)
            time.sleep(POLL_SECONDS)
        else:
            yield ""
            return


def is_idle(endpoint: Endpoint) -> bool:
    """Whether the server says that no request runs or waits; False where it does not say."""
    if endpoint.metrics is None:
        return False
    try:
        with endpoint.client() as client:
            return read_engine_metrics(client.get(endpoint.metrics).text).load == 0
    except httpx.HTTPError:
        return False
