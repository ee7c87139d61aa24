"""What the statements of an engine read, as PostgreSQL counts it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, LiteralString

import psycopg
import pytest
from core_postgres import execute
from psycopg.conninfo import make_conninfo
from tasks_core.engines.procrastinate import ProcrastinateEngine
from tasks_core.engines.procrastinate._sql import OPERATOR_SETTINGS

# The large tables: each row of them that is read costs.
TABLES = ("procrastinate_jobs", "procrastinate_events", "tasks_keys_v2")


async def insert_failed(address: str, queue: str, count: int) -> list[int]:
    """Store rows and events of tasks that have failed, and return the first and the last id."""
    # Without the triggers and foreign keys, which would take most of the time.
    quick = make_conninfo(address, options="-c session_replication_role=replica")
    fields = {"name": "many", "key": "k", "args": {}, "errors": [{"error": "ConnectionError", "ended": 1.0}]}
    await execute(
        quick,
        "INSERT INTO procrastinate_jobs (queue_name, task_name, args, status, attempts)"
        " SELECT %s, 'tasks_core.run', %s, 'failed', 1 FROM generate_series(1, %s)",
        queue,
        json.dumps(fields),
        count,
    )
    await execute(
        quick,
        "INSERT INTO procrastinate_events (job_id, type, at) SELECT id, type::procrastinate_job_event_type, now()"
        " FROM procrastinate_jobs, unnest(ARRAY['deferred', 'started', 'failed']) AS type WHERE queue_name = %s",
        queue,
    )
    [row] = await execute(address, "SELECT min(id), max(id) FROM procrastinate_jobs WHERE queue_name = %s", queue)
    return list(row)


@dataclass
class Reads:
    """What statements have read."""

    rows: int = 0
    """Rows of the large tables, also those that did not fit."""
    whole: set[str] = field(default_factory=set)
    """The large tables that were read from end to end."""


class Asked:
    """The statements of operators that engines execute while it is in force."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.statements: list[tuple[LiteralString, dict[str, Any]]] = []
        ask, statements = ProcrastinateEngine._ask, self.statements

        async def noting(engine: ProcrastinateEngine, query: LiteralString, parameters: dict[str, Any]) -> list[Any]:
            statements.append((query, parameters))
            return await ask(engine, query, parameters)

        monkeypatch.setattr(ProcrastinateEngine, "_ask", noting)

    async def reads(self, address: str) -> Reads:
        """Execute them once more, with their settings, and add up what that reads; forget them."""
        reads = Reads()
        async with await psycopg.AsyncConnection.connect(
            address, cursor_factory=psycopg.AsyncClientCursor
        ) as connection:
            await connection.execute(OPERATOR_SETTINGS)
            for query, parameters in self.statements:
                explain: LiteralString = "EXPLAIN (ANALYZE, FORMAT JSON, TIMING off) " + query
                [[[plan]]] = await (await connection.execute(explain, parameters)).fetchall()
                for node in _nodes(plan["Plan"]):
                    _add(reads, node)
            await connection.rollback()
        self.statements.clear()
        return reads


def _nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for inner in node.get("Plans", ()):
        yield from _nodes(inner)


def _add(reads: Reads, node: dict[str, Any]) -> None:
    if node.get("Relation Name") in TABLES:
        removed = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
        reads.rows += int((node["Actual Rows"] + removed) * node["Actual Loops"])
        if node["Node Type"] == "Seq Scan" and node["Actual Loops"]:
            reads.whole.add(node["Relation Name"])
