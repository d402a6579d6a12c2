"""Slots and queues, with a clock of the test's own and no network."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployer.gateway.admission import Admission, Candidates, Slot
from deployer.gateway.refusals import Refusal
from deployer.gateway.routing import Upstream


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def server(name: str, slots: int = 1) -> Upstream:
    return Upstream(
        name=name, instance=f"d.{name}.1", url="http://127.0.0.1:9", model="m", engine="llama.cpp",
        bundle="b", digest="d", state="ready", slots=slots, context=512,
    )  # fmt: skip


A, B = server("a"), server("b")


class Desk:
    """An admission, and servers that requests may go to, by the letter of the request."""

    def __init__(self, servers: Iterable[Upstream] = (A,), hope: bool = True) -> None:
        self.clock = Clock()
        self.admission = Admission(self.clock)
        self.found = Candidates(tuple(servers), hope)

    def enter(
        self, most_waiting: int = 8, max_wait: float = 5.0, route: str = "r"
    ) -> Coroutine[Any, Any, Slot]:
        return self.admission.enter(route, lambda: self.found, most_waiting, max_wait)


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_the_first_server_with_a_slot_is_taken() -> None:
    async def scenario() -> None:
        desk = Desk((A, B))
        first, second = await desk.enter(), await desk.enter()
        assert [first.upstream.name, second.upstream.name] == ["a", "b"]
        assert (first.queued, desk.admission.running("d.a.1")) == (0.0, 1)
        first.release()
        first.release()  # once is enough
        assert desk.admission.running("d.a.1") == 0
        assert (await desk.enter()).upstream.name == "a"

    asyncio.run(scenario())


def test_those_who_wait_come_in_their_order() -> None:
    async def scenario() -> None:
        desk = Desk()
        held = await desk.enter()
        tasks = [asyncio.create_task(desk.enter()) for _ in range(4)]
        await settle()
        assert desk.admission.waiting("r") == 4
        desk.clock.now += 2.0
        for number, task in enumerate(tasks):
            held.release(1.0)
            await settle()
            assert [each.done() for each in tasks] == [n <= number for n in range(4)]
            held = task.result()
            assert held.queued == 2.0
        assert (desk.admission.waiting("r"), desk.admission.idle) == (0, False)
        held.release()
        assert desk.admission.idle

    asyncio.run(scenario())


def test_a_full_queue_is_busy_and_tells_when_to_come_again() -> None:
    async def scenario() -> None:
        desk = Desk((server("a", 2),))
        for _ in range(40):
            (await desk.enter()).release(8.0)
        held = [await desk.enter(), await desk.enter()]
        waiting = [asyncio.create_task(desk.enter(2)) for _ in range(2)]
        await settle()
        with pytest.raises(Refusal) as caught:
            await desk.enter(2)
        # three requests before it, two at once, 8 s each
        assert (caught.value.status, caught.value.reason, caught.value.retry_after) == (
            429, "busy", 12,
        )  # fmt: skip
        for slot in held:
            slot.release()
        for slot in [await task for task in waiting]:
            slot.release()

    asyncio.run(scenario())


def test_a_wait_ends_after_its_time() -> None:
    async def scenario() -> None:
        desk = Desk()
        held = await desk.enter()
        with pytest.raises(Refusal) as caught:
            await desk.enter(max_wait=0.01)
        assert (caught.value.status, caught.value.headers) == (429, {"Retry-After": "2"})
        assert desk.admission.waiting("r") == 0
        desk.found = Candidates((), hope=True)
        with pytest.raises(Refusal) as caught:
            await desk.enter(max_wait=0.01)
        assert caught.value.status == 503
        held.release()

    asyncio.run(scenario())


def test_nobody_waits_where_nobody_will_come() -> None:
    async def scenario() -> None:
        desk = Desk((), hope=False)
        with pytest.raises(Refusal) as caught:
            await desk.enter()
        assert (caught.value.status, caught.value.reason) == (503, "unhealthy")
        assert caught.value.retry_after is not None

    asyncio.run(scenario())


def test_those_who_wait_go_where_a_slot_appears() -> None:
    """The death of a server does not lose them, and the last hope's end is told at once."""

    async def scenario() -> None:
        desk = Desk()
        dead = await desk.enter()
        tasks = [asyncio.create_task(desk.enter()) for _ in range(3)]
        await settle()
        desk.found = Candidates((), hope=True)
        desk.admission.poke()
        await settle()
        assert not any(task.done() for task in tasks)
        desk.found = Candidates((B,))
        desk.admission.poke()
        await settle()
        assert [task.done() for task in tasks] == [True, False, False]
        assert tasks[0].result().upstream.name == "b"
        dead.release()  # of no use to anybody now
        await settle()
        assert not tasks[1].done()
        desk.found = Candidates((), hope=False)
        desk.admission.poke()
        results = await asyncio.gather(*tasks[1:], return_exceptions=True)
        assert [getattr(result, "status", None) for result in results] == [503, 503]

    asyncio.run(scenario())


def test_one_who_leaves_takes_no_slot_along() -> None:
    async def scenario() -> None:
        desk = Desk()
        held = await desk.enter()
        leaving, staying = (asyncio.create_task(desk.enter()) for _ in range(2))
        await settle()
        held.release()  # the slot is given to one that ends in the same moment
        leaving.cancel()
        await settle()
        assert leaving.cancelled()
        assert staying.result().upstream.name == "a"
        assert desk.admission.running("d.a.1") == 1
        staying.result().release()
        assert desk.admission.idle

    asyncio.run(scenario())


def test_instances_of_one_server_have_slots_of_their_own() -> None:
    async def scenario() -> None:
        desk = Desk()
        old = await desk.enter()
        desk.found = Candidates((A.model_copy(update={"instance": "d.a.2"}),))
        new = await desk.enter()
        assert (old.upstream.instance, new.upstream.instance) == ("d.a.1", "d.a.2")

    asyncio.run(scenario())


@given(st.lists(st.integers(0, 4), max_size=60), st.integers(1, 3), st.integers(0, 4))
def test_slots_and_queue_are_never_exceeded_or_lost(
    steps: list[int], slots: int, most_waiting: int
) -> None:
    async def scenario() -> None:
        desk = Desk((server("a", slots), server("b", slots)))
        tasks: list[asyncio.Task[Slot]] = []
        held: list[Slot] = []
        for step in steps:
            if step <= 1:
                tasks.append(asyncio.create_task(desk.enter(most_waiting, 60.0)))
            elif step == 2 and held:
                held.pop(0).release(1.0)
            elif step == 3 and tasks:
                tasks.pop().cancel()
            else:
                desk.admission.poke()
            await settle()
            done = [task for task in tasks if task.done()]
            tasks = [task for task in tasks if not task.done()]
            held += [task.result() for task in done if not task.exception()]
            running = [desk.admission.running(f"d.{name}.1") for name in "ab"]
            assert sum(running) == len(held)
            assert max(running) <= slots
            assert desk.admission.waiting("r") == len(tasks) <= most_waiting
            assert not tasks or sum(running) == 2 * slots
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for slot in held:
            slot.release()
        assert desk.admission.idle

    asyncio.run(scenario())
