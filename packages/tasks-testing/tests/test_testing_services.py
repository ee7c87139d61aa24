"""Services and periodic tasks under the recorder: apart from tasks, and seen by what they schedule."""

from __future__ import annotations

import anyio
import pytest
from tasks_core import TaskScheduler, current_scheduler, every
from tasks_testing import call, record_tasks

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
            await anyio.wait_all_tasks_blocked()  # until its timer sleeps, which is no task
            await recorder.adrain()
            assert recorder.clock.now == 0
            await recorder.clock.aadvance(3600)
            recorder.assert_ran(clean_up, times=6)
            assert [task.phase for task in recorder] == ["periodic"] * 6
            assert "  periodic        #1 clean_up()  scheduled" in recorder.timeline()
            periodic.cancel()
