"""The durable tasks of a phase: one submit, stored together or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anyio
import core_durable_functions as functions
import pytest
from core_durable_functions import forget, note
from core_engine import ListEngine
from tasks_core import DurablePhase, Receipt, TaskScheduler, TaskState
from tasks_core.engines import DurableCall, EngineUnavailableError

__all__ = ("forget",)

pytestmark = pytest.mark.anyio


class BatchListEngine(ListEngine):
    """Stores several calls at once."""

    async def submit_many(self, calls: Sequence[DurableCall], /) -> list[Receipt[Any]]:
        self.log.append(f"asked {len(calls)} at once")
        if self.down:
            raise EngineUnavailableError("the list is away")
        self.calls += calls
        return [Receipt(self.name, call.idempotency_key, call.idempotency_key) for call in calls]


async def test_tasks_of_a_phase_are_one_submit() -> None:
    engine = BatchListEngine()
    async with TaskScheduler(engine=engine) as scheduler:
        phase = DurablePhase(scheduler, "after", submit_on="submit")
        tasks = [phase.schedule(note, str(number)) for number in range(4)]
        tasks[1].cancel()
        await phase.submit()
        assert [task.state for task in tasks].count(TaskState.SUCCEEDED) == 3
        assert [task.result().id for task in tasks if task.state is TaskState.SUCCEEDED] == [
            call.idempotency_key for call in engine.calls
        ]
    assert [call.args["text"] for call in engine.calls] == ["0", "2", "3"]
    assert engine.log == ["entered", "asked 3 at once", "left"]


async def test_one_task_is_no_batch() -> None:
    engine = BatchListEngine()
    async with TaskScheduler(engine=engine) as scheduler:
        phase = DurablePhase(scheduler, "after", submit_on="submit")
        phase.schedule(note, "x")
        await phase.submit()
    assert engine.log == ["entered", "asked core_durable_functions:note", "has core_durable_functions:note", "left"]


async def test_delays_of_a_batch_count_from_the_submit() -> None:
    engine = BatchListEngine()
    async with TaskScheduler(engine=engine) as scheduler:
        phase = DurablePhase(scheduler, "after", submit_on="submit")
        phase.task(delay=3600).schedule(note, "later")
        phase.schedule(note, "now")
        await phase.submit()
    assert [call.not_before is None for call in engine.calls] == [False, True]


async def test_all_fail_with_an_error_of_their_own() -> None:
    engine = BatchListEngine(down=True)
    async with TaskScheduler(engine=engine) as scheduler:
        phase = DurablePhase(scheduler, "after", submit_on="submit")
        tasks = [phase.schedule(note, str(number)) for number in range(3)]
        with pytest.raises(EngineUnavailableError, match="the list is away"):
            await phase.submit()
        assert len({id(task.exception) for task in tasks}) == 3
    assert engine.calls == []


async def test_all_run_in_memory_if_that_was_chosen() -> None:
    engine = BatchListEngine(down=True)
    async with TaskScheduler(engine=engine, engine_fallback="memory") as scheduler:
        phase = DurablePhase(scheduler, "after", submit_on="submit")
        for number in range(3):
            phase.schedule(note, str(number))
        await phase.submit()
        phase.open()
    assert sorted(functions.ran) == ["0", "1", "2"]


async def test_all_fail_with_what_the_engine_raised() -> None:
    class BrokenEngine(BatchListEngine):
        async def submit_many(self, calls: Sequence[DurableCall], /) -> list[Receipt[Any]]:
            raise OSError("no disk")

    async with TaskScheduler(engine=BrokenEngine()) as scheduler:
        phase = DurablePhase(scheduler, "after", submit_on="submit")
        tasks = [phase.schedule(note, str(number)) for number in range(3)]
        with pytest.raises(OSError, match="no disk"):
            await phase.submit()
        for task in tasks:
            await task.wait()
    assert [type(task.exception) for task in tasks] == [OSError, OSError, OSError]


async def test_a_task_that_is_cancelled_while_it_is_submitted_is_no_failure_of_the_phase() -> None:
    engine = ListEngine()
    engine.gate = anyio.Event()
    asked = anyio.Event()
    engine.on_submit = lambda _: asked.set()
    async with TaskScheduler(engine=engine) as scheduler, anyio.create_task_group() as group:
        phase = DurablePhase(scheduler, "after", submit_on="submit")
        task = phase.schedule(note, "x")
        group.start_soon(phase.submit)
        await asked.wait()
        task.cancel()
        await task.wait()
    assert task.state is TaskState.CANCELLED
    assert phase.submitted == "success"


async def test_a_phase_that_is_opened_again_has_the_first_outcome() -> None:
    engine = ListEngine()
    async with TaskScheduler(engine=engine) as scheduler:
        phase = DurablePhase(scheduler, "after", submit_on="submit")
        kept = phase.task(when="error").schedule(note, "x")
        phase.open("success")
        phase.open("error")
    assert phase.outcome == "success"
    assert kept.state is TaskState.DISCARDED
    assert engine.calls == []
