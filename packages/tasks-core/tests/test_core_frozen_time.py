"""Libraries that stop or move the time of a test: tasks see it; delays, timeouts and shutdown do not depend on it."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import anyio
import freezegun
import pytest
import time_machine
from tasks_core import TaskScheduler, TaskState, cron, every, retry

FROZEN = "2001-02-03 04:05:06"


def freeze(*, tick: bool = False) -> AbstractContextManager[Any]:
    # Otherwise freezegun stops the event loops themselves.
    frozen: AbstractContextManager[Any] = freezegun.freeze_time(FROZEN, real_asyncio=True, ignore=["trio"], tick=tick)
    return frozen


LIBRARIES = [
    pytest.param(freeze, id="freezegun"),
    pytest.param(lambda: freeze(tick=True), id="freezegun ticks"),
    pytest.param(lambda: time_machine.travel(FROZEN, tick=False), id="time-machine"),
    pytest.param(lambda: time_machine.travel(FROZEN, tick=True), id="time-machine ticks"),
]

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("library", LIBRARIES)]

Library = Callable[[], AbstractContextManager[Any]]


async def year() -> int:
    await anyio.sleep(0.01)
    return datetime.datetime.now(datetime.UTC).year


async def test_a_task_sees_the_time_and_has_the_seconds_of_its_timeout(library: Library) -> None:
    """The scheduler is older than the frozen time, as where a fixture starts the application."""
    async with TaskScheduler() as scheduler:
        with library():
            assert await scheduler.task(timeout=30).schedule(year) == 2001
        assert await scheduler.task(timeout=30).schedule(year) > 2020


async def test_delays_and_pauses_take_their_time(library: Library) -> None:
    attempts: list[int] = []

    async def fail_once() -> None:
        attempts.append(1)
        if len(attempts) == 1:
            raise ConnectionError

    with library():
        async with TaskScheduler() as scheduler:
            delayed = scheduler.task(delay=0.02).schedule(year)
            hour = scheduler.task(delay=3600).schedule(year)
            again = scheduler.task(on_error=retry(backoff=0.02)).schedule(fail_once)
            with anyio.fail_after(20):
                assert await delayed == 2001
                await again.wait()
            assert (again.state, hour.state) == (TaskState.SUCCEEDED, TaskState.PENDING)
            hour.cancel()


async def test_a_timeout_ends_a_task_that_takes_longer(library: Library) -> None:
    with library():
        async with TaskScheduler() as scheduler:
            task = scheduler.task(timeout=0.02).schedule(anyio.sleep_forever)
            with anyio.fail_after(20):
                await task.wait()
    assert isinstance(task.exception, TimeoutError)


async def test_shutdown_ends(library: Library) -> None:
    with library():
        with anyio.fail_after(20):
            async with TaskScheduler(grace_period=0.05, shield_timeout=0.05) as scheduler:
                task = scheduler.task(shield=True).schedule(anyio.sleep_forever)
                await task.started.wait()
        assert task.state is TaskState.CANCELLED
        assert scheduler.report is not None
        assert 0.05 <= scheduler.report.duration < 20


async def test_time_that_leaps_starts_neither_delays_nor_timeouts(library: Library) -> None:
    async with TaskScheduler() as scheduler:
        with library() as frozen:
            delayed = scheduler.task(delay=3600).schedule(year)
            running = scheduler.task(timeout=3600).schedule(year)
            leap = frozen.shift if hasattr(frozen, "shift") else frozen.tick
            leap(datetime.timedelta(days=1))
            assert await running == 2001
            assert delayed.state is TaskState.PENDING
            delayed.cancel()


async def test_periodic_tasks_follow_the_clock_that_they_are_about(library: Library) -> None:
    """An interval is real time; a cron expression is about the time of the system, which is what is frozen."""
    ran: list[int] = []

    async def count() -> None:
        ran.append(1)

    with library():
        async with TaskScheduler() as scheduler:
            interval = scheduler.periodic(every(seconds=0.02)).schedule(count)
            night = scheduler.periodic(cron("0 3 * * *")).task(name="night").schedule(count)
            with anyio.fail_after(20):
                while len(ran) < 2:
                    await anyio.sleep(0.01)
            assert interval.next_at is not None
            assert night.next_at == datetime.datetime(2001, 2, 4, 3, tzinfo=datetime.UTC)


async def test_ages_do_not_come_from_the_frozen_time(library: Library) -> None:
    async with TaskScheduler() as scheduler:
        task = scheduler.task(delay=3600).schedule(year)
        with library():
            assert 0 <= task.age < 60
        task.cancel()
