"""What a scheduler and a handle say about tasks that have not ended, and how to wait for room and for the last task."""

from __future__ import annotations

import math
import threading
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from core_support import in_thread, noop
from tasks_core import (
    Retry,
    SchedulerClosedError,
    Task,
    TaskPhase,
    TaskQueueFullError,
    TaskScheduler,
    TaskState,
    current_task,
)

pytestmark = pytest.mark.anyio


async def test_a_scheduler_lists_and_finds_the_tasks_that_have_not_ended() -> None:
    async with TaskScheduler() as scheduler:
        done = scheduler.schedule(noop)
        waiting = scheduler.schedule(anyio.sleep_forever)
        phase = TaskPhase(scheduler, "after_commit")
        phased = phase.schedule(noop)
        await done
        assert scheduler.tasks == (waiting, phased)
        assert in_thread(lambda: scheduler.tasks) == (waiting, phased)
        assert scheduler.find(waiting.id) is waiting
        assert scheduler.find(done.id) is None
        assert scheduler.find(-1) is None
        waiting.cancel()
        phase.discard("rolled back")
    assert not scheduler.tasks


async def test_cancel_says_whether_the_task_had_not_ended() -> None:
    async with TaskScheduler() as scheduler:
        pending = scheduler.task(delay=100).schedule(noop)
        assert pending.cancel() is True
        assert pending.state is TaskState.CANCELLED
        assert pending.cancel() is False
        running = scheduler.schedule(anyio.sleep_forever)
        await running.started.wait()
        assert in_thread(running.cancel) is True
        await running.wait()
        assert in_thread(running.cancel) is False


@pytest.mark.parametrize("thread", [False, True])
async def test_a_task_reads_why_it_is_being_cancelled(thread: bool) -> None:
    seen: list[str | None] = []

    async def wait() -> None:
        task = current_task()
        assert task is not None
        seen.append(task.reason)
        try:
            await anyio.sleep_forever()
        finally:
            seen.append(task.reason)

    async with TaskScheduler(grace_period=0) as scheduler:
        stopped = scheduler.schedule(wait)
        await stopped.started.wait()
        await anyio.lowlevel.checkpoint()
        in_thread(stopped.cancel) if thread else stopped.cancel()
        await stopped.wait()
        deployed = scheduler.schedule(wait)
        await deployed.started.wait()
    assert seen == [None, "task.cancel() was called", None, "the grace period of the shutdown was over"]
    assert deployed.reason == "the grace period of the shutdown was over"


async def test_a_task_that_succeeds_in_spite_of_its_cancellation_has_no_reason() -> None:
    async def insist() -> None:
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            pass

    async with TaskScheduler() as scheduler:
        task = scheduler.schedule(insist)
        await task.started.wait()
        task.cancel()
        await task.wait()
        assert (task.state, task.reason) == (TaskState.SUCCEEDED, None)


class Thread:
    """A plain function that asks whether it should stop, again and again."""

    def __init__(self) -> None:
        self.stopped = threading.Event()
        self.task: Task[Any] | None = None

    def run(self) -> str:
        self.task = task = current_task()
        assert task is not None
        while not task.cancel_requested:
            self.stopped.wait(0.001)
        assert current_task() is task
        self.stopped.set()
        return "stopped"


async def test_a_plain_function_sees_that_it_should_stop() -> None:
    thread = Thread()
    async with TaskScheduler() as scheduler:
        task = scheduler.schedule(thread.run)
        await task.started.wait()
        assert not task.cancel_requested
        task.cancel()
        assert task.cancel_requested
        await task.wait()
        assert await anyio.to_thread.run_sync(thread.stopped.wait, 5)
    assert task.state is TaskState.CANCELLED


async def test_a_plain_function_that_took_longer_than_its_timeout_sees_it_and_the_next_attempt_does_not() -> None:
    thread = Thread()
    seen: list[bool] = []

    def work() -> None:
        task = current_task()
        assert task is not None
        if task.attempts == 1:
            thread.run()
        seen.append(task.cancel_requested)

    async def try_again(task: Task[Any], error: Exception) -> Any:
        await anyio.to_thread.run_sync(thread.stopped.wait, 5)
        return Retry()

    async with TaskScheduler() as scheduler:
        await scheduler.task(timeout=0.5, on_error=try_again).schedule(work)
    assert seen == [True, False]


async def test_a_thread_whose_task_has_ended_cannot_schedule_after_the_shutdown_began() -> None:
    outcome: list[object] = []
    scheduler = TaskScheduler(grace_period=0, shield_timeout=0)
    thread = Thread()
    ended = threading.Event()

    def work() -> None:
        thread.run()
        assert thread.task is not None
        while not thread.task.state.finished:
            ended.wait(0.001)
        try:
            outcome.append(scheduler.schedule(noop))
        except SchedulerClosedError as error:
            outcome.append(type(error))
        ended.set()

    async with scheduler:
        task = scheduler.schedule(work)
        await task.started.wait()
    assert await anyio.to_thread.run_sync(ended.wait, 5)
    assert outcome == [SchedulerClosedError]


async def test_idle_returns_when_the_last_task_has_ended() -> None:
    order: list[str] = []

    async def follow_up() -> None:
        order.append("follow-up")

    async with TaskScheduler() as scheduler:
        await scheduler.idle()
        gate = anyio.Event()

        async def work() -> None:
            await gate.wait()
            scheduler.schedule(follow_up)

        async def wait(name: str) -> None:
            await scheduler.idle()
            order.append(name)

        scheduler.schedule(work)
        async with anyio.create_task_group() as group:
            group.start_soon(wait, "idle")
            group.start_soon(wait, "idle")
            await anyio.lowlevel.checkpoint()
            assert order == []
            gate.set()
    assert order == ["follow-up", "idle", "idle"]


async def test_idle_is_refused_in_a_task_and_on_another_event_loop() -> None:
    async with TaskScheduler() as scheduler:
        with pytest.raises(RuntimeError, match=r"idle\(\) was called by a task of the scheduler"):
            await scheduler.schedule(scheduler.idle)
        for call in (scheduler.idle, scheduler.wait_for_capacity):
            with pytest.raises(RuntimeError, match="on another event loop"):
                await anyio.to_thread.run_sync(lambda: in_thread(lambda: anyio.run(call)))  # noqa: B023


async def test_wait_for_capacity_returns_when_schedule_is_accepted() -> None:
    order: list[str] = []
    async with TaskScheduler(max_concurrency=1, max_pending=1) as scheduler:
        gate = anyio.Event()
        scheduler.schedule(gate.wait)
        await scheduler.wait_for_capacity()
        scheduler.schedule(gate.wait)
        with pytest.raises(TaskQueueFullError, match=r"await scheduler.wait_for_capacity\(\)"):
            scheduler.schedule(noop)

        async def consume(name: str) -> None:
            await scheduler.wait_for_capacity()
            scheduler.schedule(noop)  # never refused, although two wait for the one place
            order.append(name)

        async with anyio.create_task_group() as group:
            group.start_soon(consume, "consumer")
            group.start_soon(consume, "consumer")
            await anyio.lowlevel.checkpoint()
            assert order == []
            gate.set()
    assert order == ["consumer", "consumer"]


async def test_wait_for_capacity_returns_at_once_without_a_limit() -> None:
    async with TaskScheduler(max_concurrency=1, grace_period=math.inf) as scheduler:
        for _ in range(100):
            await scheduler.wait_for_capacity()
            scheduler.schedule(noop)
