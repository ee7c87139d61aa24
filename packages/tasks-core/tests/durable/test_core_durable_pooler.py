"""A pooler between a worker and PostgreSQL, as far as a client can tell: its server process has another number."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

import anyio
import core_durable_functions as functions
import psycopg
import pytest
from core_durable_functions import forget, note, unshielded
from core_postgres import Wire, ends, postgres, queue, working
from core_support import messages
from tasks_core import TaskScheduler
from tasks_core.engines import DurableState
from tasks_core.engines.procrastinate import ProcrastinateEngine

__all__ = ("forget", "postgres", "queue")

pytestmark = pytest.mark.anyio

# The message of the server that tells its number: a letter, the length, the number, a secret.
_NUMBER = b"K\x00\x00\x00\x0c"


class Pooler(Wire):
    """Gives each client a number of its own."""

    async def _carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, client: asyncio.BaseTransport
    ) -> None:
        if writer.transport is client:
            greeting = await reader.readuntil(_NUMBER)
            await reader.readexactly(4)
            writer.write(greeting + b"\x00\x00\x00\x01")
        await super()._carry(reader, writer, client)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def pooler(postgres: str) -> AsyncIterator[Pooler]:
    async with Pooler(postgres) as pooler:
        yield pooler


async def test_a_worker_behind_a_pooler_says_what_it_costs_and_works(
    pooler: Pooler, postgres: str, queue: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks_core.engines.procrastinate._work.POLL", 0.1)
    engine = ProcrastinateEngine(pooler.address, queue=queue, pool_size=2, heartbeat=0.2)
    async with TaskScheduler(engine=engine) as scheduler, working(engine):
        receipt = await scheduler.schedule(note, "x")
        await ends(receipt, DurableState.SUCCEEDED)
        # No notification arrives: the heartbeat finds that a task is to be cancelled.
        functions.waiting["y"], functions.released["y"] = anyio.Event(), anyio.Event()
        receipt = await scheduler.schedule(unshielded, "y")
        await functions.waiting["y"].wait()
        async with await psycopg.AsyncConnection.connect(postgres, autocommit=True) as connection:
            await connection.execute("SELECT procrastinate_cancel_job_v1(%s, true, false)", [int(receipt.id)])
        await ends(receipt, DurableState.CANCELLED)
    assert functions.ran == ["x"]
    (line,) = [line for line in messages(caplog, logging.WARNING) if "through a pooler" in line]
    assert line.endswith("Give the worker the address of the server itself")
