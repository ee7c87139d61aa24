"""Durable tasks on a real PostgreSQL."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import core_durable_functions as functions
import psycopg
import pytest
from core_durable_functions import flaky, forget, hands_on, note, plain, shielded, unshielded
from core_postgres import ends, postgres, queue, until, until_logged, working
from psycopg.rows import dict_row
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from tasks_core import DurablePhase, Provided, Receipt, TaskScheduler, durable, durable_context
from tasks_core.engines import (
    DurableCall,
    DurableState,
    EngineCapabilityError,
    EngineError,
    EngineSchemaError,
    EngineUnavailableError,
)
from tasks_core.engines.procrastinate import ProcrastinateEngine
from tasks_core.exceptions import DurableTaskFailedError

__all__ = ("forget", "postgres", "queue")

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"  # all that procrastinate and psycopg know


@pytest.fixture
def engine(postgres: str, queue: str) -> ProcrastinateEngine:
    return ProcrastinateEngine(postgres, queue=queue, pool_size=4, heartbeat=0.2)


async def rows(address: str, queue: str) -> list[dict[str, Any]]:
    async with await psycopg.AsyncConnection.connect(address, row_factory=dict_row) as connection:
        cursor = await connection.execute(
            "SELECT * FROM procrastinate_jobs WHERE queue_name = %s AND task_name = 'tasks_core.run' ORDER BY id",
            [queue],
        )
        return await cursor.fetchall()


@pytest.mark.parametrize("receipt_id", ["abc", "", "-1", "1.5", "\u0661", "9" * 19])
async def test_an_id_that_no_receipt_has_is_unknown(receipt_id: str) -> None:
    """A client may ask for any text; the database is not asked for one that is no number of a row."""
    status = await ProcrastinateEngine("postgresql://nowhere.invalid/none").status(receipt_id)
    assert status.state is DurableState.UNKNOWN


# ---- the way of a task ----


async def test_acknowledged_task_is_run_by_a_worker(engine: ProcrastinateEngine) -> None:
    async with TaskScheduler(engine=engine) as scheduler:
        receipt = await scheduler.schedule(note, "hello")
        assert (await receipt.status()).state is DurableState.PENDING
        async with working(engine):
            await ends(receipt, DurableState.SUCCEEDED)
        assert (await receipt.status()).attempts == 1
    assert functions.ran == ["hello"]
    assert functions.contexts[0].idempotency_key == receipt.idempotency_key


async def test_task_hands_on_to_the_next(engine: ProcrastinateEngine) -> None:
    async with TaskScheduler(engine=engine) as scheduler:
        receipt = await scheduler.schedule(hands_on, "x")
        async with working(engine):

            async def both() -> bool:
                return len(functions.ran) == 2

            await until(both)
            await ends(receipt, DurableState.SUCCEEDED)
    assert functions.contexts[0].idempotency_key == f"{receipt.idempotency_key}-note"


async def test_retries_are_deliveries(engine: ProcrastinateEngine) -> None:
    async with TaskScheduler(engine=engine) as scheduler:
        receipt = await scheduler.schedule(flaky, 2)
        hopeless = await scheduler.schedule(flaky, 9)
        async with working(engine):
            await ends(receipt, DurableState.SUCCEEDED)
            await ends(hopeless, DurableState.FAILED)
        assert (await receipt.status()).attempts == 3
    assert functions.reported == [(flaky.name, 3, "ConnectionResetError")]


async def test_arguments_are_in_no_log_line(engine: ProcrastinateEngine, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with TaskScheduler(engine=engine) as scheduler, working(engine):
        done = await scheduler.schedule(note, "SECRET")
        failed = await scheduler.schedule(flaky, 9, "KeyError")
        await ends(done, DurableState.SUCCEEDED)
        await ends(failed, DurableState.FAILED)
    told = [record for record in caplog.records if record.name.startswith(("tasks_core", "procrastinate"))]
    assert told
    assert not [record for record in told if "SECRET" in record.getMessage() or "SECRET" in str(record.__dict__)]


async def test_headers_arrive(engine: ProcrastinateEngine) -> None:
    headers = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "x-request-id": "r-7"}
    async with TaskScheduler(engine=engine), working(engine):
        receipt = await engine.submit(DurableCall(note.name, {"text": "x"}, "k", headers=headers))
        await ends(receipt, DurableState.SUCCEEDED)
    assert functions.contexts[0].headers == headers


async def test_delay_is_for_the_engine(engine: ProcrastinateEngine, postgres: str, queue: str) -> None:
    async with TaskScheduler(engine=engine) as scheduler:
        receipt = await scheduler.task(delay=3600).schedule(note, "later")
        async with working(engine):
            await ends(await scheduler.schedule(note, "now"), DurableState.SUCCEEDED)
        assert (await receipt.status()).state is DurableState.PENDING
    assert (await rows(postgres, queue))[0]["scheduled_at"] is not None


@durable
async def reports(path: str) -> None:
    await durable_context().report_progress({"done": 1, "of": 2})
    while not await anyio.Path(path).exists():
        await anyio.sleep(0.01)


async def test_progress_and_state_can_be_read(engine: ProcrastinateEngine, tmp_path: Path) -> None:
    path = tmp_path / "go"
    async with TaskScheduler(engine=engine) as scheduler, working(engine, grace_period=10.0):
        receipt = await scheduler.schedule(reports, str(path))

        async def reported() -> bool:
            return (await receipt.status()).progress == {"done": 1, "of": 2}

        await until(reported)
        assert (await receipt.status()).state is DurableState.RUNNING
        path.touch()
        await ends(receipt, DurableState.SUCCEEDED)
        assert (await Receipt("procrastinate", "99999999", "k", True, engine).status()).state is (DurableState.UNKNOWN)


# ---- keys ----


async def test_key_is_taken_once(engine: ProcrastinateEngine, postgres: str, queue: str) -> None:
    async with TaskScheduler(engine=engine) as scheduler:
        first = await scheduler.schedule(note.configure(idempotency_key=f"{queue}-1"), "once")
        second = await scheduler.schedule(note.configure(idempotency_key=f"{queue}-1"), "once")
        other = await scheduler.schedule(note.configure(idempotency_key=f"{queue}-2"), "other")
        assert (first.created, second.created, other.created) == (True, False, True)
        assert (second.id, second.idempotency_key) == (first.id, first.idempotency_key)
        async with working(engine):
            await ends(first, DurableState.SUCCEEDED)
            await ends(other, DurableState.SUCCEEDED)
        assert not (
            await scheduler.schedule(note.configure(idempotency_key=f"{queue}-1"), "once")
        ).created  # also when it is done
    assert sorted(functions.ran) == ["once", "other"]


async def test_many_at_once_with_one_key_make_one_task(engine: ProcrastinateEngine, postgres: str, queue: str) -> None:
    async with TaskScheduler(engine=engine) as scheduler:
        tasks = [scheduler.schedule(note.configure(idempotency_key=queue), "once") for _ in range(12)]
        receipts = [await task for task in tasks]
    assert sum(receipt.created for receipt in receipts) == 1
    assert len({receipt.id for receipt in receipts}) == 1
    assert len(await rows(postgres, queue)) == 1


async def test_key_belongs_to_its_function(engine: ProcrastinateEngine, queue: str) -> None:
    async with TaskScheduler(engine=engine) as scheduler:
        first = await scheduler.schedule(note.configure(idempotency_key=queue), "x")
        second = await scheduler.schedule(plain.configure(idempotency_key=queue), 1)
    assert (first.created, second.created) == (True, True)


async def test_same_key_with_other_arguments_is_a_warning(
    engine: ProcrastinateEngine, queue: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    async with TaskScheduler(engine=engine) as scheduler:
        first = await scheduler.schedule(note.configure(idempotency_key=queue), "SECRET")
        await scheduler.schedule(note.configure(idempotency_key=queue), "SECRET")
        assert caplog.messages == []
        await scheduler.schedule(note.configure(idempotency_key=queue), "OTHER")
    assert f"idempotency key {queue!r}, which belongs to job {first.id}" in caplog.text
    assert "SECRET" not in caplog.text
    assert "OTHER" not in caplog.text


# ---- many at once ----


async def test_submit_of_many_keeps_their_order_and_their_keys(
    engine: ProcrastinateEngine, postgres: str, queue: str
) -> None:
    def call(number: int, *, dedup: bool) -> DurableCall:
        return DurableCall(note.name, {"text": str(number)}, f"{queue} {number % 3 if dedup else number}", dedup=dedup)

    async with engine:
        plain_ones = await engine.submit_many([call(number, dedup=False) for number in range(50)])
        mixed = await engine.submit_many([call(number, dedup=number > 3) for number in range(10)])
        assert await engine.submit_many([]) == []
    stored = {row["id"]: row["args"]["args"]["text"] for row in await rows(postgres, queue)}
    assert [stored[int(receipt.id)] for receipt in plain_ones] == [str(number) for number in range(50)]
    assert [receipt.created for receipt in mixed] == [True] * 7 + [False] * 3
    assert [stored[int(receipt.id)] for receipt in mixed] == ["0", "1", "2", "3", "4", "5", "6", "4", "5", "6"]


async def test_many_are_stored_together_or_not_at_all(engine: ProcrastinateEngine, postgres: str, queue: str) -> None:
    calls = [DurableCall(note.name, {"text": text}, f"{queue} {text!r}") for text in ("x", "\0", "y")]
    async with engine:
        with pytest.raises(EngineError, match="PostgreSQL refused the statement: UntranslatableCharacter"):
            await engine.submit_many(calls)
    assert await rows(postgres, queue) == []


# ---- transactions ----


@asynccontextmanager
async def sqlalchemy(address: str, driver: str) -> AsyncIterator[AsyncEngine]:
    host = address.rpartition("=")[2]
    engine = create_async_engine(f"postgresql+{driver}://postgres@/postgres?host={host}")
    yield engine
    await engine.dispose()


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
@pytest.mark.parametrize("key", [None, "with a key"])
async def test_session_commits_or_rolls_back_the_task(
    engine: ProcrastinateEngine, postgres: str, queue: str, driver: str, key: str | None
) -> None:
    async with TaskScheduler(engine=engine) as scheduler, sqlalchemy(postgres, driver) as database:
        for end in ("commit", "rollback"):
            async with AsyncSession(database) as session:
                await session.execute(text("SELECT 1"))
                batch = DurablePhase(scheduler, "after", submit_on="submit")
                unique = key and f"{key} {queue} {end}"
                tasks = [batch.schedule(note.configure(transaction=session, idempotency_key=unique), end)]
                tasks.append(batch.task(delay=1).schedule(note.configure(transaction=session), end))
                await batch.submit()
                assert [task.result().created for task in tasks] == [True, True]
                before = len(await rows(postgres, queue))
                await getattr(session, end)()
            assert (end, before, len(await rows(postgres, queue))) == (end, 0 if end == "commit" else 2, 2)


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
async def test_connection_of_sqlalchemy(engine: ProcrastinateEngine, postgres: str, queue: str, driver: str) -> None:
    async with (
        TaskScheduler(engine=engine) as scheduler,
        sqlalchemy(postgres, driver) as database,
        database.begin() as connection,
    ):
        assert isinstance(connection, AsyncConnection)
        await scheduler.schedule(note.configure(transaction=connection), "x")
        assert await rows(postgres, queue) == []
    assert len(await rows(postgres, queue)) == 1


async def test_connection_of_psycopg(engine: ProcrastinateEngine, postgres: str, queue: str) -> None:
    async with TaskScheduler(engine=engine) as scheduler:
        async with await psycopg.AsyncConnection.connect(postgres) as connection:
            await connection.execute("SELECT 1")
            await scheduler.schedule(note.configure(transaction=connection), "x")
            assert await rows(postgres, queue) == []
            await connection.rollback()
            assert await rows(postgres, queue) == []
            await connection.execute("SELECT 1")
            await scheduler.schedule(note.configure(transaction=connection), "x")
        assert len(await rows(postgres, queue)) == 1


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
async def test_commit_takes_along_what_was_not_handed_over_yet(
    engine: ProcrastinateEngine, postgres: str, queue: str, driver: str
) -> None:
    async with TaskScheduler(engine=engine) as scheduler, sqlalchemy(postgres, driver) as database:
        async with AsyncSession(database) as session:
            batch = DurablePhase(scheduler, "after", submit_on="submit")
            await session.execute(text("SELECT 1"))
            task = batch.schedule(note.configure(transaction=session), "1")
            batch.schedule(note.configure(transaction=session), "cancelled").cancel()
            await session.commit()
            await session.execute(text("SELECT 1"))
            await session.rollback()
            assert [row["args"]["args"]["text"] for row in await rows(postgres, queue)] == ["1"]
            await batch.submit("error")  # what is committed is committed
            assert task.result().id == str((await rows(postgres, queue))[0]["id"])
            await session.execute(text("SELECT 1"))
            await session.commit()
        assert len(await rows(postgres, queue)) == 1


async def test_transaction_that_is_over_is_an_error(engine: ProcrastinateEngine, postgres: str, queue: str) -> None:
    async with TaskScheduler(engine=engine) as scheduler, sqlalchemy(postgres, "psycopg") as database:
        async with AsyncSession(database) as session:
            await session.execute(text("SELECT 1"))
            batch = DurablePhase(scheduler, "after", submit_on="submit")
            batch.schedule(note.configure(transaction=session), "x")
            await session.rollback()
            with pytest.raises(EngineCapabilityError, match="the transaction in which the task was scheduled is over"):
                await batch.submit()
            await session.execute(text("SELECT 1"))
            batch.schedule(note.configure(transaction=session), "x")
            await batch.submit()
            await session.rollback()
        async with await psycopg.AsyncConnection.connect(postgres, autocommit=True) as connection:
            with pytest.raises(EngineCapabilityError, match="the transaction in which"):
                await scheduler.schedule(note.configure(transaction=connection), "x")
    assert await rows(postgres, queue) == []


@asynccontextmanager
async def phase_in_session(
    engine: ProcrastinateEngine, address: str, driver: str
) -> AsyncIterator[tuple[DurablePhase, AsyncSession]]:
    async with (
        TaskScheduler(engine=engine) as scheduler,
        sqlalchemy(address, driver) as database,
        AsyncSession(database) as session,
    ):
        yield DurablePhase(scheduler, "after", submit_on="submit"), session


@pytest.mark.parametrize("submit", ["before", "after"])
@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
async def test_savepoints_that_are_rolled_back_leave_the_task_alone(
    engine: ProcrastinateEngine, postgres: str, queue: str, driver: str, submit: str
) -> None:
    async with phase_in_session(engine, postgres, driver) as (phase, session):
        await session.execute(text("SELECT 1"))
        task = phase.schedule(note.configure(transaction=session), "x")
        outer = await session.begin_nested()
        inner = await session.begin_nested()
        if submit == "before":
            await phase.submit()  # its row is within the savepoints
        await inner.commit()
        await outer.rollback()
        await session.commit()
        if submit == "after":
            await phase.submit()
            assert task.result().id == str((await rows(postgres, queue))[0]["id"])
    assert len(await rows(postgres, queue)) == 1


@pytest.mark.parametrize("released", [False, True])
async def test_task_of_a_savepoint_that_is_rolled_back_is_dropped(
    engine: ProcrastinateEngine, postgres: str, queue: str, caplog: pytest.LogCaptureFixture, released: bool
) -> None:
    caplog.set_level(logging.INFO, "tasks_core")
    async with phase_in_session(engine, postgres, "psycopg") as (phase, session):
        await session.execute(text("SELECT 1"))
        kept = phase.schedule(note.configure(transaction=session), "kept")
        outer = await session.begin_nested()
        inner = await session.begin_nested()
        dropped = phase.schedule(note.configure(transaction=session), "dropped")
        await (inner.commit() if released else inner.rollback())
        if released:
            await outer.rollback()
        await session.commit()
        await phase.submit()
        assert kept.result().created
        assert dropped.lost or dropped.state.finished
    assert [row["args"]["args"]["text"] for row in await rows(postgres, queue)] == ["kept"]
    assert f"{note.name!r} is dropped: the savepoint that it was scheduled in was rolled back" in caplog.text
    assert "was discarded: the savepoint that it was scheduled in was rolled back" in caplog.text


async def test_session_that_was_not_used_yet(engine: ProcrastinateEngine, postgres: str, queue: str) -> None:
    async with phase_in_session(engine, postgres, "psycopg") as (phase, session):
        phase.schedule(note.configure(transaction=session), "x")
        await phase.submit()
        assert await rows(postgres, queue) == []
        await session.commit()
    assert len(await rows(postgres, queue)) == 1


async def test_connection_of_psycopg_that_was_not_used_yet(
    engine: ProcrastinateEngine, postgres: str, queue: str
) -> None:
    async with (
        TaskScheduler(engine=engine) as scheduler,
        await psycopg.AsyncConnection.connect(postgres) as connection,
    ):
        await scheduler.schedule(note.configure(transaction=connection), "x")
        assert await rows(postgres, queue) == []
    assert len(await rows(postgres, queue)) == 1


@pytest.mark.parametrize("kind", ["session", "connection", "psycopg"])
@pytest.mark.parametrize("submit", ["before", "after"])
async def test_synchronous_transactions(
    engine: ProcrastinateEngine, postgres: str, queue: str, kind: str, submit: str
) -> None:
    """Those of `def` endpoints."""
    host = postgres.rpartition("=")[2]
    database = create_engine(f"postgresql+psycopg://postgres@/postgres?host={host}")
    opened: Any = {"session": Session, "connection": lambda database: database.connect()}
    opened["psycopg"] = lambda _: psycopg.connect(postgres)
    with opened[kind](database) as transaction:
        async with TaskScheduler(engine=engine) as scheduler:
            phase = DurablePhase(scheduler, "after", submit_on="submit")
            await anyio.to_thread.run_sync(transaction.execute, "SELECT 1" if kind == "psycopg" else text("SELECT 1"))
            task = await anyio.to_thread.run_sync(phase.schedule, note.configure(transaction=transaction), "x")
            if submit == "before" or kind != "session":
                await phase.submit()
                assert await rows(postgres, queue) == []
            await anyio.to_thread.run_sync(transaction.commit)
            await phase.submit()
            assert task.result().id == str((await rows(postgres, queue))[0]["id"])
    database.dispose()
    assert len(await rows(postgres, queue)) == 1


async def test_what_is_no_transaction_is_an_error_at_the_call(engine: ProcrastinateEngine) -> None:
    async with TaskScheduler(engine=engine) as scheduler:
        with pytest.raises(EngineCapabilityError, match=r"was given a builtins\.object"):
            scheduler.schedule(note.configure(transaction=object()), "x")


@asynccontextmanager
async def begun(address: str, kind: str) -> AsyncIterator[tuple[Any, int]]:
    """A transaction of somebody else, and the number of its server process."""
    query = "SELECT pg_backend_pid()"
    if kind == "psycopg":
        async with await psycopg.AsyncConnection.connect(address) as connection:
            row = await (await connection.execute(query)).fetchone()
            assert row is not None
            yield connection, row[0]
        return
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(sqlalchemy(address, "psycopg"))
        opened = AsyncSession(database) if kind == "session" else database.connect()
        transaction: Any = await stack.enter_async_context(opened)
        yield transaction, (await transaction.execute(text(query))).scalar_one()


@pytest.mark.parametrize("kind", ["session", "connection", "psycopg"])
async def test_transaction_whose_connection_is_lost(engine: ProcrastinateEngine, postgres: str, kind: str) -> None:
    async with TaskScheduler(engine=engine) as scheduler, begun(postgres, kind) as (transaction, process):
        async with await psycopg.AsyncConnection.connect(postgres, autocommit=True) as other:
            await other.execute("SELECT pg_terminate_backend(%s, 5000)", [process])
        with pytest.raises(EngineUnavailableError):
            await scheduler.schedule(note.configure(transaction=transaction), "x")


@pytest.mark.parametrize("kind", ["session", "connection"])
async def test_transaction_that_has_failed(engine: ProcrastinateEngine, postgres: str, queue: str, kind: str) -> None:
    async with TaskScheduler(engine=engine) as scheduler, begun(postgres, kind) as (transaction, _):
        with pytest.raises(DBAPIError, match="DivisionByZero"):
            await transaction.execute(text("SELECT 1 / 0"))
        with pytest.raises(DBAPIError, match="InFailedSqlTransaction"):
            await scheduler.schedule(note.configure(transaction=transaction), "x")
    assert await rows(postgres, queue) == []


async def test_connection_that_is_in_no_transaction(engine: ProcrastinateEngine, postgres: str) -> None:
    async with (
        TaskScheduler(engine=engine) as scheduler,
        sqlalchemy(postgres, "psycopg") as database,
        database.connect() as connection,
    ):
        with pytest.raises(EngineCapabilityError, match="the transaction in which the task was scheduled is over"):
            await scheduler.schedule(note.configure(transaction=connection), "x")


# ---- calls that a worker does not understand ----


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses of workers are short."""
    monkeypatch.setattr("tasks_core.engines.procrastinate._housekeeping.PAUSE", 0.05)
    monkeypatch.setattr("tasks_core.engines.procrastinate._work._MISFIT_PAUSE", 0.05)
    monkeypatch.setattr("tasks_core.engines.procrastinate._liveness.SUSPECT_PAUSE", 0.05)


