"""What PostgreSQL refuses, how it is set up, and what older releases have stored in it."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator

import anyio
import core_durable_functions as functions
import psycopg
import pytest
from core_durable_functions import flaky, forget, note
from core_postgres import ends, execute_each, new_database, postgres, queue, until, working
from psycopg import sql
from psycopg.conninfo import make_conninfo
from tasks_core import TaskScheduler
from tasks_core.engines import DurableState, EngineError, EngineSchemaError, EngineUnavailableError
from tasks_core.engines.procrastinate import ProcrastinateEngine

__all__ = ("forget", "postgres", "queue")

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"  # all that psycopg knows


@pytest.fixture
async def database(postgres: str) -> AsyncIterator[str]:
    """The address of a database for one test."""
    async with new_database(postgres, "refusals", "restricted") as address:
        yield address


async def test_engines_in_two_schemas_of_a_database(database: str, queue: str) -> None:
    await execute_each(database, "CREATE SCHEMA a", "CREATE SCHEMA b")
    for schema in ("a", "b"):
        engine = ProcrastinateEngine(make_conninfo(database, options=f"-csearch_path={schema}"), queue=queue)
        async with TaskScheduler(engine=engine) as scheduler, working(engine):
            receipt = await scheduler.schedule(note.configure(idempotency_key="k"), schema)
            assert (receipt.id, receipt.created) == ("1", True)
            await ends(receipt, DurableState.SUCCEEDED)
    assert functions.ran == ["a", "b"]


async def test_part_that_a_newer_release_needs_is_created_in_a_database_of_an_older_one(
    database: str, queue: str
) -> None:
    engine = ProcrastinateEngine(database, queue=queue)
    async with TaskScheduler(engine=engine) as scheduler:
        first = await scheduler.schedule(note.configure(idempotency_key="k"), "x")
    await execute_each(database, "DROP FUNCTION tasks_submit_v4")
    unchanged = ProcrastinateEngine(database, queue=queue, apply_schema=False)
    with pytest.raises(EngineSchemaError, match="lacks tasks_submit_v4"):
        await unchanged.__aenter__()
    async with TaskScheduler(engine=engine) as scheduler:
        second = await scheduler.schedule(note.configure(idempotency_key="k"), "x")
    assert (second.id, second.created) == (first.id, False)


async def test_role_that_may_not_create_the_tables(database: str) -> None:
    await execute_each(database, "CREATE ROLE restricted LOGIN", "REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    with pytest.raises(EngineSchemaError, match="permission denied for schema public"):
        async with ProcrastinateEngine(make_conninfo(database, user="restricted")):
            pytest.fail("not reached")


async def test_role_that_may_not_write_is_no_outage(database: str, queue: str) -> None:
    async with ProcrastinateEngine(database):
        pass
    await execute_each(
        database,
        "CREATE ROLE restricted LOGIN",
        "GRANT USAGE ON SCHEMA public TO restricted",
        "GRANT SELECT ON ALL TABLES IN SCHEMA public TO restricted",
    )
    engine = ProcrastinateEngine(make_conninfo(database, user="restricted"), queue=queue)
    async with TaskScheduler(engine=engine) as scheduler:
        with pytest.raises(EngineSchemaError, match="InsufficientPrivilege: permission denied for table"):
            await scheduler.schedule(note, "SECRET")


async def test_statement_timeout_of_a_submit_is_no_outage(database: str, queue: str) -> None:
    engine = ProcrastinateEngine(make_conninfo(database, options="-cstatement_timeout=1000"), queue=queue)
    async with (
        TaskScheduler(engine=engine) as scheduler,
        await psycopg.AsyncConnection.connect(database) as other,
    ):
        await other.execute("LOCK TABLE procrastinate_jobs IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(EngineError, match="QueryCanceled") as raised:
            await scheduler.schedule(note, "x")
        assert not isinstance(raised.value, EngineUnavailableError)


async def test_worker_survives_a_statement_timeout_of_its_database(database: str, queue: str) -> None:
    await execute_each(database, "ALTER DATABASE refusals SET statement_timeout = '500ms'")
    engine = ProcrastinateEngine(database, queue=queue, heartbeat=0.2)
    submitting = ProcrastinateEngine(make_conninfo(database, options="-c statement_timeout=0"), queue=queue)
    async with TaskScheduler(engine=submitting) as scheduler, working(engine):
        await ends(await scheduler.schedule(note, "before"), DurableState.SUCCEEDED)
        async with await psycopg.AsyncConnection.connect(database) as other:
            await other.execute("SET statement_timeout = 0")
            await other.execute("LOCK TABLE procrastinate_jobs IN ACCESS EXCLUSIVE MODE")
            await anyio.sleep(1.5)  # several heartbeats, and statements that wait for longer than the timeout
        await ends(await scheduler.schedule(note, "after"), DurableState.SUCCEEDED)
    assert functions.ran == ["before", "after"]


async def test_delay_is_by_the_clock_of_the_database(
    database: str, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 600)  # of the web server
    async with TaskScheduler(engine=ProcrastinateEngine(database, queue=queue)) as scheduler:
        await scheduler.task(delay=100).schedule(note, "x")
    async with await psycopg.AsyncConnection.connect(database) as connection:
        cursor = await connection.execute(
            "SELECT extract(epoch FROM scheduled_at - now())::float FROM procrastinate_jobs"
        )
        row = await cursor.fetchone()
    assert row is not None
    assert 90 < row[0] <= 100


async def test_rows_of_an_older_release_are_run(database: str, queue: str) -> None:
    """As the first release stored them: after two failures, one return, with a policy as data."""
    retry = {"attempts": 3, "backoff": 0.0, "max_delay": 60.0, "jitter": 0.0, "on": ["builtins:Exception"]}
    stored = {
        "name": flaky.name,
        "args": {"failures": 2, "error": "ConnectionResetError"},
        "key": "golden",
        "retry": retry,
        "headers": {"x-request-id": "r-7"},
        "failures": 2,
        "returns": 1,
    }
    engine = ProcrastinateEngine(database, queue=queue)
    async with engine:
        async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
            await connection.execute(
                sql.SQL(
                    "INSERT INTO procrastinate_jobs (queue_name, task_name, args, attempts)"
                    " VALUES (%s, 'tasks_core.run', %s, 3)"
                ),
                [queue, json.dumps(stored)],
            )

        async def ran() -> bool:
            return functions.ran == ["flaky"]  # in its third attempt

        async with working(engine):
            await until(ran)
