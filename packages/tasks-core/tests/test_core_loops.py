"""A call on another event loop than that of the scheduler goes to the loop of the scheduler, or is refused."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import anyio
import pytest
from core_support import EventLog, in_thread, noop
from tasks_core import Task, TaskObserver, TaskPhase, TaskScheduler, TaskState, observe
from tasks_core.exceptions import WrongEventLoopError
from tasks_core.types import RunAttempt


@contextmanager
def two_loops() -> Iterator[tuple[asyncio.AbstractEventLoop, asyncio.AbstractEventLoop]]:
    """Two event loops of one thread, as pytest-asyncio has them for a session and for a test."""
    loops = asyncio.new_event_loop(), asyncio.new_event_loop()
    try:
        yield loops
    finally:
        for loop in loops:
            loop.close()


async def enter(scheduler: TaskScheduler) -> TaskScheduler:
    return await scheduler.__aenter__()


def test_a_call_while_the_loop_of_the_scheduler_stands_still_is_refused_and_leaves_nothing() -> None:
    events = EventLog()
    with two_loops() as (first, second), observe(events):
        scheduler = first.run_until_complete(enter(TaskScheduler()))
        phase = TaskPhase(scheduler, "after_commit")

        async def schedule() -> None:
            with pytest.raises(WrongEventLoopError, match="Enter a scheduler on this loop: async with TaskScheduler"):
                scheduler.schedule(noop)
            with pytest.raises(WrongEventLoopError, match="give the test and its fixtures the same loop_scope"):
                phase.schedule(noop)

        second.run_until_complete(schedule())
        assert events.events == []
        assert first.run_until_complete(scheduler.aclose()).clean
    assert scheduler.statistics().scheduled == 0


def test_a_call_on_another_loop_goes_to_the_loop_of_the_scheduler_if_that_runs() -> None:
    """In a thread of its own, or because another thread runs it now."""

    async def main() -> None:
        async with TaskScheduler() as scheduler:
            loop = asyncio.get_running_loop()

            async def where() -> asyncio.AbstractEventLoop:
                return asyncio.get_running_loop()

            async def schedule() -> Task[asyncio.AbstractEventLoop]:
                return scheduler.schedule(where)

            task = await asyncio.to_thread(asyncio.run, schedule())
            assert await task is loop

    asyncio.run(main())


def test_between_two_runs_of_its_loop_a_scheduler_accepts_tasks_and_starts_them_in_the_second() -> None:
    with two_loops() as (loop, _):
        scheduler = loop.run_until_complete(enter(TaskScheduler()))
        tasks = [scheduler.schedule(noop), in_thread(lambda: scheduler.schedule(noop))]
        report = loop.run_until_complete(scheduler.aclose())
    assert [task.state for task in tasks] == [TaskState.SUCCEEDED] * 2
    assert report.clean


def test_a_task_is_not_awaited_and_a_scheduler_not_closed_on_another_loop() -> None:
    """Both would hang, and could not even be cancelled."""
    with two_loops() as (first, second):
        scheduler = first.run_until_complete(enter(TaskScheduler()))
        task = scheduler.schedule(anyio.sleep, 0)

        async def wait() -> None:
            with pytest.raises(RuntimeError, match="event loop of the scheduler only"):
                await task.wait()
            with pytest.raises(RuntimeError, match="another event loop than that of the scheduler"):
                await scheduler.aclose()

        second.run_until_complete(wait())
        first.run_until_complete(scheduler.aclose())
    assert task.state is TaskState.SUCCEEDED


def test_a_phase_that_another_loop_opens_opens_when_the_loop_of_the_scheduler_runs() -> None:
    with two_loops() as (first, second):
        scheduler = first.run_until_complete(enter(TaskScheduler()))
        phase = TaskPhase(scheduler, "after_commit")

        async def schedule() -> Task[None]:
            return phase.schedule(noop)

        async def open_phase() -> None:
            phase.open()

        task = first.run_until_complete(schedule())
        second.run_until_complete(open_phase())
        assert task.attempts == 0
        first.run_until_complete(scheduler.aclose())
    assert task.state is TaskState.SUCCEEDED


def test_tasks_that_are_scheduled_on_a_closed_loop_are_discarded_with_a_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with two_loops() as (first, _):
        scheduler = first.run_until_complete(enter(TaskScheduler()))
    task = scheduler.schedule(noop)
    assert (task.state, task.reason) == (TaskState.DISCARDED, "the event loop of its scheduler was closed")
    assert "was discarded: the event loop of its scheduler was closed" in caplog.text
    assert scheduler.statistics().pending == 0


def test_trio_as_a_guest_takes_tasks_from_its_host() -> None:
    """Both run in one thread; the loop of the scheduler sleeps until it is woken."""
    trio = pytest.importorskip("trio")
    ran = threading.Event()

    async def guest(opened: asyncio.Event, stop: Any, box: list[TaskScheduler]) -> None:
        async with TaskScheduler() as scheduler:
            box.append(scheduler)
            stop.append(trio.Event())
            opened.set()
            await stop[0].wait()

    async def host() -> None:
        loop, opened, done = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
        stop: list[Any] = []
        box: list[TaskScheduler] = []
        trio.lowlevel.start_guest_run(
            guest,
            opened,
            stop,
            box,
            run_sync_soon_threadsafe=loop.call_soon_threadsafe,
            done_callback=lambda outcome: done.set(),
        )
        await opened.wait()
        await asyncio.sleep(0.05)  # trio has nothing to do any more, and waits in a thread
        task = box[0].schedule(set_when_run, ran)
        async with asyncio.timeout(10):
            while not ran.is_set():
                await asyncio.sleep(0.005)
        with pytest.raises(RuntimeError, match="event loop of the scheduler only"):
            await box[0].schedule(anyio.sleep, 0.05).wait()
        assert task.name == "set_when_run"
        box[0].schedule(_set, stop[0])
        async with asyncio.timeout(10):
            await done.wait()

    asyncio.run(host())
    assert ran.is_set()


async def _set(event: Any) -> None:
    event.set()


async def set_when_run(event: threading.Event) -> None:
    event.set()


# ---- the task factory of the loop, where error trackers separate the scopes of tasks ----


class Scopes:
    """What the AsyncioIntegration of Sentry does: a scope of its own for each task, by a task factory."""

    def __init__(self) -> None:
        self.entered = 0
        self.inside = False

    def install(self) -> None:
        def factory(loop: asyncio.AbstractEventLoop, coro: Any, **kwargs: Any) -> Any:
            return asyncio.Task(self._in_a_scope(coro), loop=loop, **kwargs)

        asyncio.get_running_loop().set_task_factory(factory)

    async def _in_a_scope(self, coro: Coroutine[Any, Any, Any]) -> Any:
        self.entered += 1
        self.inside = True
        try:
            return await coro
        finally:
            self.inside = False


def test_tasks_are_made_by_the_task_factory_and_their_failure_is_logged_inside(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    scopes = Scopes()
    logged: list[bool] = []

    async def fail() -> None:
        raise ValueError

    async def main() -> None:
        scopes.install()
        async with TaskScheduler() as scheduler:
            await scheduler.schedule(noop)
            monkeypatch.setattr(caplog.handler, "handle", lambda record: logged.append(scopes.inside))
            task = scheduler.schedule(fail)
            await task.wait()
            assert task.state is TaskState.FAILED
            assert scopes.entered == 2

    asyncio.run(main())
    assert logged[0] is True


@pytest.mark.skipif(not hasattr(asyncio, "eager_task_factory"), reason="eager tasks came with Python 3.12")
def test_an_eager_task_factory_starts_no_task_inside_schedule() -> None:
    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined, unused-ignore]
        async with TaskScheduler() as scheduler:
            task = scheduler.schedule(noop)
            assert task.attempts == 0
            await task.wait()
            assert task.state is TaskState.SUCCEEDED

    asyncio.run(main())


def test_a_task_factory_that_raises_fails_the_task(caplog: pytest.LogCaptureFixture) -> None:
    broken = False

    def factory(loop: asyncio.AbstractEventLoop, coro: Any, **kwargs: Any) -> Any:
        if broken:
            raise OSError("no more tasks")
        return asyncio.Task(coro, loop=loop, **kwargs)

    async def main() -> None:
        nonlocal broken
        asyncio.get_running_loop().set_task_factory(factory)
        async with TaskScheduler(max_concurrency=1) as scheduler:
            broken = True
            task = scheduler.schedule(noop)
            broken = False
            assert task.state is TaskState.FAILED
            assert isinstance(task.exception, OSError)
            await scheduler.schedule(noop)

    asyncio.run(main())
    assert "no more tasks" in caplog.text


def test_a_failure_is_logged_with_the_context_variables_of_the_observers_around_the_attempt(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    scope: ContextVar[str] = ContextVar("scope", default="of the request")
    logged: list[str] = []

    class Isolation(TaskObserver):
        async def around_attempt(self, task: Task[Any], run: RunAttempt, /) -> Any:
            token = scope.set(f"of {task.name}")
            try:
                return await run()
            finally:
                scope.reset(token)

    async def fail() -> None:
        raise ValueError

    async def main() -> None:
        async with TaskScheduler() as scheduler:
            monkeypatch.setattr(caplog.handler, "handle", lambda record: logged.append(scope.get()))
            for name in ("a", "b"):
                await scheduler.task(name=name).schedule(fail).wait()

    with observe(Isolation()):
        asyncio.run(main())
    assert logged[:2] == ["of a", "of b"]
