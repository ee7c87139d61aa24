"""Keys: at most one task of a key runs at a time, and what a call does that finds one."""

from __future__ import annotations

import logging
import threading
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from core_support import in_thread, messages, noop, states
from tasks_core import (
    Task,
    TaskConfig,
    TaskObserver,
    TaskPhase,
    TaskQueueFullError,
    TaskScheduler,
    TaskState,
    observe,
    retry,
)
from tasks_core.exceptions import InvalidConfigError, InvalidTaskError
from tasks_testing import VirtualClock, record_tasks

pytestmark = pytest.mark.anyio


async def turns(number: int = 20) -> None:
    for _ in range(number):
        await anyio.lowlevel.checkpoint()


class Work:
    """Runs until its gate opens, and counts how many run at once."""

    def __init__(self) -> None:
        self.gates: dict[object, anyio.Event] = {}
        self.order: list[object] = []
        self.running = self.most = 0

    async def run(self, what: object) -> object:
        self.order.append(what)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.gates.setdefault(what, anyio.Event()).wait()
        finally:
            self.running -= 1
        return what

    def open(self, *names: object) -> None:
        for what in names:
            self.gates.setdefault(what, anyio.Event()).set()


async def test_a_call_joins_the_task_that_has_the_key(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    work = Work()
    async with TaskScheduler() as scheduler:
        target = scheduler.task(key="reindex:7")
        first = target.schedule(work.run, 1)
        assert target.schedule(work.run, 2) is first  # before it starts
        await first.started.wait()
        assert target.task(on_conflict="join").schedule(work.run, 3) is first  # while it runs
        assert in_thread(lambda: target.schedule(work.run, 4)) is first
        other = scheduler.task(key="reindex:8").schedule(work.run, 5)
        work.open(1, 5)
        assert (await first, await other) == (1, 5)
        again = target.schedule(work.run, 6)
        assert again is not first
        work.open(6)
        assert await again == 6
        assert len(scheduler._runner.keys) == 0
        assert scheduler.statistics().scheduled == 3
    lines = [line for line in messages(caplog) if line.startswith("No task was made")]
    assert len(lines) == 3
    assert all(f"#{first.id} " in line and "'reindex:7'" in line and __file__ in line for line in lines)


async def test_queued_tasks_run_one_after_the_other_in_order() -> None:
    work = Work()
    async with TaskScheduler() as scheduler:
        target = scheduler.task(key="account:1", on_conflict="queue")
        tasks = [target.schedule(work.run, number) for number in range(5)]
        await turns()
        assert work.order == [0]
        tasks[2].cancel()
        work.open(*range(5))
        await scheduler.idle()
        assert len(scheduler._runner.keys) == 0
    assert work.order == [0, 1, 3, 4]
    assert work.most == 1
    assert states(*tasks)[2] is TaskState.CANCELLED


async def test_replace_is_a_debounce() -> None:
    clock = VirtualClock(auto=False)
    ran: list[tuple[int, float]] = []

    async def note(number: int) -> None:
        ran.append((number, clock.now()))

    async with TaskScheduler(clock=clock) as scheduler:
        target = scheduler.task(key="search", delay=5, on_conflict="replace")
        tasks: list[Task[Any]] = []
        for number in range(3):
            tasks.append(target.schedule(note, number))
            await turns()
            clock.advance(4)
            await turns()
        assert ran == []
        clock.advance(1)
        await turns()
        assert ran == [(2, 13)]
        assert states(*tasks) == [TaskState.DISCARDED, TaskState.DISCARDED, TaskState.SUCCEEDED]
        assert tasks[0].reason == f"task #{tasks[1].id} replaced it, which has the same key 'search'"
        assert not tasks[0].lost
        assert len(scheduler._runner.keys) == 0
        assert scheduler._runner.delayed == {}


async def test_a_replacement_runs_after_the_task_that_runs_and_its_delay_counts_from_the_call() -> None:
    clock = VirtualClock(auto=False)
    work = Work()
    async with TaskScheduler(clock=clock) as scheduler:
        target = scheduler.task(key="k", on_conflict="replace")
        first = target.schedule(work.run, 1)
        await first.started.wait()
        second = target.task(delay=10).schedule(work.run, 2)
        third = target.task(delay=10).schedule(work.run, 3)
        assert states(first, second, third) == [TaskState.RUNNING, TaskState.DISCARDED, TaskState.PENDING]
        clock.advance(8)
        work.open(1, 3)
        await turns()
        assert work.order == [1]
        clock.advance(2)
        await turns()
        assert work.order == [1, 3]


async def test_the_key_is_held_while_a_task_waits_for_its_next_attempt() -> None:
    clock = VirtualClock(auto=False)
    order: list[str] = []

    async def fail_once() -> None:
        order.append("attempt")
        if len(order) == 1:
            raise ValueError("failed on purpose")

    async def follow() -> None:
        order.append("next")

    async with TaskScheduler(clock=clock) as scheduler:
        target = scheduler.task(key="k", on_conflict="queue")
        first = target.task(on_error=retry(attempts=2, backoff=10)).schedule(fail_once)
        second = target.schedule(follow)
        await turns()
        assert first.state is TaskState.RETRYING
        assert scheduler.task(key="k").schedule(noop) is second
        replacing = scheduler.task(key="k", on_conflict="replace").schedule(follow)
        assert replacing.state is TaskState.PENDING
        assert order == ["attempt"]
        clock.advance(10)
        await turns()
    assert order == ["attempt", "attempt", "next"]


async def test_a_task_of_a_phase_takes_its_key_when_the_phase_opens(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    work = Work()
    work.open(1, 2, 3, 4)
    async with TaskScheduler() as scheduler:
        failing, succeeding = TaskPhase(scheduler, "first"), TaskPhase(scheduler, "second")
        first = failing.task(key="k").schedule(work.run, 1)
        second = succeeding.task(key="k").schedule(work.run, 2)
        third = succeeding.task(key="k").schedule(work.run, 3)
        assert len({first, second, third}) == 3
        failing.open("error")  # its task is dropped, and the work of the other must not be lost with it
        succeeding.open()
        await scheduler.idle()
        assert states(first, second, third) == [TaskState.DISCARDED, TaskState.SUCCEEDED, TaskState.DISCARDED]
        assert third.reason == f"task #{second.id} has its key 'k'"
        assert len(scheduler._runner.keys) == 0
    assert messages(caplog, logging.WARNING) == []


async def test_keys_and_limits() -> None:
    work = Work()
    async with TaskScheduler(max_concurrency=2, max_threads=1) as scheduler:
        for number in range(6):
            scheduler.task(key=f"k{number % 2}", on_conflict="queue").schedule(work.run, number)
            scheduler.task(key="thread", on_conflict="queue").schedule(abs, number)
        work.open(*range(6))
        await scheduler.idle()
        assert len(scheduler._runner.keys) == 0
    assert sorted(work.order, key=str) == list(range(6))
    assert scheduler.statistics().succeeded == 12


async def test_thousands_of_tasks_of_one_key_end_without_recursion() -> None:
    async with TaskScheduler(grace_period=0) as scheduler:
        target = scheduler.task(key="k", on_conflict="queue")
        for _ in range(3000):
            target.schedule(noop)
        await scheduler.idle()
        running = target.schedule(anyio.sleep_forever)
        for _ in range(3000):
            target.schedule(noop)
        await running.started.wait()
    assert scheduler.statistics().discarded == 3000
    assert len(scheduler._runner.keys) == 0


async def test_those_that_wait_behind_a_key_have_the_grace_period_at_shutdown() -> None:
    work = Work()
    scheduler = TaskScheduler(grace_period=30)
    await scheduler.start()
    target = scheduler.task(key="k", on_conflict="queue")
    first, second = target.schedule(work.run, 1), target.schedule(work.run, 2)
    await first.started.wait()
    async with anyio.create_task_group() as group:
        group.start_soon(scheduler.aclose)
        await scheduler.stopping.wait()
        work.open(1, 2)
    assert states(first, second) == [TaskState.SUCCEEDED] * 2


async def test_calls_from_threads_join_a_task_that_the_event_loop_has_not_seen_yet(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    work = Work()
    async with TaskScheduler() as scheduler:
        target = scheduler.task(key="k")
        first, *others = [in_thread(partial(target.schedule, work.run, number)) for number in range(3)]
        assert target.schedule(work.run, 3) is first  # and so does a call on the event loop
        assert [other is first for other in others] == [True, True]
        queued = in_thread(partial(target.task(on_conflict="queue").schedule, work.run, 4))
        assert in_thread(partial(target.schedule, work.run, 5)) is queued
        work.open(0, 4)
        await scheduler.idle()
        assert len(scheduler._runner.keys) == 0
    assert work.order == [0, 4]
    statistics = scheduler.statistics()
    assert (statistics.scheduled, statistics.discarded) == (2, 0)
    assert len([line for line in messages(caplog) if line.startswith("No task was made")]) == 4


async def test_threads_at_the_same_time_join_one_task_and_each_call_has_a_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """`test_core_keys_threads.py` holds a thread at each line; this is what chance makes of it."""
    caplog.set_level(logging.INFO)
    work = Work()
    number, rounds = 8, 20
    async with TaskScheduler() as scheduler:
        for turn in range(rounds):
            barrier = threading.Barrier(number)
            tasks: list[Task[Any]] = []

            def call(turn: int = turn, barrier: threading.Barrier = barrier, tasks: list[Any] = tasks) -> None:
                barrier.wait()
                tasks.append(scheduler.task(key="k").schedule(work.run, turn))

            threads = [threading.Thread(target=call) for _ in range(number)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()  # the event loop stands still meanwhile
            work.open(turn)
            await scheduler.idle()
            assert len(set(tasks)) == 1
            assert len(scheduler._runner.keys) == 0
    assert work.order == list(range(rounds))
    assert scheduler.statistics().scheduled == scheduler.statistics().succeeded == rounds
    lines = [line for line in messages(caplog) if line.startswith("No task was made")]
    assert len(lines) == (number - 1) * rounds


async def test_a_call_of_a_thread_that_is_refused_leaves_nothing_of_its_key() -> None:
    async with TaskScheduler(max_pending=1, max_concurrency=1) as scheduler:
        scheduler.task(delay=3600).schedule(noop)
        with pytest.raises(TaskQueueFullError):
            in_thread(partial(scheduler.task(key="k").schedule, noop))
        assert len(scheduler._runner.keys) == 0
        scheduler.tasks[0].cancel()


async def test_a_recorder_sees_what_became_of_tasks_with_a_key() -> None:
    with record_tasks(virtual_time=True) as recorder:
        async with TaskScheduler() as scheduler:
            target = scheduler.task(key="k", delay=5, on_conflict="replace")
            tasks = [target.schedule(noop) for _ in range(3)]
            await recorder.adrain()
            assert states(*tasks) == [TaskState.DISCARDED, TaskState.DISCARDED, TaskState.SUCCEEDED]
            recorder.assert_ran(noop, times=1)


def test_a_key_is_for_one_call() -> None:
    with pytest.raises(InvalidConfigError, match="config must be a TaskConfig without a key"):
        TaskScheduler(config=TaskConfig(key="k"))
    with pytest.raises(InvalidConfigError, match="key is for one call"):
        TaskPhase(TaskScheduler(), "phase", config=TaskConfig(key="k"))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"key": ""}, "key='': key must be a text that is not empty"),
        ({"key": 5}, "key=5: key must be a text"),
        ({"on_conflict": "queue"}, r"there is no key. Write .task\(key='reindex:7', on_conflict='queue'\)"),
        ({"on_conflict": "maybe"}, "on_conflict='maybe': on_conflict must be 'join', 'replace' or 'queue'"),
    ],
)
def test_a_bad_key_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidConfigError, match=message):
        TaskScheduler().task(**options)


