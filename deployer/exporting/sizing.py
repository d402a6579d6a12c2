"""From a footprint to the figures that a target wants: memory, processors, times. Pure.

Every figure says in a few words where it comes from, so that whoever reads the exported file can
judge it; where the footprint is an estimate, they say so. When and on which machine was measured
is `Footprint.origin`, which an exported file names once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from deployer.exporting.deployment import Deployment

MIB = 1 << 20
SPARE_MEASURED, SPARE_ESTIMATED = 0.25, 0.5
"""Share of the memory that a limit adds: to a measured peak, and to an estimate."""
SPARE_LEAST = 256 * MIB
STARTS = 3
"""How many times the measured start a start may take: disks and processors differ."""
START_LEAST = 60
STOP_UNMEASURED = 10
"""Seconds for the end of an idle server where none was measured."""
STOP_MARGIN = 5
PROCESSES_OF_VLLM = 2
"""vLLM's front end and its scheduler, each of which wants a core beside one for each GPU."""
PROBE_SECONDS = 5
"""How long a health request may take, and the pause between two of a server that starts."""


@dataclass(frozen=True)
class Figure:
    """A number and where it comes from: bytes, seconds or a count, as the function says."""

    value: int
    why: str


def memory_request(deployment: Deployment) -> Figure:
    """Bytes of main memory the server was seen to take, in whole MiB."""
    return Figure(_mebibytes(deployment.footprint.memory_bytes), _memory_origin(deployment))


def memory_limit(deployment: Deployment) -> Figure:
    """Bytes of main memory at which the server may be ended: the request and a margin."""
    footprint = deployment.footprint
    share = SPARE_MEASURED if footprint.measured else SPARE_ESTIMATED
    spare = max(int(footprint.memory_bytes * share), SPARE_LEAST)
    added = f"{share:.0%}" if spare > SPARE_LEAST else f"{SPARE_LEAST // MIB} MiB"
    return Figure(
        _mebibytes(footprint.memory_bytes + spare),
        f"{_memory_origin(deployment)}, and {added} to spare",
    )


def prompt_cache(deployment: Deployment) -> Figure:
    """Bytes llama.cpp may keep of old prompts: half of what the limit leaves over the peak."""
    spare = memory_limit(deployment).value - deployment.footprint.memory_bytes
    return Figure(spare // 2 // MIB * MIB, "half of what the memory limit leaves over the peak")


def cpus(deployment: Deployment, gpus: int | None = None) -> Figure:
    """Processor cores: one for each thread that computes, or those that feed the GPUs.

    `gpus` are those of one pod where several make a replica; default: the replica's.
    """
    threads = deployment.footprint.threads
    gpus = deployment.gpus if gpus is None else gpus
    if gpus:
        return Figure(
            PROCESSES_OF_VLLM + gpus,
            f"{PROCESSES_OF_VLLM} for vLLM's own processes and one for each GPU; not measured",
        )
    return Figure(threads, "one core for each thread that computes")


def startup_seconds(deployment: Deployment) -> Figure:
    """How long a start may take until the server is given up."""
    ready, timeout = deployment.footprint.ready_seconds, deployment.serve.ready_timeout
    if ready is None:
        return Figure(timeout, "the recipe's serve.ready_timeout, no start was measured")
    until = f"the {ready:.1f} s measured until the first token"
    seconds = math.ceil(ready * STARTS)
    if _compiles(deployment) and seconds < timeout:
        return Figure(
            timeout,
            f"the recipe's serve.ready_timeout: where nothing is compiled yet a start takes longer "
            f"than {until}",
        )
    if seconds >= START_LEAST:
        return Figure(seconds, f"{STARTS} times {until}")
    return Figure(START_LEAST, f"{STARTS} times {until}, but at least {START_LEAST} s")


def drain_seconds(deployment: Deployment) -> Figure:
    """How long running requests get to finish after SIGTERM."""
    return Figure(deployment.serve.drain_timeout, "the recipe's serve.drain_timeout")


def stop_seconds(deployment: Deployment) -> Figure:
    """How long an idle server takes to end after SIGTERM."""
    stop = deployment.footprint.stop_seconds
    if stop is None:
        return Figure(STOP_UNMEASURED, "not measured")
    return Figure(math.ceil(stop), f"measured {stop:.1f} s")


def grace_seconds(deployment: Deployment, before: int = 0) -> Figure:
    """From the order to end until SIGKILL, longer than the drain.

    `before` are seconds between that order and SIGTERM.
    """
    drain, stop = drain_seconds(deployment), stop_seconds(deployment)
    first = f"{before} s until no new request comes, " if before else ""
    return Figure(
        before + drain.value + stop.value + STOP_MARGIN,
        f"{first}{drain.value} s to drain, {stop.value} s to end ({stop.why}), "
        f"{STOP_MARGIN} s to spare",
    )


def startup_failures(deployment: Deployment) -> Figure:
    """Failed health requests, one every `PROBE_SECONDS`, until a start is given up."""
    allowed = startup_seconds(deployment)
    return Figure(math.ceil(allowed.value / PROBE_SECONDS), f"{allowed.value} s: {allowed.why}")


def _compiles(deployment: Deployment) -> bool:
    """Whether a server compiles the model when it starts, unless it finds that done before."""
    return deployment.manifest.engine == "vllm" and not deployment.serve.vllm.eager


def _mebibytes(size: int) -> int:
    """`size` rounded up to whole MiB, in bytes."""
    return math.ceil(size / MIB) * MIB


def _memory_origin(deployment: Deployment) -> str:
    footprint = deployment.footprint
    if not footprint.measured:
        return "an estimate, nothing was started"
    requests = "one request" if footprint.parallel == 1 else f"{footprint.parallel} requests"
    return f"the peak measured with {requests} at once"
