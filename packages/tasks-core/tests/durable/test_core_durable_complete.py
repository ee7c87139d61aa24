"""`durable_context().complete(session)`: a task ends in a transaction of its own, on a real PostgreSQL."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
import psycopg
import pytest
from core_engine import ListEngine
from core_postgres import Wire, ends, execute, new_database, postgres, queue, until, until_logged, wire, working
from core_support import messages
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool
from tasks_core import Receipt, RetryPolicy, Task, TaskScheduler, Worker, durable, durable_context, emit
from tasks_core.engines import (
    DurableState,
    DurableTaskTakenOverError,
    EngineCapabilityError,
)
from tasks_core.engines.procrastinate import ProcrastinateEngine, _completing, _housekeeping, _reports
from tasks_core.engines.procrastinate._connection import WorkerConnection
from tasks_core.engines.procrastinate._sql import SETTLED
from tasks_core.exceptions import ArgumentCodecError
from tasks_core.frameworks import follow_stored

__all__ = ("postgres", "queue", "wire")

pytestmark = pytest.mark.anyio

_INSERT = "INSERT INTO invoices VALUES ('{}')"


class Plan:
    """What the functions below do, as the test says."""

    def __init__(self) -> None:
        self.body: Callable[[str], Awaitable[Any]]
        self.plain_body: Callable[[str], Any]
        self.reached = anyio.Event()
        self.go_on = anyio.Event()
        self.calls = 0
        self.handled: list[str] = []


plan: Plan


def handle(task: Task[Any], exception: Exception) -> bool:
    plan.handled.append(type(exception).__name__)
    return True


@durable(name="complete.run", retry=RetryPolicy(attempts=3, backoff=0.0), on_error=handle)
async def run(order: str) -> str | None:
    plan.calls += 1
    return await plan.body(order)  # type: ignore[no-any-return]  # as the test says


@durable(name="complete.run_once", retry=None, on_error=handle)
async def run_once(order: str) -> None:
    plan.calls += 1
    await plan.body(order)


@durable(name="complete.run_plain", retry=None, timeout=30)
def run_plain(order: str) -> None:
    plan.calls += 1
    plan.plain_body(order)


@durable(name="complete.other")
async def other() -> None:
    emit("its worker stores this before its end")


@pytest.fixture(autouse=True)
def new_plan() -> None:
    global plan
    plan = Plan()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def engine(postgres: str, queue: str) -> ProcrastinateEngine:
    return ProcrastinateEngine(postgres, queue=queue, pool_size=4, heartbeat=0.2)


@pytest.fixture(autouse=True)
async def invoices(request: pytest.FixtureRequest) -> None:
    if "postgres" in request.fixturenames:
        await execute(request.getfixturevalue("postgres"), "CREATE TABLE IF NOT EXISTS invoices (order_id text)")


async def count(address: str, order: str) -> int:
    return int((await execute(address, "SELECT count(*) FROM invoices WHERE order_id = %s", order))[0][0])


async def row_of(address: str, receipt: Receipt[Any]) -> Any:
    [row] = await execute(
        address, "SELECT status::text, attempts, worker_id FROM procrastinate_jobs WHERE id = %s", int(receipt.id)
    )
    return row


def url(address: str, driver: str) -> str:
    return f"postgresql+{driver}://postgres@/postgres?host={address.rpartition('=')[2]}"


@asynccontextmanager
async def session_of(address: str, driver: str = "psycopg") -> AsyncIterator[AsyncSession]:
    database = create_async_engine(url(address, driver))
    async with AsyncSession(database) as session:
        yield session
    await database.dispose()


async def complete_in_session(address: str, driver: str, order: str) -> None:
    async with session_of(address, driver) as session:
        await session.execute(text(_INSERT.format(order)))
        await durable_context().complete(session)
        await session.commit()


async def complete_in_connection(address: str, driver: str, order: str) -> None:
    database = create_async_engine(url(address, driver))
    async with database.begin() as connection:
        await connection.execute(text(_INSERT.format(order)))
        await durable_context().complete(connection)
    await database.dispose()


async def complete_in_psycopg(address: str, order: str) -> None:
    async with await psycopg.AsyncConnection.connect(address) as connection:
        await connection.execute(_INSERT.format(order).encode())
        await durable_context().complete(connection)


# ---- the commit ends the task ----

ASYNC: dict[str, Callable[[str, str], Awaitable[None]]] = {
    "AsyncSession, psycopg": lambda address, order: complete_in_session(address, "psycopg", order),
    "AsyncSession, asyncpg": lambda address, order: complete_in_session(address, "asyncpg", order),
    "AsyncConnection, psycopg": lambda address, order: complete_in_connection(address, "psycopg", order),
    "AsyncConnection, asyncpg": lambda address, order: complete_in_connection(address, "asyncpg", order),
    "psycopg": complete_in_psycopg,
}


@pytest.mark.parametrize("kind", ASYNC)
async def test_what_is_raised_after_the_commit_changes_nothing(
    engine: ProcrastinateEngine, postgres: str, queue: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def body(order: str) -> None:
        await ASYNC[kind](postgres, order)
        raise ValueError("after the commit")

    plan.body = body
    async with TaskScheduler(engine=engine) as scheduler, working(engine):
        receipt = await scheduler.schedule(run, queue)
        await ends(receipt, DurableState.SUCCEEDED)
        await until_logged(caplog, "raised after complete() had stored its end: it has succeeded, and is not run again")
        assert await receipt.result() is None
    assert (plan.calls, plan.handled, await count(postgres, queue)) == (1, [], 1)
    assert await row_of(postgres, receipt) == ("succeeded", 1, None)


def complete_in_plain_session(address: str, order: str) -> None:
    with Session(create_engine(url(address, "psycopg"), poolclass=NullPool)) as session, session.begin():
        session.execute(text(_INSERT.format(order)))
        durable_context().complete(session)


def complete_in_plain_connection(address: str, order: str) -> None:
    with create_engine(url(address, "psycopg"), poolclass=NullPool).begin() as connection:
        connection.execute(text(_INSERT.format(order)))
        durable_context().complete(connection)


def complete_in_plain_psycopg(address: str, order: str) -> None:
    with psycopg.connect(address) as connection:
        connection.execute(_INSERT.format(order).encode())
        durable_context().complete(connection)


PLAIN = {"Session": complete_in_plain_session, "Connection": complete_in_plain_connection}


@pytest.mark.parametrize("kind", [*PLAIN, "psycopg"])
async def test_a_plain_function_completes(engine: ProcrastinateEngine, postgres: str, queue: str, kind: str) -> None:
    plan.plain_body = partial({**PLAIN, "psycopg": complete_in_plain_psycopg}[kind], postgres)
    async with TaskScheduler(engine=engine) as scheduler, working(engine):
        receipt = await scheduler.schedule(run_plain, queue)
        await ends(receipt, DurableState.SUCCEEDED)
    assert await count(postgres, queue) == 1
    assert await row_of(postgres, receipt) == ("succeeded", 1, None)


async def test_a_coroutine_function_uses_a_session_that_is_not_asynchronous_in_a_thread(
    engine: ProcrastinateEngine, postgres: str, queue: str
) -> None:
    async def body(order: str) -> None:
        with psycopg.connect(postgres) as connection:
            connection.execute(_INSERT.format(order).encode())
            await anyio.to_thread.run_sync(lambda: durable_context().complete(connection))

    plan.body = body
    async with TaskScheduler(engine=engine) as scheduler, working(engine):
        await ends(await scheduler.schedule(run, queue), DurableState.SUCCEEDED)
    assert await count(postgres, queue) == 1


async def test_the_result_is_stored_with_the_end(
    engine: ProcrastinateEngine, postgres: str, queue: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def body(order: str) -> str:
        async with await psycopg.AsyncConnection.connect(postgres) as connection:
            await durable_context().complete(connection, result="given")
        return "returned"

    plan.body = body
    async with TaskScheduler(engine=engine) as scheduler, working(engine):
        assert await (await scheduler.schedule(run, queue)).result(timeout=30) == "given"
    assert "its result is not stored" not in caplog.text


async def test_a_result_that_is_returned_after_the_end_is_in_the_log(
    engine: ProcrastinateEngine, postgres: str, queue: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def body(order: str) -> str:
        async with await psycopg.AsyncConnection.connect(postgres) as connection:
            await durable_context().complete(connection)
        return "late"

    plan.body = body
    async with TaskScheduler(engine=engine) as scheduler, working(engine):
        receipt = await scheduler.schedule(run, queue)
        assert await receipt.result(timeout=30) is None
        await until_logged(caplog, "the function returned it after complete(). Write complete(session, result=...)")


async def test_a_result_that_cannot_be_stored_is_an_error(
    engine: ProcrastinateEngine, postgres: str, queue: str
) -> None:
    errors: list[str] = []

    async def body(order: str) -> None:
        async with await psycopg.AsyncConnection.connect(postgres) as connection:
            for result in (object(), "x" * 70_000):
                with pytest.raises(ArgumentCodecError) as raised:
                    await durable_context().complete(connection, result=result)
                errors.append(str(raised.value))

    plan.body = body
    async with TaskScheduler(engine=engine) as scheduler, working(engine):
        await ends(await scheduler.schedule(run, queue), DurableState.SUCCEEDED)
        await ends(await scheduler.schedule(run_once, queue), DurableState.SUCCEEDED)
    assert "the function returned a object, which JSON cannot carry" in errors[0]
    assert "more than 64 KiB" in errors[1]
    assert "the function has no return annotation" in errors[2] or "returns nothing" in errors[2]


# ---- a rollback leaves the attempt to its function ----


async def test_a_rollback_and_an_error_lead_to_the_next_attempt(
    engine: ProcrastinateEngine, postgres: str, queue: str
) -> None:
    async def body(order: str) -> None:
        async with await psycopg.AsyncConnection.connect(postgres) as connection:
            await connection.execute(_INSERT.format(order).encode())
            await durable_context().complete(connection)
            if durable_context().attempt == 1:
                raise ConnectionError("before the commit")

    plan.body = body
    async with TaskScheduler(engine=engine) as scheduler, working(engine):
        receipt = await scheduler.schedule(run, queue)
        await ends(receipt, DurableState.SUCCEEDED)
        status = await receipt.status()
    assert (plan.calls, status.attempts, await count(postgres, queue)) == (2, 2, 1)


async def test_a_rollback_and_a_return_are_a_success(engine: ProcrastinateEngine, postgres: str, queue: str) -> None:
    async def body(order: str) -> str:
        async with session_of(postgres) as session:
            for _ in range(2):  # it may be called again after a rollback
                await session.execute(text(_INSERT.format(order)))
                await durable_context().complete(session)
                await session.rollback()
        return "gave up"

    plan.body = body
    async with TaskScheduler(engine=engine) as scheduler, working(engine):
        receipt = await scheduler.schedule(run, queue)
        assert await receipt.result(timeout=30) == "gave up"
    assert (plan.calls, await count(postgres, queue)) == (1, 0)


async def test_the_rollback_of_a_savepoint_is_one(engine: ProcrastinateEngine, postgres: str, queue: str) -> None:
    async def body(order: str) -> None:
        async with session_of(postgres) as session:
            await session.execute(text(_INSERT.format(order)))
            savepoint = await session.begin_nested()
            await durable_context().complete(session)
            await savepoint.rollback()
            assert (await row_of(postgres, receipt))[:2] == ("doing", durable_context().attempt - 1)
            if durable_context().attempt > 1:
                await durable_context().complete(session)
            await session.commit()
        raise ConnectionError

    plan.body = body
    async with TaskScheduler(engine=engine) as scheduler:
        receipt = await scheduler.schedule(run, queue)
        async with working(engine):
            await until(lambda: _is(plan, 2))
            await ends(receipt, DurableState.SUCCEEDED)
    assert plan.calls == 2


async def _is(plan: Plan, calls: int) -> bool:
    return plan.calls >= calls


# ---- another worker has the task ----


@pytest.mark.parametrize("swallowed", [False, True])
async def test_a_task_that_another_worker_has_is_not_completed(
    engine: ProcrastinateEngine, postgres: str, queue: str, swallowed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def body(order: str) -> None:
        # What the heartbeat of another worker does when this one seems dead, and its claim.
        await execute(postgres, "UPDATE procrastinate_jobs SET attempts = attempts + 1 WHERE id = %s", int(receipt.id))
        async with await psycopg.AsyncConnection.connect(postgres) as connection:
            await connection.execute(_INSERT.format(order).encode())
            try:
                await durable_context().complete(connection)
            except DurableTaskTakenOverError:
                await connection.rollback()
                if not swallowed:
                    raise

    plan.body = body
    async with TaskScheduler(engine=engine) as scheduler:
        receipt = await scheduler.schedule(run, queue)
        async with working(engine):
            await until(lambda: _is(plan, 1))
            await ends(await scheduler.schedule(other), DurableState.SUCCEEDED)
    assert (plan.calls, plan.handled, await count(postgres, queue)) == (1, [], 0)
    # A success that nothing was committed with must not end the task that the other worker runs.
    assert (await row_of(postgres, receipt))[:2] == ("doing", 1)
    logged = "ends without effect: the call is that of another worker, or has ended" in caplog.text
    assert logged is not swallowed


async def test_a_success_after_a_rollback_does_not_end_the_task_of_another_worker(
    engine: ProcrastinateEngine, postgres: str, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was taken over between the look at the row and the report."""
    add = _reports.Reports.add
    taken = anyio.Event()

    def add_later(reports: _reports.Reports, report: _reports.Report) -> None:
        async def later() -> None:
            await execute(postgres, "UPDATE procrastinate_jobs SET attempts = 5 WHERE id = %s", int(receipt.id))
            add(reports, report)
            taken.set()

        if report.row.name == run.name:
            group.start_soon(later)
        else:
            add(reports, report)

    async def body(order: str) -> None:
        async with await psycopg.AsyncConnection.connect(postgres) as connection:
            await durable_context().complete(connection)
            await connection.rollback()

    plan.body = body
    monkeypatch.setattr(_reports.Reports, "add", add_later)
    async with anyio.create_task_group() as group, TaskScheduler(engine=engine) as scheduler:
        receipt = await scheduler.schedule(run, queue)
        async with working(engine):
            await taken.wait()
            await ends(await scheduler.schedule(other), DurableState.SUCCEEDED)
    assert (await row_of(postgres, receipt))[:2] == ("doing", 5)


