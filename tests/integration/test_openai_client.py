"""The official `openai` client, sync and async, against the gateway and a server behind it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import pytest
from fake_sse_server import Script, serve
from gateway_process import running_gateway, table, upstream
from openai_contract import CHAT, async_client_of, check_openai_contract, client_of

from deployer import serving
from deployer.artifacts import Bundle
from deployer.gateway.keys import add_key, new_key
from deployer.home import Home
from deployer.progress import SILENT
from deployer.recipe import Serve

pytestmark = pytest.mark.integration

SLOTS, CONTEXT = 2, 512
FAULTS = {"broken": "sse_error", "cut": "truncated", "mute": "hang"}
"""Route -> what the fake server behind it does in mid-stream."""


@dataclass(frozen=True)
class Deployed:
    """A gateway, the llama.cpp server behind its route `chat`, and secrets by their keys' ids."""

    url: str
    engine: str
    model: str
    keys: dict[str, str]
    folder: Path

    def client(self, key: str = "all", timeout: float = 60.0) -> openai.OpenAI:
        return client_of(self.url, self.keys[key], timeout)


@pytest.fixture(scope="module")
def deployed(
    home: Home, demo_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployed]:
    folder = tmp_path_factory.mktemp("openai")
    own = Home(folder / "home")
    own.root.mkdir()
    (own.root / "toolchains").symlink_to(home.toolchains)
    model, ring = demo_bundle.manifest.name, folder / "keys.json"
    keys = {
        "all": add_key(ring, new_key("all"), SILENT),
        "once": add_key(ring, new_key("once", requests_per_minute=1), SILENT),
        "narrow": add_key(ring, new_key("narrow", models=("chat",)), SILENT),
    }
    settings = Serve(server="xllamacpp", port=0, context=CONTEXT, parallel=SLOTS, threads=1)
    with ExitStack() as stack:
        record = serving.start(demo_bundle, settings, own, name="openai", detach=True)
        stack.callback(serving.stop, own, "openai")
        fakes = {
            name: stack.enter_context(serve(Script(tokens=8, faults=(fault,))))
            for name, fault in FAULTS.items()
        }
        behind = [
            upstream("llama", record.endpoint, model=model, slots=SLOTS, context=CONTEXT),
            *(upstream(name, fake.url, model="fake-model") for name, fake in fakes.items()),
        ]
        told = table(behind, keys=str(ring), max_waiting=8)
        told["routes"] = [{"model": "chat", "to": {"llama": 1.0}}]
        told["routes"] += [{"model": name, "to": {name: 1.0}} for name in fakes]
        running = stack.enter_context(running_gateway(folder / "gateway", told))
        yield Deployed(f"{running.url}/v1", f"{record.endpoint}/v1", model, keys, running.folder)


def test_the_gateway_keeps_the_contract(deployed: Deployed) -> None:
    check_openai_contract(deployed.url, "chat", deployed.keys["all"])


def test_so_does_the_llama_cpp_server_behind_it(deployed: Deployed) -> None:
    check_openai_contract(deployed.engine, deployed.model)


def test_the_routes_are_the_models_and_a_key_sees_its_own(deployed: Deployed) -> None:
    with deployed.client() as client:
        assert {model.id for model in client.models.list()} == {"chat", *FAULTS}
    with deployed.client("narrow") as client:
        assert [model.id for model in client.models.list()] == ["chat"]


def test_an_unknown_model_is_not_found(deployed: Deployed) -> None:
    with deployed.client() as client, pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="other", messages=CHAT)
    assert caught.value.code == "model_not_found"
    assert caught.value.request_id


def test_a_path_that_is_not_offered_is_not_found(deployed: Deployed) -> None:
    with deployed.client() as client, pytest.raises(openai.NotFoundError):
        client.files.list()


def test_a_model_that_the_key_does_not_open_is_denied(deployed: Deployed) -> None:
    with deployed.client("narrow") as client, pytest.raises(openai.PermissionDeniedError):
        client.chat.completions.create(model="broken", messages=CHAT)


def test_a_wrong_field_is_a_bad_request(deployed: Deployed) -> None:
    with deployed.client() as client, pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="chat", messages=CHAT, max_tokens=0)
    assert caught.value.param == "max_tokens"


def test_more_tokens_than_the_context_has_are_a_bad_request(deployed: Deployed) -> None:
    with deployed.client() as client, pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="chat", messages=CHAT, max_tokens=CONTEXT + 1)


