"""What the caller is part of: which scheduler it finds, when it may still schedule, and what it may not wait for."""

from __future__ import annotations

import asyncio
import gc
import re
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import ref

import anyio
import anyio.to_thread
import pytest
import trio
from core_support import in_thread, noop
from tasks_core import SchedulerClosedError, Task, TaskPhase, TaskScheduler, TaskState, current_scheduler, current_task
from tasks_core.exceptions import SchedulerNotStartedError
from tasks_core.frameworks import CURRENT, current

pytestmark = pytest.mark.anyio


class Request:
    """An origin, as a web framework has it."""

    def __init__(self, scheduler: TaskScheduler) -> None:
        self.scheduler = scheduler
        self.finished = False

    @contextmanager
    def served(self) -> Iterator[Request]:
        token = CURRENT.set(ref(self))
        try:
            yield self
        finally:
            CURRENT.reset(token)
            self.finished = True


async def test_the_scheduler_of_the_block_of_a_task_and_of_its_thread() -> None:
    async with TaskScheduler() as scheduler:
        assert current_scheduler() is scheduler
        assert current_task() is None

        async def task() -> TaskScheduler:
            return current_scheduler()

        handle = scheduler.schedule(task)
        assert await handle is scheduler
        assert handle.scheduler is scheduler
        assert await scheduler.schedule(current_scheduler) is scheduler
        assert await anyio.to_thread.run_sync(current_scheduler) is scheduler


async def test_the_innermost_counts() -> None:
    async with TaskScheduler() as outer:
        async with TaskScheduler() as inner:
            assert current_scheduler() is inner
            assert await outer.schedule(current_scheduler) is outer

            def serve_a_request() -> TaskScheduler:
                with Request(inner).served():
                    return current_scheduler()

            assert await outer.schedule(serve_a_request) is inner
            request = Request(inner)
            with request.served():
                assert current() is request
                assert current_task() is None
                assert await outer.schedule(current_scheduler) is outer
        assert current_scheduler() is outer


async def test_without_a_scheduler_it_is_an_error_with_the_line_to_write() -> None:
    message = (
        "current_scheduler() was called outside of a task, of a request and of `async with scheduler`. "
        "Enter one first: async with TaskScheduler() as scheduler: ..."
    )
    with pytest.raises(SchedulerNotStartedError, match=f"^{re.escape(message)}$"):
        current_scheduler()
    async with TaskScheduler():
        pass
    with pytest.raises(SchedulerNotStartedError):
        current_scheduler()
    async with TaskScheduler():
        with pytest.raises(SchedulerNotStartedError):
            in_thread(current_scheduler)  # a plain thread has a context of its own


async def test_a_scheduler_that_was_closed_by_another_task_is_not_current() -> None:
    scheduler = TaskScheduler()
    await scheduler.start()
    async with anyio.create_task_group() as group:
        group.start_soon(scheduler.aclose)
    with pytest.raises(SchedulerNotStartedError):
        current_scheduler()


async def test_a_request_that_is_served_may_schedule_while_the_scheduler_drains() -> None:
    ran: list[str] = []
    stop = anyio.Event()

    async def late(name: str) -> None:
        ran.append(name)

    scheduler = TaskScheduler(grace_period=3600)
    async with anyio.create_task_group() as group:
        await scheduler.start()
        scheduler.schedule(stop.wait)
        group.start_soon(scheduler.aclose)
        await scheduler.stopping.wait()
        await anyio.wait_all_tasks_blocked()
        with Request(scheduler).served() as request:
            phase = TaskPhase(scheduler, "after_response", origin=request)
            phase.schedule(late, "in a phase")
            scheduler.schedule(late, "directly")
        phase.open()
        with pytest.raises(SchedulerClosedError):
            phase.schedule(noop)  # the request has finished
        with Request(TaskScheduler()).served(), pytest.raises(SchedulerClosedError):
            scheduler.schedule(noop)  # a request of another scheduler
        stop.set()
    assert sorted(ran) == ["directly", "in a phase"]
    assert scheduler.report is not None
    assert scheduler.report.clean


async def test_after_the_grace_period_a_request_may_schedule_what_is_shielded() -> None:
    stop = anyio.Event()
    scheduler = TaskScheduler(grace_period=0)
    async with anyio.create_task_group() as group:
        await scheduler.start()
        scheduler.task(shield=True).schedule(stop.wait)
        group.start_soon(scheduler.aclose)
        await scheduler.stopping.wait()
        await anyio.wait_all_tasks_blocked()
        with Request(scheduler).served():
            with pytest.raises(SchedulerClosedError):
                scheduler.schedule(noop)
            shielded = scheduler.task(shield=True).schedule(noop)
            stop.set()
            await shielded.wait()
    assert shielded.state is TaskState.SUCCEEDED
    assert scheduler.report is not None
    assert scheduler.report.clean


async def test_waiting_for_the_own_phase_is_refused() -> None:
    async with TaskScheduler() as scheduler:
        request = Request(scheduler)
        phase = TaskPhase(scheduler, "after_response", origin=request)
        with request.served():
            task = phase.schedule(noop)
            message = (
                f"Task 'noop' #{task.id} was awaited by the code that after_response waits for, before after_response "
                "opened, so neither could go on. Do what needs the result in a task of the same phase: "
                "tasks.after_response.schedule(...)"
            )
            with anyio.fail_after(5):
                with pytest.raises(RuntimeError, match=f"^{re.escape(message)}$"):
                    await task.wait()
                with pytest.raises(RuntimeError, match="was awaited by"):
                    await task
                waiter: Task[None] = scheduler.schedule(task.wait)  # a task of its own may wait
                phase.open()
                await task  # the phase is open
                await waiter


async def test_the_request_is_not_kept_alive_by_its_contexts() -> None:
    async with TaskScheduler() as scheduler:
        request = Request(scheduler)
        alive = ref(request)
        with request.served():
            task = scheduler.task(delay=3600).schedule(noop)
        del request
        gc.collect()
        assert alive() is None
        task.cancel()


def test_the_loop_counts_and_not_the_thread() -> None:
    scheduler = TaskScheduler()
    assert not scheduler.on_event_loop()

    async def start() -> None:
        await scheduler.start()
        assert scheduler.on_event_loop()
        assert not await anyio.to_thread.run_sync(scheduler.on_event_loop)

    async def elsewhere() -> None:
        assert not scheduler.on_event_loop()

    first, second = asyncio.new_event_loop(), asyncio.new_event_loop()
    try:
        first.run_until_complete(start())
        second.run_until_complete(elsewhere())
        trio.run(elsewhere)
        first.run_until_complete(scheduler.aclose())
    finally:
        first.run_until_complete(first.shutdown_default_executor())
        first.close()
        second.close()


def test_trio_as_a_guest_is_another_loop() -> None:
    """Both run on the thread, and asyncio says that its loop runs also inside of trio."""
    seen: list[bool] = []

    async def host() -> None:
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        async with TaskScheduler() as of_asyncio:

            async def guest() -> None:
                seen.append(of_asyncio.on_event_loop())
                async with TaskScheduler() as of_trio:
                    seen.append(of_trio.on_event_loop())

            trio.lowlevel.start_guest_run(
                guest, run_sync_soon_threadsafe=loop.call_soon_threadsafe, done_callback=done.set_result
            )
            (await done).unwrap()
            seen.append(of_asyncio.on_event_loop())

    asyncio.run(host())
    assert seen == [False, True, True]
