"""How an observer of the whole process finds the tasks of one scheduler."""

import pytest
from tasks_core import TaskPhase, TaskScheduler

pytestmark = pytest.mark.anyio


async def nothing() -> None: ...


async def test_a_scheduler_knows_its_tasks() -> None:
    async with TaskScheduler() as one, TaskScheduler() as other:
        direct = one.schedule(nothing)
        batched = TaskPhase(one, "after_commit").schedule(nothing)
        assert one.owns(direct)
        assert one.owns(batched)
        assert not other.owns(direct)
        assert not other.owns(batched)
        await direct
        assert one.owns(direct)
        batched.cancel()
