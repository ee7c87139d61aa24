"""Durable tasks in a process that runs trio: submitted and run through an event loop of asyncio in a thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextvars import ContextVar

import anyio
import core_durable_functions as functions
import psycopg
import pytest
import trio
from core_durable_functions import forget, note, shielded, unshielded
from core_postgres import ends, postgres, queue, working
from tasks_core import RetryPolicy, TaskScheduler, Worker, durable, durable_context
from tasks_core.engines import DurableState, EngineCapabilityError, EngineUnavailableError
from tasks_core.engines.procrastinate import ProcrastinateEngine

__all__ = ("forget", "postgres", "queue")

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "trio"


@pytest.fixture
def engine(postgres: str, queue: str) -> ProcrastinateEngine:
    return ProcrastinateEngine(postgres, queue=queue, pool_size=2, heartbeat=0.2)


def event_loops() -> list[threading.Thread]:
    """The threads that run an event loop for others."""
    return [thread for thread in threading.enumerate() if "portal" in thread.name]


settings: ContextVar[str] = ContextVar("settings")


@durable(retry=RetryPolicy(attempts=2, backoff=0.0))
async def on_this_loop(number: int) -> None:
    context = durable_context()
    await context.report_progress(number)
    if context.attempt == 1:
        raise ConnectionError
    functions.ran.append((number, trio.lowlevel.in_trio_run(), context.attempt, settings.get()))


@durable(name="trio.complete", retry=None)
async def complete() -> None:
    with pytest.raises(EngineCapabilityError, match="ProcrastinateEngine can, on asyncio"):
        await durable_context().complete(psycopg.AsyncConnection.__new__(psycopg.AsyncConnection))
    functions.ran.append("refused")


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(30):
        while not condition():
            await anyio.sleep(0.02)


async def work_once(address: str, queue: str) -> None:
    """A worker, as another process would run it: until one task is done."""
    stop = anyio.Event()
    async with ProcrastinateEngine(address, queue=queue) as engine, anyio.create_task_group() as group:
        group.start_soon(Worker(engine).run, stop)
        await until(lambda: bool(functions.ran))
        stop.set()


async def test_task_is_handed_over_and_run_by_a_worker_elsewhere(
    engine: ProcrastinateEngine, postgres: str, queue: str
) -> None:
    async with TaskScheduler(engine=engine) as scheduler:
        receipt = await scheduler.schedule(note, "from trio")
        assert (await receipt.status()).state is DurableState.PENDING
        await anyio.to_thread.run_sync(anyio.run, work_once, postgres, queue)
        assert (await receipt.status()).state is DurableState.SUCCEEDED
        assert len(event_loops()) == 1
    assert functions.ran == ["from trio"]
    assert functions.contexts[0].idempotency_key == receipt.idempotency_key
    assert event_loops() == []


async def test_keys_and_delays_are_as_elsewhere(engine: ProcrastinateEngine, queue: str) -> None:
    async with TaskScheduler(engine=engine) as scheduler:
        tasks = [scheduler.task(delay=3600).schedule(note.configure(idempotency_key=queue), "once") for _ in range(8)]
        receipts = [await task for task in tasks]
        assert sum(receipt.created for receipt in receipts) == 1
        assert len({receipt.id for receipt in receipts}) == 1


async def test_several_schedulers_share_the_thread_and_the_next_one_gets_another(engine: ProcrastinateEngine) -> None:
    for _ in range(2):
        async with TaskScheduler(engine=engine) as first:
            async with TaskScheduler(engine=engine) as second:
                await second.schedule(note, "1")
                assert len(event_loops()) == 1
            await first.schedule(note, "2")
        assert event_loops() == []


async def test_engine_that_does_not_answer_has_a_limited_time(
    engine: ProcrastinateEngine, postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks_core._durable.task._TIME_LIMIT", 0.3)
    async with TaskScheduler(engine=engine) as scheduler:
        locked, unlock = threading.Event(), threading.Event()
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.to_thread.run_sync, hold_table, postgres, locked, unlock)
            await until(locked.is_set)
            with pytest.raises(EngineUnavailableError, match=r"did not acknowledge 'note' within 0\.3 seconds"):
                await scheduler.schedule(note, "x")
            unlock.set()
        monkeypatch.setattr("tasks_core._durable.task._TIME_LIMIT", 5.0)
        await scheduler.schedule(note, "y")
    assert event_loops() == []


def hold_table(address: str, locked: threading.Event, unlock: threading.Event) -> None:
    with psycopg.connect(address) as connection:
        connection.execute("LOCK TABLE procrastinate_jobs IN ACCESS EXCLUSIVE MODE")
        locked.set()
        unlock.wait(30)


async def test_no_server_is_an_error_at_the_start_and_leaves_no_thread() -> None:
    with pytest.raises(EngineUnavailableError, match="PostgreSQL cannot be reached"):
        async with TaskScheduler(engine=ProcrastinateEngine("postgresql://127.0.0.1:1/none")):
            pytest.fail("not reached")
    assert event_loops() == []


async def test_transactions_are_of_asyncio(engine: ProcrastinateEngine) -> None:
    async with TaskScheduler(engine=engine) as scheduler:
        with pytest.raises(EngineCapabilityError, match="connections that run on asyncio, and this is trio"):
            scheduler.schedule(note.configure(transaction=object()), "x")


async def test_worker_takes_tasks_for_trio(engine: ProcrastinateEngine) -> None:
    """Wherever it comes from, a task runs on the event loop of its worker, and its context is there."""
    settings.set("of the worker")
    async with TaskScheduler(engine=engine) as scheduler:
        async with working(engine):
            receipts = [await scheduler.schedule(on_this_loop, number) for number in range(3)]
            for receipt in receipts:
                await ends(receipt, DurableState.SUCCEEDED)
        assert sorted(functions.ran) == [(number, True, 2, "of the worker") for number in range(3)]
        status = await receipts[0].status()
        assert (status.attempts, status.progress) == (2, 0)
    assert event_loops() == []


async def test_worker_on_trio_stops(engine: ProcrastinateEngine) -> None:
    """Shielded tasks end, others go back to the queue."""
    for name in ("shielded", "unshielded"):
        functions.waiting[name], functions.released[name] = anyio.Event(), anyio.Event()
    async with TaskScheduler(engine=engine) as scheduler:
        async with working(engine, grace_period=0) as stop:
            kept = await scheduler.schedule(shielded, "shielded")
            back = await scheduler.schedule(unshielded, "unshielded")
            for waiting in functions.waiting.values():
                await waiting.wait()
            stop.set()
            functions.released["shielded"].set()
        assert (await kept.status()).state is DurableState.SUCCEEDED
        assert (await back.status()).state is DurableState.PENDING
    assert functions.ran == ["shielded"]


async def test_worker_on_trio_is_cancelled(engine: ProcrastinateEngine) -> None:
    """Like a stop, without a grace period: what runs goes back to the queue."""
    functions.waiting["x"], functions.released["x"] = anyio.Event(), anyio.Event()
    async with TaskScheduler(engine=engine) as scheduler:
        receipt = await scheduler.schedule(unshielded, "x")
        async with anyio.create_task_group() as group:
            group.start_soon(Worker(engine).run, anyio.Event())
            await functions.waiting["x"].wait()
            group.cancel_scope.cancel()
        assert (await receipt.status()).state is DurableState.PENDING
        assert len(event_loops()) == 1


async def test_worker_on_trio_that_is_cancelled_by_procrastinate(
    engine: ProcrastinateEngine, postgres: str, caplog: pytest.LogCaptureFixture
) -> None:
    """As its own command `procrastinate shell` can: the task is cancelled on trio."""
    caplog.set_level("INFO", "tasks_core")
    functions.waiting["x"], functions.released["x"] = anyio.Event(), anyio.Event()
    async with TaskScheduler(engine=engine) as scheduler, working(engine) as stop:
        receipt = await scheduler.schedule(unshielded, "x")
        await functions.waiting["x"].wait()
        await anyio.to_thread.run_sync(abort, postgres, int(receipt.id))
        await ends(receipt, DurableState.CANCELLED)
        await until(lambda: " was cancelled" in caplog.text)
        assert not stop.is_set()
    assert functions.ran == []


async def test_worker_on_trio_that_is_cancelled_while_its_task_starts(
    engine: ProcrastinateEngine, postgres: str, caplog: pytest.LogCaptureFixture
) -> None:
    functions.waiting["x"], functions.released["x"] = anyio.Event(), anyio.Event()
    async with TaskScheduler(engine=engine) as scheduler, working(engine):
        await ends(await scheduler.schedule(note, "the worker listens"), DurableState.SUCCEEDED)
        receipt = await scheduler.task(delay=3600).schedule(unshielded, "x")
        # Here, so that trio does not turn until the worker was notified of the cancellation.
        claimed_and_aborted(postgres, int(receipt.id))
        await ends(receipt, DurableState.CANCELLED)
    assert functions.ran == ["the worker listens"]
    assert "grace period" not in caplog.text  # else the task has gone on until the worker was stopped


def claimed_and_aborted(address: str, job_id: int) -> None:
    row = [job_id]
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute("UPDATE procrastinate_jobs SET scheduled_at = now() WHERE id = %s", row)
        connection.execute(
            "SELECT pg_notify('procrastinate_queue_v1#' || queue_name, '{}') FROM procrastinate_jobs WHERE id = %s", row
        )
        deadline = time.monotonic() + 30
        while connection.execute("SELECT status FROM procrastinate_jobs WHERE id = %s", row).fetchone() != ("doing",):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    abort(address, job_id)
    time.sleep(0.5)  # at once; and with each heartbeat


def abort(address: str, job_id: int) -> None:
    with psycopg.connect(address) as connection:
        connection.execute("SELECT procrastinate_cancel_job_v1(%s, true, false)", [job_id])


async def test_the_end_is_no_part_of_a_transaction_on_trio(engine: ProcrastinateEngine) -> None:
    async with TaskScheduler(engine=engine) as scheduler, working(engine):
        await ends(await scheduler.schedule(complete), DurableState.SUCCEEDED)
    assert functions.ran == ["refused"]
