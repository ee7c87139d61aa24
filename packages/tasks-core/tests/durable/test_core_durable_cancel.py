"""Durable tasks that are cancelled by their receipt, wherever they run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import anyio
import anyio.lowlevel
import psycopg
import pytest
from core_postgres import Wire, ends, postgres, queue, until, wire, working
from tasks_core import TaskScheduler, current_task, durable
from tasks_core.engines import DurableState
from tasks_core.engines.procrastinate import ProcrastinateEngine
from tasks_testing import TasksRecorder

__all__ = ("postgres", "queue", "wire")

pytestmark = pytest.mark.anyio

log: list[str] = []


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def forget() -> None:
    log.clear()


@pytest.fixture
def engine(postgres: str, queue: str) -> ProcrastinateEngine:
    """Its heartbeats are so rare that a cancellation arrives by its notification, or does not."""
    return ProcrastinateEngine(postgres, queue=queue, pool_size=2, heartbeat=600)


async def logged(line: str) -> None:
    async def is_logged() -> bool:
        return line in log

    await until(is_logged)


@durable(name="cancel_shielded", shield=True)
async def shielded() -> None:
    log.append("runs")
    try:
        await anyio.sleep_forever()
    finally:
        log.append("cleaned up")


@durable(name="cancel_plain")
def plain() -> None:
    log.append("runs")
    task = current_task()
    assert task is not None
    while not task.cancel_requested:
        pass
    log.append("stopped")


async def test_another_engine_cancels_a_task_on_its_worker(
    engine: ProcrastinateEngine, postgres: str, queue: str
) -> None:
    other = ProcrastinateEngine(postgres, queue=queue, pool_size=2)
    async with TaskScheduler(engine=engine) as scheduler, other, working(engine):
        receipt = await scheduler.schedule(shielded)
        await logged("runs")
        with anyio.fail_after(20):
            assert await other.receipt(receipt.id).cancel()
            await logged("cleaned up")
            await ends(receipt, DurableState.CANCELLED)


async def test_a_plain_function_can_look_whether_it_is_cancelled(engine: ProcrastinateEngine) -> None:
    async with TaskScheduler(engine=engine) as scheduler, working(engine):
        receipt = await scheduler.schedule(plain)
        await logged("runs")
        assert await receipt.cancel()
        await ends(receipt, DurableState.CANCELLED)
        await logged("stopped")


async def test_a_cancellation_whose_notification_was_lost_comes_with_the_heartbeat(
    engine: ProcrastinateEngine, postgres: str, queue: str
) -> None:
    beating = ProcrastinateEngine(postgres, queue=queue, pool_size=2, heartbeat=0.2)
    async with TaskScheduler(engine=engine) as scheduler, working(beating):
        receipt = await scheduler.schedule(shielded)
        await logged("runs")
        async with await psycopg.AsyncConnection.connect(postgres) as connection:
            await connection.execute("ALTER TABLE procrastinate_jobs DISABLE TRIGGER USER")
            try:
                await connection.execute(
                    "UPDATE procrastinate_jobs SET abort_requested = true WHERE id = %s", [receipt.id]
                )
            finally:
                await connection.execute("ALTER TABLE procrastinate_jobs ENABLE TRIGGER USER")
        await ends(receipt, DurableState.CANCELLED)


async def test_a_task_is_cancelled_whose_worker_does_not_listen_yet(
    engine: ProcrastinateEngine, wire: Wire, queue: str
) -> None:
    remote = ProcrastinateEngine(wire.address, queue=queue, heartbeat=600)
    async with TaskScheduler(engine=engine) as scheduler, remote:
        wire.delay(b"LISTEN ", answer=False)
        receipt = await scheduler.schedule(shielded)
        async with working(remote):
            await logged("runs")
            await wire.delayed.wait()
            assert await receipt.cancel()
            wire.released.set()
            await ends(receipt, DurableState.CANCELLED)


async def test_a_task_is_cancelled_whose_worker_does_not_know_yet_that_it_has_it(
    engine: ProcrastinateEngine, wire: Wire, queue: str
) -> None:
    remote = ProcrastinateEngine(wire.address, queue=queue, heartbeat=600)
    async with TaskScheduler(engine=engine) as scheduler, remote:
        receipt = await scheduler.schedule(shielded)
        wire.delay(b"WITH candidate AS")
        listens, notified = wire.watch(b"LISTEN\x00"), wire.watch(b"abort_job_requested")
        async with working(remote):
            await wire.delayed.wait()
            await listens.wait()
            assert await receipt.cancel()
            await notified.wait()
            for _ in range(50):  # the notification is in the socket of the worker, which reads it now
                await anyio.lowlevel.checkpoint()
            wire.released.set()
            await ends(receipt, DurableState.CANCELLED)
    assert log == [], "the task has not begun"


async def test_an_operator_who_retries_a_cancelled_task_does_not_find_it_cancelled_again(
    engine: ProcrastinateEngine, postgres: str
) -> None:
    async with TaskScheduler(engine=engine) as scheduler:
        receipt = await scheduler.schedule(plain)
        assert await receipt.cancel()
        async with await psycopg.AsyncConnection.connect(postgres) as connection:
            await connection.execute("UPDATE procrastinate_jobs SET status = 'todo' WHERE id = %s", [receipt.id])
        async with working(engine):
            await logged("runs")
            assert await receipt.cancel()
            await ends(receipt, DurableState.CANCELLED)


async def test_a_task_that_waits_is_cancelled_in_a_test(tasks_recorder: TasksRecorder) -> None:
    async with TaskScheduler() as scheduler:
        first, second = await scheduler.schedule(plain), await scheduler.schedule(note)
        assert await first.cancel()
        await tasks_recorder.arun_durable(times=2)
        assert log == ["note", "note"]
        assert (await first.status()).state is DurableState.CANCELLED
        assert not await second.cancel()


async def test_a_task_that_runs_is_cancelled_in_a_test(tasks_recorder: TasksRecorder) -> None:
    async with TaskScheduler() as scheduler, anyio.create_task_group() as group:
        receipt = await scheduler.schedule(shielded)

        async def cancel() -> None:
            await logged("runs")
            assert (await receipt.status()).state is DurableState.RUNNING
            await receipt.cancel()

        group.start_soon(cancel)
        await tasks_recorder.arun_durable(times=2)
    assert log == ["runs", "cleaned up"]
    assert [run.state for run in tasks_recorder.durable_runs] == ["cancelled"]


@durable(name="cancel_note")
async def note() -> None:
    log.append("note")


_WORKER = """
import sys, anyio
sys.path.insert(0, sys.argv[3])
import test_core_durable_cancel
from tasks_core import Worker
from tasks_core.engines.procrastinate import ProcrastinateEngine

async def main():
    async with ProcrastinateEngine(sys.argv[1], queue=sys.argv[2], heartbeat=600) as engine:
        await Worker(engine).run(anyio.Event())

anyio.run(main)
"""


async def test_a_task_in_another_process_is_cancelled(engine: ProcrastinateEngine, postgres: str, queue: str) -> None:
    command = [sys.executable, "-c", _WORKER, postgres, queue, str(Path(__file__).parent)]
    async with TaskScheduler(engine=engine) as scheduler:
        receipt = await scheduler.schedule(shielded)
        process = subprocess.Popen(command)  # noqa: ASYNC220  which is killed at the end
        try:
            await ends(receipt, DurableState.RUNNING)
            assert await receipt.cancel()
            await ends(receipt, DurableState.CANCELLED)
        finally:
            process.kill()
            process.wait()
