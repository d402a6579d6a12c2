"""What a run is told: the JSON file that `DEPLOYER_LOADTEST` names, or these defaults.

`deployer loadtest` writes the file. By hand, with Locust's web page:

    locust -f loadtests/locustfile.py --host http://127.0.0.1:8080
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, fields
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """One level of load. Seconds and tokens; `folder` None keeps no raw samples."""

    run_id: str = "by-hand"
    folder: str | None = None
    endpoint: str = "http://127.0.0.1:8080"
    model: str = ""
    profile: str = "concurrent"
    loop: str = "closed"
    """closed: a user waits for its answer. open: requests are sent when the plan has them due."""
    plan: str = ""
    """File with the requests to send (plan.py); "": all of prompt_words and output_tokens."""
    workers: int = 1
    """Processes that share the load; each takes its share of the plan."""
    requests: int = 0
    """Measured requests of each user after one warm-up request; 0: until the time is over."""
    warmup_s: float = 0.0
    ramp_s: float = 0.0
    """Seconds in which the users of a closed loop start."""
    duration_s: float = 0.0
    """Measured seconds after the warm-up; 0: until Locust is stopped."""
    prompt_words: int = 16
    output_tokens: int = 64
    ignore_eos: bool = False
    temperature: float = 0.7
    seed: int = 1
    pool: int = 0
    """So many different prompts, sent again and again; 0: every prompt is another one."""
    prefix_words: int = 0
    """Length of a system prompt that all requests share; 0: none."""
    turns: int = 1
    """Questions of one conversation."""
    think_s: float = 0.0
    """Rest between an answer and the next question of a conversation."""
    timeout_s: float = 120.0
    """Longest silence on a connection: above the slowest prefill."""
    connect_timeout_s: float = 10.0
    pause_s: float = 0.25
    """Rest after a failed request, so that a refusing server is not flooded."""


def read() -> Settings:
    """The settings of this process; unknown keys are refused with TypeError."""
    path = os.environ.get("DEPLOYER_LOADTEST")
    return Settings(**json.loads(Path(path).read_text("utf-8"))) if path else Settings()


def api_key() -> str | None:
    """The key from DEPLOYER_API_KEY, or the first line of the file DEPLOYER_API_KEY_FILE."""
    key = os.environ.get("DEPLOYER_API_KEY")
    path = os.environ.get("DEPLOYER_API_KEY_FILE")
    if not key and path:
        key = Path(path).read_text("utf-8").strip().partition("\n")[0].strip()
    return key or None


NAMES = tuple(field.name for field in fields(Settings))
