"""Connections of a worker, each for one purpose, opened anew after they broke."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, LiteralString

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

# A server that is gone without a word is noticed within half a minute. What the address says has precedence.
_DEFAULTS = {
    "connect_timeout": 10,
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}

# The statements of a worker find rows by indexes, whatever the planner believes about tables without statistics.
# `statement_timeout` and the isolation may have been set for the whole database, with requests in mind.
_SETTINGS = """
SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off; SET jit = off;
SET default_transaction_isolation = 'read committed'; SET statement_timeout = '60s'; SET lock_timeout = 0
"""


def address_of_worker(conninfo: str) -> str:
    """Complete the address."""
    given = conninfo_to_dict(conninfo)
    return make_conninfo(conninfo, **{name: value for name, value in _DEFAULTS.items() if name not in given})


def set_up(connection: psycopg.Connection[Any]) -> None:
    """Prepare a connection of a thread, as `WorkerConnection` does its own."""
    if is_pooled(connection.info.backend_pid, connection.execute("SELECT pg_backend_pid()").fetchone()):
        connection.prepare_threshold = None
    else:
        connection.execute(_SETTINGS)


def is_pooled(pid_of_client: int, row: Any) -> bool:
    """Return whether a pooler stands between: what it says is the number of the server process is not."""
    return row is not None and row[0] != pid_of_client


class WorkerConnection:
    """One connection, for one statement at a time; autocommit."""

    __slots__ = ("_connection", "_conninfo", "_lock", "pooled")

    def __init__(self, conninfo: str) -> None:
        self._conninfo = conninfo
        self._connection: psycopg.AsyncConnection[Any] | None = None
        self._lock = asyncio.Lock()
        self.pooled = False
        """Whether a pooler stands between, so that nothing may be expected of a session."""

    async def fetch(self, query: LiteralString, parameters: Mapping[str, Any] | None = None) -> list[Any]:
        """Run a statement and return its rows. After an error, the next statement gets a new connection."""
        async with self._lock:
            connection = self._connection
            if connection is None:
                connection = self._connection = await self.connect()
            try:
                cursor = await connection.execute(query, parameters)
                return await cursor.fetchall() if cursor.description is not None else []
            except BaseException:
                await self.close()
                raise

    async def connect(self) -> psycopg.AsyncConnection[Any]:
        """Open a connection that belongs to the caller."""
        connection = await psycopg.AsyncConnection.connect(self._conninfo, autocommit=True)
        try:
            row = await (await connection.execute("SELECT pg_backend_pid()")).fetchone()
            self.pooled = is_pooled(connection.info.backend_pid, row)
            if self.pooled:
                connection.prepare_threshold = None
            else:
                await connection.execute(_SETTINGS)
        except BaseException:
            await connection.close()
            raise
        return connection

    @asynccontextmanager
    async def session(self) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        """
        Open a connection for the block, and close it after that.

        Not by the connection's own `async with`, which a second cancellation leaves before it has closed.
        """
        connection = await self.connect()
        try:
            yield connection
        finally:
            await connection.close()

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()
