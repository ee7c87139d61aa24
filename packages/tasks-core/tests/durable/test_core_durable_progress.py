"""The progress of a durable task is there for its next attempt."""

from __future__ import annotations

import anyio
import core_durable_functions as functions
import pytest
from core_durable_functions import forget
from core_postgres import ends, execute, postgres, queue, working
from tasks_core import DurableContext, RetryPolicy, TaskScheduler, durable, durable_context, report
from tasks_core.engines import DurableState, Json
from tasks_core.engines.procrastinate import ProcrastinateEngine
from tasks_testing import TasksRecorder

__all__ = ("forget", "postgres", "queue")

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def engine(postgres: str, queue: str) -> ProcrastinateEngine:
    return ProcrastinateEngine(postgres, queue=queue, pool_size=2)


@durable(on_error=lambda _task, _error: functions.ran.append("failed"), retry=None)
async def goes_on(pages: int) -> None:
    context = durable_context()
    functions.ran.append(context.progress)
    report({"ignored": True})
    value: Json = {"pages": [pages]}
    await context.report_progress(value)
    assert isinstance(value, dict)
    value["pages"] = "changed later"
    functions.ran.append(durable_context().progress)
    if pages:
        raise ValueError


async def test_what_was_reported_last_is_what_stays(engine: ProcrastinateEngine) -> None:
    """Values of `report()` are stored in batches, and one that comes before must not be stored after the others."""
    async with TaskScheduler(engine=engine) as scheduler, working(engine):
        receipt = await scheduler.schedule(goes_on, 3)
        await ends(receipt, DurableState.FAILED)
        assert (await receipt.status()).progress == {"pages": [3]}
        assert await engine.retry(receipt.id) == 1
        await ends(receipt, DurableState.FAILED)
    assert functions.ran == [None, {"pages": [3]}, "failed", {"pages": [3]}, {"pages": [3]}, "failed"]


@durable
async def loses_its_call(name: str) -> None:
    functions.waiting[name].set()
    await functions.released[name].wait()
    await durable_context().report_progress("of a worker that seemed dead")
    functions.ran.append("ended")


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_worker_that_has_lost_the_task_stores_no_progress(engine: ProcrastinateEngine, postgres: str) -> None:
    functions.waiting["x"], functions.released["x"] = anyio.Event(), anyio.Event()
    async with TaskScheduler(engine=engine) as scheduler, working(engine):
        receipt = await scheduler.schedule(loses_its_call, "x")
        await functions.waiting["x"].wait()
        # As another worker does that takes the task over.
        await execute(postgres, "UPDATE procrastinate_jobs SET attempts = attempts + 1 WHERE id = %s", int(receipt.id))
        functions.released["x"].set()
        with anyio.fail_after(30):
            while functions.ran != ["ended"]:
                await anyio.sleep(0.01)
        assert (await receipt.status()).progress is None


@durable(retry=RetryPolicy(attempts=2, backoff=0.0))
async def remembers() -> None:
    context = durable_context()
    functions.ran.append(context.progress)
    report({"page": context.attempt})
    functions.ran.append(context.progress)
    if context.attempt == 1:
        await context.report_progress([1.5, None])
        raise ConnectionError


async def test_in_memory_it_is_kept_with_the_task() -> None:
    async with TaskScheduler(without_engine="memory") as scheduler:
        receipt = await scheduler.schedule(remembers)
        await scheduler.idle()
        assert (await receipt.status()).progress == {"page": 2}
    assert functions.ran == [None, {"page": 1}, [1.5, None], {"page": 2}]


async def test_a_test_sees_what_the_next_attempt_reads(tasks_recorder: TasksRecorder) -> None:
    async with TaskScheduler() as scheduler:
        receipt = await scheduler.schedule(remembers)
        await tasks_recorder.arun_durable()
        assert (await receipt.status()).progress == {"page": 2}
    assert functions.ran == [None, {"page": 1}, [1.5, None], {"page": 2}]


async def test_a_context_that_a_test_makes_stores_nothing() -> None:
    context = DurableContext("name", "key", 1, {}, lambda: None)
    await context.report_progress(1)
    assert context.progress is None
