"""What a task emits and reports, and how it is followed."""

from __future__ import annotations

import gc
import threading
from math import nan
from typing import Any

import anyio
import pytest
from core_support import in_thread, noop
from tasks_core import (
    Retry,
    Task,
    TaskObserver,
    TaskScheduler,
    TaskState,
    current_task,
    emit,
    observe,
    report,
)
from tasks_core._journal import MOST_BYTES, MOST_EVENTS, Journal
from tasks_core._run import following
from tasks_core.exceptions import InvalidEventError
from tasks_core.types import EmittedEvent, TaskUpdate

pytestmark = pytest.mark.anyio


class Gate:
    """A task that emits what the test says, and ends when the test says so."""

    def __init__(self) -> None:
        self.ready = anyio.Event()
        self.end = anyio.Event()

    async def work(self, *events: Any) -> str:
        for event in events:
            emit(event)
        self.ready.set()
        await self.end.wait()
        return "done"


async def all_of(task: Task[Any], after: int = 0) -> list[TaskUpdate]:
    return [update async for update in task.follow(after)]


def numbers(updates: list[TaskUpdate]) -> list[int]:
    return [event.number for update in updates for event in update.events]


async def test_a_follower_gets_each_event_once_and_then_the_end() -> None:
    first, second = anyio.Event(), anyio.Event()

    async def work() -> None:
        emit({"token": "Hello"})
        await first.wait()
        emit(["a", 1, None, True, 0.5])
        await second.wait()
        emit("last")

    async with TaskScheduler() as scheduler:
        task = scheduler.schedule(work)
        follower = task.follow()
        update = await anext(follower)
        assert [(event.number, event.data) for event in update.events] == [(1, {"token": "Hello"})]
        assert (update.after, update.missed, update.state) == (1, 0, TaskState.RUNNING)
        first.set()
        update = await anext(follower)
        assert [(event.number, event.data) for event in update.events] == [(2, ["a", 1, None, True, 0.5])]
        second.set()
        rest = [update async for update in follower]
        assert numbers(rest) == [3]
        assert rest[-1].state is TaskState.SUCCEEDED
        with pytest.raises(StopAsyncIteration):
            await anext(follower)


async def test_a_follower_that_comes_later_goes_on_where_another_was() -> None:
    async with TaskScheduler() as scheduler:
        gate = Gate()
        task = scheduler.schedule(gate.work, "a", "b", "c")
        await gate.ready.wait()
        gate.end.set()
        await task
        assert numbers(await all_of(task)) == [1, 2, 3]
        assert numbers(await all_of(task, 2)) == [3]
        [last] = await all_of(task, 3)
        assert (last.events, last.after, last.state) == ((), 3, TaskState.SUCCEEDED)
        [beyond] = await all_of(task, 99)
        assert (beyond.events, beyond.after) == ((), 3)


async def test_a_task_that_never_emits_can_be_followed_to_its_end() -> None:
    async with TaskScheduler() as scheduler:
        gate = Gate()
        task = scheduler.schedule(gate.work)
        states: list[TaskState] = []

        async def follow() -> None:
            states.extend([update.state async for update in task.follow()])

        async with anyio.create_task_group() as group:
            group.start_soon(follow)
            await anyio.wait_all_tasks_blocked()
            assert not states
            task.cancel()
        assert states == [TaskState.CANCELLED]


async def test_progress_is_the_last_value() -> None:
    async with TaskScheduler() as scheduler:
        gate = Gate()
        task = scheduler.schedule(gate.work)
        assert task.progress is None
        follower = task.follow()
        task.report({"done": 1, "of": 3})
        task.report({"done": 2, "of": 3})
        update = await anext(follower)
        assert update.progress == task.progress == {"done": 2, "of": 3}
        assert update.events == ()
        with anyio.move_on_after(0) as scope:
            await anext(follower)  # the same value does not come again
        assert scope.cancelled_caught
        gate.end.set()
        await task
        task.report("too late")
        task.emit("too late")
        [last] = [update async for update in follower]
        assert (last.progress, last.after, last.state) == ({"done": 2, "of": 3}, 0, TaskState.SUCCEEDED)


