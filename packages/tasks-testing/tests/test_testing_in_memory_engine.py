"""What the engine in memory does beyond the contract of engines."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
from tasks_core import TaskScheduler, Worker, durable
from tasks_core.engines import DurableState
from tasks_testing import InMemoryEngine, TasksRecorder

pytestmark = pytest.mark.anyio

ran: list[str] = []
waiting: dict[str, anyio.Event] = {}
released: dict[str, anyio.Event] = {}


@durable(name="in-memory.note")
async def note(text: str) -> str:
    ran.append(text)
    return text.upper()


@durable(name="in-memory.wait")
async def wait(text: str) -> None:
    waiting[text].set()
    await released[text].wait()
    ran.append(text)


@pytest.fixture(autouse=True)
def nothing_ran() -> None:
    ran.clear()


@asynccontextmanager
async def working(engine: InMemoryEngine) -> AsyncIterator[None]:
    stop = anyio.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(Worker(engine).run, stop)
        yield
        stop.set()


async def test_retried_call_of_a_key_stands_in_line_again() -> None:
    engine = InMemoryEngine()
    async with TaskScheduler(engine=engine) as scheduler:
        keyed = scheduler.task(key="k", on_conflict="queue")
        first = await keyed.schedule(note, "first")
        second = await keyed.schedule(note, "second")
        assert await first.cancel()
        assert await engine.retry(first.id) == 1
        assert not (await keyed.schedule(note.configure(idempotency_key=first.idempotency_key), "first")).created
        async with working(engine):
            assert [await receipt.result() for receipt in (first, second)] == ["FIRST", "SECOND"]
        assert ran == ["second", "first"], "behind the calls that did not give up their place"
        other = await scheduler.task(key="k").schedule(note, "other")
        assert other.created, "nothing is left in line"


async def test_dry_run_of_cancel_counts_what_runs_and_cancels_nothing() -> None:
    engine = InMemoryEngine()
    waiting["x"], released["x"] = anyio.Event(), anyio.Event()
    async with TaskScheduler(engine=engine) as scheduler, working(engine):
        running = await scheduler.schedule(wait, "x")
        await waiting["x"].wait()
        later = await scheduler.task(delay=3600).schedule(note, "later")
        assert await engine.cancel(name=wait.name, dry_run=True) == 1
        assert await engine.cancel(later.id, dry_run=True) == 1
        assert (await later.status()).state is DurableState.PENDING
        released["x"].set()
        await running.result()
    assert ran == ["x"]


async def test_caller_may_wait_for_a_result_while_another_thread_runs_the_task(tasks_recorder: TasksRecorder) -> None:
    results: list[str] = []

    async def ask() -> None:
        results.append(await receipt.result())

    async with TaskScheduler() as scheduler, anyio.create_task_group() as group:
        receipt = await scheduler.schedule(note, "x")
        group.start_soon(ask)
        await anyio.wait_all_tasks_blocked()
        assert results == []
        await anyio.to_thread.run_sync(tasks_recorder.run_durable)
    assert results == ["X"]
