"""What a bundle's server takes on this machine: measured once and kept, or estimated."""

from __future__ import annotations

import itertools
import json
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import UTC, datetime
from pathlib import Path

import httpx

from deployer import serving
from deployer.artifacts import Bundle
from deployer.durable import write_atomically
from deployer.engines import ModelToServe, engine_named
from deployer.errors import PlanError, ServerError
from deployer.facts import find_facts
from deployer.footprint import Footprint
from deployer.gpus import gpus
from deployer.home import Home
from deployer.loadtest.endpoint import Endpoint, words_for
from deployer.loadtest.host import describe
from deployer.machine import usable_cores
from deployer.progress import Progress, Step
from deployer.recipe import Serve, override_recipe
from deployer.recipe.serve import cpu_list
from deployer.serving import ServerRecord
from deployer.workflow.running import describe_server
from deployer.workflow.served import on_loopback, served

FILLED = 0.75
"""Share of a request's context that its prompt fills."""
ANSWER_TOKENS = 64
LIMIT_SECONDS = 300.0
"""After so long no answer is waited for; the server held its memory all the same."""
_DIGITS = 16
_CALIBRATION = (8, 40)
_WORDS = ("river", "lamp", "window", "garden", "bread", "mountain", "letter", "harbour", "bridge",
          "winter", "market", "engine", "copper", "thunder", "compass", "orchard")  # fmt: skip


def footprint(bundle: Bundle, home: Home, progress: Progress, *, estimate: bool) -> Footprint:
    """The footprint of a bundle's server with the settings of its recipe.

    Without `estimate` it is one that was measured here before with the same settings, else
    measured now: the server is started and asked as many long requests at once as it has slots.
    Where it cannot be started here, it is an estimate, and `progress` says why. Raises ServerError
    where the server does not come up or answers nothing.
    """
    serve = override_recipe(bundle.manifest.recipe, ()).serve
    device = str(bundle.manifest.plan.get("device", "cpu"))
    if estimate:
        return _estimated(bundle, serve, device, home)
    path = home.footprints / f"{bundle.manifest.digest[:_DIGITS]}.json"
    stored = _stored(path, bundle, serve, device)
    if stored:
        return stored
    if device == "cuda" and not gpus():
        progress.warn("This machine has no GPU to start the server on: its memory is estimated.")
        return _estimated(bundle, serve, device, home)
    try:
        measured = _measured(bundle, serve, device, home, progress)
    except PlanError as error:
        progress.warn(f"The server cannot be started here: {error.message}. It is estimated.")
        return _estimated(bundle, serve, device, home)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(measured.as_json(), indent=1))
    return measured


def _stored(path: Path, bundle: Bundle, serve: Serve, device: str) -> Footprint | None:
    """The footprint that was measured before, None where it was not, or with other settings."""
    try:
        found = Footprint.model_validate_json(path.read_bytes())
    except (OSError, ValueError):
        return None
    asked = (bundle.manifest.digest, device, serve.context, serve.parallel)
    same = (found.digest, found.device, found.context, found.parallel) == asked
    return found if same and serve.threads in (None, found.threads) else None


def _measured(
    bundle: Bundle, serve: Serve, device: str, home: Home, progress: Progress
) -> Footprint:
    with served(bundle, on_loopback(serve), home, progress, "footprint") as record:
        with progress.step(f"Memory under {serve.parallel} requests at once") as step:
            answered = _fill(record, serve, step)
        if not answered:
            raise ServerError(
                f"none of {serve.parallel} requests at once was answered within "
                f"{LIMIT_SECONDS:.0f} s",
                "--estimate adds the memory up instead; or lower serve.parallel or serve.context.",
            )
        (seen,) = serving.status(home, record.name)
        known = describe_server(bundle, record, home)
        stopping = time.monotonic()
    stopped = time.monotonic() - stopping
    return Footprint(
        digest=bundle.manifest.digest,
        measured=True,
        memory_bytes=seen.peak_rss_bytes or 0,
        ready_seconds=record.ready_seconds,
        stop_seconds=round(stopped, 3),
        requests=answered,
        server=record.server,
        version=str(known["version"]),
        device=device,
        context=serve.context,
        parallel=serve.parallel,
        threads=serve.threads or usable_cores(cpu_list(serve.cores) if serve.cores else None),
        machine=describe().cpu,
        taken=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )


def _fill(record: ServerRecord, serve: Serve, step: Step) -> int:
    """Send a long request to every slot at once, and count those that were answered in time."""
    deadline = time.monotonic() + LIMIT_SECONDS
    with Endpoint.at(record.endpoint) as target:
        asked = {n: target.prompt_tokens(record.model, _prompt(n, 0)) for n in _CALIBRATION}
    known = {words: tokens for words, tokens in asked.items() if tokens is not None}
    words = words_for(int(FILLED * serve.context), known)
    answer = max(1, min(ANSWER_TOKENS, serve.context // 8))
    answered = 0
    everybody = httpx.Limits(max_connections=None)
    with (
        httpx.Client(base_url=record.endpoint, trust_env=False, limits=everybody) as client,
        ThreadPoolExecutor(serve.parallel) as pool,
    ):
        futures = [
            pool.submit(_answered, client, record.model, _prompt(words, number), answer, deadline)
            for number in range(1, serve.parallel + 1)
        ]
        for done, future in enumerate(as_completed(futures), start=1):
            answered += future.result()
            step.update(done=done, total=serve.parallel)
    return answered


def _prompt(words: int, number: int) -> str:
    """A prompt that no other of the same server begins like, so that no cache spares memory."""
    text = " ".join(itertools.islice(itertools.cycle(_WORDS), words))
    return f"[{number}] Write a story with these words: {text}"


def _answered(client: httpx.Client, model: str, prompt: str, tokens: int, deadline: float) -> bool:
    """Whether a streamed answer came to its end before `deadline`."""
    request = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": tokens,
        "stream": True,
    }
    limit = httpx.Timeout(10.0, read=max(1.0, deadline - time.monotonic()))
    try:
        chat = client.stream("POST", "/v1/chat/completions", json=request, timeout=limit)
        with chat as response:
            for line in response.iter_lines():
                if line == "data: [DONE]":
                    return True
                if time.monotonic() > deadline:
                    return False
    except httpx.HTTPError:
        return False
    return False


def _estimated(bundle: Bundle, serve: Serve, device: str, home: Home) -> Footprint:
    manifest = bundle.manifest
    engine = engine_named(manifest.engine)
    facts = find_facts(engine, home, has_gpu=device == "cuda")
    model = ModelToServe.of(manifest, bundle.weights, device)
    return Footprint(
        digest=manifest.digest,
        measured=False,
        memory_bytes=engine.memory(model, serve, facts).total,
        server=engine.choose("auto", facts) if serve.server == "auto" else serve.server,
        device=device,
        context=serve.context,
        parallel=serve.parallel,
        threads=serve.threads or facts.cores,
    )
