"""`workers/_api_keys.py`: the key check in front of a server, and the key file."""

from __future__ import annotations

import asyncio
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import deployer


@pytest.fixture
def worker(tmp_path: Path) -> ModuleType:
    path = Path(deployer.__file__).parent / "workers" / "_api_keys.py"
    spec = importlib.util.spec_from_file_location("_api_keys", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "ours").write_text("first\nsecond\n")
    module.accept_keys_of(tmp_path / "ours")
    return module


def ask(worker: ModuleType, path: str, authorization: bytes | None, kind: str = "http") -> object:
    """The status that comes back, "passed" where the server itself would answer."""
    sent: list[dict[str, Any]] = []

    async def server(_scope: object, _receive: object, send: Any) -> None:
        await send({"type": "passed"})

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    headers = [] if authorization is None else [(b"authorization", authorization)]
    scope = {"type": kind, "path": path, "headers": headers}
    asyncio.run(worker.RequireKey(server)(scope, None, send))
    return sent[0].get("status", sent[0]["type"])


@pytest.mark.parametrize("authorization", [b"Bearer first", b"bearer second"])
def test_a_key_opens_every_path(worker: ModuleType, authorization: bytes) -> None:
    for path in ("/v1/chat/completions", "/metrics", "/invocations"):
        assert ask(worker, path, authorization) == "passed"


@pytest.mark.parametrize(
    "authorization", [None, b"", b"Bearer", b"Bearer ", b"Bearer third", b"Basic first", b"first"]
)
def test_without_one_only_health_answers(worker: ModuleType, authorization: bytes | None) -> None:
    for path in ("/v1/models", "/metrics", "/tokenize", "/", "/health/", "//health"):
        assert ask(worker, path, authorization) == 401
    assert ask(worker, "/health", authorization) == "passed"
    assert ask(worker, "/v1/realtime", authorization, "websocket") == "websocket.close"


def test_start_and_end_of_the_server_pass(worker: ModuleType) -> None:
    assert ask(worker, "", None, "lifespan") == "passed"


def test_keys_are_lines_that_are_no_comment(worker: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("# ours\n\nfirst\nsecond\n")
    assert worker.read_keys(str(tmp_path / "keys")) == ["first", "second"]