async def test_calls_of_unknown_functions_are_not_claimed(
    engine: ProcrastinateEngine, postgres: str, queue: str, tmp_path: Path
) -> None:
    target = tmp_path / "pwned"
    async with TaskScheduler(engine=engine) as scheduler:
        await engine.submit_many(
            [DurableCall("os:system", {"command": f"touch {target}"}, f"{queue} {n}") for n in range(200)]
        )
        async with working(engine, concurrency=1):
            await ends(await scheduler.schedule(note, "behind them"), DurableState.SUCCEEDED)
    assert not target.exists()
    assert {(row["status"], row["attempts"]) for row in (await rows(postgres, queue))[:200]} == {("todo", 0)}


@pytest.mark.parametrize("delay", [None, 0.01])
async def test_call_of_a_function_that_no_worker_knows_fails_in_the_end(
    postgres: str, queue: str, soon: None, caplog: pytest.LogCaptureFixture, delay: float | None
) -> None:
    engine = ProcrastinateEngine(postgres, queue=queue, unknown_for=0.2, heartbeat=0.2)
    async with engine, working(engine):
        due = None if delay is None else time.time() + delay
        receipt = await engine.submit(DurableCall("gone", {}, "k-1", not_before=due))
        await ends(receipt, DurableState.FAILED)
        await until_logged(
            caplog, f"Task 'gone', key k-1, job {receipt.id}, queue default, has failed: no worker knew its function"
        )
    assert caplog.text.count("knows the function 'gone'") == 1


