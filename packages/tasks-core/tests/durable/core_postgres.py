"""A real PostgreSQL, from a wheel, for the tests of one process."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

import anyio
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from tasks_core import Receipt, Worker
from tasks_core.engines import DurableState
from tasks_core.engines.procrastinate import ProcrastinateEngine
from tasks_core.engines.procrastinate._embedded import EmbeddedPostgres


@cache
def folder() -> TemporaryDirectory[str]:
    """The same for all modules of tests in this process, so that they share a server; removed at its exit."""
    # Not in tmp_path: run as root, the server has another user, to whom all folders above are made readable.
    return TemporaryDirectory(prefix="tasks-")


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The address of a server that is there until the last test."""
    server = EmbeddedPostgres(Path(folder().name, "data"))
    yield anyio.run(server.start)
    anyio.run(server.stop)


@pytest.fixture
def queue() -> str:
    """A queue for one test: its tasks are seen by its workers only."""
    return f"test-{uuid4().hex[:12]}"


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait for what another process, or the database, comes to say."""
    with anyio.fail_after(30):
        while not await condition():
            await anyio.sleep(0.02)


async def ends(receipt: Receipt[Any], state: DurableState) -> None:
    """Wait for a task to be in a state."""

    async def ended() -> bool:
        return (await receipt.status()).state is state

    await until(ended)


async def until_logged(caplog: pytest.LogCaptureFixture, text: str) -> None:
    """Wait for a line in the log."""

    async def logged() -> bool:
        return text in caplog.text

    await until(logged)


async def execute(address: str, statement: str, *parameters: object) -> list[Any]:
    """Execute a statement, and return its rows."""
    async with await psycopg.AsyncConnection.connect(address, autocommit=True) as connection:
        cursor = await connection.execute(statement.encode(), parameters or None)
        return await cursor.fetchall() if cursor.description else []


async def execute_each(address: str, *statements: str) -> list[Any]:
    """Execute statements one by one, and return the rows of the last."""
    rows: list[Any] = []
    for statement in statements:
        rows = await execute(address, statement)
    return rows


@asynccontextmanager
async def new_database(address: str, name: str, role: str | None = None) -> AsyncIterator[str]:
    """The address of a database for one test, after which *role* is dropped, too."""
    await execute(address, f"CREATE DATABASE {name}")
    try:
        yield make_conninfo(address, dbname=name)
    finally:
        await execute(address, f"DROP DATABASE {name} WITH (FORCE)")
        if role is not None:
            await execute(address, f"DROP ROLE IF EXISTS {role}")


@asynccontextmanager
async def working(engine: ProcrastinateEngine, **options: Any) -> AsyncIterator[anyio.Event]:
    """A worker, stopped at the end of the block at the latest."""
    stop = anyio.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(Worker(engine, **{"concurrency": 4, **options}).run, stop)
        yield stop
        stop.set()


# The end of what the server says about a statement that was executed and committed.
_READY = b"Z\x00\x00\x00\x05I"


class Wire:
    """Leads to the server, and can be cut: for those who come through it, the server is away then."""

    def __init__(self, address: str) -> None:
        self._server = f"{conninfo_to_dict(address)['host']}/.s.PGSQL.5432"
        self._folder = TemporaryDirectory(prefix="tasks-")
        self._socket = f"{self._folder.name}/.s.PGSQL.5432"
        self.address = make_conninfo(address, host=self._folder.name)
        self._listeners: list[asyncio.Server] = []
        self._is_cut = True
        self._ends: set[asyncio.StreamWriter] = set()
        self._leading: set[asyncio.Task[Any] | None] = set()
        self._text: bytes | None = None
        self._alone = False
        self._doomed: set[asyncio.BaseTransport] = set()
        self.lost = asyncio.Event()
        self._delayed: bytes | None = None
        self._only_answer = True
        self._slow: set[asyncio.BaseTransport] = set()
        self.delayed = asyncio.Event()
        self.released = asyncio.Event()
        self._watched: dict[bytes, asyncio.Event] = {}

    async def __aenter__(self) -> Self:
        await self.mend()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.released.set()
        await self.cut()
        # A connection that is accepted in the moment of the cut would stay open after the event loop. And a listener
        # that is closed before asyncio has made the transport of such a connection leaves its socket open.
        for _ in range(5):
            await asyncio.sleep(0)
        for listener in self._listeners:
            listener.close()
        while self._leading:
            await asyncio.sleep(0)
        self._folder.cleanup()

    async def mend(self) -> None:
        """Let everybody through."""
        self._listeners.append(await asyncio.start_unix_server(self._lead, self._socket))
        self._is_cut = False

    async def cut(self) -> None:
        """Break all connections, and refuse new ones."""
        self._cut()
        await asyncio.sleep(0)

    def _cut(self, *kept: asyncio.BaseTransport) -> None:
        if not self._is_cut:
            self._is_cut = True
            os.unlink(self._socket)  # noqa: PTH108  nothing that could block a loop
        for end in [end for end in self._ends if end.transport not in kept]:
            self._ends.discard(end)
            end.transport.abort()

    def lose(self, text: bytes, *, alone: bool = False) -> None:
        """Break the connection on which *text* comes next, in the moment in which its transaction is committed.

        *alone*: all the others are cut before the server hears of it.
        """
        self._text = text
        self._alone = alone

    def delay(self, text: bytes, *, answer: bool = True) -> None:
        """Keep what has *text* in it, or the answer to it, once, until `released`. It sets `delayed`."""
        self._delayed = text
        self._only_answer = answer

    def watch(self, text: bytes) -> asyncio.Event:
        """Return what is set when *text* has passed, in whichever direction."""
        return self._watched.setdefault(text, asyncio.Event())

    async def _lead(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        this = asyncio.current_task()
        self._leading.add(this)
        try:
            of_server, to_server = await asyncio.open_unix_connection(self._server)
            self._ends |= {writer, to_server}
            if self._is_cut:
                writer.transport.abort()
                to_server.transport.abort()
            await asyncio.gather(
                self._carry(reader, to_server, writer.transport), self._carry(of_server, writer, writer.transport)
            )
            self._doomed.discard(writer.transport)
            self._ends -= {writer, to_server}
        finally:
            self._leading.discard(this)

    async def _carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, client: asyncio.BaseTransport
    ) -> None:
        try:
            while data := await reader.read(65536):
                if self._text is not None and self._text in data:
                    self._doomed.add(client)
                    self._text = None
                    if self._alone:
                        self._cut(client, writer.transport)
                if self._delayed is not None and self._delayed in data:
                    self._slow.add(client)
                    self._delayed = None
                if client in self._slow and self._only_answer is (writer.transport is client):
                    self._slow.discard(client)
                    self.delayed.set()
                    await self.released.wait()
                if client in self._doomed and data.endswith(_READY) and writer.transport is client:
                    self.lost.set()  # the server has done it, and the client does not learn of it
                    break
                writer.write(data)
                for text in [text for text in self._watched if text in data]:
                    self._watched[text].set()
        except ConnectionError:
            pass  # cut
        writer.close()


@pytest.fixture
async def wire(postgres: str) -> AsyncIterator[Wire]:
    async with Wire(postgres) as wire:
        yield wire


@pytest.fixture
def engine(wire: Wire, queue: str) -> ProcrastinateEngine:
    """An engine that comes through the wire."""
    return ProcrastinateEngine(wire.address, queue=queue, pool_size=2, heartbeat=0.2)
