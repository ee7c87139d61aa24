"""Durable tasks that come into a batch that does not want them, or come too late to be wanted."""

from __future__ import annotations

from typing import Literal

import anyio
import pytest
from core_durable_functions import note
from core_engine import ListEngine
from core_support import in_thread
from tasks_core import DurablePhase, DurableTask, TaskScheduler, TaskState

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("submitted", [False, True])
@pytest.mark.parametrize("hand_over", ["open", "submit", "schedule"])
async def test_a_discarded_batch_hands_nothing_over(
    hand_over: Literal["open", "submit", "schedule"], submitted: bool
) -> None:
    engine = ListEngine()
    async with TaskScheduler(engine=engine) as scheduler:
        batch = DurablePhase(scheduler, "never", submit_on=hand_over)
        if submitted:
            await batch.submit()
        batch.discard("it was rolled back")
        task = batch.schedule(note, "x")
        await anyio.wait_all_tasks_blocked()
        assert (task.state, task.reason) == (TaskState.DISCARDED, "it was rolled back")
    assert engine.calls == []


async def test_what_is_cancelled_before_the_loop_hears_of_it_is_not_waited_for() -> None:
    engine = ListEngine()
    async with TaskScheduler(engine=engine) as scheduler:
        batch = DurablePhase(scheduler, "after", submit_on="submit")
        task: DurableTask = in_thread(lambda: batch.schedule(note, "x"))
        task.cancel()
        await anyio.wait_all_tasks_blocked()
        assert not batch.unsubmitted
        assert repr(batch) == "<DurablePhase after waiting, 0 tasks>"
        await batch.submit()
        assert task.state is TaskState.CANCELLED
    assert engine.calls == []
