"""A pool of connections to one SQLite file."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiosqlite
import anyio

logger = logging.getLogger("shop.database")

SYNCHRONOUS = "full"
"""`full`: a commit survives a power failure. The tests set `off`, which is faster."""

# One transaction, so that all tables exist or none, and one write to the disk.
_SCHEMA = """
begin immediate;
create table if not exists users (id integer primary key, email text not null unique, name text not null);
create table if not exists products (
    id integer primary key, name text not null, price integer not null, stock integer not null check (stock >= 0)
);
create table if not exists orders (
    id integer primary key, product_id integer not null references products, quantity integer not null,
    total integer not null, email text not null, status text not null, receipt text
);
create table if not exists images (id text primary key, title text not null, width integer, height integer);
create table if not exists audit (
    id integer primary key, at text not null default current_timestamp, entry text not null
);
insert or ignore into products values (1, 'Teapot', 2490, 20), (2, 'Cup', 690, 50), (3, 'Sugar bowl', 1150, 10);
commit;
"""


class Database:
    """A pool of connections, each used by one task or request at a time. Made by `open_database()`."""

    def __init__(self, connections: list[aiosqlite.Connection]) -> None:
        self._idle: asyncio.LifoQueue[aiosqlite.Connection] = asyncio.LifoQueue()
        for connection in connections:
            self._idle.put_nowait(connection)
        self._closed = False

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[aiosqlite.Connection]:
        """
        Yield a connection; commit when the block ends, roll back when it raises.

        Raises:
            RuntimeError: the pool is closed.
        """
        if self._closed:
            raise RuntimeError("The database pool is closed")
        connection = await self._idle.get()
        try:
            yield connection
            await connection.commit()
        except BaseException:
            with anyio.CancelScope(shield=True):  # a task that is cancelled must not leave its transaction open
                await connection.rollback()
            raise
        finally:
            self._idle.put_nowait(connection)

    def close(self) -> None:
        """Refuse further transactions."""
        self._closed = True


@asynccontextmanager
async def open_database(path: Path, connections: int = 5) -> AsyncIterator[Database]:
    """Open the pool and create the tables; close the pool when the block ends."""
    async with AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(aiosqlite.connect(path)) for _ in range(connections)]
        for connection in opened:
            connection.row_factory = aiosqlite.Row
            await connection.execute(f"pragma synchronous = {SYNCHRONOUS}")
            await connection.execute("pragma journal_mode = wal")  # readers and the writer do not wait for each other
            await connection.execute("pragma foreign_keys = on")
        await opened[0].executescript(_SCHEMA)
        database = Database(opened)
        logger.info("Database pool opened")
        yield database
        database.close()
    logger.info("Database pool closed")