def test_a_prompt_beyond_the_context_says_so(deployed: Deployed) -> None:
    long = [{"role": "user", "content": "word " * (2 * CONTEXT)}]
    with deployed.client() as client, pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="chat", messages=long, max_tokens=1)
    assert caught.value.code == "context_length_exceeded"


def test_a_request_beyond_the_keys_limit_says_when_to_come_again(deployed: Deployed) -> None:
    with deployed.client("once") as client:
        client.chat.completions.create(model="chat", messages=CHAT, max_tokens=1)
        with pytest.raises(openai.RateLimitError) as caught:
            client.chat.completions.create(model="chat", messages=CHAT, max_tokens=1)
    assert 1 <= int(caught.value.response.headers["retry-after"]) <= 60


@pytest.mark.parametrize("route", ["broken", "cut"])
def test_an_engine_that_fails_in_mid_stream_is_an_error_of_the_client(
    deployed: Deployed, route: str
) -> None:
    pieces = []
    with deployed.client() as client, pytest.raises(openai.APIError) as caught:
        for chunk in client.chat.completions.create(model=route, messages=CHAT, stream=True):
            pieces += [choice.delta.content for choice in chunk.choices if choice.delta.content]
    assert pieces, "what came before the error reached the client"
    assert type(caught.value) is openai.APIError, "an event in the stream, no broken connection"
    assert caught.value.message


def test_a_client_that_does_not_wait_gets_its_timeout(deployed: Deployed) -> None:
    with deployed.client(timeout=1.0) as client, pytest.raises(openai.APITimeoutError):
        list(client.chat.completions.create(model="mute", messages=CHAT, stream=True))


def test_errors_have_the_same_classes_in_the_async_client(deployed: Deployed) -> None:
    async def ask(key: str, model: str) -> None:
        async with async_client_of(deployed.url, key) as client:
            await client.chat.completions.create(model=model, messages=CHAT, max_tokens=1)

    with pytest.raises(openai.AuthenticationError):
        asyncio.run(ask("wrong", "chat"))
    with pytest.raises(openai.NotFoundError):
        asyncio.run(ask(deployed.keys["all"], "other"))


def test_a_stream_that_the_client_closes_gives_its_slot_back(deployed: Deployed) -> None:
    """More of them than there are slots: were one kept, a later request would wait for it."""
    with deployed.client() as client:
        for _ in range(SLOTS + 1):
            stream = client.chat.completions.create(
                model="chat", messages=CHAT, max_tokens=400, stream=True,
                extra_body={"ignore_eos": True},
            )  # fmt: skip
            next(iter(stream))
            stream.close()
        assert _falls_to_zero(deployed, "deployer_running", 'server="llama"')
        answer = client.chat.completions.create(model="chat", messages=CHAT, max_tokens=1)
    assert answer.usage is not None


def test_an_async_request_that_is_cancelled_gives_its_slot_back(deployed: Deployed) -> None:
    async def ask_and_leave() -> None:
        async with async_client_of(deployed.url, deployed.keys["all"]) as client:
            request = client.chat.completions.create(
                model="chat", messages=CHAT, max_tokens=400, extra_body={"ignore_eos": True}
            )
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(request, 0.5)

    asyncio.run(ask_and_leave())
    assert _falls_to_zero(deployed, "deployer_running", 'server="llama"')


def _falls_to_zero(deployed: Deployed, name: str, label: str, seconds: float = 5.0) -> bool:
    """Whether a gauge of the gateway falls to zero in time."""
    deadline = time.monotonic() + seconds
    address = deployed.url.removesuffix("/v1") + "/metrics"
    headers = {"authorization": f"Bearer {deployed.keys['all']}"}
    while time.monotonic() < deadline:
        text = httpx.get(address, headers=headers, trust_env=False).text
        (line,) = [each for each in text.splitlines() if each.startswith(f"{name}{{{label}}}")]
        if float(line.split()[-1]) == 0:
            return True
        time.sleep(0.05)
    return False


def test_no_key_and_no_prompt_stands_in_what_the_gateway_writes(deployed: Deployed) -> None:
    with deployed.client() as client:
        client.chat.completions.create(model="chat", messages=CHAT, max_tokens=1)
    written = b"".join(path.read_bytes() for path in deployed.folder.iterdir() if path.is_file())
    assert b"gateway_started" in written
    for secret in (*deployed.keys.values(), "capital city"):
        assert secret.encode() not in written
