"""The tables: procrastinate's own, and one of ours that makes keys unique."""

from __future__ import annotations

import logging
from typing import Any

from procrastinate.schema import SchemaManager
from psycopg import AsyncConnection
from psycopg.sql import SQL

from tasks_core.exceptions import EngineSchemaError

logger = logging.getLogger("tasks_core")

# Two processes that start at once on an empty database take turns.
_LOCK = SQL("SELECT pg_advisory_xact_lock(7459620183)")

# Functions of procrastinate that this engine or the installed procrastinate calls. There is no version in the database.
_NEEDED = (
    "procrastinate_cancel_job_v1",
    "procrastinate_defer_jobs_v1",
    "procrastinate_fetch_job_v2",
    "procrastinate_finish_job_v1",
    "procrastinate_prune_stalled_workers_v1",
    "procrastinate_register_worker_v1",
    "procrastinate_retry_job_v2",
    "procrastinate_update_heartbeat_v1",
)
_OURS = "tasks_submit_v1"

_MISSING = SQL(
    "SELECT name FROM unnest(%s::text[]) AS name WHERE NOT EXISTS (SELECT FROM pg_proc WHERE proname = name)"
)

# A key is taken once, for as long as its job is kept; a second call gets the job of the first. In a transaction of the
# caller, others with the same key wait for its end. Inside of a function each statement sees what was committed since.
_KEYS = SQL(
    """
CREATE TABLE tasks_keys (
    key text PRIMARY KEY,
    job_id bigint REFERENCES procrastinate_jobs (id) ON DELETE CASCADE
);
CREATE INDEX tasks_keys_job_id ON tasks_keys (job_id);

CREATE FUNCTION tasks_submit_v1(new_key text, job procrastinate_job_to_defer_v1, OUT id bigint, OUT created boolean)
    LANGUAGE plpgsql
AS $$
BEGIN
    INSERT INTO tasks_keys (key) VALUES (new_key) ON CONFLICT DO NOTHING;
    created := FOUND;
    IF created THEN
        id := (procrastinate_defer_jobs_v1(ARRAY[job]))[1];
        UPDATE tasks_keys SET job_id = id WHERE key = new_key;
    ELSE
        SELECT job_id INTO id FROM tasks_keys WHERE key = new_key;
    END IF;
END;
$$;
"""
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


async def _apply(connection: AsyncConnection[Any]) -> None:
    if not await _exists(connection):
        await connection.execute(SchemaManager.get_schema())
        logger.info("Created the tables of procrastinate in the database of the durable tasks")
    if await _missing(connection) == [_OURS]:
        await connection.execute(_KEYS)


async def _check(connection: AsyncConnection[Any]) -> None:
    missing = await _missing(connection)
    if not missing:
        return
    if await _exists(connection):
        advice = "It has tables of an older procrastinate: run the migrations that its documentation lists"
    else:
        advice = "Let the engine create them once: ProcrastinateEngine(..., apply_schema=True)"
    raise EngineSchemaError(
        f"The database lacks {', '.join(missing)}, which tasks-core and this release of procrastinate need. {advice}"
    )


async def _exists(connection: AsyncConnection[Any]) -> bool:
    cursor = await connection.execute(SQL("SELECT to_regclass('procrastinate_jobs') IS NOT NULL"))
    row = await cursor.fetchone()
    return bool(row and row[0])


async def _missing(connection: AsyncConnection[Any]) -> list[str]:
    cursor = await connection.execute(_MISSING, [[*_NEEDED, _OURS]])
    return [row[0] for row in await cursor.fetchall()]
