"""What a deployment's supervisor does next, from what is wanted and what is seen. Pure.

A reload is carried out whole or not at all. New servers start beside the old ones, one at a time
(an engine looks at free memory as it starts, so two at once would deceive each other). When all
of them are ready, the new spec is applied: the routes switch in one step, and servers that have no
place in it retire. If a new one fails, the new spec is refused and the old one stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from deployer.deployments.spec import DeploymentSpec

RETIRE_SECONDS = 1.0
"""From when the gateway knows that a server retires until that is told to drain: time for requests
that were on their way to it."""
ENDED: frozenset[str] = frozenset({"failed", "stopped", "lost"})
Deed = Literal["start", "retire", "stop", "apply", "refuse"]


@dataclass(frozen=True)
class Seen:
    """One process that was started. `state` is its record's.

    `routed`: it has stood in the gateway's table as one of its servers. `retiring`: the table says
    that it gets nothing new; `retired_at`: since when the gateway knows that. `stopping`: it has
    been told to end. `retry_at`: when one that was lost may be started again.
    """

    state: str
    routed: bool = False
    retiring: bool = False
    retired_at: float | None = None
    stopping: bool = False
    retry_at: float = 0.0


@dataclass(frozen=True)
class Action:
    """One thing to do; `instance` is the process it is done to, or that is the reason."""

    deed: Deed
    instance: str = ""


def decide(
    applied: DeploymentSpec | None,
    wanted: DeploymentSpec | None,
    seen: Mapping[str, Seen],
    now: float,
) -> list[Action]:
    """What to do now, in this order; nothing where only time can help.

    `applied` is what runs (None before the first time), `wanted` what shall run instead (None
    where nothing else shall). `now` is a time of the same clock as in `seen`.
    """
    runs = applied.instances if applied else {}
    shall = wanted.instances if wanted else {}
    actions = []
    for name, one in seen.items():
        if name not in runs and name not in shall and not one.stopping:
            actions += _let_go(name, one, now)
    actions += [
        Action("start", name)
        for name in runs
        if name in seen and seen[name].state == "lost" and seen[name].retry_at <= now
    ]
    if wanted is not None:
        actions += _bring_up([name for name in shall if name not in runs], seen)
    return actions


def _let_go(name: str, one: Seen, now: float) -> list[Action]:
    """Retire a process and, once the gateway knows, stop it; one without requests at once."""
    if not one.routed:
        return [Action("stop", name)]
    if not one.retiring:
        return [Action("retire", name)]
    known = one.retired_at is not None and now - one.retired_at >= RETIRE_SECONDS
    return [Action("stop", name)] if known else []


def _bring_up(new: list[str], seen: Mapping[str, Seen]) -> list[Action]:
    """Start the next new server, give up where one ended, apply once all are ready."""
    states = {name: seen[name].state for name in new if name in seen}
    for name, state in states.items():
        if state in ENDED:
            return [Action("refuse", name)]
    missing = [name for name in new if name not in states]
    ready = all(state == "ready" for state in states.values())
    if missing:
        return [Action("start", missing[0])] if ready else []
    return [Action("apply")] if ready else []
