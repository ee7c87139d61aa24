"""A PostgreSQL that is away for a while, and comes back: what producers are told, and what workers do."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from math import nan

import anyio
import core_durable_functions as functions
import psycopg
import pytest
from core_durable_functions import forget, note, shielded
from core_postgres import Wire, ends, engine, postgres, queue, until, wire, working
from psycopg.conninfo import make_conninfo
from tasks_core import TaskScheduler
from tasks_core.engines import DurableCall, DurableState, EngineUnavailableError
from tasks_core.engines.procrastinate import ProcrastinateEngine

__all__ = ("engine", "forget", "postgres", "queue", "wire")

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"  # all that procrastinate and psycopg know


@pytest.fixture
async def producer(postgres: str, queue: str) -> AsyncIterator[TaskScheduler]:
    """Somebody who does not, and sees all the time what has become of tasks."""
    async with TaskScheduler(engine=ProcrastinateEngine(postgres, queue=queue, pool_size=2)) as scheduler:
        yield scheduler


async def test_worker_comes_back_by_itself(
    engine: ProcrastinateEngine,
    producer: TaskScheduler,
    wire: Wire,
    postgres: str,
    queue: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # Long: the watch over stalled tasks sees the database again before the task that has ended meanwhile is reported.
    monkeypatch.setattr("tasks_core.engines.procrastinate._reports.RECONNECT", 1.5)
    functions.waiting["x"], functions.released["x"] = anyio.Event(), anyio.Event()
    async with engine, working(engine):
        during = await producer.schedule(shielded, "x")
        await functions.waiting["x"].wait()
        await wire.cut()
        functions.released["x"].set()

        async def lost() -> bool:
            return "The worker lost its database" in caplog.text

        await until(lost)
        assert functions.ran == ["x"]
        assert (await during.status()).state is DurableState.RUNNING
        await until(lambda: is_stale(postgres, queue))
        await wire.mend()
        await ends(during, DurableState.SUCCEEDED)
        await ends(await producer.schedule(note, "after"), DurableState.SUCCEEDED)
    assert functions.ran == ["x", "after"]
    assert (await during.status()).attempts == 1


@asynccontextmanager
async def cut_off(engine: ProcrastinateEngine, producer: TaskScheduler, wire: Wire) -> AsyncIterator[None]:
    """A worker that has lost its database in the middle of a task; the task ends behind the block, and is run once."""
    functions.waiting["x"], functions.released["x"] = anyio.Event(), anyio.Event()
    async with engine, working(engine):
        receipt = await producer.schedule(shielded, "x")
        await functions.waiting["x"].wait()
        await wire.cut()
        try:
            yield
        finally:
            functions.released["x"].set()
        await ends(receipt, DurableState.SUCCEEDED)
    assert functions.ran[-1] == "x"
    assert functions.ran.count("x") == 1
    assert (await receipt.status()).attempts == 1


async def test_task_that_outlasts_an_outage_is_run_once(
    engine: ProcrastinateEngine,
    producer: TaskScheduler,
    wire: Wire,
    postgres: str,
    queue: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The worker that takes the place of one which has lost its database does not take that for dead."""
    monkeypatch.setattr("tasks_core.engines.procrastinate._reports.RECONNECT", 0.1)
    async with cut_off(engine, producer, wire):
        await until(lambda: is_stale(postgres, queue))
        await wire.mend()
        await ends(await producer.schedule(note, "after"), DurableState.SUCCEEDED)
        await until(lambda: is_alive(postgres, queue))


async def test_worker_that_has_just_started_gives_the_others_time(
    engine: ProcrastinateEngine, producer: TaskScheduler, wire: Wire, postgres: str, queue: str
) -> None:
    """The database was away for all of them: that nobody has shown a sign of life says nothing."""
    async with cut_off(engine, producer, wire):
        await be_silent(postgres, queue)
        async with working(ProcrastinateEngine(postgres, queue=queue, heartbeat=5.0)):
            await ends(await producer.schedule(note, "after"), DurableState.SUCCEEDED)
            await wire.mend()
            await until(lambda: is_alive(postgres, queue))