async def test_a_cancelled_follower_has_taken_nothing() -> None:
    async with TaskScheduler() as scheduler:
        gate = Gate()
        task = scheduler.schedule(gate.work)
        follower = task.follow()
        with anyio.move_on_after(0):
            await anext(follower)
        task.emit(1)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await anext(follower)
        assert numbers([await anext(follower)]) == [1]
        gate.end.set()


async def test_plain_functions_emit_from_their_threads() -> None:
    def work() -> None:
        for number in range(100):
            emit(number)
        report(1.0)

    async with TaskScheduler() as scheduler:
        task = scheduler.schedule(work)
        updates = await all_of(task)
        assert [event.data for update in updates for event in update.events] == list(range(100))
        assert updates[-1].progress == 1.0


async def test_a_thread_wakes_a_follower() -> None:
    async with TaskScheduler() as scheduler:
        gate = Gate()
        task = scheduler.schedule(gate.work)
        async with anyio.create_task_group() as group:
            seen: list[TaskUpdate] = []

            async def follow() -> None:
                follower = task.follow()
                seen.extend([await anext(follower), await anext(follower)])

            group.start_soon(follow)
            await anyio.wait_all_tasks_blocked()
            in_thread(lambda: task.emit("from a thread"))
            await anyio.wait_all_tasks_blocked()
            in_thread(lambda: task.report("from a thread"))
        assert [event.data for event in seen[0].events] == ["from a thread"]
        assert seen[1].progress == "from a thread"
        gate.end.set()