async def test_an_option_that_is_passed_as_an_argument_is_named() -> None:
    async with TaskScheduler() as scheduler:
        with pytest.raises(
            InvalidTaskError, match=r"To set options of the task: \.task\(name=\.\.\.\)\.schedule\(noop"
        ):
            scheduler.task(key="k").schedule(noop, name="a")  # type: ignore[call-overload]
        assert scheduler.tasks == ()


async def test_a_task_that_is_cancelled_when_its_turn_has_come_does_not_run() -> None:
    ran: list[int] = []

    async def note(number: int) -> None:
        ran.append(number)

    class Observer(TaskObserver):
        def task_finished(self, task: Task[Any]) -> None:
            if task is first:
                second.cancel()

    with observe(Observer()):
        async with TaskScheduler() as scheduler:
            target = scheduler.task(key="k", on_conflict="queue")
            first, second, third = (target.schedule(note, number) for number in range(3))
            await scheduler.idle()
    assert ran == [0, 2]
    assert states(first, second, third) == [TaskState.SUCCEEDED, TaskState.CANCELLED, TaskState.SUCCEEDED]


async def test_an_observer_may_cancel_one_of_the_tasks_that_are_being_replaced() -> None:
    class Observer(TaskObserver):
        def task_finished(self, task: Task[Any]) -> None:
            if task is waiting[0]:
                waiting[1].cancel()

    work = Work()
    with observe(Observer()):
        async with TaskScheduler() as scheduler:
            running = scheduler.task(key="k").schedule(work.run, 0)
            await running.started.wait()
            waiting = [scheduler.task(key="k", on_conflict="queue").schedule(work.run, number) for number in (1, 2)]
            last = scheduler.task(key="k", on_conflict="replace").schedule(work.run, 3)
            assert states(*waiting) == [TaskState.DISCARDED, TaskState.CANCELLED]
            work.open(0, 3)
            await last
    assert work.order == [0, 3]


