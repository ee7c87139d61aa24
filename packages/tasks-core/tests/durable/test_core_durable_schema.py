"""Indexes and tables of a database that an engine finds incomplete, or that belong to another role."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator

import anyio
import psycopg
import pytest
from core_durable_functions import note
from core_postgres import execute_each, new_database, postgres, queue, until
from core_support import messages
from procrastinate.schema import SchemaManager
from psycopg.conninfo import make_conninfo
from tasks_core import TaskScheduler
from tasks_core.engines.procrastinate import ProcrastinateEngine

__all__ = ("postgres", "queue")

pytestmark = pytest.mark.anyio

INDEX = "tasks_ready_v2"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"  # all that psycopg knows


@pytest.fixture
async def database(postgres: str) -> AsyncIterator[str]:
    """The address of a database for one test."""
    async with new_database(postgres, "incomplete", "guest") as address:
        yield address


async def is_valid(address: str) -> bool:
    rows = await execute_each(address, f"SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('{INDEX}')")
    return rows == [(True,)]


async def enter(address: str, *, apply_schema: bool = True) -> None:
    async with ProcrastinateEngine(address, pool_size=1, apply_schema=apply_schema):
        pass


async def test_a_missing_index_is_a_warning_where_nothing_is_to_be_created(
    database: str, caplog: pytest.LogCaptureFixture
) -> None:
    await enter(database)
    await execute_each(database, f"DROP INDEX {INDEX}")
    await enter(database, apply_schema=False)
    assert f"The database lacks the indexes {INDEX}: workers are slow." in caplog.text
    await enter(database)
    assert await is_valid(database)


async def test_an_index_of_a_large_table_is_built_while_the_table_is_in_use(
    database: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tasks_core")
    await enter(database)
    await execute_each(
        database,
        f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = to_regclass('{INDEX}')",
        "UPDATE pg_class SET relpages = 3000 WHERE oid = to_regclass('procrastinate_jobs')",
    )
    caplog.clear()
    await enter(database)
    assert await is_valid(database)
    assert messages(caplog)[0] == f"Building the index {INDEX} while the table is in use: this takes a while"


async def test_two_processes_do_not_build_an_index_at_the_same_time(database: str) -> None:
    await enter(database)
    await execute_each(database, f"DROP INDEX {INDEX}")
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as other:
        await other.execute("SELECT pg_advisory_lock(7459620185)")
        async with anyio.create_task_group() as group:
            group.start_soon(enter, database)

            async def tried() -> bool:
                rows = await execute_each(
                    database,
                    "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_try_advisory_lock(745962018%'",
                )
                return bool(rows[0][0] > 1)  # that query, and the one of the engine

            await until(tried)
            assert not await is_valid(database)
            await other.execute("SELECT pg_advisory_unlock(7459620185)")
    assert await is_valid(database)


async def test_tables_of_another_role_keep_their_settings(
    database: str, queue: str, caplog: pytest.LogCaptureFixture
) -> None:
    await enter(database)
    indexes = await execute_each(
        database, "SELECT indexdef FROM pg_indexes WHERE indexname LIKE 'tasks_%' AND tablename LIKE 'procrastinate_%'"
    )
    await execute_each(database, "DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
    await execute_each(
        database,
        SchemaManager.get_schema(),
        *(definition for (definition,) in indexes),
        "CREATE ROLE guest LOGIN",
        "GRANT ALL ON SCHEMA public TO guest",
        "GRANT ALL ON ALL TABLES IN SCHEMA public TO guest",
        "GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO guest",
    )
    engine = ProcrastinateEngine(make_conninfo(database, user="guest"), queue=queue, pool_size=1)
    async with TaskScheduler(engine=engine) as scheduler:
        assert (await scheduler.schedule(note, "x")).created
    line = "The tables of procrastinate belong to another role: their autovacuum remains as it is"
    assert messages(caplog, logging.WARNING).count(line) == 1
