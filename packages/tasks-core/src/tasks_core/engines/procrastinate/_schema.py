"""The tables: procrastinate's own, and what the engine adds to them."""

from __future__ import annotations

import logging
from typing import Any

import anyio
import psycopg
from procrastinate.schema import SchemaManager
from psycopg import AsyncConnection
from psycopg.sql import SQL

from tasks_core.engines import EngineSchemaError

from ._sql import INDEXES, MISSING_INDEXES, MISSING_PARTS, PARTS, SETTINGS

logger = logging.getLogger("tasks_core")

# Two processes that start at once on an empty database take turns.
_LOCK = SQL("SELECT pg_advisory_xact_lock(7459620183)")
# A build of indexes that does not block writes waits for all transactions, also for one that waits for a lock: so
# nothing waits for this lock.
_INDEX_LOCK = SQL("SELECT pg_try_advisory_lock(7459620185)")
_INDEX_UNLOCK = SQL("SELECT pg_advisory_unlock(7459620185)")

# Functions of procrastinate that its tools of the installed release call. There is no version in the database: these
# are how an older schema is recognized.
_OF_PROCRASTINATE = (
    "procrastinate_cancel_job_v1",
    "procrastinate_defer_jobs_v1",
    "procrastinate_fetch_job_v2",
    "procrastinate_finish_job_v1",
    "procrastinate_prune_stalled_workers_v1",
    "procrastinate_register_worker_v1",
    "procrastinate_retry_job_v2",
    "procrastinate_update_heartbeat_v1",
)


async def prepare_schema(connection: AsyncConnection[Any], *, apply: bool) -> None:
    """
    Create what is missing, if *apply*, and check that all is there.

    Raises:
        EngineSchemaError: something is missing. Nothing was changed then.
    """
    async with connection.transaction():
        await connection.execute(_LOCK)
        if apply:
            await _apply(connection)
        await _check(connection)
    await _prepare_indexes(connection, apply=apply)


async def _apply(connection: AsyncConnection[Any]) -> None:
    if not await _exists(connection):
        await connection.execute(SchemaManager.get_schema())
        logger.info("Created the tables of procrastinate in the database of the durable tasks")
    missing = await _missing(connection)
    if not missing or not missing.issubset(PARTS):
        return
    for name, statement in PARTS.items():
        if name in missing:
            await connection.execute(statement)
    if missing == PARTS.keys():
        try:
            async with connection.transaction():
                await connection.execute(SETTINGS)
        except psycopg.errors.InsufficientPrivilege:
            logger.warning("The tables of procrastinate belong to another role: their autovacuum remains as it is")


async def _check(connection: AsyncConnection[Any]) -> None:
    missing = await _missing(connection)
    if not missing:
        return
    if await _exists(connection):
        advice = "It has tables of an older procrastinate: run the migrations that its documentation lists"
    else:
        advice = "Let the engine create them once: ProcrastinateEngine(..., apply_schema=True)"
    raise EngineSchemaError(
        f"The database lacks {', '.join(sorted(missing))}, which tasks-core and this release of procrastinate need. "
        f"{advice}"
    )


async def _exists(connection: AsyncConnection[Any]) -> bool:
    cursor = await connection.execute(SQL("SELECT to_regclass('procrastinate_jobs') IS NOT NULL"))
    row = await cursor.fetchone()
    return bool(row and row[0])


async def _missing(connection: AsyncConnection[Any]) -> set[str]:
    cursor = await connection.execute(MISSING_PARTS, [[*_OF_PROCRASTINATE, *PARTS]])
    return {row[0] for row in await cursor.fetchall()}


async def _prepare_indexes(connection: AsyncConnection[Any], *, apply: bool) -> None:
    """Build missing indexes one by one, on a large table without blocking writes, which takes minutes."""
    while missing := await _missing_indexes(connection):
        if not apply:
            logger.warning(
                "The database lacks the indexes %s: workers are slow. Let the engine create them once: "
                "ProcrastinateEngine(..., apply_schema=True)",
                ", ".join(name for name, _, _ in missing),
            )
            return
        cursor = await connection.execute(_INDEX_LOCK)
        locked = await cursor.fetchone()
        if locked is None or not locked[0]:
            await anyio.sleep(0.2)
            continue
        try:
            for name, invalid, large in await _missing_indexes(connection):
                concurrently = SQL("CONCURRENTLY ") if large else SQL("")
                if large:
                    logger.info("Building the index %s while the table is in use: this takes a while", name)
                if invalid:
                    await connection.execute(SQL("DROP INDEX {}{}").format(concurrently, SQL(name)))
                definition = SQL(INDEXES[name])
                await connection.execute(SQL("CREATE INDEX {}{} ON {}").format(concurrently, SQL(name), definition))
        finally:
            await connection.execute(_INDEX_UNLOCK)


async def _missing_indexes(connection: AsyncConnection[Any]) -> list[tuple[str, bool, bool]]:
    return await (await connection.execute(MISSING_INDEXES, [list(INDEXES)])).fetchall()
