"""Answers of PostgreSQL that are lost with their connection: it has done what a worker wanted, and nobody is told."""

from __future__ import annotations

import gc
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import anyio
import core_durable_functions as functions
import psycopg
import pytest
from core_durable_functions import forget, note, shielded
from core_postgres import Wire, ends, engine, postgres, queue, until, wire, working
from psycopg.conninfo import make_conninfo
from tasks_core import RetryPolicy, TaskScheduler, Worker, durable, durable_context
from tasks_core.engines import DurableCall, DurableState
from tasks_core.engines.procrastinate import ProcrastinateEngine

__all__ = ("engine", "forget", "postgres", "queue", "wire")

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"  # all that procrastinate and psycopg know


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers look again soon."""
    monkeypatch.setattr("tasks_core.engines.procrastinate._reports.RECONNECT", 0.1)
    monkeypatch.setattr("tasks_core.engines.procrastinate._work.POLL", 0.1)


@pytest.fixture
def direct(postgres: str, queue: str) -> ProcrastinateEngine:
    """An engine that does not."""
    return ProcrastinateEngine(postgres, queue=queue, pool_size=2, heartbeat=0.2)


@pytest.fixture
async def producer(direct: ProcrastinateEngine) -> AsyncIterator[TaskScheduler]:
    async with TaskScheduler(engine=direct) as scheduler:
        yield scheduler


def complaints(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged about reports; by asyncio, about an exception that nobody has looked at."""
    gc.collect()
    return [line for name, _, line in caplog.record_tuples if name == "asyncio" or "could not be stored" in line]


@durable(retry=RetryPolicy(attempts=3, backoff=0.0))
async def always_fails() -> None:
    functions.ran.append(durable_context().attempt)
    raise ConnectionError


@durable(retry=RetryPolicy(attempts=3, backoff=0.0))
async def waits_in_its_second_attempt() -> None:
    attempt = durable_context().attempt
    functions.ran.append(attempt)
    if attempt == 1:
        raise ConnectionError
    functions.waiting["x"].set()
    await functions.released["x"].wait()


async def test_of_a_task_that_has_ended(
    engine: ProcrastinateEngine, producer: TaskScheduler, wire: Wire, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    async with engine, working(engine):
        wire.lose(b"WITH reported AS")
        receipt = await producer.schedule(note, "x")
        await wire.lost.wait()
        await ends(await producer.schedule(note, "y"), DurableState.SUCCEEDED)
        assert (await receipt.status()).state is DurableState.SUCCEEDED
    assert functions.ran == ["x", "y"]
    assert complaints(caplog) == []


async def test_of_an_attempt_that_is_counted(engine: ProcrastinateEngine, producer: TaskScheduler, wire: Wire) -> None:
    """Counted once, or the task would have one attempt less."""
    async with engine, working(engine):
        wire.lose(b"WITH reported AS")
        receipt = await producer.schedule(always_fails)
        await ends(receipt, DurableState.FAILED)
    assert wire.lost.is_set()
    assert functions.ran == [1, 2, 3]


async def test_of_a_task_that_is_to_be_tried_again(
    engine: ProcrastinateEngine,
    direct: ProcrastinateEngine,
    producer: TaskScheduler,
    wire: Wire,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """When the report is repeated another worker has the task, and keeps it."""
    caplog.set_level(logging.WARNING)
    functions.waiting["x"], functions.released["x"] = anyio.Event(), anyio.Event()
    stop, stopped = anyio.Event(), anyio.Event()

    async def first_worker() -> None:
        await Worker(engine).run(stop)
        stopped.set()

    async with direct, engine, anyio.create_task_group() as group:
        wire.lose(b"WITH reported AS", alone=True)  # or the first worker might claim the second attempt
        group.start_soon(first_worker)
        receipt = await producer.schedule(waits_in_its_second_attempt)
        await wire.lost.wait()
        await wire.cut()
        async with working(direct):
            await functions.waiting["x"].wait()
            await wire.mend()
            stop.set()
            await stopped.wait()  # it has said all that it had to say
            assert (await receipt.status()).state is DurableState.RUNNING
            functions.released["x"].set()
            await ends(receipt, DurableState.SUCCEEDED)
    assert functions.ran == [1, 2]
    assert complaints(caplog) == []


async def test_of_a_task_that_a_worker_was_given(
    engine: ProcrastinateEngine, producer: TaskScheduler, wire: Wire
) -> None:
    """It does not wait for the tasks that the worker runs already."""
    functions.waiting["x"], functions.released["x"] = anyio.Event(), anyio.Event()
    async with engine, working(engine):
        running = await producer.schedule(shielded, "x")
        await functions.waiting["x"].wait()
        wire.lose(b"only this one")
        receipt = await producer.schedule(note, "only this one")
        await wire.lost.wait()
        await ends(receipt, DurableState.SUCCEEDED)
        assert (await running.status()).state is DurableState.RUNNING
        functions.released["x"].set()
        await ends(running, DurableState.SUCCEEDED)
    assert functions.ran == ["only this one", "x"]


async def test_of_many_when_connections_are_terminated_all_the_time(
    direct: ProcrastinateEngine, postgres: str, queue: str
) -> None:
    """Claims and reports are batches, whose answers are lost together: each task still runs once."""
    number = 200
    address = make_conninfo(postgres, application_name=queue)
    engines = [ProcrastinateEngine(address, queue=queue, pool_size=1, heartbeat=0.2) for _ in range(2)]
    calls = [DurableCall(pauses.name, {"number": n}, f"{queue} {n}") for n in range(number)]
    terminated = 0

    async def all_ended() -> bool:
        nonlocal terminated
        async with await psycopg.AsyncConnection.connect(postgres, autocommit=True) as other:
            cursor = await other.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s", [queue]
            )
            terminated += len(await cursor.fetchall())
            cursor = await other.execute(
                "SELECT count(*) FROM procrastinate_jobs WHERE queue_name = %s AND status = 'succeeded'", [queue]
            )
            [done] = await cursor.fetchone() or [0]
        await anyio.sleep(0.1)
        return bool(done == number)

    async with direct:
        await direct.submit_many(calls)
        async with AsyncExitStack() as stack:
            for engine in engines:
                await stack.enter_async_context(engine)
                await stack.enter_async_context(working(engine, concurrency=16, grace_period=10.0))
            await until(all_ended)
    assert terminated > 10
    assert sorted(functions.ran) == list(range(number))


async def test_of_batches(engine: ProcrastinateEngine, direct: ProcrastinateEngine, wire: Wire, queue: str) -> None:
    """Again and again, the database has claimed a batch, or stored a batch of reports, and the answer is lost."""
    lost = {b"SET status = 'doing'": 0, b"WITH reported AS": 0}
    number = 150
    calls = [DurableCall(pauses.name, {"number": n}, f"{queue} {n}") for n in range(number)]
    async with direct, engine, working(engine, concurrency=8, grace_period=10.0):
        receipts = await direct.submit_many(calls)
        while len(functions.ran) < number:
            for text in lost:
                wire.lost.clear()
                wire.lose(text)
                with anyio.move_on_after(0.3):
                    await wire.lost.wait()
                    lost[text] += 1
        wire.lose(b"nothing")
        for receipt in receipts:
            await ends(receipt, DurableState.SUCCEEDED)
    assert min(lost.values()) >= 2
    assert sorted(functions.ran) == list(range(number))


@durable
async def pauses(number: int) -> None:
    await anyio.sleep(0.02)
    functions.ran.append(number)