async def test_an_observer_may_cancel_the_task_that_replaces_another() -> None:
    class Observer(TaskObserver):
        def task_finished(self, task: Task[Any]) -> None:
            if task is first:
                scheduler.tasks[-1].cancel()

    with observe(Observer()):
        async with TaskScheduler(max_concurrency=1) as scheduler:
            target = scheduler.task(key="k", delay=3600, on_conflict="replace")
            first = target.schedule(noop)
            second = target.schedule(noop)
            assert states(first, second) == [TaskState.DISCARDED, TaskState.CANCELLED]
            assert scheduler._runner.delayed == {}
            assert len(scheduler._runner.keys) == 0
            await scheduler.schedule(noop)


async def test_a_call_of_a_thread_does_not_join_a_task_that_is_for_the_other_outcome_of_its_phase() -> None:
    async with TaskScheduler() as scheduler:
        phase = TaskPhase(scheduler, "phase")
        phase.open("success")
        dropped = in_thread(partial(phase.task(key="k", when="error").schedule, noop))
        task = scheduler.task(key="k").schedule(noop)
        await scheduler.idle()
    assert states(dropped, task) == [TaskState.DISCARDED, TaskState.SUCCEEDED]


async def test_a_task_that_an_observer_holds_has_its_key_when_it_is_released() -> None:
    with record_tasks() as recorder:
        async with TaskScheduler() as scheduler:
            recorder.hold(noop)
            target = scheduler.task(key="k")
            first, second = target.schedule(noop), target.schedule(noop)
            recorder.release(noop)
            await scheduler.idle()
    assert first is not second
    assert states(first, second) == [TaskState.SUCCEEDED, TaskState.DISCARDED]
