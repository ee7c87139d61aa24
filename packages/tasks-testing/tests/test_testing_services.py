"""Services and periodic tasks under the recorder: apart from tasks, and seen by what they schedule."""

from __future__ import annotations

import anyio
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from tasks_core import TaskRegistry, TaskScheduler, current_scheduler, every
from tasks_fastapi import add_tasks
from tasks_testing import VirtualClock, call, record_tasks

pytestmark = pytest.mark.anyio


async def work(number: int) -> None: ...


async def consume(numbers: anyio.abc.ObjectReceiveStream[int]) -> None:
    async for number in numbers:
        current_scheduler().schedule(work, number)


async def clean_up() -> None: ...


async def test_a_service_is_no_task_and_what_it_schedules_is() -> None:
    send, receive = anyio.create_memory_object_stream[int](10)
    with record_tasks(strict=True) as recorder, send, receive:
        async with TaskScheduler() as scheduler:
            scheduler.service(consume, receive)
            await send.send(1)
            await anyio.wait_all_tasks_blocked()
            await recorder.adrain()  # which does not wait for the service
            recorder.assert_ran(call(work, 1), times=1)
            recorder.assert_not_scheduled(consume)
            assert len(recorder) == 1


async def test_virtual_time_brings_the_runs_of_a_periodic_task() -> None:
    with record_tasks(virtual_time=True) as recorder:
        async with TaskScheduler() as scheduler:
            periodic = scheduler.periodic(every(minutes=10)).schedule(clean_up)
            await recorder.adrain()
            assert recorder.clock.now == 0
            await recorder.clock.aadvance(3600)
            recorder.assert_ran(clean_up, times=6)
            assert [task.phase for task in recorder] == ["periodic"] * 6
            assert "  periodic        #1 clean_up()  scheduled" in recorder.timeline()
            periodic.cancel()


@pytest.mark.parametrize("add_first", [True, False])
async def test_time_waits_for_a_timer_that_has_not_begun(add_first: bool) -> None:
    with record_tasks(virtual_time=True) as recorder:
        scheduler = TaskScheduler()
        if add_first:
            scheduler.periodic(every(minutes=1)).schedule(clean_up)
        async with scheduler:
            if not add_first:
                scheduler.periodic(every(minutes=1)).schedule(clean_up)
            await recorder.clock.aadvance(180)
            recorder.assert_ran(clean_up, times=3)


async def test_a_virtual_clock_waits_for_a_timer_that_has_not_begun() -> None:
    runs: list[float] = []
    clock = VirtualClock()
    async with TaskScheduler(clock=clock) as scheduler:
        scheduler.periodic(every(minutes=1)).schedule(lambda: runs.append(clock.now()))
        await clock.aadvance(180)
        assert runs == [60, 120, 180]


async def test_time_does_not_wait_for_a_timer_of_another_clock() -> None:
    clock = VirtualClock(auto=False)
    async with TaskScheduler() as scheduler:
        scheduler.periodic(every(minutes=1)).schedule(clean_up)
        await clock.aadvance(180)
        assert clock.now() == 180


async def test_time_does_not_wait_for_a_timer_that_was_cancelled_before_it_began() -> None:
    with record_tasks(virtual_time=True) as recorder:
        async with TaskScheduler() as scheduler:
            scheduler.periodic(every(minutes=1)).schedule(clean_up).cancel()
            await recorder.clock.aadvance(180)
            assert len(recorder) == 0


async def test_time_waits_for_timers_once_however_often_the_scheduler_is_resumed() -> None:
    with record_tasks(virtual_time=True) as recorder:
        async with TaskScheduler() as scheduler:
            scheduler.periodic(every(minutes=1)).schedule(clean_up)
            await recorder.clock.aadvance(60)
            scheduler.resume()
            await recorder.clock.aadvance(60)
            recorder.assert_ran(clean_up, times=2)


@pytest.mark.parametrize("run", range(20))
def test_time_waits_for_the_timers_of_an_app_that_has_just_started(run: int) -> None:
    app = FastAPI()
    add_tasks(app, registry=(registry := TaskRegistry()))
    registry.periodic(every(hours=1))(clean_up)
    with record_tasks(virtual_time=True) as recorder, TestClient(app):
        recorder.clock.advance(7200)
        recorder.assert_ran(clean_up, times=2)


@pytest.mark.parametrize(
    "virtual, how",
    [(True, r"tasks_recorder\.clock\.advance\(seconds\)"), (False, r"in virtual time, clock\.advance\(seconds\)")],
)
async def test_a_missing_run_of_a_periodic_task_is_explained(virtual: bool, how: str) -> None:
    with record_tasks(virtual_time=virtual) as recorder:
        async with TaskScheduler() as scheduler:
            scheduler.periodic(every(hours=1)).schedule(clean_up)
            with pytest.raises(
                AssertionError, match=rf"no run of a periodic task \('clean_up'\) was due; {how} brings"
            ):
                recorder.assert_ran(clean_up)
