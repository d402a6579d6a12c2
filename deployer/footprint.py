"""What a bundle's server takes on a machine: measured by starting it once, or estimated.

Exporters turn a footprint into memory limits, probes and grace periods. An estimate has no times,
since nothing was started, and says of itself that it is one.
"""

from __future__ import annotations

from deployer.artifacts import Record


class Footprint(Record):
    """Memory in bytes, times in seconds; `digest` is the bundle's.

    `memory_bytes` is the most main memory the server's processes held with `parallel` requests
    running at once. `ready_seconds` is the time from the start to the first token,
    `stop_seconds` that from SIGTERM to the end of an idle server. `threads` computed, `context`
    is what a request may hold. `server` was started, `version` names the release it was made
    of, "" for an installed one; `machine` is its processor. `requests` were answered meanwhile.
    """

    digest: str
    measured: bool
    memory_bytes: int
    ready_seconds: float | None = None
    stop_seconds: float | None = None
    requests: int = 0
    server: str
    version: str = ""
    device: str
    context: int
    parallel: int
    threads: int
    machine: str = ""
    taken: str = ""
    """When, ISO 8601."""

    @property
    def origin(self) -> str:
        """Where the figures come from, in a few words."""
        if not self.measured:
            return "an estimate: weights, key-value cache and buffers added up; nothing was started"
        server = f"{self.server} ({self.version})" if self.version else self.server
        return f"measured {self.taken} with the server {server} on {self.machine}"