async def test_a_call_that_another_worker_knows_does_not_fail(
    postgres: str, queue: str, soon: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = ProcrastinateEngine(postgres, queue=queue, unknown_for=0.0, heartbeat=0.2)
    async with engine:
        async with await psycopg.AsyncConnection.connect(postgres, autocommit=True) as other:
            await other.execute(
                "WITH worker AS (INSERT INTO procrastinate_workers DEFAULT VALUES RETURNING id)"
                " INSERT INTO tasks_workers_v2 SELECT id, ARRAY[%s], '{elsewhere}' FROM worker",
                [queue],
            )
        elsewhere = await engine.submit(DurableCall("elsewhere", {}, "k-1"))
        nowhere = await engine.submit(DurableCall("nowhere", {}, "k-2"))
        monkeypatch.setattr("tasks_core.engines.procrastinate._housekeeping.MISSED", 1000)
        async with working(engine):
            await ends(nowhere, DurableState.FAILED)
        assert (await elsewhere.status()).state is DurableState.PENDING


async def test_arguments_that_do_not_fit_wait_for_another_release(
    engine: ProcrastinateEngine, postgres: str, queue: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with engine:
        receipt = await engine.submit(DurableCall("plain", {"number": 1, "secret": "SECRET"}, "k"))
        async with working(engine):
            await until_logged(caplog, "is not understood by this worker")

            async def back() -> bool:
                return bool((await rows(postgres, queue))[0]["attempts"])

            await until(back)
    [row] = await rows(postgres, queue)
    assert (row["status"], row["priority"], row["args"]["misfits"]) == ("todo", -1, 1)
    assert row["scheduled_at"] is not None
    assert f"Task 'plain', key k, job {receipt.id}, queue default, attempt 1, is not understood" in caplog.text
    assert "SECRET" not in caplog.text


@durable(name="with-session")
async def with_session(number: int, session: str = Provided) -> None:
    functions.ran.append((number, session))


class Sessions:
    def parameters(self, func: Any, /) -> list[str]:
        return ["session"]

    def check(self, func: Any, names: frozenset[str], /) -> None: ...

    async def call(self, func: Any, names: frozenset[str], run: Any, /) -> Any:
        return await run(dict.fromkeys(names, "a session"))


async def test_a_call_waits_for_a_worker_that_supplies_its_arguments(
    engine: ProcrastinateEngine, soon: None, caplog: pytest.LogCaptureFixture
) -> None:
    async with TaskScheduler(engine=engine, provider=Sessions()) as scheduler:
        receipt = await scheduler.schedule(with_session, 7)
        async with working(engine):
            await until_logged(caplog, "is not understood by this worker")
        async with working(engine, provider=Sessions()):
            await ends(receipt, DurableState.SUCCEEDED)
    assert functions.ran == [(7, "a session")]
    assert "with_session has parameters with the default Provided (session), and the scheduler has no" in caplog.text
    assert "python -m tasks_fastapi worker app.main:app" in caplog.text


async def test_arguments_that_never_fit_are_given_up(
    postgres: str, queue: str, soon: None, caplog: pytest.LogCaptureFixture
) -> None:
    engine = ProcrastinateEngine(postgres, queue=queue, unknown_for=0.3, heartbeat=0.2)
    async with engine, working(engine):
        receipt = await engine.submit(DurableCall(flaky.name, {"nonsense": 1}, "k"))
        await ends(receipt, DurableState.FAILED)
        assert (await receipt.status()).attempts == 0, "it has never run"
        with pytest.raises(DurableTaskFailedError, match="has failed: no worker understood it"):
            await receipt.result()
    assert functions.reported == [(flaky.name, 1, "DurableTaskGivenUpError")]
    assert f"job {receipt.id}, queue default, attempt 1, has failed for good (DurableTaskGivenUpError)" in caplog.text
    [row] = await rows(postgres, queue)
    assert row["attempts"] > 2
    assert row["args"]["given_up"].startswith("no worker understood it for")


async def test_row_that_is_no_call_is_failed(
    postgres: str, queue: str, soon: None, caplog: pytest.LogCaptureFixture
) -> None:
    engine = ProcrastinateEngine(postgres, queue=queue, unknown_for=0.0, heartbeat=0.2)
    async with TaskScheduler(engine=engine):
        async with await psycopg.AsyncConnection.connect(postgres) as connection:
            await connection.execute(
                "INSERT INTO procrastinate_jobs (queue_name, task_name, args) VALUES (%s, 'tasks_core.run', %s)",
                [
                    queue,
                    json.dumps({"name": "plain", "args": 7, "returns": "x", "deaths": {"a": 1}, "failures": 1e300}),
                ],
            )
        async with working(engine):

            async def failed() -> bool:
                return [row["status"] for row in await rows(postgres, queue)] == ["failed"]

            await until(failed)
    assert "has failed: this worker cannot read it" in caplog.text


# ---- workers that stop, and workers that die ----


async def test_stop_puts_unshielded_tasks_back(engine: ProcrastinateEngine) -> None:
    for name in ("shielded", "unshielded"):
        functions.waiting[name], functions.released[name] = anyio.Event(), anyio.Event()
    async with TaskScheduler(engine=engine) as scheduler:
        ended = await scheduler.schedule(shielded, "shielded")
        back = await scheduler.schedule(unshielded, "unshielded")
        async with working(engine, grace_period=0.0) as stop:
            await functions.waiting["shielded"].wait()
            await functions.waiting["unshielded"].wait()
            stop.set()
            await ends(back, DurableState.PENDING)
            functions.released["shielded"].set()
        assert (await ended.status()).state is DurableState.SUCCEEDED
        functions.released["unshielded"].set()
        async with working(engine):
            await ends(back, DurableState.SUCCEEDED)
    assert functions.ran == ["shielded", "unshielded"]


async def test_worker_stops_when_its_cancellation_gets_lost_in_a_query(
    engine: ProcrastinateEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it does on Python 3.11, in whose `asyncio.wait_for()` psycopg waits, when the answer comes at that moment."""
    lost = anyio.Event()
    answer = anyio.Event()
    execute = psycopg.AsyncConnection.execute

    async def execute_and_lose_cancellation(self: Any, query: Any, *args: Any, **options: Any) -> Any:
        cursor = await execute(self, query, *args, **options)
        if "reltuples" in str(query) and not lost.is_set():  # the first that housekeeping asks
            answer.set()
            with suppress(asyncio.CancelledError):
                await anyio.sleep_forever()
            lost.set()
        return cursor

    monkeypatch.setattr(psycopg.AsyncConnection, "execute", execute_and_lose_cancellation)
    with anyio.fail_after(30):
        async with working(engine):
            await answer.wait()
    assert lost.is_set()


async def _die(address: str, receipt: Receipt[Any]) -> None:
    """Do to the database what a worker does that takes a task, and is killed."""
    async with await psycopg.AsyncConnection.connect(address) as connection:
        cursor = await connection.execute("SELECT worker_id FROM procrastinate_register_worker_v1()")
        row = await cursor.fetchone()
        assert row is not None
        await connection.execute(
            "UPDATE procrastinate_workers SET last_heartbeat = now() - interval '1 hour' WHERE id = %s", row
        )
        await connection.execute(
            "UPDATE procrastinate_jobs SET status = 'doing', worker_id = %s, scheduled_at = NULL WHERE id = %s",
            [row[0], int(receipt.id)],
        )


async def test_task_of_a_dead_worker_is_taken_over(
    engine: ProcrastinateEngine, postgres: str, soon: None, caplog: pytest.LogCaptureFixture
) -> None:
    async with TaskScheduler(engine=engine) as scheduler:
        receipt = await scheduler.task(delay=3600).schedule(note, "x")
        await _die(postgres, receipt)
        async with working(engine):
            await ends(receipt, DurableState.SUCCEEDED)
    assert functions.contexts[0].attempt == 2
    assert "is back in the queue, to run alone among such tasks: the worker that ran it died (1)" in caplog.text


async def test_task_that_kills_its_workers_is_given_up(
    postgres: str, queue: str, soon: None, caplog: pytest.LogCaptureFixture
) -> None:
    engine = ProcrastinateEngine(postgres, queue=queue, heartbeat=0.2, max_deaths=2)
    async with TaskScheduler(engine=engine) as scheduler:
        receipt = await scheduler.task(delay=3600).schedule(flaky, 0)
        await _die(postgres, receipt)
        async with await psycopg.AsyncConnection.connect(postgres) as connection:
            # One death before this one, and one that is forgotten; failures and returns are no deaths.
            await connection.execute(
                "UPDATE procrastinate_jobs SET attempts = 5, args = args || jsonb_build_object('failures', 1,"
                " 'returns', 2, 'deaths', jsonb_build_array(1.0, extract(epoch FROM now()) - 3600)) WHERE id = %s",
                [int(receipt.id)],
            )
        async with working(engine):
            await ends(receipt, DurableState.FAILED)
        [events] = (await engine.read_events([(receipt.id, 0)])).values()
        status = await receipt.status()
        shown = await engine.show(receipt.id)
        assert shown is not None
        counts = status.attempts, events.status.attempts, shown.task.attempts
        assert counts == (4, 4, 4), "its workers died; the call of the error handler is no attempt"
        with pytest.raises(DurableTaskFailedError, match="has failed in attempt 4: 2 workers died while they ran it"):
            await receipt.result()
    assert functions.ran == []
    assert functions.reported == [(flaky.name, 5, "DurableTaskGivenUpError")]
    assert "is given up: 2 workers died while they ran it" in caplog.text


async def test_operator_who_retries_a_task_that_was_given_up_has_it_begin_again(
    postgres: str, queue: str, soon: None
) -> None:
    engine = ProcrastinateEngine(postgres, queue=queue, heartbeat=0.2, max_deaths=2)
    async with TaskScheduler(engine=engine) as scheduler, working(engine) as stop:
        receipt = await scheduler.schedule(flaky, 9, "KeyError")
        await ends(receipt, DurableState.FAILED)
        stop.set()
        async with await psycopg.AsyncConnection.connect(postgres) as connection:
            await connection.execute(
                "UPDATE procrastinate_jobs SET args = jsonb_set(args, '{args,failures}', '0') WHERE id = %s",
                [int(receipt.id)],
            )
            await connection.execute(
                "SELECT procrastinate_retry_job_v2(%s, now() + interval '1 hour', NULL, NULL, NULL)", [int(receipt.id)]
            )
        await _die(postgres, receipt)
        async with working(engine):
            await ends(receipt, DurableState.SUCCEEDED)  # one death is not two
    [row] = await rows(postgres, queue)
    assert len(row["args"]["deaths"]) == 1


async def test_a_worker_that_leaves_does_not_lock_the_calls_that_have_ended(postgres: str, queue: str) -> None:
    engine = ProcrastinateEngine(postgres, queue=queue)
    with anyio.fail_after(30):
        async with (
            TaskScheduler(engine=engine) as scheduler,
            await psycopg.AsyncConnection.connect(postgres) as operator,
        ):
            async with working(engine):
                receipt = await scheduler.schedule(flaky, 9, "KeyError")
                await ends(receipt, DurableState.FAILED)
                await operator.execute("SELECT FROM procrastinate_jobs WHERE id = %s FOR UPDATE", [int(receipt.id)])
            # The worker has left, although the operator's transaction goes on.
            await operator.execute("SELECT procrastinate_retry_job_v2(%s, now(), NULL, NULL, NULL)", [int(receipt.id)])


async def test_success_wins_over_a_presumed_death(postgres: str, queue: str, soon: None) -> None:
    """The worker was stopped by the system, its task was given up, and it goes on and ends the task."""
    engine = ProcrastinateEngine(postgres, queue=queue, heartbeat=0.2)
    functions.waiting["x"], functions.released["x"] = anyio.Event(), anyio.Event()
    async with TaskScheduler(engine=engine) as scheduler, working(engine):
        receipt = await scheduler.schedule(shielded, "x")
        await functions.waiting["x"].wait()
        async with await psycopg.AsyncConnection.connect(postgres) as connection:
            await connection.execute(
                "UPDATE procrastinate_jobs SET status = 'failed', attempts = 7,"
                ' args = args || \'{"given_up": "5 workers died while they ran it"}\' WHERE id = %s',
                [int(receipt.id)],
            )
        functions.released["x"].set()
        await ends(receipt, DurableState.SUCCEEDED)


async def test_tasks_that_were_running_when_a_worker_died_do_not_run_together(
    engine: ProcrastinateEngine, postgres: str, queue: str, soon: None
) -> None:
    for name in ("a", "b"):
        functions.waiting[name], functions.released[name] = anyio.Event(), anyio.Event()
    async with TaskScheduler(engine=engine) as scheduler:
        receipts = [await scheduler.task(delay=3600).schedule(shielded, name) for name in ("a", "b")]
        for receipt in receipts:
            await _die(postgres, receipt)
        async with working(engine, concurrency=4, grace_period=10.0):
            await functions.waiting["a"].wait()
            await ends(await scheduler.schedule(note, "neighbour"), DurableState.SUCCEEDED)
            assert not functions.waiting["b"].is_set()
            functions.released["a"].set()
            functions.released["b"].set()
            for receipt in receipts:
                await ends(receipt, DurableState.SUCCEEDED)
    assert functions.ran == ["neighbour", "a", "b"]


async def test_blocked_event_loop_is_a_warning_and_no_death(
    postgres: str, queue: str, caplog: pytest.LogCaptureFixture
) -> None:
    engine = ProcrastinateEngine(postgres, queue=queue, heartbeat=0.1, max_deaths=1)
    async with TaskScheduler(engine=engine) as scheduler:
        receipt = await scheduler.schedule(blocks, 1.5)
        stop = threading.Event()
        other = threading.Thread(target=anyio.run, args=(_work_until, postgres, queue, stop))
        other.start()
        try:
            async with working(engine):
                await ends(receipt, DurableState.SUCCEEDED)
        finally:
            stop.set()
            await anyio.to_thread.run_sync(other.join)
        assert (await receipt.status()).attempts == 1
    assert functions.ran == ["blocked"]
    assert "The event loop of the worker has been blocked for" in caplog.text
    assert f"by '{blocks.name}'" in caplog.text


@durable
async def blocks(seconds: float) -> None:
    time.sleep(seconds)  # noqa: ASYNC251  what the test is about
    functions.ran.append("blocked")


async def _work_until(address: str, queue: str, stop: threading.Event) -> None:
    """A second worker that takes over what seems to belong to a dead one."""
    engine = ProcrastinateEngine(address, queue=queue, heartbeat=0.1, max_deaths=1)
    async with engine, working(engine):
        await anyio.to_thread.run_sync(stop.wait)


@pytest.mark.parametrize("kept", [0.0, 3600.0])
async def test_ended_tasks_and_their_keys_are_kept_for_their_time(
    engine: ProcrastinateEngine, postgres: str, queue: str, soon: None, kept: float
) -> None:
    async with TaskScheduler(engine=engine) as scheduler:
        async with working(engine):
            done = await scheduler.schedule(note.configure(idempotency_key=queue), "done")
            failed = await scheduler.schedule(flaky, 9, "KeyError")
            await ends(done, DurableState.SUCCEEDED)
            await ends(failed, DurableState.FAILED)
        async with working(ProcrastinateEngine(postgres, queue=queue, keep_finished=0.0, keep_failed=kept)):
            await ends(done, DurableState.UNKNOWN)
            if not kept:
                await ends(failed, DurableState.UNKNOWN)
        if kept:
            assert (await failed.status()).state is DurableState.FAILED
        assert (await scheduler.schedule(note.configure(idempotency_key=queue), "again")).created


# ---- the schema, and a server that is not there ----


async def test_schema_is_checked(postgres: str) -> None:
    async with await psycopg.AsyncConnection.connect(postgres, autocommit=True) as connection:
        await connection.execute("CREATE DATABASE empty")
        try:
            address = postgres.replace("/postgres?", "/empty?")
            with pytest.raises(EngineSchemaError, match=r"apply_schema=True"):
                async with ProcrastinateEngine(address, apply_schema=False):
                    pytest.fail("not reached")
            async with ProcrastinateEngine(address, pool_size=1):
                pass
            async with ProcrastinateEngine(address, pool_size=1, apply_schema=False):
                pass
            async with await psycopg.AsyncConnection.connect(address, autocommit=True) as other:
                await other.execute("DROP FUNCTION procrastinate_retry_job_v2 CASCADE")
            with pytest.raises(EngineSchemaError, match=r"lacks procrastinate_retry_job_v2.*run the migrations"):
                async with ProcrastinateEngine(address):
                    pytest.fail("not reached")
        finally:
            await connection.execute("DROP DATABASE empty WITH (FORCE)")


async def test_no_server_is_an_error_at_the_start() -> None:
    with pytest.raises(EngineUnavailableError, match="PostgreSQL cannot be reached"):
        async with TaskScheduler(engine=ProcrastinateEngine("postgresql://127.0.0.1:1/none")):
            pytest.fail("not reached")


async def test_several_schedulers_share_an_engine(engine: ProcrastinateEngine, postgres: str, queue: str) -> None:
    async with TaskScheduler(engine=engine) as first:
        async with TaskScheduler(engine=engine) as second:
            await second.schedule(note, "1")
        await first.schedule(note, "2")
    async with TaskScheduler(engine=engine) as third:
        await third.schedule(note, "3")
    assert len(await rows(postgres, queue)) == 3


async def connections(address: str, application: str) -> int:
    async with await psycopg.AsyncConnection.connect(address) as connection:
        cursor = await connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s", [application]
        )
        row = await cursor.fetchone()
    assert row is not None
    return int(row[0])


async def test_entered_at_the_same_time_it_connects_once(postgres: str, queue: str) -> None:
    engine = ProcrastinateEngine(f"{postgres}&application_name={queue}", queue=queue, pool_size=1)
    looked = anyio.Event()
    inside: list[str] = []

    async def use() -> None:
        async with engine:
            inside.append((await engine.submit(DurableCall(note.name, {"text": "x"}, "k"))).id)
            await looked.wait()

    async def all_inside() -> bool:
        return len(inside) == 5

    async def all_closed() -> bool:
        return await connections(postgres, queue) == 0

    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(use)
        await until(all_inside)
        assert await connections(postgres, queue) == 1
        looked.set()
    await until(all_closed)