async def test_completing_twice_is_an_error(engine: ProcrastinateEngine, postgres: str, queue: str) -> None:
    async def body(order: str) -> None:
        async with session_of(postgres) as session:
            await durable_context().complete(session)
            with pytest.raises(DurableTaskTakenOverError, match="its end is stored already"):
                await durable_context().complete(session)
            await session.commit()

    plan.body = body
    async with TaskScheduler(engine=engine) as scheduler, working(engine):
        receipt = await scheduler.schedule(run_once, queue)
        await ends(receipt, DurableState.SUCCEEDED)
    assert plan.handled == []


async def test_a_session_of_another_database_fails_the_attempt(
    engine: ProcrastinateEngine, postgres: str, queue: str
) -> None:
    async with new_database(postgres, f"other_{queue.replace('-', '_')}") as elsewhere:

        async def body(order: str) -> None:
            async with await psycopg.AsyncConnection.connect(elsewhere) as connection:
                await durable_context().complete(connection)

        plan.body = body
        tables = ProcrastinateEngine(elsewhere, queue=queue)
        async with tables, TaskScheduler(engine=engine) as scheduler, working(engine):
            receipt = await scheduler.schedule(run_once, queue)
            await ends(receipt, DurableState.FAILED)
    assert plan.handled == ["DurableTaskTakenOverError"]


