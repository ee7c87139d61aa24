"""Eight threads use one scheduler at the same time: the ledger stays exact, and so do the limits."""

from __future__ import annotations

import threading
from collections.abc import Callable

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from tasks_core import Task, TaskPhase, TaskQueueFullError, TaskScheduler, TaskState

pytestmark = pytest.mark.anyio

THREADS = 8
EACH = 100


async def from_all_threads(work: Callable[[], None]) -> None:
    """Call *work* in each thread, all of them at once, and wait for the threads."""
    ready = threading.Barrier(THREADS)

    def begin() -> None:
        ready.wait()
        work()

    async with anyio.create_task_group() as group:
        limiter = anyio.CapacityLimiter(THREADS)
        for _ in range(THREADS):
            group.start_soon(lambda: anyio.to_thread.run_sync(begin, limiter=limiter))


async def test_every_task_is_counted_once_and_no_more_than_allowed_run() -> None:
    running = most = 0

    async def work() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await anyio.lowlevel.checkpoint()
        running -= 1

    async with TaskScheduler(max_concurrency=3) as scheduler:
        tasks: list[Task[None]] = []
        await from_all_threads(lambda: tasks.extend(scheduler.schedule(work) for _ in range(EACH)))
        for task in tasks:
            await task.wait()
        counts = scheduler.statistics()
    assert (counts.scheduled, counts.succeeded) == (THREADS * EACH, THREADS * EACH)
    assert len({task.id for task in tasks}) == THREADS * EACH
    assert most == 3


async def test_exactly_as_many_wait_as_may() -> None:
    accepted: list[Task[None]] = []
    refused: list[TaskQueueFullError] = []
    async with TaskScheduler(max_pending=50) as scheduler:
        phase = TaskPhase(scheduler, "later")

        def fill() -> None:
            for _ in range(EACH):
                try:
                    accepted.append(phase.schedule(anyio.sleep, 0))
                except TaskQueueFullError as error:
                    refused.append(error)

        await from_all_threads(fill)
        assert (len(accepted), len(refused)) == (50, THREADS * EACH - 50)
        phase.open()
        for task in accepted:
            await task.wait()
    assert {task.state for task in accepted} == {TaskState.SUCCEEDED}


async def test_a_task_that_threads_cancel_while_it_starts_ends_once() -> None:
    async with TaskScheduler() as scheduler:
        tasks: list[Task[None]] = []

        def schedule_and_cancel() -> None:
            for _ in range(EACH):
                task = scheduler.schedule(anyio.sleep, 0)
                tasks.append(task)
                for other in tasks[-4:]:
                    other.cancel()

        await from_all_threads(schedule_and_cancel)
        for task in tasks:
            await task.wait()
        counts = scheduler.statistics()
    assert counts.scheduled == THREADS * EACH
    assert counts.succeeded + counts.cancelled + counts.discarded == THREADS * EACH
