"""What a deployment's supervisor does next, in plain cases and in a simulated life."""

from __future__ import annotations

from dataclasses import replace

from deployment_samples import deployment_spec
from hypothesis import given
from hypothesis import strategies as st

from deployer.deployments.reconcile import ENDED, RETIRE_SECONDS, Action, Seen, decide
from deployer.deployments.spec import DeploymentSpec

FIRST = deployment_spec(1, q4="chat.q4.1", q8="chat.q8.1")
SECOND = deployment_spec(2, q4="chat.q4.2", q8="chat.q8.1")
READY = {name: Seen("ready", routed=True) for name in FIRST.instances}


def test_servers_start_one_after_the_other_and_then_the_spec_is_applied() -> None:
    assert decide(None, FIRST, {}, 0.0) == [Action("start", "chat.q4.1")]
    assert decide(None, FIRST, {"chat.q4.1": Seen("starting")}, 0.0) == []
    seen = {"chat.q4.1": Seen("ready")}
    assert decide(None, FIRST, seen, 0.0) == [Action("start", "chat.q8.1")]
    seen["chat.q8.1"] = Seen("ready")
    assert decide(None, FIRST, seen, 0.0) == [Action("apply")]


def test_nothing_is_done_to_what_runs() -> None:
    assert decide(FIRST, None, READY, 0.0) == []
    failed = {**READY, "chat.q4.1": Seen("failed", routed=True)}
    assert decide(FIRST, None, failed, 0.0) == []


def test_a_reload_starts_the_changed_server_beside_the_old_one() -> None:
    assert decide(FIRST, SECOND, READY, 0.0) == [Action("start", "chat.q4.2")]
    assert decide(FIRST, SECOND, {**READY, "chat.q4.2": Seen("starting")}, 0.0) == []
    seen = {**READY, "chat.q4.2": Seen("ready")}
    assert decide(FIRST, SECOND, seen, 0.0) == [Action("apply")]


def test_a_reload_without_new_servers_is_applied_at_once() -> None:
    assert decide(FIRST, replace_generation(FIRST, 2), READY, 0.0) == [Action("apply")]


def test_a_new_server_that_ends_refuses_the_reload() -> None:
    for state in ENDED:
        seen = {**READY, "chat.q4.2": Seen(state)}
        assert decide(FIRST, SECOND, seen, 0.0) == [Action("refuse", "chat.q4.2")]


def test_what_has_no_place_retires_and_is_stopped_once_the_gateway_knows() -> None:
    old = Seen("ready", routed=True)
    seen = {**READY, "chat.q4.2": Seen("ready", routed=True), "chat.q4.1": old}
    assert decide(SECOND, None, seen, 5.0) == [Action("retire", "chat.q4.1")]
    seen["chat.q4.1"] = replace(old, retiring=True)
    assert decide(SECOND, None, seen, 99.0) == []  # the gateway has not read the table yet
    seen["chat.q4.1"] = replace(old, retiring=True, retired_at=5.0)
    assert decide(SECOND, None, seen, 5.0 + RETIRE_SECONDS - 0.1) == []
    assert decide(SECOND, None, seen, 5.0 + RETIRE_SECONDS) == [Action("stop", "chat.q4.1")]
    seen["chat.q4.1"] = replace(seen["chat.q4.1"], stopping=True)
    assert decide(SECOND, None, seen, 99.0) == []


def test_a_server_of_a_refused_reload_is_stopped_at_once() -> None:
    seen = {**READY, "chat.q4.2": Seen("ready")}
    assert decide(FIRST, None, seen, 0.0) == [Action("stop", "chat.q4.2")]


def test_a_lost_server_is_started_again_when_its_pause_is_over() -> None:
    seen = {**READY, "chat.q8.1": Seen("lost", routed=True, retry_at=10.0)}
    assert decide(FIRST, None, seen, 9.9) == []
    assert decide(FIRST, None, seen, 10.0) == [Action("start", "chat.q8.1")]


def replace_generation(spec: DeploymentSpec, generation: int) -> DeploymentSpec:
    return spec.model_copy(update={"generation": generation})


class Life:
    """Carries the actions out on a fake fleet, and checks what must never happen."""

    def __init__(self) -> None:
        self.applied: DeploymentSpec | None = None
        self.wanted: DeploymentSpec | None = deployment_spec(1, a="chat.a.1", b="chat.b.1")
        self.generation = 1
        self.seen: dict[str, Seen] = {}
        self.now = 0.0
        self.refused = 0

    def turn(self) -> None:
        self.now += 0.5
        for name, one in list(self.seen.items()):
            if one.stopping:
                del self.seen[name]
            elif one.retiring and one.retired_at is None:
                self.seen[name] = replace(one, retired_at=self.now)
        for action in decide(self.applied, self.wanted, self.seen, self.now):
            self.do(action)
        runs = self.applied.instances if self.applied else {}
        assert all(name in self.seen for name in runs)
        assert not any(self.seen[name].stopping or self.seen[name].retiring for name in runs)
        assert sum(one.state == "starting" for one in self.seen.values()) <= 1

    def do(self, action: Action) -> None:
        name = action.instance
        if action.deed == "start":
            assert name not in self.seen or self.seen[name].state == "lost"
            self.seen[name] = Seen("starting", routed=self.applied_has(name))
        elif action.deed == "retire":
            self.seen[name] = replace(self.seen[name], retiring=True)
        elif action.deed == "stop":
            assert not self.applied_has(name)
            self.seen[name] = replace(self.seen[name], stopping=True)
        elif action.deed == "apply":
            assert self.wanted is not None
            before = self.applied.instances if self.applied else {}
            new = [each for each in self.wanted.instances if each not in before]
            assert all(self.seen[each].state == "ready" for each in new)
            self.applied, self.wanted = self.wanted, None
            for each in self.applied.instances:
                self.seen[each] = replace(self.seen[each], routed=True)
        else:
            self.wanted, self.refused = None, self.refused + 1

    def applied_has(self, name: str) -> bool:
        return self.applied is not None and name in self.applied.instances

    def reload(self, changed: str) -> None:
        """Another generation in which the servers of `changed` are new ones."""
        if self.wanted is not None or self.applied is None:
            return
        self.generation += 1
        names = {
            server: f"chat.{server}.{self.generation}" if server in changed else planned.instance
            for server, planned in self.applied.servers.items()
        }
        self.wanted = deployment_spec(self.generation, **names)

    def settle(self, state: str) -> None:
        """What starts comes to a state."""
        for name, one in self.seen.items():
            if one.state == "starting":
                self.seen[name] = replace(one, state=state)


EVENTS = st.sampled_from(["turn", "ready", "failed", "lost", "reload a", "reload b", "reload ab"])


@given(st.lists(EVENTS, max_size=40))
def test_whatever_happens_what_runs_is_never_stopped_and_all_settles(events: list[str]) -> None:
    life = Life()
    for event in events:
        if event.startswith("reload"):
            life.reload(event.removeprefix("reload "))
        elif event == "ready" or (event in ENDED and life.applied is not None):
            life.settle(event)
        life.turn()
    for _ in range(30):
        life.settle("ready")
        life.turn()
    assert life.applied is not None
    assert life.wanted is None
    assert set(life.seen) == set(life.applied.instances)
    assert life.applied.generation <= life.generation