async def test_an_attempt_that_is_over_completes_nothing(
    engine: ProcrastinateEngine, postgres: str, queue: str
) -> None:
    async def body(order: str) -> None:
        plan.handled.append("begun")
        contexts.append(durable_context())

    contexts: list[Any] = []
    plan.body = body
    async with TaskScheduler(engine=engine) as scheduler, working(engine):
        receipt = await scheduler.schedule(run, queue)
        await ends(receipt, DurableState.SUCCEEDED)
        async with await psycopg.AsyncConnection.connect(postgres) as connection:
            with pytest.raises(DurableTaskTakenOverError, match=r"this attempt of .* is over"):
                await contexts[0].complete(connection)


# ---- while the transaction is open ----


async def _complete_and_leave_open(order: str, address: str, connections: list[psycopg.AsyncConnection]) -> None:
    connection = await psycopg.AsyncConnection.connect(address)
    connections.append(connection)
    await connection.execute(_INSERT.format(order).encode())
    await durable_context().complete(connection)
    emit("this waits for the transaction, and what other tasks emit does not")


@pytest.mark.parametrize("commits", [True, False])
async def test_an_open_transaction_holds_nothing_up(
    engine: ProcrastinateEngine,
    postgres: str,
    queue: str,
    commits: bool,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_completing, "_LONG", 0.0)
    monkeypatch.setattr(_housekeeping, "PAUSE", 0.02)
    connections: list[psycopg.AsyncConnection] = []
    plan.body = partial(_complete_and_leave_open, address=postgres, connections=connections)
    async with TaskScheduler(engine=engine) as scheduler, working(engine, concurrency=2):
        receipt = await scheduler.schedule(run_once, queue)
        await until_logged(caplog, "the transaction that it called complete() with is still open")
        before = await _beats(postgres, queue)
        for _ in range(3):  # claims and reports go on
            await ends(await scheduler.schedule(other), DurableState.SUCCEEDED)
        assert (await receipt.status()).state is DurableState.RUNNING

        async def beats() -> bool:
            return bool(await _beats(postgres, queue) > before)

        await until(beats)
        await (connections[0].commit() if commits else connections[0].rollback())
        await ends(receipt, DurableState.SUCCEEDED)
        await connections[0].close()
    assert (plan.calls, await count(postgres, queue)) == (1, int(commits))
    assert await row_of(postgres, receipt) == ("succeeded", 1, None)
    assert "tried again" not in caplog.text
    assert caplog.text.count("is still open") == 1