async def test_worker_that_is_stopped_meanwhile_does_not_wait_for_ever(
    engine: ProcrastinateEngine,
    producer: TaskScheduler,
    wire: Wire,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("tasks_core.engines.procrastinate._reports.RECONNECT", 0.1)
    monkeypatch.setattr("tasks_core.engines.procrastinate._reports.LAST_WORDS", 0.3)
    functions.waiting["x"], functions.released["x"] = anyio.Event(), anyio.Event()
    with anyio.fail_after(60):
        async with engine, working(engine) as stop:
            receipt = await producer.schedule(shielded, "x")
            await functions.waiting["x"].wait()
            await wire.cut()
            functions.released["x"].set()
            stop.set()
    assert functions.ran == ["x"]
    assert (await receipt.status()).state is DurableState.RUNNING  # until somebody misses the worker
    [line] = [line for line in caplog.messages if "has ended" in line]
    assert line == (
        f"Task '{shielded.name}', key {receipt.idempotency_key}, job {receipt.id}, queue default, attempt 1, "
        "has ended and is delivered again: "
        "its end could not be stored (OperationalError)"
    )


async def test_producer_comes_back_by_itself(
    engine: ProcrastinateEngine, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks_core._durable.task._TIME_LIMIT", 0.5)
    async with TaskScheduler(engine=engine) as scheduler:
        await scheduler.schedule(note, "before")
        await wire.cut()
        with pytest.raises(EngineUnavailableError, match="did not acknowledge"):
            await scheduler.schedule(note, "refused")
        await wire.mend()

        async def accepted() -> bool:
            try:
                await scheduler.schedule(note, "after")
            except EngineUnavailableError:
                return False
            return True

        await until(accepted)


async def test_server_that_ends_in_the_middle_of_a_call(producer: TaskScheduler, postgres: str) -> None:
    receipt = await producer.schedule(note, "x")

    async def submit() -> None:
        await producer.schedule(note, "y")

    async def is_refused(call: Callable[[], Awaitable[object]]) -> None:
        with pytest.raises(EngineUnavailableError, match="PostgreSQL did not acknowledge: AdminShutdown"):
            await call()

    async with await psycopg.AsyncConnection.connect(postgres) as other, anyio.create_task_group() as group:
        await other.execute("LOCK TABLE procrastinate_jobs IN ACCESS EXCLUSIVE MODE")
        group.start_soon(is_refused, receipt.status)
        group.start_soon(is_refused, submit)
        ended = 0
        with anyio.fail_after(30):
            while ended < 2:
                ended += await end_who_waits(postgres)


@asynccontextmanager
async def database(postgres: str) -> AsyncIterator[tuple[str, psycopg.AsyncConnection[object]]]:
    """A database for one test, and a connection to another one that may change it."""
    async with await psycopg.AsyncConnection.connect(postgres, autocommit=True) as connection:
        await connection.execute("CREATE DATABASE works")
        try:
            yield make_conninfo(postgres, dbname="works"), connection
        finally:
            await connection.execute("DROP DATABASE works WITH (FORCE)")


async def test_worker_that_fails_starts_again(
    postgres: str, queue: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody works at the tables: this is no outage, and no reason to end either."""
    monkeypatch.setattr("tasks_core.engines.procrastinate._reports.RECONNECT", 0.1)

    async def failed() -> bool:
        return "The worker cannot claim tasks, and tries again" in caplog.text

    async with database(postgres) as (address, _):
        engine = ProcrastinateEngine(address, queue=queue, pool_size=2, heartbeat=0.2)
        async with (
            engine,
            working(engine),
            await psycopg.AsyncConnection.connect(address, autocommit=True) as works,
        ):
            await works.execute("ALTER TABLE procrastinate_jobs RENAME worker_id TO gone")
            receipt = await engine.submit(DurableCall(note.name, {"text": "x"}, "k"))
            await until(failed)
            await works.execute("ALTER TABLE procrastinate_jobs RENAME gone TO worker_id")
            await ends(receipt, DurableState.SUCCEEDED)


async def test_server_that_only_reads_is_away(
    postgres: str, queue: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It has become a standby, and its successor is not known yet."""
    monkeypatch.setattr("tasks_core.engines.procrastinate._reports.RECONNECT", 0.1)
    monkeypatch.setattr("tasks_core.engines.procrastinate._work.POLL", 0.1)
    functions.waiting["x"], functions.released["x"] = anyio.Event(), anyio.Event()

    async def lost() -> bool:
        return "The worker lost its database (ReadOnlySqlTransaction)" in caplog.text

    async with database(postgres) as (address, connection):

        async def change(setting: str) -> None:
            await connection.execute(f"ALTER DATABASE works {setting}".encode())
            await connection.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = 'works'"
            )

        engine = ProcrastinateEngine(address, queue=queue, pool_size=2, heartbeat=0.2)
        async with engine, working(engine):
            receipt = await engine.submit(DurableCall(shielded.name, {"path": "x"}, "k"))
            await functions.waiting["x"].wait()
            await change("SET default_transaction_read_only = on")
            functions.released["x"].set()
            await until(lost)
            await change("RESET default_transaction_read_only")
            await ends(receipt, DurableState.SUCCEEDED)
            assert (await receipt.status()).attempts == 1


async def is_stale(address: str, queue: str) -> bool:
    """Whether a worker that runs a task of the queue has missed so many heartbeats that it is taken for dead."""
    return await silence(address, queue) > 1


async def is_alive(address: str, queue: str) -> bool:
    """Whether it has not."""
    return await silence(address, queue) < 0.8


async def silence(address: str, queue: str) -> float:
    """Return the seconds since the last heartbeat of the worker that runs a task of the queue."""
    async with await psycopg.AsyncConnection.connect(address) as connection:
        cursor = await connection.execute(
            "SELECT extract(epoch from now() - last_heartbeat)::float FROM procrastinate_jobs AS job"
            " JOIN procrastinate_workers AS worker ON worker.id = worker_id WHERE queue_name = %s AND status = 'doing'",
            [queue],
        )
        row = await cursor.fetchone()
    return nan if row is None else float(row[0])


async def be_silent(address: str, queue: str) -> None:
    """Let an hour go by since the last heartbeat of the worker that runs a task of the queue."""
    async with await psycopg.AsyncConnection.connect(address) as connection:
        await connection.execute(
            "UPDATE procrastinate_workers SET last_heartbeat = now() - interval '1 hour'"
            " WHERE id IN (SELECT worker_id FROM procrastinate_jobs WHERE queue_name = %s AND status = 'doing')",
            [queue],
        )


async def end_who_waits(address: str) -> int:
    """Terminate the server processes that wait for a lock, and return how many there were."""
    async with await psycopg.AsyncConnection.connect(address, autocommit=True) as connection:
        cursor = await connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        )
        return len(await cursor.fetchall())