async def test_two_threads_that_emit_first_have_one_journal() -> None:
    async with TaskScheduler() as scheduler:
        gate = Gate()
        task = scheduler.schedule(gate.work)
        barrier = threading.Barrier(8)

        def speak(number: int) -> None:
            barrier.wait()
            task.emit(number)

        threads = [threading.Thread(target=speak, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        gate.end.set()
        updates = await all_of(task)
        assert numbers(updates) == list(range(1, 9))
        assert {event.data for update in updates for event in update.events} == set(range(8))


async def test_an_event_that_comes_while_the_journal_is_made_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    async with TaskScheduler() as scheduler:
        gate = Gate()
        task = scheduler.schedule(gate.work)
        await gate.ready.wait()
        lock = following._lock

        class Interrupted:
            """A lock that another event comes in front of, as from a thread or a finalizer."""

            def __enter__(self) -> None:
                monkeypatch.setattr(following, "_lock", lock)
                task.emit("first")

            def __exit__(self, *_: object) -> None: ...

        monkeypatch.setattr(following, "_lock", Interrupted())
        task.emit("second")
        gate.end.set()
        updates = await all_of(task)
        assert [event.data for update in updates for event in update.events] == ["first", "second"]


async def test_a_silent_task_that_has_ended_can_be_followed() -> None:
    async with TaskScheduler() as scheduler:
        task = scheduler.schedule(noop)
        await task
        [last] = await all_of(task)
        assert (last.state, last.events, last.progress) == (TaskState.SUCCEEDED, (), None)
        assert not scheduler._runner.ledger.journals


async def test_a_thread_that_its_task_has_abandoned_is_not_heard() -> None:
    stuck, emitted = threading.Event(), threading.Event()

    def work() -> None:
        task = current_task()
        assert task is not None
        if task.attempts == 1:
            emit("first")
            stuck.wait()
            emit("abandoned")
            report("abandoned")
            emitted.set()
        else:
            emit("second")
            stuck.set()
            emitted.wait()

    async with TaskScheduler() as scheduler:
        task = scheduler.task(timeout=0.05, on_error=lambda task, error: Retry(0) if task.attempts == 1 else None)
        updates = await all_of(task.schedule(work))
        assert [event.data for update in updates for event in update.events] == ["first", "second"]
        assert updates[-1].progress is None


async def test_many_events_come_in_several_updates() -> None:
    async with TaskScheduler() as scheduler:
        gate = Gate()
        gate.end.set()
        task = scheduler.schedule(gate.work, *range(1200))
        await task
        updates = await all_of(task)
        assert numbers(updates) == list(range(1, 1201))
        assert [len(update.events) for update in updates] == [500, 500, 200]
        assert {update.state for update in updates} == {TaskState.SUCCEEDED}


async def test_the_number_of_kept_events_is_bounded() -> None:
    async with TaskScheduler() as scheduler:
        gate = Gate()
        gate.end.set()
        task = scheduler.schedule(gate.work, *range(MOST_EVENTS + 5))
        await task
        updates = await all_of(task, 2)
        assert updates[0].missed == 3
        assert numbers(updates) == list(range(6, MOST_EVENTS + 6))
        assert all(update.missed == 0 for update in updates[1:])


async def test_the_bytes_of_kept_events_are_bounded() -> None:
    async with TaskScheduler() as scheduler:
        gate = Gate()
        gate.end.set()
        task = scheduler.schedule(gate.work, *["x" * 65_000] * 20)
        await task
        updates = await all_of(task)
        kept = [event for update in updates for event in update.events]
        assert len(kept) == MOST_BYTES // 65_002
        assert updates[0].missed == 20 - len(kept)
        assert kept[-1].number == 20


@pytest.mark.parametrize("call", [emit, report])
@pytest.mark.parametrize(
    "value, told",
    [
        (object(), "a object that JSON does not have"),
        ({1, 2}, "a set that JSON does not have"),
        (nan, "a float that JSON does not have"),
        ("\ud800", "a str that JSON does not have"),
        ("x" * 70_000, "70,002 bytes"),
    ],
)
async def test_what_is_not_json_is_refused_at_the_call(call: Any, value: Any, told: str) -> None:
    with pytest.raises(InvalidEventError, match=rf"{call.__name__}\(\) was given {told}. It takes JSON of at most"):
        call(value)
    async with TaskScheduler() as scheduler:
        task = scheduler.schedule(call, value)
        with pytest.raises(InvalidEventError):
            await task


async def test_outside_of_a_task_nothing_is_emitted() -> None:
    emit({"token": "Hello"})
    report(0.5)


def journals() -> list[Journal]:
    gc.collect()
    return [found for found in gc.get_objects() if isinstance(found, Journal)]


async def test_nothing_is_allocated_for_tasks_that_never_emit() -> None:
    before = journals()
    async with TaskScheduler() as scheduler:
        gate = Gate()
        tasks = [scheduler.schedule(gate.work) for _ in range(100)]
        await gate.ready.wait()
        assert all(any(found is other for other in before) for found in journals())
        assert not any(hasattr(task, "_journal") for task in tasks)
        assert not scheduler._runner.ledger.journals
        assert tasks[0].progress is None
        gate.end.set()


async def test_a_follower_needs_the_event_loop_of_the_scheduler() -> None:
    async with TaskScheduler() as scheduler:
        gate = Gate()
        task = scheduler.schedule(gate.work)
        with pytest.raises(RuntimeError, match="on the event loop of the scheduler only"):
            in_thread(task.follow)
        gate.end.set()


async def test_followers_are_told_of_an_end_before_its_handler_has_returned() -> None:
    go_on = anyio.Event()
    order: list[str] = []

    async def on_end(task: Task[Any]) -> None:
        await go_on.wait()
        order.append("the handler has returned")

    async with TaskScheduler() as scheduler:
        gate = Gate()
        task = scheduler.task(on_end=on_end).schedule(gate.work)
        ended: list[TaskUpdate] = []

        async def follow() -> None:
            ended.extend(await all_of(task))
            order.append("the follower has the end")
            go_on.set()

        async with anyio.create_task_group() as group:
            group.start_soon(follow)
            await anyio.wait_all_tasks_blocked()
            gate.end.set()
        assert [update.state for update in ended] == [TaskState.SUCCEEDED]
    assert order == ["the follower has the end", "the handler has returned"]


async def test_followers_are_told_of_an_end_by_shutdown() -> None:
    ended: list[TaskUpdate] = []

    async def follow(task: Task[Any]) -> None:
        ended.extend(await all_of(task))

    async with anyio.create_task_group() as group, TaskScheduler(grace_period=0) as scheduler:
        group.start_soon(follow, scheduler.schedule(anyio.sleep_forever))
        await anyio.wait_all_tasks_blocked()
    assert [update.state for update in ended] == [TaskState.CANCELLED]


async def test_observers_hear_what_is_emitted_and_reported() -> None:
    heard: list[Any] = []

    class Listener(TaskObserver):
        def task_emitted(self, task: Task[Any], event: EmittedEvent) -> None:
            heard.append((task.name, event.number, event.data))

        def task_reported(self, task: Task[Any]) -> None:
            heard.append((task.name, task.progress))

    async def work() -> None:
        emit("a")
        report(0.5)
        emit("b")

    with observe(Listener()):
        async with TaskScheduler() as scheduler:
            await scheduler.task(name="work").schedule(work)
    assert heard == [("work", 1, "a"), ("work", 0.5), ("work", 2, "b")]


# ---- tasks that are kept ----


class SetClock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        return self.time

    async def sleep_until(self, deadline: float) -> None:
        await anyio.sleep_forever()


async def test_a_kept_task_is_found_by_an_id_until_its_time_is_over() -> None:
    clock = SetClock()
    async with TaskScheduler(clock=clock, follow_for=60) as scheduler:
        gate = Gate()
        task = scheduler.schedule(gate.work, "a")
        kept_id = scheduler.keep(task, owner="ann")
        kept = scheduler.find_kept(kept_id)
        assert kept is not None
        assert (kept.id, kept.task, kept.owner) == (kept_id, task, "ann")
        clock.time = 1000
        assert scheduler.find_kept(kept_id) is kept
        gate.end.set()
        await task
        clock.time = 1059
        assert scheduler.find_kept(kept_id) is kept
        clock.time = 1060
        assert scheduler.find_kept(kept_id) is None


async def test_each_id_is_another_and_a_task_that_has_ended_is_kept_from_then_on() -> None:
    clock = SetClock()
    async with TaskScheduler(clock=clock, follow_for=60) as scheduler:
        task = scheduler.schedule(noop)
        first = scheduler.keep(task, owner="ann")
        await task
        clock.time = 30
        second = scheduler.keep(task, owner="bob")
        assert first != second
        assert min(len(first), len(second)) > 30
        clock.time = 60
        assert scheduler.find_kept(first) is None
        found = scheduler.find_kept(second)
        assert found is not None
        assert found.owner == "bob"
        clock.time = 90
        assert scheduler.find_kept(second) is None


async def test_a_scheduler_tells_its_own_ids_from_those_of_others() -> None:
    async with TaskScheduler() as scheduler, TaskScheduler() as other:
        assert not scheduler.made_id("-guess")
        own, foreign = scheduler.keep(scheduler.schedule(noop)), other.keep(other.schedule(noop))
        assert scheduler.made_id(own)
        assert not scheduler.made_id(foreign)
        assert scheduler.find_kept(foreign) is None


async def test_a_task_is_kept_by_its_own_scheduler() -> None:
    async with TaskScheduler() as scheduler, TaskScheduler() as other:
        with pytest.raises(ValueError, match=r"belongs to another scheduler. Write: task.scheduler.keep\(task\)"):
            other.keep(scheduler.schedule(noop))


async def test_nothing_is_kept_after_the_end_of_the_scheduler() -> None:
    async with TaskScheduler() as scheduler:
        kept_id = scheduler.keep(scheduler.schedule(noop))
    assert scheduler.find_kept(kept_id) is None