async def _beats(address: str, queue: str) -> Any:
    [[beat]] = await execute(
        address,
        "SELECT max(last_heartbeat) FROM procrastinate_workers JOIN tasks_workers_v2 USING (id) WHERE %s = ANY(queues)",
        queue,
    )
    return beat


async def test_a_worker_that_is_stopped_leaves_an_open_transaction_to_others(
    engine: ProcrastinateEngine,
    postgres: str,
    queue: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(_reports, "LAST_WORDS", 0.2)
    connections: list[psycopg.AsyncConnection] = []

    async def body(order: str) -> None:
        await _complete_and_leave_open(order, postgres, connections)
        plan.reached.set()
        raise ValueError("the end of the task")

    plan.body = body
    async with TaskScheduler(engine=engine) as scheduler:
        receipt = await scheduler.schedule(run_once, queue)
        async with working(engine) as stop:
            await plan.reached.wait()
            stop.set()
        assert (await receipt.status()).state is DurableState.RUNNING
        await connections[0].rollback()
        await connections[0].close()
        async with working(engine):  # which misses the other worker
            plan.body = partial(complete_in_psycopg, postgres)
            await ends(receipt, DurableState.SUCCEEDED)
    assert "has ended in a transaction that is still open: another worker will see" in caplog.text
    assert (plan.calls, await count(postgres, queue)) == (2, 1)


@pytest.mark.parametrize("commits", [True, False])
async def test_what_is_emitted_after_complete_counts_if_it_is_rolled_back(
    engine: ProcrastinateEngine, postgres: str, queue: str, commits: bool
) -> None:
    async def body(order: str) -> None:
        emit({"n": 1})
        await durable_context().report_progress(1)
        async with await psycopg.AsyncConnection.connect(postgres) as connection:
            await durable_context().complete(connection)
            emit({"n": 2})
            await durable_context().report_progress(2)  # waits for nothing that this transaction has locked
            await (connection.commit() if commits else connection.rollback())
        if commits:
            emit({"n": 3})

    plan.body = body
    async with TaskScheduler(engine=engine) as scheduler:
        receipt = await scheduler.schedule(run_once, queue)
        async with working(engine):
            with anyio.fail_after(30):
                found = [update async for update in follow_stored(scheduler, receipt.id, 0)]
        status = await receipt.status()
    events: list[Any] = [event.data for update in found for event in update.events]
    assert events == ([{"n": 1}] if commits else [{"n": 1}, {"n": 2}])
    assert (found[-1].state.value, status.progress) == ("succeeded", 1 if commits else 2)


async def test_the_next_task_of_a_key_runs_after_the_commit(
    engine: ProcrastinateEngine, postgres: str, queue: str
) -> None:
    order: list[str] = []

    async def body(text: str) -> None:
        order.append(f"{text} begins")
        async with await psycopg.AsyncConnection.connect(postgres) as connection:
            await durable_context().complete(connection)
            if text == "a":
                plan.reached.set()
                await plan.go_on.wait()
            order.append(f"{text} commits")

    plan.body = body
    async with TaskScheduler(engine=engine) as scheduler:
        target = scheduler.task(key="k", on_conflict="queue")
        receipts = [await target.schedule(run_once, text) for text in "ab"]
        async with working(engine):
            await plan.reached.wait()
            await ends(await scheduler.schedule(other), DurableState.SUCCEEDED)
            plan.go_on.set()
            for receipt in receipts:
                await ends(receipt, DurableState.SUCCEEDED)
        assert (await scheduler.task(key="k").schedule(run_once, "c")).created
    assert order == ["a begins", "a commits", "b begins", "b commits"]
    assert await execute(
        postgres, "SELECT 1 FROM tasks_heads_v1 WHERE lock = %s", f'["{queue}", "{run_once.name}", "k"]'
    )


async def test_a_cancellation_that_comes_too_late_changes_nothing(
    engine: ProcrastinateEngine, postgres: str, queue: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tasks_core")

    async def body(order: str) -> None:
        await complete_in_psycopg(postgres, order)
        # The notification of a cancellation from before the commit; again, for a worker that does not listen yet.
        while True:
            await execute(
                postgres,
                "SELECT pg_notify(%s, json_build_object('type', 'abort_job_requested', 'job_id', %s::bigint)::text)",
                f"procrastinate_queue_v1#{queue}",
                int(receipt.id),
            )
            plan.reached.set()
            await anyio.sleep(0.05)

    plan.body = body
    async with TaskScheduler(engine=engine) as scheduler:
        receipt = await scheduler.schedule(run, queue)
        async with working(engine):
            await plan.reached.wait()
            await until_logged(caplog, "was cancelled")
            assert await receipt.cancel() is False
    assert await row_of(postgres, receipt) == ("succeeded", 1, None)
    assert not any("is cancelled, as was asked for" in line for line in messages(caplog))


async def test_the_database_may_be_away_at_the_end(
    wire: Wire, postgres: str, queue: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_reports, "RECONNECT", 0.02)
    engine = ProcrastinateEngine(wire.address, queue=queue, pool_size=2, heartbeat=0.2)
    asked = anyio.Event()
    fetch = WorkerConnection.fetch
    errors: list[type[psycopg.Error]] = [psycopg.OperationalError, psycopg.errors.InsufficientPrivilege]

    async def fetch_settled(connection: WorkerConnection, query: Any, parameters: Any = None) -> list[Any]:
        if query is SETTLED and errors:
            error = errors.pop()
            if not errors:
                asked.set()
            raise error  # the first one is no outage, and so is in the log
        return await fetch(connection, query, parameters)

    async def body(order: str) -> None:
        await complete_in_psycopg(postgres, order)
        await wire.cut()

    plan.body = body
    monkeypatch.setattr(WorkerConnection, "fetch", fetch_settled)
    async with TaskScheduler(engine=engine) as scheduler:
        receipt = await scheduler.schedule(run, queue)
        async with working(engine):
            await asked.wait()
            await wire.mend()
            await ends(receipt, DurableState.SUCCEEDED)
            await ends(await scheduler.schedule(other), DurableState.SUCCEEDED)
    assert (plan.calls, await count(postgres, queue)) == (1, 1)
    assert "what became of its transaction is not known, and is asked again" in caplog.text


# ---- what is refused ----


async def test_a_connection_in_autocommit_mode_is_refused(
    engine: ProcrastinateEngine, postgres: str, queue: str
) -> None:
    async def body(order: str) -> None:
        async with await psycopg.AsyncConnection.connect(postgres, autocommit=True) as connection:
            with pytest.raises(EngineCapabilityError, match="autocommit mode"):
                await durable_context().complete(connection)
        database = create_async_engine(url(postgres, "asyncpg"), isolation_level="AUTOCOMMIT")
        async with AsyncSession(database) as session:
            with pytest.raises(EngineCapabilityError, match="autocommit mode"):
                await durable_context().complete(session)
        await database.dispose()
        plan.reached.set()
        raise ValueError

    plan.body = body
    async with TaskScheduler(engine=engine) as scheduler, working(engine):
        receipt = await scheduler.schedule(run_once, queue)
        await ends(receipt, DurableState.FAILED)
    assert (plan.reached.is_set(), plan.handled) == (True, ["ValueError"])


async def test_what_cannot_be_used_is_refused(engine: ProcrastinateEngine, postgres: str, queue: str) -> None:
    refused: list[str] = []

    class Odd:
        async def commit(self) -> None: ...

    async def body(order: str) -> None:
        complete: Any = durable_context().complete
        for odd in (Odd(), object(), Session()):
            with pytest.raises(EngineCapabilityError) as raised:
                await complete(odd)
            refused.append(str(raised.value))

    def plain_body(order: str) -> None:
        complete: Any = durable_context().complete
        with pytest.raises(EngineCapabilityError) as raised:
            complete(AsyncSession())
        refused.append(str(raised.value))

    plan.body, plan.plain_body = body, plain_body
    async with TaskScheduler(engine=engine) as scheduler, working(engine):
        await ends(await scheduler.schedule(run, queue), DurableState.SUCCEEDED)
        await ends(await scheduler.schedule(run_plain, queue), DurableState.SUCCEEDED)
    assert "Odd. Pass the SQLAlchemy AsyncSession, " in refused[0]
    assert refused[1].startswith("complete() was given a builtins.object. Pass the session or connection")
    assert "on the event loop, which its statement would block" in refused[2]
    assert "in a plain function, which cannot await it" in refused[3]


async def test_an_engine_that_cannot_do_it_refuses() -> None:
    errors: list[str] = []

    async def body(order: str) -> None:
        with pytest.raises(EngineCapabilityError) as raised:
            await durable_context().complete(AsyncSession())
        errors.append(str(raised.value))

    plan.body = body
    stopping = anyio.Event()
    engine = ListEngine()
    async with TaskScheduler(engine=engine) as scheduler, anyio.create_task_group() as group:
        await scheduler.schedule(run, "x")
        group.start_soon(Worker(engine).run, stopping)

        async def has_run() -> bool:
            return bool(errors)

        await until(has_run)
        stopping.set()
    assert errors == [
        "complete(): what runs 'complete.run' cannot store its end in a transaction. ProcrastinateEngine can, on "
        "asyncio"
    ]
