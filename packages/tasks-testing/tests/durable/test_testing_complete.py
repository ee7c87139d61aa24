"""`durable_context().complete(session)` with the engine in memory and with the recorder."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import psycopg
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import Session
from sqlalchemy.pool import StaticPool
from tasks_core import Receipt, RetryPolicy, TaskScheduler, Worker, durable, durable_context
from tasks_core.engines import DurableState, DurableTaskTakenOverError, EngineCapabilityError
from tasks_testing import InMemoryEngine, TasksRecorder

pytestmark = pytest.mark.anyio

body: Callable[[], Awaitable[str | None]]
plain_body: Callable[[], str | None]
attempts: list[int] = []


@durable(name="testing_complete.run", retry=RetryPolicy(attempts=3, backoff=0.0))
async def run() -> str | None:
    attempts.append(durable_context().attempt)
    return await body()


@durable(name="testing_complete.run_plain", retry=RetryPolicy(attempts=3, backoff=0.0))
def run_plain() -> str | None:
    attempts.append(durable_context().attempt)
    return plain_body()


@pytest.fixture(autouse=True)
def forget() -> None:
    attempts.clear()


@pytest.fixture
def session() -> Iterator[Session]:
    engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    with Session(engine) as session:
        yield session
    engine.dispose()


class FakeSession:
    async def commit(self) -> None: ...


@asynccontextmanager
async def worked(engine: InMemoryEngine, function: Any) -> AsyncIterator[Receipt[Any]]:
    """The receipt of a call that a worker runs; the worker is stopped at the end of the block."""
    stop = anyio.Event()
    async with TaskScheduler(engine=engine) as scheduler, anyio.create_task_group() as group:
        receipt = await scheduler.schedule(function)
        group.start_soon(Worker(engine).run, stop)
        with anyio.fail_after(30):
            yield receipt
        stop.set()


async def test_the_commit_ends_the_task(session: Session) -> None:
    global plain_body

    def complete() -> None:
        session.execute(text("SELECT 1"))
        durable_context().complete(session, result="given")
        session.commit()
        raise ValueError("after the commit")

    plain_body = complete
    async with worked(InMemoryEngine(), run_plain) as receipt:
        assert await receipt.result() == "given"
        assert (await receipt.status()).errors == ()
    assert attempts == [1]


async def test_a_rollback_leaves_the_end_to_the_function(session: Session) -> None:
    global plain_body

    def roll_back() -> str:
        durable_context().complete(session)
        session.execute(text("SELECT 1"))
        with pytest.raises(DurableTaskTakenOverError, match="the end of the task is stored already"):
            durable_context().complete(session)
        session.rollback()
        durable_context().complete(session)
        session.execute(text("SELECT 1"))
        session.rollback()
        if durable_context().attempt == 1:
            raise ConnectionError
        return "returned"

    plain_body = roll_back
    async with worked(InMemoryEngine(), run_plain) as receipt:
        assert await receipt.result() == "returned"
    assert attempts == [1, 2]


async def test_a_cancellation_after_the_commit_changes_nothing() -> None:
    global body

    async def complete_and_wait() -> None:
        await durable_context().complete(FakeSession(), result="given")
        reached.set()
        await anyio.sleep_forever()

    body, reached = complete_and_wait, anyio.Event()
    async with worked(InMemoryEngine(), run) as receipt:
        await reached.wait()
        await receipt.cancel()
        assert await receipt.result() == "given"
        assert (await receipt.status()).state is DurableState.SUCCEEDED


async def test_an_attempt_that_is_over_completes_nothing() -> None:
    global body

    async def keep() -> None:
        contexts.append(durable_context())

    contexts: list[Any] = []
    body = keep
    async with worked(InMemoryEngine(), run) as receipt:
        await receipt.result()
        with pytest.raises(DurableTaskTakenOverError, match="this attempt is over"):
            await contexts[0].complete(FakeSession())


async def test_connections_are_refused() -> None:
    global body

    async def complete() -> str:
        context = durable_context()
        refused = []
        for cls in (AsyncConnection, psycopg.AsyncConnection):
            connection: Any = cls.__new__(cls)
            with pytest.raises(EngineCapabilityError, match="whose commit an engine in memory does not hear of") as e:
                await context.complete(connection)
            refused.append(str(e.value))
        return refused[1]

    body = complete
    async with worked(InMemoryEngine(), run) as receipt:
        assert (await receipt.result()).startswith("complete() was given a psycopg.AsyncConnection, whose commit")


async def test_the_recorder_shows_a_task_that_has_completed_as_succeeded(tasks_recorder: TasksRecorder) -> None:
    global body

    async def complete() -> None:
        await durable_context().complete(FakeSession())
        raise ValueError("after the commit")

    body = complete
    async with TaskScheduler() as scheduler:
        receipt = await scheduler.schedule(run)
        await tasks_recorder.arun_durable()
        assert (await receipt.status()).state is DurableState.SUCCEEDED
    assert attempts == [1]
    assert [task.state for task in tasks_recorder.durable_runs] == ["succeeded"]
