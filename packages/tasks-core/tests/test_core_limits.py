"""Limits, and the numbers that the scheduler tells."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import threading
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from core_support import EventLog, fail, in_thread, messages, noop
from tasks_core import Task, TaskObserver, TaskPhase, TaskQueueFullError, TaskScheduler, TaskState, observe, retry
from tasks_core.testing import release_task
from tasks_testing import VirtualClock

pytestmark = pytest.mark.anyio


class Meter:
    """How many are inside at once."""

    def __init__(self) -> None:
        self.inside = self.most = 0
        self.order: list[int] = []

    async def task(self, number: int) -> None:
        self.order.append(number)
        self.inside += 1
        self.most = max(self.most, self.inside)
        for _ in range(3):
            await anyio.lowlevel.checkpoint()
        self.inside -= 1


async def test_max_concurrency_in_the_order_of_scheduling() -> None:
    meter = Meter()
    async with TaskScheduler(max_concurrency=3) as scheduler:
        for number in range(20):
            scheduler.schedule(meter.task, number)
    assert meter.most == 3
    # Those that start in the same turn of the loop may start in any order (trio).
    assert all(abs(place - number) <= 3 for place, number in enumerate(meter.order))
    assert sorted(meter.order) == list(range(20))


async def test_a_free_place_goes_to_the_oldest_whatever_its_phase_and_kind() -> None:
    order: list[str] = []
    gate = anyio.Event()

    async def note(name: str) -> None:
        order.append(name)

    def note_plainly(name: str) -> None:
        order.append(name)

    async with TaskScheduler(max_concurrency=1) as scheduler:
        scheduler.schedule(gate.wait)
        first, second = TaskPhase(scheduler, "first"), TaskPhase(scheduler, "second")
        second.schedule(note, "a")
        scheduler.schedule(note_plainly, "b")
        first.schedule(note_plainly, "c")
        scheduler.schedule(note, "d")
        second.schedule(note, "e")
        first.open()
        second.open()
        gate.set()
    assert order == ["a", "b", "c", "d", "e"]


async def test_a_function_that_gets_a_thread_waits_for_a_place_behind_the_older_ones() -> None:
    leave, gate = threading.Event(), anyio.Event()
    async with TaskScheduler(max_concurrency=1, max_threads=1) as scheduler:
        first = scheduler.schedule(leave.wait)
        older: Task[None] = scheduler.schedule(gate.wait)
        function = scheduler.schedule(threading.get_ident)
        await first.started.wait()
        leave.set()
        await older.started.wait()
        assert (first.state, function.state) == (TaskState.SUCCEEDED, TaskState.PENDING)
        gate.set()
        await function


async def test_a_cancelled_task_that_waits_leaves_its_place_to_the_next() -> None:
    gate = anyio.Event()
    async with TaskScheduler(max_concurrency=1) as scheduler:
        scheduler.schedule(gate.wait)
        waiting = [scheduler.schedule(noop) for _ in range(3)]
        waiting[0].cancel()
        waiting[1].cancel()
        gate.set()
        await waiting[2]


@pytest.mark.parametrize("kind", ["coroutine", "function"])
async def test_a_task_cancelled_at_the_moment_of_its_launch_gives_its_place_back(kind: str) -> None:
    func: Any = noop if kind == "coroutine" else threading.get_ident
    async with TaskScheduler(max_concurrency=1, max_threads=1) as scheduler:
        for _ in range(5):
            launched = scheduler.schedule(func)
            waiting = scheduler.schedule(func)
            launched.cancel()
            await waiting
            assert launched.state is TaskState.CANCELLED


async def test_no_more_threads_than_allowed_and_the_loop_goes_on() -> None:
    inside = most = 0
    lock, gate = threading.Lock(), threading.Event()

    def work() -> None:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        gate.wait()
        with lock:
            inside -= 1

    async with TaskScheduler(max_threads=2, max_concurrency=10) as scheduler:
        tasks = [scheduler.schedule(work) for _ in range(8)]
        for _ in range(5):
            await scheduler.schedule(noop)  # coroutines do not wait for threads
        await tasks[1].started.wait()
        assert scheduler.statistics().running == 2
        gate.set()
    assert most == 2


async def test_tasks_in_threads_take_none_of_the_threads_of_others() -> None:
    gate = threading.Event()
    async with TaskScheduler(max_threads=200) as scheduler:
        tasks = [scheduler.schedule(gate.wait) for _ in range(100)]
        for task in tasks:
            await task.started.wait()
        assert await anyio.to_thread.run_sync(lambda: "not delayed") == "not delayed"
        gate.set()


async def test_max_pending_refuses_at_the_call_and_keeps_nothing() -> None:
    gate = anyio.Event()
    log = EventLog()
    async with TaskScheduler(max_concurrency=1, max_pending=2) as scheduler:
        running = scheduler.schedule(gate.wait)
        waiting: list[Task[Any]] = [scheduler.schedule(noop), scheduler.schedule(threading.get_ident)]
        message = (
            "'noop' was not accepted: 2 tasks are waiting to start, and max_pending=2. "
            "Raise max_pending, schedule less at once, or wait first: await scheduler.wait_for_capacity()"
        )
        batch = TaskPhase(scheduler, "later")
        with observe(log):
            for target in (scheduler, scheduler.task(shield=True), batch):
                with pytest.raises(TaskQueueFullError, match=f"^{re.escape(message)}$"):
                    target.schedule(noop)
                with pytest.raises(TaskQueueFullError, match=f"^{re.escape(message)}$"):
                    in_thread(lambda target=target: target.schedule(noop))  # type: ignore[misc]  # bound here
        assert log.events == []
        assert scheduler.statistics().scheduled == 3
        waiting[0].cancel()
        accepted = scheduler.schedule(noop)
        gate.set()
        for task in (running, waiting[1], accepted):
            await task
    assert scheduler.statistics().scheduled == 4


async def test_max_pending_does_not_count_what_was_launched_or_waits_to_run_again() -> None:
    async with TaskScheduler(max_pending=1, grace_period=0) as scheduler:
        again = scheduler.task(on_error=retry(backoff=60)).schedule(fail)
        while again.state is not TaskState.RETRYING:
            await anyio.lowlevel.checkpoint()
        for _ in range(10):
            scheduler.schedule(noop)
        scheduler.task(delay=60).schedule(noop)
        with pytest.raises(TaskQueueFullError):
            scheduler.schedule(noop)


async def test_max_pending_forgets_a_task_that_was_cancelled_before_its_turn() -> None:
    class Canceller(TaskObserver):
        def hold_task(self, task: Task[Any]) -> bool:
            task.cancel()
            return True

    gate = anyio.Event()
    async with TaskScheduler(max_concurrency=1, max_pending=1) as scheduler:
        posted: Task[None] = in_thread(lambda: scheduler.schedule(noop))
        posted.cancel()  # the loop has not heard of it yet
        with observe(Canceller()):
            held = scheduler.schedule(noop)
        release_task(held)
        await anyio.wait_all_tasks_blocked()
        assert posted.state is held.state is TaskState.CANCELLED
        scheduler.schedule(gate.wait)
        scheduler.schedule(noop)
        with pytest.raises(TaskQueueFullError):
            scheduler.schedule(noop)
        gate.set()


async def test_max_pending_holds_against_many_threads() -> None:
    gate = anyio.Event()
    async with TaskScheduler(max_concurrency=1, max_pending=50) as scheduler:
        await scheduler.schedule(noop)
        blocker = scheduler.schedule(gate.wait)
        await blocker.started.wait()
        accepted: list[Task[None]] = []
        refused: list[int] = []

        def schedule_many() -> None:
            for _ in range(20):
                try:
                    accepted.append(scheduler.schedule(noop))
                except TaskQueueFullError:
                    refused.append(1)

        async with anyio.create_task_group() as group:
            for _ in range(8):
                group.start_soon(anyio.to_thread.run_sync, schedule_many)
        assert (len(accepted), len(refused)) == (50, 110)
        gate.set()
    assert scheduler.statistics().succeeded == 52


# ---- TaskConfig(limiter=) ----


def test_a_limiter_of_two_event_loops_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    """anyio would wake the task that waits by an event of its loop, from another thread."""
    limiter = anyio.CapacityLimiter(1)
    borrowed, release = threading.Event(), threading.Event()

    async def borrow() -> None:
        async with TaskScheduler() as scheduler:
            task = scheduler.task(limiter=limiter).schedule(release.wait)
            await task.started.wait()
            borrowed.set()

    async def wait_for_it() -> None:
        async with TaskScheduler() as scheduler:
            tasks = [scheduler.task(limiter=limiter).schedule(noop) for _ in range(2)]
            await anyio.wait_all_tasks_blocked()
            for task in tasks:
                task.cancel()

    thread = threading.Thread(target=lambda: asyncio.run(borrow()))
    thread.start()
    try:
        assert borrowed.wait(10)
        asyncio.run(wait_for_it())
    finally:
        release.set()
        thread.join()
    (line,) = messages(caplog, logging.WARNING)
    assert line.startswith("Task 'noop' #")
    assert line.endswith("a limiter of anyio belongs to one event loop. Make one for each of them")


async def test_a_limiter_of_one_event_loop_is_not_reported(caplog: pytest.LogCaptureFixture) -> None:
    limiter = anyio.CapacityLimiter(1)
    gate = anyio.Event()
    async with TaskScheduler() as first, TaskScheduler() as second:
        first.task(limiter=limiter).schedule(gate.wait)
        await anyio.wait_all_tasks_blocked()
        second.task(limiter=limiter).schedule(noop)
        await anyio.wait_all_tasks_blocked()
        gate.set()
    assert messages(caplog, logging.WARNING) == []


async def test_a_limiter_is_shared_between_schedulers() -> None:
    meter = Meter()
    limiter = anyio.CapacityLimiter(2)
    async with TaskScheduler() as one, TaskScheduler() as other:
        for number in range(10):
            for scheduler in (one, other):
                scheduler.task(limiter=limiter).schedule(meter.task, number)
    assert meter.most == 2
    assert limiter.borrowed_tokens == 0


async def test_a_token_is_given_back_however_the_task_ends() -> None:
    limiter = anyio.CapacityLimiter(1)
    async with TaskScheduler() as scheduler:
        limited = scheduler.task(limiter=limiter)
        tasks: list[Task[Any]] = [
            limited.schedule(fail),
            limited.task(on_error=retry(attempts=3, backoff=0)).schedule(fail),
            limited.schedule(threading.get_ident),
            limited.task(timeout=0.001).schedule(anyio.sleep_forever),
        ]
        for task in tasks:
            await task.wait()
        last = limited.schedule(anyio.sleep_forever)
        never = limited.schedule(noop)
        await last.started.wait()
        never.cancel()
        last.cancel()
        await limited.schedule(noop)
    assert limiter.borrowed_tokens == 0
    assert tasks[1].attempts == 3


@pytest.mark.parametrize("waits", [True, False])
async def test_a_task_cancelled_at_the_moment_it_gets_its_token_gives_it_back(waits: bool) -> None:
    limiter = anyio.CapacityLimiter(1)
    async with TaskScheduler() as scheduler:
        for turns in range(8):
            if waits:
                limiter.acquire_on_behalf_of_nowait("test")
            task = scheduler.task(limiter=limiter).schedule(noop)
            if waits:
                await anyio.wait_all_tasks_blocked()
                limiter.release_on_behalf_of("test")
            for _ in range(turns):
                await anyio.lowlevel.checkpoint()
            task.cancel()
            await task.wait()
            await anyio.wait_all_tasks_blocked()
            assert limiter.borrowed_tokens == 0
        await scheduler.task(limiter=limiter).schedule(noop)


async def test_a_token_that_cannot_be_given_back_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    limiter = anyio.CapacityLimiter(1)

    async with TaskScheduler(max_concurrency=1) as scheduler:
        handles: list[Task[None]] = []

        async def release_by_hand() -> None:
            limiter.release_on_behalf_of(handles[0])

        handles.append(scheduler.task(limiter=limiter).schedule(release_by_hand))
        await handles[0]
        await scheduler.schedule(noop)
    assert any("could not give its token back" in line for line in messages(caplog, logging.ERROR))


# ---- statistics ----


async def test_statistics_tell_what_there_is_and_was() -> None:
    clock = VirtualClock(auto=False)
    gate = anyio.Event()
    async with TaskScheduler(clock=clock, max_concurrency=2, grace_period=0) as scheduler:
        assert scheduler.statistics().oldest_age == 0.0
        running = scheduler.schedule(gate.wait)
        again = scheduler.task(on_error=retry(backoff=60)).schedule(fail)
        while again.state is not TaskState.RETRYING:
            await anyio.lowlevel.checkpoint()
        await scheduler.schedule(noop)
        await scheduler.schedule(fail).wait()
        batch = TaskPhase(scheduler, "later")
        batch.schedule(noop)
        batch.schedule(noop).cancel()
        clock.advance(7)
        numbers = scheduler.statistics()
        assert numbers.as_dict() == in_thread(scheduler.statistics).as_dict()
        assert json.loads(json.dumps(numbers.as_dict())) == {
            "scheduled": 6,
            "pending": 1,
            "running": 1,
            "retrying": 1,
            "succeeded": 1,
            "failed": 1,
            "cancelled": 1,
            "discarded": 0,
            "by_phase": {"none": 2, "later": 1},
            "oldest_age": 7.0,
            "services": 0,
            "periodic": {},
        }
        batch.discard("enough")
        assert scheduler.statistics().discarded == 1
        gate.set()
        await running
    assert repr(scheduler) == "<TaskScheduler closed, 0 tasks>"


async def test_numbers_add_up_from_another_thread_while_tasks_end() -> None:
    stop = threading.Event()
    wrong: list[Any] = []

    async with TaskScheduler() as scheduler:

        def watch() -> None:
            while not stop.is_set():
                n = scheduler.statistics()
                total = n.pending + n.running + n.retrying + n.succeeded + n.failed + n.cancelled + n.discarded
                if total != n.scheduled:
                    wrong.append(n)

        thread = threading.Thread(target=watch)
        thread.start()
        for _ in range(300):
            await scheduler.schedule(noop)
        stop.set()
        thread.join()
    assert wrong == []
