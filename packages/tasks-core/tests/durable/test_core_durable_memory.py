"""Durable tasks where there is no engine: they run in memory, with the same keys, retries and transactions."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import core_durable_functions as functions
import pytest
import tasks_core._durable.memory
from core_durable_functions import Line, asks_again, flaky, forget, note, rich, shielded
from core_engine import ListEngine
from core_support import in_thread, messages
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import StaticPool
from tasks_core import DurablePhase, RetryPolicy, TaskScheduler, TaskState, Worker, durable, durable_context
from tasks_core.engines import (
    DurableCall,
    DurableState,
    DurableStatus,
    DurableTaskTakenOverError,
    EngineCapabilityError,
    EngineNotConfiguredError,
    engine_of,
)
from tasks_core.exceptions import ArgumentCodecError, UnknownReceiptError
from tasks_core.frameworks import mark_as_brief
from tasks_core.testing import override_engine

__all__ = ("forget",)

pytestmark = pytest.mark.anyio

AT_STARTUP = "There is no engine, and without_engine='memory': durable tasks run in this process and are lost with it"


def scheduler_without_engine() -> TaskScheduler:
    return TaskScheduler(without_engine="memory")


async def test_a_durable_task_runs_in_memory_and_startup_says_so(caplog: pytest.LogCaptureFixture) -> None:
    async with scheduler_without_engine() as scheduler:
        assert messages(caplog, logging.WARNING) == [AT_STARTUP]
        receipt = await scheduler.schedule(note.configure(idempotency_key="k"), "hello")
        await scheduler.schedule(note, "again")
    assert functions.ran == ["hello", "again"]
    assert (receipt.engine, receipt.idempotency_key, receipt.created) == ("memory", "k", True)
    assert functions.contexts[0].idempotency_key == "k"
    assert functions.contexts[0].scheduler is scheduler
    assert messages(caplog, logging.WARNING) == [AT_STARTUP], "one line at startup, and none for a task"


async def test_a_key_belongs_to_its_queue_as_in_an_engine() -> None:
    async with scheduler_without_engine() as scheduler:
        for queue in ("payments", "mail", "mail"):
            await scheduler.schedule(note.configure(idempotency_key="k", queue=queue, priority=3), queue)
    assert functions.ran == ["payments", "mail"]


async def test_an_engine_is_used_where_there_is_one(caplog: pytest.LogCaptureFixture) -> None:
    engine = ListEngine()
    async with TaskScheduler(engine=engine, without_engine="memory") as scheduler:
        await scheduler.schedule(note, "hello")
    assert [call.name for call in engine.calls] == [note.name]
    assert AT_STARTUP not in caplog.text


async def test_a_test_that_records_durable_tasks_records_them(caplog: pytest.LogCaptureFixture) -> None:
    engine = ListEngine()
    with override_engine(engine):
        async with scheduler_without_engine() as scheduler:
            await scheduler.schedule(note, "hello")
    assert [call.name for call in engine.calls] == [note.name]
    assert (functions.ran, AT_STARTUP in caplog.text) == ([], False)


async def test_many_short_schedulers_say_it_while_debugging(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "tasks_core")
    scheduler = scheduler_without_engine()
    mark_as_brief(scheduler)
    async with scheduler:
        assert [r.levelno for r in caplog.records if r.getMessage() == AT_STARTUP] == [logging.DEBUG]


async def test_without_the_option_the_call_is_refused() -> None:
    async with TaskScheduler() as scheduler:
        with pytest.raises(
            EngineNotConfiguredError, match=r"To run such tasks in memory, write without_engine='memory'"
        ):
            scheduler.schedule(note, "x")


async def test_arguments_are_what_a_worker_would_get() -> None:
    """Copies, of the annotated types; and what cannot be stored is refused at the call."""
    lines = [Line(1, 2.5)]
    async with scheduler_without_engine() as scheduler:
        with pytest.raises(ArgumentCodecError):
            scheduler.schedule(note, object())  # type: ignore[call-overload]
        task = scheduler.schedule(rich, functions.NOON, functions.ANN, lines, {3})
        lines.append(Line(2, 9.5))
        await task
    assert functions.ran == [(functions.NOON, functions.ANN, [Line(1, 2.5)], {3})]


async def test_it_is_retried_and_reported_as_on_a_worker(caplog: pytest.LogCaptureFixture) -> None:
    async with scheduler_without_engine() as scheduler:
        await scheduler.schedule(flaky, 1)
        await scheduler.schedule(flaky, 9)
        await scheduler.schedule(asks_again)
        await scheduler.idle()
    assert functions.ran == ["flaky", "asked again"]
    assert functions.reported == [("flaky", 3, "ConnectionResetError")]
    lines = messages(caplog, logging.WARNING)[1:]
    assert all("Task 'flaky' #" in line or "Task 'asks_again' #" in line for line in lines), lines


async def test_a_key_makes_one_task(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tasks_core")
    async with scheduler_without_engine() as scheduler:
        first = await scheduler.schedule(note.configure(idempotency_key="k"), "first")
        second = await scheduler.schedule(note.configure(idempotency_key="k"), "second")
        await scheduler.idle()
        third = await scheduler.schedule(note.configure(idempotency_key="k"), "third")
        await scheduler.schedule(flaky.configure(idempotency_key="k"), 0)
    assert functions.ran == ["first", "flaky"], "a key belongs to a function, also when its task has ended"
    assert [(r.id, r.created) for r in (first, second, third)] == [
        (first.id, True),
        (first.id, False),
        (first.id, False),
    ]
    assert f"made no new task: memory has task {first.id} with idempotency key 'k' already" in caplog.text


async def test_the_oldest_keys_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks_core._durable.memory, "_KEYS_KEPT", 2)
    async with scheduler_without_engine() as scheduler:
        created = [
            (await scheduler.schedule(note.configure(idempotency_key=key), key)).created
            for key in ("1", "2", "3", "3", "1")
        ]
    assert created == [True, True, True, False, True]


async def test_status() -> None:
    functions.waiting["x"], functions.released["x"] = anyio.Event(), anyio.Event()
    async with scheduler_without_engine() as scheduler:
        receipt = await scheduler.schedule(shielded, "x")
        await functions.waiting["x"].wait()
        assert await receipt.status() == DurableStatus(DurableState.RUNNING, 0)
        functions.released["x"].set()
        await scheduler.idle()
        assert (await receipt.status()).state is DurableState.SUCCEEDED
        failed = await scheduler.schedule(flaky, 9)
        await scheduler.idle()
        status = await failed.status()
        assert (status.state, status.attempts) == (DurableState.FAILED, 3)
        delayed = await scheduler.task(delay=60).schedule(flaky, 0)
        assert (await delayed.status()).state is DurableState.PENDING
        scheduler.tasks[0].cancel()


async def test_status_between_attempts_and_of_a_task_that_is_gone() -> None:
    async with scheduler_without_engine() as scheduler:
        receipt = await scheduler.schedule(asks_again)
        with anyio.fail_after(5):
            while (status := await receipt.status()).state is not DurableState.PENDING or not status.attempts:
                await anyio.lowlevel.checkpoint()
        await scheduler.schedule(note.configure(idempotency_key="k"), "x")
        await scheduler.idle()
        again = await scheduler.schedule(note.configure(idempotency_key="k"), "x")
        assert (await again.status()).state is DurableState.UNKNOWN
        with pytest.raises(UnknownReceiptError, match="memory has no task with the id"):
            await again.result()


async def test_progress_that_is_reported_for_a_task_that_is_gone_is_kept_by_nothing() -> None:
    async with scheduler_without_engine() as scheduler:
        await scheduler.schedule(note, "x")
        await scheduler.idle()
        gc.collect()
        context = functions.contexts[0]
        await context.report_progress({"done": 1})
        assert context.progress is None


async def test_it_starts_when_its_phase_opens_and_then_whatever_the_outcome() -> None:
    """An engine that has acknowledged runs the task, also if the response fails later."""
    async with scheduler_without_engine() as scheduler:
        phase = DurablePhase(scheduler, "after", submit_on="submit")
        phase.schedule(note, "x")
        phase.task(when="error").schedule(note, "not submitted")
        await phase.submit("success")
        await anyio.wait_all_tasks_blocked()
        assert functions.ran == []
        phase.open("error")
        await scheduler.idle()
    assert functions.ran == ["x"]


async def test_only_schedule_takes_calls_and_a_worker_gets_none() -> None:
    async with scheduler_without_engine() as scheduler:
        engine = engine_of(scheduler)
        assert engine is not None
        with pytest.raises(EngineNotConfiguredError, match=r"schedule\(\) takes durable calls"):
            await engine.submit(DurableCall(note.name, {}, "k"))
        stop = anyio.Event()
        stop.set()
        await Worker(engine).run(stop)


# ---- transactions ----


@pytest.fixture
def session() -> Iterator[Session]:
    engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    with Session(engine) as session:
        session.execute(text("select 1"))
        yield session
    engine.dispose()


async def settled() -> None:
    await anyio.wait_all_tasks_blocked()


async def test_a_task_starts_after_the_commit(session: Session) -> None:
    async with scheduler_without_engine() as scheduler:
        receipt = await scheduler.schedule(note.configure(transaction=session), "x")
        await settled()
        assert functions.ran == []
        assert (await receipt.status()).state is DurableState.PENDING
        in_thread(session.commit)
        await scheduler.idle()
    assert functions.ran == ["x"]


async def test_a_task_of_a_transaction_that_was_committed_before_the_phase_began(session: Session) -> None:
    async with scheduler_without_engine() as scheduler:
        phase = DurablePhase(scheduler, "after", submit_on="submit", opened=True)
        phase.schedule(note.configure(transaction=session), "x")
        session.commit()
        await phase.submit("error")
        await scheduler.idle()
    assert functions.ran == ["x"]


async def test_a_rollback_discards_the_task_and_its_key_is_free(
    session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tasks_core")
    async with scheduler_without_engine() as scheduler:
        receipt = await scheduler.schedule(note.configure(transaction=session, idempotency_key="k"), "lost")
        session.rollback()
        await scheduler.idle()
        assert (await receipt.status()).state is DurableState.UNKNOWN
        session.execute(text("select 1"))
        again = await scheduler.schedule(note.configure(transaction=session, idempotency_key="k"), "kept")
        session.commit()
    assert (functions.ran, again.created) == (["kept"], True)
    assert f"Task 'note' #{receipt.id} (" in caplog.text
    assert "was discarded: the transaction that it was scheduled in was rolled back" in caplog.text


async def test_a_savepoint_that_is_rolled_back_takes_its_task_along(session: Session) -> None:
    async with scheduler_without_engine() as scheduler:
        await scheduler.schedule(note.configure(transaction=session), "outside")
        with session.begin_nested():
            await scheduler.schedule(note.configure(transaction=session), "inside")
        savepoint = session.begin_nested()
        await scheduler.schedule(note.configure(transaction=session), "dropped")
        phase = DurablePhase(scheduler, "after", submit_on="submit")
        waiting = phase.schedule(note.configure(transaction=session), "dropped before its submit")
        savepoint.rollback()
        await phase.submit()
        assert waiting.state is TaskState.DISCARDED
        session.commit()
        session.rollback()
        await scheduler.idle()
    assert sorted(functions.ran) == ["inside", "outside"]


async def test_of_two_transactions_with_one_key_the_first_commit_counts(
    session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tasks_core")
    engine = create_engine("sqlite://")
    with Session(engine) as other:
        other.execute(text("select 1"))
        async with scheduler_without_engine() as scheduler:
            for transaction, word in ((session, "second"), (other, "first")):
                await scheduler.schedule(note.configure(transaction=transaction, idempotency_key="k"), word)
            other.commit()
            session.commit()
            await scheduler.idle()
    engine.dispose()
    assert functions.ran == ["first"]
    assert "has its idempotency key 'k'" in caplog.text


async def test_a_transaction_that_is_over_is_refused(session: Session) -> None:
    async with scheduler_without_engine() as scheduler:
        phase = DurablePhase(scheduler, "after", submit_on="submit")
        phase.schedule(note.configure(transaction=session), "x")
        session.rollback()
        with pytest.raises(EngineCapabilityError, match="the transaction in which the task was scheduled is over"):
            await phase.submit()
        session.execute(text("select 1"))
        phase = DurablePhase(scheduler, "after", submit_on="submit")
        phase.schedule(note.configure(transaction=session), "x")
        session.close()
        session.execute(text("select 1"))
        with pytest.raises(EngineCapabilityError, match="is over"):
            await phase.submit()


async def test_a_task_that_is_cancelled_before_the_commit_does_not_run(session: Session) -> None:
    async with scheduler_without_engine() as scheduler:
        await scheduler.schedule(note.configure(transaction=session), "x")
        (task,) = scheduler.tasks
        task.cancel()
        session.commit()
        await scheduler.idle()
    assert (functions.ran, task.state) == ([], TaskState.CANCELLED)


async def test_a_session_that_was_not_used_yet(anyio_backend_name: str) -> None:
    if anyio_backend_name == "trio":
        pytest.skip("aiosqlite knows asyncio only")
    engine = create_async_engine("sqlite+aiosqlite://")
    async with AsyncSession(engine) as session, scheduler_without_engine() as scheduler:
        await scheduler.schedule(note.configure(transaction=session), "x")
        await settled()
        assert functions.ran == []
        await session.execute(text("select 1"))
        await session.commit()
    await engine.dispose()
    assert functions.ran == ["x"]


@pytest.mark.parametrize("transaction", [object(), create_engine("sqlite://")])
async def test_what_has_no_commit_to_wait_for_is_refused(transaction: Any) -> None:
    async with scheduler_without_engine() as scheduler:
        with pytest.raises(
            EngineCapabilityError, match=r"for whose commit a task in memory cannot wait\. Pass the SQLAlchemy"
        ):
            scheduler.schedule(note.configure(transaction=transaction), "x")


# ---- complete() ----

with_session: Callable[[], str]


@durable(name="memory.complete", retry=RetryPolicy(attempts=3, backoff=0.0))
def complete() -> str:
    functions.ran.append(durable_context().attempt)
    return with_session()


async def test_a_task_that_has_ended_with_its_commit_is_not_retried(
    session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    global with_session

    def commit() -> str:
        durable_context().complete(session, result="given")
        session.commit()
        raise ValueError("after the commit")

    with_session = commit
    async with scheduler_without_engine() as scheduler:
        receipt = await scheduler.schedule(complete)
        assert await receipt.result(timeout=30) == "given"
        assert (await receipt.status()).state is DurableState.SUCCEEDED
    assert functions.ran == [1]
    assert "raised after complete() had stored its end: it has succeeded, and is not run again" in caplog.text


async def test_a_rollback_leaves_the_end_to_the_function(session: Session) -> None:
    global with_session

    def roll_back() -> str:
        session.execute(text("SELECT 1"))
        durable_context().complete(session)
        with pytest.raises(DurableTaskTakenOverError, match="the end of the task is stored already"):
            durable_context().complete(session)
        session.rollback()
        if durable_context().attempt == 1:
            raise ConnectionError
        return "returned"

    with_session = roll_back
    async with scheduler_without_engine() as scheduler:
        receipt = await scheduler.schedule(complete)
        assert await receipt.result(timeout=30) == "returned"
    assert functions.ran == [1, 2]


async def test_the_end_of_a_connection_is_not_announced(session: Session) -> None:
    global with_session

    def use_connection() -> str:
        with pytest.raises(
            EngineCapabilityError, match=r"complete\(\) was given a sqlalchemy\.engine\.base\.Connection"
        ):
            durable_context().complete(session.connection())
        return "refused"

    with_session = use_connection
    async with scheduler_without_engine() as scheduler:
        assert await (await scheduler.schedule(complete)).result(timeout=30) == "refused"
