"""Ctrl-C is for the process, wherever it arrives; and the task that it meets has one terminal state all the same."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import pytest
from core_support import fail, in_thread, noop
from tasks_core import Task, TaskObserver, TaskScheduler, TaskState, observe
from tasks_core.testing import MonotonicClock


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


async def interrupt_async(*_: object) -> None:
    raise KeyboardInterrupt


class InterruptedClock(MonotonicClock):
    async def sleep_until(self, deadline: float) -> None:
        raise KeyboardInterrupt


@contextmanager
def observed(hook: str) -> Iterator[None]:
    """Interrupt the process in one hook, once."""

    class Observer(TaskObserver):
        calls = 0

    def interrupt_once(self: Observer, *_: object) -> None:
        self.calls += 1
        if self.calls == 1:
            raise KeyboardInterrupt

    setattr(Observer, hook, interrupt_once)
    with observe(Observer()):
        yield


@contextmanager
def logged() -> Iterator[None]:
    """Interrupt the process in a handler of logging, once."""

    class Handler(logging.Handler):
        calls = 0

        def handle(self, record: logging.LogRecord) -> bool:
            self.calls += 1
            if self.calls == 1:
                raise KeyboardInterrupt
            return True

    handler = Handler()
    logging.getLogger("tasks_core").addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger("tasks_core").removeHandler(handler)


@contextmanager
def undisturbed() -> Iterator[None]:
    yield


def error_handler(scheduler: TaskScheduler) -> Task[Any]:
    return scheduler.task(on_error=interrupt_async).schedule(fail)


def plain_error_handler(scheduler: TaskScheduler) -> Task[Any]:
    return scheduler.task(on_error=interrupt).schedule(fail)


def end_handler(scheduler: TaskScheduler) -> Task[Any]:
    return scheduler.task(on_end=interrupt_async).schedule(noop)


def delay(scheduler: TaskScheduler) -> Task[Any]:
    return scheduler.task(delay=1).schedule(noop)


def task(scheduler: TaskScheduler) -> Task[Any]:
    return scheduler.schedule(noop)


def failing_task(scheduler: TaskScheduler) -> Task[Any]:
    return scheduler.schedule(fail)


def task_of_a_thread(scheduler: TaskScheduler) -> Task[Any]:
    scheduled: Task[Any] = in_thread(lambda: scheduler.schedule(noop))
    return scheduled


PLACES: dict[str, tuple[Callable[[TaskScheduler], Task[Any]], Any, TaskState]] = {
    "an error handler": (error_handler, undisturbed, TaskState.FAILED),
    "a plain error handler": (plain_error_handler, undisturbed, TaskState.FAILED),
    "on_end": (end_handler, undisturbed, TaskState.SUCCEEDED),
    "a clock": (delay, undisturbed, TaskState.DISCARDED),
    "task_started": (task, lambda: observed("task_started"), TaskState.FAILED),
    "task_finished": (task, lambda: observed("task_finished"), TaskState.SUCCEEDED),
    "the line about a failure": (failing_task, logged, TaskState.FAILED),
    "a request of another thread": (task_of_a_thread, lambda: observed("hold_task"), TaskState.FAILED),
}


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("place", PLACES)
def test_an_interrupt_ends_the_task_once_and_reaches_the_process(place: str, backend: str) -> None:
    schedule, surroundings, state = PLACES[place]
    scheduled: list[Task[Any]] = []

    async def main() -> None:
        clock = InterruptedClock() if place == "a clock" else MonotonicClock()
        async with TaskScheduler(clock=clock) as scheduler:
            scheduled.append(schedule(scheduler))
            await anyio.sleep_forever()

    with surroundings(), pytest.raises(KeyboardInterrupt):
        anyio.run(main, backend=backend)
    assert scheduled[0].state is state


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_an_interrupt_inside_of_schedule_reaches_the_caller_and_leaves_no_task(backend: str) -> None:
    async def main() -> None:
        async with TaskScheduler() as scheduler:
            with observed("hold_task"), pytest.raises(KeyboardInterrupt):
                scheduler.schedule(noop)
            assert scheduler.tasks == ()
            assert scheduler.statistics().failed == 1
            await scheduler.schedule(noop)

    anyio.run(main, backend=backend)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_an_interrupted_service_ends(backend: str) -> None:
    ended: list[TaskState] = []

    async def main() -> None:
        async with TaskScheduler() as scheduler:
            service = scheduler.service(interrupt_async, restart=False)
            try:
                await anyio.sleep_forever()
            finally:
                ended.append(service.state)

    with pytest.raises(KeyboardInterrupt):
        anyio.run(main, backend=backend)
    assert ended == [TaskState.FAILED]


def test_requests_of_threads_that_an_interrupt_was_among_are_done_when_the_loop_goes_on() -> None:
    loop = asyncio.new_event_loop()
    scheduler = TaskScheduler()
    loop.run_until_complete(scheduler.__aenter__())
    try:

        async def request() -> list[Task[Any]]:
            scheduled: list[Task[Any]] = in_thread(lambda: [scheduler.schedule(noop) for _ in range(3)])
            return scheduled

        with observed("hold_task"):
            tasks = loop.run_until_complete(request())
            with pytest.raises(KeyboardInterrupt):
                loop.run_forever()
        loop.run_until_complete(scheduler.idle())
        assert [task.state for task in tasks] == [TaskState.FAILED, TaskState.SUCCEEDED, TaskState.SUCCEEDED]
    finally:
        loop.run_until_complete(scheduler.__aexit__(None, None, None))
        loop.close()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_an_interrupt_when_shutdown_begins_cancels_the_tasks(backend: str) -> None:
    scheduler = TaskScheduler()
    cleaned_up: list[bool] = []

    async def work() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            cleaned_up.append(True)

    async def main() -> None:
        async with scheduler:
            await scheduler.schedule(work).started.wait()

    with observed("shutdown_started"), pytest.raises(KeyboardInterrupt):
        anyio.run(main, backend=backend)
    assert cleaned_up == [True]
    assert scheduler.report is not None
    assert [lost.reason for lost in scheduler.report.cancelled] == ["a step of the shutdown raised"]
