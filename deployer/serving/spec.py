"""What a supervisor is asked to run: complete, checked, as JSON; the command resolves it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from deployer.durable import write_atomically


@dataclass(frozen=True)
class Patience:
    """How long a supervisor waits for what: seconds, counts, bytes. No setting of a user's.

    An engine is looked at every `check_every`. Without a sign of life it is asked for one token,
    and ended when none comes within `hung_after`; an idle one is asked every `idle_probe`. One
    that computes is believed, but where it tells of requests and its counters stand still, for
    `stuck_after` at most. Its memory is looked at every `memory_every`.

    Pauses before a restart double from `first_pause` to `longest_pause`; a run of `good_run` makes
    the next one short again. `attempts` starts in a row that never became ready, or `limited`
    ends in a row over the memory limit, are given up. A log is cut at `log_bytes`.
    """

    check_every: float = 5.0
    hung_after: float = 20.0
    idle_probe: float = 30.0
    stuck_after: float = 300.0
    memory_every: float = 1.0
    first_pause: float = 1.0
    longest_pause: float = 60.0
    good_run: float = 300.0
    attempts: int = 5
    limited: int = 3
    log_bytes: int = 64 << 20


@dataclass(frozen=True)
class Spec:
    """All a supervisor must know, as JSON in `spec.json`; holds no secret.

    `argv` is complete and `env` is added to a clean environment. Timeouts are in seconds. `slots`
    are requests decoded at once, `context` tokens a request may use. `memory_bytes` is what the
    server is expected to hold in the machine's memory, `memory_limit` what it is ended at (bytes,
    None: no limit). It runs on the CPUs `cores` (empty: all) with the memory of `numa_node`.
    """

    name: str
    engine: str
    server: str
    argv: tuple[str, ...]
    url: str
    port: int
    model: str
    bundle: str
    slots: int
    context: int
    ready_timeout: float
    drain_timeout: float
    drains: bool
    health: str | None
    metrics: str | None
    memory_bytes: int = 0
    key_file: str | None = None
    env: dict[str, str] = field(default_factory=dict)
    cores: tuple[int, ...] = ()
    numa_node: int | None = None
    memory_limit: int | None = None
    patience: Patience = field(default_factory=Patience)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Spec:
        """The spec that `as_json` wrote."""
        typed = {
            "argv": tuple(values["argv"]),
            "cores": tuple(values["cores"]),
            "patience": Patience(**values["patience"]),
        }
        return cls(**{**values, **typed})

    def write(self, path: Path) -> None:
        write_atomically(path, json.dumps(self.as_json()))

    @classmethod
    def read(cls, path: Path) -> Spec:
        return cls.of(json.loads(path.read_text(encoding="utf-8")))
