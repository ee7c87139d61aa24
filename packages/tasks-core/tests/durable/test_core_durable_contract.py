"""The engine on PostgreSQL, and the list engine of these tests, keep the contract of engines."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from uuid import uuid4

import anyio
import psycopg
import pytest
from core_engine import ListEngine
from core_postgres import Wire, postgres, queue, wire
from tasks_core.engines import Delivery, DurableCall, Engine
from tasks_core.engines.procrastinate import ProcrastinateEngine
from tasks_testing.engine_contract import EngineContract, OperableEngineContract

__all__ = ("postgres", "queue", "wire")

# A worker that begins a call, says so, and never ends.
_WORKER = """
import sys, anyio
from pathlib import Path
from tasks_core.engines.procrastinate import ProcrastinateEngine
from tasks_testing import engine_contract  # the functions that a worker knows

async def run(delivery):
    Path(sys.argv[3]).write_text(delivery.call.idempotency_key)
    await anyio.sleep_forever()

async def main():
    engine = ProcrastinateEngine(sys.argv[1], queue=sys.argv[2], heartbeat=0.2)
    async with engine:
        await engine.work(run, concurrency=1, stopping=anyio.Event())

anyio.run(main)
"""


class TestProcrastinateEngine(OperableEngineContract):
    @pytest.fixture
    def anyio_backend(self) -> str:
        return "asyncio"

    @pytest.fixture
    def engine(self, wire: Wire, queue: str, tmp_path: Path) -> ProcrastinateEngine:
        self.wire, self.queue, self.folder = wire, queue, tmp_path
        return ProcrastinateEngine(wire.address, queue=queue, pool_size=4, heartbeat=0.2)

    @asynccontextmanager
    async def transaction(self, engine: Engine) -> AsyncIterator[psycopg.AsyncConnection]:
        assert isinstance(engine, ProcrastinateEngine)
        async with await psycopg.AsyncConnection.connect(engine.conninfo) as connection:
            await connection.execute("SELECT 1")  # from here on there is a transaction
            yield connection

    @asynccontextmanager
    async def outage(self, engine: Engine) -> AsyncIterator[None]:
        await self.wire.cut()
        yield
        await self.wire.mend()

    async def kill_worker_with(self, engine: Engine, call: DurableCall) -> None:
        begun = self.folder / "begun"
        await engine.submit(call)
        assert isinstance(engine, ProcrastinateEngine)
        command = [sys.executable, "-c", _WORKER, engine.conninfo, self.queue, str(begun)]
        process = subprocess.Popen(command)  # noqa: ASYNC220  the process is killed, which blocks nothing
        try:
            with anyio.fail_after(self.patience):
                while not begun.exists():
                    await anyio.sleep(0.02)
        finally:
            process.kill()
            process.wait()


class TestListEngine(EngineContract):
    @pytest.fixture
    def engine(self) -> ListEngine:
        return ListEngine()

    @asynccontextmanager
    async def transaction(self, engine: Engine) -> AsyncIterator[str]:
        assert isinstance(engine, ListEngine)
        name = uuid4().hex
        engine.uncommitted.add(name)
        try:
            yield name
        except BaseException:
            engine.roll_back(name)
            raise
        engine.uncommitted.remove(name)

    @asynccontextmanager
    async def outage(self, engine: Engine) -> AsyncIterator[None]:
        assert isinstance(engine, ListEngine)
        engine.down = True
        yield
        engine.down = False

    async def kill_worker_with(self, engine: Engine, call: DurableCall) -> None:
        begun = anyio.Event()

        async def run(_delivery: Delivery) -> None:
            begun.set()
            await anyio.sleep_forever()

        await engine.submit(call)
        async with anyio.create_task_group() as worker:
            worker.start_soon(partial(engine.work, run, concurrency=1, stopping=anyio.Event()))
            await begun.wait()
            worker.cancel_scope.cancel()
