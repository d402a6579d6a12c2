"""The gateway answers as its own OpenAPI document says: schemathesis, with an engine of no model.

What it generates is the same in every run. More of it, by hand, for example:

    DEPLOYER_CONTRACT_EXAMPLES=1000 .venv/bin/pytest -s tests/integration/test_gateway_contract.py
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fake_openai_engine
import httpx
import pytest
from gateway_process import Running, running_gateway, table, upstream

from deployer.gateway.keys import add_key, new_key
from deployer.progress import SILENT

pytestmark = pytest.mark.integration

SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")
EXAMPLES = os.environ.get("DEPLOYER_CONTRACT_EXAMPLES", "20")
"""Requests for each operation, beside the systematic ones."""
FROM_OUTSIDE = "X-Forwarded-For: 203.0.113.1"
"""Without it a request of this machine itself needs no key for /metrics."""
SECONDS = 840.0
PATHS = {"/health", "/metrics", "/openapi.json", "/v1/models", "/v1/chat/completions",
         "/v1/completions", "/v1/embeddings"}  # fmt: skip


@pytest.fixture(scope="module")
def secret_and_gateway(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[str, Running]]:
    folder = tmp_path_factory.mktemp("contract")
    secret = add_key(folder / "keys.json", new_key("all"), SILENT)
    with fake_openai_engine.serve() as url:
        behind = [upstream("fake", url, model=fake_openai_engine.MODEL, slots=64, context=4096)]
        told = table(behind, keys=str(folder / "keys.json"))
        with running_gateway(folder / "gateway", told) as running:
            yield secret, running


def test_the_document_lists_what_is_offered_and_nothing_else(
    secret_and_gateway: tuple[str, Running],
) -> None:
    secret, running = secret_and_gateway
    headers = {"authorization": f"Bearer {secret}"}
    document = httpx.get(f"{running.url}/openapi.json", headers=headers, trust_env=False).json()
    assert document["openapi"].startswith("3.1")
    assert set(document["paths"]) == PATHS


def test_every_answer_is_one_that_the_document_describes(
    secret_and_gateway: tuple[str, Running], tmp_path: Path
) -> None:
    secret, running = secret_and_gateway
    report = tmp_path / "report.json"
    argv = [
        str(SCHEMATHESIS), "run", str(described(secret, running, tmp_path)), "--url", running.url,
        "--header", f"Authorization: Bearer {secret}", "--header", FROM_OUTSIDE, "--checks", "all",
        "--phases", "examples,coverage,fuzzing", "--max-examples", EXAMPLES,
        "--generation-deterministic", "--seed", "1", "--continue-on-failure",
        "--request-timeout", "10", "--suppress-health-check", "all",
        "--no-color", "--report", "json", "--report-json-path", str(report),
    ]  # fmt: skip
    ran = subprocess.run(
        argv, cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=SECONDS, check=False, env={**os.environ, "NO_PROXY": "127.0.0.1"},
    )  # fmt: skip
    print(ran.stdout[-6000:])
    assert ran.returncode == 0, ran.stdout[-20_000:] + ran.stderr[-2000:]
    tried = re.search(r"(\d+) generated", ran.stdout)
    assert tried and int(tried[1]) > 100, "it tried something"
    assert "Missing test data" not in ran.stdout, "requests came as far as the engine"


def described(secret: str, running: Running, folder: Path) -> Path:
    """The gateway's document, with the name of its route where a model is named.

    The document itself names none: not every key may know all routes.
    """
    headers = {"authorization": f"Bearer {secret}"}
    document = httpx.get(f"{running.url}/openapi.json", headers=headers, trust_env=False).json()
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings"):
        content = document["paths"][path]["post"]["requestBody"]["content"]
        content["application/json"]["schema"]["properties"]["model"]["enum"] = ["chat"]
    written = folder / "openapi.json"
    written.write_text(json.dumps(document), encoding="utf-8")
    return written
